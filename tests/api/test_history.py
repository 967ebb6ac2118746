"""The last events of a node, beside a list that keeps them all."""

import asyncio
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import history as module
from api.gateway import Watcher
from api.history import EVENT_BYTES, HISTORY_BYTES, GoneError, History, Place, Turns
from state import Applied, EventKind
from state.events import RawEvent


class Node:
    """What a history is told by: batches with events, and without."""

    def __init__(self, applied_index: int = 0) -> None:
        self.watchers: list[Watcher] = []
        self.applied_index = applied_index
        self.all: list[tuple[Place, RawEvent]] = []
        self._count = 0

    def apply(self, event_count: int) -> None:
        events = []
        self.applied_index += 1
        for position in range(event_count):
            self._count += 1
            event = (EventKind.APPENDED, self._count, 7, None, 1)
            events.append(event)
            self.all.append((Place(self.applied_index, position), event))
        self.tell(tuple(events))

    def tell(self, events: tuple[RawEvent, ...]) -> None:
        for one in self.watchers:
            one.on_applied(Applied(self.applied_index, (), raw_events=events))

    def install(self, applied_index: int) -> None:
        self.applied_index = applied_index
        for one in self.watchers:
            one.on_installed()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_MIN", 0)


def taken(history: History, place: Place, count: int = 1000) -> list[tuple[Place, RawEvent]]:
    """One after the other."""
    return [
        (Place(log_index, position), event)
        for log_index, first, events in history.after(place, count)
        for position, event in enumerate(events, first)
    ]


# Places


@given(st.integers(0, 10**18 - 1), st.none() | st.integers(0, 10**9 - 1))
def test_a_place_is_read_as_it_was_written(log_index: int, position: int | None) -> None:
    place = Place(log_index) if position is None else Place(log_index, position)
    assert Place.of(str(place)) == place


@pytest.mark.parametrize(
    "text", ["", ".", "1.", ".1", "-1", "1.2.3", "1 ", "0x1", "\u0661", "9" * 19, "1." + "9" * 10]
)
def test_what_is_no_place_is_none(text: str) -> None:
    assert Place.of(text) is None


def test_the_place_of_a_batch_is_after_all_its_events() -> None:
    assert Place(3, 10**9 - 1) < Place(3) < Place(4, 0)


# Reading


@given(
    sizes=st.lists(st.integers(0, 5), max_size=30),
    events_max=st.integers(0, 40),
    start=st.integers(0, 100),
    data=st.data(),
)
def test_whoever_is_not_gone_gets_all_that_comes_after(
    sizes: list[int], events_max: int, start: int, data: st.DataObject
) -> None:
    node = Node(start)
    history = History(node, events_max=events_max)
    for size in sizes:
        node.apply(size)
    assert history.event_count <= max(events_max, max(sizes, default=0))
    assert history.end == Place(node.applied_index)
    kept = [place for place, _ in node.all][-history.event_count :] if history.event_count else []
    for place in [Place(start), *(place for place, _ in node.all), history.end]:
        after = [(one, event) for one, event in node.all if one > place]
        if set(kept) >= {one for one, _ in after}:
            count = data.draw(st.integers(1, 20))
            assert taken(history, place) == after
            assert taken(history, place, count) == after[:count]
            whole = Place(place.log_index)
            assert taken(history, whole) == [one for one in node.all if one[0] > whole]
        else:
            with pytest.raises(GoneError):
                history.after(place, 1)


def test_nothing_is_known_of_what_came_before_the_node_started() -> None:
    history = History(Node(50), events_max=10)
    for place in (Place(0), Place(49), Place(50, 3)):
        with pytest.raises(GoneError):
            history.after(place, 1)
    assert history.after(Place(50), 1) == []
    assert history.resyncs == 3


def test_whoever_is_ahead_of_this_node_hears_nothing_twice() -> None:
    node = Node()
    history = History(node, events_max=100)
    node.apply(2)
    ahead = Place(3, 0)
    assert history.after(ahead, 10) == []
    node.apply(2)
    assert history.after(ahead, 10) == []
    node.apply(2)
    assert [place for place, _ in taken(history, ahead)] == [Place(3, 1)]


def test_after_a_state_was_installed_everything_before_is_gone() -> None:
    node = Node()
    history = History(node, events_max=100)
    node.apply(3)
    node.install(10)
    assert (history.end, history.event_count) == (Place(10), 0)
    with pytest.raises(GoneError):
        history.after(Place(1), 10)
    node.apply(1)
    assert [place for place, _ in taken(history, Place(10))] == [Place(11, 0)]


def test_the_newest_batch_is_kept_whole_however_large() -> None:
    node = Node()
    history = History(node, events_max=2)
    node.apply(1)
    node.apply(50)
    assert len(history.after(Place(1, 0), 100)[0].events) == 50
    node.apply(1)
    assert history.event_count == 1


# What it costs


class Sealed(tuple[Any, ...]):
    """Events that nobody looks into."""

    __slots__ = ()

    def __iter__(self) -> Any:
        raise AssertionError("the events of a batch were looked at")

    __getitem__ = __iter__  # type: ignore[assignment]


def test_a_batch_is_taken_without_a_look_at_its_events() -> None:
    node = Node()
    history = History(node, events_max=25)
    for _ in range(10):
        node.applied_index += 1
        node.tell(Sealed(range(10)))
    assert history.event_count == 20


def test_an_event_takes_no_more_than_is_counted() -> None:
    session_id, key, revision = 2**47, b"k" * 256, 2**40
    event = (EventKind.CREATED, session_id, 2**32 - 1, key, revision)
    parts = sum(map(sys.getsizeof, (event, session_id, key, revision, event[2])))
    assert parts + 16 + 8 <= EVENT_BYTES  # the collector's part of a tuple, and its place in one


def test_the_settings_cannot_ask_for_more_memory_than_there_may_be() -> None:
    history = History(Node(), events_max=10**12)
    assert history._events_max * EVENT_BYTES <= HISTORY_BYTES  # noqa: SLF001 - a GiB of events


def test_a_few_are_kept_whatever_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who follow look a moment later, when several batches may have been applied."""
    monkeypatch.setattr(module, "EVENTS_MIN", 20)
    node = Node()
    history = History(node, events_max=0)
    for _ in range(20):
        node.apply(1)
    assert len(taken(history, Place(0))) == 20


# Waiting


async def test_all_who_wait_are_told_once_and_not_of_batches_without_events() -> None:
    node = Node()
    history = History(node, events_max=100)
    changed = history.changed()
    assert history.changed() is changed
    node.apply(0)
    assert not changed.done()
    node.apply(1)
    assert changed.done()
    assert not history.changed().done()
    node.apply(1)


async def test_whoever_waits_is_told_that_a_state_was_installed() -> None:
    node = Node()
    history = History(node, events_max=100)
    changed = history.changed()
    node.install(5)
    assert changed.done()


async def test_a_turn_belongs_to_one_and_is_followed_by_a_pause() -> None:
    turns = Turns()
    loop = asyncio.get_running_loop()
    spans: list[tuple[float, float]] = []

    async def work() -> None:
        async with turns:
            begin_s = loop.time()
            while loop.time() < begin_s + 0.01:
                pass
            spans.append((begin_s, loop.time()))

    await asyncio.gather(*(work() for _ in range(5)))
    for (begin_s, end_s), (next_s, _) in pairwise(spans):
        assert next_s - end_s >= 3 * (end_s - begin_s)


async def test_whoever_leaves_while_it_waits_for_its_turn_takes_none() -> None:
    turns = Turns()

    async def work() -> None:
        async with turns:
            pass

    async with turns:
        waiting = [asyncio.ensure_future(work()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[2].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(10):
        await work()
