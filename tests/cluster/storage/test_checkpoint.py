"""The checkpoint's thread: in order, answered on the loop, and never in the loop's way."""

import asyncio
import errno
import gc
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cluster.checkpoints import Store
from cluster.storage.checkpoint import CheckpointArrival, CheckpointCopy, CheckpointThread
from cluster.storage.errors import (
    ClosedError,
    DamagedError,
    DiskError,
    StorageError,
    TooLargeError,
)
from cluster.storage.state_file import StateFile, Summary, file_digest, verify
from state import Item, StateMachine
from tests.cluster.storage.state_files import (
    CLUSTER,
    Log,
    checkpoint,
    created,
    listing,
    listing_of,
    opened,
)
from tests.state.workload import whole


async def ask(method: Callable[..., None], *arguments: Any) -> Any:
    """What is answered."""
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    method(*arguments, answer.set_result)
    return await asyncio.wait_for(answer, 30)


async def written(thread: CheckpointThread, machine: StateMachine, term: int = 1) -> None:
    capture = machine.capture_changes()
    assert await ask(thread.begin) is None
    for piece in capture.pieces(5_000):
        assert await ask(thread.put, piece) is None
    assert await ask(thread.commit, machine.applied_index, term) is None
    capture.commit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest_asyncio.fixture
async def thread(path: Path) -> AsyncIterator[CheckpointThread]:
    thread = CheckpointThread(created(path), asyncio.get_running_loop())
    yield thread
    await ask(thread.close)


def steps(count: int) -> Log:
    log = Log()
    for _ in range(count):
        log.step()
    return log


def as_store(thread: CheckpointThread) -> Store:
    """The type checker says whether it is one."""
    return thread


async def test_checkpoints_are_written_behind(thread: CheckpointThread, path: Path) -> None:
    log = steps(1)
    for _ in range(4):
        log.step()
        await written(thread, log.machine, term=4)
    assert await ask(thread.close) is None
    with closing(opened(path)) as file:
        assert (file.applied_index, file.applied_term) == (5, 4)
        assert listing_of(file) == listing(whole(log.machine))


async def test_answers_come_in_order_and_on_the_loop(thread: CheckpointThread) -> None:
    log = steps(1)
    said: list[tuple[str, object, int]] = []

    def say(word: str) -> Callable[[object], None]:
        return lambda answer: said.append((word, answer, threading.get_ident()))

    capture = log.machine.capture_changes()
    thread.begin(say("begin"))
    for piece in capture.pieces(5_000):
        thread.put(piece, say("put"))
    thread.commit(1, 1, say("commit"))
    thread.begin(say("begin"))
    assert said == []
    assert await ask(thread.rollback) is None
    words = [word for word, _, _ in said]
    assert words[0] == "begin"
    assert set(words[1:-2]) == {"put"}
    assert words[-2:] == ["commit", "begin"]
    assert {answer for _, answer, _ in said} == {None}
    assert {ident for _, _, ident in said} == {threading.get_ident()}


async def test_a_rollback_leaves_the_last_checkpoint(thread: CheckpointThread, path: Path) -> None:
    log = steps(2)
    await written(thread, log.machine)
    log.step()
    capture = log.machine.capture_changes()
    assert await ask(thread.begin) is None
    assert await ask(thread.put, capture.next_piece()) is None
    capture.abandon()
    assert await ask(thread.rollback) is None
    assert await ask(thread.copy_to, str(path) + ".bak") is None
    assert verify(str(path) + ".bak", CLUSTER).applied_index == 2
    await written(thread, log.machine)
    assert await ask(thread.copy_to, str(path) + ".bak") is None
    assert verify(str(path) + ".bak", CLUSTER).digest == log.machine.digest()


async def test_a_copy_waits_for_the_end_of_a_checkpoint(thread: CheckpointThread) -> None:
    log = steps(1)
    await written(thread, log.machine)
    log.step()
    capture = log.machine.capture_changes()
    copies: list[CheckpointCopy | StorageError] = []
    assert await ask(thread.begin) is None
    thread.copy(copies.append)
    for piece in capture.pieces():
        assert await ask(thread.put, piece) is None
    assert copies == []
    assert await ask(thread.commit, 2, 3) is None
    capture.commit()
    await ask(thread.rollback)  # of nothing: comes after it
    (copy,) = copies
    assert isinstance(copy, CheckpointCopy)
    assert (copy.index, copy.term) == (2, 3)
    copy.release()


async def test_misuse_is_answered_and_does_not_end_the_thread(
    thread: CheckpointThread, caplog: pytest.LogCaptureFixture
) -> None:
    for wrong in (
        (thread.put, [Item(99, 0, ())]),
        (thread.commit, 1, 1),
        (thread.copy_to, "/nowhere/copy"),
    ):
        error = await ask(*wrong)
        assert isinstance(error, StorageError)
        assert isinstance(error.__cause__, RuntimeError)
    assert len(caplog.records) == 3
    await written(thread, steps(2).machine)


async def test_an_error_of_the_disk_is_answered(thread: CheckpointThread) -> None:
    await written(thread, steps(1).machine)
    assert isinstance(await ask(thread.copy_to, "/nowhere/copy"), DiskError)
    assert isinstance(await ask(thread.receive_verify, "/nowhere/copy"), DiskError)
    assert isinstance(await ask(thread.install, "/nowhere/copy"), DiskError)
    await written(thread, steps(2).machine)


@pytest.mark.parametrize("step", ["digest", "open", "fstat", "unlink"])
async def test_a_copy_that_fails_half_way_leaves_nothing(
    thread: CheckpointThread, path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await written(thread, steps(1).machine)

    def fail(*_: object, **__: object) -> None:
        undone.undo()
        raise OSError(errno.EIO, "Input/output error")

    before = descriptors()
    real_copy = StateFile.copy

    def copy(self: StateFile, to: str) -> None:
        real_copy(self, to)
        owner: object = {"digest": Path, "unlink": Path}.get(step, os)
        undone.setattr(owner, {"digest": "open"}.get(step, step), fail)

    with pytest.MonkeyPatch.context() as undone:
        monkeypatch.setattr(StateFile, "copy", copy)
        error = await ask(thread.copy)
    assert isinstance(error, DiskError)
    assert error.errno == errno.EIO
    assert descriptors() == before
    assert not list(path.parent.glob("*.copy-*"))


async def test_a_copy_that_nobody_releases_goes_with_the_thread(
    thread: CheckpointThread,
) -> None:
    await written(thread, steps(1).machine)
    before = descriptors()
    copies = [await ask(thread.copy) for _ in range(3)]
    assert len(descriptors() - before) == 3
    copies[0].release()
    assert await ask(thread.close) is None
    assert not descriptors() & {f"{thread.path}.copy-{number} (deleted)" for number in (1, 2, 3)}
    copies[1].release()  # comes too late
    assert isinstance(await ask(copies[2].read, 0, 10), ClosedError)


def descriptors() -> set[str]:
    """Which files this process has open."""
    found = set()
    for one in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(str(one.readlink()))
    return found


def size_of(path: str) -> int:
    return Path(path).stat().st_size


async def all_of(answers: list[object], count: int) -> None:
    """Wait until so many were answered."""
    async with asyncio.timeout(30):
        while len(answers) < count:  # noqa: ASYNC110 - whatever answers, and it is not for long
            await asyncio.sleep(0.001)


# From node to node


async def received(copy: CheckpointCopy, arrival: CheckpointArrival, size: int = 10_000) -> None:
    """Carry a copy over."""
    for offset in range(0, copy.size_bytes, size):
        data = await ask(copy.read, offset, min(size, copy.size_bytes - offset))
        assert isinstance(data, bytes)
        assert await ask(arrival.write, offset, data) is None


async def test_a_follower_gets_a_checkpoint_and_goes_on(
    thread: CheckpointThread, tmp_path: Path
) -> None:
    log = steps(5)
    await written(thread, log.machine, term=6)
    copy = await ask(thread.copy)
    log.step()
    await written(thread, log.machine)  # the copy is of the moment when it was made
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "state.db"
    follower = CheckpointThread(created(other), asyncio.get_running_loop())
    arrival = follower.arrive(copy.size_bytes)
    await received(copy, arrival)
    machine, index, term = await ask(arrival.verify, copy.digest)
    assert (index, term, machine.applied_index) == (5, 6, 5)
    assert machine.digest() == steps(5).machine.digest()
    assert await ask(arrival.install) is None
    arrival.discard()
    copy.release()
    Log(machine).step()
    await written(follower, machine)
    assert await ask(follower.close) is None
    with closing(opened(other)) as file:
        assert listing_of(file) == listing(whole(log.machine))
    assert {one.name for one in other.parent.iterdir()} <= {"state.db", "state.db-journal"}
    assert isinstance(await ask(copy.read, 0, 1), ClosedError)


async def test_what_was_damaged_on_the_way_is_not_loaded(
    thread: CheckpointThread, path: Path
) -> None:
    await written(thread, steps(3).machine)
    copy = await ask(thread.copy)
    arrival = thread.arrive(copy.size_bytes)
    await received(copy, arrival)
    assert await ask(arrival.write, 5_000, b"?") is None
    assert isinstance(await ask(arrival.verify, copy.digest), DamagedError)
    too_much = await ask(arrival.write, copy.size_bytes - 1, b"??")
    assert isinstance(too_much, TooLargeError)
    assert isinstance(await ask(arrival.write, -1, b"?"), TooLargeError)
    assert isinstance(await ask(copy.read, copy.size_bytes - 1, 2), DamagedError)
    arrival.discard()
    assert isinstance(await ask(arrival.write, 0, b"?"), ClosedError)
    assert not list(path.parent.glob("state.db.*"))
    copy.release()


async def test_another_clusters_copy_is_not_loaded(
    thread: CheckpointThread, tmp_path: Path
) -> None:
    with closing(StateFile.create(str(tmp_path / "theirs"), "cluster-2")) as file:
        checkpoint(file, steps(1).machine)
    error = await ask(thread.receive_verify, str(tmp_path / "theirs"))
    assert type(error).__name__ == "WrongIdentityError"


async def test_verifying_answers_the_state_and_what_it_is(
    thread: CheckpointThread, path: Path
) -> None:
    log = steps(3)
    await written(thread, log.machine, term=2)
    copy = str(path) + ".bak"
    assert await ask(thread.copy_to, copy) is None
    collecting = gc.isenabled()
    machine, summary = await ask(thread.receive_verify, copy)
    assert gc.isenabled() == collecting
    assert listing(whole(machine)) == listing(whole(log.machine))
    size_bytes = size_of(copy)
    count = machine.session_count
    assert summary == Summary(3, 2, log.machine.digest(), count, size_bytes)
    assert len(file_digest(copy)) == 32


async def test_copies_of_a_killed_process_are_removed(path: Path) -> None:
    for name in ("state.db.copy-1", "state.db.copy-2.part", "state.db.arrival-7", "state.db.bak"):
        path.with_name(name).write_bytes(b"old")
    thread = CheckpointThread(created(path), asyncio.get_running_loop())
    assert await ask(thread.rollback) is None
    assert {one.name for one in path.parent.glob("state.db.[abc]*")} == {"state.db.bak"}
    assert await ask(thread.close) is None


# The end


async def test_what_comes_after_the_end_is_refused(thread: CheckpointThread, path: Path) -> None:
    await written(thread, steps(1).machine)
    answers: list[object] = []
    thread.begin(answers.append)
    thread.copy(answers.append)  # waits for the end of the checkpoint
    thread.close(answers.append)
    thread.begin(answers.append)
    await all_of(answers, 4)
    begun, copied, closed, refused = answers
    assert begun is None
    assert isinstance(copied, ClosedError)
    assert closed is None
    assert isinstance(refused, ClosedError)
    assert isinstance(await ask(thread.put, []), ClosedError)
    opened(path).close()


async def test_closing_does_not_wait_for_loading(
    thread: CheckpointThread, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.storage.state_reading.PIECE_ITEMS", 1)
    await written(thread, steps(5).machine)
    assert await ask(thread.copy_to, str(path) + ".bak") is None
    answers: list[object] = []
    thread.receive_verify(str(path) + ".bak", answers.append)
    thread.close(answers.append)
    await all_of(answers, 2)
    assert isinstance(answers[0], ClosedError)
    assert answers[1] is None


def test_a_loop_that_is_gone_is_no_end_of_the_world(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    thread = CheckpointThread(created(path), loop)
    with caplog.at_level(logging.WARNING):
        thread.begin(lambda _: None)
        thread.close(lambda _: None)
        for one in threading.enumerate():
            if one.name == "checkpoint":
                one.join(10)
    assert caplog.text.count("nobody was there to hear") == 2


async def test_the_loop_goes_on_while_a_state_is_loaded(
    thread: CheckpointThread, path: Path
) -> None:
    await written(thread, steps(150).machine)
    assert await ask(thread.copy_to, str(path) + ".bak") is None
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    await ask(thread.receive_verify, str(path) + ".bak")
    counting.cancel()
    with suppress(asyncio.CancelledError):
        await counting
    assert turns > 2  # one before it and one after it say nothing
