"""What clients did, what they were told, and whether it was true.

A `History` is written while a cluster runs: an attempt for each thing that was asked, with its fate
once it is known. `check` compares it with what the nodes hold in the end. It is plain data, so
that `test_history.py` can see each check fail on a history that a lying cluster would leave.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

LEDGERS, WORK = 1, 2  # themes


class ViolationError(AssertionError):
    """Something happened that must never happen."""


class Fate(Enum):
    """What became of an attempt, as far as its client was told."""

    UNKNOWN = "unknown"  # or never told: its node died first
    NOT_APPLIED = "not_applied"
    ACKNOWLEDGED = "acknowledged"


@dataclass(slots=True)
class Attempt:
    """A number to be written once: to a ledger, in a new session, or to a session with its epoch.

    `life` is the process that was asked, in one of its lives.
    """

    life: str
    fate: Fate = Fate.UNKNOWN
    ledger: str | None = None
    session_id: int | None = None  # of a new session, once it is known
    epoch: int | None = None


@dataclass(slots=True)
class Removal:
    """An attempt to remove a session."""

    session_id: int
    fate: Fate = Fate.UNKNOWN


@dataclass(frozen=True, slots=True)
class Dump:
    """What a node holds."""

    name: str
    applied_index: int
    digest: int
    ledgers: dict[str, list[int]]
    work: dict[int, list[int]]  # the numbers of each session


@dataclass(slots=True)
class History:
    """All that clients did. Numbers are given once, in the order in which they are sent."""

    attempts: dict[int, Attempt] = field(default_factory=dict)
    removals: list[Removal] = field(default_factory=list)
    owners: dict[tuple[int, int], str] = field(default_factory=dict)  # (id, epoch) -> consumer
    newest: dict[int, int] = field(default_factory=dict)  # id -> newest epoch that was handed out
    digests: dict[int, int] = field(default_factory=dict)
    acknowledged: int = 0  # operations of all kinds
    reads: int = 0

    def attempt(self, attempt: Attempt) -> int:
        """Take note of an attempt, and answer its number."""
        number = len(self.attempts) + 1
        self.attempts[number] = attempt
        return number

    def acquired(self, session_id: int, epoch: int, owner: str) -> None:
        """Take note of who was given a session; one owner an epoch."""
        known = self.owners.setdefault((session_id, epoch), owner)
        if known != owner:
            raise ViolationError(
                f"epoch {epoch} of session {session_id} has two owners: {known} and {owner}"
            )
        self.newest[session_id] = max(self.newest.get(session_id, 0), epoch)

    def accepted(self, session_id: int, epoch: int, newest_before: int) -> None:
        """Take note that an operation was done that showed an epoch.

        `newest_before` is the newest that anyone had been told of when it was sent.
        """
        if epoch < newest_before:
            raise ViolationError(
                f"session {session_id} obeyed epoch {epoch} after {newest_before} was handed out"
            )

    def digest(self, name: str, index: int, digest: int) -> None:
        """Take note of a node's state; at one index there is one."""
        known = self.digests.setdefault(index, digest)
        if known != digest:
            raise ViolationError(f"{name} has another state at index {index}")

    def saw(self, name: str, number: int, *, holds: bool) -> None:
        """Take note of what a read found that began after `number` was acknowledged."""
        self.reads += 1
        if not holds:
            raise ViolationError(f"{name} read without number {number}, acknowledged before")


def check(history: History, dumps: Sequence[Dump]) -> None:
    """Compare what clients were told with what the nodes hold. Raises `ViolationError`."""
    first, *others = dumps
    for other in others:
        if other.applied_index != first.applied_index:
            raise ViolationError(
                f"{first.name} is at {first.applied_index}, {other.name} at {other.applied_index}"
            )
        if other.digest != first.digest:
            raise ViolationError(f"{other.name} and {first.name} have different digests")
        if (other.ledgers, other.work) != (first.ledgers, first.work):
            raise ViolationError(f"{other.name} and {first.name} hold different sessions")
    history.digest(first.name, first.applied_index, first.digest)
    _check_numbers(history, first)
    _check_order(history, first)
    _check_sessions(history, first)


def _check_numbers(history: History, dump: Dump) -> None:
    """Each number is where it was to be written: acknowledged ones are there, all once at most."""
    removed = {one.session_id for one in history.removals}
    found: Counter[int] = Counter()
    for ledger, numbers in dump.ledgers.items():
        for number in numbers:
            attempt = history.attempts.get(number)
            if attempt is None or attempt.ledger != ledger:
                raise ViolationError(f"number {number} in ledger {ledger} was never written there")
            found[number] += 1
    for session_id, numbers in dump.work.items():
        for number in numbers:
            attempt = history.attempts.get(number)
            if attempt is None or attempt.session_id not in {None, session_id}:
                raise ViolationError(
                    f"number {number} in session {session_id} was never written there"
                )
            found[number] += 1
    twice = [number for number, times in found.items() if times > 1]
    if twice:
        raise ViolationError(f"applied more than once: {_some(twice, history)}")
    lost, wrong = [], []
    for number, attempt in history.attempts.items():
        is_there = number in found
        may_be_gone = attempt.session_id is not None and attempt.session_id in removed
        if attempt.fate is Fate.ACKNOWLEDGED and not is_there and not may_be_gone:
            lost.append(number)
        if attempt.fate is Fate.NOT_APPLIED and is_there:
            wrong.append(number)
    if lost:
        raise ViolationError(f"acknowledged and lost: {_some(lost, history)}")
    if wrong:
        raise ViolationError(f"not_applied, yet applied: {_some(wrong, history)}")


def _check_order(history: History, dump: Dump) -> None:
    """What one node was asked for in one life was done in that order."""
    for ledger, numbers in dump.ledgers.items():
        by_life: dict[str, list[int]] = defaultdict(list)
        for number in numbers:
            by_life[history.attempts[number].life].append(number)
        for life, of_life in by_life.items():
            if of_life != sorted(of_life):
                raise ViolationError(f"ledger {ledger} is out of order for {life}: {of_life}")


def _check_sessions(history: History, dump: Dump) -> None:
    """No session was forgotten, and none that was removed came back."""
    removed = {one.session_id for one in history.removals}
    created = {
        one.session_id
        for one in history.attempts.values()
        if one.session_id is not None and one.epoch is None
    }
    forgotten = created - removed - dump.work.keys()
    if forgotten:
        raise ViolationError(f"sessions were forgotten: {sorted(forgotten)[:20]}")
    back = {
        one.session_id
        for one in history.removals
        if one.fate is Fate.ACKNOWLEDGED and one.session_id in dump.work
    }
    if back:
        raise ViolationError(f"removed sessions came back: {sorted(back)[:20]}")


def _some(numbers: list[int], history: History) -> str:
    shown = ", ".join(f"{number} ({history.attempts[number].life})" for number in numbers[:20])
    return f"{len(numbers)} numbers, of which {shown}"
