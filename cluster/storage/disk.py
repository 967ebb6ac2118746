"""The few file operations that storage needs, and the real disk.

They are protocols, so that a simulated disk can lose power at any of them
(`tests/simulation/disk.py`). What an implementation promises:

* what was written is durable once `File.sync` has returned, not before, and until then any part of
  it may have reached the disk;
* names that were created, renamed or removed are durable once `Directory.sync` has returned, not
  before;
* `Directory.create` returns a file of the full size, all zeros, durable but for its name;
* an operation that fails raises `DiskError`; after a failed sync nothing is known about what it
  was to make durable, and asking again proves nothing.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

from cluster.storage.errors import ClosedError, DiskError, LockedError

Buffer = bytes | bytearray | memoryview

LOCK_NAME = "lock"

# Beyond this many buffers pwritev refuses a call; POSIX has it at 16 or more, Linux at 1024.
_BUFFERS_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)

# Zeros are written in pieces, each synced by itself: one great flush would hold up the syncs of
# other files on the same disk.
_ZEROS = bytes(1 << 20)
_ZEROS_A_SYNC = 8
_ZEROS_A_SYNC_GENTLY = 1
# The disk is the hot path's for two thirds of the time; on a slow one for less, or a spare segment
# would not be ready when it is needed.
_GENTLE_PAUSE_FACTOR = 2.0
_GENTLE_PAUSE_MAX_S = 0.02


class File(Protocol):
    """A file of a size that was fixed when it was created."""

    @property
    def path(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` from `offset` on; fewer only at the file's end."""

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write all buffers one after the other, from `offset` on."""

    def sync(self) -> None:
        """Make durable what was written."""

    def close(self) -> None:
        """Give the file back. Closing twice does nothing."""


class Directory(Protocol):
    """Where files have names. One process at a time has it open."""

    @property
    def path(self) -> str: ...

    def names(self) -> list[str]:
        """The names of all files, in order."""

    def open(self, name: str) -> File: ...

    def create(self, name: str, size_bytes: int, *, gently: bool = False) -> File:
        """Make a file full of zeros, with its room on the disk; its name must be new.

        `gently`: nobody waits for it, and others use the disk; it may be refused as `ClosedError`
        when it is not wanted any more. When this fails, there is no file.
        """

    def rename(self, old: str, new: str) -> None:
        """Give a file another name. A file that had it is gone."""

    def remove(self, name: str) -> None: ...

    def sync(self) -> None:
        """Make durable which names there are."""


class OsFile:
    """A file of the operating system."""

    __slots__ = ("_descriptor", "path", "size_bytes")

    def __init__(self, path: str, descriptor: int, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._descriptor = descriptor

    def read(self, offset: int, size_bytes: int) -> bytes:
        descriptor = self._opened()
        pieces: list[bytes] = []
        try:
            while size_bytes and (piece := os.pread(descriptor, size_bytes, offset)):
                pieces.append(piece)
                offset += len(piece)
                size_bytes -= len(piece)
        except OSError as error:
            raise DiskError.of(self.path, "read", error) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        descriptor = self._opened()
        try:
            _write(descriptor, offset, buffers)
        except OSError as error:
            raise DiskError.of(self.path, "write", error) from error

    def sync(self) -> None:
        descriptor = self._opened()
        try:
            os.fdatasync(descriptor)
        except OSError as error:
            raise DiskError.of(self.path, "sync", error) from error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            os.close(descriptor)
        except OSError as error:
            raise DiskError.of(self.path, "close", error) from error

    def _opened(self) -> int:
        if self._descriptor < 0:
            raise ClosedError(self.path)
        return self._descriptor


class OsDirectory:
    """A directory that exists, locked until `close`.

    The lock is the operating system's and ends with the process, however it ends; the lock file
    stays and means nothing by itself.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._ends_gentle_work = False  # looked at by the thread that does it
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise DiskError.of(path, "open", error) from error
        try:
            self._lock = self._take_lock()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def names(self) -> list[str]:
        try:
            # By the descriptor, which a path cannot replace.
            return sorted(set(os.listdir(self._descriptor)) - {LOCK_NAME})  # noqa: PTH208
        except OSError as error:
            raise DiskError.of(self.path, "list", error) from error

    def open(self, name: str) -> OsFile:
        path = self._path(name)
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=self._descriptor)
        except OSError as error:
            raise DiskError.of(path, "open", error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "Not a regular file")  # noqa: TRY301 - one way out
        except OSError as error:
            os.close(descriptor)
            raise DiskError.of(path, "open", error) from error
        return OsFile(path, descriptor, status.st_size)

    def create(self, name: str, size_bytes: int, *, gently: bool = False) -> OsFile:
        path = self._path(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            descriptor = os.open(name, flags, 0o600, dir_fd=self._descriptor)
        except OSError as error:
            raise DiskError.of(path, "create", error) from error
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
            if gently:
                self._fill_gently(descriptor, size_bytes)
            else:
                _fill_with_zeros(descriptor, size_bytes)
            os.fsync(descriptor)  # not fdatasync: the size and the blocks are news
        except (OSError, ClosedError) as error:
            os.close(descriptor)
            # A full disk wants its room back. If even this fails, the first error says it all.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._descriptor)
            if isinstance(error, ClosedError):
                raise
            raise DiskError.of(path, "create", error) from error
        return OsFile(path, descriptor, size_bytes)

    def end_gentle_work(self) -> None:
        """Leave what is being made gently: `create` raises `ClosedError`.

        For whoever closes all: on a slow disk a large file takes a minute.
        """
        self._ends_gentle_work = True

    def rename(self, old: str, new: str) -> None:
        try:
            os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError as error:
            raise DiskError.of(self._path(old), f"rename to {new}", error) from error

    def remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._descriptor)
        except OSError as error:
            raise DiskError.of(self._path(name), "remove", error) from error

    def sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise DiskError.of(self.path, "sync", error) from error

    def close(self) -> None:
        """Let another process have the directory. Closing twice does nothing."""
        if self._descriptor < 0:
            return
        os.close(self._lock)
        os.close(self._descriptor)
        self._lock = self._descriptor = -1

    def _path(self, name: str) -> str:
        return f"{self.path}/{name}"

    def _fill_gently(self, descriptor: int, size_bytes: int) -> None:
        begin_s = time.monotonic()
        for _ in _zeros(descriptor, size_bytes, _ZEROS_A_SYNC_GENTLY):
            if self._ends_gentle_work:
                raise ClosedError(self.path)
            took_s = time.monotonic() - begin_s
            time.sleep(min(took_s * _GENTLE_PAUSE_FACTOR, _GENTLE_PAUSE_MAX_S))
            begin_s = time.monotonic()

    def _take_lock(self) -> int:
        path = self._path(LOCK_NAME)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        try:
            descriptor = os.open(LOCK_NAME, flags, 0o600, dir_fd=self._descriptor)
        except OSError as error:
            raise DiskError.of(path, "open", error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise LockedError(self.path) from error
        except OSError as error:
            os.close(descriptor)
            raise DiskError.of(path, "lock", error) from error
        return descriptor


def make_directory(path: str) -> None:
    """Make a directory, and those above it that are missing; durable are the names of all.

    What is made is for its owner alone; one that is there already is left as it is. Raises
    `DiskError`.
    """
    try:
        one = Path(path)
        missing: list[Path] = []
        while not one.exists():
            missing.append(one)
            one = one.parent
        for one in reversed(missing):
            one.mkdir(mode=0o700, exist_ok=True)
            sync_directory(os.fspath(one.parent))
    except OSError as error:
        raise DiskError.of(path, "create", error) from error


def sync_directory(path: str) -> None:
    """Make durable which names a directory has. Raises `DiskError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DiskError.of(path, "sync", error) from error


def _write(descriptor: int, offset: int, buffers: Sequence[Buffer]) -> None:
    """One call nearly always: the kernel may take less than it was given."""
    while buffers:
        written = os.pwritev(descriptor, buffers[:_BUFFERS_MAX], offset)
        if not written and any(map(len, buffers[:_BUFFERS_MAX])):
            raise OSError(errno.EIO, "Nothing was written")
        offset += written
        buffers = _rest(buffers, written)


def _rest(buffers: Sequence[Buffer], written: int) -> Sequence[Buffer]:
    """What of the buffers is left after their first bytes were written."""
    for number, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[number + 1 :]]
        written -= len(buffer)
    return ()


def _fill_with_zeros(descriptor: int, size_bytes: int) -> None:
    for _ in _zeros(descriptor, size_bytes, _ZEROS_A_SYNC):
        pass


def _zeros(descriptor: int, size_bytes: int, pieces_a_sync: int) -> Iterator[None]:
    """Write them in truth, and come back after each sync.

    Blocks that are only reserved would be marked as written one by one later, by every fdatasync
    of the hot path.
    """
    for number, offset in enumerate(range(0, size_bytes, len(_ZEROS)), 1):
        _write(descriptor, offset, [memoryview(_ZEROS)[: size_bytes - offset]])
        if number % pieces_a_sync == 0:
            os.fdatasync(descriptor)
            yield
