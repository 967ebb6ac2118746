"""Who waits for sessions to become due.

Waiting costs nothing: a waiter stands in the queue of each of its themes until a batch says that
the theme may have something to hand out. Then as many waiters as there are sessions ask the
cluster, those who have waited longest first. Other nodes have waiters too, so an answer may be
empty: then it keeps its place.

An Acquire is always waited for to its end, however long that takes, because its answer may be
sessions that somebody has to take care of. The patience of whoever asked may end earlier.
"""

import asyncio
from collections.abc import Callable, Iterable

from api.answers import SessionView
from api.gateway import Gateway
from state import Applied, Failure, encode
from state.limits import HOUR_MS
from state.operations import Acquire

_LOOK_S = 1.0  # for what no hint has told of

Found = Callable[[list[SessionView] | Failure], object]


class Waiter:
    """One Acquire that has not found anything yet."""

    __slots__ = ("_found", "asks", "consumer", "count", "is_leaving", "is_over", "themes")

    def __init__(
        self, themes: tuple[int, ...], count: int, consumer: bytes | None, found: Found
    ) -> None:
        self.themes = themes
        self.count = count
        self.consumer = consumer
        self._found = found
        self.asks = False  # its Acquire is on its way
        self.is_leaving = False  # its patience has ended, and the answer of its Acquire is awaited
        self.is_over = False

    def answer(self, result: list[SessionView] | Failure) -> None:
        """Tell whoever waits."""
        self.is_over = True
        self._found(result)


class Waiters:
    """All waiters of a node."""

    def __init__(self, gateway: Gateway, loop: asyncio.AbstractEventLoop) -> None:
        self._gateway = gateway
        self._loop = loop
        self._by_theme: dict[int, dict[Waiter, None]] = {}  # in the order in which they came
        self._timer: asyncio.TimerHandle | None = None
        gateway.watchers.append(self)

    def __len__(self) -> int:
        return len({waiter for waiters in self._by_theme.values() for waiter in waiters})

    def ask(
        self, themes: Iterable[int], count: int, consumer: bytes | None, found: Found
    ) -> Waiter:
        """Wait for sessions. `found` is called once, unless `leave` comes first.

        It is called with sessions, or with a failure; perhaps before this returns.
        """
        waiter = Waiter(tuple(dict.fromkeys(themes)), count, consumer, found)
        for theme in waiter.themes:
            self._by_theme.setdefault(theme, {})[waiter] = None
        if any(map(self._gateway.ready_count, waiter.themes)):
            self._acquire(waiter)
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)
        return waiter

    def leave(self, waiter: Waiter) -> bool:
        """Wait no more. False if its Acquire is on its way: then it will be answered, soon."""
        if waiter.asks or waiter.is_over:
            waiter.is_leaving = True
            return False
        self._forget(waiter)
        return True

    def stop(self) -> None:
        """Let nobody wait any more: all are told that there is nothing."""
        if self._timer is not None:
            self._timer.cancel()
        for waiter in {one: None for waiters in self._by_theme.values() for one in waiters}:
            if self.leave(waiter):
                waiter.answer([])

    def _forget(self, waiter: Waiter) -> None:
        waiter.is_over = True
        for theme in waiter.themes:
            waiters = self._by_theme.get(theme)
            if waiters is not None:
                waiters.pop(waiter, None)
                if not waiters:
                    del self._by_theme[theme]

    def _acquire(self, waiter: Waiter) -> None:
        waiter.asks = True
        encoded = encode(Acquire(waiter.themes, waiter.count, waiter.consumer))

        def answered(result: list[SessionView] | Failure) -> None:
            waiter.asks = False
            if result or waiter.is_leaving:
                self._forget(waiter)
                waiter.answer(result)

        self._gateway.acquire(encoded, answered, timeout_ms=HOUR_MS)

    def _serve(self, theme: int) -> None:
        """Let as many of a theme's waiters ask as there is something for."""
        waiters = self._by_theme.get(theme)
        if not waiters:
            return
        count = self._gateway.ready_count(theme)
        chosen: list[Waiter] = []
        for waiter in waiters:
            if count <= 0:
                break
            count -= waiter.count
            if not waiter.asks:
                chosen.append(waiter)
        for waiter in chosen:
            self._acquire(waiter)

    def _look(self) -> None:
        """Serve whoever could be served, though nothing has said so."""
        self._timer = None
        if self._by_theme:
            self._timer = self._loop.call_later(_LOOK_S, self._look)
            for theme in list(self._by_theme):
                self._serve(theme)

    # What the node tells

    def on_applied(self, applied: Applied) -> None:
        if self._by_theme:
            for theme in applied.awake:
                self._serve(theme)

    def on_leader(self, leader: str | None) -> None:
        """What is asked is asked of the new leader, by the node."""

    def on_installed(self) -> None:
        for theme in list(self._by_theme):
            self._serve(theme)
