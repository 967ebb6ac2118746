"""The command against a real server: in this process where that is enough, else in its own."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from ritornello.sync import Client
from tests.api.servers import Running, in_a_thread, server
from tests.sdk.cli.commands import Shell

_themes = itertools.count(100)


@pytest.fixture(scope="package")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with in_a_thread(server(tmp_path_factory.mktemp("node"))) as running:
        yield running


@pytest.fixture(scope="package")
def client(node: Running) -> Iterator[Client]:
    with Client(node.url) as found:
        yield found


@pytest.fixture
def shell(node: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The command, with contexts of its own, and the node as the one that is meant."""
    for name in ("RITORNELLO_TOKEN", "RITORNELLO_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RITORNELLO_CONTEXTS", str(tmp_path / "config" / "contexts.toml"))
    monkeypatch.setenv("COLUMNS", "200")
    return Shell(node.url)


@pytest.fixture
def theme() -> int:
    """A theme that no other test has."""
    return next(_themes)
