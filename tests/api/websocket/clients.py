"""A client of the WebSocket protocol for tests, in JSON unless it is told otherwise.

    async with connect(running) as ws:
        created = await ws.ask("new", theme=7, text="ship it")

Answers are told from pushes: `ask` answers the former, `push` the latter, in whatever order.
"""

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from api.websocket.frames import JSON, MSGPACK

WAIT_S = 10.0


class Server(Protocol):
    """Where to connect, in the test's loop or in a process of its own."""

    client_ssl: ssl.SSLContext | None

    @property
    def url(self) -> str: ...


class Closed(Exception):
    """The server has ended the connection."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class Client:
    """One connection."""

    def __init__(self, socket: ClientWebSocketResponse, protocol: str) -> None:
        self.socket = socket
        self.is_text = protocol == JSON
        coder: Any = msgspec.json if self.is_text else msgspec.msgpack
        self.encode = coder.encode
        self.decode = coder.decode
        self._seqs = itertools.count(1)
        self.answers: dict[int, dict[str, Any]] = {}
        self.pushes: list[dict[str, Any]] = []
        self.hello: dict[str, Any] = {}

    async def send(self, frame: Any) -> None:
        encoded = self.encode(frame)
        if self.is_text:
            await self.socket.send_str(encoded.decode())
        else:
            await self.socket.send_bytes(encoded)

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        return {"op": op, "seq": next(self._seqs), **fields}

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request, and wait for its answer."""
        (answer,) = await self.ask_all(self.request(op, **fields))
        return answer

    async def ask_all(self, *requests: dict[str, Any]) -> list[dict[str, Any]]:
        """Send requests in one frame, and wait for all answers."""
        await self.send(list(requests))
        return [await self.answer(one["seq"]) for one in requests]

    async def error(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send a request that is refused; answers why."""
        answer = await self.ask(op, **fields)
        error: dict[str, Any] = answer["error"]
        return error

    async def error_or_closed(self, op: str, **fields: Any) -> dict[str, Any] | None:
        """The same; None once the server has ended the connection."""
        try:
            return await self.error(op, **fields)
        except (Closed, ConnectionError):
            return None

    async def answer(self, seq: int) -> dict[str, Any]:
        while seq not in self.answers:
            await self.read()
        return self.answers.pop(seq)

    async def push(self, kind: str) -> dict[str, Any]:
        """The next push of a kind."""
        while True:
            for place, one in enumerate(self.pushes):
                if one["push"] == kind:
                    return self.pushes.pop(place)
            await self.read()

    async def closed(self) -> Closed:
        """Read until the server ends the connection."""
        while True:
            try:
                await self.read()
            except Closed as closed:
                return closed

    async def read(self) -> None:
        async with asyncio.timeout(WAIT_S):
            message = await self.socket.receive()
        if message.type in {WSMsgType.PING, WSMsgType.PONG}:
            return
        if message.type not in {WSMsgType.TEXT, WSMsgType.BINARY}:
            raise Closed(self.socket.close_code, str(message.extra or ""))
        found = self.decode(message.data)
        for one in found if isinstance(found, list) else [found]:
            if "push" in one:
                self.pushes.append(one)
            else:
                assert one["seq"] not in self.answers
                self.answers[one["seq"]] = one

    async def idle(self, seconds: float = 0.1) -> None:
        """Read what comes within a while, if anything does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self.read()

    def vanish(self) -> None:
        """Break the connection off, without a word."""
        transport = self.socket._conn.transport if self.socket._conn else None  # noqa: SLF001
        assert transport is not None
        transport.abort()


@asynccontextmanager
async def connect(
    running: Server, protocol: str = JSON, *, token: str | None = None, **options: Any
) -> AsyncIterator[Client]:
    """Connect, and read the server's `hello`; it is left with code 1000 unless that was done."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with ClientSession() as session:
        socket = await session.ws_connect(
            f"{running.url}/v1/operate",
            protocols=[protocol],
            headers=headers,
            max_msg_size=64 << 20,
            ssl=running.client_ssl or True,
            **options,
        )
        client = Client(socket, protocol)
        client.hello = await client.push("hello")
        try:
            yield client
        finally:
            await socket.close()


PROTOCOLS = (JSON, MSGPACK)
