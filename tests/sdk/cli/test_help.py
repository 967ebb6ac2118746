"""Every command says what it is for, with an example; shells complete them."""

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from ritornello.cli.completion import SHELLS, VARIABLE
from ritornello.cli.main import ritornello
from tests.sdk.cli.commands import LONG_S, Shell


def walk(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, (*words, name))


ALL = list(walk(ritornello))


def test_these_are_all() -> None:
    assert {words[0] for words in ALL if words} == {
        *("status", "themes", "transfer", "sessions", "new", "tail", "top", "work", "bench"),
        *("context", "completion"),
    }
    told = {words[1] for words in ALL if words[:1] == ("sessions",) and len(words) > 1}
    assert told == {"list", "show", "store", "park", "unpark", "remove"}


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_has_an_example_that_can_be_read(shell: Shell, words: tuple[str, ...]) -> None:
    said = shell(*words, "--help", url="")
    assert said == shell(*words, "-h", url="")
    assert said.status == 0
    assert said.out.startswith(f"Usage: {' '.join(['ritornello', *words])} ")
    examples = [line.strip() for line in said.out.partition("Example")[2].splitlines()[1:]]
    (first, *_) = examples
    assert "ritornello " in first, said.out
    for word in words:
        assert word in first


def test_an_unknown_command_says_so(shell: Shell) -> None:
    said = shell("statsu")
    assert (said.status, said.out) == (2, "")
    assert "No such command 'statsu'" in said.errors


def test_version(shell: Shell) -> None:
    assert shell.good("--version").out.startswith("ritornello, version ")


@pytest.mark.parametrize("name", SHELLS)
def test_shells_complete(shell: Shell, name: str) -> None:
    assert VARIABLE in shell("completion", name, url="").out
    environment = {
        **os.environ,
        VARIABLE: f"{name}_complete",
        "COMP_WORDS": "ritornello sessions li" if name != "fish" else "ritornello sessions",
        "COMP_CWORD": "2" if name != "fish" else "li",
    }
    done = subprocess.run(
        [sys.executable, "-m", "ritornello.cli"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert "list" in done.stdout
    assert "park" not in done.stdout
