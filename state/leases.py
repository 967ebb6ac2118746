"""Finds active sessions whose lease has ended, at the cost of what is found.

A calendar of buckets. In it stand sessions one by one, and consumers' groups (all sessions of a
consumer with the same lease) as one entry each, so that a heartbeat which renews 100,000 sessions
writes one number and moves nothing. An entry is not moved when its lease is renewed: when its
bucket comes up, it is looked at again and put where its deadline is now. So each entry costs one
look per lease, whatever happens meanwhile.

Nothing here is part of the state. What is stale is decided by `Session.deadline_ms` when the
reaper's Store is applied; the calendar only knows where to look.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from state.ordered import OrderedInts
from state.records import Consumer, Session

BUCKET_MS = 128

Entry = int | tuple[bytes, int]  # a session's id, or (a consumer's id, the lease of a group)


class LeaseCalendar:
    """Where to look for stale sessions, and when."""

    def __init__(
        self,
        session: Callable[[int], Session | None],
        consumer: Callable[[bytes], Consumer | None],
    ) -> None:
        self._session = session
        self._consumer = consumer
        self._buckets: dict[int, dict[Entry, None]] = {}  # by their numbers; none is empty
        self._numbers = OrderedInts()
        self._overdue: dict[Entry, None] = {}

    def enter(self, session: Session) -> None:
        """Begin to watch a session that has become active, or whose consumer has changed."""
        consumer = session.consumer
        if consumer is not None:
            consumer.population += 1
            lease_ms = session.lease_ms
            group = consumer.groups.get(lease_ms)
            if group is None:
                group = consumer.groups[lease_ms] = {}
                entry = (consumer.consumer_id, lease_ms)
                consumer.buckets[lease_ms] = self._schedule(entry, consumer.seen_ms + lease_ms)
            group[session.session_id] = None
            # The group may have been put off, and its consumer seen once more after that.
            is_in_time = consumer.buckets[lease_ms] <= _bucket_of(consumer.seen_ms + lease_ms)
            if not session.progress_ms and session.touched_ms <= consumer.seen_ms and is_in_time:
                return
        session.lease_bucket = self._schedule(session.session_id, session.deadline_ms)

    def leave(self, session: Session) -> None:
        """Watch a session no more. Its lease and its consumer are still those of `enter`."""
        session_id = session.session_id
        consumer = session.consumer
        if consumer is not None:
            consumer.population -= 1
            del consumer.groups[session.lease_ms][session_id]
        if session.lease_bucket:
            self._unschedule(session_id, session.lease_bucket)
            session.lease_bucket = 0

    def forget(self, consumer: Consumer) -> None:
        """Watch a consumer no more that holds nothing."""
        for lease_ms, number in consumer.buckets.items():
            self._unschedule((consumer.consumer_id, lease_ms), number)
        consumer.groups.clear()
        consumer.buckets.clear()

    def next_look_ms(self) -> int | None:
        """When there may next be something to find."""
        if self._overdue:
            return 0
        number = self._numbers.first()
        return None if number is None else number * BUCKET_MS

    def sweep(self, now_ms: int, count: int) -> None:
        """Look at up to `count` entries whose bucket has come up."""
        while count > 0:
            number = self._numbers.first()
            if number is None or number * BUCKET_MS > now_ms:
                return
            bucket = self._buckets[number]
            for entry in list(islice(bucket, count)):
                self._unschedule(entry, number)
                count -= 1
                self._look_at(entry, now_ms)

    def stale(self, now_ms: int, count: int) -> list[tuple[int, int]]:
        """Up to `count` sessions whose lease has ended, as (id, epoch), among those it has come to.

        They are found again the next time, until they have left or shown a sign of life.
        """
        self.sweep(now_ms, count)
        found: dict[int, int] = {}  # a session may stand in a group and by itself
        while self._overdue and count > 0 and not found:
            self._collect(now_ms, count, found)
        return list(found.items())

    def _collect(self, now_ms: int, count: int, found: dict[int, int]) -> None:
        """Look at `count` overdue entries: find what is stale, and move on what was renewed."""
        for entry in list(islice(self._overdue, count)):
            deadline_ms = self._deadline_ms(entry)
            if deadline_ms is None or deadline_ms > now_ms:
                del self._overdue[entry]
                self._look_at(entry, now_ms)
                continue
            missing = count - len(found)
            before = len(found)
            for session in islice(self._stale_of(entry, now_ms), missing):
                found[session.session_id] = session.epoch
            if len(found) >= count:
                break
            if len(found) == before and not isinstance(entry, int):
                self._put_off(entry, now_ms)

    def _stale_of(self, entry: Entry, now_ms: int) -> Iterator[Session]:
        """What is stale of an overdue entry.

        Of a group whose consumer is silent, what somebody goes on with all the same is watched by
        itself from now on.
        """
        if isinstance(entry, int):
            session = self._session(entry)
            if session is not None:
                yield session
            return
        consumer_id, lease_ms = entry
        consumer = self._consumer(consumer_id)
        for session_id in () if consumer is None else consumer.groups.get(lease_ms, ()):
            session = self._session(session_id)
            if session is None or session.lease_bucket:
                continue
            deadline_ms = session.deadline_ms
            if deadline_ms <= now_ms:
                yield session
            else:
                session.lease_bucket = self._schedule(session_id, deadline_ms)

    def _put_off(self, group: tuple[bytes, int], now_ms: int) -> None:
        """Look at a group again in a while, all of which is watched one by one."""
        del self._overdue[group]
        consumer_id, lease_ms = group
        consumer = self._consumer(consumer_id)
        if consumer is not None:
            consumer.buckets[lease_ms] = self._schedule(group, now_ms + lease_ms)

    def _look_at(self, entry: Entry, now_ms: int) -> None:
        """Put an entry where it belongs now: in a later bucket, among the overdue, or nowhere."""
        deadline_ms = self._deadline_ms(entry)
        if deadline_ms is None:
            return
        if deadline_ms <= now_ms:
            self._overdue[entry] = None
            return
        number = self._schedule(entry, deadline_ms)
        if isinstance(entry, int):
            session = self._session(entry)
            if session is not None:
                session.lease_bucket = number
        else:
            consumer_id, lease_ms = entry
            consumer = self._consumer(consumer_id)
            if consumer is not None:
                consumer.buckets[lease_ms] = number

    def _deadline_ms(self, entry: Entry) -> int | None:
        """When an entry is over; None if nothing of it is left."""
        if isinstance(entry, int):
            session = self._session(entry)
            return None if session is None else session.deadline_ms
        consumer_id, lease_ms = entry
        consumer = self._consumer(consumer_id)
        if consumer is None or lease_ms not in consumer.groups:
            return None
        if not consumer.groups[lease_ms]:
            del consumer.groups[lease_ms], consumer.buckets[lease_ms]
            return None
        return consumer.seen_ms + lease_ms

    def _schedule(self, entry: Entry, deadline_ms: int) -> int:
        number = _bucket_of(deadline_ms)
        bucket = self._buckets.get(number)
        if bucket is None:
            self._buckets[number] = {entry: None}
            self._numbers.add(number)
        else:
            bucket[entry] = None
        return number

    def _unschedule(self, entry: Entry, number: int) -> None:
        bucket = self._buckets.get(number)
        if bucket is None or entry not in bucket:
            self._overdue.pop(entry, None)
        elif len(bucket) > 1:
            del bucket[entry]
        else:
            del self._buckets[number]
            self._numbers.remove(number)


def _bucket_of(deadline_ms: int) -> int:
    """The number of the bucket that comes up when a deadline is over."""
    return deadline_ms // BUCKET_MS + 1
