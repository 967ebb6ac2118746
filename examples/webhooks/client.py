"""A small WebSocket client, after `docs/protocol.md`.

It goes to any node, and when that is lost to another one, where it resumes the sessions it holds:
same epoch, so nobody else has worked on them meanwhile. A request whose answer was lost is sent
again: all that this example asks can be done twice. If a session is not to be had again, whoever
works on it is told.
"""

import asyncio
import itertools
import json
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp

_log = logging.getLogger(__name__)

Answer = dict[str, Any]
SUBPROTOCOL = "ritornello.json.v1"


class RequestError(Exception):
    """The cluster has refused a request; `error` says why."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['detail']}")
        self.code: str = error["code"]
        self.retryable: bool = error["retryable"]


class Client:
    """A consumer of sessions, connected to whichever node there is."""

    def __init__(
        self,
        urls: list[str],
        themes: list[int],
        credit: int,
        on_session: Callable[[Answer], Awaitable[None]],
    ) -> None:
        self._urls = urls
        self._themes = themes
        self._credit = credit
        self._on_session = on_session
        self._seqs = itertools.count(1)
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._is_ready = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[Answer | None]] = {}  # None: lost
        self._held: dict[str, tuple[int, asyncio.Task[None]]] = {}  # id -> epoch, who works on it
        self._crediting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Stay connected, and work on what is handed out, until it is cancelled."""
        random.shuffle(self._urls)
        async with aiohttp.ClientSession() as http:
            for url in itertools.cycle(self._urls):
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    await self._connected(http, url)
                await asyncio.sleep(random.uniform(0.05, 0.3))  # noqa: S311 - only spreads

    async def _connected(self, http: aiohttp.ClientSession, url: str) -> None:
        timeout = aiohttp.ClientWSTimeout(ws_close=2)
        connecting = http.ws_connect(
            f"{url}/v1/operate", protocols=(SUBPROTOCOL,), timeout=timeout, max_msg_size=0
        )
        async with await asyncio.wait_for(connecting, 5) as socket:
            self._socket = socket
            reading = asyncio.ensure_future(self._read(socket))
            try:
                await self._resume()
                self._is_ready.set()
                await self._give_credit(self._credit - len(self._held))
                await reading
                # Not in order: what is held waits for its lease, and is resumed over the next one.
                await socket.close(code=4000)
            finally:
                reading.cancel()
                await asyncio.wait({reading})

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Hand on what comes. When nothing more does, whoever waits for an answer is told."""
        try:
            await self._read_all(socket)
        finally:
            self._lost()

    async def _read_all(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                return
            found = json.loads(message.data)
            for one in found if isinstance(found, list) else (found,):
                if "seq" in one:
                    future = self._waiting.pop(one["seq"], None)
                    if future is not None and not future.done():
                        future.set_result(one)
                elif self._pushed(one):
                    return

    def _pushed(self, push: Answer) -> bool:
        """Take what the server says by itself. True if it is time to go elsewhere."""
        match push["push"]:
            case "session":
                session = push["session"]
                self._drop(session["id"], None)  # of an older epoch, whose end was not told
                work = asyncio.ensure_future(self._work(session))
                self._held[session["id"]] = session["epoch"], work
            case "lease_lost":
                self._drop(push["id"], push["epoch"])
            case "draining":
                return True
            case _:
                pass
        return False

    async def _work(self, session: Answer) -> None:
        try:
            await self._on_session(session)
        except RequestError as error:
            _log.debug("session %s: %s", session["id"], error)
        finally:
            held = self._held.get(session["id"])
            if held is not None and held[1] is asyncio.current_task():
                del self._held[session["id"]]
        await self._give_credit(1)

    async def _give_credit(self, count: int) -> None:
        if count > 0 and self._is_ready.is_set():
            with suppress(ConnectionError):
                await self._send({"op": "credit", "themes": self._themes, "count": count})

    async def _resume(self) -> None:
        if not self._held:
            return
        sessions = [{"id": one, "epoch": epoch} for one, (epoch, _) in self._held.items()]
        answer = await self._send({"op": "resume", "sessions": sessions})
        for one in answer.get("sessions", ()):
            if "error" in one:
                self._drop(one["id"], None)

    def _drop(self, session_id: str, epoch: int | None) -> None:
        """Let nobody work on a session that is not ours any more. That hand is free again."""
        held = self._held.get(session_id)
        if held is not None and epoch in {None, held[0]}:
            del self._held[session_id]
            held[1].cancel()
            if self._is_ready.is_set():  # if not, credit is counted anew when it is
                crediting = asyncio.ensure_future(self._give_credit(1))
                self._crediting.add(crediting)
                crediting.add_done_callback(self._crediting.discard)

    def _lost(self) -> None:
        self._socket = None
        self._is_ready.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_result(None)

    async def _send(self, request: dict[str, Any]) -> Answer:
        """Ask once, of the node that is connected. Raises ConnectionError."""
        if self._socket is None or self._socket.closed:
            raise ConnectionError("there is no connection")
        seq = next(self._seqs)
        future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._waiting[seq] = future
        await self._socket.send_str(json.dumps({**request, "seq": seq}))
        answer = await future
        if answer is None:
            raise ConnectionError("the connection was lost")
        return answer

    async def ask(self, op: str, **fields: Any) -> Answer:  # noqa: ANN401 - fields of any type
        """Ask until there is an answer. Raises `RequestError`."""
        while True:
            await self._is_ready.wait()
            try:
                answer = await self._send({"op": op, **fields})
            except (ConnectionError, aiohttp.ClientError):
                continue
            error = answer.get("error")
            if error is None:
                return answer
            refused = RequestError(error)
            if not refused.retryable:
                raise refused
            await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - only spreads
