"""The reaper: finds active sessions whose consumer shows no sign of life, and stores them.

It runs on the leader only, and proposes: each Store shows the epoch that was found stale and the
leader's term, and the state machine looks again when it applies it. Leases get their grace: a new
leader, or one that slept, waits before it reaps, because it was the observer that was away.

The same hand stores what the consumers of an earlier life of this node held: they are gone for
certain, so there is nothing to wait for. It names the consumer and no session, as any of them may
be resumed by another consumer before that is applied.
"""

from collections.abc import Callable, Iterator

from cluster.consensus.host import Host
from state import LIMITS, Cause, Failure, Result, StateMachine, encode
from state.errors import LimitExceeded
from state.operations import Release, Store

# Submits an encoded operation that ends an activity.
Submit = Callable[[bytes, Callable[[Result], object]], None]


class Reaper:
    """Stores in bounded pages; the next page when the last one is answered."""

    def __init__(
        self, host: Host, submit: Submit, *, page: int, grace_ms: int, grace_max_ms: int
    ) -> None:
        self._host = host
        self._submit = submit
        self._page = page
        self._grace_ms = grace_ms
        self._grace_max_ms = grace_max_ms
        self._patient_until_s = float("inf")
        self._outstanding = 0
        self._release_count = min(page, LIMITS.acquire_count)  # less if the cluster allows less
        self._is_releasing = False
        self._earlier: Iterator[bytes] | None = None  # consumers that are still to be released
        self._consumer: bytes | None = None  # the one at hand, which may hold more
        self._was_refused = False  # whether one that was passed by may still hold something
        self._count_held: Callable[[bytes], int] | None = None
        self._held = 0  # sessions of that consumer, to be counted when they are stored
        self.reaped = 0  # stale ones that were stored since this node started
        self.released = 0  # sessions of consumers of this node's earlier lives that were stored

    def give_grace(self, away_ms: int) -> None:
        """Reap nothing for a while, as nobody watched for `away_ms`."""
        grace_ms = max(self._grace_ms, min(away_ms, self._grace_max_ms))
        until_s = self._host.time() + grace_ms / 1000
        if self._patient_until_s == float("inf"):
            self._patient_until_s = until_s
        else:
            self._patient_until_s = max(self._patient_until_s, until_s)

    def rest(self) -> None:
        """Lead no more."""
        self._patient_until_s = float("inf")

    def look(self, machine: StateMachine) -> None:
        """Store a page of what is stale, unless one is on its way, or leases have their grace."""
        if self._outstanding or self._host.time() < self._patient_until_s:
            return
        for session_id, epoch in machine.stale(self._page):
            self._store(Store(session_id, epoch, cause=Cause.STALE))

    def release(
        self,
        list_consumers: Callable[[], Iterator[bytes]],
        count_held: Callable[[bytes], int] | None = None,
    ) -> bool:
        """Store what consumers of an earlier life of this node hold. False when nothing is left.

        In pages, each asked for when the last one is answered. What was refused for want of room or
        time is listed and tried again. `count_held` is asked for the sake of `released`.
        """
        self._count_held = count_held
        if self._is_releasing:
            return True
        if self._earlier is None:
            self._earlier, self._was_refused = list_consumers(), False
        if self._release_page():
            return True
        self._earlier = None
        return self._was_refused

    def forget_held(self) -> None:
        """List anew what is held: the state is another."""
        self._earlier = self._consumer = None

    def _release_page(self) -> bool:
        """Store a page of the consumer at hand, or of the next one. False if there is none."""
        if self._consumer is None and self._earlier is not None:
            self._consumer = next(self._earlier, None)
            if self._consumer is not None and self._count_held is not None:
                self._held = self._count_held(self._consumer)
        if self._consumer is None:
            return False
        self._is_releasing = True
        reason = "its node started again"
        operation = Release(self._consumer, self._release_count, Cause.DISCONNECTED, reason)
        self._submit(encode(operation), self._released)
        return True

    def _released(self, result: Result) -> None:
        self._is_releasing = False
        match result:
            case LimitExceeded(limit="acquire_count", bound=bound):
                self._release_count = bound
            case Failure():
                # Not at once: it may have been answered before it was even taken in.
                self._was_refused |= result.retryable
                self._consumer = None
            case int(left):
                self.released += max(self._held - left, 0)
                self._held = min(self._held, left)
                if not left:
                    self._consumer = None
                self._release_page()
            case _:
                self._release_page()

    def _store(self, operation: Store) -> None:
        self._outstanding += 1
        self._submit(encode(operation), self._stored)

    def _stored(self, result: Result) -> None:
        self._outstanding -= 1
        if not isinstance(result, Failure):
            self.reaped += 1
