"""Latencies as counts by size, so that a million of them travel as a few hundred numbers."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import NamedTuple, Self

STEPS = 100  # between 1 and e: what is told of a latency is true to 1 %


def counted(latencies_s: Iterable[float]) -> dict[int, int]:
    """How many there are of each size."""
    log = math.log
    return Counter(round(log(max(latency_s, 1e-6)) * STEPS) for latency_s in latencies_s)


class Latencies(NamedTuple):
    """Those of a load."""

    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, counts: Iterable[Mapping[str, int]]) -> Self:
        """Of several processes together; as JSON has them, whose keys are strings."""
        merged: Counter[int] = Counter()
        for size, count in chain.from_iterable(one.items() for one in counts):
            merged[int(size)] += count
        return cls(_percentile_ms(merged, 0.50), _percentile_ms(merged, 0.99))


def _percentile_ms(counts: Counter[int], share: float) -> float:
    left = counts.total() * share
    for size in sorted(counts):
        left -= counts[size]
        if left <= 0:
            return math.exp(size / STEPS) * 1000
    return math.nan
