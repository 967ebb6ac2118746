"""Reads what is left of a damaged journal: as much as is certain to be what was written.

Frames have checksums and numbers, so what can be read is as it was written, and what is missing is
known. Where frames are missing the log breaks. Entries behind a break count only if they join what
is before it: two logs that have an entry of the same index and term are the same up to there
(Ongaro's thesis, 3.5), and each segment says which entry was the last before it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from api.commands.disk import ReadOnlyFile, segments
from cluster.storage.disk import Buffer
from cluster.storage.errors import DamagedError, OtherVersionError, StorageError
from cluster.storage.records import (
    Base,
    Commit,
    Entry,
    Identity,
    Incarnation,
    MalformedError,
    Record,
    State,
    Truncate,
    Vote,
    decode,
)
from cluster.storage.segments import (
    HEADER_BYTES,
    SECTOR_BYTES,
    TAG_BYTES,
    Frame,
    SegmentReader,
    decode_header,
)

LogEntry = tuple[int, int, bytes]  # index, term, command


@dataclass(slots=True)
class Fragment:
    """A part of the log between two breaks."""

    before: tuple[int, int] | None = None  # index and term of the entry before the first, if known
    entries: list[LogEntry] = field(default_factory=list)

    @property
    def points(self) -> list[tuple[int, int]]:
        """Indexes and terms of its entries, in order, and of the one before them."""
        first = [] if self.before is None else [self.before]
        return first + [(index, term) for index, term, _ in self.entries]

    def after(self, index: int) -> list[LogEntry]:
        """Its entries beyond an index."""
        return [one for one in self.entries if one[0] > index]


@dataclass(slots=True)
class JournalScan:
    """What can be read of a journal."""

    identity: Identity | None = None
    incarnation: int = 0
    term: int = 0
    commit_index: int = 0
    last_index: int = 0  # the highest that is spoken of anywhere
    frames: int = 0
    lost_frames: int = 0
    is_sealed: bool = False  # by a node that was stopped in order
    is_torn: bool = False  # its last frame was begun, and not written to its end
    fragments: list[Fragment] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def join(self, index: int, term: int) -> list[LogEntry]:
        """The entries that are certain to follow the one with this index and term."""
        log: list[LogEntry] = []
        for fragment in self.fragments:
            terms = {index: term, **{one[0]: one[1] for one in log}}
            common = [place for place, of in fragment.points if terms.get(place) == of]
            if common:
                place = max(common)
                log = [one for one in log if one[0] <= place] + fragment.after(place)
        return log


def scan_journal(directory: Path) -> JournalScan:
    """Read all frames that are whole. Raises `DiskError` if the directory cannot be looked at."""
    scan = JournalScan()
    reading = _Reading(scan)
    before = 0
    found = segments(directory)
    for number, name in found:
        if before and number != before + 1:
            scan.problems.append(f"segments {before + 1} to {number - 1} are missing")
            reading.expected = None
        before = number
        path = f"{directory}/{name}"
        try:
            reader = _reader(path, scan)
        except OtherVersionError:
            raise
        except StorageError as error:
            scan.problems.append(str(error))
            reading.expected = None
            continue
        reading.segment(reader, is_last=number == found[-1][0])
    return scan


class _Content:
    """A file's bytes, as long as its header says."""

    def __init__(self, path: str, data: bytes, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self._data = data[:size_bytes].ljust(size_bytes, b"\0")

    def read(self, offset: int, size_bytes: int) -> bytes:
        return self._data[offset : offset + size_bytes]

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Nothing is written."""

    def sync(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """There is nothing to give back."""


def _reader(path: str, scan: JournalScan) -> SegmentReader:
    file = ReadOnlyFile(path)
    with contextlib.closing(file):
        header = decode_header(path, file.read(0, HEADER_BYTES))
        if header.size_bytes != file.size_bytes:
            scan.problems.append(f"{path} has {file.size_bytes} bytes, not {header.size_bytes}")
        if header.size_bytes > max(2 * file.size_bytes, 1 << 32):
            raise DamagedError(path, "its header tells a size that it never had")
        data = file.read(0, file.size_bytes)
    return SegmentReader(_Content(path, data, header.size_bytes))


class _Reading:
    """Follows the frames of all segments."""

    def __init__(self, scan: JournalScan) -> None:
        self._scan = scan
        self._fragment: Fragment | None = None
        self.expected: int | None = None  # the next frame's number; None: something is missing

    def segment(self, reader: SegmentReader, *, is_last: bool) -> None:
        scan = self._scan
        end = SECTOR_BYTES
        if self.expected is not None and reader.header.first_frame != self.expected:
            self._lose(reader.path, end, reader.header.first_frame - self.expected)
        expected = reader.header.first_frame
        is_whole = True
        while (frame := reader.frame_after(end)) is not None:
            if frame.number != expected:
                self._lose(reader.path, end, frame.number - expected)
                is_whole = False
            self._frame(reader, frame)
            expected, end = frame.number + 1, frame.end
        if expected == reader.header.first_frame:
            scan.problems.append(f"{reader.path}: none of its frames can be read")
            self._fragment = None
        self.expected = expected
        if is_last and is_whole:
            # A frame that was begun has the segment's tag, unless its first sector never came.
            tag = _bytes_at(reader, end, TAG_BYTES)
            scan.is_torn = tag == reader.header.tag

    def _lose(self, path: str, offset: int, count: int) -> None:
        scan = self._scan
        scan.lost_frames += max(count, 0)
        scan.problems.append(f"{path} at byte {offset}: {max(count, 1)} frames cannot be read")
        self._fragment = None

    def _frame(self, reader: SegmentReader, frame: Frame) -> None:
        scan = self._scan
        scan.frames += 1
        scan.is_sealed = not frame.payload
        try:
            records = decode(frame.payload)
        except MalformedError as error:
            scan.problems.append(f"{reader.path} at byte {frame.offset}: {error}")
            self._fragment = None
            return
        for record in records:
            self._record(record)

    def _record(self, record: Record | State) -> None:
        scan = self._scan
        fragment = self._fragment
        if isinstance(record, State):
            scan.identity = scan.identity or record.identity
            scan.incarnation = max(scan.incarnation, record.incarnation)
            scan.term = max(scan.term, record.term)
            scan.commit_index = max(scan.commit_index, record.commit_index)
            scan.last_index = max(scan.last_index, record.last_index)
            if fragment is None:
                self._begin((record.last_index, record.last_term))
            return
        if fragment is None:
            fragment = self._begin(None)
        match record:
            case Entry(index, term, command):
                last = fragment.points[-1][0] if fragment.before or fragment.entries else None
                if last is not None and index != last + 1:
                    fragment = self._begin(None)
                fragment.entries.append((index, term, command))
                scan.last_index = max(scan.last_index, index)
            case Truncate(from_index):
                fragment.entries = [one for one in fragment.entries if one[0] < from_index]
                if fragment.before is not None and fragment.before[0] >= from_index:
                    fragment.before = None
            case Base(index, term, keeps):
                if not keeps:
                    self._begin((index, term))
                scan.commit_index = max(scan.commit_index, index)
                scan.last_index = max(scan.last_index, index)
            case Commit(index):
                scan.commit_index = max(scan.commit_index, index)
                scan.last_index = max(scan.last_index, index)
            case Vote(term, _):
                scan.term = max(scan.term, term)
            case Incarnation(number):
                scan.incarnation = max(scan.incarnation, number)

    def _begin(self, before: tuple[int, int] | None) -> Fragment:
        self._fragment = fragment = Fragment(before)
        self._scan.fragments.append(fragment)
        return fragment


def _bytes_at(reader: SegmentReader, offset: int, size_bytes: int) -> bytes:
    file = ReadOnlyFile(reader.path)
    with contextlib.closing(file):
        return file.read(offset, size_bytes)
