"""Copies of a node's state, as `Node.copy_state` gives them."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import ClusterError, Node, OperationError
from cluster.checkpoints import Checkpoints
from cluster.copies import CopyInUseError, CopyLateError, StateCopy, copied
from cluster.storage.errors import DiskError, StorageError
from cluster.storage.state_file import StateFile, receive
from state import StateMachine
from state.operations import New
from tests.cluster.test_node import alone, running, trio, until


async def content(copy: StateCopy) -> bytes:
    found = b""
    while piece := await copy.read(len(found)):
        found += piece
    return found


async def loaded(node: Node, path: Path) -> tuple[StateMachine, StateCopy]:
    """The state that is in a copy."""
    async with node.copy_state() as copy:
        data = await content(copy)
    assert len(data) == copy.size_bytes
    await asyncio.to_thread(path.write_bytes, data)
    machine, summary = receive(str(path), node.settings.cluster_id)
    assert (summary.applied_index, summary.applied_term) == (copy.applied_index, copy.applied_term)
    return machine, copy


def copies(directory: Path) -> list[str]:
    """Those of which something is left, with a name or without."""
    found = [str(one) for one in directory.iterdir()]
    for one in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(one.readlink()))
        except FileNotFoundError:
            continue
    return [one for one in found if f"{directory}/state.db.copy-" in one]


async def test_a_copy_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    async with running([alone(tmp_path / "data")]) as (node,):
        for number in range(1, 4):
            await node.submit(New(7, data=b"x" * 100_000, repeat_after_ms=0))
            machine, copy = await loaded(node, tmp_path / "copy")
            assert machine.session_count == number
            assert node.machine.applied_index >= copy.applied_index
            await until(lambda: copies(tmp_path / "data") == [])


async def test_a_follower_copies_what_another_node_acknowledged(tmp_path: Path) -> None:
    async with running(trio(tmp_path)) as nodes:
        for number in range(1, 7):
            await nodes[number % 3].submit(New(7, repeat_after_ms=0))
            machine, _ = await loaded(nodes[(number + 1) % 3], tmp_path / "copy")
            assert machine.session_count == number


async def test_what_is_applied_later_is_not_in_it(tmp_path: Path) -> None:
    async with running([alone(tmp_path / "data")]) as (node,):
        await node.submit(New(7, data=b"first", repeat_after_ms=0))
        async with node.copy_state() as copy:
            begin = await copy.read(0)
            for _ in range(100):
                await node.submit(New(7, data=b"later" * 1000, repeat_after_ms=0))
            await asyncio.sleep(0.5)  # checkpoints go on meanwhile
            data = await content(copy)
        assert data.startswith(begin)
        await asyncio.to_thread((tmp_path / "copy").write_bytes, data)
        machine, _ = receive(str(tmp_path / "copy"), node.settings.cluster_id)
        assert machine.session_count == 1


async def test_there_is_one_at_a_time(tmp_path: Path) -> None:
    async with running([alone(tmp_path)]) as (node,):
        async with node.copy_state():
            with pytest.raises(CopyInUseError):
                async with node.copy_state():
                    pass
        async with node.copy_state():
            pass


async def test_whoever_leaves_while_it_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = asyncio.Event()
    loop = asyncio.get_running_loop()
    real_copy = StateFile.copy

    def copy(file: StateFile, path: str) -> None:
        loop.call_soon_threadsafe(made.set)
        real_copy(file, path)

    monkeypatch.setattr(StateFile, "copy", copy)
    async with running([alone(tmp_path)]) as (node,):
        await node.submit(New(7, repeat_after_ms=0))

        async def ask() -> None:
            async with node.copy_state():
                raise AssertionError("it was cancelled before")

        for _ in range(20):
            made.clear()
            asking = asyncio.ensure_future(ask())
            await made.wait()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert asking.cancelled()
        await until(lambda: not copies(tmp_path))
        async with node.copy_state():
            pass


async def test_a_checkpoint_that_is_not_written_in_time_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "look", lambda _: None)
    async with running([alone(tmp_path)]) as (node,):
        await node.submit(New(7, repeat_after_ms=0))
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "begin", lambda _: None)
            with pytest.raises(CopyLateError, match="within 0 s"):
                async with node.copy_state(timeout_ms=30):
                    pass
        async with node.copy_state():  # without a look of its own it begins one
            pass


async def test_a_disk_that_refuses_is_an_error_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: StateFile, path: str) -> None:
        raise DiskError.of(path, "write", OSError(28, os.strerror(28)))

    async with running([alone(tmp_path)]) as (node,):
        with monkeypatch.context() as patch:
            patch.setattr(StateFile, "copy", refuse)
            with pytest.raises(StorageError):
                async with node.copy_state():
                    pass
        async with node.copy_state():
            pass


async def test_a_node_that_stops_ends_it(tmp_path: Path) -> None:
    async with running([alone(tmp_path)]) as (node,):
        async with node.copy_state() as copy:
            await node.stop()
            with pytest.raises(StorageError):
                await copy.read(0)
        with pytest.raises(OperationError, match="stop"):
            async with node.copy_state():
                pass


async def test_before_the_start_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ClusterError):
        async with Node(alone(tmp_path)).copy_state():
            pass


async def test_a_copy_that_comes_in_the_moment_of_leaving_is_released() -> None:
    released: list[int] = []
    copy = SimpleNamespace(index=1, term=1, size_bytes=1, release=lambda: released.append(1))
    replica = SimpleNamespace(
        machine=SimpleNamespace(applied_index=0), checkpoints=SimpleNamespace(index=0)
    )
    asked: list[Callable[[object], None]] = []
    store = SimpleNamespace(copy=asked.append)

    async def ask() -> None:
        async with copied(replica, store, timeout_s=1, piece_bytes=1):  # type: ignore[arg-type]
            raise AssertionError("it was cancelled before")

    asking = asyncio.ensure_future(ask())
    await until(lambda: bool(asked))
    asked[0](copy)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert asking.cancelled()
    assert released == [1]
