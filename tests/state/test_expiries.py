"""Keys in the order in which they expire, whatever comes and goes."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.expiries import Expiries, Expiry

TIMES_MS = st.integers(0, 5_000)
KEYS = st.binary(max_size=2)
ADD = st.tuples(st.just("add"), TIMES_MS, KEYS)
REMOVE = st.tuples(st.just("remove"), st.integers(0, 20), st.just(b""))
LOOK = st.tuples(st.just("look"), st.just(0), st.just(b""))


@given(st.lists(ADD | REMOVE | LOOK, max_size=60))
def test_the_first_is_the_first_of_those_that_are_there(
    steps: list[tuple[str, int, bytes]],
) -> None:
    expiries, there = Expiries(), set[Expiry]()
    for what, number, key in steps:
        if what == "add" and (number, key) not in there:
            expiries.add(number, key)
            there.add((number, key))
        elif what == "remove" and there:
            gone = sorted(there)[number % len(there)]
            expiries.remove(*gone)
            there.remove(gone)
        elif what == "look":
            assert expiries.first() == min(there, default=None)
    while there:
        first = expiries.first()
        assert first == min(there)
        expiries.remove(*first)
        there.remove(first)
    assert expiries.first() is None


def test_what_is_not_there_cannot_be_removed() -> None:
    expiries = Expiries()
    expiries.add(1, b"a")
    for expires_ms, key in ((1, b"b"), (2, b"a"), (5000, b"a")):
        with pytest.raises(KeyError):
            expiries.remove(expires_ms, key)


def test_what_is_gone_takes_no_memory() -> None:
    """However late it would have expired, and whatever stays that expires sooner."""
    expiries = Expiries()
    expiries.add(0, b"stays")
    tracemalloc.start()
    try:
        for number in range(1, 20_000):
            expires_ms, key = number * 100_000, b"%d" % number
            expiries.add(expires_ms, key)
            assert expiries.first() == (0, b"stays")
            expiries.remove(expires_ms, key)
        left_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left_bytes < 10_000
