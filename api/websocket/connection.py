"""A consumer over a WebSocket.

Requests are handed on as they come, and answered by callbacks; what is to be said gathers, and
leaves as one frame when the writer comes to it. So a burst of requests is one batch of the cluster,
and one frame back.

Every queue is bounded. Requests that are not answered, those included whose answers have not left,
are counted: beyond their bound nothing more is read, and the network tells the peer. One that
does not read what it is told, for too long, is told so and closed. What may be pushed is bounded by
the credit that the consumer gave, and by what it holds.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from api import requests as ask
from api.answers import (
    DoneAnswer,
    HeldAnswer,
    SessionAnswer,
    SessionsAnswer,
    SessionView,
    answer_of,
)
from api.frontend import FrontEnd
from api.identifiers import session_number, session_text
from api.operators import Step
from api.problems import Problem, Refusal, bad_request, of_failure
from api.security import Principal, Scope
from api.waiting import Waiter
from api.websocket.frames import (
    Codec,
    DrainingPush,
    ErrorAnswer,
    Hello,
    LeaseLostPush,
    NotResumed,
    Resumed,
    ResumedAnswer,
    SessionPush,
    Unfit,
    UnreadableError,
)
from state import Acquired, Cause, Created, Done, Failure, Result, encode
from state import operations as op
from state.errors import SessionNotFound

_log = logging.getLogger(__name__)

_VERDICTS = (ask.Remove, ask.Store, ask.Park)
_RETRY_S = 0.5  # of credit that could not be used
CREDIT_MAX = 16_384
PUSHED_AT_ONCE = 256  # as the limits of the state are, by default, a quarter of what may be
NOT_FOUND = SessionNotFound()
_CLEAN = frozenset({WSCloseCode.OK, WSCloseCode.GOING_AWAY})


class Connection:
    """One WebSocket, one consumer."""

    def __init__(
        self, front: FrontEnd, socket: web.WebSocketResponse, codec: Codec, principal: Principal
    ) -> None:
        self._front = front
        self._gateway = front.gateway
        self._operators = front.operators
        self._socket = socket
        self._codec = codec
        self._principal = principal
        self._settings = front.settings
        self._loop = asyncio.get_running_loop()
        self._consumer = front.consumers.connect(self)
        self._out: list[Any] = []
        self._has_out = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._in_flight = 0  # requests whose answers have not left
        self._is_closing = False
        self._reason: tuple[Cause, str] | None = None  # why it is gone for certain
        self._credit = 0
        self._themes: tuple[int, ...] = ()
        self._pusher: Waiter | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            ask.New: self._new,
            ask.Append: self._step,
            ask.Replace: self._step,
            ask.Remove: self._step,
            ask.Store: self._step,
            ask.Touch: self._step,
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

    # Its life

    async def run(self) -> None:
        """Serve until either side closes."""
        self._say(
            Hello(
                node=self._front.node_id,
                consumer=self._consumer.name.decode(),
                frame_bytes=self._settings.websocket_frame_bytes,
                requests_in_flight=self._settings.websocket_requests_in_flight,
            )
        )
        writer = asyncio.ensure_future(self._write())
        try:
            await self._read()
        finally:
            self._is_closing = True
            self._gone()
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer

    async def _read(self) -> None:
        receive, handlers = self._socket.receive, self._handlers
        while not self._is_closing:
            message: WSMessage = await receive()
            kind = message.type
            if kind is WSMsgType.BINARY or kind is WSMsgType.TEXT:
                self._consumer.heard()
                if (kind is WSMsgType.TEXT) != self._codec.is_text:
                    self._close(WSCloseCode.UNSUPPORTED_DATA, f"a frame is no {self._codec.name}")
                    return
                try:
                    requests = self._codec.decode(message.data)
                except UnreadableError as error:
                    self._close(WSCloseCode.INVALID_TEXT, str(error))
                    return
                self._in_flight += len(requests)
                for request in requests:
                    try:
                        handlers[type(request)](request)
                    except Refusal as refusal:
                        self._refuse(request.seq, refusal.problem)
                if self._in_flight >= self._settings.websocket_requests_in_flight:
                    self._has_room.clear()
                    await self._has_room.wait()
            elif kind is WSMsgType.PONG:
                self._consumer.heard()
            elif kind is WSMsgType.PING:
                self._consumer.heard()
                await self._socket.pong(message.data)
            else:
                return

    async def _write(self) -> None:
        """Send what gathers, until it is cancelled."""
        settings, socket = self._settings, self._socket
        timeout_s = settings.request_timeout_ms / 1000
        while True:
            await self._has_out.wait()
            self._has_out.clear()
            out, self._out = self._out, []
            frames = self._codec.encode(out, settings.websocket_frame_bytes)
            try:
                async with asyncio.timeout(timeout_s):
                    for frame in frames:
                        await socket.send_frame(frame, self._frame_kind)
            except TimeoutError:
                self._close(WSCloseCode.POLICY_VIOLATION, "what it is told is not read")
                return
            except (ConnectionError, RuntimeError):
                return  # the reader finds out
            answers = sum(1 for one in out if hasattr(one, "seq"))
            self._in_flight -= answers
            if self._in_flight < settings.websocket_requests_in_flight:
                self._has_room.set()

    @property
    def _frame_kind(self) -> WSMsgType:
        return WSMsgType.TEXT if self._codec.is_text else WSMsgType.BINARY

    def _say(self, answer: Any) -> None:  # noqa: ANN401 - whatever is told
        self._out.append(answer)
        self._has_out.set()

    def _close(self, code: int, reason: str) -> None:
        """End the connection of a consumer that does what it must not."""
        if self._is_closing:
            return
        self._is_closing = True
        self._reason = self._reason or (Cause.FAILED, reason[:120])
        _log.info("%s is closed: %s", self._consumer.name.decode(), reason)
        self._front.spawn(self._end(code, reason))

    async def _end(self, code: int, reason: str) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError, TimeoutError):
            async with asyncio.timeout(5):
                await self._socket.close(code=code, message=reason.encode()[:120])

    def _gone(self) -> None:
        """Let go of what the consumer holds, or let it wait for it to come back."""
        if self._pusher is not None:
            self._front.waiters.leave(self._pusher)
        if self._reason is not None:
            self._consumer.leave(*self._reason)
        elif self._socket.close_code in _CLEAN:
            self._consumer.leave(Cause.DISCONNECTED, "its consumer disconnected")
        else:
            self._consumer.vanish()

    # For the front end

    def drain(self, within_ms: int) -> None:
        """Tell the consumer that it had better go elsewhere."""
        self._stop_pushing()
        self._say(DrainingPush(within_ms=within_ms))

    def shut_down(self) -> None:
        """End, and store what the consumer still holds; its attempts are given back."""
        self._reason = (Cause.SHUTDOWN, "its node was shut down")
        self._consumer.leave(*self._reason)
        self._close(WSCloseCode.GOING_AWAY, "the node shuts down")

    # For its consumer

    def ping(self) -> None:
        self._front.spawn(self._ping())

    async def _ping(self) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._socket.ping()

    def on_vanished(self) -> None:
        """Nothing was heard for a lease: what is held waits for its end, so that it may resume."""
        self._is_closing = True
        self._consumer.vanish()
        self._front.spawn(self._end(WSCloseCode.POLICY_VIOLATION, "no sign of life"))

    def on_lost(self, session_id: int, epoch: int, cause: str) -> None:
        self._say(LeaseLostPush(id=session_text(session_id), epoch=epoch, cause=cause))

    # Requests. Each is answered once.

    def _refuse(self, seq: int, problem: Problem) -> None:
        self._say(ErrorAnswer(seq=seq, error=problem.fields()))

    def _answered(self, seq: int, result: Result) -> None:
        if isinstance(result, Failure):
            self._say(ErrorAnswer(seq=seq, error=of_failure(result).fields()))
        else:
            self._say(answer_of(result, seq))

    def _unfit(self, request: Unfit) -> None:
        self._say(
            ErrorAnswer(
                seq=request.seq,
                error=Problem(400, "bad_request", "not_applied", False, request.problem).fields(),  # noqa: FBT003
            )
        )

    def _new(self, request: ask.New) -> None:
        self._front.check(self._principal, Scope.OPERATE, request.theme)
        encoded = request.encoded(self._consumer.name)
        self._gateway.submit(encoded, partial(self._created, request.seq))

    def _created(self, seq: int, result: Result) -> None:
        if isinstance(result, Created) and result.epoch:
            self._hold(result.session_id, result.epoch)
        self._answered(seq, result)

    def _hold(self, session_id: int, epoch: int) -> None:
        """Direct a session from here on, unless it has gone on without this consumer meanwhile."""
        if self._gateway.epoch(session_id) == epoch:
            self._operators.begin(session_id, epoch, self._consumer)

    def _step(self, request: ask.Append | ask.Replace | ask.Remove | ask.Store | ask.Touch) -> None:
        target = request.target
        if not self._principal.may_all_themes:
            self._restricted(request, target)
            return
        self._do(request, target)

    def _do(self, request: Any, target: op.Target) -> None:  # noqa: ANN401 - of those in `_step`
        encoded = request.encoded(None)
        callback = partial(self._answered, request.seq)
        epoch = getattr(request, "epoch", None)
        if epoch and type(target) is int:
            operator = self._operators.operate(target, epoch)
            if operator is not None:
                is_verdict = isinstance(request, _VERDICTS)
                operator.ask(Step(encoded, callback, is_verdict, request.is_ending))
                return
        self._gateway.submit(encoded, callback, is_ending=request.is_ending)

    def _restricted(self, request: Any, target: op.Target) -> None:  # noqa: ANN401 - as above
        """Do it if the session's theme is one of the principal's; that may have to be read."""

        def known(refusal: Refusal | None) -> None:
            if refusal is not None:
                self._refuse(request.seq, refusal.problem)
            elif isinstance(request, ask.Take):
                self._take_it(request)
            else:
                self._do(request, target)

        self._front.check_target(self._principal, Scope.OPERATE, target, known)

    def _take(self, request: ask.Take) -> None:
        if not self._principal.may_all_themes:
            self._restricted(request, request.target)
        else:
            self._take_it(request)

    def _take_it(self, request: ask.Take) -> None:
        encoded = request.encoded(self._consumer.name)
        self._gateway.acquire(encoded, partial(self._taken, request.seq))

    def _taken(self, seq: int, result: list[SessionView] | Failure) -> None:
        if isinstance(result, Failure):
            self._answered(seq, result)
            return
        self._hold_all(result)
        if result:
            self._say(SessionAnswer(seq=seq, session=result[0]))
        else:
            self._answered(seq, NOT_FOUND)

    def _acquire(self, request: ask.Acquire) -> None:
        self._front.check(self._principal, Scope.OPERATE, *request.themes)
        seq = request.seq
        if request.idempotency_key is not None:
            raise bad_request("an acquire takes no idempotency key: resume what you hold instead")
        wait_ms = min(ask.seconds_to_ms(request.wait), self._settings.long_poll_max_ms)
        if not wait_ms:
            encoded = request.encoded(self._consumer.name)
            self._gateway.acquire(encoded, partial(self._acquired, seq, None))
            return
        timers: list[asyncio.TimerHandle] = []
        found = partial(self._acquired, seq, timers)
        name = self._consumer.name
        waiter = self._front.waiters.ask(request.themes, request.count, name, found)
        if not waiter.is_over:
            timers.append(self._loop.call_later(wait_ms / 1000, self._waited, seq, waiter))

    def _waited(self, seq: int, waiter: Waiter) -> None:
        if self._front.waiters.leave(waiter):
            self._say(SessionsAnswer(seq=seq, sessions=[]))

    def _acquired(
        self,
        seq: int,
        timers: list[asyncio.TimerHandle] | None,
        result: list[SessionView] | Failure,
    ) -> None:
        for timer in timers or ():
            timer.cancel()
        if isinstance(result, Failure):
            self._answered(seq, result)
        else:
            self._hold_all(result)
            self._say(SessionsAnswer(seq=seq, sessions=result))

    def _hold_all(self, views: list[SessionView]) -> None:
        for view in views:
            session_id = session_number(view.id)
            if session_id is not None:
                self._hold(session_id, view.epoch)

    def _txn(self, request: ask.Txn) -> None:
        operation = request.operation(self._consumer.name)
        encoded = encode(ask.once(operation, request.idempotency_key))
        themes = [one.theme for one in request.operations if isinstance(one, ask.New)]
        self._front.check(self._principal, Scope.OPERATE, *themes)
        targets = [one.target for one in request.operations if isinstance(one, ask.Targeted)]
        weight = len(request.operations)

        def known(refusal: Refusal | None) -> None:
            if refusal is not None:
                self._refuse(request.seq, refusal.problem)
            else:
                done = partial(self._transacted, request.seq)
                self._gateway.submit(encoded, done, weight=weight)

        self._front.check_targets(self._principal, Scope.OPERATE, targets, known)

    def _transacted(self, seq: int, result: Result) -> None:
        if isinstance(result, Done):
            for one in result.results:
                if isinstance(one, Created | Acquired) and one.epoch:
                    self._hold(one.session_id, one.epoch)
        self._answered(seq, result)

    def _get(self, request: ask.Get) -> None:
        target, seq = request.target, request.seq

        def known(refusal: Refusal | None) -> None:
            if refusal is not None:
                self._refuse(seq, refusal.problem)
            else:
                is_stale = request.consistency == "stale"
                self._gateway.session(target, partial(self._got, seq), is_stale=is_stale)

        self._front.check_target(self._principal, Scope.READ, target, known)

    def _got(self, seq: int, found: SessionView | Failure | None) -> None:
        if isinstance(found, SessionView):
            self._say(SessionAnswer(seq=seq, session=found))
        else:
            self._answered(seq, found or NOT_FOUND)

    def _resume(self, request: ask.Resume) -> None:
        self._front.check(self._principal, Scope.OPERATE)
        resumed: list[Any] = []
        count = len(request.sessions)

        def touched(held: ask.Held, session_id: int, result: Result) -> None:
            if isinstance(result, Failure):
                resumed.append(NotResumed(id=held.id, error=of_failure(result).fields()))
            else:
                self._hold(session_id, held.epoch)
                revision = result if isinstance(result, int) else 0
                resumed.append(Resumed(id=held.id, epoch=held.epoch, revision=revision))
            if len(resumed) == count:
                self._say(ResumedAnswer(seq=request.seq, sessions=resumed))

        for held in request.sessions:
            session_id = session_number(held.id) or 0
            touch = op.Touch(session_id, held.epoch, self._consumer.name)
            callback = partial(touched, held, session_id)
            self._resume_one(session_id, encode(touch), callback)

    def _resume_one(self, session_id: int, encoded: bytes, callback: Callable[[Any], None]) -> None:
        def known(refusal: Refusal | None) -> None:
            if refusal is not None:
                callback(NOT_FOUND)  # of a theme that it must not know of
            else:
                self._gateway.submit(encoded, callback, is_ending=True)

        self._front.check_target(self._principal, Scope.OPERATE, session_id, known)

    def _beat(self, request: ask.Heartbeat) -> None:
        def answered(result: Result) -> None:
            if isinstance(result, int):
                self._say(HeldAnswer(seq=request.seq, held=result))
            else:
                self._answered(request.seq, result)

        self._gateway.submit(encode(op.Heartbeat(self._consumer.name)), answered, is_ending=True)

    # Pushing

    def _give_credit(self, request: ask.Credit) -> None:
        self._front.check(self._principal, Scope.OPERATE, *request.themes)
        themes = tuple(dict.fromkeys(request.themes))
        if themes != self._themes:
            self._stop_pushing()
            self._themes = themes
        self._credit = min(self._credit + request.count, CREDIT_MAX) if themes else 0
        self._say(DoneAnswer(seq=request.seq))
        self._push()

    def _stop_pushing(self) -> None:
        pusher, self._pusher = self._pusher, None
        self._credit = 0
        if pusher is not None:
            self._front.waiters.leave(pusher)

    def _push(self) -> None:
        if self._pusher is not None or not self._credit or self._is_closing:
            return
        count = min(self._credit, PUSHED_AT_ONCE)
        pusher: list[Waiter] = []

        def found(result: list[SessionView] | Failure) -> None:
            if pusher and self._pusher is pusher[0]:
                self._pusher = None
            self._pushed(result)

        waiter = self._front.waiters.ask(self._themes, count, self._consumer.name, found)
        pusher.append(waiter)
        if not waiter.is_over:
            self._pusher = waiter

    def _pushed(self, result: list[SessionView] | Failure) -> None:
        if isinstance(result, Failure):
            self._loop.call_later(_RETRY_S, self._push)
            return
        self._hold_all(result)
        self._credit = max(self._credit - len(result), 0)
        for view in result:
            self._say(SessionPush(session=view))
        self._loop.call_soon(self._push)
