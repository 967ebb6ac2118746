"""A checkpoint in the simplest form: what `state.layout.Item` promises, on a dict of bytes.

All that is kept has been through msgpack, so nothing but plain values survives.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import msgpack

from state import Capture, Item
from state.records import CHECK, META, SESSION

Key = tuple[int, Any]


def is_plain(value: object) -> bool:
    """Whether a value is an int, str, bytes, None, bool or a tuple of such."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, int | str | bytes)


class Disk:
    """What is left of all items that were written."""

    def __init__(self) -> None:
        self.torn = False
        """Whether captures were abandoned: then a deletion may be of what was never written."""
        self._rows: dict[Key, bytes] = {}
        self._chunks: dict[Key, tuple[bytes, ...]] = {}
        self.written: list[Item] = []
        """What `write` was given the last time."""

    def write(self, items: Iterable[Item]) -> None:
        """Put and delete as the items say."""
        self.written = list(items)
        for item in self.written:
            self._write(item)

    def write_capture(self, capture: Capture, size_bytes: int = 1 << 20) -> None:
        """Read a capture to its end, write it, and commit it."""
        self.write([item for piece in capture.pieces(size_bytes) for item in piece])
        capture.commit()

    def _write(self, item: Item) -> None:
        assert is_plain(tuple(item)), item
        key = (item.kind, item.identity)
        if item.fields is None:
            if not self.torn:
                assert key in self._rows, item
            self._rows.pop(key, None)
            self._chunks.pop(key, None)
            return
        if item.kind == SESSION:
            kept = self._chunks.get(key, ())
            assert len(kept) >= item.first_chunk, item
            self._chunks[key] = chunks = kept[: item.first_chunk] + item.chunks
            assert len(chunks) == item.fields[-1], item
        else:
            assert item.first_chunk == 0
            assert item.chunks == ()
        self._rows[key] = msgpack.packb(item.fields)

    def __len__(self) -> int:
        """How many records there are, META and CHECK left out."""
        return sum(kind not in {META, CHECK} for kind, _ in self._rows)

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[Item]:
        """The items of the whole state, in the order in which a loader takes them."""
        for kind, identity in sorted(self._rows, key=lambda key: key[0]):
            key = (kind, identity)
            fields = msgpack.unpackb(self._rows[key], use_list=False)
            yield Item(kind, identity, fields, 0, self._chunks.get(key, ()))

    @property
    def digest(self) -> int:
        """What CHECK says."""
        fields = msgpack.unpackb(self._rows[CHECK, 0])
        assert isinstance(fields[0], int)
        return fields[0]
