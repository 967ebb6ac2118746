"""A way to a node that can be made deaf: then nothing is read any more of what clients send."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

_BUFFER_BYTES = 64 << 10  # small, so that it is soon full
_PONG = b"\x8a\x00"  # of a WebSocket; who gets one that it has not asked for takes no notice


class DeafProxy:
    """Passes bytes on, and takes no new connections while it is deaf."""

    def __init__(self, target: int) -> None:
        self.url = ""
        self.left = 0  # connections that clients have ended
        self._target = target
        self._hearing = asyncio.Event()
        self._hearing.set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        listening.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._came, sock=listening, limit=_BUFFER_BYTES)
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def deafen(self, *, talks: bool) -> None:
        """Read nothing, as a node that stands still; or one that `talks` all the same."""
        self._hearing.clear()
        if talks:
            self._run(self._talk())

    def hear(self) -> None:
        self._hearing.set()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for one in self._tasks:
            one.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _run(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._hearing.is_set():
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._clients.add(writer)
        self._run(self._up(reader, back))
        self._run(self._down(there, writer))

    async def _up(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._hearing.wait()
                if not (data := await reader.read(1 << 16)):
                    return
                back.write(data)
        except OSError:
            pass
        finally:
            self.left += 1
            back.transport.abort()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(1 << 16):
                    await self._hearing.wait()
                    writer.write(data)
        finally:
            self._clients.discard(writer)
            writer.transport.abort()

    async def _talk(self) -> None:
        while not self._hearing.is_set():
            for one in self._clients:
                one.write(_PONG)
            await asyncio.sleep(0.1)


@asynccontextmanager
async def deaf_proxy(target: int) -> AsyncIterator[DeafProxy]:
    """Such a way to a port of this machine."""
    found = DeafProxy(target)
    await found.start()
    try:
        yield found
    finally:
        await found.stop()
