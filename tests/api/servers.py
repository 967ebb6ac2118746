"""Real servers for tests: a node with its front end in the test's own loop, on free ports.

    async with server(tmp_path) as running:
        async with ClientSession(running.url) as client: ...

    async with cluster_of_three(tmp_path) as nodes:
        nodes[0].url, nodes[1].url, ...

They leave as a server does that was sent SIGTERM, only faster.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread

import trustme

from api.frontend import FrontEnd
from api.server import Server
from api.settings.build import HttpSettings, OperationSettings, ServerSettings
from api.statuses import ExitStatus
from cluster import Address, NodeSettings, Security
from cluster.checkpoints import CheckpointSettings
from cluster.consensus.member import ConsensusSettings
from cluster.replica import ReplicaSettings
from cluster.storage.journal_files import JournalSettings
from tests.api.security.files import swap, write_pair

# Quick elections and small files; a busy machine still gets no elections that nobody needs.
REPLICA = ReplicaSettings(
    consensus=ConsensusSettings(
        heartbeat_ms=50,
        election_timeout_min_ms=500,
        election_timeout_max_ms=1000,
        quorum_timeout_ms=1000,
    ),
    checkpoint=CheckpointSettings(interval_ms=500, log_bytes=1_000_000),
    pulse_ms=20,
    lease_grace_ms=300,
)
JOURNAL = JournalSettings(segment_bytes=256 * 1024)
HTTP = HttpSettings(bind=Address("127.0.0.1", 0), drain_ms=0, request_timeout_ms=10_000)
READY_S = 20.0  # for what takes a moment, on a machine that is busy


@dataclass(eq=False)
class Running:
    """A server that has started."""

    server: Server
    task: asyncio.Task[ExitStatus]
    scheme: str
    client_ssl: ssl.SSLContext | None = None  # for clients, where there is TLS

    @property
    def front(self) -> FrontEnd:
        return self.server.front

    @property
    def node_id(self) -> str:
        return self.server.settings.node.node_id

    @property
    def host(self) -> str:
        """What stands in a client's `Host`."""
        return f"{'localhost' if self.client_ssl else '127.0.0.1'}:{self.port}"

    @property
    def port(self) -> int:
        return self.server.addresses[0][1]

    @property
    def connections(self) -> int:
        """How many it counts."""
        return int(self.front.metrics.connection_count())

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    async def ready(self) -> None:
        """Wait until it may be asked."""
        await until(lambda: not self.front.health.ready(), READY_S)

    async def leave(self, status: ExitStatus = ExitStatus.STOPPED) -> ExitStatus:
        """Let it leave, as SIGTERM would, and wait for it."""
        if not self.task.done():
            self.server.leave(status, "the test asks it to")
        return await self.task


def one_node(
    directory: Path,
    *,
    http: HttpSettings = HTTP,
    operation: OperationSettings | None = None,
    replica: ReplicaSettings = REPLICA,
) -> ServerSettings:
    """Settings of a cluster of one."""
    node = NodeSettings(
        directory / "node-1",
        journal=JOURNAL,
        replica=replica,
        stop_timeout_ms=5000,
        tunes_collector=False,
    )
    return ServerSettings(node, http, operation or OperationSettings())


def three_nodes(
    directory: Path,
    *,
    http: HttpSettings = HTTP,
    operation: OperationSettings | None = None,
    replica: ReplicaSettings = REPLICA,
) -> list[ServerSettings]:
    """Settings of a cluster of three."""
    ports = _free_ports(3)
    peers = {f"node-{n}": Address("127.0.0.1", port) for n, port in enumerate(ports, 1)}
    return [
        ServerSettings(
            NodeSettings(
                directory / name,
                node_id=name,
                bind=address,
                peers=peers,
                security=Security(secret=b"a secret of the tests"),
                journal=JOURNAL,
                replica=replica,
                stop_timeout_ms=5000,
                tunes_collector=False,
            ),
            http,
            operation or OperationSettings(),
        )
        for name, address in peers.items()
    ]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def with_tokens(http: HttpSettings, directory: Path, tokens: str) -> HttpSettings:
    """Only for who shows one of these; `entry` in `tests.api.security.files` writes one."""
    path = directory / "tokens.toml"
    swap(path, tokens)
    return replace(http, tokens_file=path)


def with_tls(http: HttpSettings, directory: Path, authority: trustme.CA) -> HttpSettings:
    """With a certificate for localhost."""
    certificate, key = write_pair(directory, authority, "localhost", "127.0.0.1")
    return replace(http, tls_certificate_file=certificate, tls_key_file=key)


@asynccontextmanager
async def running(
    settings: Sequence[ServerSettings], authority: trustme.CA | None = None
) -> AsyncIterator[list[Running]]:
    """Servers that know a leader and may be asked."""
    context = None
    if authority is not None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
    async with AsyncExitStack() as stack:

        async def start(one: ServerSettings) -> Running:
            server = Server(one)
            await server.start()
            task = asyncio.ensure_future(server.run())
            found = Running(server, task, "http" if context is None else "https", context)
            stack.push_async_callback(found.leave)
            return found

        found = await asyncio.gather(*map(start, settings))
        await asyncio.gather(*(one.ready() for one in found))
        try:
            yield found
        finally:
            # Side by side: the last of three would wait for a majority that is gone.
            await asyncio.gather(*(one.leave() for one in found))


@asynccontextmanager
async def server(
    directory: Path,
    *,
    http: HttpSettings = HTTP,
    operation: OperationSettings | None = None,
    replica: ReplicaSettings = REPLICA,
    tokens: str | None = None,
    authority: trustme.CA | None = None,
) -> AsyncIterator[Running]:
    """A cluster of one; with `tokens` for their holders only, with `authority` over TLS."""
    if tokens is not None:
        http = with_tokens(http, directory, tokens)
    if authority is not None:
        http = with_tls(http, directory, authority)
    settings = one_node(directory, http=http, operation=operation, replica=replica)
    async with running([settings], authority) as (found,):
        yield found


@asynccontextmanager
async def cluster_of_three(
    directory: Path,
    *,
    http: HttpSettings = HTTP,
    operation: OperationSettings | None = None,
    replica: ReplicaSettings = REPLICA,
    tokens: str | None = None,
    authority: trustme.CA | None = None,
) -> AsyncIterator[list[Running]]:
    """Three servers, of which one leads."""
    if tokens is not None:
        http = with_tokens(http, directory, tokens)
    if authority is not None:
        http = with_tls(http, directory, authority)
    settings = three_nodes(directory, http=http, operation=operation, replica=replica)
    async with running(settings, authority) as found:
        yield found


@contextmanager
def in_a_thread(server: AbstractAsyncContextManager[Running]) -> Iterator[Running]:
    """A server in a loop of its own, for tests that have none."""
    started: Future[tuple[Running, Callable[[], object]]] = Future()

    async def serve() -> None:
        event = asyncio.Event()
        async with server as running:
            loop = asyncio.get_running_loop()
            started.set_result((running, lambda: loop.call_soon_threadsafe(event.set)))
            await event.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = Thread(target=run)
    thread.start()
    running, end = started.result(READY_S)
    try:
        yield running
    finally:
        end()
        thread.join(READY_S)


async def until(holds: Callable[[], object], timeout_s: float = READY_S) -> None:
    """Wait for what happens in another task."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)
