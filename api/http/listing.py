"""The sessions of a theme over HTTP, page by page."""

from aiohttp import web
from msgspec import Struct

from api import listing
from api.answers import SessionView
from api.http.calls import APPLIED_INDEX, Call, number_in
from api.identifiers import key_bytes
from api.problems import bad_request
from api.security import Scope
from state import Phase

_PAGE, _PAGE_MAX = 100, 1000
_KEY_CHARS_MAX = 4096

_OPTIONS = ("phase", "key_prefix", "cursor", "limit", "consistency")
_PHASES = {one.name.lower(): one for one in (Phase.STORED, Phase.READY, Phase.ACTIVE, Phase.PARKED)}


class SessionListAnswer(Struct, kw_only=True):
    """A page of sessions, without their chunks, in the order of their ids.

    A page may be short, or even empty, and yet not be the last one: its `cursor` is null.
    """

    sessions: list[SessionView]
    cursor: str | None = None


async def show_all(call: Call) -> web.Response:
    """List the sessions of a theme; each that stays is on exactly one page."""
    query = _query(call)
    call.front.check(call.principal, Scope.READ, query.theme)
    if not call.is_stale_enough:
        await call.read()
    page = await listing.page(call.front.gateway, query)
    cursor = None if page.after is None else listing.cursor_text(page.after)
    return call.answer(
        SessionListAnswer(sessions=page.sessions, cursor=cursor),
        headers={APPLIED_INDEX: str(page.applied_index)},
    )


def _query(call: Call) -> listing.Query:
    """What is asked for. Raises `Refusal`."""
    given = call.options(*_OPTIONS)
    phase = given.get("phase")
    if phase is not None and phase not in _PHASES:
        raise bad_request(f"phase is {phase[:40]!a}; it is one of {', '.join(_PHASES)}")
    prefix = given.get("key_prefix", "")
    if len(prefix) > _KEY_CHARS_MAX:
        raise bad_request(f"key_prefix has {len(prefix)} characters, and may have {_KEY_CHARS_MAX}")
    cursor = given.get("cursor")
    after = 0 if cursor is None else listing.cursor_number(cursor)
    if after is None:
        raise bad_request("this cursor is none that a list has given; leave it out to begin anew")
    return listing.Query(
        theme=call.theme,
        limit=number_in(given, "limit", _PAGE, 1, _PAGE_MAX),
        after=after,
        phase=None if phase is None else _PHASES[phase],
        key_prefix=key_bytes(prefix),
    )
