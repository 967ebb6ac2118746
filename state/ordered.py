"""A set of ints kept in order, for deadlines and queues.

Every index by time or rank in this package is one of these: the order is packed into the int
(`due_ms << 64 | session_id`), so comparing is one machine operation, and the garbage collector has
nothing to follow. A heap would be smaller, but cannot drop an entry that became void without
keeping it as waste until its time comes; a rescheduled session would leave one behind each time.

A list of sorted lists, as in Knuth's B-trees of height two and in sortedcontainers (which is
not used here because this package has no dependency but msgpack).
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

_SPLIT_AT = 1024


class OrderedInts:
    """Ints in ascending order, each at most once."""

    __slots__ = ("_length", "_lists", "_maxes")

    def __init__(self, items: Iterable[int] = ()) -> None:
        ordered = sorted(items)
        half = _SPLIT_AT // 2
        # invariant: no list is empty; _maxes[i] == _lists[i][-1]
        self._lists = [ordered[start : start + half] for start in range(0, len(ordered), half)]
        self._maxes = [one[-1] for one in self._lists]
        self._length = len(ordered)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        for one in self._lists:
            yield from one

    def first(self) -> int | None:
        """The smallest, or None."""
        return self._lists[0][0] if self._lists else None

    def first_from(self, bound: int) -> int | None:
        """The smallest that is not below `bound`, or None."""
        position = bisect_left(self._maxes, bound)
        if position == len(self._maxes):
            return None
        one = self._lists[position]
        return one[bisect_left(one, bound)]

    def add(self, item: int) -> None:
        """Add an item that is not there yet."""
        self._length += 1
        maxes, lists = self._maxes, self._lists
        if not maxes:
            lists.append([item])
            maxes.append(item)
            return
        position = bisect_left(maxes, item)
        if position == len(maxes):
            position -= 1
            one = lists[position]
            one.append(item)
            maxes[position] = item
        else:
            one = lists[position]
            insort(one, item)
        if len(one) > _SPLIT_AT:
            half = len(one) // 2
            lists.insert(position + 1, one[half:])
            del one[half:]
            maxes.insert(position, one[-1])

    def remove(self, item: int) -> None:
        """Remove an item. Raises KeyError if it is not there."""
        position = bisect_left(self._maxes, item)
        if position == len(self._maxes):
            raise KeyError(item)
        one = self._lists[position]
        place = bisect_left(one, item)
        if one[place] != item:
            raise KeyError(item)
        self._length -= 1
        del one[place]
        if not one:
            del self._lists[position]
            del self._maxes[position]
        elif place == len(one):
            self._maxes[position] = one[-1]

    def pop_until(self, bound: int, count: int) -> list[int]:
        """Remove and return the smallest, at most `count` and none above `bound`."""
        popped: list[int] = []
        lists, maxes = self._lists, self._maxes
        emptied = 0
        for one in lists:
            missing = count - len(popped)
            taken = min(bisect_left(one, bound + 1, 0, min(missing, len(one))), missing)
            popped += one[:taken]
            if taken < len(one):
                del one[:taken]
                break
            emptied += 1
        del lists[:emptied]
        del maxes[:emptied]
        self._length -= len(popped)
        return popped
