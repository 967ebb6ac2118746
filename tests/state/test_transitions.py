"""Every phase, every operation, every caller: what the table says, and nothing else.

What is expected comes from `TRANSITIONS`. An attempt with rows must end in the target of one of
them; an attempt without is answered by the failure that is right for its caller and leaves
everything as it was. In the end each row of the table must have been seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from state import (
    TRANSITIONS,
    Acquired,
    Act,
    Actor,
    Cause,
    Created,
    Failure,
    OnConflict,
    Operation,
    Phase,
    Session,
    Stored,
    Transition,
)
from state.errors import (
    KeyConflict,
    LeaseLost,
    Malformed,
    NotStale,
    SessionNotFound,
    StaleTerm,
    WrongPhase,
)
from state.operations import (
    OPERATIONS,
    Acquire,
    AcquireSession,
    Append,
    New,
    Park,
    Release,
    Remove,
    Replace,
    SetPolicy,
    Store,
    Target,
    Tick,
    Touch,
    Unpark,
    field_names,
)
from state.transitions import RULES, ImpossibleMoveError, permitted
from tests.state.driver import Driver, contents

THEME, KEY = 7, b"key"
NEVER_GIVEN_OUT = 99
DELAY_MS = 60_000  # of sessions that are stored but not due
MAX_ATTEMPTS = 5
LEASE_MS = 30_000
TERM = 4
GONE_EPOCH = 2  # the highest of the sessions with a key that are gone
NOTHING, STORED, READY, ACTIVE, PARKED = Phase
OPERATOR, PRODUCER, CLUSTER = Actor


@dataclass(frozen=True, slots=True)
class Scene:
    """A machine with one session in some phase, epochs and attempts behind it, or with none."""

    driver: Driver
    session_id: int

    @property
    def session(self) -> Session | None:
        return self.driver.machine.session(self.session_id)

    @property
    def phase(self) -> Phase:
        return NOTHING if self.session is None else self.session.phase

    @property
    def epoch(self) -> int:
        """The newest epoch; of no session, one that could be."""
        return 1 if self.session is None else self.session.epoch


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody asks for something. `prepare` makes the state it needs and leaves the phase."""

    act: Act
    actor: Actor
    by: str
    ask: Callable[[Scene], Operation]
    prepare: Callable[[Scene], object] = lambda _: None
    condition: str = ""  # only rows with this in `when` speak for the attempt
    heard: bool = True  # False: the caller is refused whatever the table says
    term: int = TERM
    failure: Callable[[Scene, Operation], Failure] | None = None  # in place of the usual one

    def rows(self, phase: Phase) -> tuple[Transition, ...]:
        return tuple(
            row
            for row in TRANSITIONS
            if (row.source, row.act, row.actor) == (phase, self.act, self.actor)
            and self.condition in row.when
            and self.heard
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What operations change of a session."""

    phase: Phase
    epoch: int
    attempts: int
    revision: int
    due_ms: int
    updated_ms: int
    touched_ms: int
    chunks: tuple[bytes, ...]
    causes: tuple[int, ...]

    @classmethod
    def of(cls, session: Session) -> "Snapshot":
        return cls(
            session.phase,
            session.epoch,
            session.attempts,
            session.revision,
            session.due_ms,
            session.updated_ms,
            session.touched_ms,
            tuple(session.chunks),
            tuple(entry.cause for entry in session.history for _ in range(entry.times)),
        )


def scene(phase: Phase) -> Scene:
    """A session in this phase: of epoch 2, so that there is an older one, and not new."""
    driver = Driver(term=TERM)
    driver.tick(1_000_000)
    driver.succeed(SetPolicy(THEME, (("max_attempts", MAX_ATTEMPTS), ("lease_ms", LEASE_MS))))
    session_id = driver.new(THEME, key=KEY, data=b"one")
    driver.succeed(Store(session_id, 1, DELAY_MS, Cause.FAILED))
    driver.advance(DELAY_MS)
    driver.succeed(AcquireSession(session_id))
    driver.advance(10)
    match phase:
        case Phase.NOTHING:
            driver.succeed(Remove(session_id, 2))
        case Phase.STORED:
            driver.succeed(Store(session_id, 2, DELAY_MS))
        case Phase.READY:
            driver.succeed(Store(session_id, 2, 0))
        case Phase.ACTIVE:
            pass
        case Phase.PARKED:
            driver.succeed(Park(session_id, 2))
    driver.advance(10)
    made = Scene(driver, session_id)
    assert made.phase is phase
    return made


# Callers and their attempts

OperatorAsk = Callable[[Target, int | None], Operation]


def _operator_asks() -> dict[Act, dict[str, OperatorAsk]]:
    """All operations that carry an epoch, in their variants."""
    return {
        Act.APPEND: {
            "data": lambda target, epoch: Append(target, epoch, b"more"),
            "nothing": lambda target, epoch: Append(target, epoch, b""),
        },
        Act.REPLACE: {
            "data": lambda target, epoch: Replace(target, epoch, b"other"),
            "nothing": lambda target, epoch: Replace(target, epoch, b""),
        },
        Act.REMOVE: {"": Remove},
        Act.STORE: {
            "later": lambda target, epoch: Store(target, epoch, DELAY_MS),
            "now": lambda target, epoch: Store(target, epoch, 0),
            "by policy": Store,
            "failed": lambda target, epoch: Store(target, epoch, DELAY_MS, Cause.FAILED, "why"),
            "shutdown": lambda target, epoch: Store(target, epoch, DELAY_MS, Cause.SHUTDOWN),
        },
        Act.TOUCH: {
            "": Touch,
            "consumer": lambda target, epoch: Touch(target, epoch, b"consumer"),
        },
        Act.PARK: {"": Park},
    }


def _old_epoch(scene: Scene) -> int:
    return scene.epoch - 1


def _newest_epoch(scene: Scene) -> int:
    return scene.epoch


def _coming_epoch(scene: Scene) -> int:
    return scene.epoch + 1


def _spend_attempts(scene: Scene) -> None:
    """Bring an active session to its last attempt."""
    while scene.session is not None and scene.session.attempts < MAX_ATTEMPTS:
        scene.driver.succeed(Store(scene.session_id, scene.epoch, 0))
        scene.driver.succeed(AcquireSession(scene.session_id))
    scene.driver.advance(10)


def _let_lease_end(scene: Scene) -> None:
    if scene.session is not None and scene.phase is ACTIVE:
        scene.driver.tick(scene.session.deadline_ms)


def _spend_attempts_and_lease(scene: Scene) -> None:
    if scene.phase is ACTIVE:
        _spend_attempts(scene)
        _let_lease_end(scene)


def _by_id(scene: Scene) -> Target:
    return scene.session_id


def _by_key(_: Scene) -> Target:
    return THEME, KEY


def _operators() -> list[Attempt]:
    attempts = []
    for act, variants in _operator_asks().items():
        for variant, make in variants.items():
            for form, target in (("id", _by_id), ("key", _by_key)):
                for whose, epoch in (
                    ("old", _old_epoch),
                    ("newest", _newest_epoch),
                    ("coming", _coming_epoch),
                ):

                    def ask(
                        scene: Scene,
                        make: OperatorAsk = make,
                        target: Callable[[Scene], Target] = target,
                        epoch: Callable[[Scene], int] = epoch,
                    ) -> Operation:
                        return make(target(scene), epoch(scene))

                    heard = whose == "newest"
                    by = f"operator of {whose} epoch by {form} {variant}".rstrip()
                    attempts.append(Attempt(act, OPERATOR, by, ask, heard=heard))
                    if heard:
                        by += ", last attempt"
                        attempts.append(Attempt(act, OPERATOR, by, ask, _spend_attempts_if_active))

                def ask_without(
                    scene: Scene,
                    make: OperatorAsk = make,
                    target: Callable[[Scene], Target] = target,
                ) -> Operation:
                    return make(target(scene), None)

                by = f"producer by {form} {variant}".rstrip()
                attempts.append(Attempt(act, PRODUCER, by, ask_without))
    return attempts


def _spend_attempts_if_active(scene: Scene) -> None:
    if scene.phase is ACTIVE:
        _spend_attempts(scene)


def _conflict(scene: Scene, _: Operation) -> Failure:
    return KeyConflict(scene.session_id, scene.phase.name.lower())


def _producers() -> list[Attempt]:
    def new(by: str, condition: str, **fields: Any) -> Attempt:
        def ask(_: Scene) -> Operation:
            return New(THEME, KEY, **fields)

        return Attempt(Act.NEW, PRODUCER, by, ask, condition=condition, failure=_conflict)

    attempts: list[Attempt] = []
    for choice in OnConflict:
        name = choice.name.lower()
        for by, repeat_after_ms, free in (
            ("active", None, "no repeat_after"),
            ("now", 0, "repeat_after is 0"),
            ("later", DELAY_MS, "repeat_after given"),
        ):
            fields = {"on_conflict": choice, "repeat_after_ms": repeat_after_ms}
            # Which condition speaks depends on whether the key is held; the two never meet.
            attempts.extend(
                (
                    new(f"free key, {by}, {name}", free, data=b"data", **fields),
                    new(f"held key, {by}, {name}", name, data=b"data", **fields),
                    new(f"held key, {by}, {name}, no data", name, **fields),
                )
            )
    for form, target in (("id", _by_id), ("key", _by_key)):

        def acquire(scene: Scene, target: Callable[[Scene], Target] = target) -> Operation:
            return AcquireSession(target(scene))

        def unpark(scene: Scene, target: Callable[[Scene], Target] = target) -> Operation:
            return Unpark(target(scene))

        attempts.append(Attempt(Act.ACQUIRE_SESSION, PRODUCER, f"producer by {form}", acquire))
        attempts.append(Attempt(Act.UNPARK, PRODUCER, f"producer by {form}", unpark))
    attempts.append(Attempt(Act.ACQUIRE, PRODUCER, "producer", lambda _: Acquire((THEME,), 9)))
    return attempts


def _stale_term(_: Scene, __: Operation) -> Failure:
    return StaleTerm(TERM - 1, TERM)


def _not_stale(scene: Scene, operation: Operation) -> Failure:
    if scene.session is not None and scene.phase is ACTIVE:
        return NotStale(scene.session_id, scene.session.deadline_ms)
    return usual_failure(Act.REAP, scene, operation)


def _cluster() -> list[Attempt]:
    def reap(
        by: str,
        repeat_after_ms: int | None,
        epoch: Callable[[Scene], int],
        **fields: Any,
    ) -> Attempt:
        def ask(scene: Scene) -> Operation:
            return Store(scene.session_id, epoch(scene), repeat_after_ms, Cause.STALE)

        return Attempt(Act.REAP, CLUSTER, by, ask, **{"prepare": _let_lease_end, **fields})

    def tick(by: str, by_ms: int) -> Attempt:
        def ask(scene: Scene) -> Operation:
            return Tick(scene.driver.machine.now_ms + by_ms)

        return Attempt(Act.TICK, CLUSTER, by, ask)

    def almost_let_lease_end(scene: Scene) -> None:
        if scene.session is not None and scene.phase is ACTIVE:
            scene.driver.tick(scene.session.deadline_ms - 1)

    old_term = {"heard": False, "term": TERM - 1, "failure": _stale_term}
    alive = {"heard": False, "failure": _not_stale}
    return [
        reap("reaper", DELAY_MS, _newest_epoch),
        reap("reaper by policy", None, _newest_epoch),
        reap("reaper, at once", 0, _newest_epoch),
        reap("reaper, last attempt", 0, _newest_epoch, prepare=_spend_attempts_and_lease),
        reap("reaper of a newer term", 0, _newest_epoch, term=TERM + 1),
        reap("reaper with an old epoch", 0, _old_epoch, heard=False),
        reap("reaper with a coming epoch", 0, _coming_epoch, heard=False),
        reap("reaper of an old term", 0, _newest_epoch, **old_term),
        reap("reaper, not stale", 0, _newest_epoch, prepare=lambda _: None, **alive),
        reap("reaper, almost stale", 0, _newest_epoch, prepare=almost_let_lease_end, **alive),
        tick("clock, due", DELAY_MS),
        tick("clock, a moment before it is due", DELAY_MS - 10 - 1),
        tick("clock, no time passed", 0),
    ]


ATTEMPTS = (*_operators(), *_producers(), *_cluster())


def usual_failure(act: Act, scene: Scene, operation: Operation) -> Failure:
    """What answers an attempt that has no row."""
    session = scene.session
    if session is None:
        return SessionNotFound()
    epoch = getattr(operation, "epoch", None)
    if epoch is not None:
        return LeaseLost(scene.session_id, epoch, session.epoch)
    return WrongPhase(scene.session_id, session.phase.name.lower(), act.value)


def concerns_nobody(phase: Phase, attempt: Attempt) -> bool:
    """Whether the attempt is heard without being about the session, so that it cannot fail.

    An Acquire that finds no session whose turn it is answers none, and the clock goes on.
    """
    everybody = attempt.act in (Act.ACQUIRE, Act.TICK)
    return everybody and phase not in permitted(attempt.act, attempt.actor)


@dataclass(frozen=True, slots=True)
class Observed:
    before: Snapshot | None
    after: Snapshot | None
    operation: Operation
    answer: object
    session_id: int  # the one that was there, or the one that came
    now_ms: int
    failure: Failure | None  # what would be right for an attempt without rows
    changed: bool  # anything at all


@cache
def observe(phase: Phase, attempt: Attempt) -> Observed:
    """Make the attempt on a session in this phase."""
    stage = scene(phase)
    attempt.prepare(stage)
    assert stage.phase is phase, "the preparation moved the session"
    driver = stage.driver
    operation = attempt.ask(stage)
    failure = (attempt.failure or usual_failure_of(attempt))(stage, operation)
    before = None if stage.session is None else Snapshot.of(stage.session)
    held = contents(driver.machine)
    answer = driver.do(operation, term=attempt.term)
    if isinstance(answer, Created) and phase is NOTHING:
        stage = Scene(driver, answer.session_id)
    after = None if stage.session is None else Snapshot.of(stage.session)
    return Observed(
        before,
        after,
        operation,
        answer,
        stage.session_id,
        driver.machine.now_ms,
        failure,
        changed=contents(driver.machine) != held,
    )


def usual_failure_of(attempt: Attempt) -> Callable[[Scene, Operation], Failure]:
    return lambda scene, operation: usual_failure(attempt.act, scene, operation)


def applies(phase: Phase, attempt: Attempt) -> bool:
    """New by a free key is for the phase NOTHING, by a held key for the others."""
    return attempt.act is not Act.NEW or attempt.by.startswith("free") == (phase is NOTHING)


MATRIX = [
    pytest.param(phase, attempt, id=f"{phase.name.lower()}-{attempt.act}-{attempt.by}")
    for phase in Phase
    for attempt in ATTEMPTS
    if applies(phase, attempt)
]


@pytest.mark.parametrize(("phase", "attempt"), MATRIX)
def test_each_attempt_ends_as_the_table_says(phase: Phase, attempt: Attempt) -> None:
    rows = attempt.rows(phase)
    seen = observe(phase, attempt)
    reached = NOTHING if seen.after is None else seen.after.phase
    if rows:
        assert not isinstance(seen.answer, Failure)
        # Until a session is due, the clock passes it by.
        waits = {phase} if attempt.act is Act.TICK else set()
        assert reached in {row.target for row in rows} | waits
    elif concerns_nobody(phase, attempt):
        assert not isinstance(seen.answer, Failure)
        assert seen.answer in ((), seen.now_ms)
        assert seen.after == seen.before
    else:
        assert seen.answer == seen.failure
        assert seen.after == seen.before
        assert not seen.changed


def test_each_row_of_the_table_is_reached() -> None:
    rows = {
        row
        for phase in Phase
        for attempt in ATTEMPTS
        if applies(phase, attempt)
        for row in attempt.rows(phase)
        for after in (observe(phase, attempt).after,)
        if row.target is (NOTHING if after is None else after.phase)
    }
    assert [row for row in TRANSITIONS if row not in rows] == []


def test_the_matrix_tries_every_act_by_everybody_who_can_ask_for_it() -> None:
    tried = {(attempt.act, attempt.actor) for attempt in ATTEMPTS}
    assert tried >= {(row.act, row.actor) for row in TRANSITIONS}
    assert {act for act, _ in tried} == set(Act)


# The effects of what is done (design, section 2)


def done(act: Act, *, by: str = "") -> list[Any]:
    """All attempts at an act that have a row, with their phases."""
    return [
        pytest.param(phase, attempt, id=f"{phase.name.lower()}-{attempt.act}-{attempt.by}")
        for phase in Phase
        for attempt in ATTEMPTS
        if attempt.act is act and applies(phase, attempt) and by in attempt.by
        if attempt.rows(phase)
    ]


def look(phase: Phase, attempt: Attempt) -> tuple[Observed, Snapshot, Snapshot]:
    """An attempt that leaves a session which was there before."""
    seen = observe(phase, attempt)
    assert seen.before is not None
    assert seen.after is not None
    return seen, seen.before, seen.after


@pytest.mark.parametrize(("phase", "attempt"), done(Act.NEW, by="free key"))
def test_new_begins_a_session(phase: Phase, attempt: Attempt) -> None:
    seen = observe(phase, attempt)
    after = seen.after
    assert after is not None
    assert isinstance(seen.operation, New)
    active = after.phase is ACTIVE
    begun = after.epoch - GONE_EPOCH, after.attempts
    assert begun == ((1, 1) if active else (0, 0))
    assert after.revision == 1
    assert after.chunks == (b"data",)
    assert after.due_ms == seen.now_ms + (seen.operation.repeat_after_ms or 0)
    assert after.causes == ()
    epoch = after.epoch if active else 0
    assert seen.answer == Created(seen.session_id, epoch, 1, created=True)


@pytest.mark.parametrize(("phase", "attempt"), done(Act.NEW, by="held key"))
def test_new_with_a_held_key_starts_no_attempt(phase: Phase, attempt: Attempt) -> None:
    seen, before, after = look(phase, attempt)
    operation = seen.operation
    assert isinstance(operation, New)
    assert (after.epoch, after.attempts, after.causes) == (
        before.epoch,
        before.attempts,
        before.causes,
    )
    if operation.on_conflict == OnConflict.RETURN_EXISTING:
        assert after == before
        assert not seen.changed
    else:
        assert after.revision == before.revision + 1
        # If it was due already, it keeps its turn.
        assert after.due_ms == min(before.due_ms, seen.now_ms)
        assert after.chunks == before.chunks + ((operation.data,) if operation.data else ())
    assert seen.answer == Created(seen.session_id, 0, after.revision, created=False)


@pytest.mark.parametrize(("phase", "attempt"), [*done(Act.ACQUIRE), *done(Act.ACQUIRE_SESSION)])
def test_acquire_begins_an_epoch_and_an_attempt(phase: Phase, attempt: Attempt) -> None:
    seen, before, after = look(phase, attempt)
    assert after.epoch == before.epoch + 1
    assert after.attempts == before.attempts + 1
    assert after.revision == before.revision + 1
    assert after.touched_ms == seen.now_ms
    assert (after.chunks, after.causes) == (before.chunks, before.causes)
    acquired = Acquired(seen.session_id, after.epoch, after.revision)
    assert seen.answer == ((acquired,) if attempt.act is Act.ACQUIRE else acquired)


@pytest.mark.parametrize(("phase", "attempt"), [*done(Act.APPEND), *done(Act.REPLACE)])
def test_changing_data_is_a_revision_and_a_sign_of_life(phase: Phase, attempt: Attempt) -> None:
    seen, before, after = look(phase, attempt)
    operation = seen.operation
    assert isinstance(operation, Append | Replace)
    added = (operation.data,) if operation.data else ()
    assert after.chunks == (before.chunks + added if attempt.act is Act.APPEND else added)
    assert after.revision == before.revision + 1
    assert after.updated_ms == seen.now_ms
    assert after.touched_ms == (seen.now_ms if phase is ACTIVE else before.touched_ms)
    assert (after.epoch, after.attempts, after.due_ms, after.causes) == (
        before.epoch,
        before.attempts,
        before.due_ms,
        before.causes,
    )
    assert seen.answer == after.revision


@pytest.mark.parametrize(("phase", "attempt"), done(Act.TOUCH))
def test_touch_renews_the_lease_and_nothing_else(phase: Phase, attempt: Attempt) -> None:
    seen, before, after = look(phase, attempt)
    assert after.touched_ms == seen.now_ms > before.touched_ms
    assert seen.changed
    assert seen.answer == after.revision == before.revision
    assert (after.epoch, after.attempts, after.updated_ms, after.chunks) == (
        before.epoch,
        before.attempts,
        before.updated_ms,
        before.chunks,
    )


@pytest.mark.parametrize(("phase", "attempt"), [*done(Act.STORE), *done(Act.REAP)])
def test_store_gives_a_due_time(phase: Phase, attempt: Attempt) -> None:
    seen, before, after = look(phase, attempt)
    operation = seen.operation
    assert isinstance(operation, Store)
    assert after.revision == before.revision + 1
    assert after.epoch == before.epoch
    assert after.chunks == before.chunks
    assert (after.phase is STORED) == (after.due_ms > seen.now_ms)
    if after.phase is PARKED or operation.repeat_after_ms is not None:
        delay_ms = 0 if after.phase is PARKED else operation.repeat_after_ms
        assert after.due_ms == seen.now_ms + (delay_ms or 0)
    else:
        assert after.due_ms > seen.now_ms
    parked = after.phase is PARKED
    assert seen.answer == Stored(seen.session_id, after.revision, after.due_ms, parked)
    if phase is not ACTIVE:  # rescheduled
        assert (after.attempts, after.causes) == (before.attempts, before.causes)
        return
    assert after.causes == (*before.causes, operation.cause)
    shutdown = operation.cause == Cause.SHUTDOWN
    assert after.attempts == before.attempts - (1 if shutdown else 0)
    assert parked == (before.attempts == MAX_ATTEMPTS and not shutdown)


RELEASE_CAUSES = (Cause.FAILED, Cause.DISCONNECTED, Cause.SHUTDOWN)


@pytest.mark.parametrize("last_attempt", [False, True])
@pytest.mark.parametrize("cause", RELEASE_CAUSES)
def test_release_stores_as_the_operator_would(cause: Cause, last_attempt: bool) -> None:
    released, stored = scene(ACTIVE), scene(ACTIVE)
    for stage in (released, stored):
        if last_attempt:
            _spend_attempts(stage)
        stage.driver.succeed(Touch(stage.session_id, stage.epoch, b"consumer"))
    assert released.driver.do(Release(b"consumer", 1, cause, "gone")) == 0
    stored.driver.succeed(Store(stored.session_id, stored.epoch, None, cause, "gone"))
    assert contents(released.driver.machine) == contents(stored.driver.machine)
    assert (released.phase is PARKED) == (last_attempt and cause is not Cause.SHUTDOWN)


@pytest.mark.parametrize(
    "leave",
    [
        Remove(1, 2),
        Store(1, 2, DELAY_MS),
        Store(1, 2, 0),
        Park(1, 2),
        Touch(1, 2, b"another"),
    ],
    ids=repr,
)
def test_release_leaves_alone_what_its_consumer_holds_no_more(leave: Operation) -> None:
    stage = scene(ACTIVE)
    driver = stage.driver
    driver.succeed(Touch(stage.session_id, stage.epoch, b"consumer"))
    driver.new(THEME, consumer=b"consumer")
    driver.succeed(leave)
    before = None if stage.session is None else Snapshot.of(stage.session)
    driver.advance(10)
    assert driver.do(Release(b"consumer", 9)) == 0
    assert before == (None if stage.session is None else Snapshot.of(stage.session))
    held = contents(driver.machine)
    assert driver.do(Release(b"consumer", 9)) == 0
    assert contents(driver.machine) == held


@pytest.mark.parametrize("cause", [*(set(Cause) - set(RELEASE_CAUSES)), -1, len(Cause)])
def test_release_has_no_other_cause(cause: int) -> None:
    stage = scene(ACTIVE)
    stage.driver.succeed(Touch(stage.session_id, stage.epoch, b"consumer"))
    held = contents(stage.driver.machine)
    assert isinstance(stage.driver.do(Release(b"consumer", 1, cause)), Malformed)
    assert contents(stage.driver.machine) == held


@pytest.mark.parametrize(("phase", "attempt"), done(Act.PARK))
def test_park_keeps_the_session_with_its_causes(phase: Phase, attempt: Attempt) -> None:
    seen, before, after = look(phase, attempt)
    assert after.causes == (*before.causes, Cause.PARKED)
    assert (after.epoch, after.attempts, after.chunks) == (
        before.epoch,
        before.attempts,
        before.chunks,
    )
    assert seen.answer == after.revision == before.revision + 1


@pytest.mark.parametrize(("phase", "attempt"), done(Act.UNPARK))
def test_unpark_forgives_all_attempts(phase: Phase, attempt: Attempt) -> None:
    seen, before, after = look(phase, attempt)
    assert after.attempts == 0
    assert after.due_ms == seen.now_ms
    assert after.revision == before.revision + 1
    assert (after.epoch, after.causes) == (before.epoch, before.causes)
    assert seen.answer == Stored(seen.session_id, after.revision, after.due_ms, parked=False)


@pytest.mark.parametrize(("phase", "attempt"), done(Act.REMOVE))
def test_remove_frees_the_key(phase: Phase, attempt: Attempt) -> None:
    stage = scene(phase)
    driver = stage.driver
    assert isinstance(driver.do(New(THEME, KEY)), KeyConflict)
    session = stage.session
    assert session is not None
    revision = session.revision
    assert driver.do(attempt.ask(stage)) == revision
    assert stage.phase is NOTHING
    assert driver.machine.session((THEME, KEY)) is None
    assert driver.new(THEME, key=KEY) != stage.session_id


@pytest.mark.parametrize("phase", [STORED, READY, ACTIVE, PARKED])
def test_a_key_stays_held_until_remove(phase: Phase) -> None:
    stage = scene(phase)
    answer = stage.driver.do(New(THEME, KEY))
    assert answer == KeyConflict(stage.session_id, phase.name.lower())


def test_the_reaper_shows_the_epoch_that_it_found() -> None:
    stage = scene(ACTIVE)
    _let_lease_end(stage)
    held = contents(stage.driver.machine)
    assert isinstance(stage.driver.do(Store(stage.session_id, None, 0, Cause.STALE)), Malformed)
    assert contents(stage.driver.machine) == held


# The table itself


def test_every_row_of_an_operator_begins_active() -> None:
    """The machine relies on it: an epoch is only compared while the session is active."""
    assert {row.source for row in TRANSITIONS if row.actor is OPERATOR} == {ACTIVE}
    assert {row.source for row in TRANSITIONS if row.act is Act.REAP} == {ACTIVE}


def test_whoever_may_show_an_epoch_has_a_row() -> None:
    """For the same reason: what carries an epoch is done while the session is active."""
    carrying = {one.__name__ for one in OPERATIONS if "epoch" in field_names(one)}
    assert {row.act.value for row in TRANSITIONS if row.actor is OPERATOR} == carrying


def test_no_row_stands_there_twice() -> None:
    assert len(set(TRANSITIONS)) == len(TRANSITIONS)


def test_where_a_row_has_siblings_their_conditions_differ() -> None:
    conditions = [(row.source, row.act, row.actor, row.when) for row in TRANSITIONS]
    assert len(set(conditions)) == len(conditions)


def test_every_phase_and_every_act_has_a_row() -> None:
    assert {row.source for row in TRANSITIONS} == set(Phase)
    assert {row.target for row in TRANSITIONS} == set(Phase)
    assert {row.act for row in TRANSITIONS} == set(Act)


@pytest.mark.parametrize("act", Act)
@pytest.mark.parametrize("actor", Actor)
def test_permitted_names_the_sources_of_the_rows(act: Act, actor: Actor) -> None:
    rows = [row for row in TRANSITIONS if (row.act, row.actor) == (act, actor)]
    assert permitted(act, actor) == {row.source for row in rows}


@pytest.mark.parametrize("act", Act)
def test_a_rule_lets_exactly_the_rows_pass(act: Act) -> None:
    moves = {(row.source, row.target) for row in TRANSITIONS if row.act is act}
    # What is due may have to wait for its page of a Tick.
    moves |= {(source, STORED) for source, target in moves if target is READY}
    for source in Phase:
        for target in Phase:
            if (source, target) in moves:
                RULES[act].check(source, target)
            else:
                with pytest.raises(ImpossibleMoveError, match=act.value):
                    RULES[act].check(source, target)


def test_from_every_phase_the_end_can_be_reached() -> None:
    reaches = {NOTHING}
    while more := {row.source for row in TRANSITIONS if row.target in reaches} - reaches:
        reaches |= more
    assert reaches == set(Phase)
