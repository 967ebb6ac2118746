"""The reaper: finds active sessions whose consumer shows no sign of life, and stores them.

It runs on the leader only, and proposes: each Store shows the epoch that was found stale and the
leader's term, and the state machine looks again when it applies it. Leases get their grace: a new
leader, or one that slept, waits before it reaps, because it was the observer that was away.

The same hand stores what the consumers of an earlier life of this node held: they are gone for
certain, so there is nothing to wait for.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from cluster.consensus.host import Host
from state import Cause, Failure, Result, StateMachine, encode
from state.operations import Store

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
        self._held: Iterator[tuple[int, int]] | None = None
        self._was_refused = False  # whether one of those that were held may still be
        self.reaped = 0  # since this node started

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

    def release(self, list_held: Callable[[], Iterator[tuple[int, int]]]) -> bool:
        """Store a page of what an earlier life of this node held. False when nothing is left.

        What was refused for want of room or time is listed and tried again.
        """
        if self._outstanding:
            return True
        if self._held is None:
            self._held, self._was_refused = list_held(), False
        page = list(islice(self._held, self._page))
        for session_id, epoch in page:
            reason = "its node started again"
            self._store(Store(session_id, epoch, cause=Cause.DISCONNECTED, reason=reason))
        if page:
            return True
        self._held = None
        return self._was_refused

    def forget_held(self) -> None:
        """List anew what is held: the state is another."""
        self._held = None

    def _store(self, operation: Store) -> None:
        self._outstanding += 1
        self._submit(encode(operation), self._stored)

    def _stored(self, result: Result) -> None:
        self._outstanding -= 1
        if not isinstance(result, Failure):
            self.reaped += 1
        elif result.retryable:
            self._was_refused = True
