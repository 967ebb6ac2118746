"""Leases: who is stale is found in time, never early, and at the cost of what is found."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import Cause, Created, Operation, Phase, StateMachine, Stored, encode, encode_batch
from state.errors import LeaseLost, NotStale
from state.leases import BUCKET_MS
from state.operations import (
    Acquire,
    Append,
    Heartbeat,
    New,
    Park,
    Release,
    Remove,
    Replace,
    SetLimits,
    SetPolicy,
    Store,
    Tick,
    Touch,
    Txn,
)
from state.policy import Policy
from state.records import ANSWERS, CHECK, CONSUMER, META, WINDOW
from tests.state.disk import Disk
from tests.state.workload import Machine

MANY = 100_000
ALL = 10**9
LEASE_MS = 30_000  # the default


def filled(count: int, **settings: Any) -> Machine:
    """A machine with `count` sessions of theme 1."""
    machine = Machine()
    new = encode(New(1, **settings))
    for start in range(0, count, 4_000):
        machine.sequence += 1
        operations = [new] * min(4_000, count - start)
        batch = encode_batch("node", 1, machine.sequence, 1, operations)
        machine.state.apply(machine.state.applied_index + 1, batch)
    assert machine.state.session_count == count
    # The window of results is as large with few sessions as with many.
    for _ in range(40):
        machine.do()
    return machine


class Work:
    """What was done: lines of Python that ran, and calls of C functions."""

    lines = 0
    calls = 0


@contextmanager
def counted() -> Iterator[Work]:
    """Count work instead of time."""
    work = Work()

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        work.lines += event == "line"
        return trace

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        work.calls += event in {"call", "c_call"}

    before = sys.gettrace(), sys.getprofile()
    gc.disable()  # who hears of a collection would be counted
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        yield work
    finally:
        sys.setprofile(before[1])
        sys.settrace(before[0])
        gc.enable()


def work_of(action: Callable[[], object]) -> tuple[int, int]:
    action()  # what happens only once is not counted
    with counted() as work:
        action()
    assert work.lines > 0
    assert work.calls > 0
    return work.lines, work.calls


def calendar_size(machine: StateMachine) -> int:
    """All that the calendar holds. Private: that nothing piles up has no public face."""
    calendar = machine._tables.leases  # noqa: SLF001
    buckets = calendar._buckets  # noqa: SLF001
    entries = sum(map(len, buckets.values()))
    return entries + len(buckets) + len(calendar._numbers) + len(calendar._overdue)  # noqa: SLF001


def tick(machine: Machine) -> None:
    machine.do(Tick(machine.state.now_ms + 100))


def stale_ids(machine: Machine) -> list[int]:
    return sorted(session_id for session_id, _ in machine.state.stale(ALL))


def reap(machine: Machine, count: int = ALL) -> tuple[Any, ...]:
    found = machine.state.stale(count)
    return machine.do(*(Store(one, epoch, cause=Cause.STALE) for one, epoch in found))


# What it costs


def test_a_heartbeat_changes_the_consumer_and_nothing_else() -> None:
    machine = filled(MANY, consumer=b"c")
    machine.do(Tick(1_000))
    Disk().write_capture(machine.state.capture_changes())
    assert machine.state.change_count == 0
    assert machine.do(Heartbeat(b"c")) == (MANY,)
    disk = Disk()
    disk.torn = True  # it did not begin with everything
    disk.write_capture(machine.state.capture_changes())
    kinds = {one.kind for one in disk.written}
    assert kinds == {META, CONSUMER, WINDOW, ANSWERS, CHECK}
    assert sum(one.kind == CONSUMER for one in disk.written) == 1
    assert len(disk.written) <= 6  # one answer of the proposer came, and one went


def test_a_heartbeat_costs_the_same_for_few_sessions_as_for_many() -> None:
    def beat(machine: Machine) -> None:
        tick(machine)
        assert machine.do(Heartbeat(b"c")) == (machine.state.session_count,)

    costs = [work_of(partial(beat, filled(count, consumer=b"c"))) for count in (10, 20_000)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    "settings",
    [{"repeat_after_ms": 60_000}, {"consumer": b"c"}, {}],
    ids=["sleeping", "of one consumer", "active alone"],
)
def test_keeping_time_costs_the_same_for_few_sessions_as_for_many(
    settings: dict[str, Any],
) -> None:
    ticks = []
    questions = []
    for count in (1_000, MANY):
        machine = filled(count, **settings)
        ticks.append(work_of(partial(tick, machine)))
        questions.append(work_of(partial(machine.state.stale, 100)))
        assert not stale_ids(machine)
    assert ticks[0] == ticks[1]
    assert questions[0] == questions[1]


def test_finding_a_page_costs_the_same_for_few_as_for_many() -> None:
    costs = []
    for count in (1_000, 20_000):
        machine = filled(count, consumer=b"c")
        machine.do(Tick(LEASE_MS + BUCKET_MS))
        costs.append(work_of(partial(machine.state.stale, 100)))
        assert len(machine.state.stale(100)) == 100
    assert costs[0] == costs[1]


# In time, never early


@pytest.mark.parametrize("lease_ms", [100, 127, 128, 129, 1_000, 30_000])
@pytest.mark.parametrize("consumer", [None, b"c"], ids=["alone", "with a consumer"])
@pytest.mark.parametrize("start_ms", [0, 1, 127, 128, 1_000_000_007])
def test_found_within_a_bucket_after_the_lease(
    lease_ms: int, consumer: bytes | None, start_ms: int
) -> None:
    machine = Machine()
    machine.do(Tick(start_ms), SetPolicy(1, (("lease_ms", lease_ms),)), New(1, consumer=consumer))
    deadline_ms = start_ms + lease_ms
    session = machine.state.session(1)
    assert session is not None
    assert session.deadline_ms == deadline_ms
    found_ms = None
    for now_ms in range(max(start_ms, deadline_ms - 3), deadline_ms + BUCKET_MS + 1):
        machine.do(Tick(now_ms))
        if stale_ids(machine):
            found_ms = now_ms
            break
    assert found_ms is not None
    assert deadline_ms <= found_ms <= deadline_ms + BUCKET_MS
    assert machine.state.stale(ALL) == [(1, 1)]


def test_the_reaper_may_store_from_the_deadline_on() -> None:
    # The calendar is late by up to a bucket; what decides is exact.
    machine = Machine()
    machine.do(New(1), New(1, consumer=b"c"))
    reapers = [Store(one, 1, cause=Cause.STALE) for one in (1, 2)]
    early = machine.do(Tick(LEASE_MS - 1), *reapers)
    assert early[1:] == (NotStale(1, LEASE_MS), NotStale(2, LEASE_MS))
    assert machine.do(Tick(LEASE_MS), *reapers)[1:] == (
        Stored(1, 2, _due_ms(machine, 1), parked=False),
        Stored(2, 2, _due_ms(machine, 2), parked=False),
    )
    assert not stale_ids(machine)
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert not stale_ids(machine)


def _due_ms(machine: Machine, session_id: int) -> int:
    session = machine.state.session(session_id)
    assert session is not None
    return session.due_ms


@dataclass
class Watched:
    """What a dumb reader of the rules knows of an active session."""

    consumer: bytes | None
    lease_ms: int
    progress_ms: int
    touched_ms: int


@dataclass
class Model:
    """Who is stale, by looking at everything."""

    sessions: dict[int, Watched] = field(default_factory=dict)
    seen: dict[bytes, int] = field(default_factory=dict)

    def see(self, consumer: bytes | None, now_ms: int) -> None:
        if consumer is not None:
            self.seen[consumer] = now_ms

    def stale(self, now_ms: int) -> set[int]:
        return {one for one, watched in self.sessions.items() if self._end_ms(watched) <= now_ms}

    def _end_ms(self, watched: Watched) -> int:
        sign_ms = watched.touched_ms
        if watched.consumer is not None:
            sign_ms = max(sign_ms, self.seen[watched.consumer])
        end_ms = sign_ms + watched.lease_ms
        if watched.progress_ms:
            return min(end_ms, watched.touched_ms + watched.progress_ms)
        return end_ms


POLICIES = {1: (100, 0), 2: (300, 0), 3: (2_000, 250), 4: (1_000, 1_000), 5: (300, 700)}
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            (
                *("new", "new", "tick", "tick", "tick", "beat", "touch", "append", "rebind"),
                *("remove", "store", "reap", "failed"),
            )
        ),
        st.integers(0, 400),
    ),
    max_size=80,
)


@given(actions=ACTIONS)
def test_stale_are_those_whose_time_is_over(actions: list[tuple[str, int]]) -> None:
    machine, model = Machine(), Model()
    names = (None, b"a", b"b", b"c")
    for theme, (lease_ms, progress_ms) in POLICIES.items():
        settings = (("lease_ms", lease_ms), ("progress_ms", progress_ms))
        machine.do(SetPolicy(theme, settings))
    now_ms = 0
    for action, number in actions:
        ids = sorted(model.sessions)
        target = ids[number % len(ids)] if ids else 0
        watched = model.sessions.get(target)
        name = names[number % len(names)]
        if action == "new":
            theme = number % len(POLICIES) + 1
            (created,) = machine.do(New(theme, consumer=name))
            assert isinstance(created, Created)
            model.see(name, now_ms)
            model.sessions[created.session_id] = Watched(name, *POLICIES[theme], now_ms)
        elif action == "tick":
            now_ms += number
            machine.do(Tick(now_ms))
            found = set(stale_ids(machine))
            assert found <= model.stale(now_ms)
            assert found >= model.stale(now_ms - BUCKET_MS)
            assert set(machine.state.stale(2)) <= set(machine.state.stale(ALL))
        elif action == "beat":
            holds = sum(one.consumer == name for one in model.sessions.values())
            if name is not None:
                assert machine.do(Heartbeat(name)) == (holds,)
                model.see(name, now_ms)
        elif action == "reap":
            for result in reap(machine):
                if isinstance(result, Stored):
                    del model.sessions[result.session_id]
                else:
                    assert isinstance(result, LeaseLost)  # named twice
        elif watched is not None:
            _act_on(machine, model, action, target, name)
    everyone = now_ms + 2_000 + BUCKET_MS
    machine.do(Tick(everyone))
    assert set(stale_ids(machine)) == set(model.sessions)


def _act_on(machine: Machine, model: Model, action: str, target: int, name: bytes | None) -> None:
    watched = model.sessions[target]
    now_ms = machine.state.now_ms
    epoch = 1
    operations: dict[str, Operation] = {
        "touch": Touch(target, epoch),
        "append": Append(target, epoch, b""),
        "rebind": Touch(target, epoch, name),
        "remove": Remove(target, epoch),
        "store": Store(target, epoch, 10**6),
    }
    if action == "failed":
        # No trace, in the calendar neither.
        failing = (*operations.values(), Remove(10**9, None))
        machine.do(*(Txn((one, Remove(10**9, None))) for one in failing))
        return
    machine.do(operations[action])
    if action == "rebind" and name is not None:
        watched.consumer = name
        model.see(name, now_ms)
    watched.touched_ms = now_ms
    if action in {"remove", "store"}:
        del model.sessions[target]


# Signs of life


def test_each_stays_alive_by_its_own_operations() -> None:
    machine = Machine()
    machine.do(*(New(1) for _ in range(4)))
    for step in range(1, 5):
        machine.do(Tick(step * (LEASE_MS - 1)), Append(1, 1, b""), Replace(2, 1, b""), Touch(3, 1))
        assert stale_ids(machine) == ([] if step == 1 else [4])


@pytest.mark.parametrize(
    "operation",
    [
        Touch(1, 1, b"c"),
        New(1, consumer=b"c"),
        Acquire((9,), 1, b"c"),
        Heartbeat(b"c"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_consumer_is_alive_that_asks_for_anything_under_its_name(operation: Operation) -> None:
    machine = Machine()
    machine.do(*(New(1, consumer=b"c") for _ in range(3)), New(1, consumer=b"other"))
    machine.do(Tick(LEASE_MS - 1), operation)
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert stale_ids(machine) == [4]
    machine.do(Tick(2 * LEASE_MS + BUCKET_MS))
    assert {2, 3, 4} <= set(stale_ids(machine))


@pytest.mark.parametrize("operation", [Append(1, 1, b"x"), Replace(1, 1, b"x"), Touch(1, 1)])
def test_what_somebody_goes_on_with_keeps_nothing_else_of_a_silent_consumer(
    operation: Operation,
) -> None:
    machine = Machine()
    machine.do(*(New(1, consumer=b"c") for _ in range(3)))
    for step in range(1, 6):
        machine.do(Tick(step * (LEASE_MS - 1)), operation)
        assert stale_ids(machine) == ([] if step == 1 else [2, 3])
        assert set(machine.state.stale(1)) <= {(2, 1), (3, 1)}
    reap(machine)
    machine.do(Tick(6 * (LEASE_MS - 1)), Heartbeat(b"c"))
    assert not stale_ids(machine)
    machine.do(Tick(7 * LEASE_MS + 2 * BUCKET_MS))
    assert stale_ids(machine) == [1]


def test_a_transaction_that_fails_delays_nothing_that_a_silent_consumer_holds() -> None:
    machine = Machine()
    machine.do(New(1, consumer=b"c"))
    machine.do(Tick(LEASE_MS - 1), Append(1, 1, b"x"))
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert not stale_ids(machine)
    machine.do(Txn((Append(1, 1, b"x"), Remove(99, None))))
    machine.do(Tick(2 * LEASE_MS - 1 + BUCKET_MS))
    assert stale_ids(machine) == [1]


def test_nor_what_it_was_put_off_for_if_its_consumer_was_seen_once_more() -> None:
    machine = Machine()
    machine.do(New(1, consumer=b"c"))
    machine.do(Tick(LEASE_MS - 1), Append(1, 1, b"x"))
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert not stale_ids(machine)  # from here on it is watched by itself, and its group put off
    machine.do(Tick(LEASE_MS + 2 * BUCKET_MS), Heartbeat(b"c"))
    machine.do(Tick(2 * LEASE_MS + 3 * BUCKET_MS))
    assert stale_ids(machine) == [1]
    machine.do(Txn((Append(1, 1, b"x"), Remove(99, None))))
    tick(machine)
    tick(machine)
    assert stale_ids(machine) == [1]


def test_a_release_is_no_sign_of_life() -> None:
    machine = Machine()
    machine.do(*(New(1, consumer=b"c") for _ in range(3)))
    assert machine.do(Tick(LEASE_MS - 1), Release(b"c", 1)) == (LEASE_MS - 1, 2)
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert stale_ids(machine) == [2, 3]
    assert machine.do(Release(b"c", 9)) == (0,)
    assert not stale_ids(machine)


def test_a_lease_is_that_of_the_policy_when_it_became_active() -> None:
    machine = Machine()
    machine.do(New(1), SetPolicy(1, (("lease_ms", 1_000),)), New(1))
    machine.do(Tick(1_000 + BUCKET_MS))
    assert stale_ids(machine) == [2]
    machine.do(SetPolicy(1, (("lease_ms", 86_400_000),)))
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert stale_ids(machine) == [1, 2]


def test_a_consumer_may_have_sessions_of_several_leases() -> None:
    machine = Machine()
    machine.do(New(1, consumer=b"c"), SetPolicy(2, (("lease_ms", 1_000),)), New(2, consumer=b"c"))
    machine.do(Tick(1_000 + BUCKET_MS))
    assert stale_ids(machine) == [2]
    assert machine.do(Heartbeat(b"c")) == (2,)
    assert not stale_ids(machine)
    machine.do(Tick(1_000 + LEASE_MS + 2 * BUCKET_MS))
    assert stale_ids(machine) == [1, 2]


def test_progress_is_asked_of_who_has_a_living_consumer_too() -> None:
    machine = Machine()
    machine.do(SetPolicy(1, (("progress_ms", 1_000),)))
    machine.do(*(New(1, consumer=b"c") for _ in range(4)))
    for now_ms in range(100, 1_001, 100):
        machine.do(Tick(now_ms), Heartbeat(b"c"))
        assert not stale_ids(machine) or now_ms == 1_000
        if now_ms == 500:
            machine.do(Append(2, 1, b"x"), Replace(3, 1, b"x"), Touch(4, 1))
    machine.do(Tick(1_000 + BUCKET_MS), Heartbeat(b"c"))
    assert stale_ids(machine) == [1]
    assert all(isinstance(one, Stored) for one in reap(machine))
    machine.do(Tick(1_500 + BUCKET_MS), Heartbeat(b"c"))
    assert stale_ids(machine) == [2, 3, 4]


def test_a_session_goes_with_its_new_consumer() -> None:
    machine = Machine()
    machine.do(New(1, consumer=b"old"), New(1, consumer=b"old"), New(1))
    machine.do(Tick(100), Touch(1, 1, b"new"), Touch(3, 1, b"new"))
    assert machine.do(Heartbeat(b"old"), Heartbeat(b"new")) == (1, 2)
    machine.do(Tick(LEASE_MS), Heartbeat(b"new"))
    machine.do(Tick(LEASE_MS + 100 + BUCKET_MS))
    assert stale_ids(machine) == [2]
    machine.do(Tick(2 * LEASE_MS), Heartbeat(b"old"), Touch(1, 1, b"old"), Remove(3, 1))
    machine.do(Tick(2 * LEASE_MS + BUCKET_MS))
    assert not stale_ids(machine)
    assert machine.do(Heartbeat(b"old"), Heartbeat(b"new")) == (2, 0)


def test_a_touch_without_a_consumer_leaves_it() -> None:
    machine = Machine()
    machine.do(New(1, consumer=b"c"), Touch(1, 1))
    assert machine.do(Heartbeat(b"c")) == (1,)


def test_who_left_is_not_found() -> None:
    machine = Machine()
    machine.do(*(New(1, consumer=name) for name in (None, b"c") for _ in range(4)))
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert stale_ids(machine) == [1, 2, 3, 4, 5, 6, 7, 8]
    # Overdue, but the reaper was not there yet: they may leave by themselves, or live on.
    machine.do(Remove(1, 1), Store(2, 1), Park(3, 1), Touch(4, 1), Remove(5, 1), Heartbeat(b"c"))
    assert not stale_ids(machine)
    machine.do(Tick(2 * LEASE_MS + 2 * BUCKET_MS))
    assert stale_ids(machine) == [4, 6, 7, 8]


def test_the_reaper_is_refused_if_the_consumer_was_heard_of_since() -> None:
    machine = Machine()
    machine.do(New(1), New(1, consumer=b"c"), New(1, consumer=b"d"))
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    found = machine.state.stale(ALL)
    assert sorted(found) == [(1, 1), (2, 1), (3, 1)]
    deadline_ms = machine.state.now_ms + LEASE_MS
    machine.do(Touch(1, 1), Heartbeat(b"c"), Remove(3, 1))
    before = {one.session_id: (one.phase, one.revision) for one in machine.state.sessions()}
    results = machine.do(*(Store(one, 1, cause=Cause.STALE) for one in (1, 2)))
    assert results == (NotStale(1, deadline_ms), NotStale(2, deadline_ms))
    after = {one.session_id: (one.phase, one.revision) for one in machine.state.sessions()}
    assert after == before == {1: (Phase.ACTIVE, 1), 2: (Phase.ACTIVE, 1)}
    assert not stale_ids(machine)
    machine.do(Tick(deadline_ms + BUCKET_MS))
    assert stale_ids(machine) == [1, 2]


# In pages


@pytest.mark.parametrize(
    ("count", "consumer"), [(20_000, None), (MANY, b"c")], ids=["alone", "with a consumer"]
)
def test_many_are_stored_page_by_page(count: int, consumer: bytes | None) -> None:
    machine = filled(count, consumer=consumer)
    for step in range(count // 4_096 + 2):  # one Tick looks at a page of the calendar
        machine.do(Tick(LEASE_MS + BUCKET_MS + step))
    stored = 0
    while found := machine.state.stale(4_000):
        assert len(found) == len(set(found)) == min(4_000, count - stored)
        results = machine.do(*(Store(one, epoch, 10**6, Cause.STALE) for one, epoch in found))
        assert all(isinstance(one, Stored) for one in results)
        stored += len(found)
    assert stored == count
    assert all(one.phase is Phase.STORED for one in machine.state.sessions())
    assert calendar_size(machine.state) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_a_page_is_never_larger_and_never_empty_while_one_is_stale(count: int) -> None:
    machine = Machine()
    names = (None, b"a", b"b", None, b"c", b"c", b"c", None, b"a")
    machine.do(*(New(1, consumer=name) for name in names))
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    left = len(names)
    while left:
        found = machine.state.stale(count)
        assert 0 < len(found) <= count
        reap(machine, count)
        left -= len(found)
    assert machine.state.stale(count) == []
    assert {one.phase for one in machine.state.sessions()} == {Phase.STORED}


def test_no_session_is_named_twice() -> None:
    # It is overdue by itself, for its progress, and with its consumer.
    machine = Machine()
    machine.do(SetPolicy(1, (("progress_ms", 1_000),)), New(1, consumer=b"c"))
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert machine.state.stale(ALL) == [(1, 1)]


def test_more_than_a_tick_looks_at_are_found_by_asking() -> None:
    machine = filled(20_000)
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert len(stale_ids(machine)) == 20_000


# Nothing piles up


def test_the_calendar_is_empty_when_all_have_left() -> None:
    machine = Machine()
    machine.do(SetPolicy(1, (("progress_ms", 500),)))
    machine.do(
        *(New(theme, consumer=name) for theme in (1, 2) for name in (None, b"a", b"b")),
    )
    assert calendar_size(machine.state) > 0
    for one in list(machine.state.sessions()):
        machine.do(Remove(one.session_id, 1))
    machine.do(Tick(LEASE_MS + BUCKET_MS))
    assert calendar_size(machine.state) == 0


def test_what_leaves_before_its_time_leaves_nothing() -> None:
    machine = Machine()
    for number in range(1, 500):
        machine.do(Tick(number * BUCKET_MS), New(1))
        assert calendar_size(machine.state) > 0
        machine.do(Remove(number, 1))
        assert calendar_size(machine.state) == 0


@pytest.mark.parametrize("same", [True, False], ids=["one name", "new names"])
def test_consumers_that_come_and_go_leave_nothing(same: bool) -> None:
    machine = Machine()
    lease_ms = 1_000
    machine.do(SetPolicy(1, (("lease_ms", lease_ms), ("progress_ms", 700))))
    machine.do(SetPolicy(2, (("lease_ms", 2 * lease_ms),)))
    sizes = []
    for number in range(1, 2_000):
        name = b"c" if same else b"c%d" % number
        machine.do(Tick(number * 10), New(1, consumer=name), New(2, consumer=name))
        machine.do(Remove(2 * number - 1, 1), Remove(2 * number, 1))
        sizes.append(calendar_size(machine.state))
    # Not more than one lease's worth of entries, however long it goes on.
    assert max(sizes) < 400
    assert max(sizes[1_000:]) <= max(sizes[:1_000]) + 8
    machine.do(Tick(10**6))
    assert calendar_size(machine.state) == 0


@pytest.mark.parametrize("asked", [True, False], ids=["leader", "follower"])
def test_consumers_that_vanish_leave_nothing(asked: bool) -> None:
    # Followers apply the reaper's Stores, and never ask who is stale.
    machine = Machine()
    for number in range(1, 500):
        machine.do(New(1, consumer=b"c%d" % number))
        machine.do(Tick(machine.state.now_ms + LEASE_MS + BUCKET_MS))
        if asked:
            assert machine.state.stale(10) == [(number, 1)]
        (stored,) = machine.do(Store(number, 1, 10**8, cause=Cause.STALE))
        assert isinstance(stored, Stored)
    machine.do(Tick(machine.state.now_ms + LEASE_MS + BUCKET_MS))
    machine.do(Tick(machine.state.now_ms + LEASE_MS + BUCKET_MS))
    assert calendar_size(machine.state) <= 10


def test_heartbeats_leave_one_entry() -> None:
    machine = Machine()
    machine.do(*(New(1, consumer=b"c") for _ in range(100)))
    for number in range(1, 2_000):
        machine.do(Tick(number * 100), Heartbeat(b"c"))
        assert calendar_size(machine.state) <= 4
    assert not stale_ids(machine)


def test_a_consumer_that_is_late_is_watched_on_a_node_that_is_not_asked() -> None:
    # A follower that becomes the leader finds who has lapsed while nobody asked it.
    machine = Machine()
    machine.do(New(1, consumer=b"c"), New(1))
    for number in range(1, 6):
        machine.do(Tick(number * 2 * LEASE_MS), Heartbeat(b"c"), Touch(2, 1))
    assert not stale_ids(machine)
    machine.do(Tick(machine.state.now_ms + LEASE_MS + BUCKET_MS))
    assert stale_ids(machine) == [1, 2]


def test_a_tick_looks_at_no_more_than_a_page_of_leases() -> None:
    machine = Machine()
    machine.do(SetLimits((("tick_page", 2),)), *(New(1) for _ in range(5)))
    calendar = machine.state._tables.leases  # noqa: SLF001 - what was looked at shows nowhere else
    late_ms = machine.state.now_ms + 10 * Policy().lease_ms
    looked_at = []
    for _ in range(4):
        machine.do(Tick(late_ms))
        looked_at.append(len(calendar._overdue))  # noqa: SLF001
    assert looked_at == [2, 4, 5, 5]
