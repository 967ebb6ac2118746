"""A capture is the state at one moment, however slowly it is read, and nothing else loads."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import (
    FIELDS,
    Applied,
    Capture,
    DamagedStateError,
    Done,
    Item,
    Loader,
    Operation,
    Phase,
    StateMachine,
    load,
)
from state.errors import TxnAborted
from state.limits import LIMIT_RANGES, LIMITS
from state.operations import (
    Acquire,
    Append,
    Barrier,
    Heartbeat,
    Idempotent,
    New,
    Park,
    Pause,
    Remove,
    Replace,
    SetLimits,
    SetPolicy,
    Store,
    Tick,
    Txn,
)
from state.records import ANSWERS, CHECK, CONSUMER, META, RECEIPT, SESSION, THEME, WINDOW
from tests.state.disk import Disk, is_plain
from tests.state.workload import Machine, Step, Workload, whole

SEEDS = st.integers(0, 2**32 - 1)
BATCHES = st.integers(0, 40)
PIECE_BYTES = st.sampled_from((1, 250, 1_000, 5_000))


def items_of(capture: Capture, kind: int | None = None) -> list[Item]:
    """The rest of a capture, which is committed."""
    items = [item for piece in capture.pieces() for item in piece]
    capture.commit()
    return [item for item in items if kind is None or item.kind == kind]


def sessions_in(items: Iterable[Item]) -> dict[Any, Item]:
    return {item.identity: item for item in items if item.kind == SESSION}


def answers(applied: Applied) -> tuple[object, ...]:
    """All that a batch led to, but `awake`, of which a loaded machine may say more once."""
    return (applied.index, applied.results, applied.failure, applied.duplicate, *applied.events())


# Round trips


@given(seed=SEEDS, before=BATCHES, digested=st.booleans(), piece_bytes=PIECE_BYTES)
def test_a_whole_capture_is_the_state_at_its_beginning(
    seed: int, before: int, digested: bool, piece_bytes: int
) -> None:
    workload = Workload(seed)
    twin = StateMachine()
    for step in workload.take(before):
        twin.apply(step.log_index, step.batch)
    machine = workload.machine
    if digested:
        machine.digest()
    capture = machine.capture_everything()
    disk = Disk()
    meanwhile: list[Step] = []
    while piece := capture.next_piece(piece_bytes):
        disk.write(piece)
        meanwhile += workload.take(1)
    capture.commit()
    assert disk.digest == twin.digest()
    loaded = load(disk)
    assert loaded.digest() == twin.digest()
    assert loaded.applied_index == twin.applied_index
    assert same_items(whole(loaded), disk)
    for step in [*meanwhile, *workload.take(20)]:
        again = loaded.apply(step.log_index, step.batch)
        assert answers(again) == answers(step.applied)
        assert set(step.applied.awake) <= set(again.awake)
    assert loaded.digest() == machine.digest()


@given(seed=SEEDS, before=BATCHES)
def test_the_items_of_a_quiet_capture_load_as_they_come(seed: int, before: int) -> None:
    workload = Workload(seed)
    workload.take(before)
    loader = Loader()
    for piece in workload.machine.capture_everything().pieces(500):
        loader.feed(piece)
    assert loader.finish().digest() == workload.machine.digest()


def test_the_items_of_a_busy_capture_load_as_they_come() -> None:
    # A lagging follower is fed while the leader goes on.
    machine = Machine()
    machine.do(New(1, b"a"), New(2, b"b"))
    digest = machine.state.digest()
    capture = machine.state.capture_everything()
    loader = Loader()
    loader.feed(capture.next_piece(1))
    machine.do(Append(2, 1, b"more"))
    for piece in capture.pieces(1):
        loader.feed(piece)
    assert loader.finish().digest() == digest


ROUNDS = st.lists(
    st.tuples(
        st.integers(0, 10),  # batches before the capture
        PIECE_BYTES,
        st.sampled_from(("changes", "changes", "changes", "digest", "everything")),
    ),
    max_size=4,
)


@given(seed=SEEDS, rounds=ROUNDS)
def test_changes_written_one_after_the_other_are_the_state(
    seed: int, rounds: list[tuple[int, int, str]]
) -> None:
    workload = Workload(seed)
    machine = workload.machine
    twin = StateMachine()
    disk = Disk()
    waiting: list[Step] = []  # what the twin has not seen
    for batches, piece_bytes, what in [*rounds, (0, 1_000, "changes")]:
        waiting += workload.take(batches)
        for step in waiting:
            twin.apply(step.log_index, step.batch)
        waiting = []
        if what == "digest":
            assert machine.digest() == twin.digest()
            continue
        changed = what == "changes"
        target = disk if changed else Disk()
        capture = machine.capture_changes() if changed else machine.capture_everything()
        while piece := capture.next_piece(piece_bytes):
            target.write(piece)
            waiting += workload.take(1)
        capture.commit()
        assert target.digest == twin.digest()
        assert same_items(target, whole(twin))
        loaded = load(target)
        assert loaded.digest() == twin.digest()
        assert loaded.applied_index == twin.applied_index


def same_items(one: Iterable[Item], other: Iterable[Item]) -> bool:
    """Whether two captures hold the same items, in whatever order within a kind."""

    def by_identity(items: Iterable[Item]) -> dict[object, Item]:
        return {(item.kind, item.identity): item for item in items}

    return by_identity(one) == by_identity(other)


@given(seed=SEEDS, before=BATCHES, between=BATCHES)
def test_all_that_is_written_is_plain(seed: int, before: int, between: int) -> None:
    workload = Workload(seed)
    workload.take(before)
    items = items_of(workload.machine.capture_changes())
    workload.take(between)
    items += items_of(workload.machine.capture_changes())
    for item in items:
        assert is_plain(tuple(item))
        assert type(item.kind) is int
        if item.fields is not None:
            assert len(item.fields) == len(FIELDS[item.kind])


@given(seed=SEEDS, before=BATCHES, rounds=st.lists(st.integers(0, 10), max_size=5))
def test_a_loaded_machine_goes_on_with_changes(seed: int, before: int, rounds: list[int]) -> None:
    # What was loaded counts as written: only what changes from there is.
    workload = Workload(seed)
    workload.take(before)
    disk = whole(workload.machine)
    loaded = load(disk)
    assert loaded.change_count == 0
    for batches in rounds:
        for step in workload.take(batches):
            loaded.apply(step.log_index, step.batch)
        disk.write_capture(loaded.capture_changes(), 1_000)
        assert disk.digest == workload.machine.digest()
        assert load(disk).digest() == workload.machine.digest()


# What is written of a change


def test_a_session_that_came_and_went_is_in_no_capture() -> None:
    machine = Machine()
    items_of(machine.state.capture_changes())
    machine.do(New(1, b"key", b"data"), Append(1, 1, b"more"), Remove(1, 1))
    items = items_of(machine.state.capture_changes())
    assert [item.kind for item in items] == [META, WINDOW, ANSWERS, CHECK]


def test_a_session_that_came_and_went_during_a_capture_is_in_none() -> None:
    machine = Machine()
    machine.do(New(1))
    capture = machine.state.capture_changes()
    items = capture.next_piece(1)
    machine.do(New(1, b"key"), Append(2, 1, b"more"))
    items += capture.next_piece(1)
    machine.do(Remove(2, 1))
    items += items_of(capture)
    assert set(sessions_in(items)) == {1}
    assert not sessions_in(items_of(machine.state.capture_changes()))


def test_a_removed_session_is_deleted_once() -> None:
    machine = Machine()
    machine.do(New(1))
    items_of(machine.state.capture_changes())
    machine.do(Remove(1, 1))
    deletions = [one for one in items_of(machine.state.capture_changes()) if one.fields is None]
    assert {(one.kind, one.identity) for one in deletions} == {(SESSION, 1), (THEME, 1)}
    assert len(deletions) == 2
    assert not [one for one in items_of(machine.state.capture_changes()) if one.fields is None]


def test_append_writes_only_the_new_chunks() -> None:
    machine = Machine()
    machine.do(New(1, data=b"one"), Append(1, 1, b"two"))
    item = sessions_in(items_of(machine.state.capture_changes()))[1]
    assert (item.first_chunk, item.chunks) == (0, (b"one", b"two"))
    machine.do(Append(1, 1, b"three"), Append(1, 1, b"four"))
    item = sessions_in(items_of(machine.state.capture_changes()))[1]
    assert (item.first_chunk, item.chunks) == (2, (b"three", b"four"))
    machine.do(Store(1, 1))
    item = sessions_in(items_of(machine.state.capture_changes()))[1]
    assert (item.first_chunk, item.chunks) == (4, ())


def test_replace_writes_all_chunks() -> None:
    machine = Machine()
    machine.do(New(1, data=b"one"), Append(1, 1, b"two"))
    items_of(machine.state.capture_changes())
    machine.do(Replace(1, 1, b"new"), Append(1, 1, b"tail"))
    item = sessions_in(items_of(machine.state.capture_changes()))[1]
    assert (item.first_chunk, item.chunks) == (0, (b"new", b"tail"))
    machine.do(Replace(1, 1, b""))
    item = sessions_in(items_of(machine.state.capture_changes()))[1]
    assert (item.first_chunk, item.chunks) == (0, ())


@pytest.mark.parametrize("size_bytes", [10, 10_000], ids=["small", "large"])
def test_chunks_that_change_during_a_capture_are_written_as_they_were(size_bytes: int) -> None:
    # On either side of the size up to which the digest's hash of chunks is not kept.
    chunk = b"x" * size_bytes
    machine = Machine()
    disk = Disk()
    machine.do(New(1, data=chunk), New(1, data=chunk), New(1, data=chunk))
    disk.write_capture(machine.state.capture_changes())
    machine.do(Append(1, 1, b"a"), Replace(2, 1, b"b"), Append(3, 1, b"c"))
    digest = machine.state.digest()
    capture = machine.state.capture_changes()
    machine.do(Replace(1, 1, chunk), Append(2, 1, b"d"), Remove(3, 1))
    disk.write_capture(capture, 1)
    assert disk.digest == load(disk).digest() == digest
    written = sessions_in(disk)
    assert [written[one].chunks for one in (1, 2, 3)] == [(chunk, b"a"), (b"b",), (chunk, b"c")]
    disk.write_capture(machine.state.capture_changes(), 1)
    assert disk.digest == load(disk).digest() == machine.state.digest()
    written = sessions_in(disk)
    assert set(written) == {1, 2}
    assert [written[one].chunks for one in (1, 2)] == [(chunk,), (b"b", b"d")]


def test_reading_changes_nothing_and_costs_no_record() -> None:
    machine = Machine()
    machine.do(New(1), New(1, consumer=b"c"))
    items_of(machine.state.capture_changes())
    assert machine.state.change_count == 0
    machine.state.digest()
    items_of(machine.state.capture_everything())
    machine.state.stale(10)
    assert machine.state.change_count == 0
    assert [one.kind for one in items_of(machine.state.capture_changes())] == [META, CHECK]


def test_a_whole_capture_leaves_the_changes_alone() -> None:
    machine = Machine()
    disk = Disk()
    disk.write_capture(machine.state.capture_changes())
    machine.do(New(1, data=b"one"), New(1))
    capture = machine.state.capture_everything()
    capture.next_piece(1)
    machine.do(Append(1, 1, b"two"), Remove(2, 1))
    items_of(capture)
    disk.write_capture(machine.state.capture_changes())
    assert disk.digest == load(disk).digest() == machine.state.digest()


FAILING: dict[str, tuple[Operation, ...]] = {
    "append": (Append(1, 1, b"x"),),
    "replace": (Replace(1, 1, b"x"), Append(1, 1, b"y")),
    "remove": (Remove(1, 1),),
    "remove and take its key": (Remove(1, 1), New(1, b"key", b"x")),
    "store": (Store(1, 1, 5), Append(1, None, b"x")),
    "park": (Park(1, 1),),
    "acquire": (Acquire((1, 2), 5, b"other"),),
    "new": (New(9, b"key", b"x"), Append(4, 1, b"y"), Remove(4, 1)),
}


@pytest.mark.parametrize("progress", [0, 1, 2, 3, 100], ids=str)
@pytest.mark.parametrize("operations", FAILING.values(), ids=FAILING.keys())
@pytest.mark.parametrize("earlier", [True, False], ids=["written", "new"])
def test_a_failed_transaction_during_a_capture_leaves_no_trace(
    operations: tuple[Operation, ...], progress: int, earlier: bool
) -> None:
    machine = Machine()
    disk = Disk()
    machine.do(
        New(1, b"key", b"one", consumer=b"c"), New(2, repeat_after_ms=0), New(1, repeat_after_ms=9)
    )
    if earlier:
        disk.write_capture(machine.state.capture_changes())
        machine.do(Append(1, 1, b"two"))
    digest = machine.state.digest()
    capture = machine.state.capture_changes()
    for _ in range(progress):
        disk.write(capture.next_piece(1))
    failed = machine.do(Txn((*operations, Remove(2**40, None))))
    assert isinstance(failed[0], TxnAborted)
    assert failed[0].position == len(operations)
    disk.write_capture(capture, 1)
    assert disk.digest == load(disk).digest() == digest
    # And what changes afterwards is seen.
    done = machine.do(Append(1, 1, b"three"), Txn((Remove(1, 1), New(1, b"key"))))
    assert isinstance(done[1], Done)
    disk.write_capture(machine.state.capture_changes())
    assert disk.digest == load(disk).digest() == machine.state.digest()


@pytest.mark.parametrize("progress", range(7))
def test_theme_and_consumer_that_go_and_come_again_during_a_capture(progress: int) -> None:
    machine = Machine()
    disk = Disk()
    machine.do(New(1, b"key", consumer=b"c"))
    disk.write_capture(machine.state.capture_changes())
    machine.do(Tick(100), Heartbeat(b"c"), New(2))
    digest = machine.state.digest()
    capture = machine.state.capture_changes()
    for _ in range(progress):
        disk.write(capture.next_piece(1))
    machine.do(Remove(1, 1), Remove(2, 1))
    assert machine.state.theme(1) is None
    machine.do(New(1, b"key", consumer=b"c"))
    disk.write_capture(capture, 1)
    assert disk.digest == load(disk).digest() == digest
    for _ in range(2):
        disk.write_capture(machine.state.capture_changes())
        assert disk.digest == load(disk).digest() == machine.state.digest()
        machine.do(Remove(3, 2))
    disk.write_capture(machine.state.capture_changes())
    assert (THEME, 1) not in disk
    assert (CONSUMER, b"c") not in disk
    assert disk.digest == load(disk).digest() == machine.state.digest()


def test_windows_and_receipts_are_deleted() -> None:
    machine = Machine()
    disk = Disk()
    machine.do(Idempotent(b"request", 50, New(1)))
    disk.write_capture(machine.state.capture_changes())
    assert (RECEIPT, b"request") in disk
    assert (ANSWERS, ("node", 1)) in disk
    machine.do(Tick(50))
    machine.forget()
    disk.write_capture(machine.state.capture_changes())
    assert (RECEIPT, b"request") not in disk
    assert (ANSWERS, ("node", 1)) not in disk
    assert (WINDOW, "node") in disk  # what the node sent before is not applied again
    assert disk.digest == load(disk).digest() == machine.state.digest()


# One capture at a time


def begin(machine: StateMachine) -> tuple[Callable[[], Capture], ...]:
    return machine.capture_changes, machine.capture_everything


@pytest.mark.parametrize("first", [0, 1], ids=["changes", "everything"])
@pytest.mark.parametrize("second", [0, 1], ids=["changes", "everything"])
def test_a_second_capture_waits_for_the_first(first: int, second: int) -> None:
    machine = Machine()
    disk = Disk()
    machine.do(New(1), New(2))
    digest = machine.state.digest()
    capture = begin(machine.state)[first]()
    with pytest.raises(RuntimeError, match="another capture"):
        begin(machine.state)[second]()
    disk.write(capture.next_piece(1))
    with pytest.raises(RuntimeError, match="another capture"):
        begin(machine.state)[second]()
    # The refused one has done no harm.
    machine.do(New(1), Remove(1, 1))
    disk.write_capture(capture)
    assert disk.digest == load(disk).digest() == digest
    again = items_of(begin(machine.state)[second]())
    assert again[-1] == Item(CHECK, 0, (machine.state.digest(), machine.state.applied_index))


@pytest.mark.parametrize("which", [0, 1], ids=["changes", "everything"])
def test_a_capture_that_was_read_has_nothing_more(which: int) -> None:
    machine = Machine()
    capture = begin(machine.state)[which]()
    assert [item.kind for item in items_of(capture)] == [META, CHECK]
    assert capture.finished
    assert capture.next_piece() == []
    with pytest.raises(RuntimeError):
        capture.abandon()


def test_a_capture_is_not_committed_before_it_was_read() -> None:
    machine = Machine()
    machine.do(New(1))
    capture = machine.state.capture_changes()
    items = capture.next_piece(1)
    with pytest.raises(RuntimeError):
        capture.commit()
    items += items_of(capture)
    assert load(items).digest() == machine.state.digest()  # asking took nothing away


def test_pieces_of_no_size_still_get_to_the_end() -> None:
    machine = Machine()
    machine.do(New(1), New(2))
    capture = machine.state.capture_everything()
    items = [item for piece in capture.pieces(0) for item in piece]
    capture.commit()
    assert load(items).digest() == machine.state.digest()


def test_pieces_are_about_as_large_as_asked_for() -> None:
    machine = Machine()
    machine.do(*(New(1, data=b"x" * 1_000) for _ in range(100)))
    pieces = list(machine.state.capture_everything().pieces(10_000))
    assert 8 <= len(pieces) <= 20
    assert all(sum(len(b"".join(one.chunks)) for one in piece) <= 11_000 for piece in pieces)


def test_an_abandoned_whole_capture_leaves_no_trace() -> None:
    machine = Machine()
    disk = Disk()
    machine.do(New(1), New(2))
    disk.write_capture(machine.state.capture_changes())
    machine.do(Append(1, 1, b"x"))
    capture = machine.state.capture_everything()
    capture.next_piece(1)
    machine.do(Remove(2, 1))
    capture.abandon()
    machine.do(New(3))
    disk.write_capture(machine.state.capture_changes())
    assert disk.digest == load(disk).digest() == machine.state.digest()


@pytest.mark.parametrize("progress", range(5))
def test_after_abandoned_changes_everything_is_complete(progress: int) -> None:
    machine = Machine()
    machine.do(New(1, data=b"x"), New(2))
    capture = machine.state.capture_changes()
    for _ in range(progress):
        capture.next_piece(1)
    machine.do(Append(1, 1, b"y"), New(3))
    capture.abandon()
    disk = whole(machine.state)
    assert disk.digest == load(disk).digest() == machine.state.digest()


@pytest.mark.parametrize("abandoned", [True, False], ids=["abandoned", "read"])
@pytest.mark.parametrize("operations", FAILING.values(), ids=FAILING.keys())
def test_a_failed_transaction_after_a_capture_leaves_no_trace(
    operations: tuple[Operation, ...], abandoned: bool
) -> None:
    machine = Machine()
    machine.do(
        New(1, b"key", b"one", consumer=b"c"), New(2, repeat_after_ms=0), New(1, repeat_after_ms=9)
    )
    capture = machine.state.capture_changes()
    if abandoned:
        capture.abandon()
    else:
        items_of(capture)
    machine.do(Txn((*operations, Remove(2**40, None))))
    disk = whole(machine.state)
    assert disk.digest == load(disk).digest() == machine.state.digest()


@pytest.mark.parametrize("progress", range(6))
@pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
def test_after_abandoned_changes_the_next_are_complete(progress: int, written: bool) -> None:
    # What was read of them may have been kept or not.
    machine = Machine()
    disk = Disk()
    machine.do(New(1, data=b"w"), New(2), New(3, data=b"w"), New(4))
    disk.write_capture(machine.state.capture_changes())
    machine.do(New(1, data=b"x"), Append(1, 1, b"x"), Append(3, 1, b"x"), Remove(4, 1), New(5))
    capture = machine.state.capture_changes()
    items = [item for _ in range(progress) for item in capture.next_piece(1)]
    if written:
        disk.write(items)
    disk.torn = True
    machine.do(Replace(1, 1, b"y"), Remove(2, 1), Remove(5, 1))
    capture.abandon()
    machine.do(Append(3, 1, b"z"), Remove(6, 1))
    disk.write_capture(machine.state.capture_changes())
    assert disk.digest == load(disk).digest() == machine.state.digest()
    disk.torn = False
    machine.do(Append(3, 1, b"!"), Remove(1, 1))
    disk.write_capture(machine.state.capture_changes())
    assert disk.digest == load(disk).digest() == machine.state.digest()


@given(seed=SEEDS, rounds=ROUNDS, abandoned=st.integers(0, 255))
def test_changes_that_were_abandoned_now_and_then_are_the_state(
    seed: int, rounds: list[tuple[int, int, str]], abandoned: int
) -> None:
    workload = Workload(seed)
    disk = Disk()
    disk.torn = True
    for number, (batches, piece_bytes, what) in enumerate(rounds):
        workload.take(batches)
        capture = workload.machine.capture_changes()
        if abandoned >> number & 1:
            for _ in range(batches):
                items = capture.next_piece(piece_bytes)
                if what == "changes":
                    disk.write(items)
                workload.step()
            capture.abandon()
        else:
            disk.write_capture(capture)
            assert load(disk).digest() == workload.machine.digest()
    disk.write_capture(workload.machine.capture_changes())
    assert load(disk).digest() == workload.machine.digest()


# A loaded machine goes on like the one that was captured


def test_a_loaded_machine_expires_the_same_receipts() -> None:
    # More receipts expire at once than one Tick drops, and one of them is asked for again.
    machine = Machine()
    machine.do(
        SetLimits((("tick_page", 1),)),
        *(Idempotent(key, 10, New(1, data=key)) for key in (b"a", b"b", b"c")),
    )
    machine.do(Tick(10))
    machine.do(Idempotent(b"b", 1_000, New(1)))
    loaded = machine.reloaded()
    for now_ms in range(11, 16):
        machine.do(Tick(now_ms))
        loaded.do(Tick(now_ms))
        assert loaded.state.digest() == machine.state.digest()


def test_a_loaded_machine_forgets_the_same_keys_when_their_sessions_are_used() -> None:
    machine = Machine()
    new = [Idempotent(key, 1_000, New(1, data=key), 1) for key in (b"a", b"b", b"c")]
    machine.do(*new)
    machine.do(replace(new[1], until_used=0))
    loaded = machine.reloaded()
    disk = Disk()
    for session_id in (1, 2):
        for one in (machine, loaded):
            one.do(Append(session_id, 1, b"x"))
        assert loaded.state.digest() == machine.state.digest()
    disk.write_capture(loaded.state.capture_everything())
    assert [(RECEIPT, key) in disk for key in (b"a", b"b", b"c")] == [False, True, True]


def test_a_loaded_machine_wakes_the_same_sleepers() -> None:
    machine = Machine()
    machine.do(
        SetLimits((("tick_page", 2),)),
        *(New(1, repeat_after_ms=wait_ms) for wait_ms in (5, 5, 5, 6, 6, 7, 0)),
    )
    machine.do(Tick(7))
    loaded = machine.reloaded()
    for now_ms in (7, 7, 8, 9):
        assert list(loaded.state.ready_ids(1)) == list(machine.state.ready_ids(1))
        assert loaded.state.next_due_ms == machine.state.next_due_ms
        assert answers(loaded.apply([Tick(now_ms)])) == answers(machine.apply([Tick(now_ms)]))
        assert loaded.state.digest() == machine.state.digest()


def test_a_loaded_machine_finds_the_same_stale_sessions() -> None:
    machine = Machine()
    machine.do(SetPolicy(2, (("progress_ms", 500),)))
    machine.do(New(1), New(1, consumer=b"c"), New(2, consumer=b"c"), New(2), New(1, consumer=b"d"))
    for now_ms in (700, 20_000, 40_000):
        machine.do(Tick(now_ms), Heartbeat(b"d"))
        loaded = machine.reloaded()
        # The calendar comes to what is overdue with the next Tick.
        for one in (machine, loaded):
            one.do(Tick(now_ms + 1))
        assert set(loaded.state.stale(100)) == set(machine.state.stale(100))
        machine.do(Tick(now_ms + 2))


def test_a_machine_that_has_forgotten_a_proposer_can_be_loaded() -> None:
    machine = Machine()
    machine.do(New(1))
    machine.forget()
    loaded = load(whole(machine.state))
    assert loaded.digest() == machine.state.digest()
    expired = machine.apply([New(1)]).failure
    assert expired is not None
    assert Machine(loaded, machine.sequence - 1).apply([New(1)]).failure == expired


def test_a_loaded_machine_answers_repeated_batches() -> None:
    machine = Machine()
    machine.do(
        New(1, b"key"),
        New(1, b"key"),
        Acquire((1,)),
        Store(1, 1, 0),
        Acquire((1, 2), 3, b"c"),
        Txn((Append(1, 2, b"x"), Remove(1, 2))),
        Txn((New(1), Remove(9, 9))),
        Idempotent(b"request", 100, New(1, b"key")),
        SetLimits((("none", 1),)),
        Barrier(),
    )
    loaded = machine.reloaded()
    for one in (machine, loaded):
        one.sequence = 0
    again, before = loaded.apply(()), machine.apply(())
    assert again == before
    assert again.duplicate
    assert repr(again.results) == repr(before.results)


# Damage

MACHINE_SEED = 11


@cache
def rich() -> tuple[tuple[Item, ...], int]:
    """The items of a state that has something of everything, and its digest."""
    workload = Workload(MACHINE_SEED)
    workload.take(150)
    machine = Machine(workload.machine)
    machine.do(SetLimits(tuple((name, getattr(LIMITS, name)) for name in LIMIT_RANGES)))
    machine.forget("node-1")
    machine.do(*(Remove(one.session_id, None) for one in list(machine.state.sessions())[30:]))
    machine.do(
        *(SetLimits((("themes", 100),)), SetLimits((("receipts", 100),)), Pause(77)),
        SetLimits((("consumers", 100), ("chunk_bytes", 100), ("reason_chars", 100))),
    )
    made = machine.do(
        New(78, b"active", b"data", consumer=b"c"),
        New(78, b"waiting", b"", repeat_after_ms=5),
        New(78, b"parked", b"data"),
        Idempotent(b"one", 10_000, New(78, b"other")),
        Idempotent(b"two", 10_000, Txn((New(78), Acquire((1,))))),
    )
    machine.do(
        Append(made[0].session_id, 1, b"more"),
        Park(made[2].session_id, 1, "a reason"),
        Store(made[2].session_id, 7),
        Txn((Remove(1, 9),)),
    )
    items = tuple(whole(machine.state))
    assert {item.kind for item in items} == set(FIELDS)
    phases = {item.fields[3] for item in items if item.kind == SESSION and item.fields}
    assert phases == {Phase.STORED, Phase.ACTIVE, Phase.PARKED}
    assert load(items).digest() == machine.state.digest()
    return items, machine.state.digest()


def check_damage(items: Iterable[Any]) -> bool:
    """Whether damage is found; if not, it must not have had an effect."""
    try:
        machine = load(items)
    except DamagedStateError:
        return True
    assert machine.digest() == rich()[1]
    return False


def position_of(kind: int) -> int:
    return next(place for place, item in enumerate(rich()[0]) if item.kind == kind)


ALL_KINDS = sorted(FIELDS)


def test_any_missing_item_is_found() -> None:
    items, _ = rich()
    for place in range(len(items)):
        assert check_damage([*items[:place], *items[place + 1 :]])
    assert check_damage([])


def test_any_item_that_comes_twice_is_found() -> None:
    items, _ = rich()
    for place in range(len(items)):
        assert check_damage([*items[: place + 1], *items[place:]])
    assert check_damage([*items, *items])


def test_any_truncated_state_is_found() -> None:
    items, _ = rich()
    for place in range(len(items)):
        assert check_damage(items[:place])


def test_kinds_out_of_order_are_found() -> None:
    items, _ = rich()
    assert check_damage(reversed(items))
    for place, (one, other) in enumerate(pairwise(items)):
        swapped = [*items[:place], other, one, *items[place + 2 :]]
        assert check_damage(swapped) == (one.kind != other.kind)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_deletion_is_found(kind: int) -> None:
    items = list(rich()[0])
    place = position_of(kind)
    items[place] = items[place]._replace(fields=None)
    assert check_damage(items)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_any_field_of_a_wrong_type_is_found(kind: int) -> None:
    items = list(rich()[0])
    place = position_of(kind)
    item = items[place]
    assert item.fields is not None
    for position, value in enumerate(item.fields):
        for junk in ("junk", b"junk", -1, 1.5, (), (None,), object(), {}, [[]], 2**70, "\ud800"):
            if junk == value:
                continue
            fields = (*item.fields[:position], junk, *item.fields[position + 1 :])
            items[place] = item._replace(fields=fields)
            assert check_damage(items), (FIELDS[kind][position], junk)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_field_too_few_or_too_many_is_found(kind: int) -> None:
    items = list(rich()[0])
    place = position_of(kind)
    item = items[place]
    assert item.fields is not None
    for fields in (item.fields[:-1], (*item.fields, 0), (), item.fields * 2):
        items[place] = item._replace(fields=fields)
        assert check_damage(items)


def test_any_changed_chunk_is_found() -> None:
    items, _ = rich()
    tried = 0
    for place, item in enumerate(items):
        damages: tuple[Any, ...] = (
            item.chunks[:-1],
            item.chunks[::-1],
            (*item.chunks[:-1], b"".join(item.chunks[-1:])[:-1]),
            (*item.chunks[:-1], b"".join(item.chunks[-1:]) + b"\x00"),
            (*item.chunks, b""),
            (b"".join(item.chunks),),
            (*item.chunks[:-1], None),
        )
        for damaged in damages:
            if item.kind == SESSION and damaged != item.chunks:
                changed = item._replace(chunks=damaged)
                assert check_damage([*items[:place], changed, *items[place + 1 :]])
                tried += 1
        if item.kind == SESSION:
            changed = item._replace(first_chunk=1)
            assert check_damage([*items[:place], changed, *items[place + 1 :]])
    assert tried > 20


def test_another_version_and_another_digest_are_found() -> None:
    items, digest = rich()
    meta = items[0]
    assert meta.fields is not None
    for version in (0, 1, 2, 3, 5, None, "4"):
        with pytest.raises(DamagedStateError, match="version"):
            load([meta._replace(fields=(version, *meta.fields[1:])), *items[1:]])
    for wrong in (digest ^ 1, 0, digest + 2**60):
        with pytest.raises(DamagedStateError):
            load([*items[:-1], Item(CHECK, 0, (wrong, meta.fields[1]))])


NO_ITEMS: dict[str, Any] = {
    "None": None,
    "number": 0,
    "nothing": (),
    "text": "item",
    "bytes": b"",
    "list": [],
    "dict": {},
    "object": object(),
    "short tuple": (SESSION, 1, None),
    "full list": [THEME, 1, (1,), 0, ()],
    "class": Item,
}


@pytest.mark.parametrize("junk", NO_ITEMS.values(), ids=NO_ITEMS.keys())
def test_what_is_no_item_is_found(junk: Any) -> None:
    items, _ = rich()
    for place in (0, 1, len(items) // 2, len(items)):
        assert check_damage([*items[:place], junk, *items[place:]])


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_numbers_too_long_to_be_printed_are_found(kind: int) -> None:
    items = list(rich()[0])
    place = position_of(kind)
    endless = 10**5000
    for item in (
        items[place]._replace(kind=endless),
        items[place]._replace(fields=(endless,)),
        items[place]._replace(identity=endless, fields=()),
    ):
        items[place] = item
        assert check_damage(items)


def test_an_unfinished_loader_gives_nothing() -> None:
    items, _ = rich()
    loader = Loader()
    with pytest.raises(DamagedStateError, match="incomplete"):
        loader.finish()
    loader.feed(items[:-1])
    with pytest.raises(DamagedStateError, match="incomplete"):
        loader.finish()


def test_results_nested_deeper_than_can_be_written_are_found() -> None:
    items = list(rich()[0])
    place = position_of(RECEIPT)
    fields = items[place].fields
    assert fields is not None
    for depth in (600, 100_000):
        nested: Any = 1
        for _ in range(depth):
            nested = (4, nested)
        items[place] = items[place]._replace(fields=(*fields[:3], nested))
        assert check_damage(items)


def test_the_error_names_the_item() -> None:
    items = list(rich()[0])
    place = next(
        number for number, item in enumerate(items) if item.kind == SESSION and item.identity != 1
    )
    item = items[place]
    assert item.fields is not None
    items[place] = item._replace(fields=(*item.fields[:5], -1, *item.fields[6:]))
    with pytest.raises(DamagedStateError, match=f"^session {item.identity!r}: -1 is not an int"):
        load(items)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((0, 1, 2**48, 2**60 - 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30))
    | st.floats()
    | st.binary(max_size=8)
    | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.lists(inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A value with something in it changed, mostly only a little."""
    if isinstance(value, tuple) and value and draw(st.integers(0, 9)) > 0:
        place = draw(st.integers(0, len(value) - 1))
        match draw(st.integers(0, 9)):
            case 0:
                return (*value[:place], *value[place + 1 :])
            case 1:
                return (*value[:place], draw(JUNK), *value[place:])
            case 2:
                other = draw(st.integers(0, len(value) - 1))
                return (*value[:place], value[other], *value[place + 1 :])
            case _:
                return (*value[:place], draw(mutated(value[place])), *value[place + 1 :])
    if type(value) is int and draw(st.booleans()):
        return draw(st.sampled_from((value + 1, value - 1, value ^ (1 << 7), -value, value * 2)))
    if isinstance(value, str | bytes) and value and draw(st.booleans()):
        place = draw(st.integers(0, len(value) - 1))
        if isinstance(value, bytes):
            flipped = bytes((value[place] ^ 1 << draw(st.integers(0, 7)),))
            return value[:place] + flipped + value[place + 1 :]
        return value[:place] + value[place + 1 :]
    return draw(JUNK)


@st.composite
def damaged_items(draw: st.DrawFn) -> list[Any]:
    """The items of the rich state after one to three accidents."""
    items: list[Any] = list(rich()[0])
    for _ in range(draw(st.integers(1, 3))):
        # A kind first, or most accidents would happen to sessions.
        kind = draw(st.sampled_from(ALL_KINDS))
        places = [
            number
            for number, item in enumerate(items)
            if isinstance(item, Item) and type(item.kind) is int and item.kind == kind
        ]
        if not places:
            continue
        place = draw(st.sampled_from(places))
        match draw(st.integers(0, 9)):
            case 0:
                del items[place]
            case 1:
                other = draw(st.integers(0, len(items) - 1))
                items[place], items[other] = items[other], items[place]
            case 2:
                items.insert(draw(st.integers(0, len(items))), items[place])
            case 3:
                items[place] = draw(JUNK)
            case _:
                position = draw(st.sampled_from((0, 1, 2, 2, 2, 2, 2, 2, 3, 4)))
                fields = list(items[place])
                fields[position] = draw(mutated(fields[position]))
                items[place] = Item(*fields)
    return items


@given(items=damaged_items())
def test_damage_is_found_or_had_no_effect(items: list[Any]) -> None:
    check_damage(items)
