"""Leases: when they end, and the signs of life that renew them.

The server pings, and renews what is held by whoever answers; but it does not say so. So the client
gives a sign of life itself, a few times per lease, and knows by the answer: whatever is held was
held when that was sent, and is from then on for as long as its lease.

The answer tells the cluster's clock as well, without which nobody knows when the lease of a session
ends that is handed out. So signs are given while nothing is held, too, if less often.
"""

from collections.abc import Callable, Mapping

from ritornello import limits
from ritornello.core.frames import Message
from ritornello.core.requests import Held, Request, nobody
from ritornello.errors import RequestError, RitornelloError

FOREVER = float("inf")

# The cluster's clock is told with its batches: what it says may be so much behind.
_CLOCK_STEP_S = 0.2


class Leases:
    """The leases of what one consumer holds."""

    def __init__(
        self, held: Mapping[str, Held], urge: Callable[[Request], None], now: Callable[[], float]
    ) -> None:
        self._held = held
        self._urge = urge
        self._now = now
        self._is_on = False
        self._begun_s = 0.0
        self._beating: Request | None = None
        self._next_s = FOREVER
        self._unheard_since_s: float | None = None
        # When the cluster's clock was asked for, and what it was after that. So at any time `t` it
        # is at most `clock_ms + (t - asked_s)`, and no lease ends before it says so.
        self._clock: tuple[float, int] | None = None

    def begin(self) -> None:
        """Begin with a connection."""
        self._is_on = True
        self._begun_s = self._next_s = self._now()
        self._clock = None

    def end(self) -> None:
        """It is gone."""
        self._is_on = False
        self._beating = self._unheard_since_s = None

    def holds(self, held: Held) -> None:
        """Take note of a new session."""
        now_s = self._now()
        # The first sign of life asks for the clock, too.
        next_s = now_s if self._clock is None else now_s + _period_s(held.lease_s)
        self._next_s = min(self._next_s, next_s)

    def ends_s(self, lease_s: float, deadline_ms: int | None) -> float:
        """When a lease ends, at the earliest, of a session that was handed out."""
        # It was not handed out before there was this connection.
        earliest_s = self._begun_s + lease_s
        if self._clock is None or deadline_ms is None:
            return earliest_s
        asked_s, clock_ms = self._clock
        ends_s = asked_s + (deadline_ms - clock_ms) / 1000 - _CLOCK_STEP_S
        return min(max(earliest_s, ends_s), self._now() + lease_s)

    def beat(self) -> float:
        """Give a sign of life, if it is time. Answers when it will be."""
        if not self._is_on:
            return FOREVER
        now_s = self._now()
        if self._beating is None and now_s >= self._next_s:
            request = Request({"op": "heartbeat"}, FOREVER, nobody, is_own=True)
            request.done = self._answered
            self._beating = request
            if self._unheard_since_s is None:
                self._unheard_since_s = now_s
            self._urge(request)
        return FOREVER if self._beating is not None else self._next_s

    def is_unheard(self) -> bool:
        """Whether no lease was renewed for so long that another node should be asked."""
        if self._unheard_since_s is None or not self._held:
            return False
        lease_s = min(one.lease_s for one in self._held.values())
        return self._now() - self._unheard_since_s > lease_s * limits.UNHEARD_PER_LEASE

    def _answered(self, found: Message | RitornelloError) -> None:
        beating, self._beating = self._beating, None
        if beating is None:
            return
        if not isinstance(found, Message):
            # Who may not work on sessions needs no clock.
            is_refused = isinstance(found, RequestError) and not found.retryable
            pause_s = limits.HEARTBEAT_MIN_S if self._held else limits.HEARTBEAT_IDLE_S
            self._next_s = FOREVER if is_refused and not self._held else self._now() + pause_s
            return
        sent_s = beating.sent_s
        self._unheard_since_s = None
        if found.now_ms is not None:
            self._clock = sent_s, found.now_ms
        period_s = limits.HEARTBEAT_IDLE_S
        for held in self._held.values():
            period_s = min(period_s, _period_s(held.lease_s))
            if held.is_resumed and held.presumed_loss is None and held.since_s <= sent_s:
                held.lasts_until(sent_s + held.lease_s)
        self._next_s = self._now() + period_s


def _period_s(lease_s: float) -> float:
    return max(lease_s / limits.HEARTBEATS_PER_LEASE, limits.HEARTBEAT_MIN_S)
