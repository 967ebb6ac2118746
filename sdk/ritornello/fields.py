"""What callers say, as the fields of requests. Both fronts go through here, so they agree.

Whatever is wrong with an argument is said here, as TypeError or ValueError, before it is sent.
"""

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal, get_args

from ritornello import limits
from ritornello.models import Trace

Data = bytes | bytearray | memoryview | str  # of text its UTF-8
Seconds = float | timedelta  # fractions allowed
Target = str | tuple[int, str]  # an id, or a theme and a key
OnConflict = Literal["reject", "return_existing", "bring_forward"]  # see `Client.new`
StoreCause = Literal["requested", "failed", "shutdown"]  # `shutdown` counts no attempt
Fields = dict[str, Any]

_THEME_MAX = 2**32 - 1
_KEY_BYTES = 256
_CONFLICTS = get_args(OnConflict)
_TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_CAUSES = get_args(StoreCause)
_PRIORITY_MAX = 65_535
_COUNTER_MAX = 2**63 - 1


def theme_of(theme: int) -> int:
    """Check a theme."""
    if isinstance(theme, bool) or not isinstance(theme, int):
        raise TypeError(f"a theme is a whole number, and not {type(theme).__name__}")
    if not 0 <= theme <= _THEME_MAX:
        raise ValueError(f"theme is {theme}; it is from 0 to {_THEME_MAX}")
    return theme


def themes_of(themes: int | Iterable[int]) -> list[int]:
    """Check one theme or several."""
    found = [themes] if isinstance(themes, int) else list(themes)
    if not found:
        raise ValueError("name at least one theme")
    return [theme_of(one) for one in dict.fromkeys(found)]


def key_of(key: str) -> str:
    """Check a session's key."""
    if not isinstance(key, str):
        raise TypeError(f"a key is text, and not {type(key).__name__}")
    try:
        length = len(key.encode())
    except UnicodeEncodeError as error:
        raise ValueError("a key has half of a surrogate pair") from error
    if not 1 <= length <= _KEY_BYTES:
        raise ValueError(f"a key has 1 to {_KEY_BYTES} bytes of UTF-8")
    return key


def number_of(number: int, name: str, most: int) -> int:
    """Check a whole number that is not less than 0."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} is a whole number, and not {type(number).__name__}")
    if not 0 <= number <= most:
        raise ValueError(f"{name} is {number}; it is from 0 to {most}")
    return number


def data_of(data: Data) -> bytes:
    """Data as bytes; of text its UTF-8."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"data is bytes or text, and not {type(data).__name__}")


def seconds_of(seconds: Seconds, name: str) -> float:
    """Check a time to wait."""
    found = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TypeError(f"{name} is in seconds, or a timedelta, and not {type(found).__name__}")
    if not 0 <= found < float("inf"):
        raise ValueError(f"{name} is {found}; it is 0 or more")
    return float(found)


def reason_of(reason: str) -> str:
    """A reason, cut to what the cluster keeps; what is no Unicode in it is replaced."""
    return reason[: limits.REASON_CHARS].encode(errors="replace").decode()


def count_of(count: int) -> int:
    """Check how many sessions are wanted."""
    if not 1 <= count <= limits.COUNT_MAX:
        raise ValueError(f"count is {count}; it is from 1 to {limits.COUNT_MAX}")
    return count


def target_of(target: Target) -> Fields:
    """A session, by its id or by theme and key."""
    if isinstance(target, str):
        return {"id": target}
    theme, key = target
    return {"theme": theme_of(theme), "key": key_of(key)}


def new(
    theme: int,
    data: Data,
    *,
    key: str | None,
    priority: int | None,
    after: Seconds | None,
    on_conflict: OnConflict,
    trace: Trace | None,
) -> Fields:
    """Of `new`."""
    fields: Fields = {"op": "new", "theme": theme_of(theme), "data": data_of(data)}
    if key is not None:
        fields["key"] = key_of(key)
    if priority is not None:
        fields["priority"] = number_of(priority, "priority", _PRIORITY_MAX)
    if after is not None:
        fields["repeat_after"] = seconds_of(after, "after")
    if on_conflict != "reject":
        if on_conflict not in _CONFLICTS:
            raise ValueError(f"on_conflict is {on_conflict!r}; it is {', '.join(_CONFLICTS)}")
        if after is None:
            raise ValueError("on_conflict belongs to a session that is stored: say after=0")
        fields["on_conflict"] = on_conflict
    if trace is not None:
        if not _TRACEPARENT.fullmatch(trace.traceparent):
            raise ValueError(f"traceparent is {trace.traceparent!r}; see W3C Trace Context, 3.2")
        fields["traceparent"] = trace.traceparent
        if trace.tracestate:
            fields["tracestate"] = trace.tracestate
    return fields


def change(op: str, target: Target, data: Data, if_revision: int | None) -> Fields:
    """Of `append` and `replace`, of a session that nobody holds."""
    fields = {"op": op, **target_of(target), "data": data_of(data)}
    if if_revision is not None:
        fields["if_revision"] = number_of(if_revision, "if_revision", _COUNTER_MAX)
    return fields


def named(op: str, target: Target, if_revision: int | None) -> Fields:
    """Of what only names a session."""
    fields = {"op": op, **target_of(target)}
    if if_revision is not None:
        fields["if_revision"] = number_of(if_revision, "if_revision", _COUNTER_MAX)
    return fields


def store(fields: Fields, after: Seconds | None, cause: StoreCause, reason: str) -> Fields:
    """Add what a `store` says."""
    if after is not None:
        fields["repeat_after"] = seconds_of(after, "after")
    if cause != "requested":
        if cause not in _CAUSES:
            raise ValueError(f"cause is {cause!r}; it is {', '.join(_CAUSES)}")
        fields["cause"] = cause
    if reason:
        fields["reason"] = reason_of(reason)
    return fields
