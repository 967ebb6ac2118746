"""The trace context of whoever began a session (W3C Trace Context), as a session keeps it.

It is kept for the consumers of the session, so that they can link what they do, in each attempt, to
what caused it. Nothing here looks into it.
"""

import re
from collections.abc import Mapping

PARENT_PATTERN = "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
STATE_PATTERN = "^[ -~]*$"
STATE_CHARS_MAX = 512

_PARENT_CHARS = 55
_PARENT, _STATE = re.compile(PARENT_PATTERN), re.compile(STATE_PATTERN)


def is_parent(text: str) -> bool:
    """Whether this may be a `traceparent`."""
    return _PARENT.fullmatch(text) is not None


def is_state(text: str) -> bool:
    """Whether this may be a `tracestate`."""
    return len(text) <= STATE_CHARS_MAX and _STATE.fullmatch(text) is not None


def pack(traceparent: str, tracestate: str) -> bytes:
    """What a session keeps: up to `state.limits.TRACE_BYTES_MAX` bytes."""
    return (f"{traceparent} {tracestate}" if tracestate else traceparent).encode()


def unpack(trace: bytes) -> tuple[str, str]:
    """The `traceparent` and the `tracestate` of a session, either empty if there is none."""
    text = trace.decode("ascii", "replace")
    return text[:_PARENT_CHARS], text[_PARENT_CHARS + 1 :]


def of_headers(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """The same of a request, if it has one that is in order (3.2 and 3.3).

    Others are passed over, as the specification has it: nobody is refused for them.
    """
    traceparent = headers.get("traceparent")
    if traceparent is None or not is_parent(traceparent):
        return None
    tracestate = headers.get("tracestate", "")
    return traceparent, tracestate if is_state(tracestate) else ""
