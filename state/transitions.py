"""The life of a session as one table. Everything that may change a phase is a row of it.

The machine asks the table before it acts (`Rule.by_producer`, `Rule.by_holder`) and once more as it
moves a session (`Rule.check`); the diagram in the docs and the exhaustive test are made from the
same rows. A pair of phase and operation that has no row is refused as `wrong_phase` and changes
nothing.

Three kinds of caller act on a session. An *operator* shows its epoch, and is heard only while that
is the session's newest. A *producer* shows none: it prepares, cancels or rescues sessions that
nobody operates. The *cluster* is the clock and the reaper. An operator that is not heard gets
`lease_lost` whatever the phase, because that is what it has to know.

A Release stores, in the place of their operators, the sessions of a consumer that is gone: for each
it is the operator's Store, and has no rows of its own.
"""

from enum import IntEnum, StrEnum
from typing import NamedTuple


class Phase(IntEnum):
    """Where a session is in its life. The numbers are written to checkpoints."""

    NOTHING = 0
    STORED = 1
    READY = 2  # stored, and due: the same record, other index; written as STORED
    ACTIVE = 3
    PARKED = 4


class Actor(StrEnum):
    """Who asks."""

    OPERATOR = "operator"
    PRODUCER = "producer"
    CLUSTER = "cluster"


class Act(StrEnum):
    """What is asked of one session."""

    NEW = "New"
    APPEND = "Append"
    REPLACE = "Replace"
    REMOVE = "Remove"
    STORE = "Store"
    ACQUIRE = "Acquire"
    ACQUIRE_SESSION = "AcquireSession"
    TOUCH = "Touch"
    PARK = "Park"
    UNPARK = "Unpark"
    REAP = "Reap"  # the reaper's Store, cause `stale`
    TICK = "Tick"


NOTHING, STORED, READY, ACTIVE, PARKED = Phase


class Transition(NamedTuple):
    """One row: in phase `source`, `act` by `actor` leads to `target` `when` a condition holds."""

    source: Phase
    act: Act
    actor: Actor
    target: Phase
    when: str = ""


_OPERATOR, _PRODUCER, _CLUSTER = Actor.OPERATOR, Actor.PRODUCER, Actor.CLUSTER

TRANSITIONS: tuple[Transition, ...] = (
    Transition(NOTHING, Act.NEW, _PRODUCER, ACTIVE, "no repeat_after"),
    Transition(NOTHING, Act.NEW, _PRODUCER, STORED, "repeat_after given"),
    Transition(NOTHING, Act.NEW, _PRODUCER, READY, "repeat_after is 0"),
    # A held key turns New into something else, if its caller said so.
    Transition(STORED, Act.NEW, _PRODUCER, STORED, "on_conflict=return_existing"),
    Transition(STORED, Act.NEW, _PRODUCER, READY, "on_conflict=bring_forward"),
    Transition(READY, Act.NEW, _PRODUCER, READY, "on_conflict=return_existing or bring_forward"),
    Transition(ACTIVE, Act.NEW, _PRODUCER, ACTIVE, "on_conflict=return_existing"),
    Transition(PARKED, Act.NEW, _PRODUCER, PARKED, "on_conflict=return_existing"),
    Transition(STORED, Act.TICK, _CLUSTER, READY, "due"),
    Transition(READY, Act.ACQUIRE, _PRODUCER, ACTIVE, "its turn in the theme"),
    Transition(STORED, Act.ACQUIRE_SESSION, _PRODUCER, ACTIVE),
    Transition(READY, Act.ACQUIRE_SESSION, _PRODUCER, ACTIVE),
    Transition(ACTIVE, Act.APPEND, _OPERATOR, ACTIVE),
    Transition(ACTIVE, Act.REPLACE, _OPERATOR, ACTIVE),
    Transition(ACTIVE, Act.TOUCH, _OPERATOR, ACTIVE),
    Transition(ACTIVE, Act.REMOVE, _OPERATOR, NOTHING),
    Transition(ACTIVE, Act.STORE, _OPERATOR, STORED),
    Transition(ACTIVE, Act.STORE, _OPERATOR, READY, "due at once"),
    Transition(ACTIVE, Act.STORE, _OPERATOR, PARKED, "attempts have reached max_attempts"),
    Transition(ACTIVE, Act.PARK, _OPERATOR, PARKED),
    Transition(ACTIVE, Act.REAP, _CLUSTER, STORED, "stale"),
    Transition(ACTIVE, Act.REAP, _CLUSTER, READY, "stale, due at once"),
    Transition(ACTIVE, Act.REAP, _CLUSTER, PARKED, "stale, attempts have reached max_attempts"),
    Transition(STORED, Act.APPEND, _PRODUCER, STORED),
    Transition(STORED, Act.REPLACE, _PRODUCER, STORED),
    Transition(STORED, Act.REMOVE, _PRODUCER, NOTHING),
    Transition(STORED, Act.STORE, _PRODUCER, STORED, "new due time"),
    Transition(STORED, Act.STORE, _PRODUCER, READY, "due at once"),
    Transition(READY, Act.APPEND, _PRODUCER, READY),
    Transition(READY, Act.REPLACE, _PRODUCER, READY),
    Transition(READY, Act.REMOVE, _PRODUCER, NOTHING),
    Transition(READY, Act.STORE, _PRODUCER, READY, "due at once"),
    Transition(READY, Act.STORE, _PRODUCER, STORED, "new due time"),
    Transition(PARKED, Act.UNPARK, _PRODUCER, READY, "due now, attempts 0"),
    Transition(PARKED, Act.REMOVE, _PRODUCER, NOTHING),
)


def permitted(act: Act, actor: Actor) -> frozenset[Phase]:
    """The phases in which `actor` may do `act`; empty if it never may."""
    return frozenset(row.source for row in TRANSITIONS if (row.act, row.actor) == (act, actor))


class ImpossibleMoveError(RuntimeError):
    """A defect of the machine: it was about to move a session along a row that does not exist."""


class Rule:
    """The rows of one act, laid out so that asking costs an index and not a hash."""

    __slots__ = ("_targets", "act", "by_holder", "by_producer")

    def __init__(self, act: Act) -> None:
        self.act = act
        # By phase: whether it may be done by who shows no epoch, and by who shows the newest.
        producer = permitted(act, Actor.PRODUCER)
        holder = permitted(act, Actor.OPERATOR) | permitted(act, Actor.CLUSTER)
        self.by_producer = tuple(phase in producer for phase in Phase)
        self.by_holder = tuple(phase in holder for phase in Phase)
        moves = {(row.source, row.target) for row in TRANSITIONS if row.act is act}
        # A session whose due time has come may still wait for its page of a Tick: what the table
        # calls READY is for the moment STORED, and the next Tick is certain.
        moves |= {(source, STORED) for source, target in moves if target is READY}
        self._targets = tuple(tuple((one, other) in moves for other in Phase) for one in Phase)

    def allows(self, source: Phase, target: Phase) -> bool:
        """Whether the table has this move."""
        return self._targets[source][target]

    def check(self, source: Phase, target: Phase) -> None:
        """Raise `ImpossibleMoveError` unless the table has this move."""
        if not self._targets[source][target]:
            raise ImpossibleMoveError(f"{self.act} from {source.name} to {target.name}")


RULES = {act: Rule(act) for act in Act}
