"""Requests as they come and answers as they leave, where aiohttp's own would take longer.

Nearly every answer is small, whole and goes to a client that keeps its connection. Such a one is
put together here and written at once; all others go aiohttp's way.
"""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time

SERVER = "Ritornello"

# Larger ones may not fit into the buffers on their way, and wait for who reads them.
SMALL_BYTES = 32 * 1024

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
_EMPTY = frozenset((204, 304))


class HttpRequest(web.BaseRequest):
    """A request, and what every answer to it has in its header."""

    added: Mapping[str, str] = {}
    timeout_s: float = 30.0  # for its answer to be read

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        headers = response.headers
        headers["Server"] = SERVER
        for name, value in self.added.items():
            if name == "Vary" and name in headers:
                headers[name] += f", {value}"
            else:
                headers[name] = value


class Answer(web.Response):
    """A whole answer."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        body = self.body
        if (
            not isinstance(request, HttpRequest)
            or not isinstance(body, bytes)
            or len(body) > SMALL_BYTES
            or self.status in _EMPTY
            or self.keep_alive is not None  # somebody has decided that the connection ends
            or not request.keep_alive
            or request.version != HttpVersion11
            or request.method == "HEAD"
        ):
            return await super().prepare(request)
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("whoever asked has left")
        self._keep_alive = True
        head = [_STATUS_LINES[self.status]]
        headers = self.headers
        added = request.added
        if "Vary" in added and "Vary" in headers:
            headers["Vary"] += f", {added['Vary']}"
            added = {name: value for name, value in added.items() if name != "Vary"}
        head += [f"{name}: {value}\r\n" for name, value in headers.items()]
        head += [f"{name}: {value}\r\n" for name, value in added.items()]
        head.append(
            f"Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\n"
            f"Server: {SERVER}\r\n\r\n"
        )
        transport.write("".join(head).encode() + body)
        self._eof_sent = True
        if request.protocol.writing_paused:
            await self._read_in_time(request)
        return None

    async def _read_in_time(self, request: HttpRequest) -> None:
        """Wait until earlier answers are read, too."""
        try:
            async with asyncio.timeout(request.timeout_s):
                await request.writer.drain()
        except TimeoutError:
            _abandon(request)

    async def write_eof(self, data: bytes = b"") -> None:
        request = self._req
        if request is None or not isinstance(request, HttpRequest):
            await super().write_eof(data)
            return
        try:
            async with asyncio.timeout(request.timeout_s):
                await super().write_eof(data)
        except TimeoutError:
            _abandon(request)


def _abandon(request: HttpRequest) -> None:
    """End a connection whose other side reads nothing: what waits for it takes memory."""
    transport = request.transport
    if transport is not None:
        transport.abort()
    raise ConnectionResetError("the answer is not read")
