"""Measures a cluster of three nodes on this machine, without HTTP: `python -m benchmarks.cluster`.

Three processes on loopback, each with a directory of its own below --directory, which should be on
a real disk. The load is made inside the nodes, by operators that live through one session after
another (New, Append, Append, Remove, 256 bytes each); its cost is part of what is measured.

What is measured, in this order:
  * 1, 64, 256 and 4,096 operators, all on the leader, or spread over the nodes;
  * an open load of half of the best rate: operations are due at a steady rate, and a latency counts
    from when the operation was due, so that waiting in line counts;
  * stock PySyncObj, and how many times its rate ours is (see benchmarks/stock.py);
  * a large state: how long it takes to fill, 256 and 4,096 operators again (and, for the ratio,
    right before), and how long a follower that has lost its disk takes to catch up.

fsyncs/op are those of one node, CPU us/op those of all three. Other programs share the machine:
read the ratios.

The exit status is 0 if all goals were met, 3 if one was missed; 1 if the run could not be done, and
2 if it was asked for wrongly.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import stock
from benchmarks.cluster_table import Goal, Row, Table, progress
from benchmarks.cluster_trio import ChildError, Figures, Trio

FAILED_STATUS = 1  # as Python has it after any exception
MISSED_STATUS = 3

BUSY_LOAD = 0.5  # of other programs; above it the figures are theirs as well
QUICK_SECONDS = 0.6
QUICK_SESSIONS = 20_000
RATIO_GOAL = 0.70
PAUSE_GOAL_MS = 250.0
OPEN_OPERATORS = 4096
OPEN_SHARE = 0.5
CATCH_UP_OPERATORS = 64
CATCH_UP_MAX_S = 300.0
SETTLE_MAX_S = 300.0
CATCHING_UP = "catching up, from its start as a process"


class Load(NamedTuple):
    operators: int
    where: str

    @property
    def name(self) -> str:
        return f"{self.operators} {_PLACES[self.where]}"


_PLACES = {"leader": "on the leader", "follower": "on a follower", "spread": "spread"}

# Those in one line are judged together.
LOADS = (
    (Load(1, "leader"),),
    (Load(1, "follower"),),
    (Load(64, "leader"), Load(64, "spread")),
    (Load(256, "leader"), Load(256, "spread")),
    (Load(4096, "leader"), Load(4096, "spread")),
)
LARGE_LOADS = (*LOADS[3], *LOADS[4])
STOCK_CALLERS = (1, 64, 256, 4096)

GOALS = (
    Goal(("1 on the leader",), p50_ms=1.0),
    Goal(("1 on a follower",), p50_ms=1.3),
    Goal(("256 on the leader", "256 spread"), rate=80_000, p99_ms=10),
    Goal(("4096 on the leader", "4096 spread"), rate=140_000, p99_ms=60),
)


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace, directory: Path) -> None:
        self.table = Table()
        self._options = options
        self._directory = directory
        self._seconds: float = options.seconds
        self._sessions: int = options.sessions
        self._figures: dict[str, Figures] = {}  # of the loads, by name

    def run(self) -> None:
        self._small()
        self._stock()
        self._large()

    def _is_wanted(self, name: str) -> bool:
        only: list[str] | None = self._options.only
        return not only or any(part.lower() in name.lower() for part in only)

    @contextmanager
    def _nodes(self, name: str) -> Iterator[Trio]:
        progress("starting three nodes")
        directory = self._directory / name
        profile: bool = self._options.profile
        try:
            with Trio("benchmarks.cluster_node", directory, profile=profile) as nodes:
                nodes.load("spread", 256, min(self._seconds, 1.0))  # all have been asked something
                yield nodes
        finally:
            if not profile:
                shutil.rmtree(directory, ignore_errors=True)

    def _measure(self, nodes: Trio, load: Load) -> Figures:
        progress(f"{load.name}, {self._seconds:g} s")
        return nodes.load(load.where, load.operators, self._seconds)

    # A small state

    def _small(self) -> None:
        is_open_wanted = self._is_wanted("open loop")
        groups = [[one for one in group if self._is_wanted(one.name)] for group in LOADS]
        if not any(groups) and not is_open_wanted:
            return
        with self._nodes("small") as nodes:
            self.table.head("Ritornello: operators")
            for group in filter(None, groups):
                self._judge(nodes, group)
            if is_open_wanted:
                self._open(nodes)

    def _judge(self, nodes: Trio, group: Sequence[Load]) -> None:
        rows = []
        for load in group:
            figures = self._figures[load.name] = self._measure(nodes, load)
            rows.append(Row(load.name, figures))
        self.table.add_judged(
            rows, next((goal for goal in GOALS if rows[0].name in goal.names), None)
        )

    def _open(self, nodes: Trio) -> None:
        measured = [load for group in LOADS for load in group if load.name in self._figures]
        if not measured:
            load = Load(OPEN_OPERATORS, "spread")
            self._figures[load.name] = self._measure(nodes, load)
            measured = [load]
        best = max(measured, key=lambda one: self._figures[one.name].rate)
        rate = self._figures[best.name].rate * OPEN_SHARE
        progress(f"open loop, {self._seconds:g} s")
        figures = nodes.load(best.where, OPEN_OPERATORS, self._seconds, rate)
        place = _PLACES[best.where]
        self.table.add(Row(f"open loop at {OPEN_SHARE:.0%}: {rate:,.0f}/s {place}", figures))

    # Stock PySyncObj

    def _stock(self) -> None:
        wanted = {
            variant: [
                callers
                for callers in STOCK_CALLERS
                if self._is_wanted(_stock_name(variant, callers))
            ]
            for variant in stock.VARIANTS
        }
        if not any(wanted.values()):
            return
        self.table.head(
            "Stock PySyncObj 0.3.17: callers on the leader. It does NOT fsync, Ritornello does"
        )
        best: dict[int, float] = {}
        for variant, callers in wanted.items():
            if not callers:
                continue
            progress(f"stock PySyncObj {variant}, {self._seconds:g} s each")
            for one in stock.measure(
                self._directory / f"stock {variant}", variant, callers, self._seconds
            ):
                name = _stock_name(variant, one.callers)
                if one.figures is None:
                    self.table.add(Row(name, value=f"did not survive: {one.error}"))
                else:
                    best[one.callers] = max(best.get(one.callers, 0.0), one.figures.rate)
                    self.table.add(Row(name, one.figures))
        for count, rate in best.items():
            ours = self._figures.get(Load(count, "leader").name)
            if ours is not None and rate:
                ratio = f"{ours.rate / rate:,.1f} times"
                self.table.add(Row(f"{count} on the leader: ours to its better", value=ratio))

    # A large state

    def _large(self) -> None:
        stored = f"{self._sessions:,} stored"
        loads = [load for load in LARGE_LOADS if self._is_wanted(f"{load.name}, {stored}")]
        is_filling_wanted = self._is_wanted("filling")
        is_catching_up_wanted = self._is_wanted("catching up")
        if not (loads or is_filling_wanted or is_catching_up_wanted):
            return
        with self._nodes("large") as nodes:
            self.table.head(f"Ritornello: {stored}")
            before = {load: self._measure(nodes, load) for load in loads}
            progress(f"filling: {stored}")
            took_s, failures = fill(nodes, self._sessions)
            rate = f"{took_s:,.1f} s, {self._sessions / took_s:,.0f}/s"
            self.table.add(Row("filling", value=rate, note=failures))
            # The first checkpoint writes all of it; what is to be known is how a node that holds
            # much works, so that is waited for. Once it is not, to show what it costs.
            if loads:
                figures = self._measure(nodes, loads[0])
                self.table.add(Row(f"{loads[0].name}, {stored}, the first checkpoint", figures))
            progress("the first checkpoint of the large state")
            settled_s = max(one["took_s"] for one in nodes.ask_all("settle", SETTLE_MAX_S))
            self.table.add(
                Row("after it, until that checkpoint is written", value=f"{settled_s:,.1f} s")
            )
            for load in loads:
                figures = self._measure(nodes, load)
                ratio = figures.rate / before[load].rate
                self.table.add(
                    Row(
                        f"{load.name}, {stored}",
                        figures,
                        goal=f"{ratio:.2f} of {before[load].rate:,.0f}/s, >= {RATIO_GOAL:.2f}",
                        met=ratio >= RATIO_GOAL,
                    )
                )
            if is_catching_up_wanted:
                self._catch_up(nodes)

    def _catch_up(self, nodes: Trio) -> None:
        """Take a follower's disk while operators load the leader."""
        load = Load(CATCH_UP_OPERATORS, "leader")
        quiet = self._measure(nodes, load)
        self.table.add(Row(f"{load.name}, undisturbed", quiet))
        progress("a follower loses its disk, and catches up")
        lost, kept = nodes.followers
        nodes.begin("leader", CATCH_UP_OPERATORS)
        time.sleep(min(self._seconds, 1.0))
        begin_s = time.monotonic()
        lost.start_again_empty()
        lost.ask("ready")
        try:
            found = lost.answer(CATCH_UP_MAX_S)
        except ChildError as error:
            caught_up = Row(CATCHING_UP, value=str(error), goal="at all", met=False)
        else:
            took_s = time.monotonic() - begin_s
            value = f"{took_s:,.1f} s, by snapshots: {found['snapshots']}"
            caught_up = Row(CATCHING_UP, value=value)
            if found["sessions"] < self._sessions:
                raise ChildError(
                    f"{lost.name} calls itself ready with {found['sessions']} sessions"
                )
            time.sleep(min(self._seconds, 1.0))
        figures = nodes.halt([nodes.leader, kept])
        self.table.add(Row(f"{load.name}, a follower is catching up", figures))
        self.table.add(caught_up)
        self.table.add(
            Row(
                "elections meanwhile",
                value=f"{figures.elections}",
                goal="none",
                met=figures.elections == 0,
            )
        )
        self.table.add(
            Row(
                "longest pause of an operator meanwhile",
                value=f"{figures.longest_ms:,.0f} ms",
                goal=f"< {PAUSE_GOAL_MS:g} ms",
                met=figures.longest_ms < PAUSE_GOAL_MS,
            )
        )


def _stock_name(variant: str, callers: int) -> str:
    return f"{callers} of stock PySyncObj, {variant}"


def fill(nodes: Trio, sessions: int) -> tuple[float, str]:
    """Fill the state; answer how long it took, and what failed."""
    nodes.find()
    nodes.leader.ask("fill", sessions=sessions)
    answer = nodes.leader.answer(3600.0)
    failures = ", ".join(f"failed: {count:,} {code}" for code, count in answer["failures"].items())
    return float(answer["took_s"]), failures


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (5)")
    parser.add_argument(
        "--sessions", type=int, default=1_000_000, help="of the large state (1,000,000)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_SECONDS} s each and {QUICK_SESSIONS:,} sessions: half a minute, and noisy",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="TEXT",
        help="rows whose name has this in it, as '256 ', 'stock', 'open loop', 'catching up' (may "
        "be given several times)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows there as well")
    parser.add_argument(
        "--directory", type=Path, default=Path.cwd(), help="on a real disk; emptied in the end (.)"
    )
    parser.add_argument("--profile", action="store_true", help="write cProfile files, and keep all")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.sessions = QUICK_SECONDS, QUICK_SESSIONS
    if options.seconds <= 0 or options.sessions < 1:
        parser.error("seconds and sessions are above 0")
    if not options.directory.is_dir():
        parser.error(f"{options.directory} is no directory")
    return options


def main() -> int:
    """Measure, print, and answer the exit status."""
    options = parse()
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "seconds": options.seconds,
        "sessions": options.sessions,
    }
    print(
        f"Python {machine['python']}, {machine['cores']} cores, load average before "
        f"{machine['load_before']:.2f}, {options.seconds:g} s each\n"
    )
    if os.getloadavg()[0] > BUSY_LOAD:
        print("Other programs use this machine: the figures are too low.", file=sys.stderr)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=options.directory))
    bench = Bench(options, directory)
    try:
        bench.run()
    except ChildError as error:
        progress("")
        print(f"The run has ended early: {error}", file=sys.stderr)
        return FAILED_STATUS
    finally:
        if options.profile:
            print(f"Kept: {directory}", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)
        if options.json is not None:
            result = {**machine, "rows": bench.table.as_json()}
            options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    missed = bench.table.missed
    if missed:
        print("\nMissed: " + "; ".join(f"{row.name}: {row.goal}" for row in missed))
    if options.quick:
        print("\nA taste: loads as short as these are noisy.")
    return MISSED_STATUS if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
