"""Keys by the time at which they expire, in an order that is the same on all machines.

Most are taken out before their time, and many have times that are near each other. So they lie in
buckets of a second, and only that whose turn it is is sorted.
"""

from state.ordered import OrderedInts

_BUCKET_MS = 1000

Expiry = tuple[int, bytes]  # expires_ms and the key


class Expiries:
    """Keys that expire."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Expiry, None]] = {}  # by their seconds; none is empty
        self._seconds = OrderedInts()
        self._sorted_second: int | None = None
        self._sorted: list[Expiry] = []  # what is in that one, or was; the first at the end

    def add(self, expires_ms: int, key: bytes) -> None:
        """Take in a key."""
        second = expires_ms // _BUCKET_MS
        bucket = self._buckets.get(second)
        if bucket is None:
            self._buckets[second] = {(expires_ms, key): None}
            self._seconds.add(second)
        else:
            bucket[expires_ms, key] = None
        if second == self._sorted_second:
            self._sorted_second = None

    def remove(self, expires_ms: int, key: bytes) -> None:
        """Take a key out. Raises KeyError if it is not there."""
        second = expires_ms // _BUCKET_MS
        bucket = self._buckets[second]
        del bucket[expires_ms, key]
        if not bucket:
            del self._buckets[second]
            self._seconds.remove(second)

    def first(self) -> Expiry | None:
        """What expires first; of equals the smallest key."""
        second = self._seconds.first()
        if second is None:
            return None
        bucket = self._buckets[second]
        if second != self._sorted_second:
            self._sorted_second, self._sorted = second, sorted(bucket, reverse=True)
        while self._sorted[-1] not in bucket:
            self._sorted.pop()
        return self._sorted[-1]
