"""What the receiver's journal proves."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from examples.webhooks.events import Event
from examples.webhooks.journal import Attempt, Verdict, read

_SHOWN = 10  # problems of a kind


@dataclass(slots=True)
class Report:
    """How deliveries went; `problems` is empty if all promises were kept."""

    events: int
    delivered: int
    again: int  # deliveries of what had been delivered: at least once is not exactly once
    earlier: int = 0  # events that a run before this one had left
    late: int = 0
    overtaken: int = 0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        arrived = f"{self.delivered} of {self.events} events arrived at least once"
        found = [f"{arrived}; {self.again} deliveries were repeated, as their answers were lost"]
        if self.earlier:
            found.append(f"{self.earlier} events that an earlier run had left arrived, too")
        if self.late or self.overtaken:
            found.append(
                f"the receiver refused {self.late + self.overtaken} deliveries of older operators: "
                f"{self.late} came after a newer one's, {self.overtaken} were slow and overtaken"
            )
        if not self.problems:
            found += [
                "each key's events arrived in their order",
                "no session was worked on by two at once: one piece of work an epoch",
                "nothing was taken of an older operator after a newer one",
            ]
        return found + [f"PROBLEM: {one}" for one in self.problems]


def judge(events: Sequence[Event], journal: Path) -> Report:
    """Compare what happened with what was received."""
    attempts = list(read(journal))
    taken = [one for one in attempts if one.verdict is Verdict.TAKEN]
    verdicts = Counter(one.verdict for one in attempts)
    wanted = {(event.run, event.key, event.number) for event in events}
    first = list(dict.fromkeys((one.run, one.key, one.number) for one in taken))
    missing = sorted(wanted.difference(first))
    delivered = len(wanted) - len(missing)
    checks = (
        (f"number {number} of {key} never arrived" for _, key, number in missing),
        _disorder(first),
        _overlaps(attempts),
        _returns(taken),
    )
    return Report(
        len(wanted),
        delivered,
        again=len(taken) - len(first),
        earlier=len(first) - delivered,
        late=verdicts[Verdict.LATE],
        overtaken=verdicts[Verdict.OVERTAKEN],
        problems=[problem for check in checks for problem in _some(check)],
    )


def _some(problems: Iterator[str]) -> list[str]:
    found = list(problems)
    more = len(found) - _SHOWN
    return [*found[:_SHOWN], *([f"and {more} more of these"] if more > 0 else [])]


def _disorder(first: Sequence[tuple[str, str, int]]) -> Iterator[str]:
    """Keys whose events did not arrive in their order, each looked at when it first arrived."""
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for run, key, number in first:
        numbers[run, key].append(number)
    for (_, key), found in numbers.items():
        if found != sorted(found):
            yield f"the events of {key} arrived as {found}"


def _overlaps(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Operators with two pieces of work, in one process or in two. All that was tried counts."""
    works: dict[tuple[int, int], dict[str, None]] = defaultdict(dict)
    for one in attempts:
        works[one.place][one.work] = None
    for (session, epoch), names in works.items():
        if len(names) > 1:
            yield f"{' and '.join(names)} worked on session {session:x}, epoch {epoch}, at once"


def _returns(taken: Sequence[Attempt]) -> Iterator[str]:
    """Older operators of which something was taken after a newer one's: fencing has failed."""
    newest: dict[str, tuple[int, int]] = {}
    for one in taken:
        if one.place < newest.get(one.key, (0, 0)):
            yield (
                f"number {one.number} of {one.key} was taken of an older operator "
                f"({one.work}, epoch {one.epoch}) after a newer one's"
            )
        newest[one.key] = max(one.place, newest.get(one.key, (0, 0)))
