"""The load that a node of the cluster benchmark makes itself.

Operators live through one session after another: New, Append, Append, Remove, 256 bytes each. In a
*closed* load each begins its next operation when it has the result of the last. In an *open* one
operations are due at a steady rate, whatever became of those before; a latency counts from when the
operation was due, so that waiting for a free operator counts.
"""

import asyncio
import math
import time
from array import array
from collections import Counter, deque

from cluster import Node
from state import Created, Failure, Result, encode
from state.operations import Append, New, Remove

DATA = b"d" * 256
THEME = 1
TIMEOUT_MS = 60_000
PACE_S = 0.001  # between looks at what is due; on average half of it is part of a latency


class Operator:
    """Lives through one session after another."""

    __slots__ = ("_load", "_session_id", "_since_s", "_step")

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._step = 0
        self._session_id = 0
        self._since_s = 0.0

    @property
    def is_between_sessions(self) -> bool:
        return self._step == 0

    def go(self, since_s: float) -> None:
        """Do the next operation, which is due `since_s`."""
        step = self._step
        if step == 0:
            encoded = encode(New(THEME, None, DATA))
        elif step < 3:
            encoded = encode(Append(self._session_id, 1, DATA))
        else:
            encoded = encode(Remove(self._session_id, 1))
        self._since_s = since_s
        self._load.node.submit_encoded(
            encoded, self._done, timeout_ms=TIMEOUT_MS, is_ending=step == 3
        )

    def _done(self, result: Result) -> None:
        load = self._load
        now_s = time.perf_counter()
        if isinstance(result, Failure):
            load.failures[result.code] += 1
            self._step = 0
            # Not at once: a refusal may have come before `submit_encoded` was left.
            asyncio.get_running_loop().call_later(0.01, load.free, self)
            return
        if self._since_s <= load.until_s:
            load.latencies_s.append(now_s - self._since_s)
        if self._step == 0 and isinstance(result, Created):
            self._session_id = result.session_id
        self._step = (self._step + 1) % 4
        load.next(self, now_s)


class Load:
    """Some operators, from `start` to `halt`."""

    def __init__(self, node: Node, operators: int, rate: float) -> None:
        """With a rate, operations a second, the load is open."""
        self.node = node
        self.latencies_s = array("d")
        self.failures: Counter[str] = Counter()
        self.until_s = math.inf  # what is due later does not count
        self._operators = [Operator(self) for _ in range(operators)]
        self._rate = rate
        self._is_halting = False
        self._ended = 0
        self._begin_s = 0.0
        self._sent = 0
        self._idle: list[Operator] = []
        self._due_s: deque[float] = deque()  # with a rate: when those were due that wait

    def start(self) -> None:
        self._begin_s = time.perf_counter()
        if self._rate:
            self._idle = list(self._operators)
            self._pace()
        else:
            for operator in self._operators:
                operator.go(self._begin_s)

    def free(self, operator: Operator) -> None:
        """Give an operator the next thing to do after a failure."""
        self.next(operator, time.perf_counter())

    def next(self, operator: Operator, now_s: float) -> None:
        """Give an operator the next thing to do."""
        if self._is_halting and not self._due_s:
            # Sessions that are left behind would be the reaper's work, during another load.
            if operator.is_between_sessions:
                self._ended += 1
            else:
                operator.go(now_s)
        elif not self._rate:
            operator.go(now_s)
        elif self._due_s:
            operator.go(self._due_s.popleft())
        else:
            self._idle.append(operator)

    def _pace(self) -> None:
        if self._is_halting:
            return
        due = int((time.perf_counter() - self._begin_s) * self._rate)
        while self._sent < due:
            self._due_s.append(self._begin_s + self._sent / self._rate)
            self._sent += 1
        while self._due_s and self._idle:
            self._idle.pop().go(self._due_s.popleft())
        asyncio.get_running_loop().call_later(PACE_S, self._pace)

    def halt(self) -> tuple[int, float]:
        """Begin nothing more; answer how many operations are done, in how many seconds."""
        self.until_s = time.perf_counter()
        self._is_halting = True
        return len(self.latencies_s), self.until_s - self._begin_s

    async def ended(self) -> None:
        """Wait for what is on its way, whose latencies count, and for the end of all sessions."""
        now_s = time.perf_counter()
        idle, self._idle = self._idle, []
        for operator in idle:
            self.next(operator, now_s)
        while self._ended < len(self._operators):  # noqa: ASYNC110 - they end within moments
            await asyncio.sleep(0.01)
