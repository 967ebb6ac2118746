"""Who waits for sessions to become due.

Waiting costs nothing: a waiter stands in the queue of each of its themes until a batch says that
the theme may have something to hand out. Then as many waiters as there are sessions ask the
cluster, those who have waited longest first. Other nodes have waiters too, so an answer may be
empty: then it keeps its place.

An Acquire is always waited for to its end, however long that takes, because its answer may be
sessions that somebody has to take care of. The patience of whoever asked may end earlier.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from api.answers import SessionView
from api.gateway import Gateway
from cluster.failures import Overloaded
from state import Applied, Failure, encode
from state.errors import LimitExceeded
from state.limits import HOUR_MS
from state.operations import Acquire

_LOOK_S = 1.0  # for what no hint has told of
_LOOKS = 4096  # at so many themes in one turn of the loop
PLACES_MAX = 262_144  # of waiters in the queues of their themes
CONSUMER_PLACES_MAX = PLACES_MAX // 8  # of one consumer's, so that there are some for others
_RETRY_AFTER_MS = 1000

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


class _Line:
    """Who waits for sessions of one theme."""

    __slots__ = ("asked", "idle", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[Waiter, None] = {}  # in the order in which they came
        self.idle = 0  # of them: whose Acquire is not on its way
        self.asked = 0  # how many sessions the others ask for


class Waiters:
    """All waiters of a node."""

    def __init__(self, gateway: Gateway, loop: asyncio.AbstractEventLoop) -> None:
        self._gateway = gateway
        self._loop = loop
        self._lines: dict[int, _Line] = {}  # by theme; none is empty
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self._count = 0  # of waiters
        self._places = 0  # that are taken
        self._places_of: dict[bytes, int] = {}  # by consumer; none is 0
        self.acquires = 0  # asked of the cluster, since the start
        self.empty_answers = 0  # of these
        gateway.watchers.append(self)

    def __len__(self) -> int:
        return self._count

    @property
    def count_max(self) -> int:
        """How many sessions one may ask for."""
        return self._gateway.limits().acquire_count

    def ask(
        self, themes: Iterable[int], count: int, consumer: bytes | None, found: Found
    ) -> Waiter:
        """Wait for sessions. `found` is called once, unless `leave` comes first.

        It is called with sessions, or with a failure; with none only if nobody may wait any more,
        or if the waiter is leaving. Perhaps that is before this returns.
        """
        waiter = Waiter(tuple(dict.fromkeys(themes)), count, consumer, found)
        refused = self._refused(waiter)
        if refused is not None or self._is_stopped:
            waiter.answer(refused or [])
            return waiter
        self._note(waiter, 1)
        for theme in waiter.themes:
            line = self._lines.get(theme)
            if line is None:
                line = self._lines[theme] = _Line()
            line.waiters[waiter] = None
            line.idle += 1
        for theme in waiter.themes:
            self._serve(theme)
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)
        return waiter

    def _refused(self, waiter: Waiter) -> Failure | None:
        """Why the cluster would refuse it, whenever it is asked, or this node does."""
        limits = self._gateway.limits()
        for limit, value in (
            ("acquire_count", waiter.count),
            ("acquire_themes", len(waiter.themes)),
        ):
            bound = getattr(limits, limit)
            if value > bound:
                return LimitExceeded(limit, value, bound)
        places = len(waiter.themes)
        theirs = 0 if waiter.consumer is None else self._places_of.get(waiter.consumer, 0)
        if self._places + places > PLACES_MAX or theirs + places > CONSUMER_PLACES_MAX:
            return Overloaded(_RETRY_AFTER_MS)
        return None

    def _note(self, waiter: Waiter, sign: int) -> None:
        """Count a waiter and its places: 1 when it comes, -1 when it goes."""
        places = sign * len(waiter.themes)
        self._count += sign
        self._places += places
        if waiter.consumer is not None:
            theirs = self._places_of.pop(waiter.consumer, 0) + places
            if theirs:
                self._places_of[waiter.consumer] = theirs

    def leave(self, waiter: Waiter) -> bool:
        """Wait no more. False if its Acquire is on its way: then that is still answered."""
        if waiter.is_over:
            return True
        if waiter.asks:
            waiter.is_leaving = True
            return False
        self._forget(waiter)
        return True

    def stop(self) -> None:
        """Let nobody wait any more: all are told that there is nothing."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        waiting = {waiter: None for line in self._lines.values() for waiter in line.waiters}
        for waiter in waiting:
            if self.leave(waiter):
                waiter.answer([])

    def _forget(self, waiter: Waiter) -> None:
        waiter.is_over = True
        self._note(waiter, -1)
        for theme in waiter.themes:
            line = self._lines[theme]
            del line.waiters[waiter]
            line.idle -= 1
            if not line.waiters:
                del self._lines[theme]

    def _acquire(self, waiter: Waiter) -> None:
        waiter.asks = True
        self.acquires += 1
        for theme in waiter.themes:
            line = self._lines[theme]
            line.idle -= 1
            line.asked += waiter.count
        encoded = encode(Acquire(waiter.themes, waiter.count, waiter.consumer))

        def answered(result: list[SessionView] | Failure) -> None:
            waiter.asks = False
            self.empty_answers += not result
            for theme in waiter.themes:
                line = self._lines[theme]
                line.idle += 1
                line.asked -= waiter.count
            if result or waiter.is_leaving:
                self._forget(waiter)
                waiter.answer(result)
                if not isinstance(result, Failure):
                    # It may have found something in one of its themes, and not in another.
                    for theme in waiter.themes:
                        self._serve(theme)

        self._gateway.acquire(encoded, answered, timeout_ms=HOUR_MS)

    def _serve(self, theme: int) -> None:
        """Let as many of a theme's waiters ask as there is something for, and nobody asks yet."""
        line = self._lines.get(theme)
        if line is None or not line.idle:
            return
        count = self._gateway.ready_count(theme) - line.asked
        if count <= 0:
            return
        chosen: list[Waiter] = []
        for waiter in line.waiters:
            if count <= 0 or len(chosen) == line.idle:
                break
            if not waiter.asks:
                count -= waiter.count
                chosen.append(waiter)
        for waiter in chosen:
            if not waiter.asks and not waiter.is_over:
                self._acquire(waiter)

    def _look(self) -> None:
        """Serve whoever could be served, though nothing has said so."""
        self._timer = None
        if self._lines:
            self._timer = self._loop.call_later(_LOOK_S, self._look)
            self._look_at(list(self._lines))

    def _look_at(self, themes: Sequence[int], start: int = 0) -> None:
        end = start + _LOOKS
        for theme in themes[start:end]:
            self._serve(theme)
        if end < len(themes) and not self._is_stopped:
            self._loop.call_soon(self._look_at, themes, end)

    # What the node tells

    def on_applied(self, applied: Applied) -> None:
        if self._lines:
            for theme in applied.awake:
                self._serve(theme)

    def on_leader(self, leader: str | None) -> None:
        """What is asked is asked of the new leader, by the node."""

    def on_installed(self) -> None:
        self._look_at(list(self._lines))
