"""Digests are equal exactly when states are, and cost what changed."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from state import Cause, Failure, Item, Operation, Session, StateMachine, encode, encode_batch, load
from state.errors import SessionNotFound
from state.limits import LIMIT_RANGES
from state.operations import (
    Acquire,
    AcquireSession,
    Append,
    Barrier,
    ForgetProposer,
    Heartbeat,
    Idempotent,
    New,
    Park,
    Pause,
    Remove,
    Replace,
    Resume,
    SetLimits,
    SetPolicy,
    Store,
    Tick,
    Touch,
    Txn,
    Unpark,
)
from state.policy import POLICY_RANGES, Policy
from state.records import ANSWERS, CHECK, META, WINDOW, Answers, Consumer, Receipt, Theme, Window
from tests.state.workload import Machine, Workload, whole

SEEDS = st.integers(0, 2**32 - 1)

# 1 active with a consumer, 2 stored, 3 parked, 4 ready, 5 active without
BEGINNING: tuple[Operation, ...] = (
    Tick(1_000),
    New(1, b"key", b"one", consumer=b"c"),
    New(1, data=b"two", repeat_after_ms=60_000),
    New(2, data=b"three"),
    New(1, data=b"four", repeat_after_ms=0),
    New(2, data=b"five"),
    Park(3, 1, "a reason"),
    Idempotent(b"request", 60_000, Barrier()),
    Idempotent(b"request", 60_000, New(3, b"once")),
)


def state_items(machine: StateMachine) -> dict[tuple[int, Any], Item]:
    """The state, but for the window of results and where in the log it is."""
    items = state_and_windows(machine)
    return {key: item for key, item in items.items() if item.kind not in {WINDOW, ANSWERS}}


def state_and_windows(machine: StateMachine) -> dict[tuple[int, Any], Item]:
    """The state, but for where in the log it is."""
    items = {(item.kind, item.identity): item for item in whole(machine) if item.kind != CHECK}
    meta = items[META, 0]
    assert meta.fields is not None
    items[META, 0] = meta._replace(fields=(meta.fields[0], *meta.fields[2:]))
    return items


def prepared() -> Machine:
    machine = Machine()
    machine.do(*BEGINNING)
    return machine


def numbered(operations: tuple[Operation, ...]) -> list[str]:
    """Names for tests."""
    return [f"{number} {type(one).__name__}" for number, one in enumerate(operations)]


# What is visible is in the digest


CHANGING: tuple[Operation, ...] = (
    New(1),
    New(99, repeat_after_ms=5),
    Append(1, 1, b"x"),
    Append(2, None, b""),
    Replace(1, 1, b"one"),
    Replace(5, 1, b"evif"),
    Remove(1, 1),
    Remove(3, None),
    Store(1, 1, 10),
    Store(2, None, 10),
    Store(5, 1, 10, Cause.FAILED),
    Acquire((1,)),
    Acquire((1,), 1, b"c"),
    AcquireSession(2),
    Touch(1, 1, b"other"),
    Touch(5, 1, b"c"),
    Park(5, 1, "another reason"),
    Unpark(3),
    SetPolicy(1, (("lease_ms", 31_000),)),
    SetPolicy(99, (("lease_ms", 31_000),)),
    Pause(1),
    Pause(99),
    Txn((Append(1, 1, b"x"), Append(5, 1, b"y"))),
    Tick(1_001),
    Idempotent(b"another", 60_000, New(1, b"key", on_conflict=1)),
    SetLimits((("themes", 1_000),)),
    Acquire((1, 2), 7, b"new"),
)


@pytest.mark.parametrize("operation", CHANGING, ids=numbered(CHANGING))
def test_each_change_changes_it(operation: Operation) -> None:
    machine, twin = prepared(), prepared()
    assert machine.state.digest() == twin.state.digest()
    before = state_items(machine.state)
    assert not any(isinstance(one, Failure) for one in machine.do(operation))
    assert state_items(machine.state) != before
    assert digest_without_results(machine) != digest_without_results(twin)
    assert machine.state.digest() == load(whole(machine.state)).digest()


def digest_without_results(machine: Machine) -> int:
    """The digest after the results were dropped, with which the machine is of no more use."""
    machine.forget()
    return machine.state.digest()


def test_a_heartbeat_changes_it() -> None:
    machine = prepared()
    machine.do(Tick(2_000))
    before = machine.state.digest()
    twin = machine.reloaded()
    assert machine.do(Heartbeat(b"c")) == (1,)
    assert twin.do(Heartbeat(b"d")) == (0,)
    assert digest_without_results(machine) != digest_without_results(twin)
    assert machine.state.digest() != before


def test_resume_and_default_policy_take_it_back() -> None:
    machine, twin = prepared(), prepared()
    machine.do(Pause(1), Resume(1), SetPolicy(1, (("lease_ms", 1_000),)), Pause(99), Resume(99))
    machine.do(SetPolicy(1, (("lease_ms", Policy().lease_ms),)))
    assert digest_without_results(machine) == digest_without_results(twin)


def test_the_same_state_by_other_ways_has_the_same_digest() -> None:
    one, other = Machine(), Machine()
    one.do(Tick(5), New(1, b"a", b"x"), New(2, b"b", b"y"), Append(1, 1, b"z"))
    other.do(Tick(1), Tick(4))
    other.do(Pause(1), Tick(5), New(1, b"a", b"x"))
    other.do(New(2, b"b", b"y"), Txn((New(3), Remove(9, 9))), Resume(1), Append((1, b"a"), 1, b"z"))
    assert digest_without_results(one) == digest_without_results(other)
    assert state_items(one.state) == state_items(other.state)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((b"ab",), (b"a", b"b")),
        ((b"a", b"b"), (b"b", b"a")),
        ((b"a",), (b"b",)),
        ((b"a", b"a"), (b"a",)),
        ((b"a" * 5_000, b"b"), (b"a" * 5_000, b"c")),
        ((b"a" * 5_000, b"b"), (b"a" * 4_999, b"ab")),
    ],
    ids=["cut", "order", "byte", "count", "after much", "cut after much"],
)
def test_chunks_are_told_apart_one_by_one(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
    digests = set()
    for chunks in (one, other):
        machine = Machine()
        # Revisions and results are the same whatever the chunks.
        machine.do(New(1, data=chunks[0]), *(Append(1, 1, b"") for _ in range(3 - len(chunks))))
        machine.state.digest()
        machine.do(*(Append(1, 1, chunk) for chunk in chunks[1:]))
        digests.add(digest_without_results(machine))
    assert len(digests) == 2


def test_where_in_the_log_the_state_is_has_no_part_in_it() -> None:
    machine, twin = Machine(), Machine()
    batch = encode_batch("node", 1, 1, 1, [encode(New(1))])
    machine.state.apply(1, batch)
    twin.state.apply(1_000, batch)
    assert machine.state.digest() == twin.state.digest()
    before = machine.state.digest()
    assert machine.state.apply(2, batch).duplicate
    assert machine.state.apply(3, b"no batch").failure is not None
    assert machine.state.digest() == before
    assert machine.state.applied_index == 3


# Each field of each record. Private by intent: no operation changes some of them alone, and a field
# that is forgotten would let two nodes differ unseen.


def _set(name: str, value: object) -> Callable[[Any], None]:
    def change(record: object) -> None:
        assert getattr(record, name) != value
        setattr(record, name, value)

    return change


def _set_policy(name: str) -> Callable[[Any], None]:
    return _set("policy", Policy(**{name: POLICY_RANGES[name].maximum}))


RECORD_CHANGES: dict[type, dict[str, Callable[[Any], None]]] = {
    Session: {
        "theme": _set("theme", Theme(7, 0)),
        "key": _set("key", b"another"),
        "phase": _set("phase", 4),
        "priority": _set("priority", 5),
        "epoch": _set("epoch", 9),
        "revision": _set("revision", 9),
        "attempts": _set("attempts", 9),
        "created_ms": _set("created_ms", 5),
        "updated_ms": _set("updated_ms", 5),
        "due_ms": _set("due_ms", 5),
        "touched_ms": _set("touched_ms", 5),
        "lease_ms": _set("lease_ms", 5),
        "progress_ms": _set("progress_ms", 5),
        "consumer": _set("consumer", Consumer(b"another", 0)),
        "trace": _set("trace", b"another"),
        "history": _set("history", ((0, "", 1, 0, 0),)),
        "chunks": lambda one: one.chunks.append(b"more"),
    },
    Theme: {
        **{f"policy.{one.name}": _set_policy(one.name) for one in fields(Policy)},
        "paused": _set("paused", 1),
        "served": _set("served", 9),
        "theme_id": _set("theme_id", 9),
    },
    Consumer: {
        "consumer_id": _set("consumer_id", b"another"),
        "seen_ms": _set("seen_ms", 5),
    },
    Window: {
        "proposer": _set("proposer", "another"),
        "incarnation": _set("incarnation", 5),
        "floor": _set("floor", 0),
    },
    Answers: {
        "proposer": _set("proposer", "another"),
        "sequence": _set("sequence", 5),
        "results": _set("results", ()),
        "failure": _set("failure", SessionNotFound()),
    },
    Receipt: {
        "key": _set("key", b"another"),
        "fingerprint": _set("fingerprint", b"another"),
        "expires_ms": _set("expires_ms", 5),
        "result": _set("result", None),
        "unused_id": _set("unused_id", 5),
    },
}
CHANGES = [(kind, name) for kind, changes in RECORD_CHANGES.items() for name in changes]


@pytest.mark.parametrize(("kind", "name"), CHANGES, ids=lambda one: getattr(one, "__name__", one))
def test_each_field_of_each_record_is_in_it(kind: type, name: str) -> None:
    machine = prepared()
    tables = machine.state._tables  # noqa: SLF001
    record = next(
        one for of_kind in tables.everything() for one in of_kind if isinstance(one, kind)
    )
    if isinstance(record, Session):
        assert record.session_id == 1
    before = machine.state.digest()
    tables.ledger.note(record)
    RECORD_CHANGES[kind][name](record)
    assert machine.state.digest() != before


def test_no_field_of_a_session_was_forgotten_above() -> None:
    derived = {
        *("session_id", "place", "size_bytes", "lease_bucket", "data_digest", "digested_chunks"),
        *("mark", "digest", "captured", "saved"),
    }
    assert {*Session.__slots__, "due_ms"} - derived == set(RECORD_CHANGES[Session])
    assert set(Consumer.__slots__) - {"buckets", "groups", "population"} == set(
        RECORD_CHANGES[Consumer]
    )
    assert set(Window.__slots__) - {"answers", "result_count"} == set(RECORD_CHANGES[Window])
    assert set(Answers.__slots__) - {"weight"} == set(RECORD_CHANGES[Answers])
    assert set(Receipt.__slots__) - {"size_bytes"} == set(RECORD_CHANGES[Receipt])
    own = {name for name in RECORD_CHANGES[Theme] if "." not in name}
    assert set(Theme.__slots__) - {"counts", "keys", "policy", "ready", "roll", "size_bytes"} == own


@pytest.mark.parametrize(
    "name", ["term", "now_ms", "horizon", "last_session_id", "key_epoch", "turn"]
)
def test_each_number_of_the_state_is_in_it(name: str) -> None:
    machine = prepared()
    tables = machine.state._tables  # noqa: SLF001 - see above
    before = machine.state.digest()
    setattr(tables, name, getattr(tables, name) + 1)
    assert machine.state.digest() != before


@pytest.mark.parametrize("name", list(LIMIT_RANGES))
def test_each_limit_is_in_it(name: str) -> None:
    machine, twin = prepared(), prepared()
    value = LIMIT_RANGES[name].maximum
    assert machine.do(SetLimits(((name, value),))) == (None,)
    twin.do(SetLimits(()))
    assert getattr(machine.state.limits, name) == value
    assert machine.state.digest() != twin.state.digest()


# It is made of what changed, and is the same as if it were made of everything


@given(seed=SEEDS, batches=st.integers(0, 60), asked=st.integers(1, 20))
def test_it_is_that_of_a_state_built_anew(seed: int, batches: int, asked: int) -> None:
    workload = Workload(seed)
    for number, step in enumerate(workload.take(batches)):
        del step
        if number % asked == 0:
            workload.machine.digest()
    digest = workload.machine.digest()
    assert load(whole(workload.machine)).digest() == digest
    assert workload.machine.digest() == digest


@given(seed=SEEDS, batches=st.integers(1, 40))
def test_it_is_equal_exactly_when_the_states_are(seed: int, batches: int) -> None:
    # Of all states that a history goes through, no two that differ have the same digest.
    workload = Workload(seed)
    seen: dict[int, tuple[Item, ...]] = {}
    for _ in range(batches):
        workload.step()
        items = state_and_windows(workload.machine)
        state = tuple(items[key] for key in sorted(items))
        assert seen.setdefault(workload.machine.digest(), state) == state
    assert len(set(map(repr, seen.values()))) == len(seen)


def test_it_costs_what_changed() -> None:
    machine = Machine()
    for _ in range(10):
        machine.do(*(New(1, repeat_after_ms=5, data=b"x") for _ in range(100)))
    ledger = machine.state._tables.ledger  # noqa: SLF001 - counts work, which has no public face
    machine.state.digest()
    asked: list[object] = []
    redigest = ledger.redigest

    def counting(record: Any, fields: tuple[Any, ...]) -> None:
        asked.append(record)
        redigest(record, fields)

    ledger.redigest = counting  # type: ignore[method-assign]
    machine.state.digest()
    assert asked == []
    machine.do(Append(7, None, b"y"), Append(7, None, b"z"))
    machine.state.digest()
    assert [type(one) for one in asked] == [Session, Answers]
    asked.clear()
    machine.do(Tick(5))
    machine.state.digest()
    assert [type(one) for one in asked] == [Answers]  # what is ready follows from the horizon


# What was refused leaves no trace

REFUSED: tuple[Operation, ...] = (
    New(1, b"key"),
    New(1, b"k" * 257),
    New(88, b""),
    New(88, data=b"x" * (2**20 + 1)),
    New(2**32),
    New(88, priority=-1),
    New(88, consumer=b""),
    New(88, b"free", repeat_after_ms=-1, consumer=b"d"),
    Append(1, 2, b"x"),
    Append(99, None, b"x"),
    Append(3, None, b"x"),
    Append(1, 1, b"x", 99),
    Replace(1, 1, b"x" * (2**20 + 1)),
    Remove(1, None),
    Remove(2, 1),
    Store(1, 1, -1),
    Store(1, 1, cause=Cause.STALE),
    Store(1, 1, cause=Cause.PARKED),
    Store(1, 1, reason="x" * 257),
    Store(3, None),
    Acquire(()),
    Acquire((1,), 0),
    Acquire((1,), 1, b""),
    Acquire((-1,), 1, b"d"),
    AcquireSession(1),
    AcquireSession(2, b""),
    Touch(1, 1, b""),
    Touch(2, None),
    Park(2, None),
    Unpark(1),
    SetPolicy(88, (("lease_ms", 1),)),
    SetPolicy(88, (("lease_ms", 1_000), ("none", 1))),
    Pause(2**32),
    Txn((Append(1, 1, b"x"), Remove(5, 1), New(88, consumer=b"d"), Remove(99, None))),
    Txn((Acquire((1, 2), 5, b"d"), Store(1, 1, 7), Unpark(3), Barrier())),
    Txn((Touch(1, 1, b"d"), Remove(1, 1), New(1, b"key"), Park(6, 1), Tick(9))),
    Tick(-1),
    Tick(2**48),
    Idempotent(b"request", 60_000, New(1)),
    Idempotent(b"", 60_000, New(1)),
    Idempotent(b"another", 60_000, Append(99, None, b"x")),
    Idempotent(b"another", 60_000, Txn((New(88), Remove(99, None)))),
    Idempotent(b"another", 0, New(1)),
    SetLimits((("themes", 5), ("themes", 0))),
)


@pytest.mark.parametrize("operation", REFUSED, ids=numbered(REFUSED))
def test_what_is_refused_leaves_it(operation: Operation) -> None:
    machine = prepared()
    machine.do(Tick(2_000))
    before = state_items(machine.state)
    twin = machine.reloaded()
    (result,) = machine.do(operation)
    assert isinstance(result, Failure)
    twin.do(Barrier())
    assert state_items(machine.state) == before
    assert machine.state.digest() == load(whole(machine.state)).digest()
    assert digest_without_results(machine) == digest_without_results(twin)
    assert machine.state.size_bytes == twin.state.size_bytes
    assert machine.state.session_count == twin.state.session_count


def test_what_is_refused_leaves_no_trace_for_the_rest_of_its_batch() -> None:
    # Room that a refused New had taken for its theme would be missing for the next.
    machine = Machine()
    machine.do(SetLimits((("themes", 1),)))
    refused, created = machine.do(New(1, b"k" * 257), New(2))
    assert isinstance(refused, Failure)
    assert not isinstance(created, Failure)


@given(seed=SEEDS, before=st.integers(0, 40))
def test_a_failed_transaction_leaves_it(seed: int, before: int) -> None:
    # Whatever would succeed alone, in one transaction that fails at its end.
    workload, twin = Workload(seed), Workload(seed)
    workload.take(before)
    twin.take(before)
    sessions = sorted(workload.machine.sessions(), key=lambda one: one.session_id)
    operations: list[Operation] = [Acquire((1, 2, 3, 4, 5), 3, b"consumer-1"), New(1), New(6)]
    for one in sessions[:20]:
        epoch = one.epoch if one.lease_ms else None
        choices: tuple[Operation, ...] = (
            Append(one.session_id, epoch, b"x"),
            Replace(one.session_id, epoch, b"x"),
            Remove(one.session_id, epoch),
            Store(one.session_id, epoch, 5),
            Touch(one.session_id, epoch, b"consumer-2"),
            AcquireSession(one.session_id, b"consumer-3"),
        )
        operations.append(choices[(seed + one.session_id) % len(choices)])
    passing: list[Operation] = []
    # Find out which succeed one after the other, on a machine that is thrown away.
    probe = Machine(load(whole(workload.machine)))
    index = probe.state.applied_index
    for sequence, operation in enumerate(operations):
        batch = encode_batch("node-1", 10**6, sequence, 0, [encode(operation)])
        index += 1
        results = probe.state.apply(index, batch).results
        if results and not isinstance(results[0], Failure):
            passing.append(operation)
    bound = workload.machine.limits.txn_operations
    failing = Txn((*passing[: max(bound - 1, 0)], Remove(2**40, None)))
    ours, theirs = Machine(workload.machine, proposer="third"), Machine(twin.machine, 0, "third")
    for machine, operation in ((ours, failing), (theirs, Txn((Tick(0),)))):
        applied = machine.apply([operation])
        assert all(isinstance(one, Failure) for one in applied.results)
        assert not list(applied.events())
    assert state_items(workload.machine) == state_items(twin.machine)
    for machine in (ours, theirs):
        forgotten = Machine(machine.state, proposer="other").apply([ForgetProposer("third")])
        assume(forgotten.failure is None)  # there may be as many proposers as are allowed
    assert workload.machine.digest() == twin.machine.digest()
    # And the indexes were put back too: both go on the same.
    for _ in range(15):
        step = workload.step()
        assert twin.machine.apply(step.log_index, step.batch) == step.applied
        assert workload.machine.digest() == twin.machine.digest()
