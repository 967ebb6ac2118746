"""`recover` says of a disk what a start would say, and what is left of it; it changes nothing."""

import asyncio
import errno
import os
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from api.commands.disk import NothingThereError, read_checkpoint
from api.commands.rebirth import EPOCH_STEP
from api.commands.recover import Kind, examine
from api.commands.salvage_journal import scan_journal
from api.statuses import ExitStatus
from cluster import Node
from cluster.storage.errors import LockedError
from cluster.storage.segments import SECTOR_BYTES, SegmentReader
from state import Created, Loader, Phase, StateMachine, encode, encode_batch
from state.operations import Acquire, New, Tick
from state.policy import Policy
from tests.api.commands.disks import (
    FAST,
    LONG,
    OLD,
    alone,
    contents,
    die,
    fill,
    grow,
    names,
    open_to_others,
    run,
    running,
)

NEW_CLUSTER = re.compile(r"new cluster (\S+)")


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node whose journal was cut behind its checkpoint, and goes on after it."""
    directory = tmp_path_factory.mktemp("cut") / "node"

    async def live() -> None:
        node = Node(alone(directory))
        async with node:
            await node.wait_until_ready()
            await fill(node)
            for number in range(40):
                await node.submit(New(9, b"%d" % number, b"x" * 3000, repeat_after_ms=0))
            async with asyncio.timeout(10):
                while node.status().checkpoint_index < node.status().applied_index:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                while len(list((directory / "journal").glob("segment-*"))) > 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for number in range(3):
                await node.submit(New(9, b"late-%d" % number, b"y", repeat_after_ms=0))
            die(node)

    asyncio.run(live())
    return directory


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node without a checkpoint, and three segments of journal."""
    directory = tmp_path_factory.mktemp("long") / "node"

    async def live() -> None:
        node = Node(alone(directory, replica=LONG))
        async with node:
            await node.wait_until_ready()
            await fill(node)
            for number in range(40):
                await node.submit(New(9, b"%d" % number, b"x" * 3000, repeat_after_ms=0))
            die(node)

    asyncio.run(live())
    assert len(segments(directory)) >= 3
    return directory


@pytest.fixture
def disk(tmp_path: Path, cut: Path) -> Path:
    return Path(shutil.copytree(cut, tmp_path / "disk"))


def segments(directory: Path) -> list[Path]:
    return sorted((directory / "journal").glob("segment-*"))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))


class _File:
    """What a `SegmentReader` wants of a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._data = path.read_bytes()
        self.size_bytes = len(self._data)

    def read(self, offset: int, size_bytes: int) -> bytes:
        return self._data[offset : offset + size_bytes]

    def write(self, *_: object) -> None:
        raise AssertionError

    def sync(self) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


def frames(path: Path) -> list[tuple[int, int]]:
    """Where the frames of a segment begin, and where the next would."""
    return [(frame.offset, frame.end) for frame in SegmentReader(_File(path)).frames()]


def statuses(directory: Path) -> tuple[list[Kind], int]:
    """What is wrong, twice: as a value, and as the command's status. Nothing is changed by it."""
    before = contents(directory)
    report = examine(directory)
    result = run("recover", "--data-directory", directory)
    assert contents(directory) == before
    for one in report.findings:
        assert one.text in result.stdout
    return report.wrong, result.exit_code


async def starts(directory: Path) -> bool:
    """Whether a node starts with a copy of this disk."""
    copy = Path(shutil.copytree(directory, directory.with_name("copy")))
    node = Node(alone(copy))
    try:
        await node.start()
    except Exception:  # noqa: BLE001 - whatever it is, it does not start
        return False
    else:
        return True
    finally:
        await node.stop()
        shutil.rmtree(copy)


# Harm, and what is to be said of it


def nothing(_disk: Path) -> None:
    """A kill, and that is all."""


def torn_tail(disk: Path) -> None:
    path = segments(disk)[-1]
    *_, (_, end) = frames(path)
    tag = path.read_bytes()[40:48]
    with path.open("r+b") as file:
        file.seek(end)
        file.write(tag + struct.pack("<QI", 1_000_000, 70) + b"half of it")


def damaged_record(disk: Path) -> None:
    path = segments(disk)[0]
    flip(path, frames(path)[1][0] + 30)


def damaged_header(disk: Path) -> None:
    flip(segments(disk)[-1], 20)


def damaged_first_frame(disk: Path) -> None:
    flip(segments(disk)[0], SECTOR_BYTES + 40)


def cut_segment(disk: Path) -> None:
    path = segments(disk)[0]
    with path.open("r+b") as file:
        file.truncate(20_000)


def damaged_pages(disk: Path) -> None:
    path = disk / "state.db"
    for offset in range(16 << 10, path.stat().st_size, 16 << 10):
        flip(path, offset)  # the kind of a page


def changed_record(disk: Path) -> None:
    with closing(sqlite3.connect(disk / "state.db")) as connection, connection:
        assert connection.execute("UPDATE sessions SET revision = revision + 1").rowcount


def empty_checkpoint(disk: Path) -> None:
    (disk / "state.db").write_bytes(b"")


def no_database(disk: Path) -> None:
    (disk / "state.db").write_bytes(b"what is this?" * 1000)


def missing_checkpoint(disk: Path) -> None:
    (disk / "state.db").unlink()


def missing_journal(disk: Path) -> None:
    shutil.rmtree(disk / "journal")


def newer_checkpoint(disk: Path) -> None:
    with closing(sqlite3.connect(disk / "state.db")) as connection, connection:
        connection.execute("UPDATE cluster SET format_version = 9")
        connection.execute("PRAGMA user_version = 9")


CASES: list[tuple[Callable[[Path], None], list[Kind]]] = [
    (nothing, []),
    (torn_tail, []),
    (damaged_record, [Kind.DAMAGED_JOURNAL]),
    (damaged_header, [Kind.DAMAGED_JOURNAL]),
    (damaged_first_frame, [Kind.DAMAGED_JOURNAL]),
    (cut_segment, [Kind.DAMAGED_JOURNAL]),
    (damaged_pages, [Kind.DAMAGED_CHECKPOINT]),
    (changed_record, [Kind.DAMAGED_CHECKPOINT]),
    (empty_checkpoint, [Kind.DAMAGED_CHECKPOINT]),
    (no_database, [Kind.DAMAGED_CHECKPOINT]),
    (missing_checkpoint, [Kind.MISSING]),
    (missing_journal, [Kind.MISSING]),
    (newer_checkpoint, [Kind.VERSION]),
]


@pytest.mark.parametrize(("harm", "kinds"), CASES, ids=lambda one: getattr(one, "__name__", ""))
async def test_each_kind_of_damage_has_its_name(
    disk: Path, harm: Callable[[Path], None], kinds: list[Kind]
) -> None:
    harm(disk)
    found, status = statuses(disk)
    assert found == kinds
    assert status == (ExitStatus.DISK if kinds else ExitStatus.STOPPED)
    # A start sees it as well.
    assert await starts(disk) == (not kinds)


def test_a_torn_tail_is_told_and_expected(disk: Path) -> None:
    torn_tail(disk)
    output = run("recover", "--data-directory", disk).stdout
    assert "cut short" in output
    assert "starts with it" in output
    assert "WRONG" not in output


def test_a_whole_node_that_was_stopped_in_order(tmp_path: Path) -> None:
    asyncio.run(grow(tmp_path / "disk"))
    result = run("recover", "--data-directory", tmp_path / "disk")
    assert result.exit_code == ExitStatus.STOPPED
    assert "node 'node-1' of cluster 'old'" in result.stdout
    assert "12 sessions as of entry" in result.stdout
    assert "; closed in order" in result.stdout


def test_a_checkpoint_that_was_being_written(disk: Path) -> None:
    """A kill in the middle of a transaction leaves a journal of SQLite's, and half of the pages."""
    path = disk / "state.db"
    whole = read_checkpoint(path).machine.digest()
    copies = {}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN")
        connection.execute("UPDATE sessions SET revision = revision + 1")
        connection.execute("UPDATE chunks SET data = zeroblob(length(data))")
        for one in disk.glob("state.db*"):
            copies[one] = one.read_bytes()
        connection.execute("ROLLBACK")
    for one, content in copies.items():
        one.write_bytes(content)
    assert set(map(Path, copies)) == {path, disk / "state.db-journal"}
    found, status = statuses(disk)
    assert (found, status) == ([], ExitStatus.STOPPED)
    assert "being written" in run("recover", "--data-directory", disk).stdout
    assert read_checkpoint(path).machine.digest() == whole
    assert names(disk) == ["journal", "state.db", "state.db-journal"]


def test_another_node_s_disk(disk: Path) -> None:
    words = ("recover", "--data-directory", disk)
    assert run(*words, "--node-id", "node-1", "--cluster-id", OLD).exit_code == ExitStatus.STOPPED
    for more in (("--node-id", "node-2"), ("--cluster-id", "payments")):
        result = run(*words, *more)
        assert result.exit_code == ExitStatus.DISK
        assert "mounted at the wrong node" in result.stdout
        assert "Nothing is damaged" in result.stdout
        assert "mv " not in result.stdout


def test_files_of_two_clusters(disk: Path, tmp_path: Path) -> None:
    asyncio.run(grow(tmp_path / "other"))
    shutil.rmtree(tmp_path / "other")

    async def other() -> None:
        async with Node(alone(tmp_path / "other", "payments")) as node:
            await node.wait_until_ready()

    asyncio.run(other())
    shutil.copy(tmp_path / "other" / "state.db", disk / "state.db")
    found, status = statuses(disk)
    assert Kind.IDENTITY in found
    assert status == ExitStatus.DISK


def test_a_checkpoint_from_an_older_copy(disk: Path, tmp_path: Path) -> None:
    async def other() -> None:
        async with Node(alone(tmp_path / "other", replica=LONG)) as node:
            await node.wait_until_ready()

    asyncio.run(other())
    shutil.copy(tmp_path / "other" / "state.db", disk / "state.db")
    found, _ = statuses(disk)
    assert found == [Kind.MISALIGNED]


async def test_a_running_node_is_left_alone(tmp_path: Path) -> None:
    async with Node(alone(tmp_path / "disk")) as node:
        await node.wait_until_ready()
        with pytest.raises(LockedError):
            examine(tmp_path / "disk")


def test_nothing_is_told_from_a_new_node(tmp_path: Path) -> None:
    with pytest.raises(NothingThereError):
        examine(tmp_path)
    assert names(tmp_path) == []


def unreadable_checkpoint(disk: Path, _: pytest.MonkeyPatch) -> None:
    path = disk / "state.db"
    path.unlink()
    path.symlink_to(path)


def unreadable_segment(_: Path, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch.setattr(os, "pread", fail)


@pytest.mark.parametrize("harm", [unreadable_checkpoint, unreadable_segment])
def test_what_the_disk_does_not_give_is_unreadable(
    disk: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    harm(disk, monkeypatch)
    report = examine(disk)
    result = run("recover", "--data-directory", disk)
    assert report.wrong == [Kind.UNREADABLE]
    assert result.exit_code == ExitStatus.DISK
    assert "Unreadable. The operating system could not read it" in result.stdout
    assert "give this one an empty directory" in result.stdout


# Salvage


def salvage(disk: Path) -> tuple[StateMachine, str, int]:
    """What was written, what was said, and the status. The disk is not changed."""
    before = contents(disk)
    target = disk.with_name("salvaged")
    result = run("recover", "--data-directory", disk, "--salvage", target)
    assert contents(disk) == before
    assert target.exists(), result.output
    return read_checkpoint(target / "state.db").machine, result.stdout, result.exit_code


def keys(machine: StateMachine) -> set[bytes | None]:
    return {session.key for session in machine.sessions()}


LATE = {b"late-0", b"late-1", b"late-2"}


async def test_a_whole_disk_without_its_cluster_begins_another(disk: Path) -> None:
    """Two of three disks are lost for good: nothing is, of what this one has."""
    machine, output, status = salvage(disk)
    assert status == ExitStatus.STOPPED
    assert "nothing of what was on that disk is missing" in output
    assert machine.session_count == 55
    assert keys(machine) >= LATE
    found = NEW_CLUSTER.search(output)
    assert found is not None
    assert found[1] != OLD
    async with running([alone(disk.with_name("salvaged"), found[1])]) as (node,):
        await node.submit(New(7, b"more"))
        assert node.machine.session_count == 56


@pytest.mark.usefixtures("usual_umask")
def test_what_is_salvaged_is_for_its_owner_alone(disk: Path) -> None:
    salvage(disk)
    assert open_to_others(disk.with_name("salvaged")) == []


def test_damage_that_the_checkpoint_makes_good(disk: Path) -> None:
    """What is before the damage in the journal is in the checkpoint as well."""
    scan = scan_journal(disk / "journal")
    assert scan.lost_frames == 0
    path = segments(disk)[0]
    first, second, *_ = frames(path)
    assert first != second
    flip(path, second[0] + 30)
    machine, output, status = salvage(disk)
    assert status == ExitStatus.DISK
    assert "frames cannot be read" in output
    assert machine.session_count == 55
    assert keys(machine) >= LATE


def test_damage_after_the_checkpoint_ends_what_is_known(disk: Path) -> None:
    path = segments(disk)[-1]
    places = frames(path)
    content = path.read_bytes()
    (middle,) = [
        number for number, (begin, end) in enumerate(places) if b"late-1" in content[begin:end]
    ]
    flip(path, places[middle][0] + 30)
    machine, output, status = salvage(disk)
    assert status == ExitStatus.DISK
    assert keys(machine) & LATE == {b"late-0"}
    assert "of the log are lost" in output


def test_a_lost_journal_leaves_the_checkpoint(disk: Path) -> None:
    missing_journal(disk)
    machine, output, _ = salvage(disk)
    assert machine.session_count == 52
    assert "lost: there is no journal" in output


def test_a_lost_segment_in_the_middle(tmp_path: Path, whole_log: Path) -> None:
    disk = Path(shutil.copytree(whole_log, tmp_path / "disk"))
    segments(disk)[1].unlink()
    machine, output, status = salvage(disk)
    assert status == ExitStatus.DISK
    assert "segments 2 to 2 are missing" in output
    assert 12 <= machine.session_count < 52
    numbers = [key for key in keys(machine) if key is not None and key.isdigit()]
    assert sorted(numbers, key=int) == [b"%d" % one for one in range(len(numbers))]


def test_a_whole_log_needs_no_checkpoint(tmp_path: Path, whole_log: Path) -> None:
    disk = Path(shutil.copytree(whole_log, tmp_path / "disk"))
    machine, _, status = salvage(disk)
    assert status == ExitStatus.STOPPED
    assert machine.session_count == 52
    shutil.rmtree(disk.with_name("salvaged"))
    no_database(disk)
    machine, _, status = salvage(disk)
    assert status == ExitStatus.DISK
    assert machine.session_count == 52


def test_a_changed_record_is_told_of(disk: Path) -> None:
    changed_record(disk)
    machine, output, status = salvage(disk)
    assert status == ExitStatus.DISK
    assert machine.session_count == 52
    assert "something in it is not what was written" in output
    assert "are not used" in output  # the entries after it


def test_pages_that_cannot_be_read(disk: Path) -> None:
    """Sessions on other pages are there; those without all of their chunks are parked."""
    path = disk / "state.db"
    pages = path.stat().st_size // (16 << 10)
    content = path.read_bytes()
    root = _root(path, "chunks")
    # A leaf of the chunks, and not what leads to it.
    victims = [
        number
        for number in range(2, pages + 1)
        if number != root and b"x" * 1000 in content[(number - 1) << 14 : number << 14]
    ]
    flip(path, (victims[len(victims) // 2] - 1) << 14)
    before = {
        one.session_id: (one.key, one.data) for one in _machine_before(disk, content).sessions()
    }
    machine, output, status = salvage(disk)
    assert status == ExitStatus.DISK
    assert machine.session_count == 52
    parked = [one for one in machine.sessions() if one.last_reason.startswith("recovered: ")]
    assert 0 < len(parked) < 30
    assert f"{len(parked)} sessions without all of its data" in output
    for session in machine.sessions():
        key, data = before[session.session_id]
        assert session.key == key
        if session in parked:
            assert session.phase is Phase.PARKED
        else:
            assert session.data == data


def test_sessions_on_pages_that_cannot_be_read(tmp_path: Path) -> None:
    """Those before and behind them are there."""

    async def live() -> None:
        node = Node(alone(tmp_path / "disk", replica=FAST))
        async with node:
            await node.wait_until_ready()
            for number in range(1500):
                node.submit_encoded(_encoded(number), _ignore)
            await node.read()

    asyncio.run(live())
    missing_journal(tmp_path / "disk")  # or all could be made anew from it
    path = tmp_path / "disk" / "state.db"
    content = path.read_bytes()
    root = _root(path, "sessions")
    leaves = [
        number
        for number in range(2, len(content) // (16 << 10) + 1)
        if number != root and b"key-" in content[(number - 1) << 14 : number << 14]
    ]
    assert len(leaves) > 5
    for number in (leaves[1], leaves[4]):
        flip(path, (number - 1) << 14)
    machine, output, status = salvage(tmp_path / "disk")
    assert status == ExitStatus.DISK
    assert 500 < machine.session_count < 1500
    assert len(re.findall(r"lost: sessions from \w+ to \w+ cannot be read", output)) == 2
    ids = sorted(one.session_id for one in machine.sessions())
    assert (ids[0], ids[-1]) == (1, 1500)


@pytest.mark.parametrize("is_readable", [False, True])
def test_a_lost_clock_follows_from_the_rest(disk: Path, *, is_readable: bool) -> None:
    path = disk / "state.db"
    before = _machine_before(disk, path.read_bytes())
    if is_readable:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE meta SET now_ms = -1")
    else:
        flip(path, (_root(path, "meta") - 1) << 14)
    machine, output, status = salvage(disk)
    assert status == ExitStatus.DISK
    assert "follows from themes and sessions" in output
    assert keys(machine) == keys(before)
    assert _themes(machine) == _themes(before)
    assert _themes(machine)[7][1] > 0
    # No session that has a key from here on is taken for one that the old cluster has begun.
    batch = encode_batch("node", 1, 1, machine.term, [encode(New(7, b"a new one"))])
    (created,) = machine.apply(machine.applied_index + 1, batch).results
    assert isinstance(created, Created)
    assert created.epoch > max(one.epoch for one in before.sessions()) + EPOCH_STEP


END, FAR_MS = 2**63 - 1, 99_999_999_999_999


@pytest.mark.parametrize("is_clock_lost", [True, False])
@pytest.mark.parametrize(
    ("damage", "value", "lost"),
    [
        ("UPDATE sessions SET epoch = ?", END, 1),
        ("UPDATE sessions SET phase = 9, epoch = ?", END, 1),
        ("UPDATE sessions SET epoch = ?", END - EPOCH_STEP, 1),
        ("UPDATE sessions SET revision = ?", END, 1),
        ("UPDATE sessions SET epoch = ?", "abc", 1),
        ("UPDATE sessions SET session_id = ?", 2**48 - 1, 1),
        ("UPDATE sessions SET updated_ms = ?", FAR_MS, 1),
        ("UPDATE themes SET served = ?", END, 0),
        ("DELETE FROM themes WHERE theme_id <> ?", 0, 0),
    ],
)
def test_what_is_damaged_spoils_nothing_else(
    disk: Path, damage: str, value: object, lost: int, *, is_clock_lost: bool
) -> None:
    path = disk / "state.db"
    before = _machine_before(disk, path.read_bytes())
    with closing(sqlite3.connect(path)) as connection, connection:
        if is_clock_lost:
            connection.execute("DELETE FROM meta")
        if "sessions" in damage:  # one of them
            damage += " WHERE session_id = (SELECT min(session_id) FROM sessions)"
        assert connection.execute(damage, (value,)).rowcount
    machine, _, status = salvage(disk)
    assert status == ExitStatus.DISK
    assert machine.session_count == before.session_count - lost
    assert machine.now_ms <= before.now_ms
    # It goes on, and what it comes to can be read again.
    operations = (Tick(machine.now_ms + 1), New(7, b"a new one"), Acquire((7, 9), 5))
    batch = encode_batch("node", 1, 1, machine.term, [encode(one) for one in operations])
    _, created, acquired = machine.apply(machine.applied_index + 1, batch).results
    assert isinstance(created, Created)
    assert isinstance(acquired, tuple)
    assert len(acquired) == 5
    loader = Loader()
    for piece in machine.capture_everything().pieces():
        loader.feed(piece)
    assert loader.finish().digest() == machine.digest()


def _themes(machine: StateMachine) -> dict[int, tuple[Policy, int]]:
    return {one.theme_id: (one.policy, one.served) for one in machine.themes()}


def _root(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        ((root,),) = connection.execute(sql, (table,)).fetchall()
    return int(root)


def test_nothing_left_is_told(disk: Path) -> None:
    missing_checkpoint(disk)
    result = run("recover", "--data-directory", disk, "--salvage", disk.with_name("salvaged"))
    assert result.exit_code == ExitStatus.DISK
    assert "nothing was written" in result.stderr
    assert "does not go back to the first entry" in result.stderr
    assert not disk.with_name("salvaged").exists()


def test_a_newer_release_s_disk_is_not_salvaged(disk: Path) -> None:
    newer_checkpoint(disk)
    result = run("recover", "--data-directory", disk, "--salvage", disk.with_name("salvaged"))
    assert result.exit_code == ExitStatus.DISK
    assert "start the release that wrote it" in result.stderr
    assert not disk.with_name("salvaged").exists()


@pytest.mark.parametrize("where", ["inside", "taken"])
def test_a_place_that_will_not_do(disk: Path, tmp_path: Path, where: str) -> None:
    target = disk / "new" if where == "inside" else tmp_path / "taken"
    if where == "taken":
        target.mkdir()
        (target / "precious").write_text("!", encoding="utf-8")
    before = contents(tmp_path)
    result = run("recover", "--data-directory", disk, "--salvage", target)
    assert result.exit_code == ExitStatus.SETTINGS
    assert contents(tmp_path) == before


def _encoded(number: int) -> bytes:
    return encode(New(7, b"key-%d" % number, b"x" * 10, repeat_after_ms=0))


def _ignore(_result: object) -> None:
    pass


def _machine_before(disk: Path, content: bytes) -> StateMachine:
    path = disk.with_name("before.db")
    path.write_bytes(content)
    return read_checkpoint(path).machine
