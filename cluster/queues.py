"""The double queue: operations wait in the *intake*, batches that are on their way in *confirm*.

A batch is what has gathered while others were on their way, so the number of batches falls as the
load rises, and a lone operation leaves at once. No timers and no artificial delay: the intake is
looked at at the end of the loop's turn in which something came, and whenever a batch is committed
(before it is applied: the next one leaves first).

A batch keeps its sequence number and its bytes until it is answered, however often it is sent: the
state machine recognises it. Batches of one node never overtake each other: after any doubt (another
leader, a lost connection, a refusal) all that are unanswered are sent again from the oldest on.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol

from cluster.consensus.guards import ALL_GUARDS, Guards
from cluster.consensus.host import Host
from cluster.failures import Overloaded, Stopping, TimedOut, TooLarge
from cluster.meters import COUNT_BUCKETS, LATENCY_BUCKETS_S, SIZE_BUCKETS_BYTES, Histogram
from state import Applied, Failure, Limits, Result, encode, encode_batch
from state.limits import LIMITS
from state.operations import Barrier

_log = logging.getLogger(__name__)

Callback = Callable[[Result], object]

# Of the envelope: more than version, proposer, numbers and the array's length have.
ENVELOPE_BYTES = 512

_BARRIER = encode(Barrier())


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Bounds of the double queue. A trial of the architecture found the numbers of batches."""

    intake_operations: int = 65_536  # what waits for a batch
    intake_bytes: int = 64 << 20
    # What ends sessions, and signs of life, are admitted beyond the above, up to this factor.
    ending_reserve: int = 2
    pipelined_batches: int = 4  # on their way at once, while much waits
    pipeline_from_operations: int = 512  # that is: while at least this many wait
    batch_operations: int = 1024  # of a batch, if others are on their way
    resend_after_ms: int = 3000  # a batch without an answer; above an election's time
    retry_after_ms: int = 200  # what the overloaded are told


class Waiting(NamedTuple):
    """An operation in the intake."""

    encoded: bytes
    callback: Callback
    since_s: float
    deadline_s: float
    weight: int
    late: Callback | None  # told the result instead, if that comes after the deadline


class Batch:
    """Operations on their way."""

    __slots__ = (
        "appended_term",
        "begun_s",
        "command",
        "committed_s",
        "is_committed",
        "sent_s",
        "sequence",
        "waiting",
    )

    def __init__(self, sequence: int, command: bytes, waiting: list[Waiting | None]) -> None:
        self.sequence = sequence
        self.command = command
        self.waiting = waiting  # None in place of one that was answered before its time
        self.is_committed = False
        self.appended_term = 0  # in which this node, as the leader, put it into its log
        self.sent_s = 0.0
        # On a finer clock than some hosts have, for measuring alone: when it was sent first, ...
        self.begun_s = 0.0
        self.committed_s = 0.0  # ... and when it was known to be committed


class Sender(Protocol):
    """Where batches go."""

    def is_open(self) -> bool:
        """Whether there is a leader to send batches to.

        Until then operations stay in the intake: whose deadline passes there was not done.
        """

    def propose(self, batch: Batch, stream: int, position: int) -> bool:
        """Send a batch to the leader, as the one at `position` of `stream`. False: not now."""

    def hurry(self) -> None:
        """Let what was proposed leave now."""

    def leading_operations(self) -> list[bytes]:
        """What the node itself puts at the beginning of a batch: the time, if it leads."""


class DoubleQueue:
    """All operations of one node on their way to the log, and their callers."""

    def __init__(
        self,
        proposer: str,
        incarnation: int,
        host: Host,
        sender: Sender,
        settings: QueueSettings,
        guards: Guards = ALL_GUARDS,
    ) -> None:
        self.proposer = proposer
        self.incarnation = incarnation
        self.limits: Limits = LIMITS  # the replicated ones, as far as this node knows
        self.term = 0  # that batches are stamped with
        self._host = host
        self._sender = sender
        self._settings = settings
        self._guards = guards
        self._prefix = encode_batch(proposer, incarnation, 0, 0, [])[:-3]
        self._intake: deque[Waiting] = deque()
        self._intake_bytes = 0
        self._intake_weight = 0
        self._confirm: dict[int, Batch] = {}  # by sequence, oldest first
        self._uncommitted = 0  # of those in confirm
        self._sequence = 0
        self._stream = 0
        self._position = 0
        self._is_flowing = False  # whether all of confirm was sent in the current stream
        # When a leader that declined is to be tried again with the oldest batch; None: it has not.
        # While such a probe is on its way, only a node that does not lag sends another.
        self._probe_s: float | None = None
        self._probe_is_out = False
        self._stopping: str | None = None
        self._pump_is_due = False
        self._gave_way = False  # whether the last batch out of the intake had none of it
        self._taken = 0  # operations that ever left the intake
        # Of the barrier in the intake: who waits for it, its deadline, and its place in the intake
        # counted from the first operation ever.
        self._readers: list[tuple[Callback, float]] = []
        self._reading = 0  # callers of `read` that are not answered
        self._readers_deadline_s = 0.0
        self._readers_place = -1
        self._earliest_s = float("inf")  # no deadline is before this
        self.batches = 0
        self.operations = 0
        self.resends = 0
        self.answered = 0  # operations whose batch was applied, whatever came of them
        self.reads = 0  # of `read` that were answered
        # Operations that were answered here, and not by the state machine: by code.
        codes = (Overloaded.code, Stopping.code, TimedOut.code, TooLarge.code)
        self.failed = Counter(dict.fromkeys(codes, 0))
        self.commit_s = Histogram(LATENCY_BUCKETS_S)  # from the first sending to the commit
        self.batch_operations = Histogram(COUNT_BUCKETS)
        self.batch_bytes = Histogram(SIZE_BUCKETS_BYTES)

    # In

    def submit(
        self,
        encoded: bytes,
        callback: Callback,
        timeout_s: float,
        *,
        weight: int = 1,
        is_ending: bool = False,
        late: Callback | None = None,
    ) -> None:
        """Take an operation in. `callback` gets its result, or a failure, once; perhaps at once.

        If its time ends when it may have been done, `late` gets the same again, once that is known.

        `weight` is how many operations are in it. `is_ending` says that it ends a session or is a
        sign of life, which is admitted when others are not.
        """
        if self._stopping is not None:
            self._refuse(callback, Stopping(was_sent=False, reason=self._stopping))
            return
        size_bytes = len(encoded)
        settings = self._settings
        if size_bytes + ENVELOPE_BYTES > self.limits.batch_bytes:
            bound = self.limits.batch_bytes - ENVELOPE_BYTES
            self._refuse(callback, TooLarge(size_bytes, bound))
            return
        factor = settings.ending_reserve if is_ending else 1
        if (
            len(self._intake) >= settings.intake_operations * factor
            or self._intake_bytes + size_bytes > settings.intake_bytes * factor
        ):
            self._refuse(callback, Overloaded(settings.retry_after_ms))
            return
        now_s = self._host.time()
        deadline_s = now_s + timeout_s
        self._intake.append(Waiting(encoded, callback, now_s, deadline_s, weight, late))
        self._intake_bytes += size_bytes
        self._intake_weight += weight
        if deadline_s < self._earliest_s:  # noqa: PLR1730 - for every operation, and quicker
            self._earliest_s = deadline_s
        if not self._pump_is_due:
            self._pump_is_due = True
            self._host.call_soon(self._pump_turn)

    def _refuse(self, callback: Callback, failure: Failure) -> None:
        self.failed[failure.code] += 1
        callback(failure)

    def read(self, callback: Callback, timeout_s: float) -> None:
        """Call back when all that was acknowledged before is applied here (a barrier's result).

        All that ask while a barrier waits for its batch share it.
        """
        if not self._guards.reads_wait_for_barrier:
            callback(0)
            return
        if self._stopping is not None:
            self._refuse(callback, Stopping(was_sent=False, reason=self._stopping))
            return
        if self._reading >= self._settings.intake_operations:
            self._refuse(callback, Overloaded(self._settings.retry_after_ms))
            return
        self._reading += 1
        deadline_s = self._host.time() + timeout_s
        if self._readers_place >= self._taken and deadline_s >= self._readers_deadline_s:
            self._readers.append((callback, deadline_s))
            return
        readers = [(callback, deadline_s)]
        place = self._taken + len(self._intake)
        self.submit(_BARRIER, lambda result: self._tell(readers, result), timeout_s)
        if place < self._taken + len(self._intake):
            self._readers = readers
            self._readers_deadline_s = deadline_s
            self._readers_place = place

    def _tell(self, readers: list[tuple[Callback, float]], result: Result) -> None:
        if readers is self._readers:
            self._readers, self._readers_place = [], -1  # nobody joins what is answered
        self._reading -= len(readers)
        self.reads += len(readers)
        now_s = self._host.time()
        for callback, deadline_s in readers:
            try:
                if isinstance(result, TimedOut) and deadline_s > now_s:
                    self.reads -= 1
                    self.read(callback, deadline_s - now_s)
                else:
                    callback(result)
            except Exception:  # noqa: BLE001 - see `_answer`
                _log.exception("a reader's callback raised")

    def stop(self, reason: str) -> None:
        """Take nothing in any more. What is in goes on."""
        if self._stopping is None:
            self._stopping = reason

    def fail(self, reason: str) -> None:
        """Answer all that is in, and take nothing in any more."""
        self.stop(reason)
        intake, self._intake = self._intake, deque()
        self._intake_bytes = self._intake_weight = 0
        for waiting in intake:
            self._answer(waiting, Stopping(was_sent=False, reason=reason))
        confirm, self._confirm = self._confirm, {}
        self._uncommitted = 0
        for batch in confirm.values():
            for one in batch.waiting:
                if one is not None:
                    self._answer(one, Stopping(was_sent=True, reason=reason))

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not self._intake and not self._confirm

    @property
    def depth(self) -> int:
        """Operations that wait for a batch."""
        return len(self._intake)

    @property
    def depth_bytes(self) -> int:
        """What they take."""
        return self._intake_bytes

    @property
    def oldest_s(self) -> float:
        """How long the first of them has waited; 0 if there is none."""
        return self._host.time() - self._intake[0].since_s if self._intake else 0.0

    @property
    def unanswered_count(self) -> int:
        """Batches that are on their way, or not applied here."""
        return len(self._confirm)

    @property
    def has_batch(self) -> bool:
        """Whether a batch is on its way."""
        return self._uncommitted > 0

    @property
    def _batches_max(self) -> int:
        """How many may be unanswered: half of those whose results are remembered.

        Batches that are committed and not applied count too, because who waits for them is in
        memory.
        """
        return max(self.limits.window_batches // 2, 1)

    # On

    def _pump_turn(self) -> None:
        self._pump_is_due = False
        self.pump()
        self._sender.hurry()

    def pump(self) -> None:
        """Send what may be sent."""
        if not self._is_flowing and self._probe_s is None:
            self._flow()
        settings = self._settings
        while self._intake and self._may_send:
            if self._uncommitted and not (
                self._uncommitted < settings.pipelined_batches
                and len(self._intake) >= settings.pipeline_from_operations
            ):
                return
            # One that had no room beside the node's own comes before those of the next time.
            leading = [] if self._gave_way else self._sender.leading_operations()
            self._send(self._next_batch(leading))

    def hurry(self) -> None:
        """Send now what the node itself has to say, and what waits along with it.

        Where commits take long such batches follow each other closely, and nothing else would ever
        find the way free.
        """
        self.pump()
        if self._gave_way and self._intake and self._may_send:
            self._send(self._next_batch([]))
        if self._may_send:
            leading = self._sender.leading_operations()
            if leading:
                self._send(self._next_batch(leading))

    @property
    def _may_send(self) -> bool:
        return self._is_flowing and len(self._confirm) < self._batches_max

    def restart(self) -> None:
        """Send again all that is unanswered: the leader is another, or may have missed it."""
        self._is_flowing = self._gave_way = False
        self._probe_s = None
        self.pump()

    def declined(self, stream: int, position: int) -> None:
        """Take note that a stream ended before `position`.

        Sending all of it again would be declined as well, at the cost of all of it: so the oldest
        alone is sent now and then, until it is committed.
        """
        if stream == self._stream and position < self._position:
            self._is_flowing = False
            self._probe_s = self._host.time() + self._settings.retry_after_ms / 1000
            self._probe_is_out = False

    def _probe(self, now_s: float) -> None:
        """Try a leader that declined with the oldest batch alone."""
        if not self._sender.is_open():
            return
        oldest = self._oldest_uncommitted()
        if oldest is None:
            self.restart()
            return
        self._stream += 1
        self._position = 0
        self.resends += 1
        self._probe_s = now_s + self._settings.resend_after_ms / 1000
        self._probe_is_out = self._transmit(oldest)

    def _flow(self) -> None:
        """Begin a stream with what is unanswered, oldest first, if there is where to."""
        if not self._sender.is_open():
            return
        self._stream += 1
        self._position = 0
        self._is_flowing = True
        if not self._guards.retries_are_recognised:
            # What this guard is for: the same batch under a new number.
            again, self._confirm = list(self._confirm.values()), {}
            for batch in again:
                operations = [one.encoded for one in batch.waiting if one is not None]
                waiting = [one for one in batch.waiting if one is not None]
                renewed = self._batch(operations, list(waiting))
                self._confirm[renewed.sequence] = renewed
            self._uncommitted = len(self._confirm)
        for batch in self._confirm.values():
            if not batch.is_committed:
                self.resends += 1
                if not self._transmit(batch):
                    return

    def _transmit(self, batch: Batch) -> bool:
        batch.sent_s = self._host.time()
        if not batch.begun_s:
            batch.begun_s = perf_counter()
        if not self._sender.propose(batch, self._stream, self._position):
            self._is_flowing = False
            return False
        self._position += 1
        return True

    def _send(self, batch: Batch) -> None:
        self._confirm[batch.sequence] = batch
        self._uncommitted += 1
        self._transmit(batch)

    def _next_batch(self, operations: list[bytes]) -> Batch:
        """A batch of the node's own operations, and out of the intake. One of them is not empty."""
        limits = self.limits
        leading = len(operations)
        waiting: list[Waiting | None] = [None] * leading
        room = limits.batch_operations
        if self._uncommitted or len(self._intake) >= self._settings.pipeline_from_operations:
            room = min(room, self._settings.batch_operations)
        room -= leading
        room_bytes = limits.batch_bytes - ENVELOPE_BYTES - sum(map(len, operations))
        intake = self._intake
        count = len(intake)
        if self._intake_weight <= room and self._intake_bytes <= room_bytes:
            operations.extend([one.encoded for one in intake])
            waiting.extend(intake)
            intake.clear()
            self._intake_bytes = self._intake_weight = 0
            self._taken += count
            self._gave_way = False
            return self._batch(operations, waiting)
        add, take = operations.append, waiting.append
        size_bytes = weight = 0
        while intake:
            first = intake[0]
            room -= first.weight
            size_bytes += len(first.encoded)
            if waiting and (room < 0 or size_bytes > room_bytes):
                size_bytes -= len(first.encoded)
                break
            intake.popleft()
            weight += first.weight
            add(first.encoded)
            take(first)
        self._intake_bytes -= size_bytes
        self._intake_weight -= weight
        self._taken += count - len(intake)
        self._gave_way = bool(intake) and len(waiting) == leading
        return self._batch(operations, waiting)

    def _batch(self, operations: list[bytes], waiting: list[Waiting | None]) -> Batch:
        sequence = self._sequence
        self._sequence += 1
        self.batches += 1
        self.operations += len(operations)
        command = encode_batch(self.proposer, self.incarnation, sequence, self.term, operations)
        self.batch_operations.observe(len(operations))
        self.batch_bytes.observe(len(command))
        return Batch(sequence, command, waiting)

    # Out

    def find(self, command: bytes) -> Batch | None:
        """The unanswered batch that an entry of the log is, if it is one."""
        if not command.startswith(self._prefix):
            return None
        for batch in self._confirm.values():  # the first, as a rule: they are committed in order
            if batch.command == command:
                return batch
        return None

    def unanswered(self) -> list[Batch]:
        """The batches on their way, oldest first."""
        return list(self._confirm.values())

    def committed(self, batch: Batch) -> None:
        """Take note that a batch is committed: the next one may leave."""
        if not batch.is_committed:
            batch.is_committed = True
            batch.committed_s = perf_counter()
            self._uncommitted -= 1
            self._probe_s = None

    def doubt(self, batch: Batch) -> None:
        """Take note that a committed batch's answer is not known here: it has to be asked for."""
        if batch.is_committed:
            batch.is_committed = False
            self._uncommitted += 1

    def applied(self, batch: Batch, applied: Applied) -> None:
        """Answer a batch's callers."""
        self.committed(batch)
        if self._confirm.pop(batch.sequence, None) is not batch:
            return
        self.answered += len(batch.waiting)
        self.commit_s.observe(batch.committed_s - batch.begun_s)
        failure = applied.failure
        if failure is not None:
            for one in batch.waiting:
                if one is not None:
                    self._answer(one, failure)
            return
        for one, result in zip(batch.waiting, applied.results, strict=True):
            if one is not None:
                try:
                    one.callback(result)
                except Exception:  # noqa: BLE001 - see `_answer`
                    _log.exception("a caller's callback raised")

    def expire(self, *, is_lagging: bool) -> None:
        """Answer those whose deadline has passed, and send again what should be answered by now.

        A node that lags may find the answer in what it has not applied yet.
        """
        now_s = self._host.time()
        if now_s >= self._earliest_s:
            self._expire(now_s)
        if self._probe_s is not None:
            if now_s >= self._probe_s and not (self._probe_is_out and is_lagging):
                self._probe(now_s)
            return
        before_s = now_s - self._settings.resend_after_ms / 1000
        if is_lagging:
            return
        if self._is_flowing:
            # A stream that was cut short is begun again when a leader is known.
            oldest = self._oldest_uncommitted()
            if oldest is not None and oldest.sent_s < before_s:
                self.restart()
        else:
            self.pump()

    def _oldest_uncommitted(self) -> Batch | None:
        return next((one for one in self._confirm.values() if not one.is_committed), None)

    def _expire(self, now_s: float) -> None:
        earliest_s = float("inf")
        late: list[tuple[Waiting, bool]] = []
        if any(waiting.deadline_s <= now_s for waiting in self._intake):
            kept: deque[Waiting] = deque()
            for waiting in self._intake:
                if waiting.deadline_s <= now_s:
                    self._intake_bytes -= len(waiting.encoded)
                    self._intake_weight -= waiting.weight
                    self._taken += 1
                    late.append((waiting, False))
                else:
                    kept.append(waiting)
            self._intake = kept
            self._gave_way = False  # for another one, perhaps
        for waiting in self._intake:
            earliest_s = min(earliest_s, waiting.deadline_s)
        for batch in self._confirm.values():
            for place, one in enumerate(batch.waiting):
                if one is None:
                    continue
                if one.deadline_s <= now_s:
                    batch.waiting[place] = _for_late(one)
                    late.append((one, True))
                else:
                    earliest_s = min(earliest_s, one.deadline_s)
        self._earliest_s = earliest_s
        for waiting, was_sent in late:
            waited_ms = round((now_s - waiting.since_s) * 1000)
            self._answer(waiting, TimedOut(was_sent, waited_ms))

    def _answer(self, waiting: Waiting, failure: Failure) -> None:
        """Tell of a failure. A caller's mistake is its own: the others are answered as well."""
        self.failed[failure.code] += 1
        try:
            waiting.callback(failure)
        except Exception:  # noqa: BLE001 - whatever it is, it is not ours
            _log.exception("a caller's callback raised")


def _for_late(waiting: Waiting) -> Waiting | None:
    """Who is to be told of an operation once its caller has been told that it is in doubt."""
    if waiting.late is None:
        return None
    return waiting._replace(callback=waiting.late, late=None, deadline_s=float("inf"))
