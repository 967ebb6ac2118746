"""Follows every change of every record, for four readers that each want something else of it.

* The *checkpoint* wants what changed since the last one, written piece by piece while the machine
  goes on: `Ledger.capture`. What is about to change while a capture still waits for it is copied
  into the capture first (copy on write), so a capture is the state at one moment. Sessions that
  came and went between two captures are in neither.
* A *lagging follower* wants the whole state in the same way.
* The *digest* wants the records whose part of it is out of date.
* A *transaction* wants what a record was before it touched it.

All four hang on one test. `record.mark == ledger.mark` says that nobody needs to hear of another
change; the mark moves on whenever a reader starts over. So the hot path pays one comparison:

    if record.mark != ledger.mark:
        ledger.note(record)  # before the change

The state's digest is the sum of the digests of its records (a multiset hash, Bellare and
Micciancio 1997, AdHash), so it costs what changed. It finds accidents, not adversaries.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from state import layout
from state.layout import DIGEST_MASK, Item
from state.records import NEVER, SESSION, Record, Session

PIECE_BYTES = 1 << 20


class Undo(NamedTuple):
    """What a transaction has to put back: `before` is None for a record that it created."""

    record: Record
    before: tuple[Any, ...] | None
    chunk_count: int
    dirty: bool  # whether the next checkpoint would have written it anyway


class Capture:
    """The state, or what changed of it, at the moment of `Ledger.capture`. Read once, in pieces.

    Items come in this order: META; deletions; records by kind; CHECK, with the digest of the state
    at that moment. There is one capture at a time: of changes until `commit` or `abandon`, of
    everything until it was read or abandoned.
    """

    def __init__(
        self,
        ledger: "Ledger",
        header: Item,
        deleted: dict[Record, None],
        pending: list[dict[Record, None]] | None,
        records: list[Iterable[Record]],
    ) -> None:
        self.number = ledger.capture_count
        self.finished = False  # committed, abandoned, or all of everything read
        self._is_whole = pending is None
        self._is_read = False
        self._ledger = ledger
        self._header = header
        self._deleted = deleted
        self._pending = pending or []  # by kind
        self._records = records  # by kind
        self._rescued: list[list[Item]] = [[] for _ in records]  # by kind
        self._digest = ledger.known_digest + layout.digest_of(header)
        self._items = self._in_order()

    def wants(self, record: Record) -> bool:
        """Whether the record is part of the capture, and not copied yet."""
        return record.captured != self.number and (
            self._is_whole or record in self._pending[record.kind]
        )

    def rescue(self, record: Record) -> None:
        """Copy a record that is about to change."""
        self._rescued[record.kind].append(self._take(record))

    def redigested(self, change: int) -> None:
        """Say that the digest of a record that is wanted was made, which changes the sum."""
        self._digest += change

    def next_piece(self, size_bytes: int = PIECE_BYTES) -> list[Item]:
        """About `size_bytes` of items, at least one; none when everything was read."""
        piece: list[Item] = []
        for item in self._items:
            piece.append(item)
            size_bytes -= layout.item_bytes(item)
            if size_bytes <= 0:
                break
        return piece

    def pieces(self, size_bytes: int = PIECE_BYTES) -> Iterator[list[Item]]:
        """All pieces, one after the other."""
        while piece := self.next_piece(size_bytes):
            yield piece

    def commit(self) -> None:
        """Say that what was read is safely kept, so that the next capture need not have it.

        Raises RuntimeError if something was not read, or the capture is finished.
        """
        if not self._is_read:
            raise RuntimeError("the capture was not read to its end")
        if not self._is_whole:
            self._ledger.ended(self)

    def abandon(self) -> None:
        """End it: nothing of it counts. What changed is changed for the next capture as well.

        Raises RuntimeError if the capture is finished.
        """
        pending, deleted = self._pending, self._deleted
        self._ledger.ended(self)
        if not self._is_whole:
            self._ledger.take_back(self, pending, deleted)

    def let_go(self) -> None:
        """Hold nothing any more; the ledger says so when the capture has ended."""
        self.finished = True
        self._pending = []
        self._deleted = {}
        self._records = []
        self._rescued = []
        self._items = iter(())

    def _in_order(self) -> Iterator[Item]:
        yield self._header
        for record in self._deleted:
            yield layout.deletion(record)
        for records, rescued in zip(self._records, self._rescued, strict=True):
            for record in records:
                if record.captured != self.number:
                    yield self._take(record)
            # All of this kind are copied now, so there will be no more.
            yield from rescued
        self._is_read = True
        yield layout.check(self._digest & DIGEST_MASK, self._header)
        if self._is_whole:
            self._ledger.ended(self)

    def _take(self, record: Record) -> Item:
        fields = layout.fields_of(record)
        self._ledger.redigest(record, fields)
        record.captured = self.number
        if self._is_whole:
            return layout.item(record, fields, 0)
        first_chunk = max(record.saved, 0)
        record.saved = len(record.chunks) if isinstance(record, Session) else 0
        return layout.item(record, fields, first_chunk)


class Ledger:
    """Knows what changed, and for whom that matters."""

    def __init__(self) -> None:
        self.mark = 1
        self.undo: list[Undo] | None = None  # a list while a transaction runs
        self.capture_count = 0
        self.known_digest = 0  # the sum of record.digest over all records
        self._capture: Capture | None = None
        # invariant between captures: what is undigested is dirty
        self._undigested: dict[Record, None] = {}
        self._dirty = _by_kind()
        self._deleted: dict[Record, None] = {}

    def created(self, record: Record) -> None:
        """Say that a record has come into being."""
        record.mark = self.mark
        self._dirty[record.kind][record] = None
        self._undigested[record] = None
        if self._capture is not None:
            record.captured = self.capture_count
        if self.undo is not None:
            self.undo.append(Undo(record, None, 0, dirty=False))

    def note(self, record: Record) -> None:
        """Say that a record, whose mark is not the ledger's, is about to change."""
        capture = self._capture
        if capture is not None and capture.wants(record):
            capture.rescue(record)
        if self.undo is not None:
            self.undo.append(self._before(record))
        record.mark = self.mark
        self._dirty[record.kind][record] = None
        self._undigested[record] = None

    def removed(self, record: Record) -> None:
        """Say that a record is about to go. It must not have changed since it was noted last."""
        capture = self._capture
        if capture is not None and capture.wants(record):
            capture.rescue(record)
        if self.undo is not None:
            self.undo.append(self._before(record))
        self._dirty[record.kind].pop(record, None)
        self._undigested.pop(record, None)
        if record.saved != NEVER:
            self._deleted[record] = None
        if record.digest:
            self.known_digest -= record.digest
            record.digest = 0

    def undone(self, undo: Undo, *, removed: bool) -> None:
        """Say that a record is again what it was before a transaction changed or removed it."""
        record = undo.record
        if removed:
            # Its digest was taken out, so it has to be made again, and then be captured.
            self._deleted.pop(record, None)
            self._dirty[record.kind][record] = None
            self._undigested[record] = None
        elif not undo.dirty:
            self._dirty[record.kind].pop(record, None)
            self._undigested.pop(record, None)
            record.mark = 0

    def loaded(self, record: Record) -> None:
        """Say that a record came from a checkpoint."""
        record.saved = len(record.chunks) if isinstance(record, Session) else 0
        self._undigested[record] = None

    def rewritten(self, session: Session) -> None:
        """Say that all chunks of a noted session are replaced."""
        if session.saved != NEVER:
            session.saved = 0
        session.data_digest = 0
        session.digested_chunks = 0

    def begin(self) -> list[Undo]:
        """Start a transaction: from here to `end`, what changes is kept as it was."""
        self.mark += 1
        undo: list[Undo] = []
        self.undo = undo
        return undo

    def end(self) -> None:
        """End a transaction, however it went."""
        self.undo = None

    def _before(self, record: Record) -> Undo:
        before = tuple([getattr(record, name) for name in record.changeable])
        chunk_count = len(record.chunks) if isinstance(record, Session) else 0
        return Undo(record, before, chunk_count, record in self._dirty[record.kind])

    def digest(self) -> int:
        """The sum of the digests of all records. Costs what changed since it was asked last."""
        for record in list(self._undigested):
            self.redigest(record, layout.fields_of(record))
        self._undigested = {}  # an emptied dict would keep its size
        self.mark += 1
        return self.known_digest & DIGEST_MASK

    def redigest(self, record: Record, fields: tuple[Any, ...]) -> None:
        """Bring a record's part of the digest up to date; `fields` are its `layout.fields_of`."""
        digest = layout.digest(record, fields)
        change = digest - record.digest
        record.digest = digest
        self.known_digest += change
        self._undigested.pop(record, None)
        capture = self._capture
        if capture is not None and capture.wants(record):
            capture.redigested(change)

    @property
    def change_count(self) -> int:
        """How many records the next checkpoint will write or delete."""
        return sum(map(len, self._dirty)) + len(self._deleted)

    def capture(self, header: Item, everything: list[Iterable[Record]] | None = None) -> Capture:
        """Begin a capture of `everything`, by kind, or of what changed since the last one if None.

        Raises RuntimeError while another is not finished.
        """
        if self._capture is not None:
            raise RuntimeError("another capture is not finished")
        self.capture_count += 1
        self.mark += 1
        if everything is None:
            pending, self._dirty = self._dirty, _by_kind()
            deleted, self._deleted = self._deleted, {}
            self._capture = Capture(self, header, deleted, pending, list(pending))
        else:
            self._capture = Capture(self, header, {}, None, everything)
        return self._capture

    def take_back(
        self, capture: Capture, pending: list[dict[Record, None]], deleted: dict[Record, None]
    ) -> None:
        """Make the changes of an abandoned capture wait for the next one."""
        for kind, records in enumerate(pending):
            for record in records:
                if record in self._deleted:
                    continue  # it went meanwhile
                self._dirty[kind][record] = None
                if record.captured == capture.number:
                    record.saved = 0  # perhaps it is stored and perhaps not: write all of it
        self._deleted = {**deleted, **self._deleted}

    def ended(self, capture: Capture) -> None:
        """Forget a capture that was committed or abandoned."""
        if self._capture is not capture:
            raise RuntimeError("the capture was finished before")
        self._capture = None
        capture.let_go()
        if not self._undigested:
            self._undigested = {}  # an emptied dict would keep its size


def _by_kind() -> list[dict[Record, None]]:
    return [{} for _ in range(SESSION + 1)]
