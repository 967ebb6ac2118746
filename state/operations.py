"""The operations, and the one declaration of how they are written.

On the wire an operation is a msgpack array: its code, then its fields in the order in which they
stand here. A field's annotation is its wire type; there is no other place that knows it. So the
codes, the order and the types below never change: a new need is a new code. Golden files in
`tests/state/golden/` pin the bytes.

A `target` is a session's id, or `(theme, key)`. An `epoch` is shown by an operator; a producer, who
operates nothing, leaves it out. `if_revision` makes the operation depend on the session being
unchanged. Times are milliseconds. Lower priorities come first.
"""

from dataclasses import dataclass, fields
from enum import IntEnum
from itertools import product
from types import NoneType, UnionType
from typing import ClassVar, Union, get_args, get_origin, get_type_hints

from state.limits import PRIORITY_DEFAULT

Target = int | tuple[int, bytes]


class OnConflict(IntEnum):
    """What New does when its key is held by another session."""

    REJECT = 0
    RETURN_EXISTING = 1
    BRING_FORWARD = 2


class Cause(IntEnum):
    """Why a session stopped being active. Kept in its history."""

    REQUESTED = 0  # its consumer asked for it
    FAILED = 1  # something went wrong on the way, or its consumer said so
    DISCONNECTED = 2  # its consumer left
    SHUTDOWN = 3  # its node is being shut down in good order: gives the attempt back
    STALE = 4  # no sign of life: the reaper's cause, and nobody else's
    PARKED = 5  # parked by hand


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that is asked of the state machine."""

    code: ClassVar[int]


@dataclass(frozen=True, slots=True)
class New(Operation):
    """Begin a session: active, or stored when `repeat_after_ms` is given. Answers `Created`."""

    code: ClassVar[int] = 1
    theme: int
    key: bytes | None = None
    data: bytes = b""
    priority: int = PRIORITY_DEFAULT
    repeat_after_ms: int | None = None
    on_conflict: int = OnConflict.REJECT
    consumer: bytes | None = None
    trace: bytes = b""  # for whoever follows the work through other systems; kept as it is


@dataclass(frozen=True, slots=True)
class Append(Operation):
    """Add a chunk at the end. Answers the new revision."""

    code: ClassVar[int] = 2
    target: Target
    epoch: int | None
    data: bytes
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Replace(Operation):
    """Put one chunk in place of all. Answers the new revision."""

    code: ClassVar[int] = 3
    target: Target
    epoch: int | None
    data: bytes
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Remove(Operation):
    """End a session; its key is free. Answers the last revision."""

    code: ClassVar[int] = 4
    target: Target
    epoch: int | None
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Store(Operation):
    """Let a session come back after a while. Answers `Stored`.

    Without `repeat_after_ms` the theme's policy decides when; an active session that is stored with
    the cause `SHUTDOWN` is due at once. Cause `STALE` is the reaper's Store, who shows the epoch
    that it found stale.
    """

    code: ClassVar[int] = 5
    target: Target
    epoch: int | None
    repeat_after_ms: int | None = None
    cause: int = Cause.REQUESTED
    reason: str = ""
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Acquire(Operation):
    """Operate up to `count` ready sessions of the themes. Answers a tuple of `Acquired`."""

    code: ClassVar[int] = 6
    themes: tuple[int, ...]
    count: int = 1
    consumer: bytes | None = None


@dataclass(frozen=True, slots=True)
class AcquireSession(Operation):
    """Operate one stored session, due or not. Answers `Acquired`."""

    code: ClassVar[int] = 7
    target: Target
    consumer: bytes | None = None
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Touch(Operation):
    """A sign of life; a consumer given here becomes the session's. Answers the revision."""

    code: ClassVar[int] = 8
    target: Target
    epoch: int | None
    consumer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Park(Operation):
    """Set an active session aside until somebody unparks or removes it. Answers the revision."""

    code: ClassVar[int] = 9
    target: Target
    epoch: int | None
    reason: str = ""
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Unpark(Operation):
    """Make a parked session due now, with no attempts counted. Answers `Stored`."""

    code: ClassVar[int] = 10
    target: Target
    if_revision: int | None = None


@dataclass(frozen=True, slots=True)
class SetPolicy(Operation):
    """Change some settings of a theme's policy, by name. Answers None."""

    code: ClassVar[int] = 11
    theme: int
    settings: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Pause(Operation):
    """Let Acquire hand out no session of the theme; AcquireSession still does. Answers None."""

    code: ClassVar[int] = 12
    theme: int


@dataclass(frozen=True, slots=True)
class Resume(Operation):
    """Let Acquire hand out sessions of the theme again. Answers None."""

    code: ClassVar[int] = 13
    theme: int


@dataclass(frozen=True, slots=True)
class Txn(Operation):
    """Do all of these or none. Answers `Done` with their results, or `TxnAborted`."""

    code: ClassVar[int] = 14
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Tick(Operation):
    """Move the clock, wake what is due. Answers the replicated time, which never goes back."""

    code: ClassVar[int] = 15
    now_ms: int


@dataclass(frozen=True, slots=True)
class Barrier(Operation):
    """A read's place in the log. Answers its log index."""

    code: ClassVar[int] = 16


@dataclass(frozen=True, slots=True)
class Heartbeat(Operation):
    """A sign of life of a consumer, for all its sessions. Answers how many it holds."""

    code: ClassVar[int] = 17
    consumer: bytes


@dataclass(frozen=True, slots=True)
class Idempotent(Operation):
    """Do an operation once: repeated under the same key it answers what it answered before.

    Only successes are remembered, for `expires_after_ms`; a failure changed nothing and may be
    tried again.

    `until_used` is 1 if whoever asks has not asked before. A New that begins an active session is
    then remembered only until that session's epoch is shown by an Append, Replace, Remove, Park or
    Store (other than to give it back): who can do that has had the answer, and asks no more. If it
    is asked for again before that, with 0, it is remembered for all of its time, because the first
    time may yet come.
    """

    code: ClassVar[int] = 18
    key: bytes
    expires_after_ms: int
    operation: Operation
    until_used: int = 0


@dataclass(frozen=True, slots=True)
class SetLimits(Operation):
    """Change some of the replicated limits, by name. Answers None."""

    code: ClassVar[int] = 19
    settings: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class ForgetProposer(Operation):
    """Drop the results of a node that is no member any more. Answers None.

    What it sent before is never applied again; started anew, with a higher incarnation, it may
    propose.
    """

    code: ClassVar[int] = 20
    proposer: str


@dataclass(frozen=True, slots=True)
class Release(Operation):
    """Store up to `count` of the sessions that a consumer holds, as it is gone.

    Each is stored as by its operator without `repeat_after_ms`, with the cause `FAILED`,
    `DISCONNECTED` or `SHUTDOWN`, but that is no sign of life. Answers how many it still holds.
    """

    code: ClassVar[int] = 21
    consumer: bytes
    count: int
    cause: int = Cause.DISCONNECTED
    reason: str = ""


OPERATIONS: tuple[type[Operation], ...] = (
    New,
    Append,
    Replace,
    Remove,
    Store,
    Acquire,
    AcquireSession,
    Touch,
    Park,
    Unpark,
    SetPolicy,
    Pause,
    Resume,
    Txn,
    Tick,
    Barrier,
    Heartbeat,
    Idempotent,
    SetLimits,
    ForgetProposer,
    Release,
)
OPERATION_BY_CODE = {operation.code: operation for operation in OPERATIONS}


def field_names(operation: type[Operation]) -> tuple[str, ...]:
    """The fields of an operation in the order of the wire."""
    return tuple(one.name for one in fields(operation))


def shapes(operation: type[Operation]) -> tuple[tuple[type, ...], ...]:
    """All tuples of types that a decoded operation may have, its code's included.

    Only the outermost types: what is inside a tuple is the handler's to check.
    """
    hints = get_type_hints(operation)
    wire_types = [_wire_types(hints[name]) for name in field_names(operation)]
    return tuple((int, *combination) for combination in product(*wire_types))


def _wire_types(hint: object) -> tuple[type, ...]:
    if get_origin(hint) in (UnionType, Union):
        return tuple(one for member in get_args(hint) for one in _wire_types(member))
    if get_origin(hint) is tuple or hint is Operation:
        return (tuple,)
    if hint in (int, str, bytes, NoneType) and isinstance(hint, type):
        return (hint,)
    raise TypeError(f"{hint} has no form on the wire")
