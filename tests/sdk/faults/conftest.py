"""A server in memory, with faults, and clients of it that do not wait long."""

from collections.abc import AsyncIterator, Iterator

import pytest

import ritornello.sync
from ritornello import Client, Options
from ritornello.testing import LocalServer


@pytest.fixture(scope="module")
def local() -> Iterator[LocalServer]:
    with LocalServer() as found:
        yield found


@pytest.fixture
async def client(local: LocalServer) -> AsyncIterator[Client]:
    async with local.client(Options(close_s=0.5, backoff_max_s=0.2)) as found:
        yield found
    local.faults.clear()


@pytest.fixture
def still_client(local: LocalServer) -> Iterator[ritornello.sync.Client]:
    with local.sync_client(Options(close_s=0.5, backoff_max_s=0.2)) as found:
        yield found
    local.faults.clear()
