"""Token buckets, beside a dumb model of them."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.security import Rates, address_key


class DumbBucket:
    """Literally a bucket, in exact numbers."""

    def __init__(self, per_second: float, burst: float, now_s: float) -> None:
        self.rate, self.burst = Fraction(per_second), Fraction(burst)
        self.level, self.at_s = self.burst, Fraction(now_s)

    def take(self, now_s: float, count: int) -> Fraction:
        now = Fraction(now_s)
        self.level = min(self.burst, self.level + (now - self.at_s) * self.rate)
        self.at_s = now
        missing = min(Fraction(count), self.burst) - self.level
        if missing > 0:
            return missing / self.rate
        self.level -= count
        return Fraction(0)


# Sums of these are exact in binary, so that the model can be compared to the last bit.
POWERS = st.integers(-4, 10).map(lambda exponent: 2.0**exponent)
STEPS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.one_of(st.just(0), st.integers(0, 5000)), st.integers(1, 9)
    ),
    max_size=60,
)


@given(POWERS, st.integers(1, 8), STEPS)
def test_it_does_what_buckets_do(
    per_second: float, burst: int, steps: Sequence[tuple[str, int, int]]
) -> None:
    rates, models, now_s = Rates(per_second, burst), dict[str, DumbBucket](), 1000.0
    for key, pause, count in steps:
        now_s += pause / 1024
        model = models.setdefault(key, DumbBucket(per_second, burst, now_s))
        assert rates.take(key, now_s, count) == model.take(now_s, count)


@given(
    st.floats(0.01, 1e6),
    st.floats(1, 1000),
    st.floats(0, 1e6),
    st.lists(st.floats(0, 2), min_size=1, max_size=100),
)
def test_no_window_of_time_has_more_than_a_burst_and_its_share(
    per_second: float, burst: float, start_s: float, pauses: list[float]
) -> None:
    rates, now_s = Rates(per_second, burst), start_s
    taken: list[float] = []
    for pause_s in pauses:
        now_s += pause_s
        while len(taken) < 300 and rates.take("a", now_s) == 0:
            taken.append(now_s)
    for first, since_s in enumerate(taken):
        bound = burst + (taken[-1] - since_s + 1e-5) * per_second
        assert len(taken) - first <= bound * (1 + 1e-9) + 1e-6


@given(st.floats(0.01, 1e6), st.floats(1, 100), st.floats(0, 1e6), st.integers(1, 300))
def test_who_waits_as_told_goes_on(
    per_second: float, burst: float, now_s: float, count: int
) -> None:
    rates = Rates(per_second, burst)
    while not (wait_s := rates.take("a", now_s, count)):
        pass
    assert rates.take("a", now_s + wait_s, count) == 0


def test_clients_do_not_share_a_bucket_and_a_refusal_costs_nothing() -> None:
    rates = Rates(2, 1)
    assert rates.take("a", 10.0) == 0
    assert [rates.take("a", 10.0) for _ in range(3)] == [0.5, 0.5, 0.5]
    assert rates.take("b", 10.0) == 0
    assert rates.take("a", 10.5) == 0


def test_without_a_burst_it_is_a_seconds_worth_and_one_at_least() -> None:
    rates = Rates(5)
    assert [rates.take("a", 0.0) == 0 for _ in range(6)] == [True] * 5 + [False]
    slow = Rates(0.25)
    assert slow.take("a", 0.0) == 0
    assert slow.take("a", 0.0) == 4.0


def test_more_than_a_bucket_goes_through_and_leaves_a_debt() -> None:
    rates = Rates(1, 4)
    assert rates.take("a", 0.0, 10) == 0
    assert rates.take("a", 0.0, 1) == 7.0
    assert rates.take("a", 0.0, 10) == 10.0


def test_memory_is_bounded_and_who_keeps_coming_in_vain_is_remembered() -> None:
    rates = Rates(0.001, 1, keys_max=3)
    assert rates.take("flood", 0.0) == 0
    for number in range(1000):
        assert rates.take(number, 0.0) == 0
        assert rates.take("flood", 0.0) > 0
        assert len(rates) <= 3
    assert rates.take(997, 0.0) == 0  # forgotten, so it has a full bucket
    assert rates.take(999, 0.0) > 0


@pytest.mark.parametrize(
    ("per_second", "burst", "keys_max"),
    [(0, 1, 1), (-1, 1, 1), (1, 0.5, 1), (1, 1, 0), (float("nan"), 1, 1)],
)
def test_senseless_rates_are_refused(per_second: float, burst: float, keys_max: int) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        Rates(per_second, burst, keys_max)


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("/run/front.sock", "/run/front.sock"),
    ],
)
def test_whom_an_address_belongs_to(host: str, key: str) -> None:
    assert address_key(host) == key
