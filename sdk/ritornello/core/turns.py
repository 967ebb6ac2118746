"""What is asked of sessions that are held: each request in its turn, and each done once.

- A change shows the revision that it has to find. Nobody else changes a session that is held, so
  when it is sent again it finds another revision if it was done before.
- What is refused for a while is tried again, and what was said behind it waits. When something is
  refused for good, what was said behind it is skipped, as the server does: whoever said it believed
  that all before it would succeed.
- A verdict is tried until it is answered, whether anybody waits for it or not. If the session is
  over meanwhile, that may be by the verdict itself: see `_settle`.
- A transaction takes its turn at all its sessions at once.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from ritornello import limits
from ritornello.core import frames
from ritornello.core.frames import Message, Result
from ritornello.core.requests import Held, Request, Way
from ritornello.errors import (
    LeaseLost,
    Outcome,
    ProtocolError,
    RequestError,
    RevisionMismatch,
    RitornelloError,
    SessionNotFound,
    Skipped,
    TxnAborted,
    WrongPhase,
    request_error,
)

VERDICTS = frozenset({"remove", "store", "park"})
_OVER = (LeaseLost, SessionNotFound, WrongPhase)


class Host(Protocol):
    """What moves requests to the cluster, and answers to callers."""

    def queue(self, request: Request) -> None:
        """Have it sent."""

    def tell(self, request: Request, result: Message | RitornelloError) -> None:
        """Tell its caller, if he still waits."""

    def too_late(self, request: Request) -> RitornelloError:
        """The error of a request that has no time left."""

    def may_try_again(self, request: Request, error: RequestError) -> bool:
        """Whether it is to be sent once more."""

    def try_later(self, request: Request, error: RequestError) -> None:
        """Send it once more, after a while."""

    def look(self, request: Request) -> None:
        """Read the session of a verdict; `Turns.looked` is told."""

    def ended(self, held: Held) -> None:
        """A session is held no more."""

    def give_back(self, held: Held) -> None:
        """Store a session that nobody works on."""


class Turns:
    """The rules above."""

    def __init__(self, host: Host) -> None:
        self._host = host

    # From callers

    def ask(self, request: Request) -> RitornelloError | None:
        """Let a request wait for its turn; the error if it never comes, which counts as failure."""
        for held in request.held:
            is_taken = held.loss is not None and not request.is_unconditional
            if held.is_over or held.has_verdict or is_taken:
                return held.over()
        for held, seen in zip(request.held, request.seen_failures, strict=False):
            if seen < held.failures:
                return _skipped()
        for held in request.held:
            held.waiting.append(request)
            held.has_verdict |= request.is_verdict
            held.is_left |= request.is_unconditional
        self.go_on(request.held[0])
        return None

    def withdraw(self, request: Request) -> None:
        """Take out what was not done, and will not be; nobody waits for it.

        That is no failure: its caller knows what he has done. What was said behind it is skipped.
        """
        behind = self._behind(request)
        self._leave_out(request, *behind)
        self._skip(behind)
        self._go_on_without(request, *behind)

    def refuse(self, request: Request, error: RitornelloError) -> None:
        """It was not done, for a reason that holds for all that waits."""
        count_failure(request)
        self._leave_out(request)
        self._host.tell(request, error)
        self._go_on_without(request)

    def late(self, request: Request) -> None:
        """Its caller waits no more. What may have been done has to be known all the same."""
        error = self._host.too_late(request)
        if request.may_be_done or request.is_unconditional:
            self._host.tell(request, error)
        else:
            self._fail(request, error)

    def doubt(self, request: Request, error: RitornelloError) -> None:
        """Nobody will ever know whether it was done: it would be done again if it were sent."""
        self._fail(request, error)

    def go_on(self, held: Held) -> None:
        """Have the next request of a session sent, if it is its turn at all its sessions."""
        if held.is_over:  # by a verdict in a transaction
            self._tell_over(held)
        elif held.presumed_loss is not None and held.current is None:
            self.lose(held, held.presumed_loss)  # the transaction in doubt has not ended it
        if not held.waiting:
            return
        request = held.waiting[0]
        for one in request.held:
            if one.current is not None or not one.is_resumed or one.waiting[0] is not request:
                return
        for one in request.held:
            one.waiting.popleft()
            one.current = request
        self._host.queue(request)

    # From the cluster

    def resumed(self, held: Held, revision: int) -> None:
        """It is held over a new connection, and this is its revision."""
        held.is_resumed = True
        held.presumed_loss = None
        request = held.current
        if request is None:
            held.revision = revision
            self.go_on(held)
        elif _seems_done(request, revision):
            self._seems_done(request, held, revision)
        elif all(one.is_resumed for one in request.held):
            held.revision = revision
            self._host.queue(request)

    def succeeded(self, request: Request, message: Message) -> None:
        """It was done. Raises `ProtocolError`."""
        if request.op == "txn":
            self._txn_done(request, message)
        else:
            self._done(request, request.held[0], message)

    def failed(self, request: Request, error: RequestError) -> None:
        """It was refused. Raises `ProtocolError`."""
        held = request.held[0]
        if held.current is not request:
            self._host.tell(request, error)  # its session is over
        elif request.op == "txn":
            self._txn_failed(request, error)
        elif isinstance(error, _OVER):
            self.over(held, error)
        elif isinstance(error, RevisionMismatch):
            self._mismatched(request, held, error)
        elif self._host.may_try_again(request, error):
            self._host.try_later(request, error)
        else:
            self._fail(request, request.refused(error))

    def over(self, held: Held, error: RequestError) -> None:
        """The cluster says that a session is over: by its verdict, or in another way."""
        verdict = held.current
        cause = "removed" if isinstance(error, SessionNotFound) else "unknown"
        loss = held.lost(cause, error.detail)
        if verdict is not None and is_asked_again(verdict):
            self.lose_later(held, loss)
            held.is_resumed = True  # as far as that goes
            if all(one.is_resumed for one in verdict.held):
                self._host.queue(verdict)
        elif verdict is not None and verdict.is_verdict and verdict.doubts:
            self._settle(held, verdict, error)
        else:
            self.lose(held, loss)

    def lose_later(self, held: Held, loss: LeaseLost) -> None:
        """It is lost, unless a transaction in doubt has ended it: that is told by its answer."""
        held.presumed_loss = loss

    def lose(self, held: Held, loss: LeaseLost) -> None:
        """A session is over, and not by a verdict: whoever works on it is told."""
        if held.is_over:
            return
        self._end(held)
        is_told = held.loss is not None  # it was overdue
        held.loss = loss
        self._tell_over(held)
        if not is_told:
            held.tell_loss(loss)

    def _tell_over(self, held: Held) -> None:
        """Do no more of what was asked of a session that is over, nor of what is behind it."""
        theirs = [*held.waiting] if held.current is None else [held.current, *held.waiting]
        held.current = None
        held.waiting.clear()
        left: list[Request] = []
        for request in theirs:
            if request.may_be_done:
                for one in request.held:
                    one.is_doubtful = True
            left += self._drop(request, held.over(request.outcome))
        self._go_on_without(*theirs, *left)

    def looked(self, request: Request, found: Message | RitornelloError) -> None:
        """See whether a verdict is why its session is over."""
        (held,) = request.held
        if held.is_over:
            return
        view = found.session if isinstance(found, Message) else None
        cause = "parked" if request.op == "park" else request.fields.get("cause", "requested")
        if (
            view is not None
            and (view.epoch, view.revision) == (held.epoch, held.revision + 1)
            and view.history
            and view.history[-1].cause == cause
        ):
            due_ms, parked = view.due_ms or 0, view.phase == "parked"
            done = Message(id=view.id, revision=view.revision, due_ms=due_ms, parked=parked)
            self._done(request, held, done)
        else:
            detail = "the session is over, and whether by this verdict is not known"
            self.lose(held, held.lost("unknown", detail, Outcome.UNKNOWN))

    # What it means

    def _done(self, request: Request, held: Held, message: Message) -> None:
        if not held.is_over:
            held.revision = message.revision
            held.is_doubtful &= not request.changes
            if request.sent_s:
                held.lasts_until(request.sent_s + held.lease_s)
            if request.is_verdict:
                self._end(held)
        self._host.tell(request, message)
        self._free(request)

    def _seems_done(self, request: Request, held: Held, revision: int) -> None:
        held.revision = revision
        if not held.is_doubtful:
            request.sent_s = 0.0  # this copy was not done, and has renewed nothing
            self._done(request, held, Message(revision=revision))
            return
        detail = "the session has changed, and whether by this request is not known"
        unknown = Outcome.UNKNOWN.value
        fields = {"code": "internal", "outcome": unknown, "retryable": False, "detail": detail}
        self._fail(request, request_error(fields))

    def _txn_done(self, request: Request, message: Message) -> None:
        results = frames.results_of(message.results)
        operations = request.fields["operations"]
        if len(results) != len(operations):
            raise ProtocolError("a transaction has as many results as operations")
        by_id = {one.id: one for one in request.held}
        for operation, result in zip(operations, results, strict=True):
            held = by_id.get(operation.get("id"))
            if held is not None and not held.is_over:
                self._part_done(request, held, operation, result)
        request.results = results
        self._host.tell(request, message)
        self._free(request)

    def _part_done(
        self, request: Request, held: Held, operation: dict[str, Any], result: Result
    ) -> None:
        held.revision = result.revision
        held.is_doubtful &= not operation.get("data")  # without data it has changed nothing
        if not request.doubts:  # else it may have been done long ago, and answered by its key
            held.lasts_until(request.sent_s + held.lease_s)
        if operation["op"] in VERDICTS:
            self._end(held)

    def _mismatched(self, request: Request, held: Held, error: RevisionMismatch) -> None:
        """It found another revision than it should: its own, if it was done before."""
        current = error.current
        if current is None or request.expected is None:
            raise ProtocolError("a revision_mismatch tells the revision that there is")
        if _seems_done(request, current):
            self._seems_done(request, held, current)
            return
        request.mismatches += 1
        if request.mismatches > limits.MISMATCHES_MAX:
            self._fail(request, error)
        else:
            held.revision = current
            self._host.queue(request)

    def _txn_failed(self, request: Request, error: RequestError) -> None:
        if self._host.may_try_again(request, error):
            self._host.try_later(request, error)
            return
        cause = error.cause if isinstance(error, TxnAborted) else error
        if isinstance(cause, RevisionMismatch) and request.mismatches < limits.MISMATCHES_MAX:
            # It can be done to no session as it was shown, however late.
            request.mismatches += 1
            request.doubts = 0
            for held in request.held:
                if held.id == cause.fields.get("id") and cause.current is not None:
                    held.revision = cause.current
            self._host.queue(request)
            return
        operations = request.fields["operations"]
        position = error.position if isinstance(error, TxnAborted) else None
        lost_id = None
        if isinstance(cause, _OVER):
            lost_id = cause.fields.get("id")
            if position is not None and position < len(operations):
                lost_id = operations[position].get("id")
        self._fail(request, request.refused(error))
        for held in request.held:
            if isinstance(cause, _OVER) and held.id == lost_id:
                self.lose(held, held.lost("unknown", cause.detail))

    def _fail(self, request: Request, error: RitornelloError) -> None:
        """It is refused for good. What was said behind it is skipped, at all its sessions."""
        if error.outcome is Outcome.UNKNOWN:
            for held in request.held:
                held.is_doubtful = True
        self._go_on_without(request, *self._drop(request, error))

    def _drop(self, request: Request, error: RitornelloError) -> list[Request]:
        """Take out what will not be done, and what was said behind it, at all its sessions.

        Answers the latter.
        """
        behind = self._behind(request)
        count_failure(request)
        self._leave_out(request, *behind)
        self._host.tell(request, error)
        self._skip(behind)
        return behind

    def _skip(self, requests: Iterable[Request]) -> None:
        for one in requests:
            count_failure(one)
            self._host.tell(one, _skipped())

    def look_after(self, held: Held) -> None:
        """See to it that a session comes back that nobody works on, and has no verdict."""
        if held.is_left and not held.is_over and not held.has_verdict:
            held.is_left = False
            self._host.give_back(held)

    def _behind(self, request: Request) -> list[Request]:
        """What waits behind a request, and behind that."""
        found: dict[Request, None] = {request: None}
        open_ = [request]
        while open_:
            one = open_.pop()
            for held in one.held:
                waiting = list(held.waiting)
                behind = waiting[waiting.index(one) + 1 :] if one in waiting else waiting
                new = [
                    other for other in behind if other not in found and not other.is_unconditional
                ]
                found |= dict.fromkeys(new)
                open_ += new
        return [one for one in found if one is not request]

    def _free(self, request: Request) -> None:
        """Let its sessions go on without it."""
        self._leave_out(request)
        for held in request.held:
            self.go_on(held)

    def _leave_out(self, *requests: Request) -> None:
        """Take them out of their sessions; before anybody is told, who may look at once."""
        for request in requests:
            for held in request.held:
                if held.current is request:
                    held.current = None
                elif request in held.waiting:
                    held.waiting.remove(request)
                if request.is_verdict:
                    held.has_verdict = False

    def _go_on_without(self, *requests: Request) -> None:
        for held in dict.fromkeys(held for one in requests for held in one.held):
            self.go_on(held)
            self.look_after(held)

    def _settle(self, held: Held, verdict: Request, error: RequestError) -> None:
        """Find out whether a verdict whose answer was lost has been done.

        A session that is gone was removed, as it should be. One that is stored or parked tells in
        its history why. If its next operator has it already, nobody can tell.
        """
        if verdict.op == "remove":
            if isinstance(error, SessionNotFound):
                self._done(verdict, held, Message(id=held.id, revision=held.revision + 1))
            else:
                self.lose(held, held.lost("unknown", error.detail))
        elif isinstance(error, SessionNotFound):
            self.lose(held, held.lost("removed", error.detail, Outcome.UNKNOWN))
        else:
            self._host.look(verdict)

    def _end(self, held: Held) -> None:
        held.is_over = True
        self._host.ended(held)


def _seems_done(request: Request, revision: int) -> bool:
    """Whether a change was done before, seeing what revision there is now."""
    return (
        request.doubts > 0
        and request.changes > 0
        and request.expected is not None
        and revision > request.expected
    )


def is_asked_again(request: Request) -> bool:
    """Whether a request that was sent is answered when it is sent again, whatever has become of it.

    So is a transaction, by its key: even if it has ended its sessions.
    """
    return request.op == "txn" and request.doubts > 0 and request.way is Way.AGAIN


def count_failure(request: Request) -> None:
    """Take note that it has failed for good: what was said in the belief that it would not."""
    for held in request.held:
        held.failures += 1
    request.failure_numbers = tuple(held.failures for held in request.held)


def _skipped() -> Skipped:
    return Skipped(
        {
            "code": "skipped",
            "outcome": "not_applied",
            "retryable": True,
            "detail": "a request before this one, on the same session, has failed",
        }
    )
