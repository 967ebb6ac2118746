"""Nodes for tests: transports whose listeners write down what they are told, and strangers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Self

from cluster.network.errors import Refused
from cluster.network.frames import HEADER_BYTES, frame
from cluster.network.handshake import Handshake, Hello, Role
from cluster.network.settings import Address, Identity, Security, TransportSettings
from cluster.network.transport import Transport

CLUSTER = "orchestra"
SECRET = b"sixteen bytes or more of it"
SECURITY = Security(secret=SECRET)
LOOPBACK = "127.0.0.1"
NOWHERE = Address(LOOPBACK, 9)  # of a peer that dials, and is never dialed
WAIT_S = 10.0

# Quick, so that tests are; what a test is about it sets itself.
SETTINGS = TransportSettings(
    backoff_min_ms=5,
    backoff_max_ms=20,
    keepalive_ms=100,
    silence_timeout_ms=5000,
    steady_after_ms=50,
    log_interval_ms=0,
)


class Recorder:
    """A listener: `events` has ("+", peer, incarnation), ("-", peer) and (peer, payload)."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.payload_hook: Callable[[str, memoryview], None] | None = None
        self._changed = asyncio.Event()

    def on_connected(self, peer: str, incarnation: int) -> None:
        self.events.append(("+", peer, incarnation))
        self._changed.set()

    def on_disconnected(self, peer: str) -> None:
        self.events.append(("-", peer))
        self._changed.set()

    def on_payload(self, peer: str, payload: memoryview) -> None:
        self.events.append((peer, bytes(payload)))
        self._changed.set()
        if self.payload_hook is not None:
            self.payload_hook(peer, payload)

    @property
    def payloads(self) -> list[object]:
        return [event[1] for event in self.events if event[0] not in {"+", "-"}]

    @property
    def connections(self) -> list[tuple[object, ...]]:
        return [event for event in self.events if event[0] in {"+", "-"}]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what no event tells of."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - counters have no events
            await asyncio.sleep(0.005)


class Node:
    """A transport and its listener."""

    def __init__(
        self,
        node_id: str,
        peers: Mapping[str, Address],
        *,
        bind: Address = Address(LOOPBACK, 0),  # noqa: B008 - a value
        security: Security = SECURITY,
        settings: TransportSettings = SETTINGS,
        incarnation: int = 1,
        cluster_id: str = CLUSTER,
    ) -> None:
        self.listener = Recorder()
        self.transport = Transport(
            Identity(cluster_id, node_id, incarnation),
            bind,
            peers,
            security,
            self.listener,
            settings,
        )

    @property
    def counters(self) -> Mapping[str, int]:
        return self.transport.counters.values()

    @property
    def address(self) -> Address:
        return self.transport.addresses[0]

    async def has(self, count: int) -> None:
        """Wait for this many payloads."""
        await self.listener.until(lambda: len(self.listener.payloads) == count)

    async def has_met(self, *peers: str) -> None:
        """Wait until these are connected."""
        await self.listener.until(lambda: all(map(self.transport.is_connected, peers)))

    async def has_counted(self, count: int, *names: str) -> None:
        """Wait until these counters are this high."""
        await until(lambda: all(self.counters[name] >= count for name in names))

    async def __aenter__(self) -> Self:
        await self.transport.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.transport.stop()


@contextlib.asynccontextmanager
async def pair(
    settings: TransportSettings = SETTINGS, security: Security = SECURITY
) -> AsyncIterator[tuple[Node, Node]]:
    """Node a, which dials node b, connected."""
    async with (
        Node("b", {"a": NOWHERE}, settings=settings, security=security) as b,
        Node("a", {"b": b.address}, settings=settings, security=security) as a,
    ):
        await a.listener.until(lambda: a.transport.is_connected("b"))
        await b.listener.until(lambda: b.transport.is_connected("a"))
        yield a, b


def handshake(
    role: Role,
    node_id: str,
    *,
    secret: bytes | None = SECRET,
    incarnation: int = 1,
    cluster_id: str = CLUSTER,
    admit: Callable[[Hello], None] = lambda _: None,
) -> Handshake:
    identity = Identity(cluster_id, node_id, incarnation)
    return Handshake(role, identity, secret, vet=lambda _: None, admit=admit)


class Stranger:
    """A bare connection, over which a test says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def dial(cls, address: Address, *, host: str | None = None) -> AsyncIterator[Self]:
        """Connect, from a certain address of this machine perhaps."""
        local = None if host is None else (host, 0)
        reader, writer = await asyncio.open_connection(*address, local_addr=local)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def say(self, *payloads: bytes) -> None:
        self.writer.write(b"".join(map(frame, payloads)))

    async def hear(self) -> bytes:
        """The next payload, that is no ping."""
        async with asyncio.timeout(WAIT_S):
            while True:
                header = await self.reader.readexactly(HEADER_BYTES)
                size = int.from_bytes(header[:4], "big")
                if size:
                    return await self.reader.readexactly(size)

    async def shake(self, shake: Handshake) -> None:
        """Go through a handshake."""
        self.say(*shake.opening())
        while not shake.is_done:
            self.say(*shake.receive(await self.hear()))

    async def is_hung_up(self) -> bool:
        """Wait until the other side has ended it."""
        try:
            async with asyncio.timeout(WAIT_S):
                while await self.reader.read(65536):
                    pass
        except OSError:
            pass
        return True


def talk(dialer: Handshake, acceptor: Handshake) -> list[bytes]:
    """Let two handshakes talk; return all that was said. Raises what they raise."""
    said: list[bytes] = []
    sides = [dialer, acceptor]
    messages: Iterable[bytes] = dialer.opening()
    while messages := list(messages):
        said += messages
        sides.reverse()
        messages = [answer for message in messages for answer in sides[0].receive(message)]
    return said


def refusal(call: Callable[[], object]) -> str:
    """The reason that something is refused for."""
    try:
        call()
    except Refused as error:
        return error.reason
    return "not refused"


def quicker(**changes: int) -> TransportSettings:
    return replace(SETTINGS, **changes)
