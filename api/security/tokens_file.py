"""The file of tokens.

It is TOML:

    [[tokens]]
    name = "billing workers"         # what logs say; the token itself is nowhere
    hash = "sha256:<64 hexadecimal digits>"
    scopes = ["operate"]             # read, operate, admin
    themes = ["1-99", 200]           # optional: all themes without it
    expires = 2027-01-01T00:00:00Z   # optional

All that is wrong is told together. A file without any token is refused: as a change it is more
likely a half-written file than the wish to lock everybody out.
"""

import difflib
import re
import tomllib
from collections.abc import Callable
from datetime import datetime
from typing import Any

from api.security.errors import TokensError
from api.security.principals import Principal, Scope, Themes
from state.limits import THEME_MAX

TOKEN_PREFIX = "rit_"  # noqa: S105 - by which scanners of repositories can find the lost ones
TOKENS_MAX = 10_000
NAME_CHARS_MAX = 128

_PROBLEMS_SHOWN = 10
_SHOWN_CHARS = 60
_FIELDS = ("name", "hash", "scopes", "themes", "expires")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
_HOW_TO_HASH = (
    'write hash = "sha256:<64 hexadecimal digits>", which are what '
    '`printf %s "$token" | sha256sum` says of the token'
)
_SCOPES = {scope.name.lower(): scope for scope in Scope}

Say = Callable[[str], None]


def parse_tokens(path: str, content: bytes) -> dict[bytes, Principal]:
    """Read a file: who has which token, by the token's digest. Raises `TokensError`."""
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise TokensError(path, "it is no UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise TokensError(path, f"it is no TOML: {_shown(str(error), quoted=False)}") from error
    entries = document.get("tokens")
    if set(document) - {"tokens"} or not isinstance(entries, list):
        raise TokensError(path, "it is a list of [[tokens]], and nothing else")
    if not 1 <= len(entries) <= TOKENS_MAX:
        raise TokensError(path, f"it has {len(entries)} tokens; give 1 to {TOKENS_MAX}")
    return _principals(path, entries)


def _principals(path: str, entries: list[Any]) -> dict[bytes, Principal]:
    problems: list[str] = []
    found: dict[bytes, Principal] = {}
    names: set[str] = set()
    for number, entry in enumerate(entries, 1):

        def say(problem: str, number: int = number) -> None:
            problems.append(f"token {number} {problem}")

        principal = _principal(entry, say)
        if principal is None:
            continue
        if principal.name in names:
            say(f"has the name {principal.name!r}, as another has; give each its own")
        if principal.digest in found:
            say(f"has the hash of the token {found[principal.digest].name!r}; leave one of them")
        names.add(principal.name)
        found[principal.digest] = principal
    if problems:
        rest = len(problems) - _PROBLEMS_SHOWN
        more = (f"and {rest} more problems",) if rest > 0 else ()
        raise TokensError(path, *problems[:_PROBLEMS_SHOWN], *more)
    return found


def _principal(entry: object, say: Say) -> Principal | None:
    if not isinstance(entry, dict):
        say("is no table; begin it with [[tokens]]")
        return None
    for name in set(entry) - set(_FIELDS):
        if name == "token":
            say(f"is written out; give its hash alone: {_HOW_TO_HASH}")
        else:
            near = difflib.get_close_matches(name, _FIELDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_FIELDS)}"
            say(f"has a field {_shown(name)}; {hint}")
    name = _name(entry.get("name"), say)
    digest = _digest(entry.get("hash"), say)
    scope = _scope(entry.get("scopes"), say)
    themes = _themes(entry["themes"], say) if "themes" in entry else None
    expires_s = _expires_s(entry["expires"], say) if "expires" in entry else float("inf")
    if name is None or digest is None or scope is None or expires_s is None:
        return None
    return Principal(name, scope, themes, expires_s, digest)


def _name(value: object, say: Say) -> str | None:
    match value:
        case str() if TOKEN_PREFIX in value:
            say("has a token in its name, which logs show; call it after who uses it")
        case str() if 1 <= len(value) <= NAME_CHARS_MAX and value.isprintable():
            return value
        case _:
            say(f"takes a name of 1 to {NAME_CHARS_MAX} printable characters")
    return None


def _digest(value: object, say: Say) -> bytes | None:
    """Nothing that is wrong here is shown: it may well be a token."""
    if isinstance(value, str) and (match := _HASH.fullmatch(value)):
        return bytes.fromhex(match[1])
    is_token = isinstance(value, str) and value.startswith(TOKEN_PREFIX)
    lead = "has a token where its hash belongs; " if is_token else "takes a hash; "
    say(lead + _HOW_TO_HASH)
    return None


def _scope(value: object, say: Say) -> Scope | None:
    """The widest of those that are listed: it includes the others."""
    names = value if isinstance(value, list) else []
    scopes = [_SCOPES[name] for name in names if isinstance(name, str) and name in _SCOPES]
    if scopes and len(scopes) == len(names):
        return max(scopes)
    given = "" if value is None else f", not {_shown(value)}"
    say(f'takes scopes, such as ["operate"]: of {", ".join(_SCOPES)}{given}')
    return None


def _themes(value: object, say: Say) -> Themes | None:
    if not isinstance(value, list) or not value:
        say(f'has themes = {_shown(value)}; write such as ["1-99", 200], or leave it out for all')
        return None
    ranges = []
    for one in value:
        match = _RANGE.fullmatch(str(one)) if type(one) in {int, str} else None
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (-1, -1)
        if 0 <= first <= last <= THEME_MAX:
            ranges.append((first, last))
        else:
            say(f'has a theme {_shown(one)}; write such as 200 or "1-99", within 0 to {THEME_MAX}')
    return Themes.of(ranges)


def _expires_s(value: object, say: Say) -> float | None:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.timestamp()
    say(f"expires at {_shown(value)}; write such as 2027-01-01T00:00:00Z, without quotes")
    return None


def _shown(value: object, *, quoted: bool = True) -> str:
    """A value for a message: in one line, short, and never a token."""
    text = str(value) if isinstance(value, datetime) else ascii(value)
    if TOKEN_PREFIX in text:
        return "(not shown)"
    if not quoted:
        text = text[1:-1]
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
