"""Listening: how connections come in, with TLS or without.

With TLS a connection is counted when it comes, and not only after its handshake: one that never
shakes hands takes a place and a file, too, and the journal needs files. So it is accepted here, by
hand: a loop that accepts by itself says nothing before the handshake is done.
"""

import asyncio
import contextlib
import logging
import socket
import ssl

from api.http.protocol import Protocol, Server
from api.security import address_key

HANDSHAKE_S = 10.0
CLOSE_S = 1.0
_BACKLOG = 1024
_PAUSE_S = 0.5  # when no connection can be accepted: files are used up, say

_log = logging.getLogger(__name__)


class Listener:
    """A place to listen at."""

    def __init__(self, server: Server, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._context = context
        self._listening: asyncio.Server | None = None  # without TLS
        self._sockets: list[socket.socket] = []  # with it
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Begin. Raises OSError if the address is not to be had."""
        loop = asyncio.get_running_loop()
        if self._context is None:
            self._listening = await loop.create_server(self._server, host, port, backlog=_BACKLOG)
            return
        self._sockets = await _bound(host, port)
        for one in self._sockets:
            one.listen(_BACKLOG)
            self._accepting.append(asyncio.ensure_future(self._accept(one, self._context)))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        sockets = self._sockets if self._listening is None else self._listening.sockets
        return [one.getsockname()[:2] for one in sockets]

    async def stop(self) -> None:
        """Take no more connections. Those that have shaken hands stay."""
        if self._listening is not None:
            self._listening.close()
        tasks = {*self._accepting, *self._handshakes}
        for one in tasks:
            one.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    async def close(self) -> None:
        """End what connections there are, once what they have begun to say is said."""
        await self.stop()
        await asyncio.sleep(0)  # for requests that are here already to be looked at
        self._server.pre_shutdown()
        await self._server.shutdown(CLOSE_S)

    async def _accept(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                _log.error("no connection can be accepted: %s", error)
                await asyncio.sleep(_PAUSE_S)
            else:
                self._came(accepted, address_key(address[0]), context)

    def _came(self, accepted: socket.socket, host: str, context: ssl.SSLContext) -> None:
        """Let somebody in who wants TLS, if there is room."""
        if self._server.admit(host) is not None:
            self._server.release(host)
            accepted.close()  # nothing could be told without a handshake
            return
        protocol = self._server(host)
        task = asyncio.ensure_future(_shake_hands(accepted, context, protocol))
        self._handshakes.add(task)

        def shaken(task: asyncio.Task[None]) -> None:
            # It may have ended before it began; and then nobody else has seen to this.
            self._handshakes.discard(task)
            error = None if task.cancelled() else task.exception()
            if not task.cancelled() and error is None:
                return
            if not isinstance(error, OSError | EOFError | None):
                _log.error("a handshake has failed by a defect", exc_info=error)
            protocol.let_go()
            accepted.close()

        task.add_done_callback(shaken)


async def _shake_hands(
    accepted: socket.socket, context: ssl.SSLContext, protocol: Protocol
) -> None:
    """Raises OSError or EOFError: of TLS, of the network, or when no time is left."""
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: protocol, accepted, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
    )


async def _bound(host: str, port: int) -> list[socket.socket]:
    """Sockets at all addresses that a name has. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with contextlib.ExitStack() as made:
        sockets: list[socket.socket] = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = made.enter_context(socket.socket(family, kind, protocol))
            one.setblocking(False)  # noqa: FBT003 - as it is declared
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            sockets.append(one)
        made.pop_all()
    return sockets
