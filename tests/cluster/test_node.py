"""Nodes on real loops, real disks and a real network."""

import asyncio
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import (
    Address,
    ClusterError,
    MisalignedError,
    Node,
    NodeSettings,
    OperationError,
    Security,
    SettingsError,
)
from cluster.checkpoints import CheckpointSettings
from cluster.consensus.member import ConsensusSettings
from cluster.network.transport import Transport
from cluster.replica import ReplicaSettings
from cluster.storage.disk import OsDirectory, OsFile
from cluster.storage.errors import DamagedError, DiskFullError, LockedError, WrongIdentityError
from cluster.storage.journal_files import JournalSettings
from state import Acquired, Applied, Created, Phase, StateMachine
from state.limits import LIMIT_RANGES
from state.operations import Acquire, Append, New, Remove, SetLimits, SetPolicy, Store, Txn
from tests.cluster.storage.test_journal import slow_upkeep

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
SECRET = Security(secret=b"a secret of the tests")


def alone(directory: Path) -> NodeSettings:
    return NodeSettings(directory, journal=JOURNAL, replica=FAST, tunes_collector=False)


def trio(directory: Path) -> list[NodeSettings]:
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    peers = {f"node-{number}": Address(*one.getsockname()) for number, one in enumerate(sockets, 1)}
    for one in sockets:
        one.close()
    return [
        NodeSettings(
            directory / name,
            node_id=name,
            bind=address,
            peers=peers,
            security=SECRET,
            journal=JOURNAL,
            replica=FAST,
            stop_timeout_ms=3_000,
            tunes_collector=False,
        )
        for name, address in peers.items()
    ]


@asynccontextmanager
async def running(settings: list[NodeSettings]) -> AsyncIterator[list[Node]]:
    nodes = [Node(one) for one in settings]
    try:
        await asyncio.gather(*(node.start() for node in nodes))
        await asyncio.gather(*(node.wait_until_ready() for node in nodes))
        yield nodes
    finally:
        await asyncio.gather(*(node.stop() for node in nodes))


async def until(holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - of a node in another task
            await asyncio.sleep(0.01)


# A cluster of one


async def test_a_node_alone_is_a_durable_cluster(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        created = await node.submit(New(7, b"order-1", b"ship it"))
        assert isinstance(created, Created)
        await node.submit(Append(created.session_id, created.epoch, b"!"))
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        session = node.machine.session((7, b"order-1"))
        assert session is not None
        assert session.data == b"ship it!"


async def test_what_was_answered_is_there_without_an_orderly_stop(tmp_path: Path) -> None:
    settings = alone(tmp_path)
    node = Node(settings)
    await node.start()
    await node.submit(New(7, b"a"))
    # As a kill leaves it: no last checkpoint, no seal. The lock goes with the descriptors.
    node.replica.stop()
    await node.stop()
    assert not (tmp_path / "state.db").exists()
    async with Node(settings) as again:
        await again.wait_until_ready()
        assert again.machine.session((7, b"a")) is not None


async def test_a_checkpoint_is_written_and_the_log_is_cut(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        for number in range(200):
            await node.submit(New(7, b"%d" % number, bytes(400)))
        await until(lambda: node.status().checkpoint_index >= 200)
        await until(lambda: node.replica.member.log.base_index >= 200)
        assert node.status().sessions == 200
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        assert node.status().sessions == 200


async def test_an_operation_that_is_refused_raises(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        with pytest.raises(OperationError, match="session_not_found") as caught:
            await node.submit(Remove(99, 1))
        assert caught.value.failure.outcome == "not_applied"


async def test_a_session_whose_consumer_is_silent_comes_back(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.submit(SetPolicy(7, (("lease_ms", 200), ("repeat_ms", 100))))
        created = await node.submit(New(7, None, b"x", consumer=node.consumer(b"worker")))
        assert isinstance(created, Created)
        found: object = ()
        async with asyncio.timeout(15):
            while not found:
                found = await node.submit(Acquire((7,), consumer=node.consumer(b"other")))
                await asyncio.sleep(0.02)
        assert found == (Acquired(created.session_id, 2, found[0].revision),)  # type: ignore[index]


async def test_what_consumers_of_an_earlier_life_held_is_stored_at_once(tmp_path: Path) -> None:
    settings = alone(tmp_path)
    async with Node(settings) as node:
        await node.submit(SetPolicy(7, (("lease_ms", 3_600_000),)))
        created = await node.submit(New(7, None, b"x", consumer=node.consumer(b"worker")))
        assert isinstance(created, Created)
    async with Node(settings) as node:
        await node.wait_until_ready()
        session = node.machine.session(created.session_id)
        assert session is not None
        await until(lambda: session.phase is not Phase.ACTIVE)
        assert session.last_reason == "its node started again"


async def test_a_transaction_is_one_step(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        with pytest.raises(OperationError, match="txn_aborted"):
            await node.submit(Txn((New(7, b"a"), Remove(99, 1))))
        assert node.machine.session((7, b"a")) is None


async def test_a_stopped_node_says_so(tmp_path: Path) -> None:
    node = Node(alone(tmp_path))
    async with node:
        pass
    with pytest.raises(OperationError, match="stopping"):
        await node.submit(New(7))


async def test_two_processes_cannot_have_one_disk(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)):
        with pytest.raises(LockedError):
            await Node(alone(tmp_path)).start()


async def test_another_nodes_disk_is_refused(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.submit(New(7))
    with pytest.raises(WrongIdentityError):
        await Node(NodeSettings(tmp_path, node_id="node-9", journal=JOURNAL)).start()


async def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        for number in range(100):
            await node.submit(New(7, b"%d" % number, bytes(400)))
        await until(lambda: node.replica.member.log.base_index > 50)
    (tmp_path / "state.db").unlink()
    with pytest.raises(MisalignedError, match="is missing"):
        await Node(alone(tmp_path)).start()


async def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.submit(New(7))
    path = tmp_path / "state.db"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DamagedError, match=r"state\.db"):
        await Node(alone(tmp_path)).start()


def test_two_nodes_are_refused(tmp_path: Path) -> None:
    peers = {"a": Address("127.0.0.1", 1), "b": Address("127.0.0.1", 2)}
    with pytest.raises(SettingsError, match="Give three members, or none"):
        NodeSettings(tmp_path, node_id="a", peers=peers)


async def test_nothing_is_known_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="not started"):
        Node(alone(tmp_path)).status()


async def test_a_node_alone_cannot_hand_over_and_says_so_at_once(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        async with asyncio.timeout(1):
            assert not await node.transfer()
        await node.submit(New(7))


async def test_a_node_that_is_stopped_while_it_starts_is_stopped(tmp_path: Path) -> None:
    node = Node(alone(tmp_path))
    starting = asyncio.ensure_future(node.start())
    await asyncio.sleep(0)
    await node.stop()
    await starting
    assert node.replica.is_stopped
    async with Node(alone(tmp_path)) as again:
        await again.wait_until_ready()


async def test_a_state_that_could_not_be_applied_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.submit(New(7, b"first"))
        apply = StateMachine.apply

        def fail(self: StateMachine, index: int, batch: bytes) -> Applied:
            apply(self, index, batch)
            raise RuntimeError("a defect, half way")

        with monkeypatch.context() as patched:
            patched.setattr(StateMachine, "apply", fail)
            with pytest.raises(OperationError, match="stopping"):
                await node.submit(New(7, b"second"))
        assert isinstance(await node.failure(), RuntimeError)
        assert not node.is_leader
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        assert node.machine.session((7, b"first")) is not None
        assert node.machine.session((7, b"second")) is not None, "the journal has it"


async def test_a_disk_that_hangs_does_not_keep_a_node_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(alone(tmp_path), stop_timeout_ms=300)
    node = Node(settings)
    await node.start()
    await node.wait_until_ready()
    sync, goes_on = OsFile.sync, threading.Event()

    def hang(self: OsFile) -> None:
        assert goes_on.wait(30)
        sync(self)

    monkeypatch.setattr(OsFile, "sync", hang)
    try:
        waiting = asyncio.ensure_future(node.submit(New(7, b"a")))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await node.stop()
        with pytest.raises(OperationError, match="stopping") as caught:
            await waiting
        assert caught.value.failure.outcome == "unknown"
        with pytest.raises(LockedError):  # the thread may write yet
            await Node(settings).start()
    finally:
        goes_on.set()
    await node.journal.close()


async def test_connections_that_hang_take_no_time_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings, *_) = trio(tmp_path)
    settings = replace(settings, stop_timeout_ms=500)
    node = Node(settings)
    await node.start()

    async def hang(_: Transport) -> None:
        await asyncio.sleep(5)

    with monkeypatch.context() as patched:
        patched.setattr(Transport, "stop", hang)
        async with asyncio.timeout(2):
            await node.stop()
    OsDirectory(str(settings.data_directory / "journal")).close()  # it is not locked
    assert node._transport is not None  # noqa: SLF001
    await node._transport.stop()  # noqa: SLF001


async def test_a_spare_segment_in_the_making_does_not_keep_a_node_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_upkeep(monkeypatch)
    settings = replace(alone(tmp_path), journal=JournalSettings(segment_bytes=1 << 20))
    node = Node(settings)
    await node.start()
    await node.wait_until_ready()
    async with asyncio.timeout(5):
        await node.stop()
    OsDirectory(str(tmp_path / "journal")).close()  # it is not locked


async def test_the_names_of_what_a_node_makes_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[Path, set[str]] = {}  # what was in each directory when it was synced last
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            synced[path] = {one.name for one in path.iterdir()}
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    async with Node(alone(tmp_path / "a" / "b")) as node:
        await node.wait_until_ready()
        assert synced[tmp_path] == {"a"}
        assert synced[tmp_path / "a"] == {"b"}
        assert {"journal", "state.db.new"} <= synced[tmp_path / "a" / "b"]
        assert "segment-0000000000000001" in synced[tmp_path / "a" / "b" / "journal"]
    assert "state.db" in synced[tmp_path / "a" / "b"]


async def test_a_disk_that_is_too_full_for_a_spare_segment_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node(alone(tmp_path)) as node:
        assert node.status().spare_segment_error is None
        create = OsDirectory.create

        def refuse(
            self: OsDirectory, name: str, size_bytes: int, *, gently: bool = False
        ) -> OsFile:
            if gently:
                raise DiskFullError(name, "create", OSError(errno.ENOSPC, "No space left"))
            return create(self, name, size_bytes)

        monkeypatch.setattr(OsDirectory, "create", refuse)
        for number in range(20):
            await node.submit(New(7, b"%d" % number, bytes(10_000)))
        await until(lambda: "No space left" in str(node.status().spare_segment_error))


# Three nodes


async def test_any_node_takes_operations_and_all_come_to_the_same_state(tmp_path: Path) -> None:
    async with running(trio(tmp_path)) as nodes:
        await asyncio.gather(
            *(nodes[number % 3].submit(New(7, b"%d" % number, b"data")) for number in range(300))
        )
        for node in nodes:
            await node.read()
            assert node.machine.session_count == 300
        index = max(node.replica.applied_index for node in nodes)
        await until(lambda: all(node.replica.applied_index >= index for node in nodes))
        assert len({node.machine.digest() for node in nodes}) == 1


async def test_a_read_sees_what_another_node_acknowledged(tmp_path: Path) -> None:
    async with running(trio(tmp_path)) as nodes:
        for number in range(30):
            key = b"%d" % number
            await nodes[number % 3].submit(New(7, key))
            reader = nodes[(number + 1) % 3]
            await reader.read()
            assert reader.machine.session((7, key)) is not None


async def test_leadership_moves_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    async with running(trio(tmp_path)) as nodes:
        taken: list[bytes] = []

        async def work(node: Node, name: str) -> None:
            for number in range(60):
                key = f"{name}/{number}".encode()
                await node.submit(New(7, key), timeout_ms=20_000)
                taken.append(key)

        load = asyncio.gather(*(work(node, f"{id(node)}") for node in nodes))
        moved = 0
        for _ in range(5):
            leader = next((node for node in nodes if node.is_leader), None)
            if leader is not None:
                moved += await leader.transfer()
            await asyncio.sleep(0.05)
        await load
        assert moved
        await nodes[0].read()
        assert all(nodes[0].machine.session((7, key)) is not None for key in taken)


async def test_the_last_to_stop_waits_for_nobody(tmp_path: Path) -> None:
    settings = [replace(one, stop_timeout_ms=60_000) for one in trio(tmp_path)]
    async with running(settings) as (last, *others):
        await asyncio.gather(*(one.stop() for one in others))
        await until(lambda: not last.replica.member.replication.reaches_majority)
        waiting = asyncio.ensure_future(last.submit(New(7), timeout_ms=60_000))
        await asyncio.sleep(0)
        async with asyncio.timeout(15):
            await last.stop()
        with pytest.raises(OperationError):
            await waiting


async def test_a_node_that_was_away_catches_up(tmp_path: Path) -> None:
    settings = trio(tmp_path)
    async with running(settings) as nodes:
        away = next(node for node in nodes if not node.is_leader)
        others = [node for node in nodes if node is not away]
        await away.stop()
        for number in range(300):
            await others[number % 2].submit(New(7, b"%d" % number, bytes(300)))
        await until(lambda: all(one.replica.member.log.base_index > 250 for one in others))
        async with Node(away.settings) as back:
            await back.wait_until_ready()
            assert back.machine.session_count == 300
            assert back.replica.snapshots.installs == 1


async def test_a_node_that_was_away_for_a_moment_needs_no_snapshot(tmp_path: Path) -> None:
    async with running(trio(tmp_path)) as nodes:
        away = next(node for node in nodes if not node.is_leader)
        others = [node for node in nodes if node is not away]
        await away.stop()
        for number in range(20):
            await others[number % 2].submit(New(7, b"%d" % number, bytes(100)))
        index = others[0].replica.applied_index
        await until(lambda: all(one.status().checkpoint_index >= index for one in others))
        async with Node(away.settings) as back:
            await back.wait_until_ready()
            assert back.machine.session_count == 20
            assert back.replica.snapshots.installs == 0
            leader = next(node for node in others if node.is_leader)
            await until(lambda: leader.replica.member.log.base_index >= index)


async def test_the_largest_batch_that_may_be_allowed_is_done(tmp_path: Path) -> None:
    settings = [
        replace(one, journal=JournalSettings(), replica=ReplicaSettings()) for one in trio(tmp_path)
    ]
    async with running(settings) as nodes:
        names = ("batch_bytes", "chunk_bytes")
        largest = SetLimits(tuple((name, LIMIT_RANGES[name].maximum) for name in names))
        await nodes[0].submit(largest)
        follower = next(node for node in nodes if not node.is_leader)
        await follower.read()
        # All of one turn of the loop are a batch.
        size_bytes = LIMIT_RANGES["batch_bytes"].maximum // 4 - 1024
        await asyncio.gather(
            *(follower.submit(New(7, b"%d" % number, bytes(size_bytes))) for number in range(4))
        )
        for node in nodes:
            await node.read()
            assert node.status().sessions == 4


async def test_a_minority_does_nothing_and_says_that_it_is_unknown_or_not_done(
    tmp_path: Path,
) -> None:
    async with running(trio(tmp_path)) as nodes:
        last = nodes[0]
        for node in nodes[1:]:
            await node.stop()
        with pytest.raises(OperationError, match="timed_out") as caught:
            await last.submit(Store(1, None), timeout_ms=500)
        assert caught.value.failure.retryable
