"""A disk in memory that forgets what was not synced.

A `VirtualDirectory` outlives the processes that use it, the files that they have open do not: after
`kill` or `power_loss` these raise `Crashed`, and the directory can be used again.

    kill()          the process ends: everything that was written is kept
    power_loss()    of what was not synced, any part may be lost: each sector for itself has its
                    last durable content or that of any later write; each change of a name happened
                    or did not

    crash_after(n)  the n-th operation from now on raises `Crashed`, having done nothing, a part
                    or all of its work, and so does all that follows, until `kill` or `power_loss`
    fail_next(...)  an operation raises `DiskError`; after a failed sync the content is still read
                    but no later sync makes it durable, as Linux has it
"""

import errno
import os
from collections.abc import Sequence
from enum import StrEnum
from random import Random

from cluster.storage.disk import Buffer
from cluster.storage.errors import DiskError

SECTOR_BYTES = 512


class Crashed(BaseException):
    """The process is no more. No `except Exception` may think otherwise."""


class Operation(StrEnum):
    """What can be counted and made to fail."""

    OPEN = "open"
    READ = "read"
    WRITE = "write"
    SYNC = "sync"
    CREATE = "create"
    RENAME = "rename"
    REMOVE = "remove"
    SYNC_DIRECTORY = "sync the names in"


class _Content:
    """A file's bytes, whatever its name."""

    __slots__ = ("bytes", "dirty", "forgotten")

    def __init__(self, size_bytes: int) -> None:
        self.bytes = bytearray(size_bytes)
        # What a sector may be after a power loss, beside what it is now: the durable content and
        # that of each write since, oldest first.
        self.dirty: dict[int, list[bytes]] = {}
        # The same, of sectors whose sync failed: a later sync does not heal them.
        self.forgotten: dict[int, list[bytes]] = {}

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for sector in range(offset // SECTOR_BYTES, -(-end // SECTOR_BYTES)):
            begin = sector * SECTOR_BYTES
            # A rewritten sector is the concern of later syncs again.
            versions = self.dirty.get(sector) or self.forgotten.pop(sector, [])
            versions.append(bytes(self.bytes[begin : begin + SECTOR_BYTES]))
            self.dirty[sector] = versions
        self.bytes[offset:end] = data

    def fail_sync(self) -> None:
        self.forgotten.update(self.dirty)
        self.dirty.clear()

    def lose(self, random: Random) -> None:
        # All, nothing and anything between, each often enough.
        chance = random.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for sectors in (self.dirty, self.forgotten):
            for sector, versions in sectors.items():
                if random.random() < chance:
                    begin = sector * SECTOR_BYTES
                    self.bytes[begin : begin + SECTOR_BYTES] = random.choice(versions)
            sectors.clear()


# A change of names: whose name it is, and the name that the file has then.
_Change = tuple[_Content, str | None]


class VirtualFile:
    """A file as one process has it open."""

    __slots__ = ("_content", "_directory", "_is_open", "_life", "path")

    def __init__(self, directory: "VirtualDirectory", path: str, content: _Content) -> None:
        self.path = path
        self._directory = directory
        self._life = directory.life
        self._content = content
        self._is_open = True

    @property
    def size_bytes(self) -> int:
        return len(self._content.bytes)

    def read(self, offset: int, size_bytes: int) -> bytes:
        if self._begin(Operation.READ):
            raise self._directory.crash()
        return bytes(memoryview(self._content.bytes)[offset : offset + size_bytes])

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        if offset + len(data) > len(self._content.bytes):
            raise AssertionError(f"a write goes beyond the end of {self.path}")
        random = self._directory.random
        try:
            is_crash = self._begin(Operation.WRITE)
        except DiskError:
            self._content.write(offset, data[: random.randint(0, len(data))])
            raise
        if is_crash:
            self._content.write(offset, data[: random.randint(0, len(data))])
            raise self._directory.crash()
        self._content.write(offset, data)

    def sync(self) -> None:
        try:
            is_crash = self._begin(Operation.SYNC)
        except DiskError:
            self._content.fail_sync()
            raise
        if not is_crash or self._directory.random.random() < 0.5:
            self._content.dirty.clear()
        if is_crash:
            raise self._directory.crash()

    def close(self) -> None:
        self._directory.check_life(self._life)
        self._is_open = False

    def _begin(self, operation: Operation) -> bool:
        if not self._is_open:
            raise AssertionError(f"{self.path} is used after it was closed")
        self._directory.check_life(self._life)
        return self._directory.begin(operation, self.path)


class VirtualDirectory:
    """A `cluster.storage.disk.Directory`, and its fate."""

    def __init__(self, random: Random | None = None, path: str = "/virtual") -> None:
        self.path = path
        self.random = random or Random(0)
        self.operations = 0
        """How many there were so far."""
        self.life = 0
        """Counts the processes that used it."""
        self._files: dict[str, _Content] = {}
        self._durable_files: dict[str, _Content] = {}
        self._changes: list[_Change] = []  # of names, since they were durable
        self._crash_at: int | None = None
        self._is_crashed = False
        self._faults: dict[Operation, int] = {}

    # A `Directory`

    def names(self) -> list[str]:
        self.check_life(self.life)
        return sorted(self._files)

    def open(self, name: str) -> VirtualFile:
        if self.begin(Operation.OPEN, self._path(name)):
            raise self.crash()
        return VirtualFile(self, self._path(name), self._find(name, Operation.OPEN))

    def create(self, name: str, size_bytes: int, *, gently: bool = False) -> VirtualFile:  # noqa: ARG002
        path = self._path(name)
        is_crash = self.begin(Operation.CREATE, path)
        if name in self._files:
            raise DiskError.of(path, "create", _os_error(errno.EEXIST))
        if is_crash:
            size_bytes = self.random.randint(0, size_bytes)
        content = _Content(size_bytes)
        self._change((content, name), is_crash=is_crash)
        return VirtualFile(self, path, content)

    def rename(self, old: str, new: str) -> None:
        is_crash = self.begin(Operation.RENAME, self._path(old))
        content = self._find(old, Operation.RENAME)
        self._change((content, new), is_crash=is_crash)

    def remove(self, name: str) -> None:
        is_crash = self.begin(Operation.REMOVE, self._path(name))
        content = self._find(name, Operation.REMOVE)
        self._change((content, None), is_crash=is_crash)

    def sync(self) -> None:
        is_crash = self.begin(Operation.SYNC_DIRECTORY, self.path)
        if not is_crash or self.random.random() < 0.5:
            self._durable_files = dict(self._files)
            self._changes.clear()
        if is_crash:
            raise self.crash()

    # Its fate

    def kill(self) -> None:
        """The process ends, the machine goes on."""
        self.life += 1
        self.heal()
        self._crash_at = None
        self._is_crashed = False

    def power_loss(self, random: Random | None = None) -> None:
        """The machine ends."""
        random = random or self.random
        self.kill()
        prefix = random.randint(0, len(self._changes))
        is_ordered = random.random() < 0.5
        files = self._durable_files
        for number, change in enumerate(self._changes):
            if number < prefix if is_ordered else random.random() < 0.5:
                _apply(files, change)
        self._changes.clear()
        for content in files.values():
            content.lose(random)
        self._files = dict(files)

    def crash_after(self, operations: int) -> None:
        """Let the process end inside an operation; call `kill` or `power_loss` then."""
        self._crash_at = self.operations + operations

    def fail_next(self, operation: Operation, number: int) -> None:
        """Let the next such operation fail with this errno."""
        self._faults[operation] = number

    def heal(self) -> None:
        """Let what was to fail and did not yet succeed."""
        self._faults.clear()

    # What a test does behind a process' back

    def content(self, name: str) -> bytearray:
        """A file's bytes; to change them is to damage the file."""
        return self._files[name].bytes

    def put(self, name: str, data: bytes) -> None:
        """A durable file, new or in place of another."""
        content = _Content(0)
        content.bytes[:] = data
        self._files[name] = self._durable_files[name] = content

    def lose_file(self, name: str) -> None:
        """A file is gone, durably."""
        del self._files[name]
        self._durable_files.pop(name, None)

    def copy(self) -> "VirtualDirectory":
        """The same files, all durable, on another disk."""
        other = VirtualDirectory(Random(self.random.random()), self.path)
        for name, content in self._files.items():
            other.put(name, bytes(content.bytes))
        return other

    # For its files

    def check_life(self, life: int) -> None:
        """Raise if the process that had this number is no more."""
        if self._is_crashed or life != self.life:
            raise Crashed

    def begin(self, operation: Operation, path: str) -> bool:
        """Count an operation; True if the process is to end in it. Raises if it is to fail."""
        self.check_life(self.life)
        self.operations += 1
        if self._crash_at is not None and self.operations >= self._crash_at:
            return True
        number = self._faults.pop(operation, None)
        if number is not None:
            raise DiskError.of(path, operation, _os_error(number))
        return False

    def crash(self) -> Crashed:
        """The end of the process, to be raised."""
        self._is_crashed = True
        return Crashed()

    def _find(self, name: str, operation: Operation) -> _Content:
        content = self._files.get(name)
        if content is None:
            raise DiskError.of(self._path(name), operation, _os_error(errno.ENOENT))
        return content

    def _change(self, change: _Change, *, is_crash: bool) -> None:
        if not is_crash or self.random.random() < 0.5:
            _apply(self._files, change)
            self._changes.append(change)
        if is_crash:
            raise self.crash()

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}"


def _apply(files: dict[str, _Content], change: _Change) -> None:
    content, new_name = change
    # Its name may not be the one that it had in between: that change may have been lost.
    for name in [name for name, other in files.items() if other is content]:
        del files[name]
    if new_name is not None:
        files[new_name] = content


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
