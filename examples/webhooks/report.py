"""What the receiver's journal proves."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.webhooks.events import Event


@dataclass(slots=True)
class Report:
    """How deliveries went; `problems` is empty if all promises were kept."""

    events: int
    delivered: int
    again: int  # deliveries of what had been delivered: at least once is not exactly once
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        arrived = f"{self.delivered} of {self.events} events arrived at least once"
        found = [f"{arrived}; {self.again} deliveries were repeated, as their answers were lost"]
        if not self.problems:
            found += [
                "each key's events arrived in their order",
                "no session was worked on by two at once: one worker an epoch, none after a newer",
            ]
        return found + [f"PROBLEM: {one}" for one in self.problems]


def judge(events: Sequence[Event], journal: Path) -> Report:
    """Compare what happened with what was received."""
    text = journal.read_text(encoding="utf-8")
    taken = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    first: dict[str, list[int]] = defaultdict(list)  # key -> numbers, as they first arrived
    worker_of: dict[tuple[str, str], str] = {}
    newest: dict[str, tuple[int, int]] = {}
    problems = []
    seen: set[tuple[str, int]] = set()
    for one in taken:
        key, number = one["key"], one["number"]
        if (key, number) not in seen:
            seen.add((key, number))
            first[key].append(number)
        worker = worker_of.setdefault((one["Session"], one["Epoch"]), one["Worker"])
        if worker != one["Worker"]:
            who = f"{worker} and {one['Worker']}"
            problems.append(f"{who} both worked on session {one['Session']}, epoch {one['Epoch']}")
        place = int(one["Session"], 16), int(one["Epoch"])
        if place < newest.get(key, (0, 0)):
            problems.append(f"an older operator of {key} delivered after a newer one")
        newest[key] = max(place, newest.get(key, (0, 0)))
    wanted = {(event.key, event.number) for event in events}
    missing = sorted(wanted - seen)
    problems += [f"number {number} of {key} never arrived" for key, number in missing[:10]]
    problems += [
        f"the events of {key} arrived as {numbers}"
        for key, numbers in first.items()
        if numbers != sorted(numbers)
    ]
    return Report(len(wanted), len(seen & wanted), len(taken) - len(seen), problems)
