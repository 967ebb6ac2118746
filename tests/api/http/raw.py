"""Requests as bytes, for what no client library would send."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.api.http.client import Answer
from tests.api.servers import READY_S, Running

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connection(running: Running) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer on a connection."""
    async with asyncio.timeout(READY_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = (line.partition(": ") for line in head[1:] if line)
        headers = {name: value for name, _, value in fields}
        body = await reader.readexactly(int(headers.get("Content-Length", 0)))
    return Answer(int(head[0].split()[1]), headers, body)


async def ask(running: Running, request: bytes) -> Answer:
    """Send bytes over a connection of their own."""
    async with connection(running) as (reader, writer):
        writer.write(request)
        return await answer(reader)


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the other side has closed."""
    async with asyncio.timeout(READY_S):
        return await reader.read() == b""
