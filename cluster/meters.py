"""What is measured of a node: histograms that cost nothing, and everything in one value.

Whoever has something to count keeps plain ints where things happen, and adds to them once for each
batch, never for each operation. `Node.meters` reads them when somebody asks. Nothing here knows
what is made of the numbers.

Themes are another matter. There may be a million of them, and what is to be known of them follows
from all, so `survey` goes through them a few at a time and lets the loop do other things between.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from time import perf_counter
from typing import NamedTuple

from state import StateMachine
from state.records import Theme
from state.transitions import ACTIVE, PARKED, READY, STORED

# Upper bounds of buckets, each with one more for what is above. A bucket costs a line in every
# reading, so they are as fine as is needed to say which power of ten, and what part of it.
LATENCY_BUCKETS_S = (
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
# Of what goes on beside the work and may take long: checkpoints.
DURATION_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
COUNT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SIZE_BUCKETS_BYTES = tuple(1 << shift for shift in range(7, 24, 2))  # 128 bytes to 8 MiB

_TURN_S = 0.002  # of work, before others have their turn


@dataclass(frozen=True, slots=True)
class HistogramValues:
    """A histogram as it was at one moment."""

    bounds: Sequence[float]
    buckets: Sequence[int]  # how many were in each, not up to each; one more than there are bounds
    total: float  # of all values

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.buckets)


class Histogram:
    """Counts values by the bucket they fall into: about 0.2 us for one."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value; one that is a bound belongs to the bucket below it."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value

    def values(self) -> HistogramValues:
        """What was counted so far."""
        return HistogramValues(self.bounds, tuple(self.buckets), self.total)


@dataclass(frozen=True, slots=True)
class PeerMeters:
    """What a node knows of another member."""

    is_connected: bool
    buffered_bytes: int  # sent, and not left yet
    match_index: int | None  # its disk holds the log up to here; only a leader knows


@dataclass(frozen=True, slots=True)
class NodeMeters:
    """Everything that one node has counted since it started, and how things stand."""

    # Consensus
    is_ready: bool
    is_leader: bool
    has_leader: bool
    term: int
    leader_changes: int
    elections: int
    stalls: int
    committed_index: int
    applied_index: int
    heard_index: int  # committed, as the leader says; never below `committed_index`
    log_bytes: int

    # The double queue
    intake_operations: int
    intake_bytes: int
    intake_oldest_s: float
    unanswered_batches: int
    batches: int
    operations: int
    answered: int
    failed: Mapping[str, int]  # operations that the queue answered with a failure, by its code
    reads: int
    resends: int
    commit_s: HistogramValues
    apply_s: HistogramValues
    batch_operations: HistogramValues
    batch_bytes: HistogramValues

    # The disk
    journal_bytes: int
    journal_segments: int
    journal_written_bytes: int
    journal_writes: int
    journal_frames: int
    journal_waiting: int
    journal_stalled_s: float
    has_spare_segment_error: bool
    fsync_s: HistogramValues
    checkpoint_index: int
    checkpoint_age_s: float
    checkpoint_s: HistogramValues
    snapshots_sent: int
    snapshots_installed: int

    # The state, and what a leader does for it
    sessions: int
    state_bytes: int
    state_limit_bytes: int
    reaped: Mapping[str, int]  # sessions stored by the reaper, by cause

    # The network
    transport: Mapping[str, int]
    peers: Mapping[str, PeerMeters]


class ThemeMeters(NamedTuple):
    """One theme."""

    theme: int
    stored: int
    ready: int
    active: int
    parked: int
    paused: bool
    oldest_due_s: float  # the longest that one of its sessions has been due; 0 if none is


class Survey(NamedTuple):
    """All themes together, and the busiest of them one by one, in the order of their numbers."""

    themes: int
    stored: int
    ready: int
    active: int
    parked: int
    oldest_due_s: float  # the largest of all themes that are not paused
    busiest: Sequence[ThemeMeters]


async def survey(machine: StateMachine, now_ms: int, *, busiest: int) -> Survey:
    """Look at all themes. Busy are those with much to do: first what is ready and active counts.

    They are looked at a few at a time, so the numbers of different themes are of moments that are
    a little apart.
    """
    stored = ready = active = parked = oldest_ms = 0
    best: list[tuple[int, int, int, Theme, int]] = []
    themes = list(machine.themes())
    turn_s = perf_counter()
    for theme in themes:
        if perf_counter() > turn_s + _TURN_S:
            best = nlargest(busiest, best)  # compared by numbers alone: no two have the same id
            await asyncio.sleep(0)
            turn_s = perf_counter()
        counts = theme.counts
        busy = counts[READY] + counts[ACTIVE]
        waiting = counts[STORED] + counts[PARKED]
        stored += counts[STORED]
        ready += counts[READY]
        active += counts[ACTIVE]
        parked += counts[PARKED]
        since_ms = theme.oldest_due_ms
        due_ms = 0 if since_ms is None else max(now_ms - since_ms, 0)
        if due_ms > oldest_ms and not theme.paused:
            oldest_ms = due_ms
        best.append((busy, waiting, -theme.theme_id, theme, due_ms))
    best = nlargest(busiest, best)
    return Survey(
        len(themes),
        stored,
        ready,
        active,
        parked,
        oldest_ms / 1000,
        tuple(sorted(_meters(theme, due_ms) for *_, theme, due_ms in best)),
    )


def _meters(theme: Theme, oldest_due_ms: int) -> ThemeMeters:
    counts = theme.counts
    return ThemeMeters(
        theme.theme_id,
        counts[STORED],
        counts[READY],
        counts[ACTIVE],
        counts[PARKED],
        theme.paused,
        oldest_due_ms / 1000,
    )
