"""What the journal holds: the records and their bytes.

All integers are little-endian; a text is a u16 length and that many bytes of UTF-8.

| Kind | Record      | Bytes after the kind (u8)                                            |
| ---- | ----------- | -------------------------------------------------------------------- |
| 1    | State       | cluster_id text, node_id text, incarnation u64, term u64, vote,      |
|      |             | commit u64, base index u64, base term u64, last index u64,           |
|      |             | last term u64                                                        |
| 2    | Entry       | index u64, term u64, length u32, command                             |
| 3    | Truncate    | from_index u64                                                       |
| 4    | Vote        | term u64, vote                                                       |
| 5    | Commit      | index u64                                                            |
| 6    | Base        | index u64, term u64, keeps u8 (0 or 1)                               |
| 7    | Incarnation | number u64                                                           |

A vote is a u8 (0: none, 1: given) and a text (empty if none).
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

TEXT_MAX_BYTES = 1024  # an identity or a member's name
INTEGER_MAX = 2**63 - 1  # of all counters: leaves room for sums in 64 signed bits


class Identity(NamedTuple):
    """Whose journal it is. A disk that was mounted at the wrong node must be found out."""

    cluster_id: str
    node_id: str

    def __str__(self) -> str:
        return f"node {self.node_id!r} of cluster {self.cluster_id!r}"


# `index` hides the tuple's method of that name, which nothing needs here.


class Entry(NamedTuple):
    """One more entry at the end of the log."""

    index: int  # type: ignore[assignment]
    term: int
    command: bytes


class Truncate(NamedTuple):
    """Entries from `from_index` on are gone: another leader had other ones."""

    from_index: int


class Vote(NamedTuple):
    """The current term, and who has this node's vote in it."""

    term: int
    voted_for: str | None


class Commit(NamedTuple):
    """Everything up to `index` is committed. It only grows: a lower index says nothing new."""

    index: int  # type: ignore[assignment]


class Base(NamedTuple):
    """A checkpoint stands for everything up to `index`.

    What follows stays if the log held an entry of this index and term; else the checkpoint is from
    elsewhere, and the whole log goes.
    """

    index: int  # type: ignore[assignment]
    term: int
    # Which of the two it was. The journal fills it in: a replay may no longer have the entry.
    keeps: bool | None = None


class Incarnation(NamedTuple):
    """How many lives the node has had, this one included."""

    number: int


Record = Entry | Truncate | Vote | Commit | Base | Incarnation


class State(NamedTuple):
    """All that is small, at the start of each segment: older segments can go.

    Never handed to the journal from outside.
    """

    identity: Identity
    incarnation: int
    term: int
    voted_for: str | None
    commit_index: int
    base_index: int
    base_term: int
    last_index: int
    last_term: int


STATE, ENTRY, TRUNCATE, VOTE, COMMIT, BASE, INCARNATION = range(1, 8)

_ENTRY = struct.Struct("<BQQI")
_TWO = struct.Struct("<BQQ")
_ONE = struct.Struct("<BQ")
_BASE = struct.Struct("<BQQB")
_NUMBERS = struct.Struct("<QQ")
_LAST = struct.Struct("<QQQQQ")
_U16 = struct.Struct("<H")

ENTRY_OVERHEAD_BYTES = _ENTRY.size
# Copying a command this small costs less than one more buffer for the kernel to look at.
_COPY_MAX_BYTES = 4096


class MalformedError(ValueError):
    """Bytes that are no record."""


class Encoder:
    """Collects records as buffers for one vectored write; large commands are not copied."""

    __slots__ = ("_last", "buffers", "size_bytes")

    def __init__(self) -> None:
        self._last = bytearray()
        self.buffers: list[bytes | bytearray] = [self._last]
        self.size_bytes = 0

    def add(self, record: Record | State) -> None:
        """Append one record; a `Base` must say whether it keeps."""
        before = len(self._last)
        match record:
            case Entry(index, term, command):
                self._last += _ENTRY.pack(ENTRY, index, term, len(command))
                if len(command) > _COPY_MAX_BYTES:
                    self.size_bytes += len(self._last) - before + len(command)
                    self._last = bytearray()
                    self.buffers += (command, self._last)
                    return
                self._last += command
            case Commit(index):
                self._last += _ONE.pack(COMMIT, index)
            case Vote(term, voted_for):
                self._last += _ONE.pack(VOTE, term) + _vote(voted_for)
            case Truncate(from_index):
                self._last += _ONE.pack(TRUNCATE, from_index)
            case Base(index, term, keeps):
                if keeps is None:
                    raise ValueError("whether the base keeps what follows is not decided yet")
                self._last += _BASE.pack(BASE, index, term, keeps)
            case Incarnation(number):
                self._last += _ONE.pack(INCARNATION, number)
            case State():
                self._last += _state(record)
        self.size_bytes += len(self._last) - before


def decode(payload: memoryview) -> list[Record | State]:
    """All records of a frame. Commands are copies, so the payload's memory can go."""
    reader = _Reader(payload)
    records: list[Record | State] = []
    try:
        while reader.place < len(payload):
            records.append(reader.record())
    except struct.error as error:
        raise MalformedError("a record is cut short") from error
    except UnicodeDecodeError as error:
        raise MalformedError("a text is not UTF-8") from error
    return records


def text_fits(text: str) -> bool:
    """Whether a text may be part of a record."""
    try:
        return 0 < len(text.encode()) <= TEXT_MAX_BYTES
    except UnicodeEncodeError:
        return False  # lone surrogates


def _text(text: str) -> bytes:
    encoded = text.encode()
    return _U16.pack(len(encoded)) + encoded


def _vote(voted_for: str | None) -> bytes:
    return b"\0\0\0" if voted_for is None else b"\1" + _text(voted_for)


def _state(state: State) -> bytes:
    return b"".join(
        (
            bytes((STATE,)),
            _text(state.identity.cluster_id),
            _text(state.identity.node_id),
            _NUMBERS.pack(state.incarnation, state.term),
            _vote(state.voted_for),
            _LAST.pack(
                state.commit_index,
                state.base_index,
                state.base_term,
                state.last_index,
                state.last_term,
            ),
        )
    )


class _Reader:
    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self.place = 0

    def record(self) -> Record | State:
        kind = self._payload[self.place]
        if kind == ENTRY:
            _, index, term, size_bytes = self._unpack(_ENTRY)
            return Entry(index, term, self._take(size_bytes))
        if kind == COMMIT:
            return Commit(*self._unpack(_ONE)[1:])
        if kind == VOTE:
            (_, term) = self._unpack(_ONE)
            return Vote(term, self._vote())
        if kind == TRUNCATE:
            return Truncate(*self._unpack(_ONE)[1:])
        if kind == BASE:
            _, index, term, keeps = self._unpack(_BASE)
            return Base(index, term, self._flag(keeps))
        if kind == INCARNATION:
            return Incarnation(*self._unpack(_ONE)[1:])
        if kind == STATE:
            self.place += 1
            identity = Identity(self._text(), self._text())
            incarnation, term = self._unpack(_NUMBERS)
            return State(identity, incarnation, term, self._vote(), *self._unpack(_LAST))
        raise MalformedError(f"a record is of the unknown kind {kind}")

    def _unpack(self, layout: struct.Struct) -> Sequence[int]:
        values = layout.unpack_from(self._payload, self.place)
        self.place += layout.size
        if max(values) > INTEGER_MAX:
            raise MalformedError("a number is out of range")
        return values

    def _take(self, size_bytes: int) -> bytes:
        end = self.place + size_bytes
        if end > len(self._payload):
            raise MalformedError("a record is cut short")
        taken = bytes(self._payload[self.place : end])
        self.place = end
        return taken

    def _flag(self, value: int) -> bool:
        if value > 1:
            raise MalformedError(f"a flag is {value}")
        return value == 1

    def _text(self) -> str:
        (size_bytes,) = self._unpack(_U16)
        return self._take(size_bytes).decode()

    def _vote(self) -> str | None:
        flag = self._take(1)[0]
        voted_for = self._text()
        return voted_for if self._flag(flag) else None
