"""What is around every request: its answer on the wire, and who counts and traces it."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientSession, web

from api.http.app import Http
from api.http.calls import Call
from api.http.route import Route
from api.http.routes import ROUTES
from tests.api.http import contract, raw
from tests.api.http.client import client
from tests.api.servers import HTTP, READY_S, Running, server, until

HOST = b"Host: localhost\r\n"


class Watcher:
    """Counts and traces."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, int]] = []
        self.traced: list[tuple[str, str, int, str]] = []

    def observe(self, route: int, status: int, seconds: float) -> None:
        assert 0 < seconds < READY_S
        self.counted.append((ROUTES[route].path if route >= 0 else "", status))

    def answered(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        headers: Mapping[str, str],
        request_id: str,
    ) -> None:
        assert seconds > 0
        self.traced.append((method, route, status, request_id))
        assert headers["Host"]


async def test_requests_are_counted_and_traced_by_their_routes(running: Running) -> None:
    watcher = Watcher()
    http = Http(running.front, meter=watcher, tracer=watcher)
    assert http.connections == 0
    listener = http.listener()
    await listener.start("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.addresses[0][1]}"
    async with ClientSession(url, headers={"X-Request-Id": "me"}) as session:
        for path in ("/v1/sessions/1", "/livez", "/nowhere"):
            async with session.get(path) as response:
                await response.read()
        assert http.connections == 1
    assert watcher.counted == [("/v1/sessions/{id}", 404), ("/livez", 200), ("", 404)]
    assert watcher.traced == [
        ("GET", "/v1/sessions/{id}", 404, "me"),
        ("GET", "/livez", 200, "me"),
    ]
    await listener.close()
    await until(lambda: http.connections == 0)


async def test_an_answer_that_breaks_off_is_not_followed_by_another(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_off(call: Call) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(call.request)
        await response.write(b"a part")
        raise ValueError("no more")

    routes = (Route("GET", "/broken", break_off, None, "about"),)
    listener = Http(running.front, routes=routes).listener()
    await listener.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.addresses[0])
    writer.write(b"GET /broken HTTP/1.1\r\n" + HOST + b"\r\n")
    async with asyncio.timeout(READY_S):
        received = await reader.read()
    assert received.count(b"HTTP/1.1") == 1
    assert not received.endswith(b"0\r\n\r\n")  # whoever reads it can tell
    assert "broken off" in caplog.text
    writer.close()
    await listener.close()


@pytest.mark.parametrize(
    ("head", "is_last"),
    [
        (b"GET /v1/themes HTTP/1.1\r\n" + HOST, False),
        (b"GET /v1/themes HTTP/1.1\r\nConnection: close\r\n" + HOST, True),
        (b"GET /v1/themes HTTP/1.0\r\n" + HOST, True),
        (b"GET /v1/themes HTTP/1.0\r\nConnection: keep-alive\r\n" + HOST, False),
    ],
    ids=["1.1", "close", "1.0", "keep-alive"],
)
async def test_an_answer_is_the_same_whichever_way_it_goes(
    running: Running, head: bytes, is_last: bool
) -> None:
    async with raw.connection(running) as (reader, writer):
        for _ in range(1 if is_last else 3):
            writer.write(head + b"\r\n")
            answer = await raw.answer(reader)
            contract.check("GET", "/v1/themes", answer.status, answer.headers, answer.body)
            assert answer.json == {"themes": [], "cursor": None}
            assert answer.headers["Server"] == "Ritornello"
            assert answer.headers["Date"].endswith("GMT")
        if is_last:
            assert await raw.is_closed(reader)


async def test_a_large_answer_is_like_a_small_one(running: Running) -> None:
    async with client(running) as caller:
        small = await caller.post("/v1/themes/7/sessions", bytes(10))
        large = await caller.post("/v1/themes/7/sessions", bytes(100_000))
        answers = [await caller.get(one.headers["Location"]) for one in (small, large)]
    assert answers[0].headers.keys() == answers[1].headers.keys()
    assert len(answers[1].body) > 100_000


async def test_who_asks_on_and_on_and_reads_nothing_is_left(tmp_path: Path) -> None:
    async with server(tmp_path, http=replace(HTTP, request_timeout_ms=500)) as running:
        async with client(running) as caller:
            await caller.post("/v1/themes/7/sessions", bytes(20_000))
        request = b"GET /v1/sessions/1 HTTP/1.1\r\n" + HOST + b"\r\n"
        async with raw.connection(running) as (reader, writer):

            async def ask() -> None:
                with suppress(ConnectionError):
                    while True:
                        writer.write(request * 100)
                        await writer.drain()

            asking = asyncio.ensure_future(ask())
            # The server ends it; what it has sent till then is bounded by the buffers between.
            await asyncio.wait_for(asking, READY_S)
            del reader


async def test_a_request_that_is_cut_off_leaves_nothing_behind(running: Running) -> None:
    for part in (b"GET /v1/th", b"POST /v1/themes/7/sessions HTTP/1.1\r\n" + HOST):
        async with raw.connection(running) as (_, writer):
            writer.write(part)
    for _ in range(20):
        async with raw.connection(running) as (_, writer):
            writer.write(b"POST /v1/themes/7/sessions HTTP/1.1\r\n" + HOST)
            writer.write(b"Content-Length: 10\r\n\r\n12345")
    async with client(running) as caller:
        assert (await caller.get("/v1/themes")).json["themes"] == []


async def test_a_result_in_the_moment_of_leaving_is_not_lost() -> None:
    """The result is there, and so is the end of whoever asked: somebody has to take care of it."""
    call = Call(None, None, None, {}, "", "", 0)  # type: ignore[arg-type]  # waits for anything
    callbacks: list[Callable[[str], None]] = []
    abandoned: list[str] = []
    for leaves_first in (False, True):
        waiting = asyncio.ensure_future(call.wait_for(callbacks.append, abandoned.append))
        await asyncio.sleep(0)
        if leaves_first:
            waiting.cancel()
        callbacks[-1]("found")
        if not leaves_first:
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert abandoned.pop() == "found"
        assert not abandoned


async def test_whose_handshake_has_not_begun_when_it_stops_to_listen_is_let_go(
    running: Running,
) -> None:
    http = Http(running.front)
    listener = http.listener(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
    await listener.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.addresses[0])
    await until(lambda: http.connections)
    await listener.stop()
    assert http.connections == 0
    assert await reader.read() == b""
    writer.close()
    await listener.close()


async def test_a_handshake_that_fails_by_a_defect_leaves_no_count(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    http = Http(running.front)
    listener = http.listener("no context at all")  # type: ignore[arg-type] # that is the defect
    await listener.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.addresses[0])
    assert await reader.read() == b""
    assert http.connections == 0
    assert "a handshake has failed by a defect" in caplog.text
    writer.close()
    await listener.close()


@pytest.mark.parametrize("busy_s", [0.0, 0.01])
async def test_a_client_that_says_hello_at_once_is_heard(tmp_path: Path, busy_s: float) -> None:
    """Whether its first bytes are there before the loop looks again, or after that."""
    shaken: list[bytes] = []

    def ask(running: Running) -> None:
        assert running.client_ssl is not None
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", running.port), timeout=5) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with running.client_ssl.wrap_socket(plain, server_hostname="localhost") as secured:
                    secured.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    shaken.append(secured.recv(12))

    async with server(tmp_path, authority=trustme.CA()) as running:
        asking = asyncio.ensure_future(asyncio.to_thread(ask, running))
        while not asking.done():
            await asyncio.sleep(0.001)
            time.sleep(busy_s)  # noqa: ASYNC251 - the loop is busy with something else
        await asking
    assert shaken == [b"HTTP/1.1 200"] * 20
