"""The ids of all sessions of a theme, in order, for lists that are read in pages.

Ids count up, so a new one goes to the end, and that is all that each operation pays for it. The id
of a session that is gone stays where it is: whoever reads looks at whether there still is a
session. When most are of sessions that are gone, a few blocks are cleared of them at the end of
each batch, one after the other; what that costs follows from what was removed.
"""

from bisect import bisect_right, insort
from collections.abc import Container
from operator import itemgetter

_BLOCK_IDS = 1024
_SPARE_IDS = 64  # in vain, beyond a multiple of what is there: most themes may have few sessions
_TIDY_BLOCKS = 8  # in one call. Two thirds of what is in them go: more than a batch removes

_last = itemgetter(-1)


class Roll:
    """Ids in ascending order, each once."""

    __slots__ = ("_blocks", "_closed", "_next", "_tail")

    def __init__(self) -> None:
        # invariant: ids rise within blocks and across them; no block is empty but a single one
        self._tail: list[int] = []
        self._blocks = [self._tail]
        self._closed = 0  # ids in all blocks but the tail
        self._next = 0  # the block to be cleared next

    def __len__(self) -> int:
        """How many ids there are, those of sessions that are gone among them."""
        return self._closed + len(self._tail)

    def append(self, session_id: int) -> None:
        """Add an id that is above all others."""
        tail = self._tail
        if len(tail) < _BLOCK_IDS:
            tail.append(session_id)
        else:
            self._closed += len(tail)
            self._tail = [session_id]
            self._blocks.append(self._tail)

    def add(self, session_id: int) -> None:
        """Add an id that is not there: what is loaded may come in any order."""
        tail = self._tail
        if not tail or session_id > tail[-1]:
            self.append(session_id)
            return
        length, blocks = len(self), self._blocks
        position = bisect_right(blocks, session_id, key=_last)
        block = blocks[position]
        insort(block, session_id)
        if len(block) > _BLOCK_IDS:
            half = len(block) // 2
            blocks[position : position + 1] = [block[:half], block[half:]]
        self._end_with(length + 1)

    def cut(self, last_id: int) -> None:
        """Take out all that are above `last_id`: they were not given out after all."""
        length, blocks = len(self), self._blocks
        while (block := blocks[-1]) and block[-1] > last_id:
            place = bisect_right(block, last_id)
            length -= len(block) - place
            del block[place:]
            if not block and len(blocks) > 1:
                blocks.pop()
        self._end_with(length)

    def after(self, session_id: int, count: int) -> list[int]:
        """The first `count` that are above an id; fewer, if these are all."""
        blocks = self._blocks
        found: list[int] = []
        # The tail, which may be empty, is looked at in any case.
        position = bisect_right(blocks, session_id, 0, len(blocks) - 1, key=_last)
        start = bisect_right(blocks[position], session_id)
        while position < len(blocks) and len(found) < count:
            found += blocks[position][start : start + count - len(found)]
            position += 1
            start = 0
        return found

    def tidy(self, population: int, known: Container[int]) -> bool:
        """Take out some that are not `known`, if that is so of most; whether there is more to do.

        `population` is how many are known.
        """
        bound = 3 * population + _SPARE_IDS
        for _ in range(_TIDY_BLOCKS):
            if len(self) <= bound:
                return False
            self._clear(known)
        return len(self) > bound

    def _clear(self, known: Container[int]) -> None:
        """Clear one block, and let it be one with that before it if both fit."""
        length, blocks = len(self), self._blocks
        position = self._next if self._next < len(blocks) else 0
        block = blocks[position]
        length -= len(block)
        block[:] = filter(known.__contains__, block)
        length += len(block)
        self._next = position
        if position and len(blocks[position - 1]) + len(block) <= _BLOCK_IDS:
            blocks[position - 1] += block
            del blocks[position]
        elif not block and len(blocks) > 1:
            del blocks[position]
        else:
            self._next = position + 1
        self._end_with(length)

    def _end_with(self, length: int) -> None:
        """Know the tail, and how much is before it, after the blocks have changed."""
        self._tail = self._blocks[-1]
        self._closed = length - len(self._tail)
