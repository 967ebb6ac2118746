"""The way from clients to one server, on which things go wrong as `Faults` says.

It speaks the protocols, and does not only pass bytes on: what is lost is a certain answer, and not
whatever happens to be in a packet. Frames that nothing happens to are passed on as they are, pings
and closing codes included, so that either side sees of the other what it would see without it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, cast

import aiohttp
import msgspec
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from ritornello.testing.faults import DELAY, DROP, DUPLICATE, WITHHOLD, Fault, Faults

# Of one connection, and not of what is said over it (RFC 9110, 7.6.1); a proxy sets its own.
_HOP = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_BROKEN = 4000  # to the server: the client is gone, and may come back
_CLOSE_S = 2.0
_PIECE_BYTES = 1 << 16

_Close = tuple[int, str]


# What breaks here breaks on purpose, and is no error in the log of whoever tests.
_quiet = logging.getLogger("ritornello.testing.proxy")
_quiet.setLevel(logging.CRITICAL + 1)


class Proxy:
    """One server as its clients see it. Made and used on one loop."""

    def __init__(self, target: str, faults: Faults) -> None:
        """`target` is the server's address, `http://host:port`."""
        self._target = target
        self._faults = faults
        self._transports: set[asyncio.BaseTransport] = set()
        self._conversations: set[asyncio.Task[None]] = set()
        self._web: web.Server | None = None
        self._listening: asyncio.Server | None = None
        self._client: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Listen, on a free port."""
        loop = asyncio.get_running_loop()
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        self._web = web.Server(
            self._serve, handler_cancellation=True, access_log=None, logger=_quiet
        )
        self._listening = await loop.create_server(self._protocol, "127.0.0.1", 0)

    @property
    def url(self) -> str:
        """Where clients ask. Raises RuntimeError before the start."""
        if self._listening is None:
            raise RuntimeError("the proxy is not started")
        return f"http://127.0.0.1:{self._listening.sockets[0].getsockname()[1]}"

    async def cut(self) -> None:
        """Break off all connections of clients, and see that the server knows of it."""
        conversations = tuple(self._conversations)
        for one in tuple(self._transports):
            _abort(one)
        if conversations:
            await asyncio.wait(conversations, timeout=2 * _CLOSE_S)

    async def stop(self) -> None:
        """Listen no more, and break off what there is."""
        if self._listening is not None:
            self._listening.close()
        await self.cut()
        for one in tuple(self._conversations):
            one.cancel()
        if self._web is not None:
            await self._web.shutdown(_CLOSE_S)
        if self._client is not None:
            await self._client.close()

    def _protocol(self) -> "asyncio.Protocol":
        if self._faults.refuses():
            return _Refusal()
        if self._web is None:
            raise RuntimeError("the proxy is not started")
        return _Counted(self._web(), self._transports)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        client = self._client
        if client is None:
            raise RuntimeError("the proxy is not started")
        is_upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
        try:
            if is_upgrade:
                return await self._serve_websocket(request, client)
            return await self._serve_http(request, client)
        except (aiohttp.ClientError, OSError) as error:
            # The server is not there, or gone in the midst of it: so is the connection to it.
            raise _broken(request) from error

    # HTTP

    async def _serve_http(
        self, request: web.BaseRequest, client: aiohttp.ClientSession
    ) -> web.StreamResponse:
        body = await request.read() if request.body_exists else None
        headers = [(key, one) for key, one in request.headers.items() if key.lower() not in _HOP]
        async with client.request(
            request.method,
            self._target + request.raw_path,
            headers=headers,
            data=body,
            allow_redirects=False,
        ) as answer:
            if answer.content_type == "text/event-stream":
                return await self._pass_on(request, answer)
            data = await answer.read()
            struck = self._faults.strike(_http_operation(request)) if self._faults.is_any else []
            await _until(time.monotonic() + _late_s(struck))
            if _has(struck, DROP):
                raise _broken(request)
            if _has(struck, WITHHOLD):
                await asyncio.Event().wait()  # until whoever asked leaves, or all ends
            given = [(key, one) for key, one in answer.headers.items() if key.lower() not in _HOP]
            response = web.Response(status=answer.status, reason=answer.reason, body=data)
            # As it was said: a response has a type of its own accord.
            response.headers.popall("Content-Type", None)
            for key, one in given:
                response.headers.add(key, one)
            return response

    async def _pass_on(
        self, request: web.BaseRequest, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Pass on, as it comes, what has no end."""
        response = web.StreamResponse(status=answer.status)
        for key, one in answer.headers.items():
            if key.lower() not in _HOP:
                response.headers.add(key, one)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response

    # WebSocket

    async def _serve_websocket(
        self, request: web.BaseRequest, client: aiohttp.ClientSession
    ) -> web.StreamResponse:
        given = request.headers
        wanted = tuple(
            one.strip() for one in given.get("Sec-WebSocket-Protocol", "").split(",") if one.strip()
        )
        headers = {
            key: one
            for key, one in given.items()
            if key.lower() not in _HOP and not key.lower().startswith("sec-websocket")
        }
        try:
            there = await client.ws_connect(
                self._target + request.raw_path,
                protocols=wanted,
                headers=headers,
                autoclose=False,
                autoping=False,
                max_msg_size=0,
                compress=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status, text=error.message)
        here = web.WebSocketResponse(
            protocols=(there.protocol,) if there.protocol else (),
            autoclose=False,
            autoping=False,
            max_msg_size=0,
            compress=False,
            timeout=_CLOSE_S,
        )
        await here.prepare(request)
        conversation = _Conversation(self._faults, request, here, there)
        task = asyncio.ensure_future(conversation.run())
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)
        # This ends when the connection does; what was said before that is still to be passed on.
        await asyncio.shield(task)
        return here


class _Conversation:
    """One WebSocket, on both sides of the proxy."""

    def __init__(
        self,
        faults: Faults,
        request: web.BaseRequest,
        here: web.WebSocketResponse,
        there: aiohttp.ClientWebSocketResponse,
    ) -> None:
        self._faults = faults
        self._request = request
        self._here = here
        self._there = there
        self._asked: dict[int, str] = {}  # operations by their numbers, until they are answered
        self._line: asyncio.Queue[tuple[float, WSMessage]] = asyncio.Queue()  # to the client

    async def run(self) -> None:
        """Pass on until one side is gone, and then be gone for the other one as well."""
        here = asyncio.ensure_future(self._read_here())
        there = asyncio.ensure_future(self._read_there())
        writing = asyncio.ensure_future(self._write_here())
        tasks = (here, there, writing)
        code_here, code_there, why = 0, _BROKEN, ""
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if here.done():
                code_here, why = _result(here)
                code_there = code_here or _BROKEN
            elif there.done():
                code_here, why = _result(there)
                if code_here:
                    await self._written(writing)  # what came before the end
        finally:
            # Nobody may read while a side is closed: that would be told to close it, too.
            for one in tasks:
                one.cancel()
            await asyncio.wait(tasks)
            # The server first: who has been told that its farewell arrived can rely on it.
            with contextlib.suppress(ConnectionError, RuntimeError):
                await self._there.close(code=code_there, message=why.encode())
            if code_here:
                with contextlib.suppress(ConnectionError, RuntimeError):
                    await self._here.close(code=code_here, message=why.encode())
            else:
                _abort(self._request.transport)

    async def _written(self, writing: "asyncio.Task[_Close]") -> None:
        joined = asyncio.ensure_future(self._line.join())
        await asyncio.wait((joined, writing), return_when=asyncio.FIRST_COMPLETED)
        joined.cancel()

    async def _read_here(self) -> _Close:
        """From the client to the server: all of it, and at once."""
        while True:
            message = await self._here.receive()
            if message.type in {WSMsgType.BINARY, WSMsgType.TEXT}:
                for one in _decoded(message):
                    self._asked[one.get("seq", 0)] = str(one.get("op", ""))
            elif (end := _end(message)) is not None:
                return end
            with contextlib.suppress(ConnectionError):  # reading will tell
                await _send(self._there, message)

    async def _read_there(self) -> _Close:
        """From the server, with what goes wrong on the way."""
        last_s = 0.0
        while True:
            message: WSMessage = await self._there.receive()
            late_s, times = 0.0, 1
            if message.type in {WSMsgType.BINARY, WSMsgType.TEXT}:
                found = self._struck(message)
                if found is None:
                    return 0, ""
                message, late_s, times = found
            elif (end := _end(message)) is not None:
                return end
            last_s = max(last_s, time.monotonic() + late_s)  # nothing overtakes
            for _ in range(times):
                self._line.put_nowait((last_s, message))

    async def _write_here(self) -> _Close:
        while True:
            due_s, message = await self._line.get()
            await _until(due_s)
            try:
                await _send(self._here, message)
            except (ConnectionError, RuntimeError):
                return 0, ""
            finally:
                self._line.task_done()

    def _struck(self, message: WSMessage) -> tuple[WSMessage, float, int] | None:
        """A frame as it arrives: how late, and how many times. None: the connection breaks."""
        kept: list[dict[str, Any]] = []
        struck: list[Fault] = []
        decoded = _decoded(message)
        withheld = 0
        for one in decoded:
            push = one.get("push")
            name = self._asked.pop(one.get("seq", 0), "") if push is None else str(push)
            if not self._faults.is_any:
                kept.append(one)
                continue
            of_this = self._faults.strike(name, is_push=push is not None)
            struck += of_this
            if _has(of_this, WITHHOLD):
                withheld += 1
            else:
                kept.append(one)
            if _has(of_this, DUPLICATE):
                kept.append(one)
        if _has(struck, DROP):
            return None
        late_s = _late_s(struck)
        if withheld or len(kept) != len(decoded):
            if not kept:
                return message, 0.0, 0
            message = _encoded(message, kept)
        return message, late_s, 1


class _Refusal(asyncio.Protocol):
    """A connection that is broken off as it comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        _abort(transport)


class _Counted(asyncio.Protocol):
    """A connection that can be cut."""

    def __init__(self, inner: web.RequestHandler, transports: set[asyncio.BaseTransport]) -> None:
        self._inner = inner
        self._transports = transports
        self._transport: asyncio.BaseTransport | None = None
        self.data_received = inner.data_received  # type: ignore[method-assign]  # one call less
        self.eof_received = inner.eof_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transports.add(transport)
        self._inner.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._transports.discard(self._transport)
        self._inner.connection_lost(error)


def _result(task: "asyncio.Task[_Close]") -> _Close:
    """How a side has ended; by an error it is gone."""
    return (0, "") if task.cancelled() or task.exception() is not None else task.result()


def _end(message: WSMessage) -> _Close | None:
    """The code with which a side ends; 0 if it is gone without a word. None: it goes on."""
    match message.type:
        case WSMsgType.CLOSE:
            return int(message.data or WSCloseCode.OK), str(message.extra or "")
        case WSMsgType.CLOSING | WSMsgType.CLOSED | WSMsgType.ERROR:
            return 0, ""
        case _:
            return None


async def _send(
    socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse, message: WSMessage
) -> None:
    match message.type:
        case WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        case WSMsgType.TEXT:
            await socket.send_str(message.data)
        case WSMsgType.PING:
            await socket.ping(bytes(message.data))
        case WSMsgType.PONG:
            await socket.pong(bytes(message.data))
        case _:
            pass


def _decoded(message: WSMessage) -> list[dict[str, Any]]:
    """What a frame says; nothing if it cannot be read, which is for others to find out."""
    decode: Callable[[Any], Any] = msgspec.json.decode
    if message.type is WSMsgType.BINARY:
        decode = msgspec.msgpack.decode
    try:
        found = decode(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


def _encoded(like: WSMessage, said: list[dict[str, Any]]) -> WSMessage:
    if like.type is WSMsgType.BINARY:
        return like._replace(data=msgspec.msgpack.encode(said))
    return like._replace(data=msgspec.json.encode(said).decode())


def _http_operation(request: web.BaseRequest) -> str:
    """What a request does, in the words of the protocol."""
    last = request.path.rstrip("/").rpartition("/")[2]
    match request.method:
        case "GET" | "HEAD":
            return "get"
        case "DELETE":
            return "remove"
        case _:
            return "new" if last == "sessions" else last


def _has(struck: list[Fault], kind: str) -> bool:
    return any(one.kind == kind for one in struck)


def _late_s(struck: list[Fault]) -> float:
    return max((one.seconds for one in struck if one.kind == DELAY), default=0.0)


async def _until(due_s: float) -> None:
    """Wait, and not less: some loops' timers come a little early, by clocks that are coarse."""
    while (left_s := due_s - time.monotonic()) > 0:  # noqa: ASYNC110 - it is time that is waited for
        await asyncio.sleep(left_s)


def _broken(request: web.BaseRequest) -> ConnectionResetError:
    """End a client's connection without a word."""
    _abort(request.transport)
    return ConnectionResetError("the connection is broken")


def _abort(transport: asyncio.BaseTransport | None) -> None:
    # No check for `asyncio.Transport`: uvloop's are none.
    if transport is not None:
        cast("asyncio.Transport", transport).abort()
