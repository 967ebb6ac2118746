"""The connection of one consumer: to some node, and when that is lost to another one.

When the node says that it is about to stop, the next connection is made first: what is held is
resumed there, and then the old one is closed.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine

import aiohttp
from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMsgType

from ritornello import limits
from ritornello.core import frames
from ritornello.core.conversation import Conversation
from ritornello.core.nodes import Nodes
from ritornello.errors import NotConnected, ProtocolError, RitornelloError, request_error
from ritornello.limits import Options

_log = logging.getLogger("ritornello")

Token = Callable[[], Awaitable[str | None]]
# The leader's address, if it is known; one node's address is where to ask first.
FindLeader = Callable[[str], Awaitable[str | None]]

_TICK_S = 0.5  # at least so often it is looked whether the node is still there
_QUIET_S = 3.0  # for what is on its way to be answered, before moving to another node
_QUIET_LOOK_S = 0.02  # between two looks whether they have been
_RESUMED_S = 5.0  # for what is held to be resumed elsewhere, before the old connection is closed
_HURRY_S = 0.05  # for the last endings to be sent, if there was no time for more
_LEAVE_S = 1.0  # for a node to take a farewell, and again to answer it
_CANCELS_MAX = 5
_CANCEL_S = 1.0  # for what was cancelled to have ended

# Of a WebSocket that was refused: by the status of the answer.
_REFUSALS = {
    400: ("bad_request", False),
    401: ("unauthenticated", False),
    403: ("forbidden", False),
    404: ("not_found", False),
    426: ("upgrade_required", False),
    429: ("rate_limited", True),
    503: ("draining", True),
}
_CLOSED = "the client was closed"
_UNHEARD = "the node renews no leases"
_LEFT = 4000  # a closing code with which the server keeps what is held


class Socket:
    """An open WebSocket, and to which node."""

    __slots__ = ("_transport", "is_sending", "url", "ws")

    def __init__(self, url: str, ws: ClientWebSocketResponse) -> None:
        self.url = url
        self.ws = ws
        # Kept, as a WebSocket that is closed has none; and there is no other way to it.
        self._transport = ws._writer.transport  # noqa: SLF001
        self.is_sending = False

    def break_off(self) -> None:
        """End it with nothing more sent: whoever waits for room is woken."""
        self._transport.abort()

    async def leave(self, code: int) -> None:
        """Close it, in bounded time."""
        try:
            async with asyncio.timeout(2 * _LEAVE_S):  # to be sent, and to be answered
                await self.ws.close(code=code)
        except (aiohttp.ClientError, OSError):  # TimeoutError is one
            pass
        finally:
            if self._transport.get_write_buffer_size():  # to a node that reads nothing
                self.break_off()


class Link:
    """Keeps a conversation connected."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        nodes: Nodes,
        options: Options,
        *,
        token: Token,
        find_leader: FindLeader,
        chance: random.Random,
    ) -> None:
        self._http = http
        self._nodes = nodes
        self._options = options
        self._token = token
        self._find_leader = find_leader
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self.conversation = Conversation(
            options, now=time.monotonic, chance=chance, wake=self._wake
        )
        self._changed = asyncio.Event()  # there may be more to send, or to see to
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = 0.0
        self._running: asyncio.Task[None] | None = None
        self._socket: Socket | None = None  # that is served
        self._aside: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self._complaint = ""  # that was made last
        self.url = ""  # of the node that is connected, or was last

    def start(self) -> None:
        """Connect, and stay so."""
        if self._running is None and not self._is_closing:
            self._running = self._loop.create_task(self._run())
            self._tick()

    async def close(self, within_s: float) -> None:
        """Have what was asked answered, within a time; then take leave."""
        end_s = self._loop.time() + within_s
        while self._running is not None and not self.conversation.is_idle:
            if self._loop.time() >= end_s:
                break
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(0.05, within_s)):
                    await self._changed.wait()
        if not self.conversation.is_idle:
            self.conversation.hurry()
            await asyncio.sleep(_HURRY_S)
        self.let_go()
        if self._running is not None:
            await _end(self._running)
        if self._aside:
            await asyncio.wait(self._aside, timeout=_RESUMED_S + 3 * _LEAVE_S)

    def let_go(self) -> None:
        """Tell whoever waits that it is over, and have it end."""
        self._is_closing = True
        self.conversation.close()
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    # Time

    def _wake(self) -> None:
        self._changed.set()

    def _tick(self) -> None:
        if self._is_closing:
            return
        now_s = time.monotonic()
        next_s = now_s + _TICK_S
        try:
            next_s = min(self.conversation.tick(), next_s)
        except Exception:  # noqa: BLE001 - a defect; what comes later is not to suffer from it
            _log.exception("the time could not be seen to")
        if self._timer is None or next_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_s = next_s
            self._timer = self._loop.call_later(max(next_s - now_s, 0.0), self._timed)

    def _timed(self) -> None:
        self._timer = None  # which may come a little early
        self._tick()
        if self.conversation.is_unheard or self.conversation.has_to_end:
            self._look(self._socket)  # nothing else may, as the node says nothing

    def _look(self, socket: Socket | None) -> None:
        """Have it seen that a connection has ended, or has to, also while something is sent.

        A node that reads nothing leaves no room for more, and to close the connection is to wait
        for that room: so it is broken off.
        """
        self._changed.set()
        if socket is not None and socket.is_sending:
            socket.break_off()

    # Connecting

    async def _run(self) -> None:
        failures = 0
        socket: Socket | None = None
        while not self._is_closing:  # for what it waits for may swallow that it is cancelled
            if socket is None:
                socket = await self._try_to_connect(self._nodes)
            if socket is not None:
                begun_s = self._loop.time()
                socket = await self._serve_somehow(socket)
                if socket is not None:
                    continue
                if self._loop.time() - begun_s >= limits.STEADY_S:
                    failures = 0
                    continue
            bound_s = self._options.backoff_min_s * 2 ** min(failures, 32)
            failures += 1
            await asyncio.sleep(self._chance.uniform(0, min(bound_s, self._options.backoff_max_s)))
        if socket is not None:
            self._set_aside(socket.leave(WSCloseCode.OK))

    async def _try_to_connect(self, nodes: Nodes) -> Socket | None:
        """Connect to the node that is to be tried first. None if it cannot be."""
        try:
            match self._options.prefer:
                case "nearest" if len(nodes.urls) > 1:
                    return await self._race(nodes)
                case "leader" if len(nodes.urls) > 1:
                    leader = await self._find_leader("")
                    if leader is None:
                        _log.debug("none of the nodes that are named leads")
                    elif leader != self.url:
                        nodes.favour(leader)
                case _:
                    pass
            return await self._connect(nodes.first)
        except RitornelloError as error:
            self._complain(error)
            nodes.avoid(nodes.first)
            self.conversation.unreachable(error)
            return None

    def _complain(self, error: RitornelloError) -> None:
        """Say why there is no connection; loudly, and once, if that will not pass by itself."""
        if error.retryable or str(error) == self._complaint:
            _log.debug("not connected: %s", error)
        else:
            self._complaint = str(error)
            _log.warning("not connected, and tried again: %s", error)

    async def _connect(self, url: str) -> Socket:
        """Open a WebSocket to one node. Raises `RitornelloError`."""
        token = await self._token()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        silence_s = self._options.silence_s
        try:
            async with asyncio.timeout(self._options.connect_s):
                ws = await self._http.ws_connect(
                    f"{url}/v1/operate",
                    protocols=(frames.SUBPROTOCOL,),
                    headers=headers,
                    heartbeat=silence_s * 2 / 3,  # what is silent half as long again is given up
                    timeout=aiohttp.ClientWSTimeout(ws_close=_LEAVE_S),
                    max_msg_size=0,
                    compress=0,
                )
        except aiohttp.WSServerHandshakeError as error:
            code, retryable = _REFUSALS.get(error.status, ("error", True))
            fields = {"code": code, "outcome": "not_applied", "retryable": retryable}
            detail = f"{url} has refused the connection with status {error.status}"
            raise request_error({**fields, "detail": detail}) from error
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise NotConnected(f"{url}: {_why(error)}") from error
        if ws.protocol != frames.SUBPROTOCOL:
            await Socket(url, ws).leave(WSCloseCode.PROTOCOL_ERROR)
            raise ProtocolError(f"{url} does not speak {frames.SUBPROTOCOL}")
        return Socket(url, ws)

    async def _race(self, nodes: Nodes) -> Socket:
        """Connect to all, and take the first. Raises `RitornelloError`."""
        pending = {self._loop.create_task(self._connect(url)) for url in nodes.urls}
        error: RitornelloError = NotConnected("there is no node")
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when="FIRST_COMPLETED")
                for task in done:
                    try:
                        found = task.result()
                    except RitornelloError as failure:
                        error = failure
                    else:
                        pending |= done - {task}
                        return found
        finally:
            for task in pending:
                task.add_done_callback(self._came_second)
                task.cancel()
        raise error

    def _came_second(self, task: asyncio.Task[Socket]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._set_aside(task.result().leave(WSCloseCode.OK))

    def _set_aside(self, coroutine: Coroutine[None, None, None]) -> None:
        """Have something done that nobody waits for, but the end."""
        task = self._loop.create_task(coroutine)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    # Connected

    async def _serve_somehow(self, socket: Socket) -> Socket | None:
        """The same as `_serve`; a defect there only ends the connection."""
        try:
            return await self._serve(socket)
        except Exception:  # noqa: BLE001 - no reason to leave everybody without one for ever
            _log.exception("a connection has failed by a defect, and another one is made")
            return None

    async def _serve(self, socket: Socket) -> Socket | None:
        """Serve over a connection until it ends. Answers the next one, if there is one already."""
        conversation = self.conversation
        self.url, self._socket = socket.url, socket
        conversation.connected()
        reading = self._loop.create_task(self._read(socket))
        # To another node: to the leader when it is elsewhere, or to any when this one is to stop.
        moving: asyncio.Task[Socket | None] | None = None
        if self._options.prefer == "leader" and len(self._nodes.urls) > 1:
            moving = self._moving(self._follow_leader())
        is_draining = False
        reading.add_done_callback(lambda _: self._look(socket))
        code, why = _LEFT, "the connection broke"
        try:
            while not reading.done():
                self._changed.clear()
                self._tick()
                if self._is_closing:
                    code, why = WSCloseCode.OK, _CLOSED
                    break
                if conversation.has_to_end:
                    why = "a session was given up that it would keep"
                    break
                await self._send(socket)
                if conversation.is_unheard:
                    why = _UNHEARD
                    break
                if conversation.is_draining and not (is_draining and moving):
                    is_draining = True
                    if moving is not None:
                        self._give_up(moving)
                    moving = self._moving(self._find_other())
                if moving is not None and moving.done():
                    found, moving = moving.result(), None
                    if found is not None:
                        conversation.pause_credit()
                        await self._quiet(socket, reading)
                        self._set_aside(self._leave_later(socket))
                        code, why = 0, "another node goes on"
                        return found
                await self._changed.wait()
            else:
                why = reading.result() if not reading.cancelled() else why
        except asyncio.CancelledError:
            code, why = WSCloseCode.OK, _CLOSED
            raise
        except (aiohttp.ClientError, OSError) as error:
            if reading.done():
                why = reading.result()
            else:
                why = _UNHEARD if conversation.is_unheard else _why(error)
        finally:
            self._socket = None
            reading.cancel()
            if moving is not None:
                self._give_up(moving)
            conversation.disconnected(why)
            conversation.trouble = f"{socket.url}: {why}"
            self._nodes.avoid(socket.url)
            if code:
                self._set_aside(socket.leave(code))
        _log.info("the connection to %s has ended: %s", socket.url, why)
        return None

    async def _send(self, socket: Socket, *, is_own: bool = False) -> None:
        """Send what there is to be sent, as fast as the node reads; until then it is `_look`ed."""
        socket.is_sending = True
        try:
            while (frame := self.conversation.take(is_own=is_own)) is not None:
                await socket.ws.send_bytes(frame)
        finally:
            socket.is_sending = False

    async def _read(self, socket: Socket) -> str:
        """Take in what comes, until the connection ends. Answers why."""
        ws, conversation = socket.ws, self.conversation
        while True:
            message = await ws.receive()
            match message.type:
                case WSMsgType.BINARY:
                    try:
                        conversation.received(frames.decode(message.data))
                    except ProtocolError as error:
                        _log.error("%s: %s", socket.url, error)
                        return error.detail
                case WSMsgType.CLOSE:
                    return f"the node closed it with {message.data}: {message.extra or ''}"
                case WSMsgType.ERROR:
                    return str(message.data) or "the node is silent"
                case WSMsgType.TEXT:
                    return "the node sent text"
                case _:
                    return f"it is closed ({ws.close_code})"

    def _moving(self, finding: Coroutine[None, None, Socket | None]) -> asyncio.Task[Socket | None]:
        """Find the next connection while this one serves."""
        task = self._loop.create_task(finding)
        task.add_done_callback(lambda _: self._wake())
        return task

    def _give_up(self, moving: asyncio.Task[Socket | None]) -> None:
        moving.add_done_callback(self._came_after_all)
        moving.cancel()

    async def _follow_leader(self) -> Socket | None:
        """Connect to the leader, when it is at another node."""
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * self._options.follow_s)
            leader = await self._find_leader(self.url)
            if leader is not None and leader != self.url:
                with contextlib.suppress(RitornelloError):
                    return await self._connect(leader)

    async def _find_other(self) -> Socket | None:
        """Connect to another node than this one. None if there is none."""
        others = tuple(url for url in self._nodes.order if url != self.url)
        for url in others:
            with contextlib.suppress(RitornelloError):
                return await self._connect(url)
        await asyncio.sleep(_TICK_S)
        return None

    async def _quiet(self, socket: Socket, reading: asyncio.Task[str]) -> None:
        """Wait for the answers that are on their way, before going on at another node."""
        with contextlib.suppress(aiohttp.ClientError, OSError):  # TimeoutError is one
            async with asyncio.timeout(_QUIET_S):
                while not (self.conversation.is_quiet or reading.done()):
                    self._changed.clear()
                    await self._send(socket, is_own=True)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_QUIET_LOOK_S):
                            await self._changed.wait()

    async def _leave_later(self, socket: Socket) -> None:
        """Close a connection when what was held over it is held over the next one."""
        end_s = self._loop.time() + _RESUMED_S
        while not self.conversation.is_resumed and self._loop.time() < end_s:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # rare, and over in a moment
        resumed = self.conversation.is_resumed
        await socket.leave(WSCloseCode.OK if resumed else _LEFT)

    def _came_after_all(self, task: asyncio.Task[Socket | None]) -> None:
        if not task.cancelled() and task.exception() is None:
            found = task.result()
            if found is not None:
                self._set_aside(found.leave(WSCloseCode.OK))


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended: what it waits for may swallow that."""
    for _ in range(_CANCELS_MAX):
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_S)
        if task.done():
            return
    _log.error("a connection does not end, and is left behind")


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__
