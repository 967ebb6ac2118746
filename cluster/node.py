"""A node: a replica on a real loop, real disks and a real network. What users of `cluster` hold.

    async with Node(NodeSettings(Path("data"))) as node:
        created = await node.submit(New(theme=7, data=b"ship it"))

`submit` answers when the operation is committed, on a majority of disks, and applied here; so what
is read from `machine` right after it has it. `read` is for what others did: it answers when all
that was acknowledged before, by any node, is applied here.
"""

import asyncio
import contextlib
import gc
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

from cluster.consensus.log import Log, Recovered
from cluster.consensus.messages import MalformedMessageError
from cluster.copies import CopyInUseError, StateCopy, copied
from cluster.failures import ClusterError, OperationError, Stopping
from cluster.meters import HistogramValues, NodeMeters, PeerMeters, Survey, survey
from cluster.network.errors import MalformedPayloadError
from cluster.network.settings import Identity as NetworkIdentity
from cluster.network.transport import Transport
from cluster.queues import Callback
from cluster.recovery import align, check_presence
from cluster.replica import Replica
from cluster.settings import NodeSettings
from cluster.storage.checkpoint import CheckpointThread
from cluster.storage.disk import OsDirectory, make_directory, sync_directory
from cluster.storage.journal import FSYNC_BUCKETS_S, Journal, JournalFiles
from cluster.storage.records import Identity, Incarnation, Record
from cluster.storage.state_file import StateFile
from state import Applied, Failure, Operation, Result, StateMachine, encode
from state.operations import Heartbeat, Idempotent, Park, Release, Remove, Store, Touch, Txn

_log = logging.getLogger(__name__)

# A young collection takes up to 5 ms, and comes rarely: what a busy node keeps grows slowly (see
# docs/design.md for what was measured).
_COLLECTOR_THRESHOLDS = (20_000, 20, 1_000)

_ENDING = (Store, Remove, Touch, Park, Release, Heartbeat)

_CONNECTIONS = "its connections"
_ALONE_S = 1.0  # without a majority, before a node that stops waits for nobody any more


class Listener(Protocol):
    """Who wants to hear of more than its own operations. None of these may raise."""

    def on_applied(self, applied: Applied) -> None:
        """A batch was applied, anybody's: its events, and the themes that have work."""

    def on_leader(self, leader: str | None) -> None:
        """Another node leads, or nobody that is known."""

    def on_installed(self) -> None:
        """The state machine was replaced: what was read from the old one is old."""


@dataclass(frozen=True, slots=True)
class Status:
    """Where a node is."""

    node_id: str
    incarnation: int
    leader: str | None
    term: int
    is_leader: bool
    is_ready: bool
    committed_index: int
    applied_index: int
    checkpoint_index: int
    sessions: int
    waiting_operations: int
    peers: dict[str, bool]  # whether each is connected
    # Why no spare segment could be made for the journal; one that has none left may end the node.
    spare_segment_error: str | None


class Node:
    """One member of a cluster. Made and used on one event loop; it is started once."""

    def __init__(self, settings: NodeSettings, listener: Listener | None = None) -> None:
        self.settings = settings
        self._listener = listener
        self._replica: Replica | None = None
        self._journal: Journal | None = None
        self._checkpoint: CheckpointThread | None = None
        self._transport: Transport | None = None
        self._directory: OsDirectory | None = None
        self._loop: asyncio.AbstractEventLoop
        self._submit: Callable[..., None] | None = None  # the queue's: one call less for each
        self._timeout_s = settings.timeout_ms / 1000
        self._failed: asyncio.Future[Exception] | None = None
        self._start_task: asyncio.Task[None] | None = None
        self._stop_task: asyncio.Task[None] | None = None
        self._is_copying = False

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Recover what the disk holds, and begin to take part.

        Raises `StorageError` or `MisalignedError` if the disk does not hold a whole node,
        `NetworkError` if it cannot listen. Nothing is left open then.
        """
        if self._failed is not None or self._stop_task is not None:
            raise RuntimeError("a node is started once")
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        self._start_task = asyncio.ensure_future(self._start())
        try:
            await asyncio.shield(self._start_task)
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        settings, loop = self.settings, self._loop
        found = await loop.run_in_executor(None, self._recover)
        self._journal = journal = Journal(
            found.files, end_gentle_work=found.directory.end_gentle_work
        )
        self._checkpoint = checkpoint = CheckpointThread(found.state_file, loop)
        if settings.tunes_collector:
            gc.set_threshold(*_COLLECTOR_THRESHOLDS)
            _freeze()
        others = settings.others
        network: Transport | _NoNetwork = _NoNetwork()
        if others:
            self._transport = network = Transport(
                NetworkIdentity(settings.cluster_id, settings.node_id, found.incarnation),
                settings.bind,
                others,
                settings.security,
                self,
                settings.transport,
            )
        self._replica = replica = Replica(
            settings.node_id,
            list(others),
            found.incarnation,
            Log(found.log),
            found.machine,
            host=loop,
            random=random.Random(),  # noqa: S311 - election timeouts are no secrets
            wall_ms=_wall_ms,
            network=network,
            write=journal.write,
            store=checkpoint,
            listener=self,
            settings=settings.replica,
        )
        replica.checkpoints.on_written = self._checkpoint_written
        if self._transport is not None:
            await self._transport.start()
        self._submit = replica.queue.submit
        replica.start()

    def _recover(self) -> "_Found":
        """Read the disk. In a thread: a large state takes its time."""
        settings = self.settings
        journal_path = os.fspath(settings.data_directory / "journal")
        make_directory(journal_path)
        # Its lock is the whole node's: whoever holds it may open the checkpoint.
        self._directory = directory = OsDirectory(journal_path)
        state_path = os.fspath(settings.data_directory / "state.db")
        with contextlib.ExitStack() as opened:
            found = StateFile.open(state_path, settings.cluster_id)
            state_file = found or StateFile.create(state_path, settings.cluster_id)
            opened.callback(state_file.close)
            check_presence(
                has_journal=JournalFiles.exists(directory), has_checkpoint=found is not None
            )
            machine, checkpoint = StateMachine(), None
            if found is not None:
                machine = found.load_machine()
                checkpoint = (found.applied_index, found.applied_term)
            identity = Identity(settings.cluster_id, settings.node_id)
            files, kept = JournalFiles.open(directory, identity, settings.journal)
            opened.callback(files.close)
            log, records = align(
                Recovered(
                    kept.base_index,
                    kept.base_term,
                    kept.entries,
                    kept.term,
                    kept.voted_for,
                    kept.commit_index,
                ),
                checkpoint,
            )
            # By the wall clock too: a node that lost its disk must not come back as its own past.
            incarnation = max(kept.incarnation + 1, _wall_ms())
            first: list[Record] = [*records, Incarnation(incarnation)]
            files.append(first)
            files.sync()
            # What a process did that was killed on its way may have its names in memory only.
            sync_directory(os.fspath(settings.data_directory))
            opened.pop_all()
        return _Found(log, machine, incarnation, directory, files, state_file)

    async def stop(self) -> None:
        """Take nothing in any more, hand over, answer who waits, write what is left, and leave.

        Bounded by twice `stop_timeout_ms`, once the node has started: what is not answered after
        it is told so, and a disk that hangs is not waited for. Its files stay locked then, until
        this process ends.
        """
        if self._stop_task is None:
            self._stop_task = asyncio.ensure_future(self._stop())
        await asyncio.shield(self._stop_task)

    async def _stop(self) -> None:
        if self._start_task is not None:
            # What recovers the disk in a thread must not be left behind.
            await asyncio.wait([self._start_task])
        try:
            await self._drain()
        finally:
            await self._close()

    async def _drain(self) -> None:
        replica = self._replica
        if replica is not None and not replica.is_stopped:
            deadline_s = self._loop.time() + self.settings.stop_timeout_ms / 1000
            replica.queue.stop("it is being stopped")
            half_s = (deadline_s + self._loop.time()) / 2
            is_alone = await self._answer_all(replica, half_s)
            if self.settings.others and replica.member.is_leader:
                done: asyncio.Future[bool] = self._loop.create_future()
                remaining_s = max(deadline_s - self._loop.time(), 0.0) / 2
                replica.transfer(remaining_s, partial(_set_once, done))
                await done
            if not is_alone:
                await self._answer_all(replica, deadline_s)
            if not replica.is_stopped:
                await self._last_checkpoint(replica, deadline_s)

    async def _answer_all(self, replica: Replica, deadline_s: float) -> bool:
        """Wait until nobody waits any more. Answers whether this node is alone by then.

        Not for long while too few members are there to commit anything: when a whole cluster is
        stopped, whoever is the last has nobody to wait for.
        """
        alone_s = self._loop.time()
        while not replica.queue.is_empty and self._loop.time() < deadline_s:
            if replica.member.replication.reaches_majority:
                alone_s = self._loop.time()
            elif self._loop.time() >= alone_s + _ALONE_S:
                return True
            await asyncio.sleep(0.01)
        return False

    async def _last_checkpoint(self, replica: Replica, deadline_s: float) -> None:
        """Leave a short journal behind, so that the next start is quick."""
        checkpoints = replica.checkpoints
        await self._wait_until(lambda: not checkpoints.is_writing, deadline_s)
        checkpoints.begin()
        await self._wait_until(lambda: not checkpoints.is_writing, deadline_s)

    async def _wait_until(self, holds: Callable[[], bool], deadline_s: float) -> None:
        while not holds() and self._loop.time() < deadline_s:  # noqa: ASYNC110 - rare, and short
            await asyncio.sleep(0.01)

    async def _close(self) -> None:
        """Give back what is open. What was promised is on the disk already."""
        if self._replica is not None:
            self._replica.stop()
        closing: dict[str, Awaitable[object]] = {}
        if self._transport is not None:
            closing[_CONNECTIONS] = self._transport.stop()
        if self._journal is not None:
            closing["its journal"] = self._journal.close()
        if self._checkpoint is not None:
            closed: asyncio.Future[Any] = self._loop.create_future()
            self._checkpoint.close(partial(_set_once, closed))
            closing["its checkpoint"] = closed
        late = await self._close_all(closing)
        if self._directory is not None and late <= {_CONNECTIONS}:
            # Else a disk that hangs may still write: nobody else may open it before this process
            # has ended.
            self._directory.close()
            self._directory = None

    async def _close_all(self, closing: Mapping[str, Awaitable[object]]) -> set[str]:
        """Wait for all to be closed, and say which were not in time.

        Side by side: none has less time because another takes long.
        """
        tasks = {what: asyncio.ensure_future(one) for what, one in closing.items()}
        if tasks:
            await asyncio.wait(tasks.values(), timeout=self.settings.stop_timeout_ms / 1000)
        node_id, late = self.settings.node_id, set()
        for what, task in tasks.items():
            if not task.done():
                late.add(what)
                _log.error("%s does not close %s in time", node_id, what)
            elif not task.cancelled() and (error := task.exception()) is not None:
                _log.warning("%s has closed %s after a failure: %s", node_id, what, error)
        return late

    async def failure(self) -> Exception:
        """Wait until this node cannot go on, and answer why. It has stopped acknowledging."""
        if self._failed is None:
            raise RuntimeError("the node was not started")
        return await asyncio.shield(self._failed)

    # Operations

    async def submit(self, operation: Operation, *, timeout_ms: int | None = None) -> Result:
        """Have an operation done, and answer its result. Raises `OperationError`.

        Cancelled, it may still be done: nobody waits for it any more.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        self.submit_encoded(
            encode(operation),
            partial(_set_once, future),
            timeout_ms=timeout_ms,
            weight=_weight(operation),
            is_ending=_is_ending(operation),
        )
        result = await future
        if isinstance(result, Failure):
            raise OperationError(result)
        return result

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
        """Have an encoded operation done; `callback` gets the result or the failure, once.

        `weight` is how many operations are in it. `is_ending` says that it ends an activity or is
        a sign of life: such are admitted when others are refused as `overloaded`. `late` is told
        what became of it after all, if its time has ended when it may have been done.
        """
        submit = self._submit
        if submit is None:
            callback(Stopping(was_sent=False, reason="it was not started"))
            return
        timeout_s = self._timeout_s if timeout_ms is None else timeout_ms / 1000
        submit(encoded, callback, timeout_s, weight=weight, is_ending=is_ending, late=late)

    async def read(self, *, timeout_ms: int | None = None) -> None:
        """Wait until all that was acknowledged before, by any node, is applied here.

        What is then read from `machine` is linearizable. Raises `OperationError`.
        """
        future: asyncio.Future[Result] = self._loop.create_future()
        timeout_s = self._timeout_s if timeout_ms is None else timeout_ms / 1000
        self.replica.queue.read(partial(_set_once, future), timeout_s)
        result = await future
        if isinstance(result, Failure):
            raise OperationError(result)

    async def transfer(self, to: str = "", *, timeout_ms: int | None = None) -> bool:
        """Hand leadership over, to a member or to the best placed. Answers whether it went.

        Any node may be asked. Raises `ClusterError` if there is no such member.
        """
        if to and to not in {self.settings.node_id, *self.settings.others}:
            raise ClusterError(f"{to!r} is no member of this cluster")
        if to and to == self.leader:
            return True
        future: asyncio.Future[bool] = self._loop.create_future()
        timeout_s = (timeout_ms or self.settings.timeout_ms) / 1000
        self.replica.transfer(timeout_s, partial(_set_once, future), to)
        return await future

    @contextlib.asynccontextmanager
    async def copy_state(self, *, timeout_ms: int = 60_000) -> AsyncIterator[StateCopy]:
        """Have a copy of `state.db` with all that any node had acknowledged, while it is entered.

        Raises `CopyInUseError` if there is one, `CopyLateError` if `timeout_ms` is not enough to
        write what has changed, `OperationError` and `StorageError`.
        """
        replica, checkpoint = self.replica, self._checkpoint
        if checkpoint is None or self._is_copying:
            raise CopyInUseError("another copy of the state is being made or read")
        self._is_copying = True
        try:
            await self.read()
            async with copied(
                replica,
                checkpoint,
                timeout_s=timeout_ms / 1000,
                piece_bytes=self.settings.replica.checkpoint.chunk_bytes,
            ) as copy:
                yield copy
        finally:
            self._is_copying = False

    def consumer(self, name: bytes) -> bytes:
        """The name by which the cluster knows a consumer that is connected to this node."""
        return self.replica.consumer(name)

    # What is known

    @property
    def replica(self) -> Replica:
        """What moves this node. Raises `ClusterError` before the start."""
        if self._replica is None:
            raise ClusterError("the node is not started")
        return self._replica

    @property
    def journal(self) -> Journal:
        """Its journal, for its counters. Raises `ClusterError` before the start."""
        if self._journal is None:
            raise ClusterError("the node is not started")
        return self._journal

    @property
    def machine(self) -> StateMachine:
        """The state as it is here, to be read and not changed; `read` makes it current."""
        return self.replica.machine

    @property
    def is_leader(self) -> bool:
        return self.replica.is_leader

    @property
    def leader(self) -> str | None:
        """Who leads, as far as this node knows."""
        return self.replica.member.leader

    def status(self) -> Status:
        """Where this node is."""
        replica = self.replica
        member = replica.member
        progress = member.replication.progress
        upkeep_error = self.journal.upkeep_error
        return Status(
            node_id=self.settings.node_id,
            incarnation=replica.incarnation,
            leader=member.leader,
            term=member.term,
            is_leader=replica.is_leader,
            is_ready=replica.is_ready and member.leader is not None,
            committed_index=member.committed_index,
            applied_index=replica.applied_index,
            checkpoint_index=replica.checkpoints.index,
            sessions=replica.machine.session_count,
            waiting_operations=replica.queue.depth,
            peers={peer: one.is_connected for peer, one in progress.items()},
            spare_segment_error=None if upkeep_error is None else str(upkeep_error),
        )

    def meters(self) -> NodeMeters:
        """What this node has counted, and how things stand. Costs little; changes nothing."""
        replica, journal = self.replica, self.journal
        member, queue, machine = replica.member, replica.queue, replica.machine
        written = journal.counters
        return NodeMeters(
            is_ready=replica.is_ready and member.leader is not None,
            is_leader=replica.is_leader,
            has_leader=member.leader is not None,
            term=member.term,
            leader_changes=replica.leader_changes,
            elections=member.elections.elections,
            stalls=replica.stalls,
            committed_index=member.committed_index,
            applied_index=replica.applied_index,
            heard_index=max(member.heard_index, member.committed_index),
            log_bytes=member.log.size_bytes,
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
            apply_s=replica.apply_s.values(),
            batch_operations=queue.batch_operations.values(),
            batch_bytes=queue.batch_bytes.values(),
            journal_bytes=journal.size_bytes,
            journal_segments=journal.segments,
            journal_written_bytes=written.bytes,
            journal_writes=written.writes,
            journal_frames=written.frames,
            journal_waiting=journal.waiting,
            journal_stalled_s=journal.stalled_s,
            has_spare_segment_error=journal.upkeep_error is not None,
            fsync_s=HistogramValues(FSYNC_BUCKETS_S, tuple(written.fsync_buckets), written.fsync_s),
            checkpoint_index=replica.checkpoints.index,
            checkpoint_age_s=replica.checkpoint_age_s,
            checkpoint_s=replica.checkpoint_s.values(),
            snapshots_sent=replica.snapshots.sent,
            snapshots_installed=replica.snapshots.installs,
            sessions=machine.session_count,
            state_bytes=machine.size_bytes,
            state_limit_bytes=machine.limits.state_bytes,
            reaped={"stale": replica.reaper.reaped, "disconnected": replica.reaper.released},
            transport={} if self._transport is None else self._transport.counters.values(),
            peers=self._peer_meters(),
        )

    def _peer_meters(self) -> dict[str, PeerMeters]:
        replica, transport = self.replica, self._transport
        return {
            peer: PeerMeters(
                progress.is_connected,
                0 if transport is None else transport.buffered_bytes(peer),
                progress.match_index if replica.is_leader else None,
            )
            for peer, progress in replica.member.replication.progress.items()
        }

    async def survey(self, *, busiest: int) -> Survey:
        """Look at all themes, and at that many one by one."""
        machine, replica = self.machine, self.replica
        # The replicated time stands still while nothing is to happen, and what is due goes on
        # being due.
        now_ms = replica.clock.now_ms if replica.is_leader else _wall_ms()
        return await survey(machine, max(now_ms, machine.now_ms), busiest=busiest)

    async def wait_until_ready(self, timeout_ms: int | None = None) -> None:
        """Wait until there is a leader and this node knows what it has committed.

        Raises TimeoutError.
        """
        deadline_s = self._loop.time() + (timeout_ms or self.settings.timeout_ms) / 1000
        while True:
            remaining_s = deadline_s - self._loop.time()
            if remaining_s <= 0:
                raise TimeoutError(f"{self.settings.node_id} is not ready: {self.status()}")
            try:
                await self.read(timeout_ms=max(int(remaining_s * 1000), 1))
            except OperationError as error:
                if not error.failure.retryable:
                    raise
                await asyncio.sleep(0.01)
            else:
                return

    # What the transport tells

    def on_connected(self, peer: str, incarnation: int) -> None:
        self.replica.connected(peer, incarnation)

    def on_disconnected(self, peer: str) -> None:
        self.replica.disconnected(peer)

    def on_payload(self, peer: str, payload: memoryview) -> None:
        try:
            self.replica.receive(peer, payload)
        except MalformedMessageError as error:
            raise MalformedPayloadError(str(error)) from error

    # What the replica tells

    def on_applied(self, applied: Applied) -> None:
        if self._listener is not None:
            self._listener.on_applied(applied)

    def on_leader(self, leader: str | None) -> None:
        if self._listener is not None:
            self._listener.on_leader(leader)

    def on_installed(self) -> None:
        if self.settings.tunes_collector:
            _freeze()
        if self._listener is not None:
            self._listener.on_installed()

    def _checkpoint_written(self) -> None:
        self.replica.checkpoint_written()
        if self.settings.tunes_collector:
            _freeze()

    def on_failure(self, error: Exception) -> None:
        _log.critical("%s cannot go on: %s", self.settings.node_id, error, exc_info=error)
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)


@dataclass(frozen=True, slots=True)
class _Found:
    """What the disk held."""

    log: Recovered
    machine: StateMachine
    incarnation: int
    directory: OsDirectory
    files: JournalFiles
    state_file: StateFile


class _NoNetwork:
    """That of a cluster of one."""

    def send(self, _peer: str, _payload: bytes) -> bool:
        return False

    def is_connected(self, _peer: str) -> bool:
        return False


def _freeze() -> None:
    """Let the collector look no more at what there is now.

    What is garbage in a cycle by then would stay for ever, so what is young is collected before:
    a moment as a rule, 30 ms after seconds in which the state did nothing but grow.
    """
    gc.collect(1)
    gc.freeze()


def _set_once(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _weight(operation: Operation) -> int:
    """How many operations are in one."""
    if isinstance(operation, Idempotent):
        return _weight(operation.operation)
    if isinstance(operation, Release):
        return operation.count
    return len(operation.operations) if isinstance(operation, Txn) else 1


def _is_ending(operation: Operation) -> bool:
    if isinstance(operation, Idempotent):
        return _is_ending(operation.operation)
    return isinstance(operation, _ENDING)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
