"""A whole server: how it leaves, and with what exit status."""

import asyncio
import contextlib
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientSession, WSServerHandshakeError

import api.server
from api.statuses import ExitStatus
from api.steps import Step
from tests.api.processes import Process, process, three_processes
from tests.api.servers import cluster_of_three, one_node, running, server, until
from tests.api.websocket.clients import connect

THEME = 7


async def get(node: Any, path: str) -> tuple[int, Any]:
    async with ClientSession() as client, client.get(f"{node.url}{path}") as answer:
        return answer.status, await answer.json()


async def session_of(node: Any, session_id: str) -> Any:
    status, found = await get(node, f"/v1/sessions/{session_id}")
    assert status == 200
    return found


async def no_longer_active(node: Any, session_id: str) -> Any:
    async with asyncio.timeout(10):
        while (found := await session_of(node, session_id))["phase"] == "active":  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)
    return found


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (caught,) = (line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


async def leader_of(nodes: list[Process]) -> Process:
    _, found = await get(nodes[0], "/v1/cluster")
    return next(one for one in nodes if one.node_id == found["leader"])


# Asked to leave


async def test_sigterm_lets_consumers_go_on_elsewhere_and_stores_what_stays(
    tmp_path: Path,
) -> None:
    async with three_processes(tmp_path) as nodes:
        leaving = await leader_of(nodes)
        others = [one for one in nodes if one is not leaving]
        async with connect(leaving) as ws, connect(leaving) as staying:
            moved = {"id": (await ws.ask("new", theme=THEME, text="a"))["id"], "epoch": 1}
            stays = {"id": (await staying.ask("new", theme=THEME, text="b"))["id"], "epoch": 1}
            polling = staying.request("acquire", themes=[9], wait=50)
            await staying.send(polling)
            begin_s = time.monotonic()
            leaving.signal(signal.SIGTERM)
            draining = await ws.push("draining")
            assert draining["within_ms"] == 500
            assert (await staying.answer(polling["seq"]))["sessions"] == []
            # It serves what is held, hands out nothing, and takes no new consumers.
            assert (await ws.ask("append", **moved, text="c"))["revision"] == 2
            assert (await ws.error("new", theme=THEME))["code"] == "draining"
            assert (await get(leaving, "/readyz"))[0] == 503
            with pytest.raises(WSServerHandshakeError):
                async with connect(leaving):
                    pass
            async with connect(others[0]) as elsewhere:
                (resumed,) = (await elsewhere.ask("resume", sessions=[moved]))["sessions"]
                assert resumed == {**moved, "revision": 2, "lease_ms": resumed["lease_ms"]}
                await ws.socket.close()
                closed = await staying.closed()
                assert closed.code == 1001
                assert await leaving.ended() == ExitStatus.STOPPED
                assert time.monotonic() - begin_s < 10
                assert (await elsewhere.ask("append", **moved, text="d"))["revision"] == 3
                found = await session_of(others[1], stays["id"])
                assert (found["phase"], found["attempts"]) == ("ready", 0)
                assert found["history"][0]["cause"] == "shutdown"
        assert (await get(others[0], "/v1/cluster"))[1]["leader"] in {one.node_id for one in others}


async def test_what_is_on_its_way_is_answered_before_it_goes(tmp_path: Path) -> None:
    async with three_processes(tmp_path, "--node-stop-timeout-ms", "1000") as nodes:
        leaving, *others = nodes
        async with ClientSession(leaving.url) as client:
            async with client.post(f"/v1/themes/{THEME}/sessions", data=b"a") as answer:
                path = f"/v1/sessions/{(await answer.json())['id']}/append"
            for one in others:
                one.signal(signal.SIGSTOP)

            async def append() -> Any:
                headers = {"Ritornello-Epoch": "1"}
                async with client.post(path, data=b"b", headers=headers) as answer:
                    return await answer.json()

            appending = asyncio.ensure_future(append())
            await asyncio.sleep(0.2)  # for it to be on its way: there is nobody to commit it
            leaving.signal(signal.SIGTERM)
            found = await appending
            assert (found["code"], found["outcome"]) == ("stopping", "unknown")
        assert await leaving.ended() == ExitStatus.STOPPED


async def test_while_requests_come_it_serves_them_and_says_that_it_drains(tmp_path: Path) -> None:
    async with process(tmp_path, "--http-drain-ms", "1500") as node, ClientSession() as client:
        assert (await get(node, "/v1/cluster"))[0] == 200
        begin_s = time.monotonic()
        served = drains = 0
        node.signal(signal.SIGTERM)
        with contextlib.suppress(ClientConnectionError):
            while True:
                async with client.get(f"{node.url}/v1/cluster") as answer:
                    served += answer.status == 200
                async with client.get(f"{node.url}/readyz") as answer:
                    drains += answer.status == 503
        assert await node.ended() == ExitStatus.STOPPED
        assert time.monotonic() - begin_s >= 1.5
        assert min(served, drains) > 10


async def test_nobody_is_waited_for_who_does_not_come(tmp_path: Path) -> None:
    async with process(tmp_path, "--http-drain-ms", "60000") as node:
        await get(node, "/v1/cluster")
        node.signal(signal.SIGTERM)
        assert await node.ended() == ExitStatus.STOPPED


async def test_the_last_of_a_cluster_that_stops_does_not_wait_though_a_session_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it waits for otherwise takes longer than a test may."""
    for name in ("_SAID_TIMEOUT_S", "_RELEASE_TIMEOUT_S"):
        monkeypatch.setattr(api.server, name, 600)
    async with cluster_of_three(tmp_path) as nodes:
        last, *others = nodes
        async with connect(last) as ws:
            await ws.ask("new", theme=THEME)
            await asyncio.gather(*(one.leave() for one in others))
            leaving = asyncio.ensure_future(last.leave())
            assert (await ws.closed()).code == 1001
        assert await leaving == ExitStatus.STOPPED


class Stuck:
    """What has its turn, and does not end."""

    def arrive(self) -> None: ...


async def test_a_node_that_stops_waits_only_so_long_for_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.server, "_SAID_TIMEOUT_S", 0.1)
    monkeypatch.setattr(api.server, "_RELEASE_TIMEOUT_S", 600)
    async with server(tmp_path) as node, connect(node) as ws:
        created = await ws.ask("new", theme=THEME)
        (operator,) = node.front.operators
        stuck: Any = Stuck()
        step = Step(b"", lambda _: None, is_verdict=False, is_ending=False, together=stuck)
        operator.ask(step._replace(asker=operator.consumer))
        assert await node.leave() == ExitStatus.STOPPED
        assert node.front.gateway.epoch(int(created["id"], 16)) == 0, "it is stored"
        assert node.front.gateway.cause(int(created["id"], 16)) == "shutdown"


async def test_sigterm_while_it_starts_lets_it_end_in_order(tmp_path: Path) -> None:
    async with process(tmp_path) as node:
        node.signal(signal.SIGTERM)
        assert await node.ended() == ExitStatus.STOPPED
        await node.start()
        async with asyncio.timeout(20):
            while not catches(node.process.pid, signal.SIGTERM):  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.001)
        node.signal(signal.SIGTERM)
        assert await node.ended() == ExitStatus.STOPPED


async def test_the_leader_hands_over_before_it_goes(tmp_path: Path) -> None:
    async with cluster_of_three(tmp_path) as nodes:
        leading = next(one for one in nodes if one.front.gateway.leader == one.node_id)
        assert await leading.leave() == ExitStatus.STOPPED
        others = [one for one in nodes if one is not leading]
        await until(
            lambda: others[0].front.gateway.leader in {one.node_id for one in others}, timeout_s=2
        )


async def test_asked_twice_it_waits_for_nobody(tmp_path: Path) -> None:
    async with process(tmp_path, "--http-drain-ms", "60000") as node:
        async with connect(node) as ws:
            created = await ws.ask("new", theme=THEME)
            node.signal(signal.SIGTERM)
            await ws.push("draining")
            await asyncio.sleep(0.6)
            node.signal(signal.SIGINT)
            assert (await ws.closed()).code == 1001
        assert await node.ended() == ExitStatus.STOPPED
        await node.start()
        await node.ready()
        assert (await session_of(node, created["id"]))["history"][0]["cause"] == "shutdown"


async def test_signals_that_come_together_are_one(tmp_path: Path) -> None:
    async with process(tmp_path, "--http-drain-ms", "1500") as node:
        async with connect(node) as ws:
            await ws.ask("new", theme=THEME)
            begun_s = time.monotonic()
            node.signal(signal.SIGTERM)
            await ws.push("draining")
            node.signal(signal.SIGTERM)
            assert (await ws.closed()).code == 1001
        assert time.monotonic() - begun_s > 1.4
        assert await node.ended() == ExitStatus.STOPPED


async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    settings = one_node(tmp_path)
    async with running([settings]) as (node,), connect(node) as ws:
        created = await ws.ask("new", theme=THEME, text="x", repeat_after=3600)
    async with running([settings]) as (node,):
        assert (await session_of(node, created["id"]))["chunks"] == ["eA=="]


# What it cannot go on with


async def test_a_journal_that_fails_ends_it_with_a_status_of_its_own(tmp_path: Path) -> None:
    async with process(tmp_path) as node:
        async with connect(node) as ws:
            created = await ws.ask("new", theme=THEME)
            # From here on no file may have a byte written to it.
            resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (0, 0))
            await ws.send(ws.request("append", id=created["id"], epoch=1, text="lost"))
            closed = await ws.closed()
            assert closed.code == 1001
            assert await node.ended() == ExitStatus.NODE_FAILED
        await node.start()
        await node.ready()
        found = await no_longer_active(node, created["id"])
        assert (found["phase"], found["chunks"]) == ("stored", [])


async def test_a_journal_that_fails_on_the_way_out_is_told_as_well(tmp_path: Path) -> None:
    async with process(tmp_path) as node:
        async with connect(node) as ws:
            await ws.ask("new", theme=THEME)
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (0, 0))
        node.signal(signal.SIGTERM)
        assert await node.ended() == ExitStatus.NODE_FAILED


async def test_a_node_that_gets_nothing_done_makes_room_for_another(tmp_path: Path) -> None:
    """Its peers stand still, and it does not know: it believes to be in order."""
    patient = (
        *("--consensus-quorum-timeout-ms", "60000"),
        *("--node-timeout-ms", "300"),
        *("--node-stop-timeout-ms", "1000"),
        *("--operation-error-budget-ms", "1000"),
        *("--operation-error-budget-failures", "3"),
    )
    async with three_processes(tmp_path, *patient) as nodes:
        leading = await leader_of(nodes)
        others = [one for one in nodes if one is not leading]
        async with connect(leading) as ws:
            created = await ws.ask("new", theme=THEME)
            for one in others:
                one.signal(signal.SIGSTOP)
            try:
                held = {"id": created["id"], "epoch": 1}
                while (error := await ws.error_or_closed("append", **held, text="x")) is not None:
                    assert error["code"] in {"timed_out", "stopping"}
                assert await leading.ended() == ExitStatus.BUDGET_SPENT
            finally:
                for one in others:
                    one.signal(signal.SIGCONT)


async def test_an_address_in_use_is_a_status_of_its_own(tmp_path: Path) -> None:
    async with server(tmp_path) as first:
        second = Process(tmp_path, "node-2", first.port, ())
        await second.start()
        assert await second.ended() == ExitStatus.LISTEN


# The hard way


async def test_consumers_of_a_node_that_is_killed_go_on_elsewhere(tmp_path: Path) -> None:
    async with three_processes(tmp_path) as nodes:
        dying = await leader_of(nodes)
        others = [one for one in nodes if one is not dying]
        async with connect(dying) as ws, connect(dying) as idle:
            held = [
                {"id": (await ws.ask("new", theme=THEME, text="a"))["id"], "epoch": 1}
                for _ in range(10)
            ]
            lost = await idle.ask("new", theme=THEME)
            dying.signal(signal.SIGKILL)
            await dying.ended()
            await ws.closed()
        async with connect(others[0]) as ws:
            resumed = (await ws.ask("resume", sessions=held))["sessions"]
            assert [(one["id"], one["revision"]) for one in resumed] == [
                (one["id"], 1) for one in held
            ]
            answers = await ws.ask_all(*(ws.request("append", **one, text="b") for one in held))
            assert [one["revision"] for one in answers] == [2] * 10
            # The node comes back, and stores what its own consumers held; not what was resumed.
            await dying.start()
            await dying.ready()
            found = await no_longer_active(others[1], lost["id"])
            assert found["history"][0]["reason"] == "its node started again"
            assert (await ws.ask("heartbeat"))["held"] == 10
            removed = await ws.ask_all(*(ws.request("remove", **one) for one in held))
            assert [one["revision"] for one in removed] == [2] * 10
