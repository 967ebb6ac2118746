"""The leader's clock: the only source of the replicated time.

It starts from the later of the replicated time and the wall clock, and goes on by the monotonic
clock, so that a correction of the wall clock moves no deadline, and time never runs backwards. The
time that the whole cluster was stopped counts; a wall clock that is wrong counts once, when its
node becomes the leader, and only forwards.
"""

from collections.abc import Callable

from cluster.consensus.host import Host


class Clock:
    """Says the time while its node leads, and when it was last told to the state."""

    def __init__(self, host: Host, wall_ms: Callable[[], int], period_ms: int) -> None:
        """`period_ms` is how much later than the last one a Tick is worth its entry."""
        self._host = host
        self._wall_ms = wall_ms
        self._period_s = period_ms / 1000
        self._start_ms = 0
        self._start_s = 0.0
        self._told_s = float("-inf")

    def start(self, replicated_ms: int) -> int:
        """Begin to lead. Answers how long the time had stood still, in ms; 0 if it never began."""
        self._start_ms = max(replicated_ms, self._wall_ms())
        self._start_s = self._host.time()
        self._told_s = float("-inf")
        return self._start_ms - replicated_ms if replicated_ms else 0

    @property
    def now_ms(self) -> int:
        """The time that the state should have."""
        return self._start_ms + int((self._host.time() - self._start_s) * 1000)

    @property
    def is_late(self) -> bool:
        """Whether the state's time is older than the period."""
        return self._host.time() - self._told_s >= self._period_s

    def tell(self) -> int:
        """The time, which is about to be told to the state."""
        self._told_s = self._host.time()
        return self.now_ms
