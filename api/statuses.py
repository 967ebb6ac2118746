"""With what status a process ends, so that its supervisor can tell what to do next."""

import errno
from enum import IntEnum

from cluster import MisalignedError
from cluster.storage.errors import DiskError, LockedError, StorageError


class ExitStatus(IntEnum):
    """Part of the interface: numbers are never given a new meaning."""

    STOPPED = 0  # in order, because it was asked to
    UNEXPECTED = 1  # a defect; the log has the details
    SETTINGS = 2  # settings, usage or rights: starting again will not help
    DISK = 3  # the disk does not hold a whole node: `ritornello-server recover` says more
    LISTEN = 4  # the address to listen at is not to be had
    NODE_FAILED = 5  # the node could not go on: its journal, above all
    BUDGET_SPENT = 6  # errors kept coming, and the node left for another to take its place
    # Nothing is wrong with the disk: the one before is still on its way out, as a rule, and a
    # supervisor that waits a moment and starts again is right.
    IN_USE = 7  # another process has the data directory


# What the operating system says of a place that is none, or that this process may not have: a path
# or rights have to be changed, and the disk is not to be blamed.
_NO_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}


def disk_status(error: StorageError | MisalignedError) -> ExitStatus:
    """The status for what is wrong with a data directory, the same for all commands."""
    match error:
        case LockedError():
            return ExitStatus.IN_USE
        case DiskError(errno=number) if number in _NO_PLACE:
            return ExitStatus.SETTINGS
        case _:
            return ExitStatus.DISK
