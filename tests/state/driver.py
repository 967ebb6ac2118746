"""Drives one state machine by its public face: operations in, results out."""

from collections.abc import Iterable
from typing import Any

from state import (
    LIMITS,
    Applied,
    Cause,
    Created,
    Failure,
    Item,
    Limits,
    Operation,
    StateMachine,
    encode,
    encode_batch,
)
from state.layout import FIELDS
from state.operations import (
    Append,
    Heartbeat,
    Idempotent,
    New,
    Park,
    Pause,
    Remove,
    SetPolicy,
    Store,
    Target,
    Tick,
    Txn,
)
from state.records import ANSWERS, CHECK, META, WINDOW


class Driver:
    """One machine and one proposer, whose index and sequence count up by themselves."""

    def __init__(
        self,
        machine: StateMachine | None = None,
        *,
        proposer: str = "driver",
        incarnation: int = 1,
        term: int = 1,
    ) -> None:
        self.machine = StateMachine() if machine is None else machine
        self.proposer = proposer
        self.incarnation = incarnation
        self.sequence = 0
        self.term = term
        self.batches: list[bytes] = []  # all that were applied

    def batch(self, *operations: Operation | bytes, term: int | None = None) -> bytes:
        """The next batch, not applied yet."""
        encoded = [one if isinstance(one, bytes) else encode(one) for one in operations]
        self.sequence += 1
        return encode_batch(
            self.proposer,
            self.incarnation,
            self.sequence,
            self.term if term is None else term,
            encoded,
        )

    def apply_bytes(self, data: bytes) -> Applied:
        """Apply any bytes at the next index."""
        self.batches.append(data)
        return self.machine.apply(self.machine.applied_index + 1, data)

    def apply(self, *operations: Operation | bytes, term: int | None = None) -> Applied:
        """Apply operations as one batch."""
        return self.apply_bytes(self.batch(*operations, term=term))

    def results(self, *operations: Operation | bytes, term: int | None = None) -> tuple[Any, ...]:
        """Apply operations as one batch, which is not refused as a whole, for their results."""
        applied = self.apply(*operations, term=term)
        assert applied.failure is None, f"the batch was refused: {applied.failure!r}"
        return applied.results

    def do(self, operation: Operation | bytes, *, term: int | None = None) -> Any:
        """Apply one operation for its result, which may be a failure."""
        (result,) = self.results(operation, term=term)
        return result

    def succeed(self, operation: Operation, *, term: int | None = None) -> Any:
        """Apply one operation that is done, for its result."""
        result = self.do(operation, term=term)
        assert not isinstance(result, Failure), f"{operation} was refused: {result!r}"
        return result

    def new(self, theme: int = 7, **fields: Any) -> int:
        """The id of a new session."""
        created: Created = self.succeed(New(theme, **fields))
        return created.session_id

    def epoch(self, target: Target) -> int:
        """The newest epoch of a session that exists."""
        session = self.machine.session(target)
        assert session is not None, f"there is no session {target}"
        return session.epoch

    def tick(self, now_ms: int) -> int:
        """Move the clock to a time."""
        now: int = self.succeed(Tick(now_ms))
        return now

    def advance(self, by_ms: int) -> int:
        """Move the clock on."""
        return self.tick(self.machine.now_ms + by_ms)


def everything(machine: StateMachine) -> list[Item]:
    """All items of a machine's state."""
    return [item for piece in machine.capture_everything().pieces() for item in piece]


def contents(machine: StateMachine) -> dict[tuple[int, object], object]:
    """What a machine holds, but for what it has answered and where in the log it is.

    So it is the same after a batch that was recorded and has changed nothing.
    """
    found: dict[tuple[int, object], object] = {}
    for item in everything(machine):
        fields = item.fields or ()
        if item.kind == META:
            fields = tuple(
                value
                for name, value in zip(FIELDS[META], fields, strict=True)
                if name != "applied_index"
            )
        if item.kind not in (WINDOW, ANSWERS, CHECK):
            found[item.kind, item.identity] = (fields, item.chunks)
    return found


# A state in which every kind of record is, and every phase.

PARKED_ID, STORED_ID, READY_ID, ACTIVE_ID, CONSUMED_ID, REMOVED_ID = 1, 2, 3, 4, 5, 6
RICH_THEME, PAUSED_THEME = 7, 8
RICH_KEYS = {PARKED_ID: b"parked", STORED_ID: b"stored", READY_ID: b"ready", ACTIVE_ID: b"active"}
RICH_NOW_MS = 1_000_000
RICH_CONSUMER = b"consumer-1"


def rich_batches() -> list[bytes]:
    """The batches that make a state with everything in it."""
    driver = Driver(proposer="rich")
    driver.apply(
        Tick(RICH_NOW_MS),
        SetPolicy(RICH_THEME, (("max_attempts", 9), ("backoff", 1), ("progress_ms", 600_000))),
    )
    for session_id, key in RICH_KEYS.items():
        made = driver.new(RICH_THEME, key=key, data=b"first", priority=session_id)
        assert made == session_id
    driver.apply(
        New(RICH_THEME, data=b"consumed", consumer=RICH_CONSUMER),
        New(PAUSED_THEME, key=b"gone soon", repeat_after_ms=0),
        Append(PARKED_ID, 1, b"second"),
        Park(PARKED_ID, 1, "enough"),
        Store(STORED_ID, 1, 3_600_000, Cause.FAILED, "no answer"),
        Store(READY_ID, 1, 0, Cause.SHUTDOWN),
        Heartbeat(RICH_CONSUMER),
        Remove(REMOVED_ID, None),
        Pause(PAUSED_THEME),
        New(PAUSED_THEME, repeat_after_ms=0),
        Idempotent(b"receipt", 3_600_000, New(PAUSED_THEME, key=b"once", repeat_after_ms=60_000)),
        Txn((New(9, repeat_after_ms=1000), New(9, data=b"pair"))),
    )
    driver.advance(1000)
    return driver.batches


def replay(batches: Iterable[bytes], limits: Limits = LIMITS) -> StateMachine:
    """A machine that has applied these batches."""
    machine = StateMachine(limits)
    for index, batch in enumerate(batches, start=1):
        machine.apply(index, batch)
    return machine
