"""How connections end and what becomes of what is held; bounds in both directions."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, WSServerHandshakeError, web

from api.websocket.connection import Connection
from api.websocket.frames import FRAME_REQUESTS_MAX, JSON, MSGPACK
from api.websocket.outbox import Outbox
from state import Failure, Operation, Phase, Session, encode
from state.operations import SetLimits, SetPolicy
from tests.api.servers import HTTP, Running, cluster_of_three, server, until
from tests.api.websocket.clients import connect

THEME = 7
QUICK = replace(HTTP, request_timeout_ms=800)
MIB = 1 << 20
PINGS = (b"\x89\xe4" + bytes(4) + b"x" * 100) * 1000


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with server(tmp_path) as running:
        yield running


def session(node: Running, session_id: str) -> Session | None:
    return node.front.gateway._machine.session(int(session_id, 16))  # noqa: SLF001 - as it is


def is_active(node: Running, session_id: str) -> bool:
    found = session(node, session_id)
    return found is not None and found.phase is Phase.ACTIVE


def last_cause(node: Running, session_id: str) -> tuple[str, str]:
    found = session(node, session_id)
    assert found is not None
    return node.front.gateway.cause(found.session_id), found.last_reason


def outbox(node: Running) -> Outbox:
    """Of the only connection."""
    (connection,) = node.front.connections
    assert isinstance(connection, Connection)
    return connection._out  # noqa: SLF001


def no_operators(node: Running) -> bool:
    return len(node.front.operators) == 0


async def do(node: Running, *operations: Operation) -> None:
    for one in operations:
        done: asyncio.Future[Any] = asyncio.Future()
        node.front.gateway.submit(encode(one), done.set_result)
        assert not isinstance(await done, Failure)


# Beginning


@pytest.mark.parametrize("protocols", [[], ["chat"]])
async def test_without_a_subprotocol_there_is_no_connection(
    node: Running, protocols: list[str]
) -> None:
    async with ClientSession() as client:
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect(f"{node.url}/v1/operate", protocols=protocols)
    assert refused.value.status == 400


async def test_one_that_begins_as_the_node_starts_to_drain_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(tmp_path, http=replace(HTTP, drain_ms=5000)) as node:
        prepare = web.WebSocketResponse.prepare
        leaving: list[asyncio.Future[Any]] = []

        async def slowly(socket: Any, request: Any) -> Any:
            leaving.append(asyncio.ensure_future(node.leave()))
            await until(lambda: node.front.health.is_draining)
            return await prepare(socket, request)

        monkeypatch.setattr(web.WebSocketResponse, "prepare", slowly)
        async with connect(node) as ws:
            assert (await ws.push("draining"))["within_ms"] == 5000
            assert (await ws.error("new", theme=THEME))["code"] == "draining"
        await leaving[0]


async def test_only_websockets_count_as_websockets(node: Running) -> None:
    async with (
        ClientSession(node.url) as client,
        client.get("/v1/events") as events,
        connect(node),
    ):
        assert events.status == 200
        await until(lambda: len(node.front.connections) == 2)
        async with client.get("/metrics") as response:
            assert "\nritornello_websocket_connections 1.0\n" in await response.text()
    await until(lambda: not node.front.websockets.open)


# How it ends


@pytest.mark.parametrize("code", [1000, 1001])
async def test_who_closes_in_order_is_done_and_what_it_holds_comes_back(
    node: Running, code: int
) -> None:
    async with connect(node) as ws:
        created = await ws.ask("new", theme=THEME)
        await ws.socket.close(code=code)
    await until(lambda: not is_active(node, created["id"]))
    assert last_cause(node, created["id"])[0] == "disconnected"


async def test_who_closes_with_another_code_may_come_back(node: Running) -> None:
    async with connect(node) as ws:
        created = await ws.ask("new", theme=THEME)
        await ws.socket.close(code=4000)
    await until(lambda: not node.front.connections)
    assert is_active(node, created["id"])
    async with connect(node) as ws:
        held = {"id": created["id"], "epoch": 1}
        (resumed,) = (await ws.ask("resume", sessions=[held]))["sessions"]
        assert resumed == {**held, "revision": 1, "lease_ms": 30_000}
        assert (await ws.ask("append", **held, text="x"))["revision"] == 2


async def test_who_vanishes_keeps_its_sessions_until_their_leases_end(node: Running) -> None:
    await do(node, SetPolicy(THEME, (("lease_ms", 1000),)))
    async with connect(node) as ws:
        created = await ws.ask("new", theme=THEME)
        ws.vanish()
        await until(lambda: not node.front.connections)
        await asyncio.sleep(0.2)
        assert is_active(node, created["id"])
        await until(lambda: not is_active(node, created["id"]))
    assert last_cause(node, created["id"])[0] == "stale"


async def test_what_was_said_right_before_the_end_is_done(node: Running) -> None:
    """Requests, the closing frame and the end of the stream in one piece."""
    async with connect(node) as ws:
        created = await ws.ask("new", theme=THEME)
    raw = await Raw.connect(node)
    held = {"id": created["id"], "epoch": 1}
    requests = [{"op": "new", "theme": THEME, "key": f"k{n}", "repeat_after": 60} for n in range(9)]
    raw.send(*requests, {"op": "resume", "sessions": [held]})
    raw.writer.write(frame(8, struct.pack(">H", 1000)))
    raw.writer.write_eof()
    raw.writer.close()
    await until(lambda: node.front.gateway.session_id((THEME, b"k8")))
    await until(lambda: not node.front.connections)
    await until(lambda: not is_active(node, created["id"]))


async def test_a_job_that_is_finished_right_before_the_end_is_not_repeated(node: Running) -> None:
    async with connect(node) as ws:
        held = {"id": (await ws.ask("new", theme=THEME, key="job"))["id"], "epoch": 1}
        steps = [ws.request("append", **held, text="x") for _ in range(20)]
        await ws.send([*steps, ws.request("remove", **held)])
    await until(lambda: not node.front.connections)
    await until(lambda: not is_active(node, held["id"]))
    assert not node.front.gateway.session_id((THEME, b"job"))
    await until(lambda: not node.front.operators.releasing)


async def test_the_end_of_the_stream_alone_is_no_farewell(node: Running) -> None:
    raw = await Raw.connect(node)
    raw.send({"op": "new", "seq": 1, "theme": THEME})
    created = await raw.answer(1)
    raw.writer.close()
    await until(lambda: not node.front.connections)
    await asyncio.sleep(0.1)
    assert is_active(node, created["id"])


async def test_who_answers_no_pings_is_closed_and_may_come_back(tmp_path: Path) -> None:
    async with server(tmp_path, http=replace(HTTP, ping_ms=100)) as node:
        await do(node, SetPolicy(THEME, (("lease_ms", 60_000),)))
        async with connect(node, autoping=False) as ws:
            created = await ws.ask("new", theme=THEME)
            closed = await ws.closed()
            assert closed.code == 3008
        assert is_active(node, created["id"])


async def test_a_peer_whose_network_is_gone_ends_too(tmp_path: Path) -> None:
    """It sends nothing, and nothing that it is sent arrives: not even its end is noticed."""
    async with server(tmp_path, http=replace(HTTP, ping_ms=100)) as node:
        raw = await Raw.connect(node)
        raw.transport.pause_reading()
        await until(lambda: not node.front.connections)
        raw.transport.abort()


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("kind", 1003, "binary frames"),
        ("bytes", 1007, "no ritornello.msgpack.v1"),
        ("size", 1009, ""),
        ("nonsense", 1009, "4096 requests"),
        ("heartbeats", 1009, "4096 requests"),
        ("mask", 1002, ""),
    ],
)
async def test_what_breaks_the_protocol_is_told_and_what_is_held_is_stored(
    tmp_path: Path, what: str, code: int, reason: str
) -> None:
    http = replace(HTTP, websocket_frame_bytes=64 * 1024)
    crowd = FRAME_REQUESTS_MAX + 1
    async with server(tmp_path, http=http) as node:
        raw = await Raw.connect(node)
        raw.send({"op": "new", "seq": 1, "theme": THEME})
        created = await raw.answer(1)
        match what:
            case "kind":
                raw.writer.write(frame(1, b"{}"))
            case "bytes":
                raw.writer.write(frame(2, b"\xc1"))
            case "size":
                raw.writer.write(frame(2, b"x" * (64 * 1024 + 1)))
            case "nonsense":
                raw.writer.write(frame(2, b"\xdd" + crowd.to_bytes(4) + bytes(crowd)))
            case "heartbeats":
                raw.writer.write(frame(2, msgspec.msgpack.encode([{"op": "heartbeat"}] * crowd)))
            case _:
                raw.writer.write(b"\x8b\x80abcd")  # an opcode that nobody knows
        closed = await raw.closed()
        assert closed[0] == code
        assert reason in closed[1]
        await until(lambda: not is_active(node, created["id"]))
        assert last_cause(node, created["id"])[0] == "failed"
        await until(lambda: not node.front.connections)
        raw.writer.close()


# Coming back elsewhere


async def test_a_consumer_goes_on_at_another_node_with_the_same_epochs(tmp_path: Path) -> None:
    async with cluster_of_three(tmp_path) as (first, second, third):
        async with connect(first) as ws:
            held = [{"id": (await ws.ask("new", theme=THEME))["id"], "epoch": 1} for _ in range(20)]
            ws.vanish()
        async with connect(second) as ws:
            resumed = (await ws.ask("resume", sessions=[*held, {"id": "999", "epoch": 1}]))[
                "sessions"
            ]
            assert [one["id"] for one in resumed[:20]] == [one["id"] for one in held]
            assert all(one["epoch"] == 1 for one in resumed[:20])
            assert resumed[20]["error"]["code"] == "session_not_found"
            assert (await ws.ask("heartbeat"))["held"] == 20
            # The first node has seen it vanish, and stores nothing.
            await until(lambda: not first.front.connections)
            assert (await ws.ask("append", **held[0], text="x"))["revision"] == 2
            # Moved with both connections open, as when a node drains.
            async with connect(third) as other:
                await other.ask("resume", sessions=held)
                await ws.socket.close(code=1000)
                assert (await other.ask("heartbeat"))["held"] == 20
                assert (await other.ask("append", **held[1], text="x"))["revision"] == 2
                removed = await other.ask_all(*(other.request("remove", **one) for one in held))
                assert not any("error" in one for one in removed)
        for node in (first, second, third):
            await until(partial(no_operators, node))


async def test_resuming_with_an_epoch_that_is_over_is_refused(node: Running) -> None:
    async with connect(node) as ws:
        created = await ws.ask("new", theme=THEME)
        await ws.ask("store", id=created["id"], epoch=1, repeat_after=0)
        await ws.ask("acquire", themes=[THEME])
        old, new, none = (
            await ws.ask(
                "resume",
                sessions=[
                    {"id": created["id"], "epoch": 1},
                    {"id": created["id"], "epoch": 2},
                    {"id": "999", "epoch": 1},
                ],
            )
        )["sessions"]
        assert (old["error"]["code"], old["error"]["current_epoch"]) == ("lease_lost", 2)
        assert (new["id"], new["epoch"], new["revision"]) == (created["id"], 2, 3)
        assert none["error"]["code"] == "session_not_found"
        assert (await ws.ask("heartbeat"))["held"] == 1


# What nobody is there for


async def test_a_poll_ends_with_its_connection(node: Running) -> None:
    async with connect(node) as ws:
        await ws.send([ws.request("acquire", themes=[THEME], wait=50) for _ in range(3)])
        await ws.ask("credit", themes=[THEME], count=5)
        await until(lambda: len(node.front.waiters) == 4)
        ws.vanish()
    await until(lambda: len(node.front.waiters) == 0)


async def test_a_session_for_who_has_vanished_is_handed_to_the_next(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, asked = node.front.gateway, list[tuple[Any, ...]]()
    acquire = gateway.acquire
    async with connect(node) as gone, connect(node) as ws:
        stored = await ws.ask("new", theme=THEME, repeat_after=60)
        monkeypatch.setattr(gateway, "acquire", lambda *arguments: asked.append(arguments))
        await gone.send(gone.request("take", id=stored["id"]))
        await until(lambda: asked)
        monkeypatch.undo()
        gone.vanish()
        await until(lambda: len(node.front.connections) == 1)
        acquire(*asked[0])  # it was on its way
        (found,) = (await ws.ask("acquire", themes=[THEME], wait=5))["sessions"]
        assert found["id"] == stored["id"]
        assert found["attempts"] == 1


# Bounds


async def test_beyond_its_bound_nothing_more_is_read_until_answers_are(tmp_path: Path) -> None:
    http = replace(HTTP, websocket_requests_in_flight=10)
    async with server(tmp_path, http=http) as node, connect(node) as ws:
        assert ws.hello["requests_in_flight"] == 10
        polls = [ws.request("acquire", themes=[THEME], wait=0.5) for _ in range(25)]
        await ws.send(polls)
        await until(lambda: len(node.front.waiters) == 10)
        await asyncio.sleep(0.1)
        assert len(node.front.waiters) == 10
        for one in polls:
            assert (await ws.answer(one["seq"]))["sessions"] == []
        answers = await ws.ask_all(
            *(ws.request("new", theme=THEME, repeat_after=60) for _ in range(100))
        )
        assert len({one["id"] for one in answers}) == 100


SHORT = 400  # a lease, in milliseconds


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("is_one_frame", [True, False])
async def test_at_its_bound_a_consumer_keeps_what_it_holds(
    tmp_path: Path, more: int, is_one_frame: bool
) -> None:
    """For several leases, in which it says nothing that is read."""
    async with server(tmp_path, http=replace(HTTP, websocket_requests_in_flight=4)) as node:
        await do(node, SetPolicy(THEME, (("lease_ms", SHORT),)))
        async with connect(node) as ws:
            created = await ws.ask("new", theme=THEME)
            polls = [ws.request("acquire", themes=[8], wait=1.5) for _ in range(4 + more)]
            if is_one_frame:
                await ws.send(polls)
            else:
                for one in polls:
                    await ws.send(one)
            for one in polls:
                assert (await ws.answer(one["seq"]))["sessions"] == []
            appended = await ws.ask("append", id=created["id"], epoch=1, text="x")
            assert appended["revision"] == 2
            assert ws.pushes == []


async def test_who_is_gone_at_its_bound_is_found_when_what_it_asked_has_ended(
    tmp_path: Path,
) -> None:
    async with server(tmp_path, http=replace(HTTP, websocket_requests_in_flight=4)) as node:
        await do(node, SetPolicy(THEME, (("lease_ms", SHORT),)))
        raw = await Raw.connect(node)
        raw.send({"op": "new", "seq": 1, "theme": THEME})
        created = await raw.answer(1)
        raw.transport.pause_reading()  # its network is there, and nobody behind it
        for _ in range(9):
            raw.send({"op": "acquire", "themes": [8], "wait": 0.4})
        await until(lambda: len(node.front.waiters) == 4)
        await until(lambda: not node.front.connections)
        assert node.front.websockets.closed == {3008: 1}
        await until(lambda: not is_active(node, created["id"]))
        assert last_cause(node, created["id"])[0] == "stale"
        raw.transport.abort()


async def test_what_its_network_acknowledges_late_is_no_sign_of_life(tmp_path: Path) -> None:
    """Answers go out all the time; of small ones the last is not acknowledged yet, as a rule."""
    async with server(tmp_path) as node:
        await do(node, SetPolicy(THEME, (("lease_ms", SHORT),)))
        raw = await Raw.connect(node)
        raw.send({"op": "new", "seq": 1, "theme": THEME})
        created = await raw.answer(1)
        raw.transport.pause_reading()
        raw_socket: socket.socket = raw.writer.get_extra_info("socket")
        for number in range(400):
            raw.send({"op": "acquire", "themes": [8], "wait": 0.01 * number})

        def is_gone() -> bool:
            raw_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            return not node.front.connections

        await until(is_gone, 3)
        assert node.front.websockets.closed == {3008: 1}
        await until(lambda: not is_active(node, created["id"]))
        raw.transport.abort()


async def test_who_breaks_off_at_its_bound_is_gone_at_once(tmp_path: Path) -> None:
    async with server(tmp_path, http=replace(HTTP, websocket_requests_in_flight=4)) as node:
        async with connect(node) as ws:
            await ws.send([ws.request("acquire", themes=[8], wait=50) for _ in range(9)])
            await until(lambda: len(node.front.waiters) == 4)
            ws.vanish()
            await until(lambda: not node.front.connections, 5)
        await until(lambda: len(node.front.waiters) == 0)


async def test_all_that_is_said_before_a_farewell_is_done_with_what_is_resumed_in_the_same_breath(
    node: Running,
) -> None:
    async with connect(node) as ws:
        created = await ws.ask("new", theme=THEME)
        kept = await ws.ask("new", theme=THEME)
        ws.vanish()
    one, other = ({"id": new["id"], "epoch": 1} for new in (created, kept))
    async with connect(node) as ws:
        await ws.send(
            [
                ws.request("resume", sessions=[one, other]),
                ws.request("append", **one, text="a"),
                ws.request("append", **one, text="b"),
                ws.request("append", **other, text="a"),
                ws.request("append", **other, text="b"),
                ws.request("remove", **one),
            ]
        )
        await ws.socket.close(code=1000)
        await until(lambda: not is_active(node, kept["id"]), 5)
    assert session(node, created["id"]) is None
    found = session(node, kept["id"])
    assert found is not None
    assert (found.data, last_cause(node, kept["id"])[0]) == (b"ab", "disconnected")
    assert no_operators(node)


async def test_who_resumes_at_the_same_node_is_told_of_the_verdict_of_who_held_before(
    node: Running,
) -> None:
    async with connect(node) as first, connect(node) as second:
        created = await first.ask("new", theme=THEME)
        held = {"id": created["id"], "epoch": 1}
        removing = [first.request("append", **held, text="a") for _ in range(100)]
        removing.append(first.request("remove", **held))
        await first.send(removing)
        (resumed,) = (await second.ask("resume", sessions=[held]))["sessions"]
        last = await first.answer(removing[-1]["seq"])
        assert "error" not in resumed, "a hundred appends are not done before it"
        assert "error" not in last
        lost = await second.push("lease_lost")
        assert (lost["id"], lost["cause"]) == (created["id"], "removed")


async def test_of_two_who_resume_at_once_only_one_believes_to_have_it(node: Running) -> None:
    async with connect(node) as maker, connect(node) as first, connect(node) as second:
        for _ in range(20):
            created = await maker.ask("new", theme=THEME)
            held = [{"id": created["id"], "epoch": 1}]
            answers = await asyncio.gather(
                *(one.ask("resume", sessions=held) for one in (first, second))
            )
            await asyncio.gather(*(one.ask("heartbeat") for one in (first, second)))
            believers = 0
            for one, answer in zip((first, second), answers, strict=True):
                is_told = any(push["id"] == created["id"] for push in one.pushes)
                believers += "error" not in answer["sessions"][0] and not is_told
            assert believers == 1


async def test_a_farewell_is_heard_at_the_bound(tmp_path: Path) -> None:
    async with server(tmp_path, http=replace(HTTP, websocket_requests_in_flight=4)) as node:
        async with connect(node) as ws:
            created = await ws.ask("new", theme=THEME)
            await ws.send([ws.request("acquire", themes=[8], wait=50) for _ in range(4)])
            await until(lambda: len(node.front.waiters) == 4)
            await ws.socket.close(code=1000)
            await until(lambda: not is_active(node, created["id"]), 5)
        assert last_cause(node, created["id"])[0] == "disconnected"


@pytest.mark.parametrize("protocol", [MSGPACK, JSON])
async def test_a_large_session_is_a_frame_of_its_own(tmp_path: Path, protocol: str) -> None:
    async with server(tmp_path) as node, connect(node, protocol) as ws:
        created = await ws.ask("new", theme=THEME)
        chunk = "x" * (MIB - 1000)
        for _ in range(16):
            await ws.ask("append", id=created["id"], epoch=1, text=chunk)
        large, small = await ws.ask_all(
            ws.request("get", id=created["id"]), ws.request("heartbeat")
        )
        assert len(large["session"]["chunks"]) == 16
        assert small["held"] == 1
        answers = await ws.ask_all(*(ws.request("get", id=created["id"]) for _ in range(4)))
        assert all("session" in one for one in answers)


async def test_a_slow_reader_is_waited_for_and_memory_is_bounded(tmp_path: Path) -> None:
    http = replace(QUICK, websocket_send_buffer_bytes=64 * 1024, websocket_frame_bytes=64 * 1024)
    async with server(tmp_path, http=http) as node:
        async with connect(node) as ws:
            created = await ws.ask("new", theme=THEME, repeat_after=60, text="x" * 60_000)
        raw = await Raw.connect(node)
        for seq in range(2000):
            raw.send({"op": "get", "seq": seq, "id": created["id"]})
        for seq in range(2000):
            assert "session" in await raw.answer(seq)
            if seq % 500 == 0:
                await asyncio.sleep(0.3)
        raw.writer.close()


@pytest.mark.parametrize("is_one_frame", [True, False])
async def test_when_pushes_have_been_read_requests_are_again(
    tmp_path: Path, is_one_frame: bool
) -> None:
    """Those that were not read for that, and reads that had no room."""
    http = replace(HTTP, websocket_send_buffer_bytes=64 * 1024)
    async with server(tmp_path, http=http) as node:
        async with connect(node) as ws:
            for _ in range(24):
                await ws.ask("new", theme=THEME, repeat_after=0, text="x" * 900_000)
            await ws.ask("new", theme=8, key="k", repeat_after=60)
        raw = await Raw.connect(node)
        credit = {"op": "credit", "seq": 1, "themes": [THEME], "count": 24}
        get = {"op": "get", "seq": 2, "theme": 8, "key": "k"}
        raw.transport.pause_reading()
        if is_one_frame:
            raw.writer.write(frame(2, msgspec.msgpack.encode([credit, get])))
        else:
            raw.send(credit)
        await until(lambda: node.front.websockets.pushed)
        if not is_one_frame:
            raw.send(get)
            await until(lambda: node.front.websockets.frames_in == 27)
        raw.transport.resume_reading()
        async with asyncio.timeout(10):  # pings alone are no answer
            assert (await raw.answer(2))["session"]["key"] == "k"
        raw.writer.close()


async def test_who_reads_slowly_keeps_what_it_holds(tmp_path: Path) -> None:
    """It comes to no ping for several leases, and goes on reading."""
    async with server(tmp_path) as node:
        await do(node, SetPolicy(THEME, (("lease_ms", SHORT),)))
        async with connect(node) as ws:
            large = await ws.ask("new", theme=8, repeat_after=60, text="x" * 900_000)
        raw = await Raw.connect(node)
        raw.send({"op": "new", "seq": 1, "theme": THEME})
        created = await raw.answer(1)
        count = 24
        for seq in range(count):
            raw.send({"op": "get", "seq": 2 + seq, "id": large["id"]})
        left_bytes = count * 900_000
        begin_s = asyncio.get_running_loop().time()
        while left_bytes > 0:
            left_bytes -= len(await raw.reader.read(64 * 1024))
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - begin_s > 5 * SHORT / 1000
        assert is_active(node, created["id"])
        assert node.front.websockets.closed == {1000: 1}
        raw.transport.abort()


@pytest.mark.parametrize("has_credit", [False, True])
async def test_who_reads_nothing_is_closed_in_time_and_what_it_holds_is_stored(
    tmp_path: Path,
    has_credit: bool,
) -> None:
    async with server(tmp_path, http=QUICK) as node:
        async with connect(node) as ws:
            ids = [
                (await ws.ask("new", theme=THEME, repeat_after=0, text="x" * 900_000))["id"]
                for _ in range(30)
            ]
        raw = await Raw.connect(node)
        raw.send({"op": "new", "seq": 1, "theme": THEME})
        created = await raw.answer(1)
        raw.transport.pause_reading()
        if has_credit:
            raw.send({"op": "credit", "themes": [THEME], "count": 100})
        else:
            for seq in range(3000):
                raw.send({"op": "get", "seq": seq, "id": ids[seq % 30]})
        begin_s = asyncio.get_running_loop().time()
        await until(lambda: not is_active(node, created["id"]))
        assert asyncio.get_running_loop().time() - begin_s < 3
        assert last_cause(node, created["id"])[0] == "failed"
        await until(lambda: not node.front.connections)
        await until(lambda: not any(is_active(node, one) for one in ids))
        raw.transport.abort()


async def test_a_flood_of_pings_is_no_reason_to_gather_pongs(tmp_path: Path) -> None:
    async with server(tmp_path, http=replace(QUICK, ping_ms=100)) as node:
        raw = await Raw.connect(node)
        raw.send({"op": "new", "seq": 1, "theme": THEME})
        created = await raw.answer(1)
        out = outbox(node)
        raw.transport.pause_reading()
        kept_bytes = 0
        async with asyncio.timeout(10):
            while is_active(node, created["id"]) and kept_bytes < MIB:
                raw.writer.write(PINGS)
                with contextlib.suppress(TimeoutError):  # the server reads no more at its end
                    async with asyncio.timeout(0.1):
                        await raw.writer.drain()
                kept_bytes = max(kept_bytes, out._transport.get_write_buffer_size())  # noqa: SLF001
        assert kept_bytes < MIB
        assert last_cause(node, created["id"])[0] == "failed"
        raw.transport.resume_reading()
        assert await raw.closed() == (1008, "what you are told is not read")
        raw.transport.abort()
        await until(lambda: not node.front.connections)


@pytest.mark.parametrize("flood", ["pings", "empty lists"])
async def test_frames_that_ask_nothing_let_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flood: str
) -> None:
    one = frame(9, b"") if flood == "pings" else frame(2, b"\x90")
    taken = most = 0
    receive = web.WebSocketResponse.receive

    async def counted(socket: web.WebSocketResponse) -> Any:
        nonlocal taken
        taken += 1
        return await receive(socket)

    async def look() -> None:
        """At each turn of the loop: how many frames were taken since the last one."""
        nonlocal most
        while True:
            before = taken
            await asyncio.sleep(0)
            most = max(most, taken - before)

    monkeypatch.setattr(web.WebSocketResponse, "receive", counted)
    async with server(tmp_path) as node:
        raw = await Raw.connect(node)
        looking = asyncio.ensure_future(look())
        for _ in range(20):
            raw.writer.write(one * 1000)
            await raw.writer.drain()
        await until(lambda: taken > 20_000)
        looking.cancel()
        assert most <= 600
        raw.transport.abort()


async def test_of_pings_that_came_while_nothing_was_read_the_last_is_answered(
    tmp_path: Path,
) -> None:
    async with server(tmp_path) as node:
        raw = await Raw.connect(node)
        out = outbox(node)
        raw.transport.pause_reading()
        async with asyncio.timeout(10):
            while not out.is_blocked:
                raw.writer.write(PINGS)
                await raw.writer.drain()
        raw.writer.write(frame(9, b"last"))
        raw.send({"op": "heartbeat", "seq": 1})
        await until(lambda: node.front.websockets.frames_in)
        assert out.is_blocked
        raw.transport.resume_reading()
        opcode, payload = 0, b""
        while payload != b"last":
            opcode, payload = await raw._frame()  # noqa: SLF001
            assert opcode in {2, 9, 10}
        assert opcode == 10
        assert (await raw.answer(1))["held"] == 0
        raw.transport.abort()


async def test_whoever_is_told_to_wait_by_the_cluster_hears_so(node: Running) -> None:
    await do(node, SetLimits((("state_bytes", 2 * MIB),)))
    async with connect(node) as ws:
        error: dict[str, Any] = {}
        while not error:
            answer = await ws.ask("new", theme=THEME, text="x" * 100_000)
            error = answer.get("error", {})
        assert (error["code"], error["limit"], error["retryable"]) == (
            "limit_exceeded",
            "state_bytes",
            True,
        )


# A client without manners


def frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame; the mask changes nothing."""
    size = len(payload)
    if size < 126:
        head = bytes((128 | opcode, 128 | size))
    elif size < 65_536:
        head = bytes((128 | opcode, 254)) + size.to_bytes(2, "big")
    else:
        head = bytes((128 | opcode, 255)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


class Raw:
    """A connection whose bytes are the test's own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answers: dict[int, Any] = {}

    @property
    def transport(self) -> Any:
        return self.writer.transport

    @classmethod
    async def connect(cls, node: Running) -> "Raw":
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port, limit=MIB)
        raw_socket: socket.socket = writer.get_extra_info("socket")
        raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        writer.write(
            f"GET /v1/operate HTTP/1.1\r\nHost: {node.host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {MSGPACK}\r\n\r\n".encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        return cls(reader, writer)

    def send(self, *requests: dict[str, Any]) -> None:
        for one in requests:
            self.writer.write(frame(2, msgspec.msgpack.encode(one)))

    async def _frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(10):
            head = await self.reader.readexactly(2)
            size = head[1]
            if size == 126:
                size = int.from_bytes(await self.reader.readexactly(2), "big")
            elif size == 127:
                size = int.from_bytes(await self.reader.readexactly(8), "big")
            return head[0] & 15, await self.reader.readexactly(size)

    async def answer(self, seq: int) -> Any:
        while seq not in self.answers:
            opcode, payload = await self._frame()
            if opcode == 9:
                self.writer.write(frame(10, payload))
            elif opcode == 2:
                found = msgspec.msgpack.decode(payload)
                for one in found if isinstance(found, list) else [found]:
                    if "seq" in one:
                        self.answers[one["seq"]] = one
        return self.answers.pop(seq)

    async def closed(self) -> tuple[int, str]:
        """The server's code and reason."""
        while True:
            opcode, payload = await self._frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()


async def test_what_is_answered_late_is_not_taken_from_who_came_back_for_it(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = node.front.gateway
    submit = gateway.submit
    held: list[tuple[Any, ...]] = []

    def hold(encoded: bytes, callback: Any, **given: Any) -> None:
        held.append((encoded, callback, given))

    request = {"theme": THEME, "idempotency_key": "k"}
    async with connect(node) as ws:
        monkeypatch.setattr(gateway, "submit", hold)
        await ws.send(ws.request("new", **request))
        await until(lambda: held)
        monkeypatch.setattr(gateway, "submit", submit)
        await ws.socket.close(code=4000)
    await until(lambda: not node.front.connections)
    async with connect(node) as ws:
        created = await ws.ask("new", **request)
        ((encoded, callback, given),) = held
        submit(encoded, callback, **given)
        assert (await ws.ask("heartbeat"))["held"] == 1
        await asyncio.sleep(0.1)
        assert (await ws.ask("heartbeat"))["held"] == 1
        assert (await ws.ask("append", id=created["id"], epoch=1, text="x"))["revision"] == 2
