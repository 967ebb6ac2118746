"""The journal's files: begun, recovered, written, rotated, reclaimed.

Synchronous; `journal.py` has the thread around it, and the reasons for it all.

    segment-0000000000000001   the log, oldest segment first; the last one is being written
    segment-0000000000000002
    spare-0000000000000004     of full size, to become the next segment by a rename
    preparing-...              on its way to becoming one of those; removed when the journal opens

What keeps recovery simple:

* A frame is written only after the frame before it is durable. So a power cut tears the last frame
  at most, and a frame that is wrong although something valid comes after it is *damage*.
* A segment's header and first frame (the whole small state) are durable before the file is named a
  segment. So a segment never begins with a torn frame, and each header says how many frames the
  segment before it must have: a torn tail there has been cut off and is told from damage.
* A name that is a promise (a new segment, a segment that went) is durable before the next step.

What cannot be told: damage to the very last frame, or the loss of the very last segment, looks
like a power cut. `close` therefore seals the journal with an empty frame, and whoever writes after
opening protects what was recovered.
"""

import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from cluster.storage.disk import Directory, File
from cluster.storage.errors import (
    ClosedError,
    DamagedError,
    DiskFullError,
    RefusedError,
    StorageError,
    TooLargeError,
    WrongIdentityError,
)
from cluster.storage.outline import NonsenseError, Outline
from cluster.storage.records import (
    Encoder,
    Entry,
    Identity,
    MalformedError,
    Record,
    State,
    decode,
    text_fits,
)
from cluster.storage.segments import (
    FRAME_BYTES,
    PAGE_BYTES,
    SECTOR_BYTES,
    TAG_BYTES,
    Frame,
    Header,
    SegmentReader,
    SegmentWriter,
    frame_room,
    pages,
)

MIB = 1 << 20

LogEntry = tuple[bytes, int, int]  # command, index, term

_SEGMENT = "segment-"
_SPARE = "spare-"
_PREPARING = "preparing-"
_NUMBERED = re.compile(r"(?:segment|spare)-([0-9]{16})")


@dataclass(frozen=True, slots=True)
class JournalSettings:
    """Bounds of one journal. They may change between two openings."""

    # Reclaiming is by whole segments, and recovery reads one at a time into memory.
    segment_bytes: int = 64 * MIB
    # One frame, in memory and on disk; far above any batch, so that only a mistake meets it.
    frame_max_bytes: int = 128 * MIB
    # Segments made ahead. The second is for a burst during the making of the first.
    spares_max: int = 2
    # Old ones kept for reuse: a rename, where a new one costs the disk all of its bytes. One
    # checkpoint under full load sets free about three.
    recycled_max: int = 4

    def __post_init__(self) -> None:
        if self.segment_bytes < 2 * PAGE_BYTES or self.segment_bytes % PAGE_BYTES:
            raise ValueError(
                f"segment_bytes is {self.segment_bytes}, and has to be a multiple of "
                f"{PAGE_BYTES}, {2 * PAGE_BYTES} at least"
            )
        if not PAGE_BYTES <= self.frame_max_bytes <= 1 << 31:
            raise ValueError(
                f"frame_max_bytes is {self.frame_max_bytes}, and has to be from {PAGE_BYTES} "
                f"to {1 << 31}"
            )
        for name in ("spares_max", "recycled_max"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} is {value}, and has to be 0 or more")

    @property
    def kept_max(self) -> int:
        """Spare segments that are kept: removing one that is made anew at once would be a waste."""
        return max(self.spares_max, self.recycled_max)


class Recovered(NamedTuple):
    """What the journal held when it was opened, durable now."""

    base_index: int
    base_term: int
    entries: list[LogEntry]
    term: int
    voted_for: str | None
    commit_index: int
    incarnation: int


class _Old(NamedTuple):
    """A segment that is not written any more."""

    name: str
    size_bytes: int
    max_index: int


class JournalFiles:
    """An open journal. After any error it is broken for good: what is on disk is not known.

    One thread may call `append` and `sync` while another calls `reclaim`.
    """

    def __init__(
        self,
        directory: Directory,
        settings: JournalSettings,
        make_tag: Callable[[], bytes],
        replay: "_Replay",
    ) -> None:
        """For `open` only."""
        self._directory = directory
        self._settings = settings
        self._make_tag = make_tag
        self._outline = replay.outline
        self._next_frame = replay.next_frame
        self._durable_base_index = replay.outline.base_index
        self._is_durable = True
        self._failure: StorageError | None = None
        # Guards what `append` and `reclaim` both change: the three below.
        self._lock = threading.Lock()
        self._old: deque[_Old] = deque(replay.old)  # contiguous, oldest first
        self._spares: deque[str] = deque()
        self._next_spare = 1
        self._current: SegmentWriter = replay.writer()
        self.frames = 0
        """How many were written since the journal was opened."""
        self.written_bytes = 0
        """What they took, with what pads them."""

    @classmethod
    def open(
        cls,
        directory: Directory,
        identity: Identity,
        settings: JournalSettings | None = None,
        *,
        make_tag: Callable[[], bytes] = lambda: secrets.token_bytes(TAG_BYTES),
    ) -> tuple[Self, Recovered]:
        """Recover what is there, or begin a journal in a directory that has none.

        Nothing is changed on disk before all of it was found to be right.
        """
        settings = settings or JournalSettings()
        for text in identity:
            if not text_fits(text):
                raise RefusedError(f"{text!r} cannot be part of an identity")
        names = directory.names()
        numbers = _segment_numbers(directory, names)
        if not numbers:
            if any(name.startswith(_SPARE) for name in names):
                raise DamagedError(directory.path, "there are spare segments, but no segment")
            _remove_prepared(directory, names)
            _begin(directory, identity, settings, make_tag())
            names, numbers = [], [1]
        replay = _Replay(directory, identity)
        try:
            for number in numbers:
                replay.segment(number)
            replay.settle()
            directory.sync()
            _remove_prepared(directory, names)
            files = cls(directory, settings, make_tag, replay)
            files._adopt_spares(names)
        except BaseException:
            replay.close()
            raise
        return files, replay.recovered()

    @staticmethod
    def exists(directory: Directory) -> bool:
        """Whether there is a journal, whole or not: `open` would make a new one where none is."""
        return any(name.startswith(_SEGMENT) for name in directory.names())

    @property
    def size_bytes(self) -> int:
        """What all segments take on disk, the spare ones too."""
        with self._lock:
            spare_bytes = len(self._spares) * self._settings.segment_bytes
            old_bytes = sum(old.size_bytes for old in self._old)
            return self._current.header.size_bytes + old_bytes + spare_bytes

    @property
    def payload_max_bytes(self) -> int:
        """How much the records of one frame may take."""
        return self._settings.frame_max_bytes - FRAME_BYTES

    @property
    def failure(self) -> StorageError | None:
        """What broke the journal."""
        return self._failure

    @property
    def wants_reclaim(self) -> bool:
        """Whether `reclaim` would do something."""
        with self._lock:
            return len(self._spares) < self._settings.spares_max or self._is_reclaimable()

    def append(self, records: Iterable[Record]) -> None:
        """Write one frame; `sync` makes it durable. All of its records count, or none."""
        self._check()
        if not self._is_durable:
            self.sync()  # two frames that are not durable could not be told from damage
        try:
            self._append(records)
        except StorageError as error:
            self._failure = error
            raise
        except Exception as error:
            self._failure = RefusedError(f"these are not records: {error!r}")
            raise self._failure from error

    def sync(self) -> None:
        """Make durable what was appended."""
        self._check()
        if self._is_durable:
            return
        try:
            self._current.file.sync()
        except StorageError as error:
            self._failure = error
            raise
        self._is_durable = True
        self._durable_base_index = self._outline.base_index

    def reclaim(self) -> None:
        """Recycle segments that a durable `Base` made needless; have spare ones ready.

        A full disk breaks nothing here, nor does the end of gentle work: there is no spare segment,
        and it is told.
        """
        self._check()
        refused: DiskFullError | ClosedError | None = None
        try:
            while (old := self._take_reclaimable()) is not None:
                self._recycle(old)
            while refused is None and len(self._spares) < self._settings.spares_max:
                refused = self._prepare_spare()
        except StorageError as error:
            self._failure = error
            raise
        except Exception as error:
            self._failure = StorageError(f"reclaiming failed: {error!r}")
            raise self._failure from error
        if refused is not None:
            raise refused

    def close(self) -> None:
        """Make durable what was appended, seal it, and give the files back."""
        if isinstance(self._failure, ClosedError):
            return
        try:
            if self._failure is None:
                self.sync()
                if self._current.free_bytes >= frame_room(0):
                    self.append(())
                    self.sync()
        finally:
            self._failure = ClosedError(self._directory.path)
            self._current.file.close()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _append(self, records: Iterable[Record]) -> None:
        outline = self._outline
        encoder = Encoder()
        max_index = 0
        try:
            state = outline.state()
            for record in records:
                encoder.add(outline.add(record))
                if type(record) is Entry and record.index > max_index:
                    max_index = record.index
        except NonsenseError as error:
            raise RefusedError(str(error)) from error
        if FRAME_BYTES + encoder.size_bytes > self._settings.frame_max_bytes:
            raise TooLargeError(
                "a frame", FRAME_BYTES + encoder.size_bytes, self._settings.frame_max_bytes
            )
        room_bytes = frame_room(encoder.size_bytes)
        if room_bytes > self._current.free_bytes:
            self._rotate(state, room_bytes)
        self.written_bytes += self._current.write(
            self._next_frame, encoder.buffers, encoder.size_bytes
        )
        self._is_durable = False
        self._next_frame += 1
        self.frames += 1
        self._current.max_index = max(self._current.max_index, max_index)

    def _rotate(self, state: State, room_bytes: int) -> None:
        """Begin a segment with room for a frame; the current one is durable."""
        number = self._current.header.number + 1
        size_bytes = max(
            self._settings.segment_bytes, pages(SECTOR_BYTES + _state_room(state) + room_bytes)
        )
        with self._lock:
            is_usual = size_bytes == self._settings.segment_bytes
            name = self._spares.popleft() if is_usual and self._spares else None
        if name is None:
            name = f"{_PREPARING}{number}"
            file = self._directory.create(name, size_bytes)
        else:
            file = self._directory.open(name)
        header = Header(number, self._next_frame, size_bytes, self._make_tag())
        fresh = _start_segment(self._directory, name, file, header, state)
        self._next_frame += 1
        with self._lock:
            before = self._current
            self._old.append(
                _Old(_segment_name(number - 1), before.header.size_bytes, before.max_index)
            )
            self._current = fresh
        before.file.close()

    def _is_reclaimable(self) -> bool:
        return bool(self._old) and self._old[0].max_index <= self._durable_base_index

    def _take_reclaimable(self) -> _Old | None:
        with self._lock:
            return self._old.popleft() if self._is_reclaimable() else None

    def _recycle(self, old: _Old) -> None:
        is_wanted = (
            old.size_bytes == self._settings.segment_bytes
            and len(self._spares) < self._settings.kept_max
        )
        if not is_wanted:
            self._directory.remove(old.name)
            self._directory.sync()
            return
        name = self._new_spare_name()
        self._directory.rename(old.name, name)
        # Before the file is written as another segment, and before the next segment goes.
        self._directory.sync()
        with self._lock:
            self._spares.append(name)

    def _prepare_spare(self) -> DiskFullError | ClosedError | None:
        name = self._new_spare_name()
        prepared = f"{_PREPARING}{name}"
        try:
            size_bytes = self._settings.segment_bytes
            self._directory.create(prepared, size_bytes, gently=True).close()
        except (DiskFullError, ClosedError) as error:
            return error
        self._directory.rename(prepared, name)
        with self._lock:
            self._spares.append(name)
        return None

    def _new_spare_name(self) -> str:
        name = f"{_SPARE}{self._next_spare:016}"
        self._next_spare += 1
        return name

    def _adopt_spares(self, names: Sequence[str]) -> None:
        for name in names:
            if not name.startswith(_SPARE):
                continue
            numbered = _NUMBERED.fullmatch(name)
            if numbered is None:
                continue  # not ours
            self._next_spare = max(self._next_spare, int(numbered[1]) + 1)
            file = self._directory.open(name)
            size_bytes = file.size_bytes
            file.close()
            is_usual = size_bytes == self._settings.segment_bytes
            if is_usual and len(self._spares) < self._settings.kept_max:
                self._spares.append(name)
            else:
                self._directory.remove(name)


class _Replay:
    """Reads the segments, oldest first, and holds what they said."""

    def __init__(self, directory: Directory, identity: Identity) -> None:
        self._directory = directory
        self._identity = identity
        self._outline: Outline | None = None
        self._entries: deque[LogEntry] = deque()
        self._file: File | None = None  # the last segment's
        self._reader: SegmentReader | None = None
        self._last: Frame | None = None
        self._max_index = 0
        self.old: list[_Old] = []
        self.next_frame = 0

    @property
    def outline(self) -> Outline:
        if self._outline is None:
            raise DamagedError(self._directory.path, "no segment has a first frame")
        return self._outline

    def segment(self, number: int) -> None:
        """Read the next segment."""
        before, path = self._reader, None
        if self._file is not None:
            path = self._file.path
            self._file.close()
        if before is not None:
            self.old.append(
                _Old(_segment_name(before.header.number), before.header.size_bytes, self._max_index)
            )
        self._file = self._directory.open(_segment_name(number))
        reader = SegmentReader(self._file)
        header = reader.header
        if header.number != number:
            raise DamagedError(reader.path, f"its header says that it is segment {header.number}")
        if path is not None and header.first_frame != self.next_frame:
            raise DamagedError(
                path,
                f"it ends with frame {self.next_frame - 1}, but the next segment begins with "
                f"frame {header.first_frame}",
                self._end,
            )
        self._reader = reader
        self._last = None
        self._max_index = 0
        self.next_frame = header.first_frame
        for frame in reader.frames():
            try:
                self._frame(frame)
            except (MalformedError, NonsenseError) as error:
                raise DamagedError(reader.path, str(error), frame.offset) from error
            self._last = frame
            self.next_frame += 1
        if self._last is None:
            # It was durable before the file was named a segment: no power cut does this.
            raise DamagedError(reader.path, "its first frame is wrong", self._end)

    def settle(self) -> None:
        """After the last segment: see that the log is whole, and make all of it durable."""
        reader, last, file = self._reader, self._last, self._file
        if reader is None or last is None or file is None:
            raise DamagedError(self._directory.path, "there is no segment")
        later = reader.frame_after(last.end)
        if later is not None:
            raise DamagedError(
                reader.path,
                f"frame {self.next_frame} is wrong, but there is frame {later.number} at byte "
                f"{later.offset}",
                last.end,
            )
        if self.outline.is_missing_entries:
            raise DamagedError(
                self._directory.path,
                f"entries {self.outline.base_index + 1} to {self.outline.missing_to_index} are "
                "missing: the segments that held them are gone",
            )
        # The last frame may never have been synced, or its sync may have failed and the kernel
        # may only believe that its pages are clean. Written again, they are not.
        begin, end = last.offset, pages(last.end)
        kept = file.read(begin, FRAME_BYTES + len(last.payload))
        file.write(begin, (kept, bytes(end - begin - len(kept))))
        file.sync()

    def writer(self) -> SegmentWriter:
        """What goes on where the log ends."""
        if self._file is None or self._reader is None:
            raise DamagedError(self._directory.path, "there is no segment")
        return SegmentWriter(self._file, self._reader.header, self._end, self._max_index)

    def recovered(self) -> Recovered:
        outline = self.outline
        return Recovered(
            outline.base_index,
            outline.base_term,
            list(self._entries),
            outline.term,
            outline.voted_for,
            outline.commit_index,
            outline.incarnation,
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def _end(self) -> int:
        """Where the frame after the last one begins, or has to."""
        return SECTOR_BYTES if self._last is None else self._last.end

    def _frame(self, frame: Frame) -> None:
        records = decode(frame.payload)
        if self._last is None:
            if len(records) != 1 or not isinstance(records[0], State):
                raise MalformedError("the first frame is not the state")
            self._begin(records[0])
            return
        for record in records:
            if isinstance(record, State):
                raise MalformedError("the state is not in the first frame")
            self.outline.add(record)
            self._follow(record)

    def _begin(self, state: State) -> None:
        if state.identity != self._identity:
            raise WrongIdentityError(self._directory.path, state.identity, self._identity)
        if self._outline is None:
            self._outline = Outline(state)
        elif not self._outline.agrees(state):
            raise NonsenseError("the segment's state is not where the one before it ended")

    def _follow(self, record: Record) -> None:
        """Let the entries be those of the outline."""
        entries, outline = self._entries, self.outline
        if isinstance(record, Entry):
            entries.append((record.command, record.index, record.term))
            self._max_index = max(self._max_index, record.index)
            return
        while entries and entries[-1][1] > outline.last_index:
            entries.pop()
        while entries and entries[0][1] <= outline.base_index:
            entries.popleft()


def _segment_name(number: int) -> str:
    return f"{_SEGMENT}{number:016}"


def _segment_numbers(directory: Directory, names: Sequence[str]) -> list[int]:
    """The numbers of all segments, oldest first; there is no gap."""
    numbers: list[int] = []
    for name in names:
        if not name.startswith(_SEGMENT):
            continue
        numbered = _NUMBERED.fullmatch(name)
        if numbered is None:
            raise DamagedError(f"{directory.path}/{name}", "no segment has such a name")
        number = int(numbered[1])
        if numbers and number != numbers[-1] + 1:
            missing = _segment_name(numbers[-1] + 1)
            raise DamagedError(f"{directory.path}/{missing}", "this segment is missing")
        numbers.append(number)
    return numbers


def _remove_prepared(directory: Directory, names: Sequence[str]) -> None:
    for name in names:
        if name.startswith(_PREPARING):
            directory.remove(name)


def _state_room(state: State) -> int:
    encoder = Encoder()
    encoder.add(state)
    return frame_room(encoder.size_bytes)


def _begin(directory: Directory, identity: Identity, settings: JournalSettings, tag: bytes) -> None:
    """Make the first segment of all."""
    name = f"{_PREPARING}1"
    file = directory.create(name, settings.segment_bytes)
    header = Header(1, 1, settings.segment_bytes, tag)
    state = Outline.new(identity).state()
    _start_segment(directory, name, file, header, state).file.close()


def _start_segment(
    directory: Directory, name: str, file: File, header: Header, state: State
) -> SegmentWriter:
    """Make a segment of a file: content first, then the name."""
    encoder = Encoder()
    encoder.add(state)
    try:
        file.write(0, (header.encode(),))
        fresh = SegmentWriter(file, header, SECTOR_BYTES, 0)
        fresh.write(header.first_frame, encoder.buffers, encoder.size_bytes)
        file.sync()
    finally:
        file.close()
    directory.rename(name, _segment_name(header.number))
    directory.sync()
    # Opened again, so that errors name the file as it is named now.
    fresh.file = directory.open(_segment_name(header.number))
    return fresh
