"""The receiver's journal: every delivery that was tried, and what became of it, one a line."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Verdict(StrEnum):
    """What the receiver did with a delivery."""

    TAKEN = "taken"
    FAILED = "failed"  # by what goes wrong at the receiver
    LATE = "late"  # refused: a newer operator had delivered before it came
    OVERTAKEN = "overtaken"  # refused: a newer operator delivered while it was looked at


@dataclass(frozen=True, slots=True)
class Attempt:
    """A delivery that was tried. `work` names who did: one worker, from one push to one verdict."""

    run: str
    key: str
    number: int
    session: int
    epoch: int
    work: str
    verdict: Verdict

    @property
    def place(self) -> tuple[int, int]:
        """Goes up with each operator of a key."""
        return self.session, self.epoch

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def read(journal: Path) -> Iterator[Attempt]:
    """What was tried so far, in the order of the verdicts. A line that is being written waits."""
    with journal.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                fields = json.loads(line)
                yield Attempt(**{**fields, "verdict": Verdict(fields["verdict"])})
