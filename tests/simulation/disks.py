"""What the nodes' disks hold, seen from outside: what a promise is worth does not depend on who
believes that it was made.

A leader has a majority's votes of its term on disk, and what it commits is on a majority's disks
when it does (Raft, 5.2 and 5.3).
"""

from collections.abc import Iterable

from cluster.consensus.log import Log
from cluster.storage.records import Base, Entry, Record, Truncate, Vote


class Held:
    """One node's log as its disk has it."""

    def __init__(self) -> None:
        self._terms: dict[int, int] = {}  # of the entries above the base
        self._base_index = 0
        self._last_index = 0

    def begin(self, log: Log) -> None:
        """Begin again with what a life found."""
        self._base_index = log.base_index
        self._last_index = log.last_index
        indexes = range(log.base_index + 1, log.last_index + 1)
        self._terms = {index: log.entry_at(index)[2] for index in indexes}

    def add(self, record: Record) -> None:
        match record:
            case Entry():
                self._terms[record.index] = record.term
                self._last_index = record.index
            case Truncate():
                self._cut(record.from_index)
            case Base():
                if self._terms.get(record.index) != record.term:
                    self._terms.clear()  # a snapshot from elsewhere
                    self._last_index = record.index
                self._base_index = record.index
            case _:
                pass

    def _cut(self, from_index: int) -> None:
        for index in range(from_index, self._last_index + 1):
            self._terms.pop(index, None)
        self._last_index = from_index - 1

    def has(self, index: int, term: int) -> bool:
        return index <= self._base_index or self._terms.get(index) == term


class Disks:
    """All nodes' disks."""

    def __init__(self, names: Iterable[str]) -> None:
        self._held = {name: Held() for name in names}
        self._votes: dict[int, dict[str, str]] = {}  # by term and voter
        self._majority = len(self._held) // 2 + 1

    def started(self, name: str, log: Log) -> None:
        """A node begins a life with what its disk holds."""
        self._held[name].begin(log)
        self._voted(name, log.getCurrentTerm(), log.getVotedForNodeId())

    def wrote(self, name: str, records: Iterable[Record]) -> None:
        """A node's disk has these now."""
        held = self._held[name]
        for record in records:
            if isinstance(record, Vote):
                self._voted(name, record.term, record.voted_for)
            else:
                held.add(record)

    def _voted(self, name: str, term: int, voted_for: str | None) -> None:
        if voted_for is None:
            return
        known = self._votes.setdefault(term, {}).setdefault(name, voted_for)
        assert known == voted_for, f"{name} votes for {known} and {voted_for} in term {term}"

    def elects(self, name: str, term: int) -> bool:
        """Whether a majority has voted for a leader."""
        votes = self._votes.get(term, {}).values()
        return sum(voted_for == name for voted_for in votes) >= self._majority

    def holds(self, index: int, term: int) -> bool:
        """Whether a majority has an entry, or a checkpoint in its place."""
        return sum(held.has(index, term) for held in self._held.values()) >= self._majority
