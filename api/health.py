"""What `/livez` and `/readyz` look at.

*Live* is a process that can do its work: its loop turns (or nobody would be answered at all), and
what it writes to its journal is answered. It never depends on the others, so that a cluster without
a majority is not restarted by its supervisors. *Ready* is a node that had better be asked: it knows
a leader, has applied what is committed, and is not about to stop.
"""

from api.gateway import Gateway

JOURNAL_TIMEOUT_S = 30.0


class Health:
    """The checks of one node."""

    def __init__(self, gateway: Gateway, *, lag_max: int) -> None:
        self._gateway = gateway
        self._lag_max = lag_max
        self.is_draining = False

    def live(self) -> dict[str, str]:
        """The checks that fail, each with a sentence."""
        failing: dict[str, str] = {}
        waited_s = self._gateway.journal_waits_s
        if waited_s > JOURNAL_TIMEOUT_S:
            failing["journal"] = f"the disk has not answered for {waited_s:.0f} s"
        return failing

    def ready(self) -> dict[str, str]:
        """The checks that fail, each with a sentence."""
        gateway = self._gateway
        failing = self.live()
        if self.is_draining:
            failing["draining"] = "the node is about to stop"
        if gateway.leader is None:
            failing["leader"] = "no leader is known"
        elif not gateway.is_ready:
            failing["leader"] = "the node has not caught up with its leader yet"
        if gateway.lag > self._lag_max:
            failing["lag"] = f"{gateway.lag} committed entries are not applied; {self._lag_max} may"
        return failing
