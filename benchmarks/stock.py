"""Stock PySyncObj beside Ritornello, on the same machine in the same run.

Three processes with the library's own TCP transport, its own journal file and its own dump; one
replicated method that keeps 256 bytes under a key; callers on the leader, which is its best place.
Its own thread drives it, and callers are called back in it. It does not fsync: it acknowledges what
a loss of power takes away, so it has less to do.

It is measured as it comes, where a command waits for the next sending, up to 0.1 s; and with
`appendEntriesUseBatch=False`, which sends each command at once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.cluster_trio import ChildError, Figures, Trio

VARIANTS: dict[str, dict[str, bool]] = {
    "as it comes": {},
    "unbatched": {"appendEntriesUseBatch": False},
}


class Measured(NamedTuple):
    variant: str
    callers: int
    figures: Figures | None
    error: str = ""


def measure(
    directory: Path, variant: str, callers: list[int], seconds: float
) -> Iterator[Measured]:
    """Load a fresh cluster with each number of callers, as long as it lives."""
    options = {"settings": VARIANTS[variant]}
    try:
        with Trio("benchmarks.stock_node", directory, options) as nodes:
            nodes.load("leader", 64, min(seconds, 1.0))  # everybody has been asked something
            for count in callers:
                try:
                    figures = nodes.load("leader", count, seconds)
                except ChildError as error:
                    yield Measured(variant, count, None, str(error))
                    return
                yield Measured(variant, count, figures)
    except ChildError as error:
        yield Measured(variant, 0, None, str(error))
