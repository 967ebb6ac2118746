"""Ways to run the command."""

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from click.testing import CliRunner

from ritornello.cli.main import ritornello

LONG_S = 30.0

_COMMAND = (sys.executable, "-m", "ritornello.cli")


@dataclass(frozen=True, slots=True)
class Said:
    """What a run of it has said, and with what status it has ended."""

    status: int
    out: str
    errors: str
    data: bytes = b""

    @property
    def rows(self) -> list[list[str]]:
        """Its lines, in columns."""
        return [line.split("\t") for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        """What it said as one line of JSON."""
        return msgspec.json.decode(self.out)

    @property
    def jsons(self) -> list[Any]:
        """What it said as lines of JSON."""
        return [msgspec.json.decode(line) for line in self.out.splitlines()]


class Shell:
    """Runs it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *arguments: object, stdin: bytes = b"", url: str | None = None) -> Said:
        """Run it in this process, not at a terminal. An empty `url` says none."""
        given = self.url if url is None else url
        nodes = ("--url", given) if given else ()
        words = [*nodes, *map(str, arguments)]
        found = CliRunner().invoke(ritornello, words, input=stdin, prog_name="ritornello")
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return Said(found.exit_code, found.stdout, found.stderr, found.stdout_bytes)

    def good(self, *arguments: object, stdin: bytes = b"") -> Said:
        """The same, of what has to succeed."""
        found = self(*arguments, stdin=stdin)
        assert found.status == 0, found
        return found

    @contextlib.contextmanager
    def begin(self, *arguments: object, **given: Any) -> Iterator[subprocess.Popen[str]]:
        """Run it in a process of its own, which is killed at the end if it is still there."""
        process = subprocess.Popen(  # noqa: S603 - of our own making
            [*_COMMAND, "--url", self.url, *map(str, arguments)],
            text=True,
            stdin=subprocess.DEVNULL,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **given},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()  # and not for what it has begun, which may still hold its streams
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def at_terminal(self, *arguments: object) -> Said:
        """Run it as a person sees it."""
        leader, follower = pty.openpty()
        try:
            with self.begin(*arguments, stdout=follower, stderr=follower) as process:
                os.close(follower)
                said = b""
                with contextlib.suppress(OSError):  # so a terminal ends
                    while piece := os.read(leader, 1 << 16):
                        said += piece
                return Said(process.wait(LONG_S), said.decode(), "")
        finally:
            os.close(leader)
