import pytest

from api.budget import ErrorBudget
from cluster.failures import Overloaded, Stopping, TimedOut
from state import Failure
from state.errors import SessionNotFound

LATE = TimedOut(was_sent=True, waited_ms=10)


class Node:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.is_ready = True
        self.spent = 0
        self.budget = ErrorBudget(
            failures=3,
            window_s=10,
            time=lambda: self.now_s,
            is_node_ready=lambda: self.is_ready,
            on_spent=self.leave,
        )

    def leave(self) -> None:
        self.spent += 1

    def fail(self, *seconds: float) -> None:
        for at_s in seconds:
            self.now_s = at_s
            self.budget.spend(LATE)


@pytest.fixture
def node() -> Node:
    return Node()


def test_errors_that_keep_coming_spend_it_once(node: Node) -> None:
    node.fail(0, 4, 8)
    assert node.spent == 0  # enough of them, but not for long enough
    node.fail(10, 11, 12)
    assert (node.spent, node.budget.is_spent) == (1, True)


def test_few_errors_do_not_spend_it_however_long_they_last(node: Node) -> None:
    node.fail(0, 10)
    assert node.spent == 0


@pytest.mark.parametrize("answer", [None, SessionNotFound()])
def test_any_answer_of_the_cluster_begins_it_anew(node: Node, answer: Failure | None) -> None:
    node.fail(0, 5, 9)
    if answer is None:
        node.budget.earn()
    else:
        node.budget.spend(answer)
    node.fail(11, 12)
    assert (node.spent, node.budget.failures) == (0, 2)


@pytest.mark.parametrize("failure", [Overloaded(10), Stopping(was_sent=True, reason="asked to")])
def test_what_the_node_itself_refuses_counts_neither_way(node: Node, failure: Failure) -> None:
    node.fail(0, 5)
    node.budget.spend(failure)
    node.fail(10)
    assert node.spent == 1


def test_a_node_without_a_leader_is_in_a_cluster_that_has_trouble_and_stays(node: Node) -> None:
    node.is_ready = False
    node.fail(*range(0, 100, 5))
    assert node.spent == 0
    node.is_ready = True
    node.fail(100, 105)
    assert node.spent == 0


def test_silence_between_errors_is_no_time_in_which_they_kept_coming(node: Node) -> None:
    node.fail(0)
    node.fail(1000, 1001, 1002)
    assert node.spent == 0
