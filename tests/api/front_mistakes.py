"""Mistakes that an author of operators or consumers may make: each has to be found by some test."""

# ruff: noqa: SLF001 - a mistake is planted where it would be made

from collections.abc import Callable
from typing import Any

from api.consumers import Consumer
from api.operators import Operator, Operators
from api.waiting import Waiters
from state import Cause
from state import operations as op


def _nothing(*_: object, **__: object) -> None:
    """Done."""


def _none(*_: object, **__: object) -> list[Any]:
    return []


def _same(_: Operators, operator: Operator, __: object) -> Operator:
    return operator


def _own(operator: Any, _: object) -> None:
    operator._operators.end(operator)


def _lost(operator: Any) -> None:
    operator._operators.lose(operator)


def _at_once(operators: Any, consumer: Consumer, cause: Cause, reason: str) -> None:
    operators.releasing += 1
    operators._release(0, op.Release(consumer.name, 100, int(cause), reason))


_compare: Any = Consumer._compare


def _forgetting(consumer: Any, doubts: int) -> None:
    _compare(consumer, doubts)
    if doubts:
        consumer._shown = {}


def _keeping(consumer: Any, doubts: int) -> None:
    shown = consumer._shown
    _compare(consumer, doubts)
    consumer._shown = shown


MISTAKES: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "what waits is done though what was before it has failed": (Operator, "_take_waiting", _none),
    "any verdict counts as that of who holds the session": (Operator, "_conclude", _own),
    "a verdict counts as that of who has resumed since then": (Operator, "overtake", _nothing),
    "a verdict in doubt that is done is told as a loss": (Operator, "on_over", _lost),
    "a verdict in doubt that is refused leaves a session to nobody": (
        Operator,
        "_give_up",
        _nothing,
    ),
    "nothing is tried again": (Operators, "again", _nothing),
    "who holds a session is not told that it is lost": (Operators, "lose", Operators.end),
    "who resumes a session does not get it": (Operators, "_hand_over", _same),
    "what nobody knows of is kept": (Operators, "give_back", _nothing),
    "nobody looks at a new state": (Operators, "on_installed", _nothing),
    "who leaves is released before what it has said is done": (Operators, "release", _at_once),
    "heartbeats tell nothing": (Consumer, "_compare", _nothing),
    "a heartbeat settles doubts that came after it": (Consumer, "_compare", _forgetting),
    "what is settled is kept": (Consumer, "_compare", _keeping),
    "who waits is not told that something is there": (Waiters, "_serve", _nothing),
}
