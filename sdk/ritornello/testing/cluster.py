"""A cluster of real processes on this machine, for tests in which nodes die.

    with Cluster(3) as cluster:
        with cluster.sync_client() as client:
            client.new(7, b"survive", after=0)
            cluster.kill(cluster.leader())
            with client.acquire(7, wait=30) as session: ...

Their times are quicker than those of a real cluster: another leader is found in a second or two.
"""

import asyncio
import contextlib
import json
import secrets
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ritornello.client import Client
from ritornello.core.thread import CoreThread
from ritornello.limits import Options
from ritornello.sync.client import Client as SyncClient
from ritornello.testing.faults import Faults
from ritornello.testing.found import load
from ritornello.testing.proxy import Proxy

READY_S = 60.0  # for a node to serve, on a machine that is busy
END_S = 20.0
_POLL_S = 0.05
_ASK_S = 2.0
_TIMEOUT_S = 30.0
_LOG_BYTES = 16 << 10  # of each log that is shown

_FLAGS = (
    *("--consensus-heartbeat-ms", "50"),
    *("--consensus-election-timeout-min-ms", "500"),
    *("--consensus-election-timeout-max-ms", "1000"),
    *("--consensus-quorum-timeout-ms", "1000"),
    *("--reaper-lease-grace-ms", "300"),
    *("--http-drain-ms", "500"),
    *("--node-stop-timeout-ms", "5000"),
    *("--journal-segment-bytes", str(1 << 20)),
)

# A node that stands still is left soon; and no test waits long for one that comes back.
_OPTIONS = Options(backoff_max_s=0.5, silence_s=3.0)


class NodeFailed(Exception):
    """A node has not done what it must; its log is in the message."""


class _Node:
    """One process, whenever it runs."""

    def __init__(self, directory: Path, name: str, port: int, flags: Sequence[str]) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.log = directory / f"{name}.log"
        self.is_paused = False
        self._process: subprocess.Popen[bytes] | None = None
        self._arguments = (
            *("serve", "--node-id", name, "--node-data-directory", str(directory / name)),
            *("--http-bind", f"127.0.0.1:{port}"),
            *_FLAGS,
            *flags,
        )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, command: Sequence[str]) -> None:
        log: IO[bytes]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - of our own making
                [*command, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # what is typed at a terminal is for the tests
            )

    def signal(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            raise NodeFailed(f"{self.name} does not run: `restart` it")
        self._process.send_signal(number)
        if number in {signal.SIGSTOP, signal.SIGCONT}:
            self.is_paused = number is signal.SIGSTOP

    def wait(self) -> int:
        """Its exit status, when it has ended. Raises `NodeFailed`."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise NodeFailed(f"{self.name} does not end:\n{self.tail()}") from None

    def kill(self) -> None:
        """End it, whatever it does."""
        self.is_paused = False
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ask(self, path: str) -> Any:  # noqa: ANN401 - JSON, or None
        """What it answers; None if it does not."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=_ASK_S) as answer:  # noqa: S310 - http
                return json.loads(answer.read())
        except (OSError, ValueError):
            return None

    def await_ready(self) -> None:
        """Wait until it may be asked. Raises `NodeFailed` if it ends, or takes too long."""
        _until(self._is_ready, lambda: f"{self.name} is not ready:\n{self.tail()}")

    def _is_ready(self) -> bool:
        if not self.is_running:
            raise NodeFailed(f"{self.name} has ended:\n{self.tail()}")
        return self.ask("/readyz") is not None

    def tail(self) -> str:
        """The end of its log."""
        try:
            data = self.log.read_bytes()
        except OSError:
            return ""
        return data[-_LOG_BYTES:].decode(errors="replace")


class Cluster:
    """Nodes by their numbers, from 0 on. What is done here is done when the call returns.

    Raises `ServerMissing` if the distribution `ritornello-server` is not installed, and
    `NodeFailed` if a node does not come up.
    """

    def __init__(
        self, nodes: int = 3, *, directory: Path | None = None, flags: Sequence[str] = ()
    ) -> None:
        """`flags` are further ones of `ritornello-server serve`, for all nodes."""
        if nodes < 1 or nodes == 2:  # noqa: PLR2004 - the one number that is no safer than one
            raise ValueError(f"nodes is {nodes}; it is 1, or 3 and more: two are no safer than one")
        make_command: Callable[[], list[str]] = load("command")
        self._make_command = make_command
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._given = directory
        self._flags = tuple(flags)
        self._count = nodes
        self._nodes: list[_Node] = []
        self._proxies: list[Proxy] = []
        self._thread: CoreThread | None = None
        self.faults = Faults(self._cut)
        """What goes wrong between the nodes and their clients."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all nodes; they may be asked when this returns. Once."""
        if self._thread is not None:
            raise RuntimeError("a cluster is started once: make another one")
        self._thread = CoreThread("ritornello-testing")
        self._thread.start()
        try:
            directory = self._given
            if directory is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="ritornello-")
                directory = Path(self._temporary.name)
            self._nodes = self._made(directory)
            for node in self._nodes:
                node.start(self._make_command())
                proxy = Proxy(node.url, self.faults)
                self._proxies.append(proxy)
                self._run(proxy.start())
            for node in self._nodes:
                node.await_ready()
        except BaseException:
            self.stop()
            raise

    def _made(self, directory: Path) -> list[_Node]:
        ports = _free_ports(2 * self._count)
        names = [f"node-{number}" for number in range(self._count)]
        shared = list(self._flags)
        if self._count > 1:
            secret = directory / "secret"
            secret.touch(mode=0o600)
            secret.write_text(secrets.token_hex(16))
            peers = ",".join(
                f"{name}=127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)
            )
            shared += ["--node-peers", peers, "--node-cluster-secret-file", str(secret)]
        return [
            _Node(directory, name, port, shared)
            for name, port in zip(names, ports[self._count :], strict=True)
        ]

    def stop(self) -> None:
        """End all of it at once; nothing is left behind."""
        try:
            for node in self._nodes:
                node.kill()
            proxies, self._proxies = self._proxies, []
            for proxy in proxies:
                self._run(proxy.stop())
        finally:
            if self._thread is not None:
                self._thread.stop()
            if self._temporary is not None:
                self._temporary.cleanup()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done in the thread of the proxies."""
        if self._thread is None:
            work.close()
            raise RuntimeError("the cluster is not started: use it as a context manager")
        self._thread.run(work).result(_TIMEOUT_S)

    # Where it is

    @property
    def urls(self) -> list[str]:
        """Where clients ask, by the numbers of the nodes; those that do not run included."""
        return [one.url for one in self._proxies]

    @property
    def logs(self) -> dict[str, str]:
        """The ends of the nodes' logs."""
        return {one.name: one.tail() for one in self._nodes}

    def leader(self) -> int:
        """The number of the node that leads now, waiting for an election if there is none.

        Raises `NodeFailed` if none is found.
        """
        found: list[int] = []

        def look() -> bool:
            for number, node in enumerate(self._nodes):
                if node.is_running and not node.is_paused:
                    view = node.ask("/v1/cluster")
                    if view is not None and view["leader"] == view["node"] and view["is_ready"]:
                        found.append(number)
                        return True
            return False

        _until(look, lambda: "no node leads; is there a majority of nodes that run?")
        return found[0]

    def client(self, options: Options | None = None) -> Client:
        """A client of all nodes, for programs with an event loop; for `async with`."""
        return Client(self.urls, options=options or _OPTIONS)

    def sync_client(self, options: Options | None = None) -> SyncClient:
        """A client of all nodes, for programs without; for `with`."""
        return SyncClient(self.urls, options=options or _OPTIONS)

    # What becomes of nodes

    def kill(self, number: int) -> None:
        """End a node at once, as a machine that loses its power; its disk stays."""
        node = self._nodes[number]
        node.signal(signal.SIGKILL)
        node.wait()
        node.is_paused = False

    def stop_node(self, number: int) -> int:
        """Let a node leave in good order, as it is asked to by SIGTERM; answers its exit status."""
        node = self._nodes[number]
        node.signal(signal.SIGTERM)
        return node.wait()

    def pause(self, number: int) -> None:
        """Let a node stand still, as a machine that does not answer."""
        self._nodes[number].signal(signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        """Let a node that was paused go on."""
        self._nodes[number].signal(signal.SIGCONT)

    def restart(self, number: int) -> None:
        """Start a node again, with what it had on its disk; one that runs is killed first."""
        node = self._nodes[number]
        node.kill()
        node.start(self._make_command())
        node.await_ready()

    def _cut(self) -> None:
        async def cut() -> None:
            await asyncio.gather(*(one.cut() for one in self._proxies))

        self._run(cut())


def _until(holds: Callable[[], bool], says: Callable[[], str]) -> None:
    """Wait for what another process comes to. Raises `NodeFailed`."""
    end_s = time.monotonic() + READY_S
    while not holds():
        if time.monotonic() >= end_s:
            raise NodeFailed(says())
        time.sleep(_POLL_S)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
