"""The journal: Raft log, term, vote, commit index and incarnation, on disk before anyone is told.

The format, from the outside in (each module has its own tables):

| Where              | What                                                                     |
| ------------------ | ------------------------------------------------------------------------ |
| `journal_files.py` | segment files of a fixed size, numbered without a gap                    |
| `segments.py`      | in a segment: a header, then frames, numbered through all segments; a    |
|                    | frame has one checksum, and counts as a whole or not at all              |
| `records.py`       | in a frame: records; in a segment's first frame: the whole small state   |

`outline.py` judges whether records make sense; this module is the thread.

Why not ...

* SQLite as the log: measured at 80,000 operations a second against 135,000, and a p99 of 16 ms
  against 4, because of its own checkpoints; each page of a log entry is written twice.
* RocksDB, LMDB: a log is appended and cut at both ends; a sorted map of it costs compactions, and a
  native dependency on every platform.
* mmap: a failed write comes as a signal, not as an error that can be handled; a page fault stops
  the whole event loop; and the order of what reaches the disk is anyone's guess.
* O_DIRECT: needs aligned memory, thus a copy of each command, and saves only the page cache's.
* one file that grows: each fsync would have to write the file's new size too.

Why a thread: fsync blocks, and the event loop must not. One fsync is under way at a time, and what
arrives meanwhile joins the next frame, so that a busy disk makes larger frames, not a longer queue.
A second thread makes segments ready, which takes longer than any write may.

A write that is too large for a frame takes several, each durable before the next, and is answered
after the last. So a crash may leave its beginning, which is what the log was before its last
changes: no record needs one after it. What a checkpoint or a message promises waits for the answer.
"""

import asyncio
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NamedTuple

from cluster.storage.errors import ClosedError, DiskError, StorageError
from cluster.storage.journal_files import JournalFiles, JournalSettings, Recovered
from cluster.storage.records import ENTRY_OVERHEAD_BYTES, TEXT_MAX_BYTES, Entry, Record

__all__ = ["Counters", "Journal", "JournalFiles", "JournalSettings", "Recovered"]

_log = logging.getLogger(__name__)

Then = Callable[[StorageError | None], None]

# Upper bounds of the histogram's buckets; there is one more for what is above.
FSYNC_BUCKETS_S = (
    0.000_05,
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
)

# Writes that wait are joined up to about this much: beyond it a larger frame saves nothing.
JOIN_MAX_BYTES = 8 << 20
# After a full disk refused a spare segment.
UPKEEP_RETRY_S = 10.0
_SMALL_RECORD_BYTES = TEXT_MAX_BYTES + 32  # no record but an entry takes more


@dataclass(slots=True)
class Counters:
    """What the journal did since it was opened. Read them, never write them."""

    writes: int = 0
    frames: int = 0
    bytes: int = 0
    fsyncs: int = 0
    fsync_s: float = 0.0
    fsync_buckets: list[int] = field(default_factory=lambda: [0] * (len(FSYNC_BUCKETS_S) + 1))


class _Write(NamedTuple):
    records: Sequence[Record]
    then: Then
    is_last: bool = False


class Journal:
    """Writes in a thread. Its methods belong to the event loop that it was made in.

    After the first failure every write gets that error: after a failed fsync nothing may be assumed
    about what is on disk, so the node has to end and recover. What waits is not bounded here: these
    are references to entries that the log has in memory, and the log is bounded.
    """

    def __init__(
        self,
        files: JournalFiles,
        *,
        join_max_bytes: int = JOIN_MAX_BYTES,
        end_gentle_work: Callable[[], None] | None = None,
    ) -> None:
        """`end_gentle_work` is `OsDirectory`'s: a spare segment in the making keeps nobody."""
        self.counters = Counters()
        self._files = files
        self._end_gentle_work = end_gentle_work
        self._join_max_bytes = min(join_max_bytes, files.payload_max_bytes)
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Write] = SimpleQueue()
        self._held: _Write | None = None  # taken from the queue, too large for the frame before
        self._unanswered = 0
        self._progress_at_s = 0.0  # when the oldest unanswered write came, or one was answered last
        self._closed: asyncio.Future[None] | None = None
        self._upkeep_queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._upkeep_error: StorageError | None = None
        self._upkeep_not_before_s = 0.0
        self._threads = [
            threading.Thread(target=self._write_frames, name="journal", daemon=True),
            threading.Thread(target=self._keep_up, name="journal-upkeep", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self._ask_for_upkeep()

    @property
    def size_bytes(self) -> int:
        """What the journal takes on disk."""
        return self._files.size_bytes

    @property
    def segments(self) -> int:
        """How many files hold the log, without the spare ones."""
        return len(self._files._old) + 1  # noqa: SLF001 - its length only, in one step

    @property
    def waiting(self) -> int:
        """How many writes were not answered yet."""
        return self._unanswered

    @property
    def stalled_s(self) -> float:
        """How long nothing was answered although something waits; 0 if nothing does."""
        return time.monotonic() - self._progress_at_s if self._unanswered else 0.0

    @property
    def upkeep_error(self) -> StorageError | None:
        """Why there was no spare segment the last time that one was to be made."""
        return self._upkeep_error

    def write(self, records: Sequence[Record], then: Then) -> None:
        """Have records written; `then` is called in the event loop when they are durable.

        Never blocks. Writes are answered in order; those of one frame together. A large write may
        take several frames, so a crash may leave its first records without the rest. The records
        must not be changed any more.
        """
        if self._closed is not None:
            self._loop.call_soon(then, ClosedError("the journal"))
            return
        self._enqueue(_Write(records, then))

    async def flush(self) -> None:
        """Wait until all that was written before is durable. Raises if it is not."""
        await self._ask(is_last=False)

    async def close(self) -> None:
        """Write what waits, seal the journal, end the threads.

        Raises what kept it from that; the files are given back all the same.
        """
        if self._closed is None:
            self._closed = self._ask(is_last=True)
        # Two callers may wait, and one of them may give up.
        try:
            await asyncio.shield(self._closed)
        finally:
            if self._closed.done():
                self._threads[0].join()  # it has told its last, there is nothing to wait for

    def _ask(self, *, is_last: bool) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()

        def answer(error: StorageError | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        if self._closed is None:
            self._enqueue(_Write((), answer, is_last))
        else:
            answer(ClosedError("the journal"))
        return future

    def _enqueue(self, write: _Write) -> None:
        if not self._unanswered:
            self._progress_at_s = time.monotonic()
        self._unanswered += 1
        self.counters.writes += 1
        self._queue.put(write)

    def _tell(self, writes: Sequence[_Write], error: StorageError | None) -> None:
        self._unanswered -= len(writes)
        self._progress_at_s = time.monotonic()
        for write in writes:
            try:
                write.then(error)
            except Exception as raised:  # noqa: BLE001 - the others must hear of it all the same
                self._loop.call_exception_handler(
                    {"message": "a callback of the journal failed", "exception": raised}
                )

    # In the journal's thread

    def _write_frames(self) -> None:
        failure: StorageError | None = None
        is_last = False
        while not is_last:
            writes = self._take()
            is_last = writes[-1].is_last
            try:
                if failure is None:
                    self._write([record for write in writes for record in write.records])
            except StorageError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - told to all who wait, as any failure
                failure = StorageError(f"the journal's thread failed: {error!r}")
                failure.__cause__ = error
            if is_last:
                failure = self._end() or failure
            try:
                self._loop.call_soon_threadsafe(self._tell, writes, failure)
            except RuntimeError:
                break  # the loop is closed: there is no one left to tell
        if not is_last:
            self._end()

    def _take(self) -> list[_Write]:
        """At least one write, and what has come with it, as far as it fits into one frame."""
        held, self._held = self._held, None
        first = held or self._queue.get()
        writes = [first]
        size_bytes = _size_bytes(first.records)
        while not writes[-1].is_last:
            try:
                write = self._queue.get_nowait()
            except Empty:
                break
            size_bytes += _size_bytes(write.records)
            if size_bytes > self._join_max_bytes:
                self._held = write
                break
            writes.append(write)
        return writes

    def _write(self, records: Sequence[Record]) -> None:
        """Make records durable: in one frame nearly always, and in none if it is a flush."""
        for run in _runs(records, self._files.payload_max_bytes):
            self._write_frame(run)

    def _write_frame(self, records: Sequence[Record]) -> None:
        files, counters = self._files, self.counters
        files.append(records)
        begin_s = time.perf_counter()
        files.sync()
        fsync_s = time.perf_counter() - begin_s
        counters.frames = files.frames
        counters.bytes = files.written_bytes
        counters.fsyncs += 1
        counters.fsync_s += fsync_s
        counters.fsync_buckets[bisect_left(FSYNC_BUCKETS_S, fsync_s)] += 1
        self._ask_for_upkeep()

    def _ask_for_upkeep(self) -> None:
        is_time = time.monotonic() >= self._upkeep_not_before_s
        if is_time and self._upkeep_queue.empty() and self._files.wants_reclaim:
            self._upkeep_queue.put(self._files.reclaim)

    def _end(self) -> StorageError | None:
        if self._end_gentle_work is not None:
            self._end_gentle_work()
        self._upkeep_queue.put(None)
        self._threads[1].join()
        try:
            self._files.close()
        except StorageError as error:
            return error
        return None

    # In the upkeep's thread

    def _keep_up(self) -> None:
        while (work := self._upkeep_queue.get()) is not None:
            try:
                work()
                self._note_upkeep(None)
            except ClosedError:
                pass  # it was cut short because the journal is being closed
            except StorageError as error:
                # A full disk can wait. Anything else has broken the files, and the next write is
                # told.
                self._note_upkeep(error)
                self._upkeep_not_before_s = time.monotonic() + UPKEEP_RETRY_S

    def _note_upkeep(self, error: StorageError | None) -> None:
        """Keep what came of it, and log what is new: it is tried every few seconds."""
        before, self._upkeep_error = self._upkeep_error, error
        if error is None:
            if before is not None:
                _log.warning("the journal has its spare segments again")
        elif _kind(error) != _kind(before):
            _log.warning(
                "no spare segment could be made for the journal; the node will end when it needs "
                "one: %s",
                error,
            )


def _runs(records: Sequence[Record], max_bytes: int) -> Iterator[Sequence[Record]]:
    """The records in runs that fit into a frame each; one that never would is alone."""
    begin = size_bytes = 0
    for end, record in enumerate(records):
        record_bytes = _record_bytes(record)
        if size_bytes + record_bytes > max_bytes and end > begin:
            yield records[begin:end]
            begin, size_bytes = end, 0
        size_bytes += record_bytes
    if begin < len(records):
        yield records[begin:]


def _size_bytes(records: Sequence[Record]) -> int:
    """An upper bound of what the records take in a frame."""
    return sum(map(_record_bytes, records))


def _record_bytes(record: Record) -> int:
    if type(record) is Entry:
        return ENTRY_OVERHEAD_BYTES + len(record.command)
    return _SMALL_RECORD_BYTES


def _kind(error: StorageError | None) -> tuple[type, int | None]:
    """What makes an error another one: its text names another file each time."""
    return type(error), error.errno if isinstance(error, DiskError) else None
