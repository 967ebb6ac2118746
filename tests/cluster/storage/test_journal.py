"""The journal's threads, on a real disk."""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from cluster.storage import disk, journal
from cluster.storage.disk import Buffer, OsDirectory, OsFile
from cluster.storage.errors import (
    ClosedError,
    DiskError,
    DiskFullError,
    RefusedError,
    StorageError,
    TooLargeError,
)
from cluster.storage.journal import FSYNC_BUCKETS_S, Journal, JournalFiles, JournalSettings, Then
from cluster.storage.records import Base, Commit, Entry, Record, Truncate, Vote
from tests.cluster.storage.journal_model import IDENTITY, Model

SETTINGS = JournalSettings(
    segment_bytes=1 << 16, frame_max_bytes=1 << 20, spares_max=1, recycled_max=1
)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread, which no event of asyncio's tells of."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Gate:
    """Holds up every sync, and every making of a segment, while it is closed."""

    def __init__(self) -> None:
        self.syncs = threading.Event()
        self.creates = threading.Event()
        self.fault: OSError | None = None  # of syncs
        self.create_fault: OSError | None = None
        self.sync_count = 0
        self.create_count = 0
        self.open()

    def open(self) -> None:
        self.syncs.set()
        self.creates.set()

    def sync(self, path: str) -> None:
        self.sync_count += 1
        assert self.syncs.wait(10)
        if self.fault is not None:
            raise DiskError.of(path, "sync", self.fault)


class GatedFile(OsFile):
    """A file whose sync waits for the gate."""

    gate: Gate

    def sync(self) -> None:
        self.gate.sync(self.path)
        super().sync()


class GatedDirectory(OsDirectory):
    """A directory full of such files."""

    def __init__(self, path: str, gate: Gate) -> None:
        super().__init__(path)
        self.gate = gate

    def open(self, name: str) -> OsFile:
        return self._gated(super().open(name))

    def create(self, name: str, size_bytes: int, *, gently: bool = False) -> OsFile:
        self.gate.create_count += 1
        assert self.gate.creates.wait(10)
        if self.gate.create_fault is not None:
            raise DiskError.of(f"{self.path}/{name}", "create", self.gate.create_fault)
        return self._gated(super().create(name, size_bytes, gently=gently))

    def _gated(self, file: OsFile) -> OsFile:
        gated = GatedFile(file.path, file._descriptor, file.size_bytes)  # noqa: SLF001 - a test's file
        gated.gate = self.gate
        return gated


class Answers:
    """Collects what writes were answered."""

    def __init__(self) -> None:
        self.got: list[tuple[int, StorageError | None]] = []
        self.turns: list[int] = []  # of the event loop, one number for each answer
        self._turn = 0

    def then(self, number: int) -> Then:
        return lambda error: self._note(number, error)

    def _note(self, number: int, error: StorageError | None) -> None:
        if not self.turns or self._turn == 0:
            asyncio.get_running_loop().call_soon(self._end_turn)
            self._turn = 1 + max(self.turns, default=0)
        self.got.append((number, error))
        self.turns.append(self._turn)

    def _end_turn(self) -> None:
        self._turn = 0

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.got) >= count)


class Place:
    """A journal on a real disk, and all that holds it up."""

    def __init__(self, path: Path, settings: JournalSettings = SETTINGS) -> None:
        self.gate = Gate()
        self.answers = Answers()
        self.directory = GatedDirectory(str(path), self.gate)
        self.files, _ = JournalFiles.open(self.directory, IDENTITY, settings)
        self.journal = Journal(self.files, end_gentle_work=self.directory.end_gentle_work)
        self._index = 1

    def write(self, number: int, size_bytes: int = 10) -> None:
        self._index += 1
        self.journal.write([Entry(self._index, 1, bytes(size_bytes))], self.answers.then(number))

    async def hold_a_sync(self) -> None:
        """Let the thread be inside a sync, so that what is written now has to wait."""
        self.gate.syncs.clear()
        count = self.gate.sync_count
        self.write(-1)
        await until(lambda: self.gate.sync_count > count)

    def recovered(self) -> list[int]:
        """The sizes of all commands on disk, when the journal is closed."""
        files, recovered = JournalFiles.open(self.directory, IDENTITY, SETTINGS)
        files.close()
        return [len(command) for command, _, _ in recovered.entries]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    yield place
    place.gate.open()
    place.gate.fault = None
    with contextlib.suppress(StorageError):  # a test that broke it has seen this error
        await place.journal.close()
    place.directory.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("journal")]


async def test_what_was_answered_is_on_disk(place: Place) -> None:
    for number in range(50):
        place.write(number, size_bytes=number)
    await place.answers.wait(50)
    assert place.answers.got == [(number, None) for number in range(50)]
    await place.journal.close()
    assert place.recovered() == list(range(50))


async def test_nothing_is_answered_before_it_is_durable(place: Place) -> None:
    await place.hold_a_sync()
    await asyncio.sleep(0.02)
    assert place.answers.got == []
    place.gate.open()
    await place.answers.wait(1)


async def test_what_arrives_during_a_sync_joins_one_frame(place: Place) -> None:
    await place.hold_a_sync()
    for number in range(100):
        place.write(number)
    assert place.journal.waiting == 101
    place.gate.open()
    await place.answers.wait(101)
    assert [number for number, _ in place.answers.got] == [-1, *range(100)]
    assert place.journal.counters.frames == 2
    assert place.journal.counters.fsyncs == 2
    assert place.journal.waiting == 0
    # All of a frame are told in one turn of the loop.
    assert len(set(place.answers.turns[1:])) == 1


async def test_a_join_is_bounded(place: Place) -> None:
    await place.hold_a_sync()
    for number in range(6):
        place.write(number, size_bytes=400_000)  # two of them fit into a frame
    place.gate.open()
    await place.answers.wait(7)
    assert place.journal.counters.frames == 1 + 3
    assert [number for number, _ in place.answers.got] == [-1, *range(6)]


async def test_a_write_that_is_too_large_for_a_frame_takes_several(place: Place) -> None:
    await place.hold_a_sync()
    place.write(1)
    # Two of these fit into a frame.
    records = [Entry(index, 1, bytes(400_000)) for index in range(4, 9)]
    place.journal.write([*records, Commit(8)], place.answers.then(2))
    place.journal.write([Entry(9, 1, bytes(10))], place.answers.then(3))
    place.gate.syncs.set()
    await place.answers.wait(4)
    assert place.answers.got == [(-1, None), (1, None), (2, None), (3, None)]
    assert place.journal.counters.frames == place.journal.counters.fsyncs == 1 + 1 + 3 + 1
    await place.journal.close()
    assert place.recovered() == [10, 10, *[400_000] * 5, 10]


async def test_a_large_write_is_answered_when_all_of_it_is_durable(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [Entry(index, 1, bytes(700_000)) for index in range(2, 5)]
    steps: list[int] = []

    def sync(_: str) -> None:
        steps.append(len(place.answers.got))
        if len(steps) == 6:  # a segment's begin and a frame, for each of them
            raise DiskError.of("/", "sync", OSError(errno.EIO, "Input/output error"))

    await until(lambda: not place.files.wants_reclaim)
    monkeypatch.setattr(place.gate, "sync", sync)
    place.journal.write(records, place.answers.then(1))
    await place.answers.wait(1)
    assert steps == [0] * 6
    assert isinstance(place.answers.got[0][1], DiskError)


async def test_a_kill_between_the_frames_of_a_write_leaves_its_beginning(
    place: Place,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before: list[Record] = [Entry(index, 1, b"old") for index in range(2, 6)]
    place.journal.write(before, place.answers.then(1))
    await place.answers.wait(1)
    # Another leader had other entries; all of them became committed, and are in a checkpoint.
    records: list[Record] = [Vote(2, "viola"), Truncate(4)]
    records += [Entry(index, 2, bytes(500_000)) for index in range(4, 10)]
    records += [Commit(9), Base(8, 2)]
    left: list[Path] = []

    def sync(_: str) -> None:
        left.append(tmp_path_factory.mktemp("left"))
        shutil.copytree(tmp_path, left[-1], dirs_exist_ok=True)

    await until(lambda: not place.files.wants_reclaim)
    monkeypatch.setattr(place.gate, "sync", sync)
    place.journal.write(records, place.answers.then(2))
    await place.answers.wait(2)
    await place.journal.close()
    begun = Model().after(before)
    beginnings = [begun.after(records[:count]).recovered() for count in range(len(records) + 1)]
    counts = []
    for path in left:
        with OsDirectory(str(path)) as directory:
            files, recovered = JournalFiles.open(directory, IDENTITY, SETTINGS)
            files.close()
            counts.append(beginnings.index(recovered))
    # A segment is begun, then two large entries fit into each frame.
    assert list(dict.fromkeys(counts)) == [0, 4, 6, len(records)]


async def test_a_failed_sync_is_never_tried_again(place: Place) -> None:
    await place.hold_a_sync()
    place.write(1)
    place.gate.fault = OSError(errno.EIO, "Input/output error")
    place.gate.open()
    await place.answers.wait(2)
    count = place.gate.sync_count
    place.gate.fault = None
    place.write(2)
    await place.answers.wait(3)
    assert [number for number, _ in place.answers.got] == [-1, 1, 2]
    for _, error in place.answers.got:
        assert isinstance(error, DiskError)
        assert error.errno == errno.EIO
    assert place.gate.sync_count == count
    with pytest.raises(DiskError):
        await place.journal.flush()
    with pytest.raises(DiskError):
        await place.journal.close()
    assert place.gate.sync_count == count


async def test_nonsense_and_too_much_break_it_too(tmp_path: Path) -> None:
    for number, (records, kind) in enumerate(
        [
            ([Entry(77, 1, b"")], RefusedError),
            ([Entry(2, 1, bytes(2 << 20))], TooLargeError),
            ([object()], RefusedError),
        ]
    ):
        path = tmp_path / str(number)
        path.mkdir()
        place = Place(path)
        place.journal.write(records, place.answers.then(0))  # type: ignore[arg-type]
        place.write(1)
        await place.answers.wait(2)
        for _, error in place.answers.got:
            assert isinstance(error, kind)
        with pytest.raises(kind):
            await place.journal.close()
        place.directory.close()


async def test_an_error_in_the_thread_itself_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(place.files, "sync", lambda: fail(None))
    place.write(1)
    await place.answers.wait(1)
    error = place.answers.got[0][1]
    assert isinstance(error, StorageError)
    assert isinstance(error.__cause__, ZeroDivisionError)
    monkeypatch.undo()
    place.write(2)
    await place.answers.wait(2)
    assert place.answers.got[1] == (2, error)


async def test_a_callback_that_raises_keeps_no_other_from_being_called(place: Place) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    def fail(_: StorageError | None) -> None:
        raise ZeroDivisionError

    await place.hold_a_sync()
    place.journal.write([Commit(1)], fail)
    place.write(1)
    place.gate.open()
    await place.answers.wait(2)
    assert place.answers.got == [(-1, None), (1, None)]
    assert len(told) == 1


async def test_flush(place: Place) -> None:
    await place.journal.flush()
    assert place.journal.counters.frames == 0
    place.write(1)
    await place.journal.flush()
    assert place.answers.got == [(1, None)]
    assert place.journal.counters.frames == 1
    abandoned = asyncio.ensure_future(place.journal.flush())
    await asyncio.sleep(0)
    abandoned.cancel()
    await place.journal.flush()


async def test_close_writes_what_waits(place: Place) -> None:
    await place.hold_a_sync()
    for number in range(3):
        place.write(number)
    closing = asyncio.ensure_future(place.journal.close())
    await asyncio.sleep(0)
    place.write(3)  # too late
    await asyncio.sleep(0)
    assert isinstance(place.answers.got[0][1], ClosedError)
    place.gate.open()
    await closing
    await place.journal.close()
    assert place.answers.got[1:] == [(-1, None), (0, None), (1, None), (2, None)]
    with pytest.raises(ClosedError):
        await place.journal.flush()
    assert place.recovered() == [10] * 4


async def test_a_stall_is_seen(place: Place) -> None:
    assert place.journal.stalled_s == 0
    await place.hold_a_sync()
    await asyncio.sleep(0.05)
    place.write(1)
    assert place.journal.stalled_s >= 0.05
    place.gate.open()
    await place.answers.wait(2)
    assert place.journal.stalled_s == 0


async def test_counters(place: Place) -> None:
    for number in range(5):
        place.write(number)
        await place.journal.flush()
    counters = place.journal.counters
    assert counters.writes == 10
    assert counters.frames == counters.fsyncs == 5
    assert counters.bytes == 3072 + 2560 + 2048 + 1536 + 1024  # to the page's end each time
    assert sum(counters.fsync_buckets) == 5
    assert len(counters.fsync_buckets) == len(FSYNC_BUCKETS_S) + 1
    assert 0 < counters.fsync_s < 5


async def test_segments_are_made_ready_while_writes_go_on(place: Place) -> None:
    await until(lambda: not place.files.wants_reclaim)
    place.gate.creates.clear()
    for number in range(6):  # from the first segment into the spare one
        place.write(number, size_bytes=15_000)
        await place.journal.flush()
    assert len(place.answers.got) == 6
    assert place.files.wants_reclaim
    place.gate.open()
    place.write(6)
    await until(lambda: not place.files.wants_reclaim)
    assert place.journal.size_bytes == 3 << 16


async def test_segments_are_recycled_in_the_background(place: Place) -> None:
    size_bytes = []
    for index in range(2, 60):
        records: list[Record] = [Entry(index, 1, bytes(15_000)), Commit(index)]
        records.append(Base(index, 1))
        place.journal.write(records, place.answers.then(index))
        await place.journal.flush()
        size_bytes.append(place.journal.size_bytes)
    await until(lambda: not place.files.wants_reclaim)
    assert place.journal.size_bytes == 2 << 16
    assert {error for _, error in place.answers.got} == {None}
    assert place.journal.upkeep_error is None


async def test_a_full_disk_refuses_spare_segments_only(place: Place) -> None:
    await until(lambda: not place.files.wants_reclaim)
    place.gate.creates.clear()
    for number in range(6):
        place.write(number, size_bytes=15_000)
        await place.journal.flush()

    place.gate.create_fault = OSError(errno.ENOSPC, "No space left on device")
    place.gate.open()
    await until(lambda: place.journal.upkeep_error is not None)
    assert isinstance(place.journal.upkeep_error, DiskFullError)
    for number in range(6, 30):
        place.write(number)
        await place.journal.flush()
    assert {error for _, error in place.answers.got} == {None}
    # The first segment and the spare; then this one, asked for twice at most: it can wait now.
    assert place.gate.create_count in {3, 4}


async def test_the_log_tells_once_why_there_is_no_spare_segment_and_once_that_there_is(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "UPKEEP_RETRY_S", 0.0)
    await until(lambda: not place.files.wants_reclaim)
    place.gate.creates.clear()
    for number in range(6):  # into the spare segment
        place.write(number, size_bytes=15_000)
        await place.journal.flush()
    place.gate.create_fault = OSError(errno.ENOSPC, "No space left on device")
    place.gate.open()

    async def tried_again(times: int) -> None:
        count = place.gate.create_count
        while place.gate.create_count < count + times:
            place.write(0)
            await place.journal.flush()

    await tried_again(4)
    place.gate.create_fault = OSError(errno.EDQUOT, "Disk quota exceeded")
    await tried_again(4)
    place.gate.create_fault = None
    await tried_again(1)
    await until(lambda: place.journal.upkeep_error is None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    full, quota, over = (record.getMessage() for record in caplog.records)
    assert "No space left on device" in full
    assert "Disk quota exceeded" in quota
    assert "spare segments again" in over


async def test_closing_does_not_wait_for_a_spare_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow_upkeep(monkeypatch)
    place = Place(tmp_path, JournalSettings(segment_bytes=1 << 20))
    place.write(1)
    await place.answers.wait(1)
    await until(lambda: any(name.startswith("preparing-") for name in place.directory.names()))
    async with asyncio.timeout(2):  # the segment takes ten times that
        await place.journal.close()
    assert place.directory.names() == ["segment-0000000000000001"]
    assert place.journal.upkeep_error is None
    assert caplog.records == []
    assert place.recovered() == [10]
    place.directory.close()


def slow_upkeep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a disk make segments slowly."""
    fdatasync = os.fdatasync

    def slow(descriptor: int) -> None:
        if threading.current_thread().name == "journal-upkeep":
            time.sleep(0.1)
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    monkeypatch.setattr(disk, "_ZEROS", bytes(4096))


async def test_a_loop_that_is_gone_ends_the_threads(tmp_path: Path) -> None:
    """The node was stopped without a word."""

    async def begin() -> Place:
        place = Place(tmp_path)
        await place.hold_a_sync()
        return place

    place = await asyncio.to_thread(lambda: asyncio.run(begin()))
    place.gate.open()
    for thread in place.journal._threads:  # noqa: SLF001
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
    assert place.recovered() == [10]
    place.directory.close()


def test_buffers_are_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large command goes to the kernel as the very object that it came as."""
    seen: list[Buffer] = []
    write = OsFile.write

    def spy(self: OsFile, offset: int, buffers: Sequence[Buffer]) -> None:
        seen.extend(buffers)
        write(self, offset, buffers)

    with OsDirectory(str(tmp_path)) as directory:
        files, _ = JournalFiles.open(directory, IDENTITY, SETTINGS)
        monkeypatch.setattr(OsFile, "write", spy)
        commands = [bytes(10_000), bytes(20_000)]
        files.append([Entry(2, 1, commands[0]), Entry(3, 1, commands[1]), Commit(2)])
        assert [any(buffer is command for buffer in seen) for command in commands] == [True, True]
        files.close()
