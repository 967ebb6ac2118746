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
from itertools import chain
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


class Capture:
    """The state, or what changed of it, at the moment of `Ledger.capture`. Read once, in pieces.

    The first item is META, the last is CHECK, with the digest of the state at that moment.
    """

    def __init__(
        self,
        ledger: "Ledger",
        header: Item,
        deleted: Iterable[Record],
        pending: list[dict[Record, None]] | None,
        records: Iterable[Record],
    ) -> None:
        self.number = ledger.capture_count
        self.digest = ledger.known_digest + layout.digest_of(header)
        self.finished = False
        self._ledger = ledger
        self._pending = pending  # None: everything
        self._early = [header, *map(layout.deletion, deleted)]
        self._records = iter(records)

    def wants(self, record: Record) -> bool:
        """Whether the record is part of the capture, and not copied yet."""
        return record.captured != self.number and (
            self._pending is None or record in self._pending[record.kind]
        )

    def rescue(self, record: Record) -> None:
        """Copy a record that is about to change."""
        self._early.append(self._take(record))

    def _take(self, record: Record) -> Item:
        self._ledger.redigest(record)
        record.captured = self.number
        if self._pending is None:
            return layout.item(record, 0)
        first_chunk = max(record.saved, 0)
        record.saved = len(record.chunks) if isinstance(record, Session) else 0
        return layout.item(record, first_chunk)

    def next_piece(self, size_bytes: int = PIECE_BYTES) -> list[Item]:
        """About `size_bytes` of items, at least one; none when everything was read."""
        if self.finished:
            return []
        piece, self._early = self._early, []
        room_bytes = size_bytes - sum(map(layout.item_bytes, piece))
        while room_bytes > 0:
            record = next(self._records, None)
            if record is None:
                piece.append(layout.check(self.digest & DIGEST_MASK))
                self._end()
                break
            if record.captured != self.number:
                item = self._take(record)
                piece.append(item)
                room_bytes -= layout.item_bytes(item)
        return piece

    def pieces(self, size_bytes: int = PIECE_BYTES) -> Iterator[list[Item]]:
        """All pieces, one after the other."""
        while piece := self.next_piece(size_bytes):
            yield piece

    def abandon(self) -> None:
        """End it early. After abandoning changes, only a capture of everything is complete."""
        self._end()

    def _end(self) -> None:
        self.finished = True
        self._records = iter(())
        self._pending = []
        self._early = []
        self._ledger.capture_ended()


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
            self.undo.append(Undo(record, None, 0))

    def note(self, record: Record) -> None:
        """Say that a record, whose mark is not the ledger's, is about to change."""
        capture = self._capture
        if capture is not None and capture.wants(record):
            capture.rescue(record)
        record.mark = self.mark
        self._dirty[record.kind][record] = None
        self._undigested[record] = None
        if self.undo is not None:
            self.undo.append(_before(record))

    def removed(self, record: Record) -> None:
        """Say that a record is about to go. It must not have changed since it was noted last."""
        capture = self._capture
        if capture is not None and capture.wants(record):
            capture.rescue(record)
        if self.undo is not None:
            self.undo.append(_before(record))
        self._dirty[record.kind].pop(record, None)
        self._undigested.pop(record, None)
        if record.saved != NEVER:
            self._deleted[record] = None
        if record.digest:
            self.known_digest -= record.digest
            record.digest = 0

    def restored(self, record: Record) -> None:
        """Say that a transaction that removed a record has failed."""
        self._deleted.pop(record, None)
        self._dirty[record.kind][record] = None
        self._undigested[record] = None

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

    def digest(self) -> int:
        """The sum of the digests of all records. Costs what changed since it was asked last."""
        for record in list(self._undigested):
            self.redigest(record)
        self._undigested = {}  # an emptied dict would keep its size
        self.mark += 1
        return self.known_digest & DIGEST_MASK

    def redigest(self, record: Record) -> None:
        """Bring a record's part of the digest up to date."""
        digest = layout.digest(record)
        change = digest - record.digest
        record.digest = digest
        self.known_digest += change
        self._undigested.pop(record, None)
        capture = self._capture
        if capture is not None and capture.wants(record):
            capture.digest += change

    @property
    def change_count(self) -> int:
        """How many records the next checkpoint will write or delete."""
        return sum(map(len, self._dirty)) + len(self._deleted)

    def capture(self, header: Item, everything: Iterable[Record] | None = None) -> Capture:
        """Begin a capture of `everything`, or of what changed since the last one if None.

        Only one at a time: raises RuntimeError while another is unfinished.
        """
        if self._capture is not None:
            raise RuntimeError("another capture is not finished")
        self.capture_count += 1
        self.mark += 1
        if everything is None:
            pending, self._dirty = self._dirty, _by_kind()
            deleted, self._deleted = self._deleted, {}
            records: Iterable[Record] = chain.from_iterable(pending)
            self._capture = Capture(self, header, deleted, pending, records)
        else:
            self._capture = Capture(self, header, (), None, everything)
        return self._capture

    def capture_ended(self) -> None:
        """Called by the capture when it has been read, or was abandoned."""
        self._capture = None
        if not self._undigested:
            self._undigested = {}


def _by_kind() -> list[dict[Record, None]]:
    return [{} for _ in range(SESSION + 1)]


def _before(record: Record) -> Undo:
    before = tuple([getattr(record, name) for name in record.changeable])
    return Undo(record, before, len(record.chunks) if isinstance(record, Session) else 0)
