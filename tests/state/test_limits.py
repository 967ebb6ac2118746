"""Each bound: its range is sane, what is at it passes, what is beyond is answered by its name."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest

from state import LIMITS, Acquired, Applied, Done, Failure, Limits, NodeLimits, Operation
from state.errors import LimitExceeded, Malformed, OutOfRange, SequenceExpired, TxnAborted
from state.limits import (
    CHUNK_OVERHEAD_BYTES,
    COUNTER_MAX,
    DAY_MS,
    GROUP_SHIFT,
    KIB,
    LIMIT_RANGES,
    MIB,
    NODE_LIMIT_RANGES,
    PROPOSER_CHARS_MAX,
    SESSION_OVERHEAD_BYTES,
    THEME_MAX,
    TIME_MAX_MS,
    YEAR_MS,
    Range,
)
from state.operations import (
    Acquire,
    AcquireSession,
    Append,
    Barrier,
    Cause,
    ForgetProposer,
    Idempotent,
    New,
    OnConflict,
    Park,
    Pause,
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
from state.policy import POLICY_RANGES
from tests.state.driver import Driver, contents

ALL_RANGES = {**LIMIT_RANGES, **NODE_LIMIT_RANGES}


# The table of limits


@pytest.mark.parametrize("name", ALL_RANGES)
def test_ranges_are_sane(name: str) -> None:
    one = ALL_RANGES[name]
    assert 0 <= one.minimum <= one.default <= one.maximum
    assert {type(value) for value in one[:3]} == {int}
    assert len(one.reason) > 20
    assert one.reason.endswith(".")
    assert "\n" not in one.reason


@pytest.mark.parametrize("owner", [Limits, NodeLimits])
def test_every_field_has_a_range(owner: type[Limits | NodeLimits]) -> None:
    assert all(isinstance(one.metadata["range"], Range) for one in fields(owner))
    for name in (one.name for one in fields(owner)):
        assert getattr(owner(), name) == ALL_RANGES[name].default


def test_no_name_is_used_twice() -> None:
    """A LimitExceeded names its limit, so the name must tell which."""
    assert not LIMIT_RANGES.keys() & NODE_LIMIT_RANGES.keys()
    assert not ALL_RANGES.keys() & POLICY_RANGES.keys()


@pytest.mark.parametrize("name", ALL_RANGES)
def test_a_unit_stands_at_the_end_of_the_name(name: str) -> None:
    parts = name.split("_")
    for unit in ("ms", "bytes", "chars"):
        assert unit not in parts[:-1]
    default = ALL_RANGES[name].default
    if default % DAY_MS == 0 and default:
        assert parts[-1] == "ms"
    elif default % KIB == 0 and default >= MIB:
        assert parts[-1] == "bytes"


def test_what_holds_another_is_not_the_smaller() -> None:
    assert LIMITS.chunk_bytes <= LIMITS.session_bytes <= LIMITS.state_bytes
    assert LIMITS.chunk_bytes < LIMITS.batch_bytes
    assert LIMITS.txn_operations <= LIMITS.batch_operations
    assert LIMITS.acquire_count <= LIMITS.batch_acquired
    assert LIMITS.batch_operations <= LIMITS.window_results
    assert NodeLimits().intake_bytes >= LIMITS.batch_bytes
    assert NodeLimits().websocket_frame_bytes > LIMITS.chunk_bytes


def test_the_defaults_are_those_of_the_design() -> None:
    assert LIMITS.chunk_bytes == MIB
    assert LIMITS.session_bytes == 16 * MIB
    assert LIMITS.session_chunks == 10_000
    assert LIMITS.key_bytes == 256
    assert LIMITS.batch_operations == 4096
    assert LIMITS.batch_bytes == 4 * MIB
    assert LIMITS.repeat_after_ms == 10 * YEAR_MS
    assert LIMITS.themes == 65_536
    assert NodeLimits().intake_operations == 65_536
    assert NodeLimits().websocket_frame_bytes == 4 * MIB


def test_sums_of_times_stay_below_63_bits() -> None:
    longest = max(one.maximum for name, one in LIMIT_RANGES.items() if name.endswith("_ms"))
    assert math.log2(TIME_MAX_MS + longest) < 62
    assert COUNTER_MAX == 2**GROUP_SHIFT - 1


# Setting them


@pytest.mark.parametrize("name", LIMIT_RANGES)
def test_a_limit_can_be_set_within_its_range_only(name: str) -> None:
    one = LIMIT_RANGES[name]
    for value in {one.minimum, one.default, one.maximum}:
        driver = Driver()
        assert driver.do(SetLimits(((name, value),))) is None
        assert getattr(driver.machine.limits, name) == value
    for value in (one.minimum - 1, one.maximum + 1):
        driver = Driver()
        failure = driver.do(SetLimits((("history_entries", 7), (name, value))))
        assert failure == OutOfRange(name, value, one.minimum, one.maximum)
        assert driver.machine.limits == LIMITS


@pytest.mark.parametrize("name", LIMIT_RANGES)
def test_no_limit_can_be_so_low_that_it_cannot_be_set_back(name: str) -> None:
    one = LIMIT_RANGES[name]
    driver = Driver(proposer="node-1")
    driver.succeed(SetLimits(((name, one.minimum),)))
    applied = driver.apply(SetLimits(((name, one.default),)))
    assert applied.failure is None
    assert driver.machine.limits == LIMITS


@pytest.mark.parametrize("name", POLICY_RANGES)
def test_a_policy_can_be_set_within_its_range_only(name: str) -> None:
    one = POLICY_RANGES[name]
    for value in {one.minimum, one.default, one.maximum}:
        driver = Driver()
        # With a pause, so that a theme with a policy of defaults is not forgotten.
        assert driver.results(Pause(7), SetPolicy(7, ((name, value),))) == (None, None)
        theme = driver.machine.theme(7)
        assert theme is not None
        assert getattr(theme.policy, name) == value
    for value in (one.minimum - 1, one.maximum + 1):
        driver = Driver()
        failure = driver.do(SetPolicy(7, (("lease_ms", 700), (name, value))))
        assert failure == OutOfRange(name, value, one.minimum, one.maximum)
        assert driver.machine.theme(7) is None


def test_settings_that_are_none_are_malformed() -> None:
    driver = Driver()
    assert isinstance(driver.do(SetLimits((("no_such_limit", 1),))), Malformed)
    assert isinstance(driver.do(SetLimits((("repeat_ms", 1),))), Malformed)  # a policy's
    assert isinstance(driver.do(SetLimits((("connections", 1),))), Malformed)  # a node's
    assert isinstance(driver.do(SetPolicy(7, (("themes", 1),))), Malformed)
    assert driver.machine.limits == LIMITS


# Passing them


@dataclass(frozen=True, slots=True)
class Case:
    """A limit, set to `bound`; what is still right at it, and what is beyond."""

    limit: str
    bound: int
    at: tuple[Operation, ...]  # all of these are done, each in its own batch
    beyond: tuple[Operation, ...]  # and then none of these
    value: int | None = None  # in the answer; None: one more than the bound
    before: tuple[Operation, ...] = ()  # done before the limit is set
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.limit} {self.note}".strip()


def bytes_of(length: int) -> bytes:
    return b"x" * length


FILL = 512 * KIB
# What is left for data below a state_bytes of 1 MiB, after a session with one chunk of FILL.
REST = MIB - FILL - SESSION_OVERHEAD_BYTES - CHUNK_OVERHEAD_BYTES

CASES = (
    Case("chunk_bytes", 10, (New(7, data=bytes_of(10)),), (New(7, data=bytes_of(11)),)),
    Case(
        "chunk_bytes",
        10,
        (New(7), Append(1, 1, bytes_of(10)), Replace(1, 1, bytes_of(10))),
        (Append(1, 1, bytes_of(11)), Replace(1, 1, bytes_of(11))),
        note="of Append and Replace",
    ),
    Case(
        "chunk_bytes",
        10,
        (
            New(7, b"k", repeat_after_ms=9),
            New(7, b"k", bytes_of(10), on_conflict=OnConflict.BRING_FORWARD),
        ),
        (New(7, b"k", bytes_of(11), on_conflict=OnConflict.BRING_FORWARD),),
        note="of bring_forward",
    ),
    Case("session_bytes", 10, (New(7, data=bytes_of(10)),), (New(7, data=bytes_of(11)),)),
    Case(
        "session_bytes",
        10,
        (New(7, data=bytes_of(4)), Append(1, 1, bytes_of(6)), Append(1, 1, b"")),
        (Append(1, 1, b"x"), Replace(1, 1, bytes_of(11))),
        note="of Append and Replace",
    ),
    Case(
        "session_bytes",
        10,
        (
            New(7, b"k", bytes_of(4), repeat_after_ms=9),
            New(7, b"k", bytes_of(6), on_conflict=OnConflict.BRING_FORWARD),
        ),
        (New(7, b"k", b"x", on_conflict=OnConflict.BRING_FORWARD),),
        note="of bring_forward",
    ),
    Case(
        "session_chunks",
        2,
        (New(7, data=b"x"), Append(1, 1, b"x"), Append(1, 1, b"")),
        (Append(1, 1, b"x"),),
    ),
    Case("key_bytes", 10, (New(7, bytes_of(10)),), (New(7, bytes_of(11)),)),
    Case("key_bytes", 10, (), (New(7, b""),), value=0, note="of no bytes"),
    Case(
        "consumer_bytes",
        10,
        (
            New(7, consumer=bytes_of(10)),
            Touch(1, 1, bytes_of(10)),
            New(7, repeat_after_ms=0),
            Acquire((7,), 1, bytes_of(10)),
            New(7, repeat_after_ms=0),
        ),
        (
            New(7, consumer=bytes_of(11)),
            Touch(1, 1, bytes_of(11)),
            Acquire((7,), 1, bytes_of(11)),
            AcquireSession(3, bytes_of(11)),
        ),
    ),
    Case("consumer_bytes", 10, (), (New(7, consumer=b""),), value=0, note="of no bytes"),
    Case(
        "consumers",
        2,
        (New(7, consumer=b"a"), New(7, consumer=b"b"), New(7, consumer=b"b")),
        (New(7, consumer=b"c"), Touch(1, 1, b"c")),
    ),
    Case(
        "consumers",
        1,
        (New(7, consumer=b"a"), Remove(1, 1), New(7, consumer=b"b")),
        (New(7, consumer=b"c"),),
        note="when one has left",
    ),
    Case(
        "reason_chars",
        10,
        (
            New(7),
            Store(1, 1, 0, Cause.FAILED, "é" * 10),
            AcquireSession(1),
            Park(1, 2, "é" * 10),
            New(7, consumer=b"c"),
            Release(b"c", 1, reason="é" * 10),
        ),
        (
            Store(1, 2, 0, Cause.FAILED, "é" * 11),
            Park(1, 2, "é" * 11),
            Release(b"c", 1, reason="é" * 11),
        ),
    ),
    Case(
        "repeat_after_ms",
        1000,
        (New(7, repeat_after_ms=1000), Store(1, None, 1000)),
        (New(7, repeat_after_ms=1001), Store(1, None, 1001)),
    ),
    Case(
        "repeat_after_ms",
        1000,
        (),
        (New(7, repeat_after_ms=-1), Store(1, None, -1)),
        value=-1,
        before=(New(7, repeat_after_ms=0),),
        note="below zero",
    ),
    Case("themes", 2, (New(1), Pause(2), New(2)), (New(3), Pause(3), SetPolicy(3, ()))),
    Case("themes", 1, (New(1), Remove(1, 1), New(2)), (New(3),), note="when one has gone"),
    Case(
        "txn_operations",
        2,
        (Txn((New(7), New(7))), Idempotent(b"a", 1, Txn((New(7), New(7))))),
        (Txn((New(7),) * 3), Idempotent(b"b", 1, Txn((New(7),) * 3))),
    ),
    Case(
        "acquire_count",
        3,
        (New(7, consumer=b"c"), Acquire((7,), 3), Release(b"c", 3), New(7, consumer=b"c")),
        (Acquire((7,), 4), Release(b"c", 4), Release(b"nobody", 4)),
    ),
    Case("acquire_count", 3, (), (Acquire((7,), 0), Release(b"c", 0)), value=0, note="of none"),
    Case("acquire_count", 3, (), (Release(b"c", -1),), value=-1, note="below zero"),
    Case("acquire_themes", 2, (Acquire((7, 8)),), (Acquire((7, 8, 9)),)),
    Case(
        "receipts",
        2,
        (
            Idempotent(b"a", 1000, New(7)),
            Idempotent(b"b", 1000, New(7)),
            Idempotent(b"b", 1000, New(7)),
        ),
        (Idempotent(b"c", 1000, New(7)),),
    ),
    Case(
        "receipts",
        1,
        (Idempotent(b"a", 1000, New(7)), Tick(1000), Idempotent(b"b", 1000, New(7))),
        (Idempotent(b"c", 1000, New(7)),),
        note="when one has expired",
    ),
    Case("receipts", 0, (), (Idempotent(b"a", 1, New(7)),), note="of none at all"),
    Case(
        "receipt_bytes",
        10,
        (Idempotent(bytes_of(10), 1, New(7)),),
        (Idempotent(bytes_of(11), 1, New(7)),),
    ),
    Case("receipt_bytes", 10, (), (Idempotent(b"", 1, New(7)),), value=0, note="of no bytes"),
    Case(
        "receipt_expires_after_ms",
        1000,
        (Idempotent(b"a", 1000, New(7)),),
        (Idempotent(b"b", 1001, New(7)),),
    ),
    Case(
        "receipt_expires_after_ms",
        1000,
        (),
        (Idempotent(b"b", 0, New(7)),),
        value=0,
        note="at once",
    ),
    Case(
        "state_bytes",
        MIB,
        (New(7, data=bytes_of(FILL)), Append(1, 1, bytes_of(REST - CHUNK_OVERHEAD_BYTES))),
        (Append(1, 1, b"x"),),
        value=MIB + CHUNK_OVERHEAD_BYTES + 1,
    ),
    Case(
        "state_bytes",
        MIB,
        (New(7, data=bytes_of(FILL)), New(7, b"k", repeat_after_ms=1), Replace(1, 1, b"")),
        (New(7, data=bytes_of(MIB - 2 * SESSION_OVERHEAD_BYTES)),),
        value=MIB + SESSION_OVERHEAD_BYTES + CHUNK_OVERHEAD_BYTES + 1,
        note="of New",
    ),
    Case(
        "state_bytes",
        MIB,
        (
            New(7, data=bytes_of(FILL)),
            Replace(1, 1, bytes_of(FILL + REST)),
            Replace(1, 1, bytes_of(FILL + REST - 1)),
        ),
        (Replace(1, 1, bytes_of(FILL + REST + 1)),),
        note="of Replace",
    ),
    Case(
        "state_bytes",
        MIB,
        (New(7, b"k", bytes_of(FILL), repeat_after_ms=9),),
        (New(7, b"k", bytes_of(REST), on_conflict=OnConflict.BRING_FORWARD),),
        value=MIB + CHUNK_OVERHEAD_BYTES + 1,
        note="of bring_forward",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_at_the_bound_passes_and_beyond_is_answered(case: Case) -> None:
    driver = Driver()
    for operation in (*case.before, SetLimits(((case.limit, case.bound),)), *case.at):
        result = driver.do(operation)
        assert not isinstance(result, Failure), (operation, result)
    held = contents(driver.machine)
    value = case.bound + 1 if case.value is None else case.value
    for operation in case.beyond:
        assert driver.do(operation) == LimitExceeded(case.limit, value, case.bound), operation
        assert contents(driver.machine) == held


# A policy's


def test_max_sessions() -> None:
    driver = Driver()
    driver.do(SetPolicy(7, (("max_sessions", 2),)))
    driver.new(7, key=b"k")
    driver.new(7, repeat_after_ms=1000)
    assert driver.do(New(7)) == LimitExceeded("max_sessions", 3, 2)
    assert driver.do(New(7, repeat_after_ms=5)) == LimitExceeded("max_sessions", 3, 2)
    driver.new(8)
    # Who holds a key is no new session.
    assert not isinstance(driver.do(New(7, b"k", on_conflict=OnConflict.RETURN_EXISTING)), Failure)
    driver.succeed(Remove(1, 1))
    driver.new(7)


def test_max_active() -> None:
    driver = Driver()
    driver.do(SetPolicy(7, (("max_active", 2),)))
    driver.new(7)
    for _ in range(3):
        driver.new(7, repeat_after_ms=0)
    assert len(driver.do(Acquire((7,), 9))) == 1
    exceeded = LimitExceeded("max_active", 3, 2)
    assert exceeded.retryable
    assert driver.do(Acquire((7,), 9)) == ()
    assert driver.do(New(7)) == exceeded
    assert driver.do(AcquireSession(3)) == exceeded
    driver.new(7, repeat_after_ms=0)  # a stored one is not active
    driver.succeed(Remove(1, 1))
    assert isinstance(driver.do(AcquireSession(3)), Acquired)


# A batch's


def test_batch_bytes() -> None:
    driver = Driver()
    bound = 64 * KIB
    driver.succeed(SetLimits((("batch_bytes", bound),)))
    empty_bytes = len(driver.batch(New(7, data=bytes_of(60 * KIB)))) - 60 * KIB
    assert driver.apply(New(7, data=bytes_of(bound - empty_bytes))).failure is None
    refused = driver.apply(New(7, data=bytes_of(bound - empty_bytes + 1)))
    assert refused.failure == LimitExceeded("batch_bytes", bound + 1, bound)
    assert refused.results == ()
    assert driver.machine.session_count == 1


def test_batch_operations() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("batch_operations", 2),)))
    assert driver.results(New(7), New(7))
    refused = driver.apply(New(7), New(7), New(7))
    assert refused.failure == LimitExceeded("batch_operations", 3, 2)
    assert driver.machine.session_count == 2


def test_a_proposer_is_named_by_64_characters() -> None:
    """A bound that cannot be set, lest nobody be left who may set it back."""
    driver = Driver()
    driver.proposer = "é" * PROPOSER_CHARS_MAX
    assert driver.apply(Barrier()).failure is None
    driver.proposer = "é" * (PROPOSER_CHARS_MAX + 1)
    assert driver.apply(Barrier()).failure == LimitExceeded("proposer_chars", 65, 64)
    driver.proposer = ""
    assert isinstance(driver.apply(Barrier()).failure, Malformed)


def test_proposers() -> None:
    driver = Driver(proposer="a")
    driver.succeed(SetLimits((("proposers", 3),)))
    for proposer in ("b", "c", "a"):
        driver.proposer = proposer
        assert driver.apply(Barrier()).failure is None
    driver.proposer = "d"
    assert driver.apply(Barrier()).failure == LimitExceeded("proposers", 4, 3)
    driver.proposer = "a"
    driver.succeed(ForgetProposer("b"))
    driver.proposer = "d"  # a forgotten one keeps its place
    assert driver.apply(Barrier()).failure == LimitExceeded("proposers", 4, 3)
    driver.proposer = "b"
    driver.incarnation += 1
    assert driver.apply(Barrier()).failure is None


# Limits that bound an answer, and refuse nothing


def acquired_by(applied: Applied) -> list[int]:
    """How many sessions each Acquire of a batch was given."""
    counts = []
    for result in applied.results:
        assert isinstance(result, tuple)
        counts.append(len(result))
    return counts


def test_batch_acquired_ends_what_a_batch_hands_out() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("batch_acquired", 3),)))
    for _ in range(9):
        driver.new(7, repeat_after_ms=0)
    assert acquired_by(driver.apply(*[Acquire((7,), 2)] * 4)) == [2, 1, 0, 0]
    assert acquired_by(driver.apply(*[Acquire((7,), 2)] * 2)) == [2, 1]


def test_session_bytes_bound_what_one_acquire_hands_out_but_one_session_it_may() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("session_bytes", 10),)))
    for size in (4, 6, 1, 10, 10, 0, 0):
        driver.new(7, data=bytes_of(size), repeat_after_ms=0)
    applied = driver.apply(Acquire((7,), 5))
    assert acquired_by(applied) == [2]
    assert applied.awake == (7,), "somebody else may ask for the rest"
    assert acquired_by(driver.apply(*[Acquire((7,), 5)] * 4)) == [1, 1, 3, 0]
    driver.new(8, data=bytes_of(10), repeat_after_ms=0)
    driver.succeed(SetLimits((("session_bytes", 5),)))
    assert acquired_by(driver.apply(Acquire((8,), 5))) == [1], "one that was larger before"


def test_what_a_failed_transaction_handed_out_is_not_counted() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("batch_acquired", 3),)))
    for _ in range(9):
        driver.new(7, repeat_after_ms=0)
    failing = Txn((Acquire((7,), 3), Remove(99, None)))
    aborted, acquired, done = driver.results(failing, Acquire((7,), 2), Txn((Acquire((7,), 2),)))
    assert isinstance(aborted, TxnAborted)
    assert len(acquired) == 2
    assert isinstance(done, Done)
    assert len(done.results[0]) == 1


@pytest.mark.parametrize(("max_attempts", "kept"), [(0, 3), (1, 3), (2, 4), (5, 10)])
def test_history_entries_keep_the_newest_causes(max_attempts: int, kept: int) -> None:
    """A session's maximum of attempts asks for more: two entries for each."""
    driver = Driver()
    driver.succeed(SetLimits((("history_entries", 3),)))
    driver.succeed(SetPolicy(7, (("max_attempts", max_attempts),)))
    driver.new(7)
    for number in range(20):
        # An orderly shutdown parks nothing.
        driver.succeed(Store(1, number + 1, 0, Cause.SHUTDOWN, f"reason {number}"))
        driver.succeed(AcquireSession(1))
    session = driver.machine.session(1)
    assert session is not None
    reasons = [entry.reason for entry in session.history]
    assert reasons == [f"reason {number}" for number in range(20 - kept, 20)]


def test_equal_causes_in_a_row_are_one_entry() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("history_entries", 2),)))
    driver.new(7)
    for number in range(10):
        driver.tick(1000 * number)
        driver.succeed(Store(1, number + 1, 0, Cause.FAILED, "no answer"))
        driver.succeed(AcquireSession(1))
    session = driver.machine.session(1)
    assert session is not None
    assert session.history == ((Cause.FAILED, "no answer", 10, 0, 9000),)


def test_tick_page_wakes_the_rest_with_the_next() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("tick_page", 2),)))
    for _ in range(5):
        driver.new(7, repeat_after_ms=1000)
    ready = []
    for _ in range(4):
        driver.tick(5000)
        ready.append(len(list(driver.machine.ready_ids(7))))
    assert ready == [2, 4, 5, 5]


def test_tick_page_bounds_how_many_receipts_are_dropped() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("tick_page", 2), ("receipts", 5))))
    for number in range(5):
        driver.succeed(Idempotent(b"%d" % number, 1000, New(7)))
    driver.tick(1000)
    free = 0
    while not isinstance(driver.do(Idempotent(b"new %d" % free, 9000, New(7))), Failure):
        free += 1
    assert free == 2


def test_window_batches_bound_how_late_a_batch_may_come_again() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("window_batches", 2),)))
    batches = [driver.batch(New(7)) for _ in range(4)]
    for batch in batches:
        assert not driver.apply_bytes(batch).duplicate
    assert driver.apply_bytes(batches[3]).duplicate
    assert driver.apply_bytes(batches[2]).duplicate
    assert isinstance(driver.apply_bytes(batches[1]).failure, SequenceExpired)
    assert isinstance(driver.apply_bytes(batches[0]).failure, SequenceExpired)
    assert driver.machine.session_count == 4


def test_window_results_bound_how_much_is_kept_but_the_newest_always_is() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("window_results", 3),)))
    batches = [driver.batch(*[Barrier()] * count) for count in (1, 2, 1, 9)]
    for batch in batches[:3]:
        driver.apply_bytes(batch)
    assert isinstance(driver.apply_bytes(batches[0]).failure, SequenceExpired)
    assert driver.apply_bytes(batches[1]).duplicate
    driver.apply_bytes(batches[3])
    assert driver.apply_bytes(batches[3]).duplicate
    assert isinstance(driver.apply_bytes(batches[2]).failure, SequenceExpired)


def test_window_results_count_what_was_handed_out_singly() -> None:
    driver = Driver()
    driver.succeed(SetLimits((("window_results", 6),)))
    for _ in range(5):
        driver.new(7, repeat_after_ms=0)
    first = driver.batch(Barrier())
    second = driver.batch(Acquire((7,), 5))  # weighs 1 + 5
    driver.apply_bytes(first)
    driver.apply_bytes(second)
    assert isinstance(driver.apply_bytes(first).failure, SequenceExpired)
    assert driver.apply_bytes(second).duplicate


# Together


def test_every_limit_is_tried_here() -> None:
    by_hand = (
        test_batch_bytes,
        test_batch_operations,
        test_batch_acquired_ends_what_a_batch_hands_out,
        test_proposers,
        test_history_entries_keep_the_newest_causes,
        test_tick_page_wakes_the_rest_with_the_next,
        test_window_batches_bound_how_late_a_batch_may_come_again,
        test_window_results_bound_how_much_is_kept_but_the_newest_always_is,
    )
    tried = {case.limit for case in CASES}
    tried |= {name for name in LIMIT_RANGES for test in by_hand if names(test, name)}
    assert set(LIMIT_RANGES) == tried


def names(test: Callable[..., Any], limit: str) -> bool:
    return test.__name__.startswith(f"test_{limit}")


def full() -> Driver:
    """A machine that has no byte left, with a session in each phase."""
    driver = Driver()
    for _ in range(4):
        driver.new(7, consumer=b"consumer")
    driver.succeed(Store(1, 1, 1000))
    driver.succeed(Store(2, 1, 0))
    driver.succeed(Park(4, 1))
    driver.succeed(SetLimits((("state_bytes", MIB),)))
    room_bytes = MIB - driver.machine.size_bytes
    driver.succeed(Append(3, 1, bytes_of(room_bytes - CHUNK_OVERHEAD_BYTES)))
    assert driver.machine.size_bytes == MIB
    return driver


@pytest.mark.parametrize(
    "operation",
    [
        Store(3, 1, 1000, Cause.FAILED, "full"),
        Store(3, 1, cause=Cause.SHUTDOWN),
        Release(b"consumer", 1, Cause.FAILED, "full"),
        Store(1, None, 0),
        Park(3, 1),
        Touch(3, 1, b"consumer"),
        Remove(3, 1),
        Remove(1, None),
        Remove(4, None),
        Replace(3, 1, b""),
        Acquire((7,)),
        AcquireSession(1),
        Tick(2000),
    ],
    ids=repr,
)
def test_what_ends_a_session_is_done_in_a_full_state(operation: Operation) -> None:
    driver = full()
    assert isinstance(driver.do(New(7)), LimitExceeded)
    assert isinstance(driver.do(Append(3, 1, b"x")), LimitExceeded)
    assert not isinstance(driver.do(operation), Failure)


def test_what_is_lost_when_limits_shrink_is_nothing() -> None:
    """Whatever the limits were when it came in, a session is kept and can be ended."""
    driver = Driver()
    driver.new(7, key=bytes_of(200), data=bytes_of(1000), consumer=b"consumer")
    driver.succeed(Append(1, 1, bytes_of(1000)))
    driver.succeed(SetLimits(tuple((name, one.minimum) for name, one in LIMIT_RANGES.items())))
    assert isinstance(driver.do(Append(1, 1, bytes_of(2))), LimitExceeded)
    assert driver.do(Touch(1, 1)) == 2
    driver.succeed(Store((7, bytes_of(200)), 1, 0))
    driver.advance(1)
    assert driver.do(Acquire((7,))) == (Acquired(1, 2, 4),)
    assert driver.do(Remove(1, 2)) == 4


def test_a_theme_is_32_bits() -> None:
    driver = Driver()
    driver.new(THEME_MAX)
    for theme in (-1, THEME_MAX + 1):
        for operation in (New(theme), Pause(theme), SetPolicy(theme, ()), Acquire((theme,))):
            assert isinstance(driver.do(operation), Malformed)


def test_a_priority_is_16_bits_and_time_48() -> None:
    driver = Driver()
    driver.new(7, priority=0)
    driver.new(7, priority=2**16 - 1)
    assert isinstance(driver.do(New(7, priority=-1)), Malformed)
    assert isinstance(driver.do(New(7, priority=2**16)), Malformed)
    assert isinstance(driver.do(Tick(-1)), Malformed)
    assert isinstance(driver.do(Tick(TIME_MAX_MS + 1)), Malformed)
    assert driver.tick(TIME_MAX_MS) == TIME_MAX_MS
    # At the end of time there is still room for the longest repeat.
    stored = driver.succeed(Store(1, 1, LIMITS.repeat_after_ms))
    assert stored.due_ms == TIME_MAX_MS + LIMITS.repeat_after_ms
