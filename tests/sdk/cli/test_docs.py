"""The page of the command does what it says, in one shell and against a server of its own."""

import re
from pathlib import Path

import pytest

from ritornello.cli import INTERRUPTED
from ritornello.cli.main import COMMANDS, STATUSES
from tests.api.servers import in_a_thread, server
from tests.sdk.docs.pages import PAGES, run_shell, sections

PAGE = PAGES / "cli.md"


def test_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block for section in sections(PAGE) for block in section.blocks]
    assert {block.language for block in blocks} == {"console"}
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RITORNELLO_CONTEXTS", str(tmp_path / "contexts.toml"))
    monkeypatch.delenv("RITORNELLO_TOKEN", raising=False)
    with in_a_thread(server(tmp_path / "data")) as node:
        monkeypatch.setenv("RITORNELLO_URL", node.url)
        run_shell(blocks, {"http://127.0.0.1:7601": node.url})


def test_all_statuses_and_commands_are_told_of() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = {int(one) for one in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert told == {0, INTERRUPTED, *(status for _, status in STATUSES)}
    for name in set(COMMANDS) - {"transfer"}:
        assert f"`{name}" in text or f"ritornello {name}" in text, name
