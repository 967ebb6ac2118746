"""Disks of nodes that have lived, for the commands that look at them."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from api.main import main
from cluster import Address, Node, NodeSettings
from cluster.checkpoints import CheckpointSettings
from cluster.consensus.member import ConsensusSettings
from cluster.replica import ReplicaSettings
from cluster.storage.journal_files import JournalSettings
from state.operations import (
    Acquire,
    Append,
    Idempotent,
    New,
    Park,
    SetPolicy,
    Touch,
)

OLD = "old"
HOUR_MS = 3_600_000
JOURNAL = JournalSettings(segment_bytes=64 * 1024)
FAST = ReplicaSettings(
    consensus=ConsensusSettings(
        heartbeat_ms=50,
        election_timeout_min_ms=300,
        election_timeout_max_ms=600,
        quorum_timeout_ms=600,
    ),
    checkpoint=CheckpointSettings(interval_ms=200, log_bytes=20_000),
    lease_grace_ms=300,
)
# A journal that is never cut.
LONG = ReplicaSettings(consensus=FAST.consensus, checkpoint=CheckpointSettings(interval_ms=HOUR_MS))


def run(*words: str | Path) -> Result:
    """A command of `ritornello-server`."""
    ours = {name: None for name in os.environ if name.startswith("RITORNELLO_")}
    return CliRunner(env=ours).invoke(main, list(map(str, words)))


def alone(
    directory: Path, cluster_id: str = OLD, replica: ReplicaSettings = FAST, node_id: str = "node-1"
) -> NodeSettings:
    return NodeSettings(
        directory,
        node_id=node_id,
        cluster_id=cluster_id,
        journal=JOURNAL,
        replica=replica,
        tunes_collector=False,
    )


def trio(directories: list[Path], cluster_id: str) -> list[NodeSettings]:
    sockets = [socket.socket() for _ in directories]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    peers = {f"node-{number}": Address(*one.getsockname()) for number, one in enumerate(sockets, 1)}
    for one in sockets:
        one.close()
    return [
        NodeSettings(
            directory,
            node_id=name,
            cluster_id=cluster_id,
            bind=peers[name],
            peers=peers,
            journal=JOURNAL,
            replica=FAST,
            stop_timeout_ms=3_000,
            tunes_collector=False,
        )
        for name, directory in zip(peers, directories, strict=True)
    ]


@asynccontextmanager
async def running(settings: list[NodeSettings]) -> AsyncIterator[list[Node]]:
    """Nodes that are ready."""
    nodes = [Node(one) for one in settings]
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        await asyncio.gather(*(node.wait_until_ready() for node in nodes))
        yield nodes
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


def die(node: Node) -> None:
    """Leave the disk as a kill would: no last checkpoint."""
    node.replica.stop()


async def fill(node: Node) -> None:
    """Some of everything: 12 sessions, of which 3 are active and one is parked."""
    await node.submit(SetPolicy(7, (("max_attempts", 5), ("lease_ms", HOUR_MS))))
    for number in range(10):
        after_ms = 0 if number < 8 else HOUR_MS
        await node.submit(New(7, b"key-%d" % number, b"data-%d" % number, repeat_after_ms=after_ms))
    acquired: Any = await node.submit(Acquire((7,), 3, consumer=node.consumer(b"worker")))
    first, second, third = acquired
    await node.submit(Append(first.session_id, first.epoch, b"; more"))
    await node.submit(Touch(second.session_id, second.epoch))
    await node.submit(Park(third.session_id, third.epoch, "broken"))
    await node.submit(Idempotent(b"idem", HOUR_MS, New(8, None, b"once")))
    await node.submit(New(9, b"big", b"x" * 30_000, repeat_after_ms=0))


async def grow(directory: Path, replica: ReplicaSettings = FAST, *, kills: bool = False) -> None:
    """A cluster of one with some history, stopped."""
    node = Node(alone(directory, replica=replica))
    async with node:
        await node.wait_until_ready()
        await fill(node)
        if kills:
            die(node)


def contents(directory: Path) -> dict[Path, tuple[bytes, int]]:
    """All files, with their bytes and when they were changed."""
    return {
        path.relative_to(directory): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def open_to_others(directory: Path) -> list[Path]:
    """What other users of this machine may do anything with."""
    for _ in range(100):
        with suppress(
            FileNotFoundError
        ):  # a running node renames files: then all is looked at anew
            return [one for one in (directory, *directory.rglob("*")) if one.stat().st_mode & 0o077]
    raise AssertionError(f"{directory} is never the same while it is looked at")


def names(directory: Path) -> list[str]:
    """What a directory has in it."""
    return sorted(one.name for one in directory.iterdir())
