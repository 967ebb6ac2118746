"""Virtual time: one queue of calls for all nodes, in an order that the seed decides."""

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any


class Call:
    """Something that will happen. Cancelled, it stays in the queue and does nothing."""

    __slots__ = ("arguments", "callback", "is_cancelled")

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.callback = callback
        self.arguments = arguments
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class World:
    """The time, and what is still to happen."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_s = 1000.0
        self.wall_offset_s = 1_700_000_000.0
        self.steps = 0
        self._queue: list[tuple[float, int, Call]] = []
        self._number = 0

    def at(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> Call:
        call = Call(callback, arguments)
        self._number += 1
        heapq.heappush(self._queue, (self.now_s + max(delay_s, 0.0), self._number, call))
        return call

    def step(self, until_s: float) -> bool:
        """Let the next thing happen, if it is not after `until_s`."""
        while self._queue:
            when_s, _, call = self._queue[0]
            if when_s > until_s:
                break
            heapq.heappop(self._queue)
            self.now_s = max(self.now_s, when_s)
            if not call.is_cancelled:
                self.steps += 1
                call.callback(*call.arguments)
                return True
        self.now_s = max(self.now_s, until_s)
        return False


class VirtualHost:
    """The surroundings of one life of a node. What was arranged in it dies with it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_alive = True
        self._paused_until_s = 0.0
        self._backlog: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def time(self) -> float:
        return self._world.now_s

    def wall_ms(self, skew_ms: int) -> int:
        return int((self._world.now_s + self._world.wall_offset_s) * 1000) + skew_ms

    def call_soon(self, callback: Callable[..., object], /, *arguments: Any) -> Call:
        return self._world.at(0.0, self._call, callback, arguments)

    def call_later(
        self, delay: float, callback: Callable[..., object], /, *arguments: Any
    ) -> "HostTimer":
        timer = HostTimer()
        self._world.at(delay, self._ring, timer, callback, arguments)
        return timer

    def die(self) -> None:
        self._is_alive = False

    @property
    def is_paused(self) -> bool:
        return self._world.now_s < self._paused_until_s or bool(self._backlog)

    def pause(self, pause_s: float) -> None:
        """Let nothing happen here for a while: the process is stopped, or collects garbage."""
        until_s = self._world.now_s + pause_s
        if until_s > self._paused_until_s:
            self._paused_until_s = until_s
            self._world.at(pause_s, self._wake)

    def run(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Let something from outside happen here: now, or after a pause; not after death."""
        self._call(callback, arguments)

    def _call(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if not self._is_alive:
            return
        if self._backlog or self._world.now_s < self._paused_until_s:
            self._backlog.append((callback, arguments))
        else:
            callback(*arguments)

    def _ring(
        self, timer: "HostTimer", callback: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        if not timer.is_cancelled:
            self._call(self._rung, (timer, callback, arguments))

    def _rung(
        self, timer: "HostTimer", callback: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        if not timer.is_cancelled:
            callback(*arguments)

    def _wake(self) -> None:
        """Do what was missed, one step at a time."""
        if self._is_alive and self._backlog and self._world.now_s >= self._paused_until_s:
            callback, arguments = self._backlog.popleft()
            callback(*arguments)
            if self._backlog:
                self._world.at(0.0, self._wake)


class HostTimer:
    __slots__ = ("is_cancelled",)

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
