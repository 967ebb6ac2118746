"""The error budget: when a node that cannot do its work had better make room.

Operations may time out for reasons that no other node would do better with: there is no leader, no
majority. Those do not count, or a cluster in trouble would restart all of its nodes at once. What
counts is a node that believes to be in order, with a leader that it hears, and gets nothing done
for a long time all the same. Its supervisor shall replace it.
"""

from collections.abc import Callable

from state import Failure, Result

# Of failures: those that say that the cluster did not answer in time, ...
_OWN = frozenset({"timed_out"})
# ... and those that say nothing about it: the node itself has refused.
_SILENT = frozenset({"overloaded", "skipped", "stopping", "too_large"})


class ErrorBudget:
    """Counts failures that follow each other without a success between."""

    def __init__(
        self,
        *,
        failures: int,
        window_s: float,
        time: Callable[[], float],
        is_node_ready: Callable[[], bool],
        on_spent: Callable[[], object],
    ) -> None:
        """It is spent after at least `failures` of them, over at least `window_s`."""
        self._failures_max = failures
        self._window_s = window_s
        self._time = time
        self._is_node_ready = is_node_ready
        self._on_spent = on_spent
        self._since_s = 0.0
        self._last_s = 0.0
        self.failures = 0
        self.is_spent = False

    def note(self, result: Result) -> None:
        """Take note of what has become of an operation."""
        if isinstance(result, Failure):
            self.spend(result)
        else:
            self.earn()

    def earn(self) -> None:
        """Take note that the cluster has answered."""
        if self.failures:
            self.failures = 0

    def spend(self, failure: Failure) -> None:
        """Take note that an operation was not done, whatever the reason."""
        if failure.code not in _OWN:
            if failure.code not in _SILENT:
                self.failures = 0  # the cluster has answered
            return
        if not self._is_node_ready():
            self.failures = 0
            return
        now_s = self._time()
        if not self.failures or now_s - self._last_s > self._window_s:
            # A few failures with long silence between them are no errors that keep coming.
            self.failures, self._since_s = 0, now_s
        self._last_s = now_s
        self.failures += 1
        lasts_s = now_s - self._since_s
        if self.failures >= self._failures_max and lasts_s >= self._window_s and not self.is_spent:
            self.is_spent = True
            self._on_spent()
