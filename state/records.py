"""What the state consists of: sessions, themes, consumers, windows of results, receipts.

Records are plain. They refer to each other in one direction only (a session to its theme and its
consumer, both of which know sessions by id), so they are freed by reference counting alone, and
the garbage collector has no cycle to look for.

The indexes over them are in `tables`; what is written of them in `layout`.
"""

from typing import ClassVar, NamedTuple

from state.errors import Failure
from state.limits import (
    CHUNK_OVERHEAD_BYTES,
    HISTORY_OVERHEAD_BYTES,
    RECEIPT_OVERHEAD_BYTES,
    SESSION_OVERHEAD_BYTES,
)
from state.ordered import OrderedInts
from state.policy import DEFAULT_POLICY, Policy
from state.results import Result, weight
from state.roll import Roll
from state.transitions import NOTHING, Phase

# In the order in which a checkpoint writes them, so that references are to what came before.
META, THEME, CONSUMER, WINDOW, ANSWERS, RECEIPT, SESSION, CHECK = range(8)

NEVER = -1

ID_BITS = 64  # a session's id in the lower bits of its place in an index
ID_MASK = (1 << ID_BITS) - 1
PRIORITY_SHIFT = 2 * ID_BITS  # above the due time and the id
PRIORITIES_LOOKED_AT = 256


Identity = int | bytes | str | tuple[str, int]


class HistoryEntry(NamedTuple):
    """Why a session stopped being active. Equal ones in a row are one entry."""

    cause: int
    reason: str
    times: int
    first_ms: int
    last_ms: int

    @property
    def size_bytes(self) -> int:
        """What it counts against the limit of the state."""
        return HISTORY_OVERHEAD_BYTES + len(self.reason)


class Record:
    """Base of what is kept. Its fields belong to `ledger`, which follows every change."""

    __slots__ = ("captured", "digest", "mark", "saved")
    kind: ClassVar[int]
    # What operations in a transaction may change: what a failed one puts back.
    changeable: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.mark = 0  # the ledger's mark when a change was last noted
        self.digest = 0  # of the fields when the state's digest was last made; 0: not part of it
        self.captured = 0  # number of the last capture that holds it
        self.saved = NEVER  # chunks of it in the last checkpoint; NEVER: it is not in there

    @property
    def identity(self) -> Identity:
        """What tells it from others of its kind."""
        raise NotImplementedError


class Theme(Record):
    """A kind of work: its policy, and who is next in it."""

    __slots__ = (
        "counts",
        "keys",
        "paused",
        "policy",
        "ready",
        "roll",
        "served",
        "size_bytes",
        "theme_id",
    )
    kind = THEME
    changeable: ClassVar[tuple[str, ...]] = ("served",)

    def __init__(self, theme_id: int, turn: int) -> None:
        super().__init__()
        self.theme_id = theme_id
        self.policy: Policy = DEFAULT_POLICY
        self.paused = False
        # The turn in which a session was last handed out. A new theme is the last in the queue:
        # else one that is forgotten whenever it is empty would always come first.
        self.served = turn
        # What follows from the sessions, and is not written anywhere:
        self.keys: dict[bytes, int] = {}  # key -> id of its holder
        self.ready = OrderedInts()  # priority << 128 | due_ms << 64 | id
        self.counts = [0] * len(Phase)
        self.size_bytes = 0
        self.roll = Roll()  # the ids of its sessions, and some of sessions that are gone

    @property
    def identity(self) -> int:
        return self.theme_id

    @property
    def has_room(self) -> bool:
        """Whether one more session may become active."""
        return not self.policy.max_active or self.counts[Phase.ACTIVE] < self.policy.max_active

    @property
    def can_serve(self) -> bool:
        """Whether an Acquire would get a session of it."""
        return not self.paused and len(self.ready) > 0 and self.has_room

    @property
    def oldest_due_ms(self) -> int | None:
        """Since when that one of its ready sessions has been due that waits longest, if it has any.

        Of the `PRIORITIES_LOOKED_AT` most urgent priorities that they have, if they have more.
        """
        oldest_ms = None
        place = self.ready.first()
        for _ in range(PRIORITIES_LOOKED_AT):
            if place is None:
                break
            due_ms = place >> ID_BITS & ID_MASK
            oldest_ms = due_ms if oldest_ms is None else min(oldest_ms, due_ms)
            place = self.ready.first_from((place >> PRIORITY_SHIFT) + 1 << PRIORITY_SHIFT)
        return oldest_ms

    @property
    def population(self) -> int:
        """How many sessions it has, in any phase."""
        return sum(self.counts)

    @property
    def is_default(self) -> bool:
        """Whether there is nothing in it to remember."""
        return not self.paused and self.policy == DEFAULT_POLICY and not self.population


class Consumer(Record):
    """One that directs operators. Its sign of life renews all its sessions at once."""

    __slots__ = ("buckets", "consumer_id", "groups", "population", "seen_ms")
    kind = CONSUMER
    changeable: ClassVar[tuple[str, ...]] = ("seen_ms",)

    def __init__(self, consumer_id: bytes, seen_ms: int) -> None:
        super().__init__()
        self.consumer_id = consumer_id
        self.seen_ms = seen_ms
        # What follows from the sessions, and is not written anywhere:
        self.population = 0  # how many it holds
        # lease_ms -> ids of the sessions with that lease (a dict for its order), and -> the place
        # of the group in the calendar. A group stays when it is empty, until its time comes.
        self.groups: dict[int, dict[int, None]] = {}
        self.buckets: dict[int, int] = {}

    @property
    def identity(self) -> bytes:
        return self.consumer_id


class Window(Record):
    """Which batches of a proposer are known: those of one incarnation, above a floor."""

    __slots__ = ("answers", "floor", "incarnation", "proposer", "result_count")
    kind = WINDOW

    def __init__(self, proposer: str, incarnation: int) -> None:
        super().__init__()
        self.proposer = proposer
        self.incarnation = incarnation
        self.floor = -1  # sequences up to here are not known any more
        # What follows from the answers, and is not written anywhere:
        self.answers: dict[int, Answers] = {}  # by sequence
        self.result_count = 0  # the sum of their weights

    @property
    def identity(self) -> str:
        return self.proposer


class Answers(Record):
    """What one batch of a proposer was answered."""

    __slots__ = ("failure", "proposer", "results", "sequence", "weight")
    kind = ANSWERS

    def __init__(
        self,
        proposer: str,
        sequence: int,
        results: tuple[Result, ...],
        failure: Failure | None,
    ) -> None:
        super().__init__()
        self.proposer = proposer
        self.sequence = sequence
        self.results = results
        self.failure = failure  # why the batch was refused as a whole; then it has no results
        self.weight = weight(results)

    @property
    def identity(self) -> tuple[str, int]:
        return self.proposer, self.sequence


class Receipt(Record):
    """What an idempotency key was answered."""

    __slots__ = ("expires_ms", "fingerprint", "key", "result", "size_bytes", "unused_id")
    kind = RECEIPT

    def __init__(
        self,
        key: bytes,
        fingerprint: bytes,
        expires_ms: int,
        result: Result,
        unused_id: int = 0,
    ) -> None:
        """`unused_id`: the session by whose first use the key is forgotten; 0 if by none."""
        super().__init__()
        self.unused_id = unused_id
        self.key = key
        self.fingerprint = fingerprint
        self.expires_ms = expires_ms
        self.result = result
        self.size_bytes = RECEIPT_OVERHEAD_BYTES * weight((result,)) + len(key)

    @property
    def identity(self) -> bytes:
        return self.key


class Session(Record):
    """A piece of work that must not be forgotten."""

    __slots__ = (
        "attempts",
        "chunks",
        "consumer",
        "created_ms",
        "data_digest",
        "digested_chunks",
        "epoch",
        "history",
        "key",
        "lease_bucket",
        "lease_ms",
        "phase",
        "place",
        "priority",
        "progress_ms",
        "revision",
        "session_id",
        "size_bytes",
        "theme",
        "touched_ms",
        "trace",
        "updated_ms",
    )
    kind = SESSION
    changeable: ClassVar[tuple[str, ...]] = (
        "chunks",
        "size_bytes",
        "phase",
        "epoch",
        "revision",
        "attempts",
        "updated_ms",
        "place",
        "touched_ms",
        "history",
        "consumer",
        "lease_ms",
        "progress_ms",
    )

    def __init__(
        self,
        session_id: int,
        theme: Theme,
        key: bytes | None,
        chunks: list[bytes],
        size_bytes: int,
        priority: int,
        now_ms: int,
        trace: bytes = b"",
    ) -> None:
        self.mark = 0
        self.digest = 0
        self.captured = 0
        self.saved = NEVER
        self.session_id = session_id
        self.theme = theme
        self.key = key
        self.trace = trace
        self.chunks = chunks
        self.size_bytes = size_bytes  # data, key, trace, history, overheads, as the limits count
        self.phase = NOTHING
        self.priority = priority
        self.epoch = 0
        self.revision = 1
        self.attempts = 0
        self.created_ms = now_ms
        self.updated_ms = now_ms
        self.place = now_ms << ID_BITS | session_id  # of its due time, in the index of sleepers
        self.touched_ms = now_ms  # the last operation on it while active
        self.history: tuple[HistoryEntry, ...] = ()
        # While active:
        self.consumer: Consumer | None = None
        self.lease_ms = 0  # copied from the policy, so that changing that is O(1)
        self.progress_ms = 0
        self.lease_bucket = 0  # its own place in the calendar; 0: its consumer's group has it
        # The chain of digests over the first `digested_chunks` chunks.
        self.data_digest = 0
        self.digested_chunks = 0

    @property
    def identity(self) -> int:
        return self.session_id

    @property
    def due_ms(self) -> int:
        """When it is or was due; of a session that was never stored, when it was created."""
        return self.place >> ID_BITS

    @due_ms.setter
    def due_ms(self, due_ms: int) -> None:
        self.place = due_ms << ID_BITS | self.session_id

    @property
    def data_bytes(self) -> int:
        """The length of all its chunks together."""
        overhead_bytes = SESSION_OVERHEAD_BYTES + CHUNK_OVERHEAD_BYTES * len(self.chunks)
        overhead_bytes += sum([entry.size_bytes for entry in self.history])
        return self.size_bytes - overhead_bytes - len(self.key or b"") - len(self.trace)

    @property
    def deadline_ms(self) -> int:
        """When its lease ends, or the time that it may go without progress, if that is sooner."""
        consumer = self.consumer
        seen_ms = self.touched_ms
        if consumer is not None and consumer.seen_ms > seen_ms:
            seen_ms = consumer.seen_ms
        deadline_ms = seen_ms + self.lease_ms
        if self.progress_ms:
            return min(deadline_ms, self.touched_ms + self.progress_ms)
        return deadline_ms

    @property
    def last_reason(self) -> str:
        """Why it stopped being active the last time; empty if it never did."""
        return self.history[-1].reason if self.history else ""

    @property
    def data(self) -> bytes:
        """All chunks as one."""
        return b"".join(self.chunks)
