"""Listening: how connections come in, with TLS or without.

With TLS a connection is counted when it comes, and not only after its handshake: one that never
shakes hands takes a place and a file, too, and the journal needs files. So it is taken in plain,
and the handshake is done from here, within a time.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial

from api.http.protocol import Server, host_of

HANDSHAKE_S = 10.0
CLOSE_S = 1.0
_BACKLOG = 1024

_log = logging.getLogger(__name__)


class Listener:
    """A place to listen at."""

    def __init__(self, server: Server, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._context = context
        self._listening: asyncio.Server | None = None
        self._handshakes: set[asyncio.Task[asyncio.Transport | None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Begin. Raises OSError if the address is not to be had."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self.protocol, host, port, backlog=_BACKLOG)

    def protocol(self) -> asyncio.Protocol:
        """For a new connection."""
        if self._context is None:
            return self._server()
        return _Newcomer(partial(self._came, self._context))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        sockets = () if self._listening is None else self._listening.sockets
        return [one.getsockname()[:2] for one in sockets]

    async def stop(self) -> None:
        """Take no more connections. Those that have shaken hands stay."""
        if self._listening is not None:
            self._listening.close()
        for one in self._handshakes:
            one.cancel()
        if self._handshakes:
            await asyncio.wait(self._handshakes)

    async def close(self) -> None:
        """End what connections there are, once what they have begun to say is said."""
        await self.stop()
        await asyncio.sleep(0)  # for requests that are here already to be looked at
        self._server.pre_shutdown()
        await self._server.shutdown(CLOSE_S)

    def _came(self, context: ssl.SSLContext, transport: asyncio.Transport) -> None:
        """Let somebody in who wants TLS, if there is room."""
        host = host_of(transport)
        if self._server.admit(host) is not None:
            self._server.release(host)
            transport.abort()  # nothing could be told without a handshake
            return
        early = _Early()
        task = asyncio.ensure_future(_shake_hands(context, transport, early))
        self._handshakes.add(task)
        task.add_done_callback(partial(self._shaken, transport, host, early))

    def _shaken(
        self,
        transport: asyncio.Transport,
        host: str,
        early: "_Early",
        task: "asyncio.Task[asyncio.Transport | None]",
    ) -> None:
        """Begin to serve, or take note that there is nobody: a task may end before it has begun."""
        self._handshakes.discard(task)
        secured = None
        if not task.cancelled():
            error = task.exception()
            if error is None:
                secured = task.result()
            else:
                _log.error("a handshake has failed by a defect", exc_info=error)
        if secured is None:
            self._server.release(host)
            transport.abort()
        else:
            early.hand_over(secured, self._server(host))


async def _shake_hands(
    context: ssl.SSLContext, transport: asyncio.Transport, early: "_Early"
) -> asyncio.Transport | None:
    try:
        return await asyncio.get_running_loop().start_tls(
            transport, early, context, server_side=True, ssl_handshake_timeout=HANDSHAKE_S
        )
    except (OSError, EOFError) as error:  # of TLS, of the network, or no time is left
        _log.debug("a handshake has failed: %s", error)
        return None


class _Newcomer(asyncio.Protocol):
    """A connection that has said nothing yet."""

    def __init__(self, came: Callable[[asyncio.Transport], None]) -> None:
        self._came = came

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.pause_reading()  # type: ignore[attr-defined] # for the handshake, which is next
        self._came(transport)  # type: ignore[arg-type] # uvloop's declare less


class _Early(asyncio.Protocol):
    """Keeps what comes right behind a handshake until somebody is there to hear it."""

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._is_lost = False
        self._error: Exception | None = None

    def data_received(self, data: bytes) -> None:
        self._data.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost, self._error = True, exc

    def hand_over(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        """Let somebody else go on."""
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        for data in self._data:
            protocol.data_received(data)
        if self._is_lost:
            protocol.connection_lost(self._error)
