"""A server in memory, as users have it."""

from collections.abc import Iterator

import pytest

import ritornello.sync
from ritornello.testing import LocalServer


@pytest.fixture
def local() -> Iterator[LocalServer]:
    with LocalServer() as found:
        yield found


@pytest.fixture
def local_client(local: LocalServer) -> Iterator[ritornello.sync.Client]:
    with local.sync_client() as found:
        yield found
