"""Keys in the order in which they expire, whatever comes and goes."""

from hypothesis import given
from hypothesis import strategies as st

from state.expiries import Expiries, Expiry

TIMES_MS = st.integers(0, 5_000)
KEYS = st.binary(max_size=2)
ADD = st.tuples(st.just("add"), TIMES_MS, KEYS)
DROP = st.tuples(st.just("drop"), st.integers(0, 20), st.just(b""))
LOOK = st.tuples(st.just("look"), st.just(0), st.just(b""))


@given(st.lists(ADD | DROP | LOOK, max_size=60))
def test_the_first_is_the_first_of_those_that_are_there(
    steps: list[tuple[str, int, bytes]],
) -> None:
    expiries, there = Expiries(), set[Expiry]()
    for what, number, key in steps:
        if what == "add" and (number, key) not in there:
            expiries.add(number, key)
            there.add((number, key))
        elif what == "drop" and there:
            there.discard(sorted(there)[number % len(there)])
        elif what == "look":
            assert expiries.first(there.__contains__) == min(there, default=None)
    while there:
        first = expiries.first(there.__contains__)
        assert first == min(there)
        there.discard(first)
    assert expiries.first(there.__contains__) is None
