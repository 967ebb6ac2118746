"""One node without its sockets, disks and clocks: the state machine, kept in step with the others.

It ties together the member (consensus), the double queue, the state machine, and what a leader does
besides: the clock, the reaper. Batches come from the queue, go through the member's log, and come
back committed to be applied here, a bounded time in each turn of the loop.

A node is *ready* when it has applied an entry of the current term: the leader then knows what the
state's time is, and a follower knows that its leader is in charge. Batches are sent only then.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Protocol

from cluster.checkpoints import Checkpoints, CheckpointSettings, Store
from cluster.clock import Clock
from cluster.consensus.guards import ALL_GUARDS, Guards
from cluster.consensus.host import Host, Network, Timer, Write
from cluster.consensus.log import NO_OP, Log
from cluster.consensus.member import ConsensusSettings, Member
from cluster.consensus.messages import (
    Chunk,
    ChunkWritten,
    Declined,
    Forward,
    Handover,
    HandoverRefused,
    Installed,
    MalformedMessageError,
    Message,
    Offer,
)
from cluster.meters import DURATION_BUCKETS_S, LATENCY_BUCKETS_S, Histogram
from cluster.queues import Batch, Callback, DoubleQueue, QueueSettings
from cluster.reaper import Reaper
from cluster.snapshots import Snapshots
from state import Applied, StateMachine, encode
from state.codec import decode_header
from state.errors import Refused
from state.limits import LIMIT_RANGES
from state.operations import Tick

_log = logging.getLogger(__name__)

_MIB = 1 << 20
_TRANSFER_POLL_S = 0.02
_TRANSFER_MAX_S = 60.0  # that another node may ask for
_LATE_HALF_LIFE_S = 5.0  # in which half of how late Ticks have been is forgotten


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """Times and sizes of one node's work."""

    consensus: ConsensusSettings = field(default_factory=ConsensusSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    pulse_ms: int = 100  # how often deadlines, leases and due times are looked at
    apply_turn_ms: int = 10  # how long one turn of the loop may apply
    reaper_page: int = 512  # sessions stored by one look of the reaper
    lease_grace_ms: int = 10_000  # for leases after a new leader or a stall, at least
    lease_grace_max_ms: int = 60_000
    stall_ms: int = 1_000  # a pulse that is late by more was a stall
    uncommitted_bytes: int = 64 * _MIB  # of the leader's log; beyond it batches are declined


class Listener(Protocol):
    """Who uses a replica. None of these may raise."""

    def on_applied(self, applied: Applied) -> None:
        """A batch was applied, anybody's: its events, and the themes that have work."""

    def on_leader(self, leader: str | None) -> None:
        """Another node leads, or nobody that is known."""

    def on_installed(self) -> None:
        """The state machine was replaced by a leader's snapshot."""

    def on_failure(self, error: Exception) -> None:
        """This node can go on no more; who waited has been answered."""


class Replica:
    """A node's part of the cluster, moved by its host, its network and its disk."""

    def __init__(
        self,
        node_id: str,
        others: Sequence[str],
        incarnation: int,
        log: Log,
        machine: StateMachine,
        *,
        host: Host,
        random: Random,
        wall_ms: Callable[[], int],
        network: Network,
        write: Write,
        store: Store,
        listener: Listener,
        settings: ReplicaSettings,
        guards: Guards = ALL_GUARDS,
    ) -> None:
        """`machine` holds the state up to some index of `log`, its base or later."""
        self.node_id = node_id
        self.incarnation = incarnation
        self.machine = machine
        self.applied_index = max(machine.applied_index, log.base_index)
        self._applied_term = log.term_at(self.applied_index) or 0  # of the entry there
        self._host = host
        self._network = network
        self._listener = listener
        self._settings = settings
        self._guards = guards
        self.member = Member(
            node_id,
            others,
            log,
            host=host,
            random=random,
            network=network,
            write=write,
            observer=self,
            settings=settings.consensus,
            guards=guards,
        )
        self.queue = DoubleQueue(node_id, incarnation, host, self, settings.queue, guards)
        self.clock = Clock(host, wall_ms, settings.pulse_ms)
        self.reaper = Reaper(
            host,
            self._submit_ending,
            page=settings.reaper_page,
            grace_ms=settings.lease_grace_ms if guards.leases_get_grace else 0,
            grace_max_ms=settings.lease_grace_max_ms if guards.leases_get_grace else 0,
        )
        self.snapshots = Snapshots(self, store, host, settings.checkpoint)
        self.checkpoints = Checkpoints(
            self, store, host, random, settings.checkpoint, self.snapshots.index_for
        )
        self._has_caught_up = False  # with what the leader had committed, once in this life
        self._seen_index = self.member.committed_index  # committed entries that were looked at
        self._seen_index = max(self._seen_index, self.applied_index)
        self._apply_is_due = False
        self._is_admitting = True
        self._is_transferring = False
        self._transfers = 0  # that this node has asked another one for
        self._awaited: set[int] = set()  # those of them that may lead to something
        self._transfer_index, self._transfer_s = 0, 0.0  # where who is to lead is, and since when
        self._leads_since_term = 0  # the term whose clock this node runs; 0: it does not
        self._ready_term = 0  # the last one in which this node was ready
        self._streams: dict[str, tuple[int, int]] = {}  # peer -> stream, position of the next
        self._pulse_timer: Timer | None = None
        self._pulse_s = 0.0
        self._late_ms, self._late_s = 0.0, 0.0  # how late a Tick was applied, and when
        self._open_s = 0.0  # when this node, as the leader, last took in what came
        self._was_released = False
        self._must_release = False  # what the consumers of earlier lives hold
        self._is_installing = False
        self._stopped = False
        self._seen_leader: tuple[int, str | None] = (0, None)
        self._checkpoint_s: float | None = None  # when the one that is being written was begun
        self.stalls = 0
        self.leader_changes = 0  # leaders of terms that this node came to know
        # What one batch kept the loop busy with: to apply it, and to answer all who waited for it.
        self.apply_s = Histogram(LATENCY_BUCKETS_S)
        self.checkpoint_s = Histogram(DURATION_BUCKETS_S)
        self.checkpoint_written_s = host.time()  # or when this node started

    # For its user

    def start(self) -> None:
        """Begin to take part."""
        self._pulse_s = self._host.time()
        self._arm_pulse()
        self.queue.term = self.member.term
        self.member.start()
        self._schedule_apply()

    def stop(self, reason: str = "it was stopped") -> None:
        """Take part no more; who waits is answered. What is on its way may still be applied."""
        if self._stopped:
            return
        self._stopped = True
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        self.member.stop()
        self.checkpoints.stop()
        self.snapshots.stop()
        self.queue.fail(reason)

    @property
    def is_stopped(self) -> bool:
        """Whether it takes part no more."""
        return self._stopped

    @property
    def is_leader(self) -> bool:
        """Whether this node leads and is ready to."""
        leads = self._leads_since_term == self.member.term and self.member.is_leader
        return leads and not self._stopped

    @property
    def is_ready(self) -> bool:
        """Whether this node has applied an entry of the current term, and so may send batches.

        And, in this life, once all that its leader had committed: it knows the limits then.
        """
        is_current = self._applied_term == self.member.term
        return is_current and self._has_caught_up and not self._stopped

    @property
    def lag(self) -> int:
        """Committed entries that are not applied yet."""
        return self.member.committed_index - self.applied_index

    @property
    def checkpoint_age_s(self) -> float:
        """How long ago a checkpoint was written last, or this node started."""
        return self._host.time() - self.checkpoint_written_s

    def checkpoint_written(self) -> None:
        """Take note that a checkpoint is on disk: for `Checkpoints.on_written`."""
        self.checkpoint_written_s = now_s = self._host.time()
        if self._checkpoint_s is not None:
            self.checkpoint_s.observe(now_s - self._checkpoint_s)
            self._checkpoint_s = None

    def consumer(self, name: bytes) -> bytes:
        """The name that the cluster knows a consumer of this node by.

        It tells the life of the node, so that what its consumers held can be stored at once when
        the node comes back without them.
        """
        return f"{self.node_id}/{self.incarnation}/".encode() + name

    def transfer(self, timeout_s: float, then: Callable[[bool], object], to: str = "") -> None:
        """Hand leadership over: to a member, or to the follower that knows most.

        Nothing is admitted while a follower gets the last entries, so that the log comes to rest
        and it can have all of it (Ongaro's thesis, 3.10); one that is far behind catches up before
        that. `then` learns whether leadership went there, or to another than before. A node that
        does not lead asks the one that does.
        """
        if not self.member.is_leader:
            self._ask_for_transfer(timeout_s, then, to)
            return
        near = [
            peer
            for peer, progress in self.member.replication.progress.items()
            if progress.is_connected and not progress.needs_snapshot and to in {"", peer}
        ]
        if not near or self._is_transferring:
            then(False)  # noqa: FBT003 - nobody could take it, or it is being handed over
            return
        self._is_transferring = True
        now_s = self._host.time()
        self._transfer_index, self._transfer_s = 0, now_s
        self._transfer(now_s + timeout_s, self.member.term, then, to)

    def _ask_for_transfer(self, timeout_s: float, then: Callable[[bool], object], to: str) -> None:
        member = self.member
        leader = member.leader
        if leader is None or leader == to:
            then(leader is not None)
            return
        self._transfers = number = self._transfers + 1
        if not member.send(leader, Handover(member.term, number, to, round(timeout_s * 1000))):
            then(False)  # noqa: FBT003 - the answer
            return
        self._awaited.add(number)
        deadline_s = self._host.time() + timeout_s
        self._await_leader(leader, number, deadline_s, then, to)

    def _await_leader(
        self, before: str, number: int, deadline_s: float, then: Callable[[bool], object], to: str
    ) -> None:
        leader = self.member.leader
        is_over = self._stopped or number not in self._awaited or self._host.time() >= deadline_s
        if leader in {None, before} and not is_over:
            self._host.call_later(
                _TRANSFER_POLL_S, self._await_leader, before, number, deadline_s, then, to
            )
            return
        self._awaited.discard(number)
        then(leader not in {None, before} and to in {"", leader})

    def _asked_for_transfer(self, peer: str, asked: Handover) -> None:
        def went(is_done: bool) -> None:  # noqa: FBT001 - an answer
            if not is_done:
                self.member.send(peer, HandoverRefused(self.member.term, asked.number))

        if not self.member.is_leader or asked.term != self.member.term:
            went(False)  # noqa: FBT003 - the answer
            return
        self.transfer(min(asked.timeout_ms / 1000, _TRANSFER_MAX_S), went, asked.to)

    def _transfer(
        self, deadline_s: float, term: int, then: Callable[[bool], object], to: str
    ) -> None:
        member = self.member
        if self._stopped or not member.is_leader or member.term != term:
            self._is_transferring = False
            then(True)  # noqa: FBT003
            return
        now_s = self._host.time()
        # A follower that does not move, because its disk hangs, must not keep all from working.
        patience_s = 2 * self._settings.consensus.election_timeout_max_ms / 1000
        if now_s >= min(deadline_s, self._transfer_s + patience_s):
            self._is_transferring = False
            self._is_admitting = True
            self.queue.restart()
            then(False)  # noqa: FBT003
            return
        known = [
            (progress.match_index, peer)
            for peer, progress in member.replication.progress.items()
            if progress.is_connected and to in {"", peer}
        ]
        if known:
            match_index, peer = max(known)
            if self._is_admitting or match_index > self._transfer_index:
                self._transfer_index, self._transfer_s = match_index, now_s
            if self._is_near(match_index):
                self._is_admitting = False
            member.hand_over(peer)
        self._host.call_later(_TRANSFER_POLL_S, self._transfer, deadline_s, term, then, to)

    def _is_near(self, match_index: int) -> bool:
        """Whether a follower lacks no more of what is committed than may be on its way to it.

        However large the load is, a majority has all of that, so somebody always is.
        """
        log, commit_index = self.member.log, self.member.engine.commit_index
        if match_index >= commit_index:
            return True
        if match_index < log.base_index:
            return False
        lacking_bytes = log.size_bytes_after(match_index) - log.size_bytes_after(commit_index)
        return lacking_bytes <= self._settings.consensus.window_bytes

    # For its network

    def connected(self, peer: str, incarnation: int) -> None:
        """Begin to talk to another member."""
        self._streams.pop(peer, None)
        self.member.connected(peer, incarnation)
        if peer == self.member.leader:
            self.queue.restart()

    def disconnected(self, peer: str) -> None:
        """What was sent to another member may be lost."""
        self._streams.pop(peer, None)
        self.snapshots.disconnected(peer)
        self.member.disconnected(peer)

    def receive(self, peer: str, payload: bytes | memoryview) -> None:
        """Take a message. Raises `MalformedMessageError`, having done nothing."""
        if not self._stopped:
            self.member.receive(peer, payload)

    # For the queue: its sender

    def is_open(self) -> bool:
        member = self.member
        if not self._is_admitting or not self.is_ready or self._stopped:
            return False
        if member.is_leader:
            return self.is_leader
        return member.leader is not None and self._network.is_connected(member.leader)

    def propose(self, batch: Batch, stream: int, position: int) -> bool:
        member = self.member
        if not self.is_open():
            return False
        if member.is_leader:
            return self._append(batch)
        leader = member.leader
        if leader is None:
            return False
        return member.send(leader, Forward(member.term, stream, position, batch.command))

    def _append(self, batch: Batch) -> bool:
        """Propose a batch of this node's own, unless the log has it: a leader cuts nothing off."""
        if batch.appended_term == self.member.term:
            return True
        if not (self._has_room and self.member.propose(batch.command)):
            return False
        batch.appended_term = self.member.term
        return True

    @property
    def _has_room(self) -> bool:
        """Whether the log may grow: by what commits in time, and is written to checkpoints."""
        log, checkpoint = self.member.log, self._settings.checkpoint
        if log.size_bytes >= 2 * max(checkpoint.log_bytes, checkpoint.log_bytes_max):
            return False
        uncommitted_bytes = log.size_bytes_after(self.member.engine.commit_index)
        return uncommitted_bytes < self._settings.uncommitted_bytes

    def hurry(self) -> None:
        if not self._stopped:
            self.member.hurry()

    def leading_operations(self) -> list[bytes]:
        if self.is_leader and self.clock.is_late:
            return [encode(Tick(self.clock.tell()))]
        return []

    # For the member: its observer

    def on_committed(self) -> None:
        log, queue = self.member.log, self.queue
        for index in range(self._seen_index + 1, self.member.committed_index + 1):
            batch = queue.find(log.command_at(index))
            if batch is not None:
                queue.committed(batch)
        self._seen_index = self.member.committed_index
        queue.pump()

    def on_turn_taken(self) -> None:
        self._schedule_apply()

    def on_leader(self) -> None:
        member = self.member
        self.queue.term = member.term
        if not member.is_leader:
            self._leads_since_term = 0
            self.reaper.rest()
            self.snapshots.end_sending()
            self._streams.clear()
        self._is_admitting = True
        self.queue.restart()
        self._look_ready()
        leader = (member.term, member.leader)
        if member.leader is not None and leader != self._seen_leader:
            self._seen_leader = leader
            self.leader_changes += 1
        self._listener.on_leader(member.leader)

    def on_behind(self, peer: str) -> None:
        self.snapshots.offer(peer)

    def on_message(self, peer: str, message: Message) -> None:
        match message:
            case Forward():
                self._forwarded(peer, message)
            case Declined():
                self.queue.declined(message.stream, message.position)
            case Offer():
                self.snapshots.offered(peer, message)
            case Chunk():
                self.snapshots.received(peer, message)
            case ChunkWritten():
                self.snapshots.wanted(peer, message)
            case Installed():
                self.snapshots.installed(peer, message)
            case Handover():
                self._asked_for_transfer(peer, message)
            case HandoverRefused():
                self._awaited.discard(message.number)
            case _:
                raise MalformedMessageError(f"{type(message).__name__} is not handled")

    def on_failure(self, error: Exception) -> None:
        if self._stopped:
            return  # of what was still on its way
        self.stop(f"it failed: {error}")
        self._listener.on_failure(error)

    def _forwarded(self, peer: str, message: Forward) -> None:
        """Propose another node's batch, unless one before it was declined."""
        stream, position = self._streams.get(peer, (-1, 0))
        if message.stream > stream and message.position == 0:
            stream, position = message.stream, 0
        in_order = message.stream == stream and message.position == position
        if self._guards.batches_stay_in_order and not in_order:
            return  # of a stream that is over, or after a batch that was declined
        try:
            header = decode_header(message.batch)
        except Refused as refused:
            raise MalformedMessageError(f"not a batch: {refused.failure}") from refused
        # Of any node's limits: its own may be older or newer than these, and a batch keeps its
        # bytes. The state machine knows which ones count, and the proposer is answered.
        bound = LIMIT_RANGES["batch_bytes"].maximum
        if len(message.batch) > bound:
            raise MalformedMessageError(f"a batch of {len(message.batch)} bytes; {bound} is most")
        if header.proposer != peer:
            raise MalformedMessageError(f"a batch of {header.proposer!a} from {peer}")
        if not (self.is_leader and self._is_admitting and self._has_room):
            self.member.send(peer, Declined(self.member.term, message.stream, message.position))
            return
        if self.clock.is_late:
            # Without it, what the batch does would happen at the time of the last Tick.
            self.queue.hurry()
        if self.member.propose(message.batch):
            self._streams[peer] = (stream, position + 1)

    # Applying

    def _schedule_apply(self) -> None:
        if not self._apply_is_due:
            self._apply_is_due = True
            self._host.call_soon(self._apply_turn)

    def _apply_turn(self) -> None:
        self._apply_is_due = False
        if self._stopped or self._is_installing:
            return
        try:
            self._apply()
        except Exception as error:  # noqa: BLE001 - the state may be half changed: stop, not serve
            self.on_failure(error)

    def _apply(self) -> None:
        member, machine = self.member, self.machine
        log, queue = member.log, self.queue
        stop_s = self._host.time() + self._settings.apply_turn_ms / 1000
        begin_s = perf_counter()  # finer than some hosts' clocks, and decides nothing
        while self.applied_index < member.committed_index:
            index = self.applied_index + 1
            command, _, term = log.entry_at(index)
            self.applied_index = index
            if command != NO_OP:
                before_ms = machine.now_ms
                applied = machine.apply(index, command)
                if machine.now_ms != before_ms:
                    self._look_late()
                batch = queue.find(command)
                if batch is not None:
                    queue.applied(batch, applied)
                self._listener.on_applied(applied)
            if term != self._applied_term:
                self._applied_term = term
                self._look_caught_up()
                self._look_ready()
            now_s = perf_counter()
            self.apply_s.observe(now_s - begin_s)
            begin_s = now_s
            if self._host.time() >= stop_s:
                break
        if machine.limits is not queue.limits:
            queue.limits = machine.limits
        if not self._has_caught_up:
            self._look_caught_up()
            self._look_ready()
        if self.applied_index < member.committed_index:
            self._schedule_apply()
        queue.pump()
        self.hurry()

    def _look_caught_up(self) -> None:
        """Take the limits that batches are made by from the state, once it is not an old one."""
        member = self.member
        self.queue.limits = self.machine.limits
        if member.is_leader or 0 < member.heard_index <= self.applied_index:
            self._has_caught_up = True

    def _look_late(self) -> None:
        """Give leases their grace if the time that was just applied is long over.

        Nothing committed meanwhile, and signs of life of consumers are still on their way. But not
        for as much as is usual here of late, or nobody would be reaped where commits take long.
        """
        if not self.is_leader:
            return
        now_s = self._host.time()
        late_ms = self.clock.now_ms - self.machine.now_ms
        usual_ms = self._late_ms * 0.5 ** ((now_s - self._late_s) / _LATE_HALF_LIFE_S)
        if late_ms > usual_ms + self._settings.stall_ms:
            self.reaper.give_grace(late_ms)
        # Half of what is new: one stall makes nothing usual.
        self._late_ms, self._late_s = usual_ms + max(late_ms - usual_ms, 0.0) / 2, now_s

    def _look_ready(self) -> None:
        """Begin to send batches, if this node is ready for the first time in this term."""
        if not self.is_ready or self.member.leader is None or self._ready_term == self.member.term:
            return
        self._ready_term = self.member.term
        if self.member.is_leader:
            away_ms = self.clock.start(self.machine.now_ms)
            self._leads_since_term = self.member.term
            self.reaper.give_grace(away_ms)
            self._late_ms = 0.0
            self._open_s = self._host.time()
            _log.info("%s leads in term %d", self.node_id, self.member.term)
        self.queue.restart()
        if not self._was_released:
            self._was_released = True
            self._must_release = True

    def _earlier_consumers(self) -> Iterator[bytes]:
        """The consumers of earlier lives of this node that hold something."""
        node = f"{self.node_id}/".encode()
        own = self.consumer(b"")
        for consumer_id in list(self.machine.consumers()):
            if consumer_id.startswith(node) and not consumer_id.startswith(own):
                yield consumer_id

    def _count_held(self, consumer_id: bytes) -> int:
        return sum(1 for _ in self.machine.held_by(consumer_id))

    def pause_for_install(self) -> None:
        self._is_installing = True
        self.checkpoints.pause()

    def install(self, machine: StateMachine, index: int, term: int) -> None:
        self.machine = machine
        self.applied_index = index
        self._applied_term = term
        self._has_caught_up = True
        self._is_installing = False
        self.checkpoints.resume()
        self._seen_index = max(self._seen_index, index)
        self._must_release = False
        self.reaper.forget_held()
        self._was_released = False
        self._ready_term = 0
        self.member.rebase(index, term)
        self.queue.limits = machine.limits
        for batch in self.queue.unanswered():
            applied = machine.answered(self.node_id, self.incarnation, batch.sequence)
            if applied is not None:
                self.queue.applied(batch, applied)
            else:
                self.queue.doubt(batch)
        self._look_ready()
        self._listener.on_installed()
        self._schedule_apply()

    # Time

    def _arm_pulse(self) -> None:
        self._pulse_timer = self._host.call_later(self._settings.pulse_ms / 1000, self._pulse)

    def _pulse(self) -> None:
        if self._stopped:
            return
        now_s = self._host.time()
        late_ms = int((now_s - self._pulse_s) * 1000) - self._settings.pulse_ms
        self._pulse_s = now_s
        self._arm_pulse()
        try:
            self._look(late_ms)
        except Exception as error:  # noqa: BLE001 - as in applying
            self.on_failure(error)

    def _look(self, late_ms: int) -> None:
        """Look after what time brings."""
        self.queue.expire(is_lagging=self.applied_index < self.member.heard_index)
        if late_ms > self._settings.stall_ms:
            self.stalls += 1
            if self.is_leader:
                self.reaper.give_grace(late_ms)
        if not self._has_caught_up:
            self._schedule_apply()  # it may have all that its leader has, and nothing to apply
        if self.is_leader and self.is_ready:
            self._look_open()
            self._lead()
        if self._must_release and self.is_ready:
            self._must_release = self.reaper.release(self._earlier_consumers, self._count_held)
        self.snapshots.look()
        self.checkpoints.look()
        if not self.checkpoints.is_writing:
            self._checkpoint_s = None  # also if it was given up
        elif self._checkpoint_s is None:
            self._checkpoint_s = self._host.time()

    def _look_open(self) -> None:
        """Give leases their grace for the time in which this leader took no signs of life."""
        now_s = self._host.time()
        if self._is_admitting and self._has_room:
            self._open_s = now_s
            return
        closed_ms = int((now_s - self._open_s) * 1000)
        if closed_ms > self._settings.stall_ms:
            self.reaper.give_grace(closed_ms)

    def _lead(self) -> None:
        next_wake_ms = self.machine.next_wake_ms
        if next_wake_ms is not None and next_wake_ms <= self.clock.now_ms and self.clock.is_late:
            self.queue.hurry()
        self.reaper.look(self.machine)

    def _submit_ending(self, encoded: bytes, callback: Callback) -> None:
        timeout_s = self._settings.queue.resend_after_ms / 1000 * 4
        self.queue.submit(encoded, callback, timeout_s, is_ending=True)
