"""Measures the front end of three nodes on this machine: `python -m benchmarks.front_end`.

Three `ritornello-server serve` on loopback, each with a directory of its own below --directory,
which should be on a real disk; and a client in a process of its own, which shares the machine with
them. Operators live through one session after another (New, Append, Append, Remove, 256 bytes
each), over HTTP or WebSocket, spread over the nodes or all at the leader.

CPU us/op are those of the three nodes together, and of the client. Other programs share the
machine: read the ratios. What failed stands behind the figures, how often for each reason; a
connection that was lost (`connection_lost`) does nothing more, so a rate with it is too low.

The exit status is 0 if all goals were met, 3 if one was missed; 1 if the run could not be done.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks.cluster_trio import free_ports
from benchmarks.latencies import Latencies

MISSED_STATUS = 3
READY_S = 60.0
WARM_UP_S = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Load(NamedTuple):
    name: str
    kind: str
    connections: int
    lives: int = 1
    per_frame: int = 1
    goal: int = 0  # operations a second


LOADS = (
    Load("HTTP, 1 connection", "http", 1),
    Load("HTTP, 64 connections", "http", 64, goal=8_000),
    Load("WebSocket, 1 operator", "ws", 1),
    Load("WebSocket, 64 connections", "ws", 64),
    Load("WebSocket, 256 connections", "ws", 256, goal=20_000),
    Load("WebSocket, 16 connections, 16 in flight each", "ws", 16, 16, goal=40_000),
    Load("WebSocket, 2 connections, 32 a frame", "ws", 2, 32, 32),
    Load("WebSocket, 8 connections, 32 a frame", "ws", 8, 32, 32),
    Load("WebSocket, 16 connections, 256 in flight each, 32 a frame", "ws", 16, 256, 32, 100_000),
)


class RunError(Exception):
    """The run could not be done."""


class Server:
    """One node, as a process."""

    def __init__(self, node: str, directory: Path, peers: dict[str, int], http_port: int) -> None:
        self.node = node
        self.address = ("127.0.0.1", http_port)
        directory.mkdir(parents=True)
        self._log = (directory / "log").open("wb")
        command = [
            sys.executable,
            *("-m", "api.main", "serve"),
            *("--node-id", node),
            *("--node-data-directory", str(directory / "data")),
            *("--node-peers", ",".join(f"{one}=127.0.0.1:{port}" for one, port in peers.items())),
            *("--http-bind", f"127.0.0.1:{http_port}"),
        ]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)  # noqa: S603 - our own command

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        url = f"http://{self.address[0]}:{self.address[1]}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)

    def wait(self) -> None:
        """Wait until it had better be asked."""
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise RunError(f"{self.node} has ended with status {self._process.returncode}")
            try:
                self.get("/readyz")
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise RunError(f"{self.node} is not ready after {READY_S:.0f} s")

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").split()
        return (int(fields[13]) + int(fields[14])) / _TICKS

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


class Figures(NamedTuple):
    """What a load came to."""

    rate: float
    p50_ms: float
    p99_ms: float
    nodes_us: float
    client_us: float
    failed: dict[str, int]

    @property
    def failures(self) -> str:
        """What failed, for people; empty if nothing did."""
        found = (f"{reason} {times:,}" for reason, times in sorted(self.failed.items()))
        return f"  FAILED: {', '.join(found)}" if self.failed else ""

    @classmethod
    def of(cls, answer: dict[str, Any], nodes_cpu_s: float, lasted_s: float) -> Self:
        latencies = Latencies.of([answer["latencies"]])
        done = max(answer["done"], 1)
        rate = answer["done"] / answer["took_s"]
        return cls(
            rate,
            latencies.p50_ms,
            latencies.p99_ms,
            nodes_cpu_s / max(rate * lasted_s, 1) * 1e6,
            answer["cpu_s"] / done * 1e6,
            answer["failed"],
        )


def measure(servers: list[Server], at: list[Server], load: Load, seconds: float) -> Figures:
    """Put a load on some of the nodes."""
    plan = {
        "kind": load.kind,
        "connections": load.connections,
        "lives": load.lives,
        "per_frame": load.per_frame,
        "addresses": [one.address for one in at],
        "warm_up_s": WARM_UP_S,
        "seconds": seconds,
    }
    command = [sys.executable, "-m", "benchmarks.front_end_client", json.dumps(plan)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:  # noqa: S603 - our own command
        time.sleep(WARM_UP_S + seconds * 0.2)
        used_s, begin_s = sum(one.cpu_s for one in servers), time.monotonic()
        time.sleep(seconds * 0.6)
        used_s = sum(one.cpu_s for one in servers) - used_s
        lasted_s = time.monotonic() - begin_s
        output, _ = client.communicate(timeout=seconds + READY_S)
    if client.returncode != 0:
        raise RunError("the client has failed")
    return Figures.of(json.loads(output), used_s, lasted_s)


@contextmanager
def trio(directory: Path) -> Iterator[list[Server]]:
    """Three nodes that are ready."""
    names = [f"node-{number}" for number in (1, 2, 3)]
    ports = free_ports(2 * len(names))
    peers = dict(zip(names, ports, strict=False))
    servers: list[Server] = []
    try:
        for name, http_port in zip(names, ports[len(names) :], strict=True):
            servers.append(Server(name, directory / name, peers, http_port))
        for one in servers:
            one.wait()
        yield servers
    finally:
        for one in servers:
            one.end()


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Measure the front end of three nodes.")
    parser.add_argument("--directory", type=Path, help="where the nodes' disks are made")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load (default: 5)")
    parser.add_argument("--only", default="", help="loads whose names have this in them")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ritornello-bench-", dir=arguments.directory))
    found: dict[str, Any] = {}
    missed = 0
    try:
        with trio(directory) as servers:
            leader = servers[0].get("/v1/cluster")["leader"]
            at_leader = [one for one in servers if one.node == leader]
            heads = ("ops/s", "p50 ms", "p99 ms", "nodes us")
            print(" " * 70, *(f"{one:>8}" for one in heads), "client us")
            for load in LOADS:
                if arguments.only not in load.name:
                    continue
                best = 0.0
                for where, at in (("leader", at_leader), ("spread", servers)):
                    figures = measure(servers, at, load, arguments.seconds)
                    name = f"{load.name}, {where}"
                    best = max(best, figures.rate)
                    found[name] = figures._asdict()
                    print(
                        f"{name:<70} {figures.rate:>8,.0f} {figures.p50_ms:>8.2f} "
                        f"{figures.p99_ms:>8.2f} {figures.nodes_us:>8.1f} "
                        f"{figures.client_us:>9.1f}{figures.failures}",
                        flush=True,
                    )
                if load.goal:
                    is_met = best >= load.goal
                    missed += not is_met
                    verdict = "met" if is_met else "NOT MET"
                    print(f"    goal: {load.goal:,} operations a second: {verdict}", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return MISSED_STATUS if missed else 0


if __name__ == "__main__":
    sys.exit(main())
