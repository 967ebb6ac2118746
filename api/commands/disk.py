"""Reads what a stopped node has on disk, and changes none of it.

What a start would say of a disk is found out with the start's own code, on a directory that only
pretends to be written to.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from cluster.consensus.log import NO_OP
from cluster.consensus.log import Recovered as Aligned
from cluster.recovery import align, check_presence
from cluster.storage.disk import LOCK_NAME, Buffer
from cluster.storage.errors import DamagedError, DiskError, LockedError
from cluster.storage.journal_files import JournalFiles, Recovered
from cluster.storage.records import Identity, MalformedError, State, decode
from cluster.storage.segments import SegmentReader
from cluster.storage.state_file import Summary, receive
from cluster.storage.state_reading import connect, sqlite_errors
from state import StateMachine

JOURNAL = "journal"
STATE = "state.db"

_HOT = "-journal"  # what SQLite has beside a file while it changes it
_SEGMENT = re.compile(r"segment-([0-9]{16})")


class NothingThereError(Exception):
    """There is no node on this disk, not even a part of one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"there is no node in {directory}: a start would begin a new one, with nothing in it. "
            "If there should be one, look whether its volume is mounted"
        )
        self.directory = directory


class ReadOnlyFile:
    """A file that takes writes and does nothing with them."""

    __slots__ = ("_descriptor", "path", "size_bytes")

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            self.size_bytes = os.fstat(self._descriptor).st_size
        except OSError as error:
            self.close()
            raise DiskError.of(path, "open", error) from error

    def read(self, offset: int, size_bytes: int) -> bytes:
        pieces: list[bytes] = []
        try:
            while size_bytes and (piece := os.pread(self._descriptor, size_bytes, offset)):
                pieces.append(piece)
                offset += len(piece)
                size_bytes -= len(piece)
        except OSError as error:
            raise DiskError.of(self.path, "read", error) from error
        return b"".join(pieces)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Do nothing: what recovery writes is what it has just read."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class ReadOnlyDirectory:
    """A journal's directory in which nothing is made, renamed or removed."""

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        self._opened: list[ReadOnlyFile] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._opened:
            file.close()

    def names(self) -> list[str]:
        try:
            return sorted(set(os.listdir(self.path)) - {LOCK_NAME})  # noqa: PTH208 - as of disks
        except OSError as error:
            raise DiskError.of(self.path, "list", error) from error

    def open(self, name: str) -> ReadOnlyFile:
        file = ReadOnlyFile(f"{self.path}/{name}")
        self._opened.append(file)
        return file

    def create(self, name: str, size_bytes: int, *, gently: bool = False) -> ReadOnlyFile:
        """Refuse: nothing in a recovery needs a new file, but the beginning of a new journal."""
        del size_bytes, gently
        error = OSError(errno.EROFS, os.strerror(errno.EROFS))
        raise DiskError.of(f"{self.path}/{name}", "create", error)

    def rename(self, old: str, new: str) -> None:
        """Do nothing."""

    def remove(self, name: str) -> None:
        """Do nothing: it would be what is of no use."""

    def sync(self) -> None:
        """Do nothing."""


def segments(directory: Path) -> list[tuple[int, str]]:
    """The segments of a journal, by number and name, oldest first. Raises `DiskError`."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 - names are what is wanted
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DiskError.of(os.fspath(directory), "list", error) from error
    return sorted((int(found[1]), name) for name in names if (found := _SEGMENT.fullmatch(name)))


def parts(directory: Path) -> tuple[bool, bool]:
    """Whether there is a journal, and whether a checkpoint; one of them is.

    Raises `NothingThereError`, and `DiskError` if it cannot be told.
    """
    path = directory / STATE
    has_journal = bool(segments(directory / JOURNAL))
    try:
        path.stat()
        has_checkpoint = True
    except FileNotFoundError:
        has_checkpoint = False
    except OSError as error:
        raise DiskError.of(os.fspath(path), "open", error) from error
    if not has_journal and not has_checkpoint:
        raise NothingThereError(directory)
    return has_journal, has_checkpoint


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep a node from starting on this disk meanwhile.

    Raises `LockedError` if one runs, and `DiskError` if that cannot be told.

    Who has never started has no lock to take, and making one would be a change.
    """
    path = directory / JOURNAL / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise DiskError.of(os.fspath(path), "open", error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(os.fspath(directory)) from error
        yield
    finally:
        os.close(descriptor)


# The checkpoint


def cluster_of(path: Path) -> str:
    """The cluster that a checkpoint says it is of; nothing else of it is checked.

    Raises `StorageError`.
    """
    name = os.fspath(path)
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise DiskError.of(name, "open", error) from error
    if not size_bytes:
        raise DamagedError(name, "it is empty")
    with (
        sqlite_errors(name, "read"),
        contextlib.closing(connect(name, "mode=ro&immutable=1")) as connection,
    ):
        try:
            rows = connection.execute("SELECT cluster_id FROM cluster LIMIT 2").fetchall()
        except sqlite3.OperationalError as error:
            raise DamagedError(name, f"it is no checkpoint: {error}") from error
    if len(rows) != 1 or not isinstance(rows[0][0], str):
        raise DamagedError(name, "it does not say which cluster it is of")
    cluster_id: str = rows[0][0]
    return cluster_id


def has_half_written(path: Path) -> bool:
    """Whether a process was killed while it wrote this checkpoint: a start undoes its half."""
    hot = path.with_name(path.name + _HOT)
    try:
        return hot.stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DiskError.of(os.fspath(hot), "open", error) from error


@contextlib.contextmanager
def settled(path: Path) -> Iterator[Path]:
    """A file with the last whole checkpoint: this one, or a copy in which a half is undone."""
    if not has_half_written(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ritornello-") as temporary:
        copy = Path(temporary) / path.name
        try:
            for suffix in ("", _HOT):
                shutil.copyfile(os.fspath(path) + suffix, os.fspath(copy) + suffix)
        except OSError as error:
            raise DiskError.of(os.fspath(path), "copy", error) from error
        # Whoever reads next gives the reason, if it cannot be undone.
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(connect(os.fspath(copy), "mode=rw")) as connection,
        ):
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
        yield copy


class Checkpoint(NamedTuple):
    """A checkpoint that is whole, loaded."""

    cluster_id: str
    machine: StateMachine
    summary: Summary


def read_checkpoint(path: Path, cluster_id: str | None = None) -> Checkpoint:
    """Load a checkpoint and so check all of it. Raises `StorageError`.

    Without `cluster_id`, of whichever cluster it is.
    """
    with settled(path) as file:
        try:
            found = cluster_of(file) if cluster_id is None else cluster_id
            machine, summary = receive(os.fspath(file), found)
        except DamagedError as error:  # by the name that whoever asked knows
            raise DamagedError(os.fspath(path), error.problem, error.offset) from error
    return Checkpoint(found, machine, summary)


# The journal


def identity_of(directory: Path) -> Identity | None:
    """Whose journal it is, as far as its first segment can be read; None without one."""
    for _, name in segments(directory):
        with ReadOnlyDirectory(directory) as opened:
            for frame in SegmentReader(opened.open(name)).frames():
                try:
                    records = decode(frame.payload)
                except MalformedError:
                    return None
                first = records[0] if records else None
                return first.identity if isinstance(first, State) else None
        break
    return None


def read_journal(directory: Path, identity: Identity) -> Recovered:
    """What a start would recover. Raises `StorageError`."""
    with ReadOnlyDirectory(directory) as opened:
        _, recovered = JournalFiles.open(opened, identity)
    return recovered


# Both


@dataclass(frozen=True, slots=True)
class Found:
    """A whole node, as it would start. `machine` is at the checkpoint."""

    identity: Identity
    machine: StateMachine
    checkpoint: tuple[int, int] | None  # its index and term
    log: Aligned
    incarnation: int

    @property
    def uncommitted(self) -> int:
        """How many entries are not known to be committed."""
        return self.last_index - self.log.commit_index

    @property
    def last_index(self) -> int:
        """The last entry."""
        return self.log.base_index + len(self.log.entries)

    def replay(self, to_index: int) -> int:
        """Apply entries up to an index; answers the term of the last one that did something."""
        index, term = self.checkpoint or (self.log.base_index, self.log.base_term)
        for command, index_of, term_of in self.log.entries:
            if index < index_of <= to_index and command != NO_OP:
                self.machine.apply(index_of, command)
                term = term_of
        return term


def read_node(directory: Path, identity: Identity | None = None) -> Found:
    """Read a disk as a start would. Raises `StorageError`, `MisalignedError`, `NothingThereError`.

    Without `identity`, whoever's it is.
    """
    state_path, journal_path = directory / STATE, directory / JOURNAL
    has_journal, has_checkpoint = parts(directory)
    check_presence(has_journal=has_journal, has_checkpoint=has_checkpoint)
    identity = identity or identity_of(journal_path)
    if identity is None:
        raise DamagedError(os.fspath(journal_path), "it does not say whose it is")
    machine, checkpoint = StateMachine(), None
    if has_checkpoint:
        found = read_checkpoint(state_path, identity.cluster_id)
        machine = found.machine
        checkpoint = (found.summary.applied_index, found.summary.applied_term)
    kept = read_journal(journal_path, identity)
    log, _ = align(
        Aligned(
            kept.base_index,
            kept.base_term,
            kept.entries,
            kept.term,
            kept.voted_for,
            kept.commit_index,
        ),
        checkpoint,
    )
    return Found(identity, machine, checkpoint, log, kept.incarnation)
