"""What an operation answers when it was not done.

One small tree of values:

    Failure                    code                    outcome      retryable
    ├── UnsupportedVersion     unsupported_version     not_applied  no
    ├── Malformed              malformed               not_applied  no
    ├── SequenceExpired        sequence_expired        unknown      no
    ├── IncarnationSuperseded  incarnation_superseded  unknown      no
    ├── UnknownOperation       unknown_operation       not_applied  no
    ├── LimitExceeded          limit_exceeded          not_applied  by limit
    ├── OutOfRange             out_of_range            not_applied  no
    ├── StaleTerm              stale_term              not_applied  no
    ├── SessionNotFound        session_not_found       not_applied  no
    ├── LeaseLost              lease_lost              not_applied  no
    ├── WrongPhase             wrong_phase             not_applied  no
    ├── RevisionMismatch       revision_mismatch       not_applied  no
    ├── NotStale               not_stale               not_applied  no
    ├── KeyConflict            key_conflict            not_applied  no
    ├── IdempotencyMismatch    idempotency_mismatch    not_applied  no
    └── TxnAborted             txn_aborted             not_applied  as its cause

They are values and not exceptions, because they are results: kept in windows, written to
checkpoints, compared between nodes. Inside the machine the exception `Refused` carries one to the
place where results are made. *Retryable* says that the same request may succeed later with nothing
changed by its sender.
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar

# What fills up and empties again: the same request may pass later.
RECEDING_LIMITS = frozenset(
    {"consumers", "max_active", "max_sessions", "receipts", "state_bytes", "themes"}
)


class Outcome(StrEnum):
    """What became of an operation that was answered with a failure."""

    NOT_APPLIED = "not_applied"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an operation, or a whole batch, was not done."""

    code: ClassVar[str]
    outcome: ClassVar[Outcome] = Outcome.NOT_APPLIED

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return False


@dataclass(frozen=True, slots=True)
class UnsupportedVersion(Failure):
    """The batch is of a format that this version does not read. Nothing of it was applied."""

    code: ClassVar[str] = "unsupported_version"
    version: int
    supported: int

    def __str__(self) -> str:
        return f"batch format {self.version} is not supported, only {self.supported} is"


@dataclass(frozen=True, slots=True)
class Malformed(Failure):
    """Bytes or a value that no correct sender produces."""

    code: ClassVar[str] = "malformed"
    problem: str

    def __str__(self) -> str:
        return self.problem


@dataclass(frozen=True, slots=True)
class SequenceExpired(Failure):
    """The batch is older than the window of results: it may or may not have been applied."""

    code: ClassVar[str] = "sequence_expired"
    outcome: ClassVar[Outcome] = Outcome.UNKNOWN
    sequence: int
    floor: int

    def __str__(self) -> str:
        return f"sequence {self.sequence} is not above {self.floor}, where the window begins"


@dataclass(frozen=True, slots=True)
class IncarnationSuperseded(Failure):
    """The proposer has started again since: the batch may or may not have been applied."""

    code: ClassVar[str] = "incarnation_superseded"
    outcome: ClassVar[Outcome] = Outcome.UNKNOWN
    incarnation: int
    current: int

    def __str__(self) -> str:
        return f"incarnation {self.incarnation} was superseded by {self.current}"


@dataclass(frozen=True, slots=True)
class UnknownOperation(Failure):
    """An operation of a newer version, or none at all."""

    code: ClassVar[str] = "unknown_operation"
    operation: int

    def __str__(self) -> str:
        return f"operation code {self.operation} is not known"


@dataclass(frozen=True, slots=True)
class LimitExceeded(Failure):
    """A bound of `limits` or of a theme's policy was passed."""

    code: ClassVar[str] = "limit_exceeded"
    limit: str
    value: int
    bound: int

    @property
    def retryable(self) -> bool:
        return self.limit in RECEDING_LIMITS

    def __str__(self) -> str:
        return f"{self.value} is beyond the bound of {self.limit}, {self.bound}"


@dataclass(frozen=True, slots=True)
class OutOfRange(Failure):
    """A limit or a theme's policy was to be set to what it cannot be."""

    code: ClassVar[str] = "out_of_range"
    setting: str
    value: int
    minimum: int
    maximum: int

    def __str__(self) -> str:
        return f"{self.setting} is between {self.minimum} and {self.maximum}, not {self.value}"


@dataclass(frozen=True, slots=True)
class StaleTerm(Failure):
    """A leader that has been replaced moved the clock or reaped."""

    code: ClassVar[str] = "stale_term"
    term: int
    current: int

    def __str__(self) -> str:
        return f"term {self.term} is over, {self.current} is current"


@dataclass(frozen=True, slots=True)
class SessionNotFound(Failure):
    """No session has this id, or holds this key in its theme."""

    code: ClassVar[str] = "session_not_found"

    def __str__(self) -> str:
        return "no such session"


@dataclass(frozen=True, slots=True)
class LeaseLost(Failure):
    """The epoch shown is not that of an active session: somebody else has it, or nobody."""

    code: ClassVar[str] = "lease_lost"
    session_id: int
    epoch: int
    current_epoch: int

    def __str__(self) -> str:
        return f"epoch {self.epoch} does not hold the session; its newest is {self.current_epoch}"


@dataclass(frozen=True, slots=True)
class WrongPhase(Failure):
    """The transition table has no row for this operation in the session's phase."""

    code: ClassVar[str] = "wrong_phase"
    session_id: int
    phase: str
    operation: str

    def __str__(self) -> str:
        return f"{self.operation} is not possible while the session is {self.phase}"


@dataclass(frozen=True, slots=True)
class RevisionMismatch(Failure):
    """The session has changed since its reader read it."""

    code: ClassVar[str] = "revision_mismatch"
    session_id: int
    revision: int
    current: int

    def __str__(self) -> str:
        return f"revision is {self.current}, not {self.revision}"


@dataclass(frozen=True, slots=True)
class NotStale(Failure):
    """The reaper was wrong: the session had a sign of life in time."""

    code: ClassVar[str] = "not_stale"
    session_id: int
    deadline_ms: int

    def __str__(self) -> str:
        return f"the session is alive until {self.deadline_ms} ms"


@dataclass(frozen=True, slots=True)
class KeyConflict(Failure):
    """The key is held by another session of the theme."""

    code: ClassVar[str] = "key_conflict"
    holder_id: int
    phase: str

    def __str__(self) -> str:
        return f"the key is held by a session that is {self.phase}"


@dataclass(frozen=True, slots=True)
class IdempotencyMismatch(Failure):
    """The idempotency key was used before, for another operation."""

    code: ClassVar[str] = "idempotency_mismatch"

    def __str__(self) -> str:
        return "the idempotency key was used for a different operation"


@dataclass(frozen=True, slots=True)
class TxnAborted(Failure):
    """One operation of a transaction failed, so none was done."""

    code: ClassVar[str] = "txn_aborted"
    position: int
    cause: Failure

    @property
    def retryable(self) -> bool:
        return self.cause.retryable

    def __str__(self) -> str:
        return f"operation {self.position} of the transaction failed: {self.cause}"


FAILURES: tuple[type[Failure], ...] = (
    UnsupportedVersion,
    Malformed,
    SequenceExpired,
    IncarnationSuperseded,
    UnknownOperation,
    LimitExceeded,
    OutOfRange,
    StaleTerm,
    SessionNotFound,
    LeaseLost,
    WrongPhase,
    RevisionMismatch,
    NotStale,
    KeyConflict,
    IdempotencyMismatch,
    TxnAborted,
)
FAILURE_BY_CODE = {failure.code: failure for failure in FAILURES}
FAILURE_FIELDS = {failure: tuple(one.name for one in fields(failure)) for failure in FAILURES}


class Refused(Exception):
    """Carries a `Failure` from where it was found to where results are made."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class DamagedStateError(Exception):
    """Pieces of a state that do not form a state. Nothing may be served from them."""
