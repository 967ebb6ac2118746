"""A clock that can be moved and stopped: what leases and repeats go by, and nothing else does.

It counts whole milliseconds, as the state does, so that what is advanced adds up exactly. A
leader's own clock would do, but for that: it is made of seconds that are floats.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class MovableClock:
    """The cluster's time. It goes on as its loop's does, unless somebody moves it, or stops it.

    It stands in for a host, whose time is asked for in seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, now_ms: int) -> None:
        self._loop = loop
        self._base_ms = now_ms
        self._since_s: float | None = loop.time()  # when it was `base_ms`; None while it stands
        self._told_ms = -1

    @property
    def now_ms(self) -> int:
        """The time that the state should have."""
        if self._since_s is None:
            return self._base_ms
        return self._base_ms + int((self._loop.time() - self._since_s) * 1000)

    @property
    def is_late(self) -> bool:
        """Whether the state has not been told the time that it is."""
        return self.now_ms > self._told_ms

    def tell(self) -> int:
        """The time, which is about to be told to the state."""
        self._told_ms = self.now_ms
        return self._told_ms

    # Moving it

    def advance(self, ms: int) -> None:
        """Be so much later."""
        if ms < 0:
            raise ValueError(f"time goes forwards, and not by {ms} ms")
        self._base_ms += ms

    def stop(self) -> None:
        """Stand still, but for `advance`."""
        self._base_ms, self._since_s = self.now_ms, None

    def go_on(self) -> None:
        """Go on from where it stands."""
        if self._since_s is None:
            self._since_s = self._loop.time()

    # As a host: calls are at their time, however far the clock is moved

    def time(self) -> float:
        return self.now_ms / 1000

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object:  # noqa: ANN401 - as a loop has it
        return self._loop.call_soon(callback, *args)

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        /,
        *args: Any,  # noqa: ANN401 - as a loop has it
    ) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, callback, *args)
