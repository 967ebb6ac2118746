"""Starts, asks, stops and kills node processes; three of them are a cluster."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Self

from state import Operation, encode
from tests.crash.history import Dump, History, ViolationError, check
from tests.crash.server import Arguments

NAMES = ("node-1", "node-2", "node-3")
ROOT = Path(__file__).parents[2]
LINE_BYTES = 1 << 26  # a dump is one line
# Outside of the range from which connections take theirs, so that nobody has a port meanwhile.
PORT = 7_101
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 45.0
OPERATION_TIMEOUT_MS = 4_000

Answer = dict[str, Any]
Then = Callable[[Answer], object]

# What a request is answered whose process died first.
DIED: Answer = {"code": "died", "outcome": "unknown", "text": "the process died"}


class Server:
    """A node: its directory, and the process that runs it, life after life."""

    def __init__(self, arguments: Arguments, log: Path, cluster: "Cluster") -> None:
        self.name = arguments.name
        self.arguments = arguments
        self.directory = Path(arguments.directory)
        self.log = log
        self.environment: dict[str, str] = {}
        self.lives = 0
        self.kills = 0
        self.is_draining = False  # it has said that it takes nothing in any more
        self.consumer = ""  # the prefix of its consumers' names; empty until it has started
        self._cluster = cluster
        self._process: Process | None = None
        self._watching: asyncio.Task[int] | None = None
        self._started = asyncio.Event()
        self._stopped = asyncio.Event()
        self._may_end = False
        self._is_killed = False
        self._pending: dict[int, Then] = {}
        self._next_id = 0

    @property
    def is_running(self) -> bool:
        """Whether there is a process, which was not killed."""
        process = self._process
        return process is not None and process.returncode is None and not self._is_killed

    @property
    def is_up(self) -> bool:
        """Whether it can be asked."""
        return self.is_running and self._started.is_set() and not self.is_draining

    @property
    def life(self) -> str:
        return f"{self.name}#{self.lives}"

    async def start(self, loop: str = "uvloop") -> None:
        """Begin another life; `started` waits until the node has started."""
        if self.is_running:
            return
        await self.ended()
        self.lives += 1
        self._started, self._stopped = asyncio.Event(), asyncio.Event()
        self._may_end = self._is_killed = self.is_draining = False
        self.consumer = ""
        arguments = json.dumps(asdict(replace(self.arguments, loop=loop)))
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.crash.server",
                arguments,
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **self.environment},
                limit=LINE_BYTES,
            )
        self._watching = asyncio.create_task(self._watch(self._process))

    async def started(self) -> None:
        """Wait until the node takes part."""
        watching = self._watching
        assert watching is not None
        waiting = asyncio.create_task(self._started.wait())
        await asyncio.wait(
            {waiting, watching}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()
        if not self._started.is_set():
            raise ViolationError(f"{self.name} did not start: {self.last_words}")

    def kill(self) -> None:
        """Let the process end at once, wherever it is."""
        if self.is_running:
            self.kills += 1
            self._may_end = True
            self._signal(signal.SIGKILL)
            self._is_killed = True

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def stop(self) -> int:
        """Stop in good order, as SIGTERM does. What it was asked is answered before it ends."""
        process = self._process
        if self.is_running and process is not None and process.stdin is not None:
            self._may_end = True
            self._signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._stopped.wait()
            with contextlib.suppress(OSError):
                process.stdin.close()
        return await self.ended(STOP_TIMEOUT_S)

    def may_end(self) -> None:
        """Expect the process to end by itself."""
        self._may_end = True

    async def ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The status of a process that was told to end, or has to by itself."""
        if self._watching is None:
            return 0
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self._watching)

    @property
    def last_words(self) -> str:
        """The last line of what all its lives had to say."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return lines[-1] if lines else "(nothing)"

    def empty(self) -> None:
        """Take away all it has on disk."""
        shutil.rmtree(self.directory)

    # Requests

    def ask(self, then: Then, do: str, **fields: Any) -> None:
        """Send a request. `then` gets its answer, or `DIED`, once."""
        process = self._process
        if not self.is_running or process is None or process.stdin is None:
            then({**DIED, "outcome": "not_applied"})
            return
        self._next_id += 1
        self._pending[self._next_id] = then
        line = json.dumps({"id": self._next_id, "do": do, **fields})
        with contextlib.suppress(OSError):  # then it dies just now, and `_watch` answers
            process.stdin.write(f"{line}\n".encode())

    def submit(self, operation: Operation, then: Then, *, is_ending: bool = False) -> None:
        """Have an operation done."""
        self.ask(
            then,
            "submit",
            operation=encode(operation).hex(),
            is_ending=is_ending,
            timeout_ms=OPERATION_TIMEOUT_MS,
        )

    async def request(self, do: str, **fields: Any) -> Answer:
        """Send a request and wait for its answer. Raises `ViolationError` if it went wrong."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answered(answer: Answer) -> None:
            if not future.done():
                future.set_result(answer)

        self.ask(answered, do, **fields)
        answer = await future
        if "error" in answer:
            raise ViolationError(f"{self.name}: {do}: {answer['error']}")
        return answer

    # Below

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    async def _watch(self, process: Process) -> int:
        """Read what the process says until it has ended."""
        assert process.stdout is not None
        assert process.stdin is not None
        while line := await process.stdout.readline():
            if not line.endswith(b"\n"):
                break  # cut off: it was not said
            self._take(json.loads(line))
        status = await process.wait()
        self._started.clear()
        self._stopped.set()
        with contextlib.suppress(OSError):
            process.stdin.close()
            await process.stdin.wait_closed()
        pending, self._pending = self._pending, {}
        for then in pending.values():
            self._call(then, DIED)
        if not self._may_end:
            self._cluster.fail(
                ViolationError(f"{self.life} ended by itself with {status}: {self.last_words}")
            )
        return status

    def _take(self, answer: Answer) -> None:
        if "id" in answer:
            self._call(self._pending.pop(answer["id"]), answer)
            return
        match answer["event"]:
            case "started":
                self.consumer = bytes.fromhex(answer["consumer"]).decode()
                self._started.set()
            case "stopped":
                self.is_draining = True
                self._stopped.set()
            case "leader":
                self._cluster.leader_told(answer["leader"])
            case "digest":
                self._call(self._digest, answer)
            case unknown:
                raise ValueError(f"nothing is known of {unknown!r}")

    def _digest(self, answer: Answer) -> None:
        self._cluster.history.digest(self.life, answer["index"], answer["digest"])

    def _call(self, then: Then, answer: Answer) -> None:
        try:
            then(answer)
        except Exception as error:  # noqa: BLE001 - it ends the run, see `Cluster.look`
            self._cluster.fail(error)


class Cluster:
    """Three nodes, or one, in processes on loopback addresses of their own."""

    def __init__(
        self,
        directory: Path,
        names: Iterable[str] = NAMES,
        directories: Mapping[str, Path] | None = None,
        **settings: Any,
    ) -> None:
        """`settings` are those of `server.Arguments`."""
        self.directory = directory
        self.history = History()
        self.leader_name: str | None = None  # as far as anyone has said
        self.leader_changes = 0
        self._wrong: Exception | None = None
        names = list(names)
        host = _loopback(SystemRandom())
        peers = {name: (host, PORT + number) for number, name in enumerate(names)}
        self.servers = {
            name: Server(
                Arguments(
                    name,
                    os.fspath((directories or {}).get(name, directory / name)),
                    peers if len(names) > 1 else {},
                    **settings,
                ),
                directory / f"{name}.log",
                self,
            )
            for name in names
        }

    async def __aenter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self:
            server.kill()
        for server in self:
            await server.ended()

    def __iter__(self) -> Iterator[Server]:
        return iter(self.servers.values())

    @property
    def up(self) -> list[Server]:
        return [server for server in self if server.is_up]

    @property
    def leader(self) -> Server:
        """Who leads, or led last, as far as anyone has said."""
        return self.servers[self.leader_name or NAMES[0]]

    @property
    def followers(self) -> list[Server]:
        return [server for server in self if server is not self.leader]

    def victim(self, random: Random, who: str) -> Server:
        """One of the `any`, the `leader`, a `follower`."""
        candidates = {
            "any": list(self),
            "leader": [self.leader],
            "follower": self.followers or list(self),
        }[who]
        return random.choice(candidates)

    async def start(self, loop: str = "uvloop") -> None:
        """Start all that are not running, and wait for them."""
        for server in self:
            await server.start(loop)
        for server in self:
            await server.started()

    async def stop(self) -> list[int]:
        """Stop all in good order, at the same time."""
        return await asyncio.gather(*(server.stop() for server in self))

    # What is found on the way

    def leader_told(self, leader: str | None) -> None:
        if leader is not None and leader != self.leader_name:
            self.leader_changes += self.leader_name is not None
            self.leader_name = leader

    def fail(self, error: Exception) -> None:
        """Let the run end at the next look."""
        self._wrong = self._wrong or error

    def look(self) -> None:
        """Raise what has gone wrong meanwhile."""
        if self._wrong is not None:
            raise self._wrong

    async def until(self, holds: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        """Wait for something that has to come."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            self.look()
            if time.monotonic() > deadline_s:
                words = "; ".join(f"{one.name}: {one.last_words}" for one in self)
                raise ViolationError(f"waited {timeout_s} s for {what}. {words}")
            await asyncio.sleep(0.02)
        self.look()

    async def progress(self, operations: int = 30, timeout_s: float = 30.0) -> None:
        """Wait until some more operations are acknowledged."""
        goal = self.history.acknowledged + operations
        await self.until(
            lambda: self.history.acknowledged >= goal, f"{operations} operations", timeout_s
        )

    async def settle(self) -> list[Dump]:
        """Wait until all nodes have applied the same, and answer what they hold then."""
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        answers: list[Answer] = []
        while time.monotonic() < deadline_s:
            self.look()
            answers = await asyncio.gather(
                *(one.request("dump", timeout_ms=OPERATION_TIMEOUT_MS) for one in self)
            )
            indexes = [one.get("applied_index") for one in answers]
            if None not in indexes and len(set(indexes)) == 1:
                return [_dump(one.name, a) for one, a in zip(self, answers, strict=True)]
            await asyncio.sleep(0.05)
        told = [{k: v for k, v in one.items() if k not in {"ledgers", "work"}} for one in answers]
        raise ViolationError(f"the nodes do not come to rest: {told}")

    async def applied(self, server: Server) -> int:
        """An index at which a node has all that was acknowledged before."""
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        answer: Answer = {}
        while time.monotonic() < deadline_s:
            self.look()
            answer = await server.request("barrier", timeout_ms=OPERATION_TIMEOUT_MS)
            if "applied_index" in answer:
                return int(answer["applied_index"])
            await asyncio.sleep(0.05)
        raise ViolationError(f"{server.life} does not catch up: {answer}")

    async def check(self) -> list[Dump]:
        """Start all that are down, let them come to rest, and hold them to what they said."""
        await self.start()
        dumps = await self.settle()
        check(self.history, dumps)
        self.look()
        return dumps

    async def statuses(self) -> dict[str, Answer]:
        """What the nodes that are up say of themselves."""
        up = self.up
        answers = await asyncio.gather(*(one.request("status") for one in up))
        return {one.name: answer for one, answer in zip(up, answers, strict=True)}


def _dump(name: str, answer: Answer) -> Dump:
    return Dump(
        name,
        answer["applied_index"],
        answer["digest"],
        {ledger: _numbers(chunks) for ledger, chunks in answer["ledgers"].items()},
        {session_id: _numbers(chunks) for session_id, _, chunks in answer["work"]},
    )


def _numbers(chunks: list[str]) -> list[int]:
    return [int(chunk, 16) for chunk in chunks]


def _loopback(random: Random) -> str:
    """An address that no other cluster of this machine uses."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
