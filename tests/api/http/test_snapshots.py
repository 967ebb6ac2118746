"""The whole state as a download."""

import asyncio
import os
import socket
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError, ClientSession

from api.http import snapshots
from api.security import new_token
from cluster.checkpoints import Checkpoints, CheckpointSettings
from cluster.storage.errors import DiskError, DiskFullError
from cluster.storage.state_file import StateFile, verify
from tests.api.security.files import entry
from tests.api.servers import HTTP, REPLICA, Running, cluster_of_three, server, until

SNAPSHOT = "/v1/cluster/snapshot"
MIB = 1 << 20


async def new(client: ClientSession, data: bytes = b"x", **query: str | int) -> str:
    query = {"repeat_after": 3600, **query}
    async with client.post("/v1/themes/7/sessions", data=data, params=query) as answer:
        assert answer.status == 201, await answer.text()
        found: str = (await answer.json())["id"]
        return found


async def download(client: ClientSession, path: Path) -> int:
    """Get the state as a file; answers its index."""
    async with client.get(SNAPSHOT) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "application/vnd.sqlite3"
        data = await answer.read()
        assert answer.content_length == len(data)
        index = int(answer.headers["Ritornello-Applied-Index"])
        assert answer.content_disposition is not None
        assert answer.content_disposition.filename == f"state-{index}.db"
    await asyncio.to_thread(path.write_bytes, data)
    return index


def cluster_id(running: Running) -> str:
    return running.server.settings.node.cluster_id


def copies(running: Running) -> list[str]:
    """What is on the disk of copies, by name and by descriptor."""
    directory = running.server.settings.node.data_directory
    opened = []
    for one in Path("/proc/self/fd").iterdir():
        try:
            opened.append(str(one.readlink()))
        except FileNotFoundError:
            continue
    return [one for one in [*map(str, directory.iterdir()), *opened] if "state.db.copy-" in one]


async def test_anybody_can_open_it_with_sqlite(
    running: Running, client: ClientSession, tmp_path: Path
) -> None:
    for number in range(50):
        await new(client, key=f"order-{number}")
    index = await download(client, tmp_path / "copy.db")
    with closing(sqlite3.connect(tmp_path / "copy.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM sessions").fetchone() == (50,)
        assert database.execute("SELECT applied_index FROM cluster").fetchone() == (index,)
    assert copies(running) == []


async def test_a_node_can_be_made_of_it(
    running: Running, client: ClientSession, tmp_path: Path
) -> None:
    made = [await new(client, b"data %d" % number) for number in range(20)]
    path = str(tmp_path / "copy.db")
    index = await download(client, tmp_path / "copy.db")
    assert verify(path, cluster_id(running)).session_count == 20
    file = StateFile.open(path, cluster_id(running))
    assert file is not None
    with closing(file):
        machine = file.load_machine()
    assert machine.applied_index == index
    session = machine.session(int(made[7], 16))
    assert session is not None
    assert session.data == b"data 7"


async def test_all_that_was_acknowledged_is_in_it(
    running: Running, client: ClientSession, tmp_path: Path
) -> None:
    """Though the last checkpoint is older."""
    for number in range(1, 6):
        await new(client)
        index = await download(client, tmp_path / "copy.db")
        assert verify(str(tmp_path / "copy.db"), cluster_id(running)).session_count == number
        assert index <= running.front.gateway.applied_index


async def test_a_node_that_has_done_nothing_yet_has_a_state(
    running: Running, client: ClientSession, tmp_path: Path
) -> None:
    await download(client, tmp_path / "copy.db")
    assert verify(str(tmp_path / "copy.db"), cluster_id(running)).session_count == 0


async def test_its_header_can_be_had_alone(running: Running, client: ClientSession) -> None:
    await new(client)
    async with client.head(SNAPSHOT) as answer:
        assert answer.status == 200
        assert int(answer.headers["Content-Length"]) > 0
        assert await answer.read() == b""
    await until(lambda: not copies(running))


async def test_it_is_consistent_under_load(
    running: Running, client: ClientSession, tmp_path: Path
) -> None:
    """A pair of sessions is made and removed in one step: a copy has both, or none."""

    async def pairs() -> None:
        for number in range(10_000):
            both = [{"op": "new", "theme": 7, "key": f"{number}-{one}"} for one in "ab"]
            fields = {"operations": [{**one, "repeat_after": 0} for one in both]}
            async with client.post("/v1/txn", json=fields) as answer:
                assert answer.status == 200, await answer.text()

    working = asyncio.ensure_future(pairs())
    for _ in range(5):
        await download(client, tmp_path / "copy.db")
        assert verify(str(tmp_path / "copy.db"), cluster_id(running)).session_count % 2 == 0
        assert not working.done()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


class Slow:
    """A client that has asked for the state, and reads as it likes."""

    def __init__(self, running: Running) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", running.port))
        self.socket.sendall(f"GET {SNAPSHOT} HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode())
        self.socket.setblocking(False)  # noqa: FBT003 - its only argument

    async def read(self, size: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, size)


async def large(client: ClientSession) -> None:
    """More than the buffers of a connection hold."""
    for _ in range(16):
        await new(client, os.urandom(MIB))


async def test_there_is_one_at_a_time(running: Running, client: ClientSession) -> None:
    await large(client)
    with closing(Slow(running).socket) as slow:
        await until(lambda: copies(running))
        async with client.get(SNAPSHOT) as answer:
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) > 0
            problem = await answer.json()
            assert (problem["code"], problem["retryable"]) == ("overloaded", True)
        slow.close()
    # Who has left needs it no more.
    await until(lambda: not copies(running))
    async with client.get(SNAPSHOT) as answer:
        assert answer.status == 200
        assert len(await answer.read()) > 16 * MIB
    await until(lambda: not copies(running))


async def test_whoever_does_not_read_is_cut_off(tmp_path: Path) -> None:
    http = replace(HTTP, request_timeout_ms=500)
    async with server(tmp_path, http=http) as running, ClientSession(running.url) as client:
        await large(client)
        slow = Slow(running)
        with closing(slow.socket):
            await until(lambda: copies(running))
            await until(lambda: not copies(running))
            received = 0
            while piece := await slow.read(MIB):
                received += len(piece)
            assert received < 16 * MIB  # less than was promised


async def test_it_may_not_take_for_ever(
    running: Running, client: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "DOWNLOAD_MAX_S", 0.5)
    await large(client)
    async with client.get(SNAPSHOT) as answer:
        await asyncio.sleep(0.6)
        with pytest.raises((ClientPayloadError, ConnectionError)):
            await answer.read()
    await until(lambda: not copies(running))


async def test_a_checkpoint_that_takes_too_long_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = replace(REPLICA, checkpoint=CheckpointSettings(interval_ms=600_000))
    async with server(tmp_path, replica=replica) as running, ClientSession(running.url) as client:
        await new(client)
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, "CHECKPOINT_TIMEOUT_MS", 50)
            patch.setattr(Checkpoints, "begin", lambda _: None)
            async with client.get(SNAPSHOT) as answer:
                assert answer.status == 503
                assert (await answer.json())["retryable"]
        async with client.get(SNAPSHOT) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(("number", "status"), [(28, 507), (5, 503)])
async def test_a_disk_that_refuses_is_told_of_and_nothing_stays(
    client: ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
) -> None:
    def refuse(_: StateFile, path: str) -> None:
        raise DiskError.of(path, "write", OSError(number, os.strerror(number)))

    assert isinstance(DiskError.of("", "", OSError(28, "")), DiskFullError)
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "copy", refuse)
        async with client.get(SNAPSHOT) as answer:
            assert answer.status == status
            problem = await answer.json()
            assert problem["code"] == "copy_failed"
            assert "state.db" not in problem["detail"]  # where it is concerns nobody outside
    async with client.get(SNAPSHOT) as answer:
        assert answer.status == 200


async def test_it_takes_a_token_of_an_administrator_of_everything(tmp_path: Path) -> None:
    tokens = {name: new_token() for name in ("all", "some", "worker")}
    text = entry(tokens["all"], "all", '["admin"]')
    text += entry(tokens["some"], "some", '["admin"]', 'themes = ["7"]')
    text += entry(tokens["worker"], "worker", '["operate"]')
    async with server(tmp_path, tokens=text) as running, ClientSession(running.url) as client:
        for name, status in (("all", 200), ("some", 403), ("worker", 403), (None, 401)):
            headers = {} if name is None else {"Authorization": f"Bearer {tokens[name]}"}
            async with client.get(SNAPSHOT, headers=headers) as answer:
                assert answer.status == status


async def test_any_node_has_it(tmp_path: Path) -> None:
    async with cluster_of_three(tmp_path) as nodes:
        async with ClientSession(nodes[0].url) as client:
            for _ in range(5):
                await new(client)
        for running in nodes:
            path = tmp_path / f"{running.node_id}.db"
            async with ClientSession(running.url) as client:
                await download(client, path)
            assert verify(str(path), cluster_id(running)).session_count == 5
