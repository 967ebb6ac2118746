"""OrderedInts beside a list that is sorted anew each time."""

from bisect import insort
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from state import ordered
from state.ordered import OrderedInts

SPLIT_AT = ordered._SPLIT_AT  # noqa: SLF001 - sizes around it are the interesting ones
SIZES = [0, 1, 2, SPLIT_AT // 2, SPLIT_AT - 1, SPLIT_AT, SPLIT_AT + 1, 3 * SPLIT_AT]

# Few enough that what is drawn is often there, and wide enough that runs are long.
items = st.integers(-50, 4 * SPLIT_AT)


class OrderedIntsMachine(RuleBasedStateMachine):
    """Any sequence of calls; `model` is what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.model: list[int] = []
        self.ints = OrderedInts()

    @initialize(size=st.sampled_from(SIZES), step=st.integers(1, 3), seed=st.integers(0, 99))
    def begin(self, size: int, step: int, seed: int) -> None:
        self.model = list(range(0, size * step, step))
        shuffled = self.model.copy()
        Random(seed).shuffle(shuffled)
        self.ints = OrderedInts(shuffled)

    @rule(item=items)
    def add(self, item: int) -> None:
        if item not in self.model:
            insort(self.model, item)
            self.ints.add(item)

    @rule(first=items, count=st.integers(1, SPLIT_AT + 100), falling=st.booleans())
    def add_many(self, first: int, count: int, falling: bool) -> None:
        new = sorted(set(range(first, first + count)).difference(self.model))
        for item in reversed(new) if falling else new:
            self.ints.add(item)
        self.model = sorted([*self.model, *new])

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def remove(self, data: st.DataObject) -> None:
        item = self.model.pop(data.draw(st.integers(0, len(self.model) - 1)))
        self.ints.remove(item)

    @rule(data=st.data(), count=st.integers(1, SPLIT_AT + 100))
    @precondition(lambda self: self.model)
    def remove_many(self, data: st.DataObject, count: int) -> None:
        start = data.draw(st.integers(0, len(self.model) - 1))
        for item in reversed(self.model[start : start + count]):
            self.ints.remove(item)
        del self.model[start : start + count]

    @rule(item=items)
    def remove_or_not(self, item: int) -> None:
        if item in self.model:
            self.model.remove(item)
            self.ints.remove(item)
        else:
            with pytest.raises(KeyError):
                self.ints.remove(item)

    @rule(bound=items, count=st.integers(0, 2 * SPLIT_AT))
    def pop_until(self, bound: int, count: int) -> None:
        expected = [item for item in self.model if item <= bound][:count]
        assert self.ints.pop_until(bound, count) == expected
        del self.model[: len(expected)]

    @rule(bound=items)
    def first_from(self, bound: int) -> None:
        expected = next((item for item in self.model if item >= bound), None)
        assert self.ints.first_from(bound) == expected

    @invariant()
    def same(self) -> None:
        assert len(self.ints) == len(self.model)
        assert list(self.ints) == self.model
        assert self.ints.first() == (self.model[0] if self.model else None)


TestOrderedInts = OrderedIntsMachine.TestCase


@given(st.sets(st.integers(0, 2**200)))
def test_ints_of_any_size(found: set[int]) -> None:
    ints = OrderedInts()
    for item in found:
        ints.add(item)
    assert list(ints) == sorted(found)
    assert list(OrderedInts(found)) == sorted(found)
    for item in found:
        if item + 1 not in found:
            with pytest.raises(KeyError):
                ints.remove(item + 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("page", [1, SPLIT_AT // 2, SPLIT_AT, 10 * SPLIT_AT])
def test_popped_in_pages_they_come_in_order(size: int, page: int) -> None:
    ints = OrderedInts(range(size))
    popped: list[int] = []
    while found := ints.pop_until(size, page):
        assert len(found) <= page
        popped += found
    assert popped == list(range(size))
    assert list(ints) == []
    assert ints.first() is None
    assert len(ints) == 0
    ints.add(5)
    assert list(ints) == [5]


def test_no_list_grows_beyond_the_split_nor_stays_empty() -> None:
    """In whatever order they come and go: what keeps each call cheap."""
    for order in ("rising", "falling", "shuffled"):
        numbers = list(range(20_000))
        if order == "falling":
            numbers.reverse()
        if order == "shuffled":
            Random(1).shuffle(numbers)
        ints = OrderedInts()
        for number in numbers:
            ints.add(number)
        assert_sound(ints)
        for number in numbers[::2]:
            ints.remove(number)
        assert_sound(ints)
        assert list(ints) == sorted(numbers[1::2])


def assert_sound(ints: OrderedInts) -> None:
    lists, maxes = ints._lists, ints._maxes  # noqa: SLF001 - the invariants of its own comment
    assert all(0 < len(one) <= SPLIT_AT for one in lists)
    assert maxes == [one[-1] for one in lists]
    assert sum(map(len, lists)) == len(ints)
