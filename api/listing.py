"""Lists of a theme's sessions, page by page: a part of the gateway, in a file of its own.

A list is in the order of ids, and a cursor is the id after which it goes on. So a session that is
there from the first page to the last is on exactly one of them, whatever comes and goes meanwhile,
and any node can answer any page.

A page is gathered in short turns, between which the node does its other work. One that looks for
what is rare ends, perhaps empty, when it has looked at enough, and says where to go on.
"""

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import NamedTuple

from api.answers import SessionView, view_of
from api.gateway import Gateway
from state import Phase, Session, StateMachine

TURN_IDS = 256  # that a turn looks at: less than a millisecond
PAGE_IDS = 65_536  # that a page looks at: some 20 ms of work in all
PAGE_BYTES = 1 << 20  # about, of a page

_VIEW_BYTES, _ENTRY_BYTES = 300, 100  # of a session, and of each entry of its history, written out

_CURSOR_VERSION = 1
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Query:
    """What to list, and from where on."""

    theme: int
    limit: int
    after: int = 0
    phase: Phase | None = None
    key_prefix: bytes = b""

    def matches(self, session: Session) -> bool:
        """Whether a session is to be listed."""
        if self.phase is not None and session.phase is not self.phase:
            return False
        return not self.key_prefix or (
            session.key is not None and session.key.startswith(self.key_prefix)
        )


class Page(NamedTuple):
    """Some sessions; `after` is where to go on, None when there are no more."""

    sessions: list[SessionView]
    after: int | None
    applied_index: int
    """What happens after this place of the log may be missing."""


async def page(gateway: Gateway, query: Query) -> Page:
    """The next page of what this node has."""
    applied_index = gateway.applied_index
    found = _Found(query)
    while not found.is_full:
        found.look(_machine_of(gateway))
        if found.after is None:
            break
        await asyncio.sleep(0)
    return Page(found.views, found.after, applied_index)


class _Found:
    """A page in the making."""

    def __init__(self, query: Query) -> None:
        self.views: list[SessionView] = []
        self.after: int | None = query.after
        self._query = query
        self._left_ids = PAGE_IDS
        self._left_bytes = PAGE_BYTES

    @property
    def is_full(self) -> bool:
        return len(self.views) >= self._query.limit or self._left_ids <= 0 or self._left_bytes <= 0

    def look(self, machine: StateMachine) -> None:
        """Look at the next ids, for one turn."""
        phase = self._query.phase
        theme = machine.theme(self._query.theme)
        if theme is None or (phase is not None and not theme.counts[phase]):
            self.after = None
            return
        sessions, self.after = machine.listed(self._query.theme, self.after or 0, TURN_IDS)
        for place, session in enumerate(sessions, 1):
            if self._query.matches(session):
                self._add(view_of(session, with_chunks=False))
                if self.is_full:
                    if place < len(sessions):
                        self.after = session.session_id
                    return
        self._left_ids -= TURN_IDS

    def _add(self, view: SessionView) -> None:
        self.views.append(view)
        self._left_bytes -= _VIEW_BYTES + len(view.key or "")
        self._left_bytes -= sum(_ENTRY_BYTES + len(entry.reason) for entry in view.history)


def _machine_of(gateway: Gateway) -> StateMachine:
    return gateway._node.machine  # noqa: SLF001 - see above: this is a part of it


def cursor_text(after: int) -> str:
    """A cursor as clients get it, and give it back."""
    data = bytes([_CURSOR_VERSION]) + after.to_bytes(_ID_BYTES, "big")
    return base64.urlsafe_b64encode(data).decode()


def cursor_number(text: str) -> int | None:
    """The place in a list that a cursor stands for; None if it was not made here."""
    try:
        data = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    if len(data) != 1 + _ID_BYTES or data[0] != _CURSOR_VERSION:
        return None
    return int.from_bytes(data[1:], "big")
