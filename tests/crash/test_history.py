"""Each check fails on the history that a lying cluster would leave."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.crash.history import Attempt, Dump, Fate, History, Removal, ViolationError, check

LEDGER = "writer-0"
WORKED, REMOVED = 100, 101  # sessions


def honest() -> tuple[History, Dump]:
    """A history, and the one state that is true to it."""
    history = History()
    for fate in (Fate.ACKNOWLEDGED, Fate.NOT_APPLIED, Fate.UNKNOWN, Fate.ACKNOWLEDGED):
        history.attempt(Attempt("node-1#1", fate, ledger=LEDGER))  # 1 to 4
    history.attempt(Attempt("node-2#1", Fate.ACKNOWLEDGED, session_id=WORKED))  # 5
    history.attempt(Attempt("node-2#1", Fate.ACKNOWLEDGED, session_id=WORKED, epoch=1))  # 6
    history.attempt(Attempt("node-2#1", Fate.ACKNOWLEDGED, session_id=REMOVED))  # 7
    history.attempt(Attempt("node-2#1"))  # 8: a session that nobody has heard of
    history.removals.append(Removal(REMOVED, Fate.ACKNOWLEDGED))
    history.acquired(WORKED, 1, "node-2/1/worker")
    return history, Dump("node-1", 50, 4711, {LEDGER: [1, 3, 4]}, {WORKED: [5, 6], 102: [8]})


def test_an_honest_cluster_passes() -> None:
    history, dump = honest()
    check(history, [dump, replace(dump, name="node-2"), replace(dump, name="node-3")])


Doctor = Callable[[History, Dump], None]


def lose(_history: History, dump: Dump) -> None:
    dump.ledgers[LEDGER].remove(4)


def lose_all(_history: History, dump: Dump) -> None:
    dump.ledgers.clear()
    dump.work.clear()


def lose_of_session(_history: History, dump: Dump) -> None:
    dump.work[WORKED].remove(6)


def apply_twice(_history: History, dump: Dump) -> None:
    dump.ledgers[LEDGER].append(4)


def apply_unknown_twice(_history: History, dump: Dump) -> None:
    dump.ledgers[LEDGER].insert(1, 3)


def create_twice(_history: History, dump: Dump) -> None:
    dump.work[103] = [8]


def apply_not_applied(_history: History, dump: Dump) -> None:
    dump.ledgers[LEDGER] = [1, 2, 3, 4]


def invent(_history: History, dump: Dump) -> None:
    dump.ledgers[LEDGER].append(9)


def misplace(_history: History, dump: Dump) -> None:
    dump.ledgers["another"] = [dump.ledgers[LEDGER].pop()]


def misplace_of_session(_history: History, dump: Dump) -> None:
    dump.work[102].append(dump.work[WORKED].pop())


def reorder(_history: History, dump: Dump) -> None:
    dump.ledgers[LEDGER].reverse()


def forget(history: History, dump: Dump) -> None:
    history.attempts[5].fate = history.attempts[6].fate = Fate.UNKNOWN
    del dump.work[WORKED]


def bring_back(_history: History, dump: Dump) -> None:
    dump.work[REMOVED] = [7]


@pytest.mark.parametrize(
    ("doctor", "told"),
    [
        (lose, "acknowledged and lost: 1 numbers, of which 4"),
        (lose_all, "acknowledged and lost: 4 numbers"),
        (lose_of_session, "acknowledged and lost: 1 numbers, of which 6"),
        (apply_twice, "more than once: 1 numbers, of which 4"),
        (apply_unknown_twice, "more than once: 1 numbers, of which 3"),
        (create_twice, "more than once: 1 numbers, of which 8"),
        (apply_not_applied, "not_applied, yet applied: 1 numbers, of which 2"),
        (invent, "never written"),
        (misplace, "never written"),
        (misplace_of_session, "never written"),
        (reorder, "out of order"),
        (forget, "forgotten"),
        (bring_back, "came back"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_lie_is_found(doctor: Doctor, told: str) -> None:
    history, dump = honest()
    doctor(history, dump)
    with pytest.raises(ViolationError, match=told):
        check(history, [dump])


def test_nodes_that_differ_are_found() -> None:
    history, dump = honest()
    for other in (
        replace(dump, applied_index=51),
        replace(dump, digest=4712),
        replace(dump, ledgers={LEDGER: [1, 4]}),
    ):
        with pytest.raises(ViolationError, match="node-2"):
            check(history, [dump, replace(other, name="node-2")])


def test_another_state_at_an_index_is_found() -> None:
    history, _ = honest()
    history.digest("node-1#1", 16, 1)
    history.digest("node-2#1", 16, 1)
    with pytest.raises(ViolationError, match="node-1#2 has another state at index 16"):
        history.digest("node-1#2", 16, 2)


def test_two_owners_of_an_epoch_are_found() -> None:
    history, _ = honest()
    history.acquired(WORKED, 1, "node-2/1/worker")
    history.acquired(WORKED, 2, "node-3/1/worker")
    with pytest.raises(ViolationError, match="two owners"):
        history.acquired(WORKED, 2, "node-1/1/worker")


def test_an_old_epoch_that_is_obeyed_is_found() -> None:
    history, _ = honest()
    history.accepted(WORKED, 2, 2)
    with pytest.raises(ViolationError, match="obeyed epoch 1 after 2"):
        history.accepted(WORKED, 1, 2)


def test_a_stale_read_is_found() -> None:
    history, _ = honest()
    history.saw("node-2#1", 4, holds=True)
    with pytest.raises(ViolationError, match="without number 4"):
        history.saw("node-2#1", 4, holds=False)
