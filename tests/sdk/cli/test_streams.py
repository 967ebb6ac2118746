"""Standard streams that are closed, or full, and tables with what others have written."""

import subprocess
import sys

import pytest

from ritornello.sync import Client
from tests.sdk.cli.commands import LONG_S, Shell


def run(shell: Shell, words: str, redirections: str) -> tuple[int, str]:
    """Run it from a shell; its status and its errors, if they are not redirected."""
    line = f'exec "$0" -m ritornello.cli --url {shell.url} {words} {redirections}'
    done = subprocess.run(  # noqa: S603 - of our own making
        ["/bin/sh", "-c", line, sys.executable],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    return done.returncode, done.stderr


def test_streams_may_be_closed(shell: Shell) -> None:
    """A connection that took the number of one would be written into."""
    assert run(shell, "status", ">&-") == (0, "")
    assert run(shell, "sessions show 999999", "<&- >&- 2>&-") == (3, "")


@pytest.mark.parametrize(
    "words",
    ["--json status", "--help", "sessions show {theme}/k --data"],
)
def test_a_disk_that_is_full_is_an_error(
    shell: Shell, client: Client, theme: int, words: str
) -> None:
    client.new(theme, b"some", key="k", after=60)
    status, errors = run(shell, words.format(theme=theme), ">/dev/full")
    assert status == 1
    assert errors.count("\n") == 1
    assert "No space left on device" in errors


def test_brackets_are_no_markup(shell: Shell, theme: int) -> None:
    keys = ["[/nope]", "[red]x[/red]", "[link=http://there]y[/link]", "\\[z]"]
    for key in keys:
        shell.good("new", theme, "--key", key)
    seen = shell.at_terminal("sessions", "list", theme)
    assert seen.status == 0, seen
    for key in keys:
        assert key in seen.out


def test_the_live_view_ends_if_nobody_answers_at_first(shell: Shell) -> None:
    shell.url = "http://127.0.0.1:1"
    seen = shell.at_terminal("--timeout", "0.3", "top")
    assert seen.status == 5
    assert "no answer in time" in seen.out
