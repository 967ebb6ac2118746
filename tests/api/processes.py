"""Nodes as processes of their own, for what a test's own loop cannot live through.

async with process(tmp_path) as node:
    async with connect(node) as ws: ...
    node.signal(signal.SIGTERM)
    assert await node.ended() == 0
"""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

START_S = 30.0
END_S = 30.0

# Quick elections, as in `tests.api.servers`; and no longer to leave than a test can wait.
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


class Process:
    """One node."""

    def __init__(self, directory: Path, node_id: str, port: int, flags: tuple[str, ...]) -> None:
        self.directory = directory / node_id
        self.node_id = node_id
        self.port = port
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}"
        self.client_ssl: ssl.SSLContext | None = None
        self.log = directory / f"{node_id}.log"
        self._command = (
            *(sys.executable, "-m", "api.main", "serve"),
            *("--node-id", node_id),
            *("--node-data-directory", str(self.directory)),
            *("--http-bind", self.host),
            *_FLAGS,
            *flags,
        )
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log
            )

    async def ready(self) -> None:
        async with asyncio.timeout(START_S):
            while not await asyncio.to_thread(self._is_ready):
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:  # noqa: S310 - http
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status."""
        async with asyncio.timeout(END_S):
            return await self.process.wait()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@asynccontextmanager
async def process(directory: Path, *flags: str) -> AsyncIterator[Process]:
    """A cluster of one."""
    async with _started([Process(directory, "node-1", free_ports(1)[0], flags)]) as (found,):
        yield found


@asynccontextmanager
async def three_processes(directory: Path, *flags: str) -> AsyncIterator[list[Process]]:
    """A cluster of three."""
    ports = free_ports(6)
    secret = directory / "secret"
    secret.write_text("a secret of the tests")
    os.chmod(secret, 0o600)  # noqa: PTH101 - as short
    names = [f"node-{n}" for n in (1, 2, 3)]
    peers = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(names, ports, strict=False))
    shared = ("--node-peers", peers, "--node-cluster-secret-file", str(secret), *flags)
    nodes = [
        Process(directory, name, port, shared) for name, port in zip(names, ports[3:], strict=True)
    ]
    async with _started(nodes) as found:
        yield found


@asynccontextmanager
async def _started(nodes: list[Process]) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as stack:
        for one in nodes:
            stack.push_async_callback(one.kill)
            await one.start()
        await asyncio.gather(*(one.ready() for one in nodes))
        yield nodes
