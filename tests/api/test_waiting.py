"""Who waits for sessions, against real state, with time and answers in the test's hand."""

from typing import Any

import pytest

from api import waiting
from api.waiting import Waiter, Waiters
from cluster.failures import Overloaded
from state import Failure
from state import operations as op
from tests.api.fakes import Answers, FakeCluster

THEME, OTHER = 7, 8


class Setting:
    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.node = self.cluster.node("a")
        self.waiters = Waiters(self.node, self.cluster.loop)

    def store(self, count: int = 1, theme: int = THEME, after_ms: int = 0) -> None:
        self.cluster.do(*(op.New(theme, repeat_after_ms=after_ms) for _ in range(count)))

    def wait(
        self, *themes: int, count: int = 1, consumer: bytes | None = None
    ) -> tuple[Waiter, Answers]:
        answers = Answers()
        return self.waiters.ask(themes or (THEME,), count, consumer, answers), answers


@pytest.fixture
def at() -> Setting:
    return Setting()


def ids(answers: Answers) -> list[str]:
    (found,) = answers
    assert not isinstance(found, Failure)
    return [one.id for one in found]


def test_what_is_there_is_asked_for_at_once(at: Setting) -> None:
    at.store()
    waiter, answers = at.wait()
    at.node.commit()
    assert ids(answers) == ["1"]
    assert waiter.is_over
    assert len(at.waiters) == 0


def test_waiting_asks_nothing_until_there_is_something(at: Setting) -> None:
    _, answers = at.wait()
    at.cluster.loop.advance(60)
    at.store(theme=OTHER)
    assert (at.node.submitted, answers) == (0, [])
    at.store()
    at.node.commit()
    assert ids(answers) == ["2"]


def test_a_session_wakes_who_waits_when_its_time_comes(at: Setting) -> None:
    at.store(after_ms=5000)
    _, answers = at.wait()
    at.cluster.loop.advance(4.9)
    at.cluster.do()
    assert at.node.submitted == 0
    at.cluster.loop.advance(0.2)
    at.cluster.do()  # a Tick is in each batch
    at.node.commit()
    assert ids(answers) == ["1"]


def test_as_many_ask_as_there_is_something_for_and_the_longest_waiting_first(at: Setting) -> None:
    waiting = [at.wait() for _ in range(10)]
    at.store(3)
    assert at.node.submitted == 3
    at.node.commit()
    assert [bool(answers) for _, answers in waiting] == [True] * 3 + [False] * 7


def test_one_that_asks_for_several_leaves_nothing_for_who_is_behind(at: Setting) -> None:
    _, first = at.wait(count=5)
    _, second = at.wait()
    at.store(4)
    at.node.commit()
    assert len(ids(first)) == 4
    assert (second, at.node.submitted) == ([], 1)


def test_no_more_ask_than_may_be_active(at: Setting) -> None:
    at.cluster.do(op.SetPolicy(THEME, (("max_active", 2),)))
    waiting = [at.wait() for _ in range(10)]
    at.store(100)
    assert at.node.submitted == 2
    at.node.commit_all()
    assert at.node.submitted == 2
    at.cluster.do(op.Remove(int(ids(waiting[0][1])[0], 16), 1))
    at.node.commit_all()
    assert sum(bool(answers) for _, answers in waiting) == 3


def test_whoever_was_too_late_keeps_its_place(at: Setting) -> None:
    first, second = at.wait(), at.wait()
    at.store()
    at.node.commit(op.Acquire((THEME,)))  # somebody at another node was quicker
    assert first[1] == []
    at.store()
    at.node.commit()
    assert (bool(first[1]), bool(second[1])) == (True, False)


def test_over_several_themes_it_stands_in_the_line_of_each(at: Setting) -> None:
    _, both = at.wait(THEME, OTHER)
    _, one = at.wait(OTHER)
    at.store(theme=OTHER)
    at.store(theme=THEME)
    at.node.commit_all()
    assert len(ids(both)) == 1
    assert len(ids(one)) == 1  # not overlooked because the other one could have taken it


def test_themes_that_are_named_twice_count_once(at: Setting) -> None:
    _, answers = at.wait(THEME, THEME)
    at.store()
    at.node.commit()
    assert ids(answers) == ["1"]


def test_who_leaves_in_time_is_not_called(at: Setting) -> None:
    waiter, answers = at.wait()
    assert at.waiters.leave(waiter)
    at.store()
    assert (at.node.submitted, answers, len(at.waiters)) == (0, [], 0)


def test_who_leaves_too_late_is_told_what_it_was_given(at: Setting) -> None:
    waiter, answers = at.wait()
    at.store()
    assert not at.waiters.leave(waiter)
    at.node.commit()
    assert ids(answers) == ["1"]


def test_who_leaves_too_late_and_was_given_nothing_is_told_so(at: Setting) -> None:
    waiter, answers = at.wait()
    at.store()
    at.waiters.leave(waiter)
    at.node.commit(op.Acquire((THEME,)))
    assert answers == [[]]
    assert len(at.waiters) == 0


@pytest.mark.parametrize("at_once", [True, False])
def test_a_failure_is_told(at: Setting, at_once: bool) -> None:
    if at_once:
        at.node.refusal = Overloaded(200)
    at.store()
    _, answers = at.wait()
    if not at_once:
        at.node.expire()
    assert len(answers) == 1
    assert isinstance(answers[0], Failure)
    assert len(at.waiters) == 0


def test_paused_themes_wake_nobody_before_they_are_resumed(at: Setting) -> None:
    at.cluster.do(op.Pause(THEME))
    at.store()
    _, answers = at.wait()
    assert at.node.submitted == 0
    at.cluster.do(op.Resume(THEME))
    at.node.commit()
    assert ids(answers) == ["1"]


def test_another_state_is_looked_at(at: Setting) -> None:
    _, answers = at.wait()
    at.node.watchers, watchers = [], at.node.watchers
    at.store()  # which this node never saw: it got a snapshot
    at.node.watchers = watchers
    at.node.on_installed()
    at.node.commit()
    assert ids(answers) == ["1"]


def test_what_no_hint_has_told_of_is_found_within_a_second(at: Setting) -> None:
    _, answers = at.wait()
    at.node.watchers, watchers = [], at.node.watchers
    at.store()
    at.node.watchers = watchers
    at.cluster.loop.advance(1.1)
    at.node.commit()
    assert ids(answers) == ["1"]


def test_when_the_node_stops_all_are_told_that_there_is_nothing(at: Setting) -> None:
    _, idle = at.wait()
    at.store(theme=OTHER)
    _, asking = at.wait(OTHER)
    at.waiters.stop()
    assert (idle, asking) == ([[]], [])
    at.node.commit()
    assert len(ids(asking)) == 1
    _, late = at.wait()
    assert late == [[]]
    assert at.cluster.loop.count == 0


def test_a_crowd_costs_what_it_gets(at: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    count = at.node.ready_count

    def ready_count(theme: int) -> int:
        nonlocal looks
        looks += 1
        return count(theme)

    monkeypatch.setattr(at.node, "ready_count", ready_count)
    waiting: list[Any] = [at.wait() for _ in range(2000)]
    at.store(2000)
    at.node.commit_all()
    assert all(answers for _, answers in waiting)
    assert looks < 6000
    assert at.waiters.acquires == 2000
    assert at.waiters.empty_answers == 0


def test_so_many_places_in_queues_are_taken_and_no_more(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PLACES_MAX", 4)
    first, _ = at.wait(1, 2)
    at.wait(1, 2)
    refused, answers = at.wait(1)
    assert refused.is_over
    (answer,) = answers
    assert isinstance(answer, Overloaded)
    at.waiters.leave(first)
    _, answers = at.wait(1, 2)
    assert not answers


def test_one_consumer_leaves_places_for_others(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "CONSUMER_PLACES_MAX", 2)
    first, _ = at.wait(1, 2, consumer=b"greedy")
    refused, answers = at.wait(1, consumer=b"greedy")
    assert refused.is_over
    assert isinstance(answers[0], Overloaded)
    assert not at.wait(1, 2, consumer=b"other")[1]
    assert not at.wait(1, 2)[1]
    assert len(at.waiters) == 3
    at.waiters.leave(first)
    assert len(at.waiters) == 2
    assert not at.wait(1, consumer=b"greedy")[1]


def test_who_waits_for_many_themes_is_looked_at_in_many_turns(
    at: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_LOOKS", 3)
    waiting_for = [at.wait(theme)[1] for theme in range(1, 11)]
    monkeypatch.setattr(at.waiters, "on_applied", lambda _: None)  # no hint comes
    for theme in range(1, 11):
        at.store(theme=theme)
    at.cluster.loop.advance(2)
    at.node.commit_all()
    assert all(map(ids, waiting_for))
