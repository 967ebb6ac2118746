"""The table of the cluster benchmark: rows, goals, what is missed."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from benchmarks.cluster_trio import Figures

NAME_WIDTH = 44


class Goal(NamedTuple):
    """What a load should come to, or one of several loads."""

    names: tuple[str, ...]  # of the loads: reached if it is in one of them
    rate: float = 0.0
    p50_ms: float = float("inf")
    p99_ms: float = float("inf")

    def is_met(self, figures: Figures) -> bool:
        return (
            figures.rate >= self.rate
            and figures.p50_ms < self.p50_ms
            and figures.p99_ms < self.p99_ms
        )

    def __str__(self) -> str:
        parts = []
        if self.rate:
            parts.append(f">= {self.rate:,.0f}/s")
        for name, bound_ms in (("p50", self.p50_ms), ("p99", self.p99_ms)):
            if bound_ms != float("inf"):
                parts.append(f"{name} < {bound_ms:g} ms")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Row:
    """A line: a load's figures, or one value."""

    name: str
    figures: Figures | None = None
    value: str = ""
    goal: str = ""
    met: bool | None = None
    note: str = ""

    def __str__(self) -> str:
        verdict = {True: "met", False: "NOT MET", None: ""}[self.met]
        judged = f"{self.goal}: {verdict}" if verdict else self.goal
        middle = _columns(self.figures) if self.figures is not None else f"{self.value:>{_WIDTH}}"
        end = ", ".join(part for part in (judged, self.note) if part)
        return f"{self.name:<{NAME_WIDTH}} {middle}  {end}".rstrip()


class Table:
    """Prints rows as they come, and keeps them."""

    def __init__(self) -> None:
        self.sections: list[tuple[str, list[Row]]] = []

    @property
    def missed(self) -> list[Row]:
        return [row for _, rows in self.sections for row in rows if row.met is False]

    def head(self, title: str) -> None:
        progress("")
        if not self.sections:
            print(f"{'':<{NAME_WIDTH}} {_HEAD}  goal")
        self.sections.append((title, []))
        print(f"\n{title}", flush=True)

    def add(self, row: Row) -> None:
        progress("")
        self.sections[-1][1].append(row)
        print(row, flush=True)
        if row.figures is not None:
            for remark in remarks(row.figures):
                print(f"    {remark}", flush=True)

    def add_judged(self, rows: Sequence[Row], goal: Goal | None) -> None:
        """Add rows of which one should reach the goal: the verdict stands beside the best."""
        if goal is None:
            for row in rows:
                self.add(row)
            return
        judged = [
            (goal.is_met(row.figures), row.figures.rate, row)
            for row in rows
            if row.figures is not None
        ]
        is_met, _, best = max(judged, key=lambda one: one[:2])
        # One of two alone can show that the goal is reached, but not that it is missed.
        met = is_met if is_met or len(rows) == len(goal.names) else None
        for row in rows:
            if row is best:
                self.add(replace(row, goal=str(goal), met=met))
            else:
                self.add(row)

    def as_json(self) -> list[dict[str, Any]]:
        return [{"section": title, **asdict(row)} for title, rows in self.sections for row in rows]


def remarks(figures: Figures) -> list[str]:
    """What should not have happened during a load."""
    found = [f"failed: {count:,} {code}" for code, count in sorted(figures.failures.items())]
    found += [f"{text}: {count:,}" for text, count in sorted(figures.complaints.items())]
    for count, name in (
        (figures.elections, "elections"),
        (figures.resends, "batches sent again"),
        (figures.stalls, "stalls of a loop"),
    ):
        if count:
            found.append(f"{name}: {count:,}")
    return found


def progress(text: str) -> None:
    """Say what is going on: over the last such line on a terminal, as a line elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


_HEAD = (
    f"{'ops/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8} "
    f"{'batch':>7} {'fsyncs/op':>9} {'CPU us/op':>9} {'failed':>6}"
)
_WIDTH = len(_HEAD)


def _columns(figures: Figures) -> str:
    batch = "-" if figures.batch is None else f"{figures.batch:.1f}"
    fsyncs = "none" if figures.fsyncs is None else f"{figures.fsyncs:.4f}"
    return (
        f"{figures.rate:>9,.0f} {figures.p50_ms:>8.2f} {figures.p99_ms:>8.2f} "
        f"{figures.longest_ms:>8.1f} {batch:>7} {fsyncs:>9} {figures.cpu_us:>9.1f} "
        f"{sum(figures.failures.values()):>6,}"
    )
