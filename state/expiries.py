"""Keys by the time at which they expire, in an order that is the same on all machines.

Most go before their time, and many have times that are near each other. So they lie in buckets of a
second, unsorted, until it is the turn of one; what has gone meanwhile is passed over then.
"""

from collections.abc import Callable
from heapq import heappop, heappush

_BUCKET_MS = 1000

Expiry = tuple[int, bytes]  # expires_ms and the key


class Expiries:
    """Keys that expire. To take one out, say no when it is asked for."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[Expiry]] = {}
        self._order: list[int] = []  # a heap of their seconds
        self._sorted: int | None = None  # the one that is sorted, its first key at the end

    def add(self, expires_ms: int, key: bytes) -> None:
        """Take in a key."""
        second = expires_ms // _BUCKET_MS
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = [(expires_ms, key)]
            heappush(self._order, second)
            return
        bucket.append((expires_ms, key))
        if second == self._sorted:
            self._sorted = None

    def first(self, is_there: Callable[[Expiry], bool]) -> Expiry | None:
        """What expires first; of equals the smallest key. What is not there is forgotten."""
        while self._order:
            second = self._order[0]
            bucket = self._buckets[second]
            if second != self._sorted:
                bucket.sort(reverse=True)
                self._sorted = second
            while bucket:
                if is_there(bucket[-1]):
                    return bucket[-1]
                bucket.pop()
            heappop(self._order)
            del self._buckets[second]
        return None
