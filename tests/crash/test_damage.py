"""A node whose files are not whole refuses to start, and names the file; it never starts empty."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.crash.clients import Load
from tests.crash.history import History
from tests.crash.processes import NAMES, Cluster, Server
from tests.crash.server import Status

SEGMENT_BYTES = 16 << 10  # so that there are several soon


class Grown(NamedTuple):
    """What a node has on disk that was killed, and what its clients know."""

    files: Path
    history: History


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """A node whose journal was cut behind its checkpoint, and has more than that."""
    return asyncio.run(_grow(tmp_path_factory.mktemp("grown")))


async def _grow(directory: Path) -> Grown:
    async with Cluster(directory, NAMES[:1], segment_bytes=SEGMENT_BYTES) as cluster:
        (server,) = cluster
        await cluster.start()
        async with Load(cluster, 1, writers=2, workers=1):
            await cluster.progress(400)
            while len(segments(server)) < 3:  # noqa: ASYNC110 - files tell nobody
                await asyncio.sleep(0.01)
            server.kill()
            await server.ended()
        return Grown(server.directory, cluster.history)


def segments(server: Server) -> list[Path]:
    return sorted((server.directory / "journal").glob("segment-*"))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


def damaged_segment(server: Server) -> str:
    path = segments(server)[0]
    flip(path, 600)  # in the first frame, before others
    return path.name


def missing_segment(server: Server) -> str:
    path = segments(server)[1]
    path.unlink()
    return path.name


def damaged_state(server: Server) -> str:
    path = server.directory / "state.db"
    for offset in range(1_000, path.stat().st_size, 16 << 10):  # each page
        flip(path, offset + 8_000)
    return path.name


def changed_state(server: Server) -> str:
    """A record that is well formed, and is not what was written."""
    path = server.directory / "state.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        changed = connection.execute("UPDATE sessions SET revision = revision + 1")
        assert changed.rowcount
    return path.name


def emptied_state(server: Server) -> str:
    path = server.directory / "state.db"
    path.write_bytes(b"")
    return path.name


def missing_state(server: Server) -> str:
    (server.directory / "state.db").unlink()
    return "checkpoint that holds what came before is missing"


def missing_journal(server: Server) -> str:
    """Term and vote are gone, and what was acknowledged after the checkpoint."""
    for path in (server.directory / "journal").iterdir():
        path.unlink()
    return "journal"


Harm = Callable[[Server], str]


@pytest.mark.parametrize(
    "harm",
    [
        damaged_segment,
        missing_segment,
        damaged_state,
        changed_state,
        emptied_state,
        missing_state,
        missing_journal,
    ],
    ids=lambda harm: harm.__name__,
)
async def test_a_damaged_node_refuses_to_start(directory: Path, grown: Grown, harm: Harm) -> None:
    async with Cluster(directory, NAMES[:1]) as cluster:
        (server,) = cluster
        shutil.copytree(grown.files, server.directory)
        whole = contents(server)
        named = harm(server)
        harmed = contents(server)
        assert await refusal(cluster, server) == Status.REFUSED, server.last_words
        assert "refused to start" in server.last_words
        assert named in server.last_words
        # Nothing was made worse: with what was harmed put back, it has all it had.
        for path, content in whole.items():
            if harmed.get(path) != content:
                path.write_bytes(content)
        cluster.history = deepcopy(grown.history)
        await cluster.check()


async def refusal(cluster: Cluster, server: Server) -> int:
    """The status of a node that must not start."""
    await server.start()
    server.may_end()
    await cluster.until(lambda: server.is_up or not server.is_running, "a start or its refusal")
    assert not server.is_up, f"{server.name} has started"
    return await server.ended()


def contents(server: Server) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in server.directory.rglob("*") if path.is_file()}


async def test_an_undamaged_node_starts(directory: Path, grown: Grown) -> None:
    async with Cluster(directory, NAMES[:1]) as cluster:
        (server,) = cluster
        shutil.copytree(grown.files, server.directory)
        cluster.history = deepcopy(grown.history)
        await cluster.check()


async def test_a_node_of_another_name_is_refused(directory: Path, grown: Grown) -> None:
    """Two nodes with one disk's copies would vote twice."""
    async with Cluster(directory, NAMES[1:2]) as cluster:
        (server,) = cluster
        shutil.copytree(grown.files, server.directory)
        assert await refusal(cluster, server) == Status.REFUSED, server.last_words
        assert "belongs to" in server.last_words


async def test_a_directory_in_use_is_refused(directory: Path) -> None:
    async with Cluster(directory / "a", NAMES[:1]) as cluster:
        await cluster.start()
        (server,) = cluster
        async with Cluster(directory / "b", NAMES[:1], {NAMES[0]: server.directory}) as second:
            (intruder,) = second
            assert await refusal(second, intruder) == Status.REFUSED, intruder.last_words
            assert "in use" in intruder.last_words
