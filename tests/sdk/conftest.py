"""Clients and clusters for the tests of the SDK."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop

import ritornello
import ritornello.sync
from tests.api.servers import Running, cluster_of_three, in_a_thread, server


def pytest_asyncio_loop_factories(
    config: pytest.Config,  # noqa: ARG001 - the hook's signature
    item: pytest.Item,  # noqa: ARG001
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    """A cluster of one."""
    async with server(tmp_path) as running:
        yield running


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Running]]:
    """A cluster of three."""
    async with cluster_of_three(tmp_path) as running:
        yield running


@pytest.fixture
async def client(node: Running) -> AsyncIterator[ritornello.Client]:
    """A client of the cluster of one."""
    async with ritornello.Client(node.url) as found:
        yield found


@pytest.fixture
def still_node(tmp_path: Path) -> Iterator[Running]:
    """A cluster of one, for tests without an event loop."""
    with in_a_thread(server(tmp_path)) as running:
        yield running


@pytest.fixture
def still_client(still_node: Running) -> Iterator[ritornello.sync.Client]:
    """A client without an event loop."""
    with ritornello.sync.Client(still_node.url) as found:
        yield found
