"""Events over HTTP: what happens, as it happens, as server-sent events (WHATWG HTML, 9.2).

A stream says with each event where it is, so that whoever is cut off goes on where it was, at this
node or at any other. When that is not possible it says `resync`: look at everything anew, what
happens from there on follows. The same becomes of a reader that is too slow: nothing is queued for
it but what its connection holds.

    id: 1041.0
    event: created
    data: {"id":"2f","theme":7,"key":"order-1","revision":1,"log_index":1041}
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Literal

import msgspec
from aiohttp import web
from msgspec import Struct

from api.frontend import FrontEnd
from api.history import GoneError, History, Place
from api.http.calls import APPLIED_INDEX, Call, whole_number
from api.identifiers import key_text, session_text
from api.problems import Problem, Refusal, bad_request, refusal
from api.security import Principal, Scope
from state import EventKind
from state.events import RawEvent
from state.limits import THEME_MAX

TYPE = "text/event-stream"

STREAMS_MAX = 1000  # of a node: each costs some 20 us whenever anything happens
PAGE_EVENTS = 256  # looked at in one go, less than a millisecond
PAGE_BYTES = 64 << 10  # sent in one go
_PACE_S = 0.02  # between two looks: what happens meanwhile is sent together
_RETRY_MS = 1000  # after which a client that was cut off comes back
_BUSY_RETRY_MS = 10_000

_OPTIONS = ("from", "theme", "kind")
_KINDS = {kind.name.lower(): kind for kind in EventKind}
_HEADS = {kind: f"\nevent: {name}\ndata: ".encode() for name, kind in _KINDS.items()}

_encode = msgspec.json.Encoder().encode


class EventData(Struct, kw_only=True):
    """What happened to a session; of a theme's policy, with `id`, `key` and `revision` null."""

    id: str | None
    theme: int
    key: str | None
    revision: int | None
    log_index: int


class PlaceData(Struct, kw_only=True):
    """Of `resync` and `draining`: everything up to there is told, or to be looked at anew."""

    log_index: int


async def follow(call: Call) -> web.StreamResponse:
    """Tell what happens to sessions and themes, from a place in the log or from now on."""
    front, given = call.front, call.options(*_OPTIONS)
    front.check(call.principal, Scope.READ)
    themes = _themes(given.get("theme"))
    for theme in themes or ():
        call.principal.require_theme(theme)
    kinds = _kinds(given.get("kind"))
    place = _place(call, given)
    history = front.history
    if place is not None and place > history.end:
        # Another node is ahead of this one; whatever it has told of, this one has after that.
        await call.read()
        if place > history.end:
            place = Place(-1)  # of another cluster, or made up
    if front.health.is_draining:
        raise refusal(503, "draining", "the node is about to stop", retryable=True)
    if history.followers >= STREAMS_MAX:
        raise refusal(
            429,
            "overloaded",
            f"{STREAMS_MAX} event streams are open here, and no more may be",
            retryable=True,
            retry_after_ms=_BUSY_RETRY_MS,
        )
    response = web.StreamResponse(
        headers={
            "Content-Type": TYPE,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",  # nginx would keep events back
            APPLIED_INDEX: str(history.end.log_index),
        }
    )
    if call.request.method == "HEAD":
        return response
    await response.prepare(call.request)
    stream = _Stream(front, call, response, _Filter(themes, kinds), place or history.end)
    await stream.run()
    return response


def _place(call: Call, given: Mapping[str, str]) -> Place | None:
    """After what to begin; None: now. Raises `Refusal`."""
    # A client that comes back asks as it did the first time, and says where it was.
    name = "Last-Event-ID"
    text = call.request.headers.get(name, "")
    if not text:
        name, text = "from", given.get("from", "")
    if not text:
        return None
    place = Place.of(text)
    if place is None:
        raise bad_request(
            f"{name} is {text[:40]!a}; it is the id of an event, or an index of the log"
        )
    return place


def _themes(text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    found: set[int] = set()
    for one in text.split(","):
        theme = whole_number(one, THEME_MAX)
        if theme is None:
            raise bad_request(f"theme is {text[:40]!a}; it is a theme, or several: 7,8")
        found.add(theme)
    return frozenset(found)


def _kinds(text: str | None) -> frozenset[EventKind] | None:
    if text is None:
        return None
    found = text.split(",")
    unknown = [one for one in found if one not in _KINDS]
    if unknown:
        raise bad_request(f"kind is {unknown[0][:40]!a}; there are {', '.join(_KINDS)}")
    return frozenset(_KINDS[one] for one in found)


class _Filter:
    """Which events a reader wants."""

    __slots__ = ("_kinds", "_themes")

    def __init__(self, themes: frozenset[int] | None, kinds: frozenset[EventKind] | None) -> None:
        self._themes = themes
        self._kinds = kinds

    def accepts(self, event: RawEvent, principal: Principal) -> bool:
        """Whether it wants an event, and may have it."""
        kind, _, theme, _, _ = event
        return (
            (self._themes is None or theme in self._themes)
            and (self._kinds is None or kind in self._kinds)
            and principal.may_theme(theme)
        )


class _Stream:
    """One reader. `api.server` drains it like any connection."""

    def __init__(
        self,
        front: FrontEnd,
        call: Call,
        response: web.StreamResponse,
        wants: _Filter,
        place: Place,
    ) -> None:
        self._front = front
        self._history: History = front.history
        self._request = call.request
        self._principal = call.principal
        self._response = response
        self._wants = wants
        self._place = place
        self._patience_s = front.settings.request_timeout_ms / 1000
        self._period_s = front.settings.ping_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._ping_s = self._loop.time() + self._period_s
        self._ending: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Tell what happens, until the reader leaves or the node stops."""
        self._front.connections.add(self)
        self._history.followers += 1
        try:
            with contextlib.suppress(ConnectionError):  # it has left
                await self._send(self._beginning())
                while not self._ending.done():
                    await self._go_on()
                await self._send(
                    self._frame("draining", PlaceData(log_index=self._place.log_index))
                )
        except TimeoutError:
            self._abort()  # it does not read
        except Refusal as error:
            with contextlib.suppress(ConnectionError, TimeoutError):
                await self._send(_problem(error.problem))
        finally:
            self._history.followers -= 1
            self._front.connections.discard(self)

    # For the server

    def drain(self, within_ms: int) -> None:  # noqa: ARG002 - it ends at once
        """Say that the node is about to stop, and end."""
        if not self._ending.done():
            self._ending.set_result(None)

    def shut_down(self) -> None:
        """End now."""
        self._abort()

    def _abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    # What is sent

    def _beginning(self) -> bytes:
        """When a client that is cut off is to come back, and from where on."""
        place = f"id: {self._place}\n" if self._place.log_index >= 0 else ""
        return f"retry: {_RETRY_MS}\n{place}\n".encode()

    async def _go_on(self) -> None:
        """Send what has happened, or wait until something does."""
        async with self._history.turns:
            data, is_behind, has_looked = self._next_page()
        if data:
            await self._send(data)
        now_s = self._loop.time()
        if now_s >= self._ping_s:
            self._ping_s = now_s + self._period_s
            self._principal = self._front.tokens.renew(self._principal)
            # Whoever hears of few events is as far as all others, and not told to begin anew.
            await self._send(f":\nid: {self._place}\n\n".encode())
        if has_looked and not is_behind:
            await asyncio.sleep(_PACE_S)
        if self._place >= self._history.end:
            await asyncio.wait(
                (self._history.changed(), self._ending),
                timeout=max(self._ping_s - self._loop.time(), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )

    def _next_page(self) -> tuple[bytes, bool, bool]:
        """The next events as they are sent; whether there may be more; whether there were any."""
        history, principal, accepts = self._history, self._principal, self._wants.accepts
        try:
            passages = history.after(self._place, PAGE_EVENTS)
        except GoneError:
            self._place = place = history.end
            frame = self._frame("resync", PlaceData(log_index=place.log_index))
            return f"id: {place}\n".encode() + frame, False, True
        frames: list[bytes] = []
        size_bytes = looked = 0
        for index, first, events in passages:
            for position, event in enumerate(events, first):
                looked += 1
                if accepts(event, principal):
                    frames.append(_written(index, position, event))
                    size_bytes += len(frames[-1])
                    if size_bytes >= PAGE_BYTES:
                        self._place = Place(index, position)
                        return b"".join(frames), True, True
        if looked < PAGE_EVENTS:
            self._place = max(self._place, history.end)
        else:
            index, first, events = passages[-1]
            self._place = Place(index, first + len(events) - 1)
        return b"".join(frames), looked == PAGE_EVENTS, looked > 0

    def _frame(self, name: Literal["resync", "draining"], data: PlaceData) -> bytes:
        return f"event: {name}\ndata: ".encode() + _encode(data) + b"\n\n"

    async def _send(self, data: bytes) -> None:
        async with asyncio.timeout(self._patience_s):
            await self._response.write(data)


def _written(index: int, position: int, event: RawEvent) -> bytes:
    kind, session_id, theme, key, revision = event
    data = EventData(
        id=session_text(session_id) if session_id else None,
        theme=theme,
        key=None if key is None else key_text(key),
        revision=revision or None,
        log_index=index,
    )
    return b"id: %d.%d%b%b\n\n" % (index, position, _HEADS[kind], _encode(data))


def _problem(problem: Problem) -> bytes:
    return b"event: problem\ndata: " + _encode(problem.fields()) + b"\n\n"
