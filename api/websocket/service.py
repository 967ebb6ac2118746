"""What a consumer asks over a WebSocket, and how it is answered. Each request is answered once.

Requests are handed on as they come, and answered by callbacks; nothing here waits. What gives the
consumer a session goes to the cluster under its name, so that its heartbeats renew it. Under an
idempotency key no name may be given, because the same request has to be the same over another
connection: there the session is made the consumer's by a Touch, before that is answered.

To touch a session, alone or in a transaction, makes it the consumer's as well, wherever it was
operated before: who shows its epoch holds it. Only a node that is about to stop leaves it where it
is.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

from api import requests as ask
from api.answers import (
    DoneAnswer,
    HeldAnswer,
    SessionAnswer,
    SessionsAnswer,
    SessionView,
    answer_of,
)
from api.consumers import Consumer
from api.frontend import FrontEnd
from api.identifiers import session_number, session_text
from api.problems import INTERNAL, Problem, Refusal, bad_request, of_failure, refusal
from api.security import Principal, Scope
from api.steps import Step
from api.waiting import Waiter
from api.websocket.effects import Held, Ids, effects_of, ids_of, touched_by
from api.websocket.frames import (
    ErrorAnswer,
    LeaseLostPush,
    NotResumed,
    Resumed,
    ResumedAnswer,
    SessionPush,
    Unfit,
)
from api.websocket.outbox import Outbox
from api.websocket.pushing import Pusher
from state import Created, Done, Failure, Outcome, Result, encode
from state import operations as op
from state.errors import LeaseLost, LimitExceeded, SessionNotFound

_log = logging.getLogger(__name__)

_NOT_FOUND = SessionNotFound()

_DRAINING = refusal(
    503, "draining", "the node is about to stop: go on at another one", retryable=True
)

# Sessions of an answer that is not given yet; of those that are lost already, why.
_Telling = dict[tuple[int, int], str | None]

Stepping = ask.Append | ask.Replace | ask.Remove | ask.Store | ask.Park | ask.Unpark


class _Poll:
    """An Acquire that waits."""

    __slots__ = ("is_given_up", "seq", "timer", "waiter")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.waiter: Waiter | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.is_given_up = False


class Service:
    """Serves the requests of one consumer."""

    def __init__(
        self,
        front: FrontEnd,
        consumer: Consumer,
        outbox: Outbox,
        principal: Principal,
        on_checked: Callable[[], None],
    ) -> None:
        """`on_checked` is called when requests may be taken in again; see `is_checking`."""
        self._front = front
        self._gateway = front.gateway
        self._operators = front.operators
        self._budget = front.operators.budget
        self._consumer = consumer
        self._out = outbox
        self._principal = principal
        self._is_free = _is_free(principal)  # whether it may operate any session
        self._on_checked = on_checked
        self._loop = asyncio.get_running_loop()
        self._counts = front.websockets.requests
        self._refusals = front.metrics.refusals
        self._polls: set[_Poll] = set()
        self._deferred: deque[tuple[int, op.Target]] = deque()  # reads that have no room yet
        self._pusher = Pusher(
            front.waiters,
            consumer.name,
            self._loop,
            pushed=self._pushed,
            failed=self._consumer.doubts,
            has_room=lambda: not outbox.is_blocked,
        )
        self._is_draining = False
        self._tellings: list[_Telling] = []
        self.in_flight = 0  # requests that are not answered, or whose answers have not left
        # Whether a session has to be read first, to know whether its request is allowed. Others
        # have to wait for that, or they would overtake it.
        self.is_checking = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            ask.New: self._new,
            ask.Append: self._step,
            ask.Replace: self._step,
            ask.Remove: self._step,
            ask.Store: self._step,
            ask.Touch: self._touch,
            ask.Park: self._step,
            ask.Unpark: self._step,
            ask.Take: self._take,
            ask.Acquire: self._acquire,
            ask.Txn: self._txn,
            ask.Get: self._get,
            ask.Resume: self._resume,
            ask.Credit: self._give_credit,
            ask.Heartbeat: self._beat,
            Unfit: self._unfit,
        }

    # For its connection

    def handle(self, request: ask.WebSocketRequest | Unfit) -> None:
        """Take a request in."""
        kind = type(request)
        self._counts[kind] += 1
        self.in_flight += 1
        if self._out.trace is not None:
            self._out.trace.asked(kind, request.seq)
        try:
            self._handlers[kind](request)
        except Exception as error:  # noqa: BLE001 - see `_failed`
            self._failed(request.seq, error)

    def _failed(self, seq: int, error: Exception) -> None:
        """See to it that a request is answered, whatever has happened."""
        if isinstance(error, Refusal):
            self._refuse(seq, error.problem)
        else:
            _log.error("a request has failed by a defect", exc_info=error)
            self._refuse(seq, INTERNAL)

    def allow(self, principal: Principal) -> None:
        """Take note of what the consumer may do from now on."""
        self._principal = principal
        self._is_free = _is_free(principal)
        if not all(map(principal.may_theme, self._pusher.themes)) or not principal.may(
            Scope.OPERATE
        ):
            self._pusher.take_back()

    def drain(self) -> None:
        """Give the consumer no more sessions."""
        self._is_draining = True
        self._pusher.stop()

    def stop(self) -> None:
        """Let nothing wait any more for a consumer that is gone."""
        self._pusher.stop()
        self._deferred.clear()
        for poll in list(self._polls):
            self._end_poll(poll)
            if poll.waiter is not None:
                self._front.waiters.leave(poll.waiter)

    # Answers

    def _refuse(self, seq: int, problem: Problem) -> None:
        self._refusals.count(problem.code)
        self._out.answer(ErrorAnswer(seq=seq, error=problem.fields()))

    def _answered(self, seq: int, result: Result) -> None:
        if isinstance(result, Failure):
            self._refuse(seq, of_failure(result))
        else:
            self._out.answer(answer_of(result, seq))

    def _direct(self, seq: int, result: Result) -> None:
        """The answer of an operation that no operator has asked for."""
        self._note(result)
        self._answered(seq, result)

    def _note(self, result: Result, shown: Iterable[tuple[int, int]] = ()) -> None:
        self._budget.note(result)
        if isinstance(result, Failure):
            self._consumer.doubts(result, shown)

    def _unfit(self, request: Unfit) -> None:
        raise bad_request(request.problem)

    # What gives the consumer a session

    def _may_be_given(self, request: ask.Request) -> bytes | None:
        """Under what name it is given. Raises `Refusal` when the node is about to stop."""
        if self._is_draining:
            raise _DRAINING
        self._consumer.asks()
        return self._consumer.name if request.idempotency_key is None else None

    def _given(
        self, sessions: Iterable[tuple[int, int]], name: bytes | None, then: Callable[[], object]
    ) -> None:
        """Direct sessions from here on, and then answer. Without a name they are claimed first."""
        missed: list[tuple[int, int]] = []
        if name is not None:
            missed += self._take_all(sessions)
            then()
            self._consumer.misses(missed)
            return
        active = [one for one in sessions if self._gateway.epoch(one[0]) == one[1]]
        if self._consumer.is_gone:
            active = []  # it may have it over another connection by now
        left = len(active)
        if not left:
            then()
            return

        telling = self._tell_of(active)
        holders = {one: self._gateway.holder(*one) for one in active}

        def claim(attempt: int, session: tuple[int, int]) -> None:
            if attempt and not may_claim(session):
                missed.append(session)
                concluded()
                return
            touch = op.Touch(*session, self._consumer.name)
            done = partial(claimed, attempt, session)
            self._gateway.submit(encode(touch), done, is_ending=True)

        def may_claim(session: tuple[int, int]) -> bool:
            """Whether it would be taken from nobody who has it since; some time has passed."""
            if self._consumer.is_gone or self._is_draining:
                return False
            return self._gateway.holder(*session) in {holders[session], self._consumer.name}

        def claimed(attempt: int, session: tuple[int, int], result: Result) -> None:
            self._note(result, [session])
            if isinstance(result, Failure):
                may_come = result.retryable or result.outcome is Outcome.UNKNOWN
                if may_come and not self._consumer.is_gone:
                    # It is given already: nobody else would claim it.
                    self._operators.again(attempt + 1, claim, session)
                    return
                missed.append(session)
            elif not self._consumer.take(*session, is_known=True):
                missed.append(session)
            concluded()

        def concluded() -> None:
            nonlocal left
            left -= 1
            if not left:
                lost = self._told(telling)
                for one in missed:
                    lost.pop(one, None)  # that is told with these
                then()
                self._consumer.misses(missed)
                for (session_id, epoch), cause in lost.items():
                    self.on_lost(session_id, epoch, cause)

        for session in active:
            claim(0, session)

    def _tell_of(self, sessions: Iterable[tuple[int, int]]) -> _Telling:
        """Begin an answer that says that these are the consumer's, when all of them are known."""
        telling: _Telling = dict.fromkeys(sessions)
        self._tellings.append(telling)
        return telling

    def _told(self, telling: _Telling) -> dict[tuple[int, int], str]:
        """Give such an answer now. Answers which sessions are lost already, and why."""
        self._tellings = [one for one in self._tellings if one is not telling]
        lost = {one: cause for one, cause in telling.items() if cause is not None}
        # What it has taken back meanwhile is no loss.
        return {one: cause for one, cause in lost.items() if not self._consumer.directs(*one)}

    def on_lost(self, session_id: int, epoch: int, cause: str) -> None:
        """Tell the consumer that a session is its own no more, if it has heard that it is."""
        is_told = True
        for telling in self._tellings:
            if (session_id, epoch) in telling:
                telling[session_id, epoch] = cause
                is_told = False
        if is_told:
            push = LeaseLostPush(id=session_text(session_id), epoch=epoch, cause=cause)
            self._out.push(push)

    def _take_all(self, sessions: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Direct sessions from here on. Answers those that are not the consumer's after all."""
        return [one for one in sessions if not self._consumer.take(*one)]

    def _new(self, request: ask.New) -> None:
        if not self._is_free:
            self._front.check(self._principal, Scope.OPERATE, request.theme)
        name, is_keyed = None, request.idempotency_key is not None
        if request.repeat_after is None:
            self._may_be_given(request)
            name = self._consumer.name
        created = partial(self._created, request.seq, is_keyed, request.until_used)
        self._gateway.submit(request.encoded(name), created)

    def _created(self, seq: int, is_keyed: bool, is_first: bool, result: Result) -> None:  # noqa: FBT001 - bound
        if not isinstance(result, Created) or not result.epoch:
            self._budget.note(result)
            if isinstance(result, Failure):
                self._consumer.doubts(result, comes_back=is_keyed)
            self._answered(seq, result)
            return
        self._budget.earn()
        session_id, epoch = result.session_id, result.epoch
        consumer, name = self._consumer, self._consumer.name

        def is_held() -> bool:
            return self._gateway.is_held(session_id, epoch, name)

        def claimed() -> None:
            answer = answer_of(result, seq)
            answer.lease_ms = self._gateway.held_ms(session_id, epoch, name)
            self._out.answer(answer)

        # Done before under its key, it may be another connection's. What is sent first and comes
        # later than that is nobody's any more.
        if not is_keyed or is_first or is_held():
            # With a key it may come back for it, over another connection.
            consumer.take(session_id, epoch, is_known=is_keyed)
            claimed()
        else:
            self._given(((session_id, epoch),), None, claimed)

    def _take(self, request: ask.Take) -> None:
        name, target = self._may_be_given(request), request.target

        def go_on() -> None:
            self._gateway.acquire(request.encoded(name), partial(self._taken, request.seq, name))

        self._if_allowed(request.seq, (target,), go_on)

    def _taken(self, seq: int, name: bytes | None, result: list[SessionView] | Failure) -> None:
        if isinstance(result, Failure):
            self._direct(seq, result)
            return
        self._budget.earn()
        answer = SessionAnswer(seq=seq, session=result[0])
        self._given(_ids(result), name, partial(self._out.answer_session, answer))

    def _acquire(self, request: ask.Acquire) -> None:
        self._front.check(self._principal, Scope.OPERATE, *request.themes)
        _without_key(request)
        name, seq = self._may_be_given(request), request.seq
        wait_ms = min(ask.seconds_to_ms(request.wait), self._front.settings.long_poll_max_ms)
        if not wait_ms:
            self._gateway.acquire(request.encoded(name), partial(self._acquired, seq))
            return
        poll = _Poll(seq)
        found = partial(self._found, poll)
        waiter = self._front.waiters.ask(request.themes, request.count, name, found)
        if not waiter.is_over:
            poll.waiter = waiter
            poll.timer = self._loop.call_later(wait_ms / 1000, self._waited, poll)
            self._polls.add(poll)

    def _found(self, poll: _Poll, result: list[SessionView] | Failure) -> None:
        self._end_poll(poll)
        if not poll.is_given_up:
            self._acquired(poll.seq, result)
        elif isinstance(result, Failure):
            self._consumer.doubts(result)
        else:
            for session_id, epoch in _ids(result):
                self._operators.give_back(session_id, epoch, "whoever asked for it had given up")

    def _waited(self, poll: _Poll) -> None:
        """Its time is over. If something is on its way to it, that is waited for a while longer."""
        if poll.waiter is not None and self._front.waiters.leave(poll.waiter):
            self._polls.discard(poll)
            self._out.answer(SessionsAnswer(seq=poll.seq, sessions=[]))
        else:
            timeout_s = self._front.settings.request_timeout_ms / 1000
            poll.timer = self._loop.call_later(timeout_s, self._give_up, poll)

    def _give_up(self, poll: _Poll) -> None:
        self._polls.discard(poll)
        poll.is_given_up = True
        detail = "no answer in time; what may still be handed out is stored again"
        self._refuse(poll.seq, refusal(504, "timed_out", detail, retryable=True).problem)

    def _end_poll(self, poll: _Poll) -> None:
        self._polls.discard(poll)
        if poll.timer is not None:
            poll.timer.cancel()

    def _acquired(self, seq: int, result: list[SessionView] | Failure) -> None:
        if isinstance(result, Failure):
            self._direct(seq, result)
            return
        self._budget.earn()
        missed = self._take_all(_ids(result))
        self._out.answer_session(SessionsAnswer(seq=seq, sessions=result))
        self._consumer.misses(missed)

    def _resume(self, request: ask.Resume) -> None:
        self._front.check(self._principal, Scope.OPERATE)
        _without_key(request)
        name = self._may_be_given(request)
        asked = [(ask.session_of(one.id), one.epoch) for one in request.sessions]
        resumed: list[Any] = [None] * len(asked)
        left = len(asked)
        self.in_flight += left - 1  # so many operations
        telling = self._tell_of(asked)

        def concluded(place: int, what: Resumed | NotResumed) -> None:
            nonlocal left
            resumed[place] = what
            left -= 1
            if left:
                return
            self.in_flight -= len(asked) - 1
            lost = self._told(telling)
            for number, one in enumerate(resumed):
                if isinstance(one, Resumed) and lost.pop(asked[number], None) is not None:
                    resumed[number] = missed(number)
            self._out.answer(ResumedAnswer(seq=request.seq, sessions=resumed))
            for (session_id, epoch), cause in lost.items():  # it had them before
                self.on_lost(session_id, epoch, cause)

        def refused(place: int, failure: Failure) -> NotResumed:
            return NotResumed(id=request.sessions[place].id, error=of_failure(failure).fields())

        def missed(place: int) -> NotResumed:
            """It went to another, or ended, before that could be told."""
            session_id, epoch = asked[place]
            newest = max(self._gateway.epoch(session_id), epoch)
            return refused(place, LeaseLost(session_id, epoch, newest))

        def touched(place: int, result: Result) -> None:
            (session_id, epoch), held = asked[place], request.sessions[place]
            self._note(result, [asked[place]])
            if isinstance(result, Failure):
                concluded(place, refused(place, result))
                return
            if not self._consumer.take(session_id, epoch, is_known=True):
                concluded(place, missed(place))
                return
            revision = result if isinstance(result, int) else 0
            lease_ms = self._gateway.lease_ms(session_id)
            what = Resumed(id=held.id, epoch=epoch, revision=revision, lease_ms=lease_ms)
            concluded(place, what)

        def known(place: int, touch: bytes, refusal: Refusal | None) -> None:
            if self._consumer.is_gone:
                return  # another may have resumed it since
            if refusal is None:
                self._gateway.submit(touch, partial(touched, place), is_ending=True)
            elif refusal.problem.code == "forbidden":
                concluded(place, refused(place, _NOT_FOUND))  # it must not know of its theme
            else:  # nobody knows of which theme it is, just now
                what = NotResumed(id=request.sessions[place].id, error=refusal.problem.fields())
                concluded(place, what)

        for place, (session_id, epoch) in enumerate(asked):
            touch = encode(op.Touch(session_id, epoch, name))
            then = partial(known, place, touch)
            self._front.check_target(self._principal, Scope.OPERATE, session_id, then)

    # What is done to a session

    def _if_allowed(
        self, seq: int, targets: tuple[op.Target, ...], go_on: Callable[[], None]
    ) -> None:
        """Go on if the sessions' themes are the principal's; that may have to be read."""
        principal = self._principal
        if self._is_free:
            go_on()
            return
        self.is_checking = True

        def known(refused: Refusal | None) -> None:
            self.is_checking = False
            if refused is not None:
                self._refuse(seq, refused.problem)
            elif not self._consumer.is_gone:  # else it would come after its sessions are stored
                try:
                    go_on()
                except Exception as error:  # noqa: BLE001 - see `_failed`
                    self._failed(seq, error)
            self._on_checked()

        self._front.check_targets(principal, Scope.OPERATE, targets, known)

    def _step(self, request: Stepping) -> None:
        target = request.target
        if self._is_free:
            self._do(request, target)
        else:
            self._if_allowed(request.seq, (target,), partial(self._do, request, target))

    def _do(self, request: Stepping, target: op.Target) -> None:
        encoded = request.encoded_on(target, None)
        epoch = None if isinstance(request, ask.Unpark) else request.epoch
        if epoch is not None:
            operator = self._operators.operate(target, epoch)
            if operator is not None:
                callback = partial(self._answered, request.seq)
                is_verdict, is_ending = request.is_verdict, request.is_ending
                operator.ask(Step(encoded, callback, is_verdict, is_ending, self._consumer))
                return
        callback = partial(self._direct, request.seq)
        self._gateway.submit(encoded, callback, is_ending=request.is_ending)

    def _touch(self, request: ask.Touch) -> None:
        target = request.target
        self._if_allowed(request.seq, (target,), partial(self._claim, request, target))

    def _claim(self, request: ask.Touch, target: op.Target) -> None:
        name, operations = self._name_to_claim(request), (request,)
        encoded = request.encoded_on(target, name)
        ids = ids_of(self._gateway, operations)
        done = partial(self._transacted, request.seq, name, operations, ids)
        operator = self._operators.operate(target, request.epoch)
        if operator is not None:
            unclaimed = None if name is None else partial(request.encoded_on, target, None)
            operator.ask(
                Step(
                    encoded,
                    done,
                    is_verdict=False,
                    is_ending=True,
                    asker=self._consumer,
                    unclaimed=unclaimed,
                )
            )
        else:
            self._gateway.submit(encoded, partial(self._counted, done), is_ending=True)

    def _name_to_claim(self, request: ask.Request) -> bytes | None:
        """Under what name sessions are touched; none if they are claimed afterwards, or not."""
        return None if self._is_draining else self._may_be_given(request)

    def _txn(self, request: ask.Txn) -> None:
        operations, name = request.operations, None
        gives = any(map(_gives, operations))
        if gives:
            name = self._may_be_given(request)
        elif any(isinstance(one, ask.Touch) for one in operations):
            name = self._name_to_claim(request)
        themes = [one.theme for one in operations if isinstance(one, ask.New)]
        self._front.check(self._principal, Scope.OPERATE, *themes)
        targets = tuple(target for target, _, _ in request.shown)

        def go_on() -> None:
            encoded, shown = request.encoded(name), request.shown
            ids = ids_of(self._gateway, operations)
            done = partial(self._transacted, request.seq, name, operations, ids)
            # What is given to who is gone is given back; what it touches may be another's by then.
            claims = name is not None and not gives
            self._operators.transact(
                shown,
                encoded,
                done,
                weight=len(operations),
                asker=self._consumer,
                unclaimed=partial(request.encoded, None) if claims else None,
            )

        self._if_allowed(request.seq, targets, go_on)

    def _counted(self, then: Callable[[Result], object], result: Result) -> None:
        self._budget.note(result)
        then(result)

    def _transacted(
        self,
        seq: int,
        name: bytes | None,
        operations: Collection[ask.Request],
        before: Ids,
        result: Result,
    ) -> None:
        """Direct what was given or touched, and answer. `before` is as this node had it before."""
        ids = ids_of(self._gateway, operations, before)
        given: list[Held] = []
        missed: list[Held] = []
        if isinstance(result, Failure):
            self._consumer.doubts(result, touched_by(operations, ids))
        else:
            results = result.results if isinstance(result, Done) else (result,)
            effects = effects_of(operations, results, ids)
            given += effects.given.items()
            if name is None:
                given += () if self._is_draining else effects.touched
            else:
                missed += [
                    one
                    for one in effects.touched
                    if one[0] not in effects.ended and not self._consumer.take(*one, is_known=True)
                ]

        def told() -> None:
            if isinstance(result, Done):
                self._out.answer(self._gateway.answer(result, self._consumer.name, seq))
            else:
                self._answered(seq, result)
            self._consumer.misses(missed)

        self._given(given, name, told)

    # The rest

    def _get(self, request: ask.Get) -> None:
        _without_key(request)
        target, seq = request.target, request.seq

        def known(refused: Refusal | None) -> None:
            if refused is not None:
                self._refuse(seq, refused.problem)
            else:
                is_stale = request.consistency == "stale"
                self._gateway.session(target, partial(self._got, seq, target), is_stale=is_stale)

        self._front.check_target(self._principal, Scope.READ, target, known)

    def _got(self, seq: int, target: op.Target, found: SessionView | Failure | None) -> None:
        if not isinstance(found, SessionView):
            self._answered(seq, found or _NOT_FOUND)
        elif self._has_room:
            self._out.answer_session(SessionAnswer(seq=seq, session=found))
        else:
            # When its turn comes it is looked at again: what waits here may be gone by then, and
            # would take memory for nobody else.
            self._deferred.append((seq, target))

    @property
    def _has_room(self) -> bool:
        return self._out.session_bytes <= self._front.settings.websocket_send_buffer_bytes

    def on_room(self) -> None:
        """Take note that the consumer has read something."""
        while self._deferred and self._has_room:
            seq, target = self._deferred.popleft()
            self._gateway.session(target, partial(self._got, seq, target), is_stale=True)

    def _beat(self, request: ask.Heartbeat) -> None:
        self._front.check(self._principal, Scope.OPERATE)
        _without_key(request)

        def answered(result: Result) -> None:
            if isinstance(result, int):
                now_ms = self._gateway.now_ms
                self._out.answer(HeldAnswer(seq=request.seq, held=result, now_ms=now_ms))
            else:
                self._direct(request.seq, result)

        self._gateway.submit(encode(op.Heartbeat(self._consumer.name)), answered, is_ending=True)

    def _give_credit(self, request: ask.Credit) -> None:
        self._front.check(self._principal, Scope.OPERATE, *request.themes)
        _without_key(request)
        themes = tuple(dict.fromkeys(request.themes))
        if themes and request.count:
            self._may_be_given(request)
            count, bound = len(themes), self._gateway.limits().acquire_themes
            if count > bound:  # nothing would ever be pushed
                self._answered(request.seq, LimitExceeded("acquire_themes", count, bound))
                return
        self._out.answer(DoneAnswer(seq=request.seq))
        self._pusher.give(themes, request.count)

    def _pushed(self, result: list[SessionView]) -> None:
        missed = self._take_all(_ids(result))
        for view in result:
            self._out.push_session(SessionPush(session=view))
        self._consumer.misses(missed)
        self._front.websockets.pushed += len(result)


def _is_free(principal: Principal) -> bool:
    return principal.may_all_themes and principal.may(Scope.OPERATE)


def _ids(views: Iterable[SessionView]) -> list[tuple[int, int]]:
    return [(session_number(view.id) or 0, view.epoch) for view in views]


def _gives(operation: ask.TxnRequest) -> bool:
    """Whether it gives whoever asks a session."""
    match operation:
        case ask.New():
            return operation.repeat_after is None
        case ask.Take():
            return True
        case _:
            return False


def _without_key(request: ask.Request) -> None:
    if request.idempotency_key is not None:
        raise bad_request("this takes no idempotency key: it may be asked again as it is")
