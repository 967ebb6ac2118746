"""A cluster for tests in which nothing happens by itself: real state, and the test's own time.

cluster = FakeCluster()
node = cluster.node("a")      # a `Gateway` with a queue of its own
node.submit(...)              # waits, ...
node.commit()                 # ... until it is committed; all nodes hear of it
node.expire()                 # or until its callers lose their patience: it is done all the same
cluster.loop.advance(1.5)     # timers, and the cluster's clock with them
"""

import heapq
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from api.budget import ErrorBudget
from api.gateway import Gateway
from cluster.failures import TimedOut
from cluster.queues import Callback
from state import Failure, Operation, Result, StateMachine, encode, encode_batch
from state.operations import Tick


class _Handle:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeLoop:
    """As much of an event loop as is needed to call later."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _Handle, Callable[..., object], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self._now_s

    def call_later(
        self, delay_s: float, callback: Callable[..., object], *arguments: Any
    ) -> _Handle:
        handle = _Handle()
        when_s = self._now_s + delay_s
        heapq.heappush(self._timers, (when_s, next(self._order), handle, callback, arguments))
        return handle

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> _Handle:
        return self.call_later(0, callback, *arguments)

    def advance(self, seconds: float) -> None:
        until_s = self._now_s + seconds
        while self._timers and self._timers[0][0] <= until_s:
            when_s, _, handle, callback, arguments = heapq.heappop(self._timers)
            self._now_s = max(self._now_s, when_s)
            if not handle.is_cancelled:
                callback(*arguments)
        self._now_s = until_s

    @property
    def count(self) -> int:
        """Timers that will do something."""
        return sum(not handle.is_cancelled for _, _, handle, _, _ in self._timers)

    @property
    def next_s(self) -> float | None:
        """When the first of them does."""
        times_s = (when_s for when_s, _, handle, _, _ in self._timers if not handle.is_cancelled)
        return min(times_s, default=None)


class Submitted(NamedTuple):
    encoded: bytes
    callback: Callback
    is_ending: bool


class FakeGateway(Gateway):
    """One node. What is submitted waits until the test has it committed."""

    def __init__(self, cluster: "FakeCluster", name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.queue: list[Submitted] = []  # not sent
        self.sent: list[bytes] = []  # whose callers have been told that nobody knows
        self.refusal: Failure | None = None  # of all that is submitted
        self.watchers = []
        self.submitted = 0
        self.submit = self._submit

    @property
    def _machine(self) -> StateMachine:
        return self.cluster.machine

    @property
    def timeout_ms(self) -> int:
        return 5_000

    def _submit(
        self,
        encoded: bytes,
        callback: Callback,
        *,
        timeout_ms: int | None = None,  # noqa: ARG002 - time is the test's
        weight: int = 1,  # noqa: ARG002 - all has room
        is_ending: bool = False,
        late: Callback | None = None,  # noqa: ARG002 - nobody here says so
    ) -> None:
        self.submitted += 1
        if self.refusal is not None:
            callback(self.refusal)
        else:
            self.queue.append(Submitted(encoded, callback, is_ending))

    def read(self, callback: Callback, *, timeout_ms: int | None = None) -> None:  # noqa: ARG002
        callback(0)

    def consumer(self, name: bytes) -> bytes:
        return self.name.encode() + b"/1/" + name

    def commit(self, *before: Operation) -> None:
        """Have what waits applied as one batch, after operations of nobody."""
        queue, self.queue = self.queue, []
        sent, self.sent = self.sent, []
        own = [encode(one) for one in before]
        encoded = [*own, *sent, *(one.encoded for one in queue)]
        results = self.cluster.apply(
            encoded, [None] * (len(own) + len(sent)) + [one.callback for one in queue]
        )
        assert len(results) == len(encoded)

    def commit_all(self) -> None:
        """Have done what waits, and what follows from it at once."""
        while self.queue or self.sent:
            self.commit()
            self.cluster.loop.advance(0)

    def expire(self, *, was_sent: bool = True) -> None:
        """Tell all who wait that their time is over. What was sent will be applied."""
        queue, self.queue = self.queue, []
        if was_sent:
            self.sent += [one.encoded for one in queue]
        for one in queue:
            one.callback(TimedOut(was_sent, 10))


class FakeCluster:
    """One state for all nodes: each has applied what any of them has committed."""

    def __init__(self) -> None:
        self.machine = StateMachine()
        self.loop: Any = FakeLoop()
        self._sequence = itertools.count()
        self._nodes: list[FakeGateway] = []

    def node(self, name: str) -> FakeGateway:
        found = FakeGateway(self, name)
        self._nodes.append(found)
        return found

    def do(self, *operations: Operation) -> list[Any]:
        """Have operations done that no node has asked for."""
        return self.apply([encode(one) for one in operations], [None] * len(operations))

    def apply(self, encoded: list[bytes], callbacks: list[Callback | None]) -> list[Any]:
        now_ms = 1_000_000 + int(self.loop.time() * 1000)
        number = next(self._sequence)
        batch = encode_batch("all", 1, number, 1, [encode(Tick(now_ms)), *encoded])
        applied = self.machine.apply(number + 1, batch)
        results: list[Result] = list(applied.results)[1:]
        for result, callback in zip(results, callbacks, strict=True):
            if callback is not None:
                callback(result)
        for node in self._nodes:
            node.on_applied(applied)
        return results


def patient_budget() -> ErrorBudget:
    """One that is never spent."""
    return ErrorBudget(
        failures=1_000_000,
        window_s=1e9,
        time=lambda: 0.0,
        is_node_ready=lambda: True,
        on_spent=lambda: None,
    )


class Answers(list[Any]):
    """Keeps what it is called with."""

    def __call__(self, answer: Any) -> None:
        self.append(answer)
