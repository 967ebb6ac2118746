"""Measures a cluster of three nodes on this machine, without HTTP: `python -m benchmarks.cluster`.

Three processes over loopback, each with its own disk directory below `--directory`; the load is
made inside them, by operators that live through one session after another (New, Append, Append,
Remove, 256 bytes each). What is compared is measured in one run, because other programs share the
machine: read the ratios.
"""

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

NAMES = ("node-1", "node-2", "node-3")


class Child:
    """A node in its process."""

    def __init__(self, name: str, directory: Path, peers: dict[str, int], *, profile: bool) -> None:
        self.name = name
        arguments = {"name": name, "directory": str(directory), "peers": peers}
        command = [sys.executable, "-m", "benchmarks.cluster_node", json.dumps(arguments)]
        if profile:
            command[1:1] = ["-m", "cProfile", "-o", str(directory.parent / f"{name}.prof")]
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, do: str, **fields: float | str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise SystemExit(f"{self.name} has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> None:
        if self._process.poll() is None:
            self.ask("stop")
            self._process.wait(60)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Figures(NamedTuple):
    """What one load came to."""

    rate: float
    p50_ms: float
    p99_ms: float
    batch: float  # operations
    fsyncs: float  # of one node, for each operation
    cpu_us: float  # of all nodes, for each operation
    failures: int

    @classmethod
    def of(cls, answers: Sequence[dict[str, Any]]) -> Self:
        latencies = sorted(one for answer in answers for one in answer["latencies_us"])
        count = max(len(latencies), 1)
        took_s = max(answer["took_s"] for answer in answers)
        return cls(
            count / took_s,
            latencies[count // 2] / 1000,
            latencies[count * 99 // 100] / 1000,
            sum(a["operations"] for a in answers) / max(sum(a["batches"] for a in answers), 1),
            statistics.mean(a["fsyncs"] for a in answers) / count,
            sum(a["cpu_s"] for a in answers) / count * 1e6,
            sum(a["failures"] + a["late"] for a in answers),
        )


class Trio:
    """Three nodes."""

    def __init__(self, directory: Path, *, profile: bool) -> None:
        ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        self.children = [Child(name, directory / name, ports, profile=profile) for name in NAMES]
        self.leader, self.followers = self.find()

    def find(self) -> tuple[Child, list[Child]]:
        for child in self.children:
            child.ask("ready")
        leads = {child.name: child.answer()["is_leader"] for child in self.children}
        self.leader = next(child for child in self.children if leads[child.name])
        self.followers = [child for child in self.children if not leads[child.name]]
        return self.leader, self.followers

    def load(self, where: str, operators: int, seconds: float, rate: float = 0) -> Figures:
        """Load the leader, a follower, or all; the others answer with what they did meanwhile."""
        loaded = {
            "leader": [self.leader],
            "follower": self.followers[:1],
            "spread": self.children,
        }[where]
        share = max(operators // len(loaded), 1)
        for child in self.children:
            is_loaded = child in loaded
            child.ask(
                "load",
                operators=share if is_loaded else 0,
                seconds=seconds,
                rate=rate / len(loaded) if is_loaded else 0,
            )
        return Figures.of([child.answer() for child in self.children])

    def fill(self, sessions: int) -> float:
        self.leader.ask("fill", sessions=sessions)
        answer = self.leader.answer()
        if answer["failures"]:
            raise SystemExit(f"{answer['failures']} sessions were refused")
        return float(answer["took_s"])


@contextmanager
def trio(directory: Path, *, profile: bool = False) -> Iterator[Trio]:
    nodes = Trio(directory, profile=profile)
    try:
        yield nodes
        for child in nodes.children:
            child.stop()
    finally:
        for child in nodes.children:
            child.kill()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def show(name: str, figures: Figures) -> None:
    print(
        f"{name:<34} {figures.rate:>9,.0f} {figures.p50_ms:>9.2f} {figures.p99_ms:>9.2f} "
        f"{figures.batch:>7.1f} {figures.fsyncs:>9.4f} {figures.cpu_us:>8.1f} {figures.failures:>6}"
    )


def head() -> None:
    print(
        f"{'':<34} {'ops/s':>9} {'p50 ms':>9} {'p99 ms':>9} {'batch':>7} {'fsyncs':>9} "
        f"{'CPU us':>8} {'failed':>6}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--directory", type=Path, help="on a real disk; removed in the end")
    parser.add_argument("--sessions", type=int, default=1_000_000, help="for the large state")
    parser.add_argument("--only", help="loads whose name has this in it")
    parser.add_argument("--profile", action="store_true", help="write cProfile files, and keep")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=arguments.directory or Path.cwd()))
    try:
        with trio(directory, profile=arguments.profile) as nodes:
            run(nodes, arguments)
    finally:
        if not arguments.profile:
            shutil.rmtree(directory)


def run(nodes: Trio, arguments: argparse.Namespace) -> None:
    head()
    nodes.load("spread", 256, 1.0)  # everybody has been asked something
    rates: dict[str, float] = {}
    for name, where, operators in (
        ("1 on the leader", "leader", 1),
        ("1 on a follower", "follower", 1),
        ("64 on the leader", "leader", 64),
        ("64 spread", "spread", 64),
        ("256 on the leader", "leader", 256),
        ("256 spread", "spread", 256),
        ("4096 on the leader", "leader", 4096),
        ("4096 spread", "spread", 4096),
    ):
        if arguments.only and arguments.only not in name:
            continue
        figures = nodes.load(where, operators, arguments.seconds)
        rates[name] = figures.rate
        show(name, figures)


if __name__ == "__main__":
    main()
