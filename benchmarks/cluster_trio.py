"""Three processes on loopback, each with its own directory, and what a load of them comes to.

A process reads commands, one JSON object a line on its standard input, and answers each with one
line. The parent talks to one at a time and has one command on its way to each.
"""

import json
import math
import select
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.latencies import Latencies

NAMES = ("node-1", "node-2", "node-3")
ANSWER_S = 120.0
READY_S = 600.0

Answer = dict[str, Any]


class ChildError(Exception):
    """A process has ended, does not answer, or says what it should not."""


class Child:
    """A process that runs one member."""

    def __init__(
        self,
        module: str,
        name: str,
        directory: Path,
        peers: dict[str, int],
        options: dict[str, Any] | None = None,
        *,
        profile: bool = False,
    ) -> None:
        self.name = name
        self._directory = directory
        arguments = {
            "name": name,
            "directory": str(directory),
            "peers": peers,
            **(options or {}),
        }
        self._command = [sys.executable, "-m", module, json.dumps(arguments)]
        if profile:
            self._command[1:1] = ["-m", "cProfile", "-o", str(directory.parent / f"{name}.prof")]
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[str]":
        self._directory.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(  # noqa: S603 - our own command
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # the parent ends it, also after Ctrl-C
        )

    def ask(self, do: str, **fields: float) -> None:
        if self._process.stdin is None:
            raise ChildError(f"{self.name} has no input")
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildError(f"{self.name} has ended") from error

    def answer(self, timeout_s: float = ANSWER_S) -> Answer:
        output = self._process.stdout
        if output is None:
            raise ChildError(f"{self.name} has no output")
        # Nothing is left in the file's own buffer: each command has one line for an answer.
        if not select.select([output], [], [], timeout_s)[0]:
            raise ChildError(f"{self.name} has not answered for {timeout_s:.0f} s")
        line = output.readline()
        if not line:
            raise ChildError(f"{self.name} has ended")
        found: Answer = json.loads(line)
        return found

    def stop(self) -> None:
        """Let it end in an orderly way."""
        if self._process.poll() is None:
            self.ask("stop")
            self._process.wait(60)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def start_again_empty(self) -> None:
        """Take its life and its disk, and give it new ones."""
        self.kill()
        shutil.rmtree(self._directory)
        self._process = self._start()


@dataclass(frozen=True, slots=True)
class Figures:
    """What one load came to."""

    rate: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    batch: float | None  # operations
    fsyncs: float | None  # of one node, for each operation
    cpu_us: float  # of all nodes, for each operation
    failures: dict[str, int]  # by code
    complaints: dict[str, int]  # of the library, where it is stock
    elections: int  # terms that began meanwhile
    resends: int  # batches that were sent again
    stalls: int  # loops that stood still for a second

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Self:
        latencies = Latencies.of(answer["latencies"] for answer in answers)
        took_s = max(answer["took_s"] for answer in answers)
        done = sum(answer["done"] for answer in answers)
        batches = sum(answer["batches"] for answer in answers)
        failures: Counter[str] = Counter()
        complaints: Counter[str] = Counter()
        for answer in answers:
            failures.update(answer["failures"])
            complaints.update(answer.get("complaints", {}))
        return cls(
            rate=done / took_s,
            p50_ms=latencies.p50_ms,
            p99_ms=latencies.p99_ms,
            longest_ms=max(answer["longest_ms"] for answer in answers),
            batch=sum(a["operations"] for a in answers) / batches if batches else None,
            fsyncs=sum(a["fsyncs"] for a in answers) / len(answers) / done
            if batches and done
            else None,
            cpu_us=sum(a["cpu_s"] for a in answers) / done * 1e6 if done else math.nan,
            failures=dict(failures),
            complaints=dict(complaints),
            elections=max(answer["term"] for answer in answers),
            resends=sum(answer["resends"] for answer in answers),
            stalls=sum(answer["stalls"] for answer in answers),
        )


class Trio:
    """Three members."""

    def __init__(
        self,
        module: str,
        directory: Path,
        options: dict[str, Any] | None = None,
        *,
        profile: bool = False,
    ) -> None:
        self._profile = profile
        ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        self.children = [
            Child(module, name, directory / name, ports, options, profile=profile) for name in NAMES
        ]
        self.leader = self.children[0]
        self.followers = self.children[1:]

    def __enter__(self) -> Self:
        try:
            self.find()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            if self._profile and error_type is None:
                for child in self.children:
                    child.stop()
        finally:
            self._kill()

    def _kill(self) -> None:
        for child in self.children:
            child.kill()

    def find(self) -> None:
        """Wait until all are ready, and learn who leads."""
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            for child in self.children:
                child.ask("ready")
            leads = [child.answer(READY_S)["is_leader"] for child in self.children]
            if leads.count(True) == 1:
                self.leader = self.children[leads.index(True)]
                self.followers = [child for child in self.children if child is not self.leader]
                return
            time.sleep(0.1)
        raise ChildError(f"there was no one leader for {READY_S:.0f} s")

    def load(self, where: str, operators: int, seconds: float, rate: float = 0) -> Figures:
        """Load the leader, a follower, or all; the others answer with what they did meanwhile."""
        self.find()
        self.begin(where, operators, rate)
        time.sleep(seconds)
        return self.halt(self.children)

    def begin(self, where: str, operators: int, rate: float = 0) -> None:
        loaded = {
            "leader": [self.leader],
            "follower": self.followers[:1],
            "spread": self.children,
        }[where]
        for child in self.children:
            # All of them: 64 over three are 22, 21 and 21.
            count = (
                operators // len(loaded) + (loaded.index(child) < operators % len(loaded))
                if (child in loaded)
                else 0
            )
            child.ask("begin", operators=count, rate=rate / len(loaded) if count else 0)
        for child in self.children:
            child.answer()

    def ask_all(self, do: str, timeout_s: float) -> list[Answer]:
        """Have all do the same, and answer what each says."""
        for child in self.children:
            child.ask(do)
        return [child.answer(timeout_s) for child in self.children]

    def halt(self, children: Sequence[Child]) -> Figures:
        """End the load of these, and answer what it came to."""
        for child in children:
            child.ask("halt")
        return Figures.of([child.answer() for child in children])


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
