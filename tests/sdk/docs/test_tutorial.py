"""The tutorial is followed, in one shell and one folder, against a server that it starts itself."""

import os
import socket
from pathlib import Path

import pytest

from tests.sdk.docs.pages import PAGES, run_shell, sections


@pytest.fixture
def port() -> int:
    """One that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        number: int = found.getsockname()[1]
        return number


def test_the_tutorial_works(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if "RITORNELLO" in name]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    blocks = [block for section in sections(PAGES / "tutorial.md") for block in section.blocks]
    assert {block.language for block in blocks} == {"python", "console"}
    assert all(block.file for block in blocks if block.language == "python")
    # The page has the port that a server takes when it is not told.
    # What is told of leases in a cluster that was just started need not be waited for.
    flags = f"--http-bind 127.0.0.1:{port} --reaper-lease-grace-ms 300"
    changes = {"7601": f"{port}", " serve ": f" serve {flags} "}
    run_shell(blocks, changes)
