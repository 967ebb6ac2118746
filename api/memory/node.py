"""A node without Raft and without a disk: the double queue right before the state machine.

It is its own leader. What is sent is committed at once, and applied in the next turn of the loop;
its callers are answered, and then everybody is told, in the order of a real node. The reaper is the
leader's own one, but goes by a clock that can be moved.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import NoReturn

from api.memory.time import MovableClock
from api.problems import refusal
from cluster import Status
from cluster.copies import StateCopy
from cluster.failures import ClusterError, OperationError
from cluster.meters import (
    DURATION_BUCKETS_S,
    LATENCY_BUCKETS_S,
    Histogram,
    NodeMeters,
    Survey,
    survey,
)
from cluster.node import Listener
from cluster.queues import Batch, Callback, DoubleQueue, QueueSettings
from cluster.reaper import Reaper
from state import Failure, Result, StateMachine, encode
from state.operations import Heartbeat, Tick

_log = logging.getLogger(__name__)

NODE_ID = "memory"
INCARNATION = 1
TERM = 1
TIMEOUT_MS = 10_000

_PULSE_S = 0.02  # how often leases and due times are looked at while time goes by itself
_REAPER_PAGE = 512
_STOPS_MAX = 500  # in one advance: it takes a moment, however far it goes
_LOOKS_MAX = 10_000  # at one stop: what falls due at one moment falls due page by page
_TURNS_MAX = 1_000
_QUIET_TURNS = 8  # of the loop: answers, their waiters, what those do next, and their frames

_HEARTBEAT = encode(Heartbeat(b""))[:2]  # the array, and the code


class MemoryNode:
    """As much of a node as the front end uses. Made and used on one loop."""

    def __init__(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        self.clock = MovableClock(loop, time.time_ns() // 1_000_000)
        self.machine = StateMachine()
        self.queue = DoubleQueue(NODE_ID, INCARNATION, loop, self, QueueSettings())
        self.queue.term = TERM
        self.reaper = Reaper(
            self.clock, self._submit_ending, page=_REAPER_PAGE, grace_ms=0, grace_max_ms=0
        )
        self._listener = listener
        self._loop = loop
        self._failed: asyncio.Future[Exception] = loop.create_future()
        self._proposed: list[Batch] = []
        self._timer: asyncio.TimerHandle | None = None
        self._advancing = asyncio.Lock()
        self._is_deaf = False  # whether signs of life are kept back
        self._kept_back: list[tuple[bytes, Callback]] = []
        self._apply_s = Histogram(LATENCY_BUCKETS_S)

    # Life

    async def start(self) -> None:
        """Begin to lead."""
        self.reaper.give_grace(0)
        self._timer = self._loop.call_later(_PULSE_S, self._pulse)
        await self._done([encode(Tick(self.clock.tell()))])

    async def stop(self) -> None:
        """Take nothing in any more. What is in is applied."""
        self.queue.stop("it is being stopped")
        await self._quiet()
        if self._timer is not None:
            self._timer.cancel()
        self.queue.fail("it was stopped")

    async def failure(self) -> Exception:
        """Wait until it cannot go on, by a defect, and answer why."""
        return await asyncio.shield(self._failed)

    async def transfer(self, to: str) -> bool:
        """Nobody else could lead. Raises `ClusterError` if there is no such member."""
        if to not in {"", NODE_ID}:
            raise ClusterError(f"{to!r} is no member of this cluster")
        return to == NODE_ID

    @contextlib.asynccontextmanager
    async def copy_state(self, *, timeout_ms: int = 0) -> AsyncIterator[StateCopy]:  # noqa: ARG002 - as a node has it
        """There is no file to be copied. Raises `Refusal`."""
        _refuse_copy()
        yield  # type: ignore[unreachable]  # it is a generator by this

    # Operations

    def submit_encoded(
        self,
        encoded: bytes,
        callback: Callback,
        *,
        timeout_ms: int | None = None,
        weight: int = 1,
        is_ending: bool = False,
        late: Callback | None = None,
    ) -> None:
        """Have an encoded operation done: see `Node.submit_encoded`."""
        if self._is_deaf and encoded.startswith(_HEARTBEAT):
            self._kept_back.append((encoded, callback))
            return
        timeout_s = (TIMEOUT_MS if timeout_ms is None else timeout_ms) / 1000
        self.queue.submit(
            encoded, callback, timeout_s, weight=weight, is_ending=is_ending, late=late
        )

    def _submit_ending(self, encoded: bytes, callback: Callback) -> None:
        self.queue.submit(encoded, callback, TIMEOUT_MS / 1000, is_ending=True)

    # For the queue: its sender

    def is_open(self) -> bool:
        return True

    def propose(self, batch: Batch, stream: int, position: int) -> bool:  # noqa: ARG002 - there is one stream
        self._proposed.append(batch)
        if len(self._proposed) == 1:
            self._loop.call_soon(self._apply)
        return True

    def hurry(self) -> None:
        pass

    def leading_operations(self) -> list[bytes]:
        return [encode(Tick(self.clock.tell()))] if self.clock.is_late else []

    def _apply(self) -> None:
        """Apply what was proposed, in order; as after a commit, the next batch leaves before."""
        proposed, self._proposed = self._proposed, []
        for batch in proposed:
            self.queue.committed(batch)
        self.queue.pump()
        try:
            for batch in proposed:
                self._apply_one(batch)
        except Exception as error:  # noqa: BLE001 - the state may be half changed: serve no more
            _log.exception("the state cannot go on")
            self.queue.fail(f"it failed: {error}")
            if not self._failed.done():
                self._failed.set_result(error)

    def _apply_one(self, batch: Batch) -> None:
        begin_s = self._loop.time()
        machine, queue = self.machine, self.queue
        applied = machine.apply(machine.applied_index + 1, batch.command)
        queue.limits = machine.limits
        queue.applied(batch, applied)
        self._listener.on_applied(applied)
        self._apply_s.observe(self._loop.time() - begin_s)

    # Time

    def _pulse(self) -> None:
        """Look after what time brings, if nobody does just now."""
        self._timer = self._loop.call_later(_PULSE_S, self._pulse)
        if not self._advancing.locked():
            wake_ms = self.machine.next_wake_ms
            if wake_ms is not None and wake_ms <= self.clock.now_ms:
                self.queue.hurry()
            self.reaper.look(self.machine)

    async def advance(self, ms: int, beating: Callable[[], Iterable[bytes]] | None) -> None:
        """Be so much later, and have all done that follows from it.

        `beating` tells which consumers give signs of life meanwhile. None: nobody does, and what
        comes of the kind is kept back until it is done. On its way the time stops where leases
        end and sessions fall due, so that what follows from that comes at its own time.
        Raises `OperationError` if it has stopped, or time would be out of range.
        """
        async with self._advancing:
            await self._quiet()
            self._is_deaf = beating is None
            try:
                step_min_ms = -(-ms // _STOPS_MAX)
                await self._look(beating or tuple)
                while ms > 0:
                    step_ms = min(ms, max(self._next_stop_ms(), step_min_ms))
                    self.clock.advance(step_ms)
                    ms -= step_ms
                    await self._look(beating or tuple)
            finally:
                self._is_deaf = False
                kept_back, self._kept_back = self._kept_back, []
                for encoded, callback in kept_back:
                    self._submit_ending(encoded, callback)
            await self._quiet()

    def _next_stop_ms(self) -> int:
        """In how many ms there may be something to do."""
        wake_ms = self.machine.next_wake_ms
        return 1 << 62 if wake_ms is None else wake_ms - self.clock.now_ms

    async def _look(self, beating: Callable[[], Iterable[bytes]]) -> None:
        """See the time, and have all done that it brings. Raises `OperationError`."""
        for _ in range(_LOOKS_MAX):
            beats = [encode(Heartbeat(one)) for one in beating()]
            await self._done([encode(Tick(self.clock.tell())), *beats])
            self.reaper.look(self.machine)
            await self._quiet()
            wake_ms = self.machine.next_wake_ms
            if wake_ms is None or wake_ms > self.machine.now_ms:
                return

    async def _done(self, operations: list[bytes]) -> None:
        """Have operations done, and wait for the last. Raises `OperationError` if that fails."""
        done: asyncio.Future[Result] = self._loop.create_future()
        for one in operations[:-1]:
            self._submit_ending(one, _nothing)
        self._submit_ending(operations[-1], lambda result: _set_once(done, result))
        result = await done
        if isinstance(result, Failure):
            raise OperationError(result)

    async def _quiet(self) -> None:
        """Wait until nothing is to be done, and what was done is told.

        Not for ever, if somebody always asks for more.
        """
        quiet = 0
        for _ in range(_TURNS_MAX):
            await asyncio.sleep(0)
            quiet = quiet + 1 if self.queue.is_empty else 0
            if quiet == _QUIET_TURNS:
                return

    # What is known

    @property
    def leader(self) -> str:
        return NODE_ID

    def consumer(self, name: bytes) -> bytes:
        """The name by which a consumer that is connected here is known."""
        return f"{NODE_ID}/{INCARNATION}/".encode() + name

    def status(self) -> Status:
        """Where it is."""
        index = self.machine.applied_index
        return Status(
            node_id=NODE_ID,
            incarnation=INCARNATION,
            leader=NODE_ID,
            term=TERM,
            is_leader=True,
            is_ready=True,
            committed_index=index,
            applied_index=index,
            checkpoint_index=0,
            sessions=self.machine.session_count,
            waiting_operations=self.queue.depth,
            peers={},
            spare_segment_error=None,
        )

    async def survey(self, *, busiest: int) -> Survey:
        """Look at all themes, and at that many one by one."""
        now_ms = max(self.clock.now_ms, self.machine.now_ms)
        return await survey(self.machine, now_ms, busiest=busiest)

    def meters(self) -> NodeMeters:
        """What it has counted. Of what it does not have there is nothing."""
        queue, machine = self.queue, self.machine
        index = machine.applied_index
        never = Histogram(DURATION_BUCKETS_S).values()
        return NodeMeters(
            is_ready=True,
            is_leader=True,
            has_leader=True,
            term=TERM,
            leader_changes=0,
            elections=0,
            stalls=0,
            committed_index=index,
            applied_index=index,
            heard_index=index,
            log_bytes=0,
            intake_operations=queue.depth,
            intake_bytes=queue.depth_bytes,
            intake_oldest_s=queue.oldest_s,
            unanswered_batches=queue.unanswered_count,
            batches=queue.batches,
            operations=queue.operations,
            answered=queue.answered,
            failed=dict(queue.failed),
            reads=queue.reads,
            resends=queue.resends,
            commit_s=queue.commit_s.values(),
            apply_s=self._apply_s.values(),
            batch_operations=queue.batch_operations.values(),
            batch_bytes=queue.batch_bytes.values(),
            journal_bytes=0,
            journal_segments=0,
            journal_written_bytes=0,
            journal_writes=0,
            journal_frames=0,
            journal_waiting=0,
            journal_stalled_s=0.0,
            has_spare_segment_error=False,
            fsync_s=never,
            checkpoint_index=0,
            checkpoint_age_s=0.0,
            checkpoint_s=never,
            snapshots_sent=0,
            snapshots_installed=0,
            sessions=machine.session_count,
            state_bytes=machine.size_bytes,
            state_limit_bytes=machine.limits.state_bytes,
            reaped={"stale": self.reaper.reaped, "disconnected": self.reaper.released},
            transport={},
            peers={},
        )


def _refuse_copy() -> NoReturn:
    raise refusal(501, "not_implemented", "a server in memory has no file that could be copied")


def _set_once(future: "asyncio.Future[Result]", result: Result) -> None:
    if not future.done():
        future.set_result(result)


def _nothing(_result: Result) -> None:
    pass
