"""A journal that is a list: what each frame leaves, written down in full. And chance to feed it."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from random import Random

from cluster.storage.journal_files import LogEntry, Recovered
from cluster.storage.records import (
    Base,
    Commit,
    Entry,
    Identity,
    Incarnation,
    Record,
    Truncate,
    Vote,
)

IDENTITY = Identity("orchestra", "violin")


@dataclass(frozen=True)
class Model:
    base: tuple[int, int] = (1, 0)
    entries: tuple[LogEntry, ...] = ()
    term: int = 0
    voted_for: str | None = None
    commit_index: int = 1
    incarnation: int = 0

    @property
    def last(self) -> tuple[int, int]:
        """Index and term of the last entry."""
        return self.entries[-1][1:] if self.entries else self.base

    def holds(self, index: int, term: int) -> bool:
        return (index, term) in {self.base, *(entry[1:] for entry in self.entries)}

    def after(self, records: Iterable[Record]) -> "Model":
        model = self
        for record in records:
            model = model._after(record)
        return model

    def _after(self, record: Record) -> "Model":
        match record:
            case Entry(index, term, command):
                return replace(self, entries=(*self.entries, (command, index, term)))
            case Truncate(from_index):
                kept = tuple(entry for entry in self.entries if entry[1] < from_index)
                return replace(self, entries=kept)
            case Vote(term, voted_for):
                return replace(self, term=term, voted_for=voted_for)
            case Commit(index):
                index = max(self.commit_index, min(index, self.last[0]))
                return replace(self, commit_index=index)
            case Incarnation(number):
                return replace(self, incarnation=number)
            case Base(index, term, _):
                kept = ()
                if self.holds(index, term):
                    kept = tuple(entry for entry in self.entries if entry[1] > index)
                commit_index = max(self.commit_index, index)
                return replace(self, base=(index, term), entries=kept, commit_index=commit_index)

    def recovered(self) -> Recovered:
        return Recovered(
            *self.base,
            list(self.entries),
            self.term,
            self.voted_for,
            self.commit_index,
            self.incarnation,
        )


@dataclass
class Writer:
    """Makes up records that a Raft member could write."""

    random: Random
    large_bytes: int = 12_000
    made: set[str] = field(default_factory=set)

    def frame(self, model: Model) -> list[Record]:
        records: list[Record] = []
        for _ in range(self.random.choice((0, 1, 1, 1, 2, 2, 5, 20))):
            record = self._record(model)
            records.append(record)
            model = model.after([record])
        return records

    def _record(self, model: Model) -> Record:
        random = self.random
        index, term = model.last
        match random.choices(range(8), (30, 8, 5, 4, 3, 2, 1, 1))[0]:
            case 0:
                return Entry(index + 1, max(term, model.term), self._command())
            case 1:
                return Commit(random.randint(max(1, model.commit_index - 2), index + 3))
            case 2:
                return Vote(model.term + random.randint(1, 2), random.choice((None, "viola", "ö")))
            case 3 if index > model.commit_index:
                return self._note(
                    "truncate", Truncate(random.randint(model.commit_index + 1, index))
                )
            case 4 if model.commit_index > model.base[0]:
                index = random.randint(model.base[0] + 1, model.commit_index)
                return self._note("base", Base(index, model.entries[index - model.base[0] - 1][2]))
            case 5:
                return Incarnation(model.incarnation + random.randint(0, 3))
            case 6:
                base = Base(index + random.randint(1, 9), max(term, model.term))
                return self._note("install beyond the end", base)
            case 7 if index > model.commit_index:
                index = random.randint(model.commit_index + 1, index)
                return self._note("install over a suffix", Base(index, term + 1))
            case _:
                return Truncate(index + 1)

    def _note(self, what: str, record: Record) -> Record:
        self.made.add(what)
        return record

    def _command(self) -> bytes:
        random = self.random
        size_bytes = random.choice((0, 1, 7, 100, 300, 450, 511, 512, 1500))
        if random.random() < 0.03:
            self.made.add("large entry")
            size_bytes = random.randint(4097, self.large_bytes)
        return random.randbytes(size_bytes)
