"""With what status a process ends, so that its supervisor can tell what to do next."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Part of the interface: numbers are never given a new meaning."""

    STOPPED = 0  # in order, because it was asked to
    UNEXPECTED = 1  # a defect; the log has the details
    SETTINGS = 2  # settings or usage: starting again will not help
    DISK = 3  # the disk does not hold a whole node: `ritornello-server recover` says more
    LISTEN = 4  # the address to listen at is not to be had
    NODE_FAILED = 5  # the node could not go on: its journal, above all
    BUDGET_SPENT = 6  # errors kept coming, and the node left for another to take its place
