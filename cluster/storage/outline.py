"""What the journal knows of the log without its commands, and which records make sense after it.

One class judges both what is to be written and what is read back, so that nothing is written that
a recovery would refuse.
"""

from bisect import bisect_right
from typing import Self, assert_never

from cluster.storage.records import (
    INTEGER_MAX,
    Base,
    Commit,
    Entry,
    Identity,
    Incarnation,
    Record,
    State,
    Truncate,
    Vote,
    text_fits,
)

FIRST_INDEX = 1  # a new log's base: index 1 of term 0, an entry that never was


class NonsenseError(ValueError):
    """A record that contradicts those before it."""


class Outline:
    """The small state, and the log as runs of terms.

    base_index <= commit_index <= last_index, always.
    """

    def __init__(self, state: State) -> None:
        self.identity = state.identity
        self.incarnation = state.incarnation
        self.term = state.term
        self.voted_for = state.voted_for
        self.commit_index = state.commit_index
        self.base_index = state.base_index
        self.base_term = state.base_term
        self.last_index = state.last_index
        # Entries up to here were in segments that are gone. A segment goes only when the base has
        # come this far, so in the end it has.
        self.missing_to_index = state.last_index
        # (first index, term) of the entries above the base that are known; of the missing ones
        # only the last is.
        self._runs: list[tuple[int, int]] = []
        _check_state(state)
        if state.last_index > state.base_index:
            self._runs.append((state.last_index, state.last_term))

    @classmethod
    def new(cls, identity: Identity) -> Self:
        """A log that nothing was ever written to."""
        return cls(State(identity, 0, 0, None, FIRST_INDEX, FIRST_INDEX, 0, FIRST_INDEX, 0))

    def state(self) -> State:
        """What a segment begins with."""
        last_term = self.term_at(self.last_index)
        if last_term is None:
            raise NonsenseError("the last entry's term is not known")
        return State(
            self.identity,
            self.incarnation,
            self.term,
            self.voted_for,
            self.commit_index,
            self.base_index,
            self.base_term,
            self.last_index,
            last_term,
        )

    def agrees(self, state: State) -> bool:
        """Whether a segment that begins with `state` can follow."""
        last_term = self.term_at(self.last_index)
        return state == State(
            self.identity,
            self.incarnation,
            self.term,
            self.voted_for,
            self.commit_index,
            self.base_index,
            self.base_term,
            self.last_index,
            state.last_term if last_term is None else last_term,
        )

    def term_at(self, index: int) -> int | None:
        """The term of the base or of an entry above it; None if it is not known."""
        if index == self.base_index:
            return self.base_term
        if not self.base_index < index <= self.last_index:
            return None
        run = bisect_right(self._runs, (index, INTEGER_MAX))
        return self._runs[run - 1][1] if run else None

    @property
    def is_missing_entries(self) -> bool:
        """Whether entries above the base are in no segment."""
        return self.missing_to_index > self.base_index

    def add(self, record: Record) -> Record:
        """Take the record in; a `Base` comes back decided. Raises `NonsenseError`."""
        match record:
            case Entry(index, term, _):
                self._add_entry(index, term)
            case Commit(index):
                _check_number("a commit index", index, 0)
                self.commit_index = max(self.commit_index, min(index, self.last_index))
            case Vote(term, voted_for):
                self._vote(term, voted_for)
            case Truncate(from_index):
                self._truncate(from_index)
            case Base():
                return self._rebase(record)
            case Incarnation(number):
                _check_number("an incarnation", number, self.incarnation)
                self.incarnation = number
            case _:
                assert_never(record)
        return record

    def _add_entry(self, index: int, term: int) -> None:
        if index != self.last_index + 1:
            raise NonsenseError(f"entry {index} does not follow entry {self.last_index}")
        _check_number("an entry's index", index, index)
        _check_number("an entry's term", term, self.term_at(self.last_index) or 0)
        self.last_index = index
        if not self._runs or self._runs[-1][1] != term:
            self._runs.append((index, term))

    def _vote(self, term: int, voted_for: str | None) -> None:
        _check_number("a term", term, self.term)
        if voted_for is not None and not text_fits(voted_for):
            raise NonsenseError(f"{voted_for!r} cannot be a member's name")
        if term == self.term and self.voted_for not in {None, voted_for}:
            raise NonsenseError(
                f"the vote in term {term} was given to {self.voted_for!r}, not to {voted_for!r}"
            )
        self.term = term
        self.voted_for = voted_for

    def _truncate(self, from_index: int) -> None:
        if not self.commit_index < from_index <= self.last_index + 1:
            raise NonsenseError(
                f"the log cannot be cut from {from_index} on: it is committed up to "
                f"{self.commit_index} and ends at {self.last_index}"
            )
        self.last_index = from_index - 1
        while self._runs and self._runs[-1][0] > self.last_index:
            self._runs.pop()

    def _rebase(self, base: Base) -> Base:
        index, term, keeps = base
        _check_number("a base's index", index, self.base_index)
        _check_number("a base's term", term, self.base_term)
        known_term = self.term_at(index)
        if known_term is not None or index > self.last_index:
            decided = known_term == term
            if keeps is not None and keeps != decided:
                raise NonsenseError(f"base {index} of term {term} keeps what it cannot keep")
            keeps = decided
        elif keeps is None:
            raise NonsenseError(f"the term of entry {index} is not known")
        if keeps:
            # The run that holds the base's successor begins behind the base now.
            run = bisect_right(self._runs, (index + 1, INTEGER_MAX))
            del self._runs[: max(run - 1, 0)]
        elif index <= self.commit_index:
            raise NonsenseError(f"entry {index} is committed with a term other than {term}")
        else:
            self.last_index = index
            self._runs.clear()
        self.base_index = index
        self.base_term = term
        self.commit_index = max(self.commit_index, index)
        return Base(index, term, keeps)


def _check_state(state: State) -> None:
    for name in ("incarnation", "term", "last_term"):
        _check_number(f"the {name}", getattr(state, name), 0)
    _check_number("the base's index", state.base_index, FIRST_INDEX)
    _check_number("the commit index", state.commit_index, state.base_index)
    _check_number("the last index", state.last_index, state.commit_index)
    _check_number("the last term", state.last_term, state.base_term)
    if state.last_index == state.base_index and state.last_term != state.base_term:
        raise NonsenseError("the log ends at its base, but with another term")
    texts = (*state.identity, *(() if state.voted_for is None else (state.voted_for,)))
    for text in texts:
        if not text_fits(text):
            raise NonsenseError(f"{text!r} cannot be a name")


def _check_number(what: str, number: int, minimum: int) -> None:
    if not minimum <= number <= INTEGER_MAX:
        raise NonsenseError(f"{what} is {number}, and has to be {minimum} or more")
