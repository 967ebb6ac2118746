"""The client of the example, with a server that does what it is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from examples.webhooks.client import SUBPROTOCOL, Client


class Scripted:
    """A server of one client: hands over requests, and sends what it is given."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._socket = web.WebSocketResponse()
        self.deaf_for = 0  # connections that are closed instead of an answer

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        self._socket = socket = web.WebSocketResponse(protocols=(SUBPROTOCOL,))
        await socket.prepare(request)
        async for message in socket:
            asked = message.json()
            seq = asked.pop("seq")
            self._requests.put_nowait(asked)
            if self.deaf_for:
                self.deaf_for -= 1
                await socket.close()
            else:
                await socket.send_json({"seq": seq})
        return socket

    async def asked(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            return await self._requests.get()

    async def push(self, **push: Any) -> None:
        await self._socket.send_json(push)


@contextlib.asynccontextmanager
async def working(scripted: Scripted, client_of: Callable[[str], Client]) -> AsyncIterator[Client]:
    """A client that works for a server."""
    app = web.Application()
    app.router.add_get("/v1/operate", scripted.serve)
    async with TestServer(app) as server, asyncio.timeout(30):
        client = client_of(str(server.make_url("")).rstrip("/"))
        running = asyncio.ensure_future(client.run())
        try:
            yield client
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


CREDIT = {"op": "credit", "themes": [7]}


async def test_a_hand_that_lost_its_session_takes_another() -> None:
    scripted = Scripted()
    begun: asyncio.Queue[int] = asyncio.Queue()
    ended: asyncio.Queue[int] = asyncio.Queue()

    async def work(session: dict[str, Any]) -> None:
        begun.put_nowait(session["epoch"])
        try:
            await asyncio.Event().wait()
        finally:
            ended.put_nowait(session["epoch"])

    async with working(scripted, lambda url: Client([url], [7], 2, work)):
        assert await scripted.asked() == {**CREDIT, "count": 2}
        await scripted.push(push="session", session={"id": "a", "epoch": 1})
        assert await begun.get() == 1
        await scripted.push(push="lease_lost", id="a", epoch=1, cause="stale")
        assert await ended.get() == 1
        assert await scripted.asked() == {**CREDIT, "count": 1}
        # And if it is the next one that tells that the last is over.
        await scripted.push(push="session", session={"id": "a", "epoch": 2})
        assert await begun.get() == 2
        await scripted.push(push="session", session={"id": "a", "epoch": 3})
        assert await begun.get() == 3
        assert await ended.get() == 2
        assert await scripted.asked() == {**CREDIT, "count": 1}
        # What is told of an epoch that is over changes nothing.
        await scripted.push(push="lease_lost", id="a", epoch=2, cause="stale")
        await scripted.push(push="session", session={"id": "b", "epoch": 9})
        assert await begun.get() == 9
        assert ended.empty()


async def test_a_connection_that_ends_before_its_first_answer_is_followed_by_another() -> None:
    scripted = Scripted()
    scripted.deaf_for = 3
    begun: asyncio.Queue[int] = asyncio.Queue()

    async def work(session: dict[str, Any]) -> None:
        begun.put_nowait(session["epoch"])

    async with working(scripted, lambda url: Client([url], [7], 2, work)):
        for _ in range(4):
            assert await scripted.asked() == {**CREDIT, "count": 2}
        await scripted.push(push="session", session={"id": "a", "epoch": 1})
        assert await begun.get() == 1
        assert await scripted.asked() == {**CREDIT, "count": 1}


async def test_what_is_held_is_resumed_and_a_lost_question_asked_again() -> None:
    scripted = Scripted()
    begun: asyncio.Queue[int] = asyncio.Queue()
    go = asyncio.Event()

    async def work(session: dict[str, Any]) -> None:
        begun.put_nowait(session["epoch"])
        await go.wait()
        await client.ask("remove", id=session["id"], epoch=session["epoch"])

    async with working(scripted, lambda url: Client([url], [7], 2, work)) as client:
        assert await scripted.asked() == {**CREDIT, "count": 2}
        await scripted.push(push="session", session={"id": "a", "epoch": 1})
        assert await begun.get() == 1
        scripted.deaf_for = 1
        go.set()
        removing = {"op": "remove", "id": "a", "epoch": 1}
        assert await scripted.asked() == removing
        assert await scripted.asked() == {"op": "resume", "sessions": [{"id": "a", "epoch": 1}]}
        found = [await scripted.asked() for _ in range(3)]
        assert removing in found
        assert sum(one.get("count", 0) for one in found) == 2
