from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.api.http.client import Client, client
from tests.api.servers import Running, server


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A cluster of one."""
    async with server(tmp_path) as found:
        yield found


@pytest.fixture
async def caller(running: Running) -> AsyncIterator[Client]:
    """Somebody who asks it."""
    async with client(running) as found:
        yield found


@pytest.fixture(name="client")
async def any_client(running: Running) -> AsyncIterator[ClientSession]:
    """The same, with nothing checked."""
    async with ClientSession(running.url) as found:
        yield found
