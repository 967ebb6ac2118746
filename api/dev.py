"""A local cluster: nodes as processes of their own on this machine, for trying things and tests.

    async with LocalCluster(Path("ritornello-dev")) as cluster:
        await cluster.wait_until_ready()
        ... cluster.urls

Everything is in one folder: a data directory for each node, and which ports they have, so that a
cluster that is started again finds itself. A node that dies is reported and started again, later
each time that it dies soon.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

from api.statuses import ExitStatus
from cluster.network.settings import Address

HOST = "127.0.0.1"
HTTP_PORT = 7601
CLUSTER_ID = "ritornello-dev"
PORTS_FILE = "cluster.json"

# A node may take twice its stop_timeout_ms and its drain_ms; on one machine that is far too long.
STOP_TIMEOUT_S = 15.0
HURRY_TIMEOUT_S = 1.0
KILL_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 30.0
NODES_MAX = 9
HTTP_PORT_MAX = 65_536 - NODES_MAX
# Below those that the kernel gives to connections, one of which could take a dead node's port.
PORTS = range(20_000, 32_000)

_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 10.0
_STEADY_S = 30.0  # having lived for so long, a node begins with the shortest backoff again
_POLL_S = 0.05
_ASK_TIMEOUT_S = 1.0
_LINE_BYTES_MAX = 1 << 20
_READ_BYTES = 1 << 16

# With these, starting again does not help.
_HOPELESS = {ExitStatus.SETTINGS, ExitStatus.DISK}

_ROOT = Path(__file__).resolve().parents[1]

Line = Callable[[str, str], object]  # node, text


class DevError(Exception):
    """A local cluster cannot be what it was asked to be; the message says what to write."""


class PortInUseError(DevError):
    """Somebody listens where a node would."""

    def __init__(self, node: str, port: int) -> None:
        super().__init__(f"port {port} of {HOST} is in use, and {node} would listen there")
        self.node = node
        self.port = port


class NotReadyError(DevError):
    """Nodes have not become ready in time."""

    def __init__(self, timeout_s: float, names: Sequence[str]) -> None:
        super().__init__(f"not ready within {timeout_s:.0f} s: {', '.join(names)}")
        self.names = names


class State(StrEnum):
    """What a node is meant to be doing."""

    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"
    KILLED = "killed"  # until somebody starts it again
    FAILED = "failed"  # by itself: it will be started again, or it is hopeless


@dataclass(slots=True)
class LocalNode:
    """One node, through all its lives."""

    name: str
    directory: Path
    http_port: int
    peer_port: int
    state: State = State.STOPPED
    process: Process | None = None
    lives: int = 0
    started_s: float = 0.0
    backoff_s: float = _BACKOFF_S
    statuses: list[int] = field(default_factory=list)  # of the lives that are over
    hopeless: int | None = None  # the status after which there is no other life
    watching: "asyncio.Task[None] | None" = None  # of the last process
    restarting: "asyncio.Task[None] | None" = None

    @property
    def url(self) -> str:
        """Where its front end is."""
        return f"http://{HOST}:{self.http_port}"

    @property
    def is_alive(self) -> bool:
        """Whether there is a process."""
        return self.process is not None and self.process.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Send its process a signal, if there is one."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class LocalCluster:
    """Some nodes on this machine. Made and used on one event loop; it is started once."""

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int | None = None,
        http_port: int = HTTP_PORT,
        cluster_id: str = CLUSTER_ID,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        on_line: Line | None = None,
        restarts: bool = True,
    ) -> None:
        """`nodes` is 1, 3 or more; None: as many as the folder has, or three.

        `http_port` is the first node's, the others have those after it; 0: any that are free.
        `arguments` are more flags of `serve`, for each node. Of the environment, variables of the
        server's settings are left out. `on_line` gets each line that a node logs, and what the
        cluster itself has to say, under the name "dev".
        """
        if nodes is not None:
            check_count(nodes)
        self.directory = directory.absolute()
        self.nodes: dict[str, LocalNode] = {}
        self._count = nodes
        self._http_port = http_port
        self._cluster_id = cluster_id
        self._arguments = tuple(arguments)
        self._environment = environment
        self._on_line: Line = on_line or _ignore
        self._restarts = restarts
        self._lock = -1
        self._is_started = False
        self._is_stopping = False
        self._is_hurried = asyncio.Event()
        self._is_hopeless = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def urls(self) -> list[str]:
        """Where the nodes' front ends are, in the order of their names."""
        return [node.url for node in self.nodes.values()]

    # Life

    def prepare(self) -> None:
        """Find out which nodes there are, and where. Raises `DevError`, OSError."""
        if self.nodes or self._is_stopping:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._find_ports()
        except BaseException:
            self._give_lock_back()
            raise

    async def start(self) -> None:
        """Start all nodes; `wait_until_ready` waits for them. Raises `DevError`, OSError."""
        if self._is_started:
            raise RuntimeError("a local cluster is started once")
        self._is_started = True
        self.prepare()
        try:
            for node in self.nodes.values():
                await self._start(node)
        except BaseException:
            await self.stop()
            raise

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop all nodes in order, at the same time; kill what is still there after `timeout_s`."""
        self._is_stopping = True
        await asyncio.gather(*(self._stop(node, timeout_s) for node in self.nodes.values()))
        self._give_lock_back()

    async def hopeless(self) -> LocalNode:
        """Wait until a node ends in a way that starting it again does not help."""
        await self._is_hopeless.wait()
        return next(node for node in self.nodes.values() if node.hopeless is not None)

    def hurry(self) -> None:
        """Let a stop that is under way take a moment at most."""
        self._is_hurried.set()
        for node in self.nodes.values():
            node.send(signal.SIGTERM)

    async def kill(self, name: str) -> None:
        """Let a node end at once, wherever it is; it stays so until `restart`."""
        node = self.nodes[name]
        node.state = State.KILLED
        node.send(signal.SIGKILL)
        await self._ended(node)

    async def stop_node(self, name: str, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Stop one node in order; answers its exit status."""
        node = self.nodes[name]
        await self._stop(node, timeout_s)
        return node.statuses[-1] if node.statuses else 0

    async def restart(self, name: str) -> None:
        """Start a node that was killed or stopped; one that runs is stopped in order before."""
        node = self.nodes[name]
        if node.is_alive:
            await self._stop(node, STOP_TIMEOUT_S)
        await self._ended(node)
        await self._start(node)

    def pause(self, name: str) -> None:
        """Let a node do nothing, as if its machine slept."""
        node = self.nodes[name]
        if node.is_alive and node.state is State.RUNNING:
            node.state = State.PAUSED
            node.send(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a paused node go on."""
        node = self.nodes[name]
        if node.state is State.PAUSED:
            node.state = State.RUNNING
            node.send(signal.SIGCONT)

    async def is_ready(self, name: str) -> bool:
        """Whether a node would have `/readyz` answer 200."""
        node = self.nodes[name]
        return node.state is State.RUNNING and node.is_alive and await _is_ready(node.http_port)

    async def wait_until_ready(self, *names: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until these nodes are ready, or all that are meant to run.

        Raises `NotReadyError`, and `DevError` if one of them will never be.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            wanted = names or [
                one.name
                for one in self.nodes.values()
                if one.state not in {State.STOPPED, State.KILLED, State.PAUSED}
            ]
            answers = await asyncio.gather(*map(self.is_ready, wanted))
            missing = [name for name, ready in zip(wanted, answers, strict=True) if not ready]
            if not missing:
                return
            if self._is_hopeless.is_set():
                node = await self.hopeless()
                raise DevError(f"{node.name} has ended by itself {status_text(node.statuses[-1])}")
            if time.monotonic() > deadline_s:
                raise NotReadyError(timeout_s, missing)
            await asyncio.sleep(_POLL_S)

    # Ports

    def _take_lock(self) -> None:
        path = self.directory / PORTS_FILE
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._give_lock_back()
            raise DevError(
                f"a cluster runs in {self.directory} already; stop it, or use another directory"
            ) from error

    def _give_lock_back(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _find_ports(self) -> None:
        """Give each node its ports: those that the folder remembers, as far as they are free."""
        remembered = self._remembered()
        count = self._count or len(remembered) or 3
        if remembered and len(remembered) != count:
            raise DevError(
                f"{self.directory} has a cluster of {len(remembered)} nodes, not of {count}, and "
                "members are not added or taken away; use the same number, or another directory"
            )
        check_count(count)
        names = [f"node-{number}" for number in range(1, count + 1)]
        with contextlib.ExitStack() as held:
            for number, name in enumerate(names):
                before = remembered.get(name, {})
                http_port = self._http_port + number if self._http_port else before.get("http", 0)
                is_wanted = bool(self._http_port)
                http_port = _hold(held, name, http_port, is_wanted=is_wanted)
                # Nobody but the nodes themselves has to find these: so any will do.
                peer_port = _hold(held, name, before.get("peer", 0), is_wanted=False)
                self.nodes[name] = LocalNode(name, self.directory / name, http_port, peer_port)
        self._remember()

    def _remembered(self) -> dict[str, dict[str, int]]:
        path = self.directory / PORTS_FILE
        try:
            text = path.read_text(encoding="utf-8")
            if not text:
                return {}
            found: dict[str, dict[str, int]] = {
                str(name): {"http": int(ports["http"]), "peer": int(ports["peer"])}
                for name, ports in json.loads(text)["nodes"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DevError(
                f"{path} is not what was written; remove it, and the nodes get other ports"
            ) from error
        return found

    def _remember(self) -> None:
        nodes = {
            one.name: {"http": one.http_port, "peer": one.peer_port} for one in self.nodes.values()
        }
        text = json.dumps({"nodes": nodes}, indent=2) + "\n"
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, text.encode(), 0)

    # Processes

    def command(self, node: LocalNode) -> list[str]:
        """How a node is started."""
        peers = ",".join(
            f"{one.name}={Address(HOST, one.peer_port)}" for one in self.nodes.values()
        )
        cluster = ["--node-peers", peers] if len(self.nodes) > 1 else []
        return [
            sys.executable,
            "-P",  # nothing of the current directory is taken for a part of the server
            "-m",
            "api.commands.child",
            str(os.getpid()),
            "serve",
            *("--node-id", node.name),
            *("--node-cluster-id", self._cluster_id),
            *("--node-data-directory", os.fspath(node.directory)),
            *cluster,
            *("--http-bind", f"{HOST}:{node.http_port}"),
            *("--operation-log-format", "console"),
            *self._arguments,
        ]

    def _child_environment(self) -> dict[str, str]:
        given = os.environ if self._environment is None else self._environment
        environment = {
            name: value for name, value in given.items() if not name.startswith("RITORNELLO_")
        }
        paths = [os.fspath(_ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return environment

    async def _start(self, node: LocalNode) -> None:
        if self._is_stopping:
            return
        node.process = process = await asyncio.create_subprocess_exec(
            *self.command(node),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env=self._child_environment(),
            start_new_session=True,  # a Ctrl-C is for whoever runs the cluster, who stops it
        )
        node.state = State.RUNNING
        node.lives += 1
        node.started_s = time.monotonic()
        node.watching = asyncio.create_task(self._watch(node, process))

    async def _watch(self, node: LocalNode, process: Process) -> None:
        """Pass on what a node says until it has ended, and start it again if nobody ended it."""
        lines = Lines()
        if process.stdout is not None:
            while data := await process.stdout.read(_READ_BYTES):
                for line in lines.feed(data):
                    self._on_line(node.name, line)
        for line in lines.rest():
            self._on_line(node.name, line)
        status = await process.wait()
        node.statuses.append(status)
        if node.state not in {State.RUNNING, State.PAUSED} or self._is_stopping:
            return
        node.state = State.FAILED
        lived_s = time.monotonic() - node.started_s
        if lived_s > _STEADY_S:
            node.backoff_s = _BACKOFF_S
        what = f"{node.name} has ended by itself after {lived_s:.1f} s, {status_text(status)}"
        if status in _HOPELESS or not self._restarts:
            self._say(f"{what}; {_what_helps(status, node)}")
            node.hopeless = status
            self._is_hopeless.set()
            return
        delay_s, node.backoff_s = node.backoff_s, min(2 * node.backoff_s, _BACKOFF_MAX_S)
        self._say(f"{what}{_reason(status)}; it is started again in {delay_s:.1f} s")
        node.restarting = asyncio.create_task(self._start_later(node, delay_s))

    async def _start_later(self, node: LocalNode, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            await self._start(node)
        except OSError as error:
            self._say(f"{node.name} cannot be started: {error}")

    async def _stop(self, node: LocalNode, timeout_s: float) -> None:
        was_paused = node.state is State.PAUSED
        node.state = State.STOPPED
        node.send(signal.SIGTERM)
        if was_paused:
            node.send(signal.SIGCONT)
        if node.process is not None and node.is_alive:
            ending = asyncio.ensure_future(node.process.wait())
            hurried = asyncio.ensure_future(self._is_hurried.wait())
            await asyncio.wait(
                {ending, hurried}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if hurried.done() and not ending.done():
                await asyncio.wait({ending}, timeout=HURRY_TIMEOUT_S)
            if not ending.done():
                in_time = "fast enough" if hurried.done() else f"within {timeout_s:.0f} s"
                self._say(f"{node.name} has NOT STOPPED {in_time}: it is KILLED")
                node.send(signal.SIGKILL)
            hurried.cancel()
            await ending
        await self._ended(node)

    async def _ended(self, node: LocalNode) -> None:
        """Wait for a process that was told to end, and for what it had to say."""
        if node.restarting is not None:
            node.restarting.cancel()
            node.restarting = None
        if node.watching is not None:
            await asyncio.wait({node.watching}, timeout=KILL_TIMEOUT_S)

    def _say(self, text: str) -> None:
        self._on_line("dev", text)


def check_count(nodes: int) -> None:
    """Refuse a number of nodes that makes no sense. Raises `DevError`."""
    if nodes == 2:  # noqa: PLR2004 - what two are is the point
        raise DevError(
            "two nodes are no safer than one: losing either stops both; write --nodes 3, or 1"
        )
    if not 1 <= nodes <= NODES_MAX:
        raise DevError(f"{nodes} nodes are not possible here; write 1, or 3 to {NODES_MAX}")


def _hold(held: contextlib.ExitStack, node: str, port: int, *, is_wanted: bool) -> int:
    """Make sure of a port, for as long as `held`; of another one, unless this one is wanted."""
    random = Random()  # noqa: S311 - no secret
    for candidate in [port, *random.sample(PORTS, 100)]:
        if not candidate:
            continue
        one = held.enter_context(socket.socket())
        # As a server does it: what is left of connections that are closed is in nobody's way.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, candidate))
            one.listen()
        except OSError as error:
            if is_wanted:
                raise PortInUseError(node, candidate) from error
        else:
            return candidate
    raise DevError(f"there is no free port on {HOST}")


async def _is_ready(port: int) -> bool:
    """Whether `/readyz` answers 200."""
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(
                    f"GET /readyz HTTP/1.1\r\nHost: {HOST}:{port}\r\n"
                    "Connection: close\r\n\r\n".encode()
                )
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return line.split(b" ")[1:2] == [b"200"]


class Lines:
    """Makes lines out of what comes in pieces; what never ends is cut."""

    def __init__(self, max_bytes: int = _LINE_BYTES_MAX) -> None:
        self._max_bytes = max_bytes
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > self._max_bytes:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace") for line in lines]

    def rest(self) -> list[str]:
        """What stands after the last line's end."""
        rest, self._rest = self._rest, b""
        return [rest.decode(errors="replace")] if rest else []


def status_text(status: int) -> str:
    """`with status 3`, `by SIGKILL`."""
    if status < 0:
        return f"by {signal.Signals(-status).name}"
    return f"with status {status}"


def _reason(status: int) -> str:
    if status == ExitStatus.IN_USE:
        # Nodes of a cluster that was killed end as well, and may take their time over it.
        return ": another process has its data directory, perhaps an earlier node that still stops"
    return ""


def _what_helps(status: int, node: LocalNode) -> str:
    if status == ExitStatus.DISK:
        look = f"ritornello-server recover --data-directory {node.directory}"
        return f"its disk does not hold a whole node, see: {look}"
    if status == ExitStatus.SETTINGS:
        return "its settings are wrong, and it says above how"
    return "it is not started again"


def _ignore(_node: str, _text: str) -> None:
    """Nobody wants to hear it."""
