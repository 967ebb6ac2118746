"""What can go wrong with what a node keeps on disk.

StorageError
├── DamagedError       the bytes are there and are wrong: refuse to start, never start empty
├── OtherVersionError  written by a later release, or by one that is too old
├── WrongIdentityError the files belong to another node or another cluster
├── LockedError        another process has the directory open
├── DiskError          the operating system refused an operation; `errno` says why
│   └── DiskFullError  ... because there is no room
├── TooLargeError      refused before anything was written
├── RefusedError       records that contradict what is there: refused, nothing was written
└── ClosedError        used after `close`
"""

import errno
from typing import Self


class StorageError(Exception):
    """The root: catching it catches all that storage raises on purpose."""


class DamagedError(StorageError):
    def __init__(self, path: str, problem: str, offset: int | None = None) -> None:
        place = path if offset is None else f"{path} at byte {offset}"
        super().__init__(f"{place} is damaged: {problem}")
        self.path = path
        self.problem = problem
        self.offset = offset


class OtherVersionError(StorageError):
    def __init__(self, path: str, version: int, supported: int) -> None:
        super().__init__(
            f"{path} has format version {version}, this release reads only {supported}: "
            "start the release that wrote it"
        )
        self.path = path
        self.version = version
        self.supported = supported


class WrongIdentityError(StorageError):
    def __init__(self, path: str, found: object, expected: object) -> None:
        super().__init__(f"{path} belongs to {found}, not to {expected}")
        self.path = path
        self.found = found
        self.expected = expected


class LockedError(StorageError):
    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is in use by another process")
        self.path = path


class DiskError(StorageError):
    """Wraps an `OSError`; `DiskError.of` picks the class for its errno."""

    def __init__(self, path: str, operation: str, error: OSError) -> None:
        super().__init__(f"cannot {operation} {path}: {error.strerror or error}")
        self.path = path
        self.operation = operation
        self.error = error
        self.errno = error.errno

    @classmethod
    def of(cls, path: str, operation: str, error: OSError) -> Self:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        kind = DiskFullError if full else DiskError
        return kind(path, operation, error)  # type: ignore[return-value]


class DiskFullError(DiskError):
    """No room, or over a quota: the operator of the machine can cure it."""


class TooLargeError(StorageError):
    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"{what} takes {size_bytes} bytes, the limit is {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class ClosedError(StorageError):
    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is closed")
        self.path = path


class RefusedError(StorageError):
    """Records that make no sense after what is there: a fault of the program that wrote them."""
