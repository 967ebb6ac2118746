"""The server in memory: a server's own front end, over a node in memory.

    server = MemoryServer()
    await server.start()
    ...                          # ask at `server.url`
    await server.advance(3600)   # an hour later
    await server.stop()

Whoever asks it cannot tell it from a real one, but for what it cannot do: see `api.memory`.
"""

import asyncio
from pathlib import Path

from api.memory.gateway import MemoryGateway
from api.memory.node import NODE_ID
from api.server import Server
from api.settings.build import HttpSettings, ServerSettings
from api.statuses import ExitStatus
from api.websocket.connection import Connection
from cluster import Address, NodeSettings

_HTTP = HttpSettings(bind=Address("127.0.0.1", 0), drain_ms=0)
_NOWHERE = Path("a server in memory writes nothing")


class MemoryServer:
    """One server, on a free port of this machine. Made and used on one loop; started once."""

    def __init__(self) -> None:
        self._gateway = MemoryGateway()
        # The node that a server makes is never started, and touches nothing.
        self._server = Server(ServerSettings(NodeSettings(_NOWHERE, node_id=NODE_ID), _HTTP))
        self._server.gateway = self._gateway
        self._running: asyncio.Task[ExitStatus] | None = None

    async def start(self) -> None:
        """Begin to serve. Raises OSError if it cannot listen."""
        await self._server.start()
        self._running = asyncio.ensure_future(self._server.run())

    async def stop(self) -> None:
        """Leave, as a server does; what is held is stored."""
        if self._running is not None:
            self._server.leave(ExitStatus.STOPPED, "its test is over")
            await self._running

    @property
    def url(self) -> str:
        """Where it is to be asked."""
        host, port = self._server.addresses[0]
        return f"http://{host}:{port}"

    # Time

    @property
    def now_ms(self) -> int:
        """The time of the cluster, since 1970."""
        return self._gateway.memory.clock.now_ms

    async def advance(self, seconds: float, *, heartbeats: bool = True) -> None:
        """Be so much later, with all applied and sent that follows from it.

        Consumers that are connected give signs of life meanwhile, unless `heartbeats` is False.
        """
        await self._gateway.memory.advance(
            round(seconds * 1000), self._connected if heartbeats else None
        )

    def freeze(self) -> None:
        """Let time stand still, but for `advance`."""
        self._gateway.memory.clock.stop()

    def go_on(self) -> None:
        """Let time go on by itself."""
        self._gateway.memory.clock.go_on()

    def _connected(self) -> list[bytes]:
        """The names of consumers that are there."""
        connections = self._server.front.connections
        return [one.name.encode() for one in connections if isinstance(one, Connection)]
