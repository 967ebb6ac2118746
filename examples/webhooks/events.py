"""The events: the history of a git repository, as its host would send it to webhooks.

Each file that a commit added, changed or deleted is one event, in the order of the commits. The
events of one file must arrive in their order, so the file's path is the key; the directory at the
top is the customer who wants to hear of it. It is a real log: hundreds of keys, a few of them busy,
most of them quiet, and every clone of the project has it.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

_MARK = "\x1e"  # stands before each commit, and in no path


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one file. `number` counts those of the same file, from 1.

    `run` names the telling of the story that it belongs to: the same history told again has the
    same changes, but these are other events.
    """

    run: str
    customer: str
    key: str
    number: int
    commit: str
    what: str  # added, modified, deleted, ...
    subject: str

    def line(self) -> bytes:
        """As one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> "Event":
        """The event of a line."""
        return cls(**json.loads(line))


class NoHistoryError(Exception):
    """There is no history to read."""


_WHAT = {"A": "added", "M": "modified", "D": "deleted", "T": "retyped"}


def read_history(repository: Path, limit: int, run: str) -> list[Event]:
    """The first `limit` events of a repository, for one run. Raises `NoHistoryError`."""
    command = ["git", "-C", str(repository), "log", "--reverse", "--no-renames", "-z"]
    command += ["--name-status", f"--format={_MARK}%H%x00%s"]
    try:
        found = subprocess.run(command, capture_output=True, check=True)  # noqa: S603 - fixed words and a path
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoHistoryError(
            f"{repository} has no git history to take events from; "
            "give a clone of any repository with --repository"
        ) from error
    events = list(_parse(found.stdout.decode("utf-8", "replace"), run))
    if not events:
        raise NoHistoryError(f"the history of {repository} is empty")
    return events[:limit]


def _parse(text: str, run: str) -> Iterator[Event]:
    numbers: dict[str, count[int]] = {}
    for commit in text.split(_MARK)[1:]:
        name, subject, *changes = commit.strip("\0\n").split("\0")
        # What is left are pairs of a letter and a path.
        for letter, path in zip(changes[::2], changes[1::2], strict=False):
            customer, _, rest = path.partition("/")
            yield Event(
                run=run,
                customer=customer if rest else "(top)",
                key=path,
                number=next(numbers.setdefault(path, count(1))),
                commit=name[:10],
                what=_WHAT.get(letter.strip()[:1], "changed"),
                subject=subject.strip(),
            )
