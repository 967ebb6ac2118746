"""What operators are asked for: steps, each of which is one operation."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from api.answers import cause_name
from api.gateway import REMOVED
from cluster.queues import Callback
from state import Cause, Failure, Outcome, Result
from state.codec import decode
from state.operations import Idempotent, Park, Remove, Store, field_names

# Places in decoded operations, whose codes come first.
_STORE_CAUSE = field_names(Store).index("cause") + 1
_INSIDE = field_names(Idempotent).index("operation") + 1


class Asker(Protocol):
    """Who asks for steps over a connection."""

    name: bytes  # as the cluster knows it
    asked: int  # of what it has asked operators for, how much they are not done with
    is_gone: bool  # it says nothing any more


class Caller:
    """Whoever waits for one operation, with no connection that the node knows of."""

    __slots__ = ("is_gone",)

    def __init__(self) -> None:
        self.is_gone = False  # it waits no more


class Together(Protocol):
    """A transaction: a step at several operators at once."""

    at: dict[Any, None]  # the operators in whose queues it is

    @property
    def unheard(self) -> Collection[Any]:
        """Those for which it is a verdict, if whoever gave it over HTTP has left."""

    def arrive(self) -> None:
        """Take note that it is its turn at one of them."""

    def left(self, operator: Any) -> None:  # noqa: ANN401 - an operator, which knows steps
        """Take note that it is in an operator's queue no more."""


class Step(NamedTuple):
    """One operation of an operator."""

    encoded: bytes
    callback: Callback
    is_verdict: bool  # done, it ends the operator
    is_ending: bool  # it is admitted when others are refused
    asker: Asker | None = None  # who asked for it, if that one is connected here
    together: Together | None = None  # the transaction that this is a part of
    caller: Caller | None = None  # who waits for it, if that is nobody connected here
    unclaimed: Callable[[], bytes] | None = None  # what is done instead if its asker is gone
    is_overtaken: bool = False  # its session was taken anew while it is insisted on
    holder: bytes | None = None  # while it is insisted on: whose its session was before


@dataclass(frozen=True, slots=True)
class Skipped(Failure):
    """An operation before this one, on the same session, had failed."""

    code: ClassVar[str] = "skipped"

    @property
    def retryable(self) -> bool:
        return True

    def __str__(self) -> str:
        return "an operation before this one, on the same session, has failed"


SKIPPED = Skipped()


def encoded_now(
    encoded: bytes, unclaimed: Callable[[], bytes] | None, asker: Asker | None
) -> bytes:
    """What is sent when its turn comes: who is gone by then claims nothing."""
    if unclaimed is not None and asker is not None and asker.is_gone:
        return unclaimed()
    return encoded


def must_insist(step: Step, failure: Failure) -> bool:
    """Whether a verdict is tried again without being asked: its consumer cannot say."""
    if failure.outcome is Outcome.UNKNOWN:
        return True
    return failure.retryable and is_unheard(step)


def is_unheard(step: Step) -> bool:
    """Whether nobody listens who could say it again."""
    who = step.asker or step.caller
    return step.callback is nobody or (who is not None and who.is_gone)


def is_verdict_unheard(step: Step, operator: Any) -> bool:  # noqa: ANN401 - an operator, which knows steps
    """Whether it is a verdict for an operator that came over HTTP, and whose caller has left."""
    if step.together is not None:
        return operator in step.together.unheard
    return step.is_verdict and step.caller is not None and step.caller.is_gone


def _values_of(verdict: bytes) -> tuple[Any, ...]:
    """The values of an encoded verdict, without its idempotency key."""
    values: tuple[Any, ...] = decode(verdict)
    if values[0] == Idempotent.code:
        values = values[_INSIDE]
    return values


def end_of(verdict: bytes) -> str:
    """How a session ends by an encoded verdict, as `Gateway.cause` says it."""
    values = _values_of(verdict)
    if values[0] == Remove.code:
        return REMOVED
    return cause_name(Cause.PARKED if values[0] == Park.code else values[_STORE_CAUSE])


def nobody(_: Result) -> None:
    """Answered."""
