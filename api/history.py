"""What has happened lately, for those who follow it.

A node keeps the events of its last batches, as the state machine noted them; what that costs a
batch does not depend on how many events it has, nor on how many follow. Who follows has no queue
of its own: it remembers a place, and takes what comes after it when it is ready to. If that is not
there any more, because it was too slow or away for too long, or because this node took its state
from another as a whole, it is told so: then only a look at everything says what has changed.

A place is the index of a batch in the log and the position of an event in it. Both are the same on
all nodes, so whoever has followed one goes on at any other.
"""

import asyncio
import re
from bisect import bisect_left
from collections import deque
from typing import NamedTuple, Protocol, Self

from api.gateway import Watcher
from state import Applied
from state.events import RawEvent

# What an event takes at most while keys have up to 256 bytes, as they have by default.
EVENT_BYTES = 512
HISTORY_BYTES = 1 << 30
# Kept however small the settings are: followers look a little later, when more has happened.
EVENTS_MIN = 4096

_WORK_SHARE = 5  # of all time, no more than one in so many parts goes to followers

_PLACE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?")
_WHOLE = 2**31  # above the position of any event: all of the batch


class Place(NamedTuple):
    """Where somebody is who has seen this event and all before it."""

    log_index: int
    position: int = _WHOLE

    @classmethod
    def of(cls, text: str) -> Self | None:
        """The place that was written by `str`; None if it was not."""
        found = _PLACE.fullmatch(text)
        if found is None:
            return None
        log_index, position = found.groups()
        return cls(int(log_index)) if position is None else cls(int(log_index), int(position))

    def __str__(self) -> str:
        whole = self.position == _WHOLE
        return f"{self.log_index}" if whole else f"{self.log_index}.{self.position}"


class Passage(NamedTuple):
    """Events of one batch, one after the other, from a position in it on."""

    log_index: int
    first: int
    events: tuple[RawEvent, ...]


class Source(Protocol):
    """The gateway, as far as this is concerned with it."""

    watchers: list[Watcher]

    @property
    def applied_index(self) -> int:
        """Where in the log this node's copy is."""


class GoneError(Exception):
    """What comes after a place is not known here any more."""


class _Batch(NamedTuple):
    log_index: int
    events: tuple[RawEvent, ...]


class History:
    """The last events of one node. To be made when the node has started."""

    def __init__(self, source: Source, *, events_max: int) -> None:
        self._source = source
        self._events_max = min(max(events_max, EVENTS_MIN), HISTORY_BYTES // EVENT_BYTES)
        self._batches: deque[_Batch] = deque()
        self._floor = Place(source.applied_index)  # all that came after it is in the batches
        self._log_index = self._floor.log_index
        self._changed: asyncio.Future[None] | None = None
        self.turns = Turns()
        self.event_count = 0  # that are kept
        self.followers = 0  # streams that are open
        self.resyncs = 0  # how often somebody was told that what it needs is gone
        source.watchers.append(self)

    @property
    def end(self) -> Place:
        """The place after all that has happened so far."""
        return Place(self._log_index)

    def after(self, place: Place, count: int) -> list[Passage]:
        """The first `count` events after a place; fewer, if these are all. Raises `GoneError`."""
        if place < self._floor:
            self.resyncs += 1
            raise GoneError
        found: list[Passage] = []
        number = self._number_of(place.log_index)
        while number < len(self._batches) and count > 0:
            log_index, events = self._batches[number]
            first = place.position + 1 if log_index == place.log_index else 0
            some = events[first : first + count]
            if some:
                found.append(Passage(log_index, first, some))
                count -= len(some)
            number += 1
        return found

    def _number_of(self, log_index: int) -> int:
        """Which batch is the first that has this index or a higher one.

        From the end, where most followers are: elsewhere a deque takes its time.
        """
        batches = self._batches
        step = 1
        while step < len(batches) and batches[-step].log_index >= log_index:
            step *= 2
        return bisect_left(batches, log_index, max(len(batches) - step, 0), key=_log_index_of)

    def changed(self) -> "asyncio.Future[None]":
        """A future of all who wait: it is done when there are more events than now."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def _tell(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    # What the node tells

    def on_applied(self, applied: Applied) -> None:
        self._log_index = applied.index
        events = applied.raw_events
        if not events:
            return
        batches = self._batches
        batches.append(_Batch(applied.index, events))
        self.event_count += len(events)
        while self.event_count > self._events_max and len(batches) > 1:
            log_index, events = batches.popleft()
            self.event_count -= len(events)
            self._floor = Place(log_index, len(events) - 1)
        if self._changed is not None:
            self._tell()

    def on_leader(self, leader: str | None) -> None:
        """Whoever leads, what was committed has happened."""

    def on_installed(self) -> None:
        self._batches.clear()
        self.event_count = 0
        self._log_index = self._source.applied_index
        self._floor = Place(self._log_index)
        self._tell()


def _log_index_of(batch: _Batch) -> int:
    return batch.log_index


class Turns:
    """Lets followers work one after the other, and together for a small share of all time.

    What they ask for is unbounded, events times followers; sessions come first. Whoever does not
    get a turn in time has lost its place, and is told so.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._begin_s = 0.0

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        self._begin_s = asyncio.get_running_loop().time()

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        took_s = loop.time() - self._begin_s
        loop.call_later(took_s * (_WORK_SHARE - 1), self._lock.release)
