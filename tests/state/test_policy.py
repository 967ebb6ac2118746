"""When sessions come back: fixed, exponential, capped, and spread."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import Backoff, Cause, Policy
from state.limits import DAY_MS, HOUR_MS, LIMIT_RANGES, SECOND_MS, YEAR_MS
from state.operations import AcquireSession, New, SetPolicy, Store
from state.policy import DEFAULT_POLICY, POLICY_RANGES
from tests.state.driver import Driver

REPEAT_MAX_MS = LIMIT_RANGES["repeat_after_ms"].default
ids = st.integers(1, 2**48 - 1)
attempts = st.integers(0, 2**63 - 1)


def policies() -> st.SearchStrategy[Policy]:
    """All that SetPolicy lets pass."""
    return st.builds(
        Policy,
        **{name: st.integers(one.minimum, one.maximum) for name, one in POLICY_RANGES.items()},
    )


def exponential(repeat_ms: int, cap_ms: int, jitter_permille: int = 0) -> Policy:
    return Policy(
        repeat_ms=repeat_ms,
        backoff=Backoff.EXPONENTIAL,
        repeat_cap_ms=cap_ms,
        jitter_permille=jitter_permille,
    )


@given(ids, attempts, st.integers(0, REPEAT_MAX_MS))
def test_fixed_is_always_the_same(session_id: int, attempt: int, repeat_ms: int) -> None:
    policy = Policy(repeat_ms=repeat_ms, jitter_permille=0)
    assert policy.delay_ms(session_id, attempt) == repeat_ms


def test_exponential_doubles_up_to_the_cap() -> None:
    policy = exponential(1000, 60_000)
    delays = [policy.delay_ms(1, attempt) for attempt in range(10)]
    assert delays == [1000, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]


@given(ids, attempts)
def test_exponential_ends_at_the_cap_however_many_attempts(session_id: int, attempt: int) -> None:
    assert exponential(0, HOUR_MS).delay_ms(session_id, attempt) == 0
    assert exponential(1, REPEAT_MAX_MS).delay_ms(session_id, attempt) <= REPEAT_MAX_MS
    assert exponential(1, REPEAT_MAX_MS).delay_ms(session_id, 64 + attempt) == REPEAT_MAX_MS


def test_a_repeat_above_the_cap_is_capped_at_once() -> None:
    assert exponential(60_000, 1000).delay_ms(1, 1) == 1000


def test_the_cap_is_for_doubling_only() -> None:
    policy = Policy(repeat_ms=2 * HOUR_MS, repeat_cap_ms=HOUR_MS, jitter_permille=0)
    assert policy.delay_ms(1, 5) == 2 * HOUR_MS


@given(policies(), ids, attempts)
def test_jitter_stays_within_its_share(policy: Policy, session_id: int, attempt: int) -> None:
    plain_ms = Policy(
        repeat_ms=policy.repeat_ms,
        backoff=policy.backoff,
        repeat_cap_ms=policy.repeat_cap_ms,
        jitter_permille=0,
    ).delay_ms(session_id, attempt)
    delay_ms = policy.delay_ms(session_id, attempt)
    spread_ms = plain_ms * policy.jitter_permille // 1000
    assert plain_ms - spread_ms <= delay_ms <= min(plain_ms + spread_ms, REPEAT_MAX_MS)
    assert delay_ms >= 0
    assert type(delay_ms) is int


@given(policies(), ids, attempts)
def test_the_delay_depends_on_nothing_else(policy: Policy, session_id: int, attempt: int) -> None:
    assert policy.delay_ms(session_id, attempt) == policy.delay_ms(session_id, attempt)


# Written down once, because another version must answer the same: sessions and attempts so far
# are replayed from the log.
PINNED_MS = {
    (1, 1): 10_682,
    (1, 2): 10_819,
    (1, 3): 9_735,
    (2, 1): 10_915,
    (2**48 - 1, 1): 9_886,
    (2**48 - 1, 1000): 10_099,
}


def test_the_jitter_never_changes() -> None:
    found = {key: DEFAULT_POLICY.delay_ms(*key) for key in PINNED_MS}
    assert found == PINNED_MS


_PRINT_DELAYS = """
from state import Policy
print([Policy().delay_ms(one, attempt) for one in range(1, 50) for attempt in range(5)])
"""


def test_the_jitter_is_the_same_in_every_process() -> None:
    outputs = {
        subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _PRINT_DELAYS],
            env={"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = [Policy().delay_ms(one, attempt) for one in range(1, 50) for attempt in range(5)]
    assert outputs == {f"{here}\n"}


def test_a_herd_parts() -> None:
    """10,000 sessions that failed together come back evenly over the whole spread."""
    policy = Policy(repeat_ms=10 * SECOND_MS, jitter_permille=500)
    tenths = Counter(
        (policy.delay_ms(session_id, 1) - 5 * SECOND_MS) // SECOND_MS
        for session_id in range(1, 10_001)
    )
    # The last tenth takes the one delay that is exactly at its end.
    tenths[9] += tenths.pop(10, 0)
    assert sorted(tenths) == list(range(10))
    assert all(850 < count < 1150 for count in tenths.values())


def test_who_came_back_together_parts_again() -> None:
    """The attempts of one session are spread, too, and not all to the same side."""
    policy = Policy(repeat_ms=10 * SECOND_MS, jitter_permille=500)
    delays = [policy.delay_ms(1, attempt) for attempt in range(1, 1001)]
    assert len(set(delays)) > 900
    assert 9500 < sum(delays) / len(delays) < 10_500


def test_sessions_with_equal_delays_once_do_not_stay_together() -> None:
    policy = Policy(repeat_ms=100, jitter_permille=1000)
    pairs = [
        (one, other)
        for one in range(1, 60)
        for other in range(one + 1, 60)
        if policy.delay_ms(one, 1) == policy.delay_ms(other, 1)
    ]
    assert pairs
    again = [pair for pair in pairs if policy.delay_ms(pair[0], 2) == policy.delay_ms(pair[1], 2)]
    assert len(again) < len(pairs) / 2


@pytest.mark.parametrize("name", POLICY_RANGES)
def test_ranges_are_sane(name: str) -> None:
    one = POLICY_RANGES[name]
    assert one.minimum <= one.default <= one.maximum
    assert one.minimum >= 0
    assert one.reason.endswith(".")
    assert type(one.default) is type(one.minimum) is type(one.maximum) is int
    assert getattr(DEFAULT_POLICY, name) == one.default


def test_every_field_has_a_range_and_says_its_unit() -> None:
    assert set(POLICY_RANGES) == {one.name for one in fields(Policy)}
    for name, one in POLICY_RANGES.items():
        if one.maximum >= DAY_MS and one.maximum != 2**31 - 1:
            assert name.endswith("_ms")


def test_a_policy_cannot_ask_for_more_than_a_store_may() -> None:
    assert POLICY_RANGES["repeat_ms"].maximum == REPEAT_MAX_MS == 10 * YEAR_MS
    assert POLICY_RANGES["repeat_cap_ms"].maximum == REPEAT_MAX_MS


def test_store_asks_the_policy_with_the_attempts_made() -> None:
    driver = Driver()
    driver.tick(1_000_000)
    driver.succeed(
        SetPolicy(
            7, (("repeat_ms", 1000), ("backoff", Backoff.EXPONENTIAL), ("jitter_permille", 0))
        )
    )
    driver.succeed(New(7))
    for attempt, delay_ms in enumerate((1000, 2000, 4000, 8000), start=1):
        stored = driver.succeed(Store(1, attempt, cause=Cause.FAILED))
        assert stored.due_ms == driver.machine.now_ms + delay_ms
        driver.succeed(AcquireSession(1))
    # An orderly shutdown is no attempt, and comes back at once.
    stored = driver.succeed(Store(1, 5, cause=Cause.SHUTDOWN))
    assert stored.due_ms == driver.machine.now_ms
    driver.succeed(AcquireSession(1))
    stored = driver.succeed(Store(1, 6, cause=Cause.FAILED))
    assert stored.due_ms == driver.machine.now_ms + 16_000
