"""The server in memory: what a server answers, and time that is moved."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from api.memory.server import MemoryServer


@pytest.fixture
async def server() -> AsyncIterator[MemoryServer]:
    found = MemoryServer()
    await found.start()
    found.freeze()
    yield found
    await found.stop()


@pytest.fixture
async def http(server: MemoryServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as found:
        yield found


class Consumer:
    """Asks over a WebSocket, in JSON."""

    def __init__(self, ws: "aiohttp.ClientWebSocketResponse[bool]") -> None:
        self.ws = ws
        self.pushes: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        found: dict[str, Any] = await self.ws.receive_json(timeout=5)
        return found

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        await self.ws.send_json({"op": op, "seq": 1, **fields})
        while "push" in (found := await self.next()):
            self.pushes.append(found)
        return found

    async def push(self) -> dict[str, Any]:
        return self.pushes.pop(0) if self.pushes else await self.next()


@pytest.fixture
async def consumer(http: aiohttp.ClientSession) -> AsyncIterator[Consumer]:
    async with http.ws_connect("/v1/operate", protocols=("ritornello.json.v1",)) as ws:
        found = Consumer(ws)
        assert (await found.push())["push"] == "hello"
        yield found


async def test_a_session_over_http(http: aiohttp.ClientSession) -> None:
    async with http.post(
        "/v1/themes/7/sessions", json={"text": "ship it", "key": "order"}
    ) as answer:
        assert answer.status == 201, await answer.text()
        created = await answer.json()
    path = f"/v1/sessions/{created['id']}"
    epoch = {"Ritornello-Epoch": str(created["epoch"])}
    async with http.post(f"{path}/append", json={"text": "; packed"}, headers=epoch) as answer:
        assert answer.status == 200, await answer.text()
    async with http.get(path) as answer:
        assert (await answer.json())["revision"] == 2
    async with http.get("/v1/themes/7/sessions") as answer:
        assert [one["id"] for one in (await answer.json())["sessions"]] == [created["id"]]
    async with http.delete(path, headers=epoch) as answer:
        assert answer.status in {200, 204}
    async with http.get(path) as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/metrics", "/openapi.json", "/v1/cluster", "/v1/themes"]
)
async def test_all_that_looks_at_a_node_is_answered(http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as answer:
        assert answer.status == 200, await answer.text()


async def test_there_is_no_file_to_be_copied(http: aiohttp.ClientSession) -> None:
    async with http.get("/openapi.json") as answer:
        paths = (await answer.json())["paths"]
    (path,) = (one for one in paths if one.endswith("/snapshot"))
    async with http.request("GET" if "get" in paths[path] else "POST", path) as answer:
        assert answer.status == 501
        assert (await answer.json())["code"] == "not_implemented"


async def test_a_long_poll_is_served_when_time_is_moved(
    server: MemoryServer, http: aiohttp.ClientSession, consumer: Consumer
) -> None:
    await consumer.ask("new", theme=7, text="later", repeat_after=3600)
    poll = asyncio.ensure_future(
        http.post("/v1/acquire", json={"themes": [7], "wait": 30}, timeout=aiohttp.ClientTimeout(9))
    )
    assert (await consumer.ask("new", theme=8, repeat_after=9))["created"]  # the poll has begun
    await server.advance(3599)
    assert not poll.done()
    await server.advance(1)
    answer = await poll
    assert answer.status == 200
    assert len((await answer.json())["sessions"]) == 1


async def test_who_is_connected_keeps_what_it_holds(
    server: MemoryServer, consumer: Consumer
) -> None:
    held = await consumer.ask("new", theme=7)
    await server.advance(100 * 24 * 3600)
    found = await consumer.ask("touch", id=held["id"], epoch=held["epoch"])
    assert "error" not in found
    assert (await consumer.ask("heartbeat"))["held"] == 1


async def test_without_signs_of_life_it_is_lost_and_told_so(
    server: MemoryServer, consumer: Consumer
) -> None:
    held = await consumer.ask("new", theme=7)
    await server.advance(29, heartbeats=False)
    assert "error" not in await consumer.ask("touch", id=held["id"], epoch=held["epoch"])
    await server.advance(31, heartbeats=False)
    assert await consumer.push() == {
        "push": "lease_lost",
        "id": held["id"],
        "epoch": held["epoch"],
        "cause": "stale",
    }
    found = await consumer.ask("touch", id=held["id"], epoch=held["epoch"])
    assert found["error"]["code"] == "lease_lost"


async def test_no_sign_of_life_is_enough_where_progress_is_wanted(
    server: MemoryServer, http: aiohttp.ClientSession, consumer: Consumer
) -> None:
    async with http.patch("/v1/themes/7/policy", json={"progress_ms": 60_000}) as answer:
        assert answer.status == 200, await answer.text()
    await consumer.ask("new", theme=7)
    await server.advance(61)
    assert (await consumer.push())["cause"] == "stale"


async def test_who_holds_over_http_shows_life_itself(
    server: MemoryServer, http: aiohttp.ClientSession, consumer: Consumer
) -> None:
    async with http.post("/v1/themes/7/sessions", json={"text": "held"}) as answer:
        held = await answer.json()
    await server.advance(31)
    found = await consumer.ask("get", id=held["id"])
    assert found["session"]["phase"] == "stored"
    assert found["session"]["history"][-1]["cause"] == "stale"


async def test_time_goes_on_by_itself_unless_it_is_frozen(server: MemoryServer) -> None:
    begin_ms = server.now_ms
    await asyncio.sleep(0.01)
    assert server.now_ms == begin_ms
    server.go_on()
    async with asyncio.timeout(5):
        while server.now_ms == begin_ms:  # noqa: ASYNC110 - it is time itself that is waited for
            await asyncio.sleep(0.001)
