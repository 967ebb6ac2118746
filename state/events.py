"""What a batch changed, for those who watch: one event per change, in order."""

from enum import IntEnum
from typing import NamedTuple


class EventKind(IntEnum):
    """What happened. The numbers are sent to clients."""

    CREATED = 1
    APPENDED = 2
    REPLACED = 3
    ACQUIRED = 4
    STORED = 5
    READY = 6
    PARKED = 7
    REMOVED = 8
    POLICY_CHANGED = 9  # or paused, or resumed; of a theme, with session_id 0 and revision 0


class Event(NamedTuple):
    """One change. `log_index` is the place of its batch."""

    kind: EventKind
    session_id: int
    theme: int
    key: bytes | None
    revision: int
    log_index: int


# As the machine notes it, without the index that all events of a batch share.
RawEvent = tuple[EventKind, int, int, bytes | None, int]
