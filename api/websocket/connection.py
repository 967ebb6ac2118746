"""A consumer over a WebSocket: how it comes, is read, and goes.

Every queue is bounded. Requests that are not answered, those included whose answers have not left,
are counted: at their bound the next one waits, nothing behind it is read, and the network tells the
peer. So it is beyond a bound of what waits to be read by the peer. While it is not read, its
silence is no fault of its own. One that reads nothing for too long is told so and closed, and what
it holds is stored. What may be pushed is bounded by the credit that it gave.

How it goes decides what becomes of what it holds (docs/protocol.md tells clients):

* closed by the consumer with 1000 or 1001: it is done, so what it still holds is stored;
* closed because it did what it must not, or the node stops: stored as well;
* gone in any other way, also with a token that is not good any more: it may come back, and has the
  rest of its lease for it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType, web

from api.consumers import Sign
from api.frontend import FrontEnd
from api.requests import WebSocketRequest
from api.security import Principal, Unauthenticated
from api.websocket.frames import (
    FRAME_REQUESTS_MAX,
    Codec,
    CrowdedError,
    DrainingPush,
    Hello,
    Unfit,
    UnreadableError,
)
from api.websocket.outbox import Outbox
from api.websocket.service import Service
from state import Cause

_log = logging.getLogger(__name__)

# Registered beside those of RFC 6455 (IANA, WebSocket Close Code Number Registry).
UNAUTHORIZED = 3000
TIMED_OUT = 3008

_CLEAN = frozenset({0, 1005, WSCloseCode.OK, WSCloseCode.GOING_AWAY})  # 0, 1005: it gave no code
_CLOSE_S = 5.0  # for the peer to agree that the connection ends
_LOST_S = 1.0  # for what was sent before a connection was lost
_REASON_BYTES_MAX = 123  # RFC 6455, 5.5
_AT_ONCE = 512  # frames, and requests in them, before others have their turn


class _EndingError(Exception):
    """The connection ends: nothing more is taken in."""


class Connection:
    """One WebSocket, one consumer."""

    def __init__(
        self,
        front: FrontEnd,
        request: web.BaseRequest,
        socket: web.WebSocketResponse,
        codec: Codec,
        principal: Principal,
    ) -> None:
        self._front = front
        self._socket = socket
        self._codec = codec
        self._principal = principal
        self._settings = front.settings
        self._meters = front.websockets
        self._room = asyncio.Event()
        self._is_held_up = False  # whether a request waits for room, and nothing is read
        self._is_asked = False  # whether the last ping has left
        self._is_ending = False
        self._code = int(WSCloseCode.ABNORMAL_CLOSURE)  # with which it ended
        self._closing: asyncio.Task[None] | None = None
        self._out = Outbox(
            request,
            socket,
            codec,
            front.websockets,
            frame_bytes=self._settings.websocket_frame_bytes,
            timeout_s=self._settings.request_timeout_ms / 1000,
            on_left=self._on_left,
            on_stuck=self._on_stuck,
        )
        self._consumer = front.consumers.connect(self)
        if front.tracing is not None:
            self._out.trace = front.tracing.connection(request.headers)
        self._service = Service(front, self._consumer, self._out, principal, self._room.set)

    @property
    def name(self) -> str:
        """As the cluster knows it."""
        return self._consumer.name.decode()

    async def run(self) -> None:
        """Serve until either side closes."""
        self._meters.opened += 1
        self._out.push(
            Hello(
                node=self._front.node_id,
                consumer=self.name,
                frame_bytes=self._settings.websocket_frame_bytes,
                frame_requests=FRAME_REQUESTS_MAX,
                requests_in_flight=self._settings.websocket_requests_in_flight,
                unread_bytes=self._settings.websocket_send_buffer_bytes,
            )
        )
        if self._front.health.is_draining:  # since it was let in; nobody has told it
            self.drain(self._settings.drain_ms)
        reading = asyncio.ensure_future(self._read_safely())
        try:
            await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The connection is lost, as a rule; what was sent before that is still to be read.
            self._is_lost()
            await asyncio.wait([reading], timeout=_LOST_S)
            raise
        finally:
            reading.cancel()
            self._gone()
            if self._closing is not None:
                await asyncio.wait([self._closing])

    # Reading

    async def _read_safely(self) -> None:
        try:
            await self._read()
        except Exception:  # noqa: BLE001 - a defect, and not the consumer's fault
            _log.exception("%s cannot be served", self.name)
            self._end(WSCloseCode.INTERNAL_ERROR, "the server has made a mistake", None)

    async def _read(self) -> None:
        """Take in what is asked, each request as there is room for it.

        Room is waited for before a request, and not after one: who has as many in flight as may be,
        and asks nothing more, is still heard, and its farewell is noticed.
        """
        receive, consumer = self._socket.receive, self._consumer
        service, out = self._service, self._out
        requests_max = self._settings.websocket_requests_in_flight
        unread_bytes_max = self._settings.websocket_send_buffer_bytes
        at_once = _AT_ONCE
        while True:
            if at_once <= 0:
                at_once = _AT_ONCE
                await asyncio.sleep(0)
            message: WSMessage = await receive()
            if self._is_ending:
                return
            at_once -= 1
            consumer.was_heard = True
            kind = message.type
            if kind is not WSMsgType.BINARY and kind is not WSMsgType.TEXT:
                if self._is_last(message):
                    return
                continue
            try:
                for request in self._requests_of(message):
                    while service.in_flight >= requests_max or out.session_bytes > unread_bytes_max:
                        await self._wait()
                    service.handle(request)
                    while service.is_checking:
                        await self._wait()
                    at_once -= 1
                    if at_once <= 0:
                        at_once = _AT_ONCE
                        await asyncio.sleep(0)
            except UnreadableError as error:
                self._end(WSCloseCode.INVALID_TEXT, str(error))
            except CrowdedError as error:
                self._end(WSCloseCode.MESSAGE_TOO_BIG, str(error))
            except _EndingError:
                return

    def _requests_of(self, message: WSMessage) -> Iterable[WebSocketRequest | Unfit]:
        """What a frame asks; nothing if it is of the wrong kind. Raises what `decode` raises."""
        data = message.data
        if (message.type is WSMsgType.TEXT) != self._codec.is_text:
            wanted = "text" if self._codec.is_text else "binary"
            self._end(WSCloseCode.UNSUPPORTED_DATA, f"{self._codec.name} is {wanted} frames")
            return ()
        requests = self._codec.decode(data)
        self._meters.frames_in += 1
        self._meters.bytes_in += len(data)
        return requests

    async def _wait(self) -> None:
        """Wait until something has changed; nothing is read meanwhile. Raises `_EndingError`."""
        self._is_held_up = True
        self._room.clear()
        if not self._is_ending:
            await self._room.wait()
        self._is_held_up = False
        if self._is_ending:
            raise _EndingError

    def _is_last(self, message: WSMessage) -> bool:
        """Whether a message that asks nothing ends the connection."""
        match message.type:
            case WSMsgType.PING:
                self._out.pong(message.data)
                return False
            case WSMsgType.PONG:
                return False
            case WSMsgType.CLOSE:
                self._code = message.data
                if self._code in _CLEAN:
                    self._consumer.leave(Cause.DISCONNECTED, "its consumer disconnected")
            case WSMsgType.ERROR:
                if isinstance(message.data, WebSocketError):
                    self._code = message.data.code
                    self._consumer.leave(Cause.FAILED, "its consumer broke the protocol")
            case _:
                pass
        return True

    def _on_left(self, answers: int) -> None:
        self._service.in_flight -= answers
        self._service.on_room()
        self._room.set()

    # Its end

    def _is_lost(self) -> None:
        """Nothing that is said arrives any more."""
        self._out.drop()
        self._room.set()

    def _gone(self) -> None:
        """Take note that it is over; unless it is known to have left, it may come back."""
        self._is_ending = True
        self._consumer.vanish()
        self._service.stop()
        self._out.drop()
        closed = self._meters.closed
        closed[self._code] = closed.get(self._code, 0) + 1

    def _end(self, code: int, reason: str, cause: Cause | None = Cause.FAILED) -> None:
        """End the connection; with a cause, what its consumer holds is stored.

        The reason is for the peer: it may tell of what was sent, and so is no matter for a log.
        """
        if self._is_ending:
            return
        self._is_ending = True
        self._code = code
        if cause is None:
            self._consumer.vanish()
        else:
            self._consumer.leave(cause, _CAUSES[code])
        self._service.stop()
        self._room.set()
        _log.info("%s is closed with %d: %s", self.name, code, _CAUSES[code])
        self._out.flush()
        self._closing = asyncio.ensure_future(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        # A whole number of characters.
        text = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()
        try:
            with contextlib.suppress(ConnectionError, RuntimeError, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._socket.close(code=code, message=text)
        finally:
            self._out.abort()  # what has not left by now is not read

    def _on_stuck(self) -> None:
        self._end(WSCloseCode.POLICY_VIOLATION, "what you are told is not read")

    # For the front end

    def drain(self, within_ms: int) -> None:
        """Tell the consumer that it had better go elsewhere."""
        self._service.drain()
        self._out.push(DrainingPush(within_ms=within_ms))

    def shut_down(self) -> None:
        """End, and store what the consumer still holds; its attempts are given back."""
        self._end(WSCloseCode.GOING_AWAY, "the node stops: go on at another one", Cause.SHUTDOWN)

    # For its consumer

    def sign(self) -> Sign:
        """What it means that nothing was heard."""
        out = self._out
        if out.takes:
            return Sign.LIFE
        if out.is_blocked or not self._is_asked:
            return Sign.NONE  # what it does not take is no ping; the outbox has its own patience
        if self._is_held_up and out.has_all:
            return Sign.LIFE  # it may have answered; what it has in flight ends in time
        return Sign.SILENCE

    def on_beat(self) -> None:
        """Ask for a sign of life, and whether the token is still good."""
        self._out.mark()
        self._is_asked = self._out.ping()
        try:
            principal = self._front.tokens.renew(self._principal)
        except Unauthenticated as error:
            self._end(UNAUTHORIZED, error.problem.detail, None)
            return
        if principal != self._principal:
            self._principal = principal
            self._service.allow(principal)

    def on_silence(self) -> None:
        self._end(TIMED_OUT, "no sign of life: answer pings", None)

    def on_lost(self, session_id: int, epoch: int, cause: str) -> None:
        self._service.on_lost(session_id, epoch, cause)


# Why the server ends a connection, by the code.
_CAUSES = {
    WSCloseCode.GOING_AWAY: "its node was shut down",
    WSCloseCode.UNSUPPORTED_DATA: "its consumer sent the wrong kind of frame",
    WSCloseCode.INVALID_TEXT: "its consumer sent what cannot be read",
    WSCloseCode.INTERNAL_ERROR: "the server has made a mistake",
    WSCloseCode.MESSAGE_TOO_BIG: "its consumer sent too many requests in one frame",
    WSCloseCode.POLICY_VIOLATION: "its consumer read nothing any more",
    UNAUTHORIZED: "its token is not good any more",
    TIMED_OUT: "its consumer gave no sign of life",
}
