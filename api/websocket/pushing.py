"""Sessions that are pushed to a consumer as it gives credit for them."""

import asyncio
from collections.abc import Callable

from api.answers import SessionView
from api.waiting import Waiter, Waiters
from state import Failure

CREDIT_MAX = 16_384
AT_ONCE = 256  # sessions asked for by one operation
_RETRY_S = 0.5  # after one that has failed

# Told of what was handed out, and was not asked for in vain.
Pushed = Callable[[list[SessionView]], None]


class Pusher:
    """Turns credit into sessions. At most one Acquire is on its way."""

    def __init__(
        self,
        waiters: Waiters,
        consumer: bytes,
        loop: asyncio.AbstractEventLoop,
        *,
        pushed: Pushed,
        failed: Callable[[Failure], None],
        has_room: Callable[[], bool],
    ) -> None:
        """`failed` is told of an Acquire that has failed: it may have been done all the same.

        `has_room` says whether the consumer takes what it is told: if not, it gets no more.
        """
        self._waiters = waiters
        self._consumer = consumer
        self._loop = loop
        self._pushed = pushed
        self._failed = failed
        self._has_room = has_room
        self._waiter: Waiter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self.themes: tuple[int, ...] = ()
        self.credit = 0

    def give(self, themes: tuple[int, ...], count: int) -> None:
        """Add to the credit, for these themes from now on; other themes begin anew."""
        if themes != self.themes:
            self.take_back()
            self.themes = themes
        if themes:
            self.credit = min(self.credit + count, CREDIT_MAX)
            self.push()

    def take_back(self) -> None:
        """Push no more, but for what is on its way."""
        self.credit = 0
        self.themes = ()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._waiters.leave(waiter)

    def stop(self) -> None:
        """Push no more, whatever credit there will be."""
        self._is_stopped = True
        self.take_back()

    def push(self) -> None:
        """Ask for sessions, if there is credit and room, and nothing is asked yet."""
        if self._waiter is not None or not self.credit or self._is_stopped or self._timer:
            return
        if not self._has_room():
            self._later()
            return
        asked: list[Waiter] = []

        def found(result: list[SessionView] | Failure) -> None:
            is_current = not asked or self._waiter is asked[0]
            if is_current:
                self._waiter = None
            self._found(result, is_current=is_current)

        count = min(self.credit, AT_ONCE, self._waiters.count_max)
        waiter = self._waiters.ask(self.themes, count, self._consumer, found)
        asked.append(waiter)
        if not waiter.is_over:
            self._waiter = waiter

    def _later(self) -> None:
        self._timer = self._loop.call_later(_RETRY_S, self._again)

    def _again(self) -> None:
        self._timer = None
        self.push()

    def _found(self, result: list[SessionView] | Failure, *, is_current: bool) -> None:
        if not isinstance(result, Failure):
            if is_current:
                self.credit = max(self.credit - len(result), 0)
            self._pushed(result)
        else:
            self._failed(result)
        if not is_current or not self.credit or self._is_stopped:
            return
        if result and not isinstance(result, Failure):
            self.push()
        elif self._timer is None:
            self._later()
