"""Operators: whatever changes an active session, one after the other.

Each active session that is worked on through this node has one. Its cycle: it waits for its turn in
the node's intake, has its operation confirmed and applied, hands the outcome to its consumer, and
asks what next. What its consumer has said in advance waits here, so that order holds; and if an
operation fails, those behind it are not done (`skipped`): they were said by somebody who believed
that it would succeed. A transaction waits for its turn at the operator of each of its sessions.

An operator never ends with an error. It ends when its session is no longer its own: it was
removed, stored or parked, by itself or by anybody. A verdict (Remove, Store, Park) whose outcome
nobody knows is tried again for as long as it takes, whether its consumer still listens or not:
shown the same epoch, it is done once. So is one that could not be sent, if its consumer is gone and
cannot say it again. A consumer that is gone for certain is released: all that it holds is stored.
One that vanished without a word keeps its sessions until their leases end, so that it may resume
them at any node; then the reaper stores them.

A verdict is its consumer's own only if that consumer asked for it, and has not taken the session
anew since it was told that nobody knows what became of it. Whoever else has the session when it is
done has lost it, and is told so. If in the end it is refused, its consumer believes that it may
have been done: then the session is stored, and its consumer is told that it has lost it.
"""

import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Protocol

from api.budget import ErrorBudget
from api.gateway import NAMED, Gateway, ended
from api.steps import (
    SKIPPED,
    Asker,
    Caller,
    Step,
    Together,
    encoded_now,
    end_of,
    is_unheard,
    is_verdict_unheard,
    must_insist,
    nobody,
)
from cluster.failures import TimedOut
from cluster.queues import Callback
from state import Applied, Cause, Failure, Outcome, Result, encode
from state.errors import LimitExceeded
from state.operations import Release, Store, Target

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
RELEASE_PAGE = 1024

_log = logging.getLogger(__name__)

# Of an operation: its session, the epoch that is shown of it, and whether it is a verdict.
Shown = tuple[Target, int | None, bool]

CallLater = Callable[..., object]  # as that of a loop


RESUMED = "resumed"  # why a consumer lost a session, of which no history tells

# What says that the session is not this operator's any more.
_OVER = frozenset({"lease_lost", "session_not_found"})


class Consumer(Asker, Protocol):
    """Who directs operators."""

    def on_held(self, operator: "Operator") -> None:
        """It has got a session."""

    def on_ended(self, operator: "Operator") -> None:
        """It has a session no more, by its own verdict."""

    def on_lost(self, operator: "Operator", cause: str) -> None:
        """It has a session no more, and did not ask for that."""


class Operator:
    """The driver of one active session."""

    __slots__ = (
        "_current",
        "_operators",
        "_waiting",
        "consumer",
        "epoch",
        "has_ended",
        "session_id",
    )

    def __init__(
        self, operators: "Operators", session_id: int, epoch: int, consumer: Consumer | None
    ) -> None:
        self._operators = operators
        self.session_id = session_id
        self.epoch = epoch
        self.consumer = consumer
        self.has_ended = False
        self._current: Step | None = None
        self._waiting: deque[Step] | None = None  # made when it is needed: most never need it

    @property
    def depth(self) -> int:
        """Operations that are not answered."""
        return (self._current is not None) + len(self._waiting or ())

    def ask(self, step: Step) -> None:
        """Do an operation after those before it."""
        if step.asker is not None:
            step.asker.asked += 1
        if self._current is None and not self._waiting:
            self._begin(step)
            return
        if self._waiting is None:
            self._waiting = deque((step,))
        else:
            self._waiting.append(step)
        if self._is_insisting and step.callback is not nobody:
            # What is before it has no end in time; so this has.
            timeout_s = self._operators.gateway.timeout_ms / 1000
            self._operators.call_later(timeout_s, self._late, step)

    def _begin(self, step: Step) -> None:
        self._current = step
        if step.together is not None:
            step.together.arrive()
            return
        encoded = encoded_now(step.encoded, step.unclaimed, step.asker)
        self._operators.gateway.submit(encoded, self._answered, is_ending=step.is_ending)

    def _answered(self, result: Result) -> None:
        step = self._current
        if step is None:
            return
        if isinstance(result, Failure):
            self._failed(step, result)
            return
        self._operators.budget.earn()
        self._current = None
        if step.is_verdict:
            self._conclude(step)
        try:
            step.callback(result)
        finally:
            self._operators.done(step)
            self.go_on()

    def _failed(self, step: Step, failure: Failure) -> None:
        self._operators.budget.spend(failure)
        skipped = self._take_waiting()
        is_insisted = step.is_verdict and must_insist(step, failure)
        if is_insisted:
            # It stays the operator's own: tried until it is known, with nobody to tell.
            holder = self._operators.gateway.holder(self.session_id, self.epoch)
            self._current = step._replace(callback=nobody, holder=holder)
            self._operators.again(0, self._insist)
        else:
            self._current = None
            if failure.code in _OVER:
                self._operators.lose(self)
        try:
            step.callback(failure)
        finally:
            if not is_insisted:
                if self.has_unheard_verdict((step, *skipped)):
                    self.give_up_verdict(failure)
                self._operators.done(step)
            self._operators.skip(skipped)
            self.go_on()

    def _conclude(self, step: Step) -> None:
        """It has ended by a verdict: its consumer's own, or somebody else's."""
        if self._is_own(step):
            self._operators.end(self)
        else:
            self._operators.lose(self)

    def _is_own(self, step: Step) -> bool:
        """Whether a verdict is that of whoever has the session now."""
        return step.asker is self.consumer and not step.is_overtaken

    def on_over(self) -> None:
        """The session is not this operator's any more, and no answer of its own has said so."""
        step = self._current
        if step is not None and self._is_insisting and self._has_ended_by(step):
            self._conclude(step)
        else:
            self._operators.lose(self)

    def _has_ended_by(self, step: Step) -> bool:
        """Whether the session has ended as a verdict in doubt says: by it, or as good as that."""
        return self._operators.gateway.cause(self.session_id) == end_of(step.encoded)

    @property
    def _is_insisting(self) -> bool:
        return self._current is not None and self._current.callback is nobody

    def _insist(self, attempt: int) -> None:
        if self._current is None:
            return

        def answered(result: Result) -> None:
            step = self._current
            if step is None:
                return
            if isinstance(result, Failure):
                self._operators.budget.spend(result)
                if result.retryable or result.outcome is Outcome.UNKNOWN:
                    self._operators.again(attempt + 1, self._insist)
                    return
            if isinstance(result, Failure) and result.code in _OVER:
                self.on_over()
            self._current = None
            if not isinstance(result, Failure):
                self._conclude(step)
            elif not self.has_ended and self._is_own(step):
                self._give_up(step.holder, result)
            self._operators.done(step)
            self.go_on()

        self._operators.gateway.submit(self._current.encoded, answered, is_ending=True)

    def has_unheard_verdict(self, steps: Iterable[Step]) -> bool:
        """Whether a verdict is among them that came over HTTP, and whose caller has left."""
        return any(is_verdict_unheard(step, self) for step in steps)

    def give_up_verdict(self, failure: Failure) -> None:
        """Give up a verdict that came over HTTP, and is not done when its caller has left."""
        if not self.has_ended and self.consumer is None:
            self._give_up(self._operators.gateway.holder(self.session_id, self.epoch), failure)

    def _give_up(self, before: bytes | None, failure: Failure) -> None:
        """A verdict will not be done of which its consumer was told that nobody knows.

        `before` is whose the session was then: what is another's by now is left alone.
        """
        consumer = self.consumer
        if consumer is not None and consumer.is_gone:
            return  # then it is stored all the same, or may be resumed
        name = before if consumer is None else consumer.name
        if consumer is None and (name is None or not name.startswith(NAMED)):
            return  # it is of somebody who is connected elsewhere, and said nothing of this
        holder = self._operators.gateway.holder(self.session_id, self.epoch)
        if holder == name:
            self._store(Cause.FAILED, f"its verdict was refused: {failure.code}")
        elif consumer is not None:
            self._operators.part(self)

    def overtake(self) -> None:
        """Take note that a consumer has resumed the session, whatever is insisted on."""
        if self._current is not None and self._is_insisting:
            self._current = self._current._replace(is_overtaken=True)

    def _late(self, step: Step) -> None:
        """Do not do what still waits behind what is insisted on, nor what was said after it.

        Who is gone waits for no answer: what it has said keeps its turn.
        """
        if is_unheard(step):
            return
        waiting = self._waiting or ()
        if self._is_insisting and any(one is step for one in waiting):
            late = TimedOut(was_sent=False, waited_ms=self._operators.gateway.timeout_ms)
            taken = self._take_waiting(step)
            self._operators.skip(taken, late)
            if self.has_unheard_verdict(taken):
                self.give_up_verdict(late)

    def go_on(self) -> None:
        """Do what waits, if it is time."""
        if self._waiting and self._current is None:
            self._begin(self._waiting.popleft())

    def _take_waiting(self, start: Step | Together | None = None) -> list[Step]:
        """Take what waits out of the queue: all of it, or from a step, or behind a transaction.

        What has nobody to tell stays: it will be done all the same.
        """
        waiting, self._waiting = self._waiting, None
        if not waiting:
            return []
        kept: deque[Step] = deque()
        taken: list[Step] = []
        is_behind = start is None
        for one in waiting:
            is_behind = is_behind or one is start
            if one.callback is nobody or not is_behind:
                if one.together is not None and one.together is start:
                    is_behind = True
                else:
                    kept.append(one)
            else:
                taken.append(one)
                if one.together is not None:
                    one.together.left(self)
        if kept:
            self._waiting = kept
        return taken

    def give_up(self, together: Together) -> list[Step]:
        """Go on without a transaction that is not done; answers what was said after it."""
        if self._current is not None and self._current.together is together:
            self._current = None
            return self._take_waiting()
        return self._take_waiting(together)

    def done_with(self, together: Together) -> None:
        """Take note that a transaction is done."""
        if self._current is not None and self._current.together is together:
            self._current = None

    def store(self, cause: Cause, reason: str) -> None:
        """Let the session come back as its theme says: nobody directs this operator any more."""
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            consumer.on_ended(self)
        self._store(cause, reason)

    def _store(self, cause: Cause, reason: str) -> None:
        """If the operator has a consumer, that one loses it."""
        store = Store(self.session_id, self.epoch, cause=cause, reason=reason)
        skipped = self._take_waiting()
        self.ask(Step(encode(store), nobody, is_verdict=True, is_ending=True))
        self._operators.skip(skipped)

    @property
    def is_storing(self) -> bool:
        """Whether it ends the session by itself, with nobody to tell."""
        steps = (self._current, *(self._waiting or ()))
        return any(one is not None and one.callback is nobody for one in steps)


class _Together:
    """A transaction, which waits for its turn at several operators.

    Two never wait for each other: one enters all its queues before another enters any.
    """

    __slots__ = (
        "_callback",
        "_encoded",
        "_end_s",
        "_ending",
        "_late",
        "_missing",
        "_operators",
        "_timeout_ms",
        "_unclaimed",
        "_weight",
        "asker",
        "at",
        "caller",
        "is_over",
    )

    def __init__(
        self,
        operators: "Operators",
        at: Iterable[Operator],
        ending: Collection[Operator],
        encoded: bytes,
        callback: Callback,
        weight: int,
        timeout_ms: int | None,
        asker: Consumer | None,
        caller: Caller | None,
        unclaimed: Callable[[], bytes] | None,
        late: Callback | None,
    ) -> None:
        self._operators = operators
        self.asker = asker
        self.caller = caller
        if asker is not None:
            asker.asked += 1
        self._timeout_ms = timeout_ms
        self._end_s = 0.0  # with a time-out: when that is over
        if timeout_ms is not None:
            self._end_s = operators.time() + timeout_ms / 1000
        self.at = dict.fromkeys(at)  # in whose queues it is
        self._ending = ending  # of them, those for which it is a verdict
        self._missing = len(self.at)  # whose turn it is not yet
        self._encoded = encoded
        self._unclaimed = unclaimed
        self._late = late
        self._callback = callback
        self._weight = weight
        self.is_over = False

    @property
    def step(self) -> Step:
        """As an operator has it in its queue."""
        return Step(b"", self.tell, is_verdict=False, is_ending=False, together=self)

    def arrive(self) -> None:
        """Take note that it is its turn at one of them."""
        self._missing -= 1
        if self._missing:
            return
        timeout_ms = self._timeout_ms
        if timeout_ms is not None:
            timeout_ms = max(round((self._end_s - self._operators.time()) * 1000), 1)
        encoded = encoded_now(self._encoded, self._unclaimed, self.asker)
        submit = self._operators.gateway.submit
        submit(
            encoded,
            self._answered,
            weight=self._weight,
            timeout_ms=timeout_ms,
            late=self._late,
        )

    @property
    def unheard(self) -> Collection[Operator]:
        """Those for which it is a verdict, if whoever gave it over HTTP has left."""
        return self._ending if self.caller is not None and self.caller.is_gone else ()

    @property
    def is_waiting(self) -> bool:
        """Whether its turn has not come yet."""
        return self._missing > 0 and not self.is_over

    def late(self) -> None:
        """Give it up, if its turn has not come in its time."""
        if self.is_waiting and self._timeout_ms is not None:
            self.tell(TimedOut(was_sent=False, waited_ms=self._timeout_ms))
            self._operators.skip([self.step])

    def left(self, operator: Operator) -> None:
        """Take note that it is in an operator's queue no more."""
        self.at.pop(operator, None)

    def tell(self, result: Result) -> None:
        """Answer whoever asked for it, once."""
        if not self.is_over:
            self.is_over = True
            try:
                self._callback(result)
            finally:
                self._operators.done(self)

    def _answered(self, result: Result) -> None:
        operators, at = self._operators, list(self.at)
        if isinstance(result, Failure):
            operators.budget.spend(result)
            try:
                self.tell(result)
            finally:
                operators.skip([self.step])
            return
        operators.budget.earn()
        for operator in at:
            operator.done_with(self)
            is_over = operators.gateway.epoch(operator.session_id) != operator.epoch
            if is_over and operator in self._ending:
                if operator.consumer is self.asker:
                    operators.end(operator)
                else:
                    operators.lose(operator)
            elif self.caller is not None:
                operators.see_holder(operator)  # a touch has made it the caller's
        try:
            self.tell(result)
        finally:
            for operator in at:
                operator.go_on()


class Operators:
    """All operators of a node."""

    def __init__(
        self,
        gateway: Gateway,
        call_later: CallLater,
        *,
        budget: ErrorBudget,
        jitter: random.Random | None = None,
        time: Callable[[], float] = monotonic,
    ) -> None:
        self.gateway = gateway
        self.time = time
        self.call_later = call_later
        self.budget = budget
        self._jitter = jitter or random.Random()  # noqa: S311 - spreads, and keeps no secret
        self._by_session: dict[int, Operator] = {}
        self._is_hurried = False
        self.releasing = 0  # consumers that are gone, and of which something is not stored yet
        self._leaving: dict[Asker, Release] = {}  # those of them that had asked for something
        self.lost = 0  # sessions that a consumer lost which had not left, since the start
        self.retried = 0  # verdicts and releases that were tried again, since the start
        gateway.watchers.append(self)

    def __len__(self) -> int:
        return len(self._by_session)

    def __iter__(self) -> Iterator[Operator]:
        return iter(self._by_session.values())

    def find(self, session_id: int) -> Operator | None:
        """The operator of a session that is worked on through this node."""
        return self._by_session.get(session_id)

    def begin(
        self, session_id: int, epoch: int, consumer: Consumer | None, *, is_told: bool = True
    ) -> Operator:
        """Operate a session that has become active, or was resumed.

        `is_told` says that the consumer is told so now, and not of a verdict on its way.
        """
        before = self._by_session.get(session_id)
        if before is not None:
            if before.epoch > epoch:
                return before
            if before.epoch == epoch:
                if is_told and consumer is not None:
                    before.overtake()
                return self._hand_over(before, consumer)
            before.on_over()
        operator = self._by_session[session_id] = Operator(self, session_id, epoch, consumer)
        if consumer is not None:
            consumer.on_held(operator)
        return operator

    def _hand_over(self, operator: Operator, consumer: Consumer | None) -> Operator:
        """Give an operator another consumer, which has resumed its session."""
        before = operator.consumer
        if consumer is not None and before is not consumer:
            operator.consumer = consumer
            if before is not None:
                self.lost += not before.is_gone
                before.on_lost(operator, RESUMED)
            consumer.on_held(operator)
        return operator

    def operate(self, target: Target, epoch: int) -> Operator | None:
        """The operator by which a caller may go on who shows this epoch; None if it is not here.

        A session that was acquired at another node gets one, too. Without one the operation goes to
        the cluster all the same, which knows whether the epoch is the newest.
        """
        session_id = target if isinstance(target, int) else self.gateway.session_id(target)
        operator = self._by_session.get(session_id)
        if operator is None:
            if epoch == 0 or self.gateway.epoch(session_id) != epoch:
                return None
            operator = self.begin(session_id, epoch, None)
        return operator if operator.epoch == epoch else None

    def transact(
        self,
        shown: Iterable[Shown],
        encoded: bytes,
        callback: Callback,
        *,
        weight: int,
        timeout_ms: int | None = None,
        asker: Consumer | None = None,
        caller: Caller | None = None,
        unclaimed: Callable[[], bytes] | None = None,
        late: Callback | None = None,
    ) -> None:
        """Have a transaction done; `shown` is what its operations show.

        `unclaimed` makes what is done instead if the asker is gone when its turn comes: what that
        one has said is done, but it takes no session from who may have resumed it since. `late` is
        as with `Gateway.submit`.

        It has its place in the order of each session's operations. If that does not come in time it
        is not done, nor is what was said behind it.
        """
        operators: dict[Operator, None] = {}
        ending: set[Operator] = set()
        for target, epoch, is_verdict in shown:
            operator = self.operate(target, epoch) if epoch else None
            if operator is not None:
                operators[operator] = None
                if is_verdict:
                    ending.add(operator)
        if not operators:
            counted = partial(self._counted, callback)
            self.gateway.submit(encoded, counted, weight=weight, timeout_ms=timeout_ms, late=late)
            return
        together = _Together(
            self,
            operators,
            ending,
            encoded,
            callback,
            weight,
            timeout_ms,
            asker,
            caller,
            unclaimed,
            late,
        )
        for operator in operators:
            operator.ask(together.step)
        if timeout_ms is not None and together.is_waiting:
            self.call_later(timeout_ms / 1000, together.late)

    def _counted(self, callback: Callback, result: Result) -> None:
        self.budget.note(result)
        callback(result)

    def skip(self, steps: Iterable[Step], first: Failure = SKIPPED) -> None:
        """Do not do what was said in the belief that something else would succeed.

        A transaction among them is not done for any of its sessions, nor is what was said after it.
        `first` is why the first of them is not done.
        """
        left = deque(steps)
        freed: dict[Operator, bool] = {}  # and whether a verdict is given up that nobody hears of
        while left:
            step = left.popleft()
            together = step.together
            if together is not None:
                at, together.at = together.at, {}
                for operator in at:
                    behind = operator.give_up(together)
                    left.extend(behind)
                    is_unheard = operator.has_unheard_verdict((step, *behind))
                    freed[operator] = freed.get(operator, False) or is_unheard
            try:
                step.callback(first)
            except BaseException:
                self.done(step)
                self.skip(left)  # the others are told all the same
                self._go_on(freed)
                raise
            first = SKIPPED
            self.done(step)
        self._go_on(freed)

    @staticmethod
    def _go_on(freed: Mapping[Operator, bool]) -> None:
        for operator, gives_up in freed.items():
            if gives_up:
                operator.give_up_verdict(SKIPPED)
            operator.go_on()

    def end(self, operator: Operator) -> None:
        """Take note that a session is no longer this operator's, by its own verdict."""
        if operator.has_ended:
            return
        self._forget(operator)
        if operator.consumer is not None:
            operator.consumer.on_ended(operator)

    def _forget(self, operator: Operator) -> None:
        operator.has_ended = True
        if self._by_session.get(operator.session_id) is operator:
            del self._by_session[operator.session_id]

    def lose(self, operator: Operator, cause: str | None = None) -> None:
        """Take note that a session is no longer this operator's, and not by its own verdict."""
        if operator.has_ended:
            return
        self._forget(operator)
        if operator.consumer is not None:
            self.lost += not operator.consumer.is_gone
            operator.consumer.on_lost(operator, cause or self.gateway.cause(operator.session_id))

    def part(self, operator: Operator) -> None:
        """Take note that another consumer has resumed its session: at another node, or over HTTP.

        The epoch is the same: what was said here, and waits, is done by this operator all the same.
        """
        consumer, operator.consumer = operator.consumer, None
        if consumer is not None:
            self.lost += not consumer.is_gone
            consumer.on_lost(operator, RESUMED)

    def see_holder(self, operator: Operator) -> None:
        """Part with a consumer whose session is another's since a touch over HTTP."""
        consumer = operator.consumer
        if consumer is not None and not operator.has_ended:
            holder = self.gateway.holder(operator.session_id, operator.epoch)
            if holder not in {None, consumer.name}:
                self.part(operator)

    # What nobody works on

    def give_back(self, session_id: int, epoch: int, reason: str) -> None:
        """Store a session that was handed out, and whose epoch nobody was told.

        It was no attempt, so none is counted.
        """
        if self.gateway.epoch(session_id) != epoch:
            return
        operator = self.begin(session_id, epoch, None)
        if operator.consumer is None:  # else somebody knows of it all the same
            operator.store(Cause.SHUTDOWN, reason)

    def done(self, said: "Step | _Together") -> None:
        """Take note that there is nothing left to do of what somebody has asked for."""
        asker = said.asker
        if asker is None:
            return
        asker.asked -= 1
        if not asker.asked and asker in self._leaving:
            self._release(0, self._leaving.pop(asker))

    def release(self, consumer: Consumer, cause: Cause, reason: str) -> None:
        """Store all that a consumer holds, as it is gone for certain, however long that takes.

        What it has asked operators for is done first, to the last verdict that is insisted on. What
        it asked of the cluster otherwise is: operations of one node never overtake each other.

        That names the consumer and no epochs, because these stay when a session is resumed: what
        another consumer has resumed by the time that this is applied is left alone.
        """
        if consumer in self._leaving:
            return
        self.releasing += 1
        release = Release(consumer.name, RELEASE_PAGE, int(cause), reason)
        if consumer.asked and not self._is_hurried:
            self._leaving[consumer] = release
        else:
            self._release(0, release)

    def hurry(self) -> None:
        """From now on, do not wait for what consumers have asked for that are gone."""
        self._is_hurried = True
        leaving, self._leaving = self._leaving, {}
        for release in leaving.values():
            self._release(0, release)

    def _release(self, attempt: int, release: Release) -> None:
        def answered(result: Result) -> None:
            match result:
                case LimitExceeded(limit="acquire_count", bound=bound) if bound < release.count:
                    self._release(0, replace(release, count=bound))
                case Failure(retryable=True) | Failure(outcome=Outcome.UNKNOWN):
                    self.budget.spend(result)
                    self.again(attempt + 1, self._release, release)
                case int() if result:
                    self._release(0, release)
                case _:
                    self.releasing -= 1
                    if isinstance(result, Failure):
                        # What it holds comes back when its lease ends.
                        _log.error("a consumer that is gone cannot be released: %s", result)

        encoded = encode(release)
        self.gateway.submit(encoded, answered, weight=release.count, is_ending=True)

    def again(self, attempt: int, then: Callable[..., object], *arguments: object) -> None:
        """Call later: at a random time, within twice as long each time."""
        self.retried += 1
        bound_s = min(BACKOFF_MIN_S * 2 ** min(attempt, 10), BACKOFF_MAX_S)
        self.call_later(self._jitter.uniform(0, bound_s), then, attempt, *arguments)

    # What the node tells

    def on_applied(self, applied: Applied) -> None:
        by_session = self._by_session
        if not by_session:
            return
        for session_id in ended(applied):
            operator = by_session.get(session_id)
            if operator is not None and self.gateway.epoch(session_id) != operator.epoch:
                operator.on_over()

    def on_leader(self, leader: str | None) -> None:
        """Nothing changes for operators: their operations go to the new one."""

    def on_installed(self) -> None:
        for operator in list(self._by_session.values()):
            if self.gateway.epoch(operator.session_id) != operator.epoch:
                operator.on_over()
