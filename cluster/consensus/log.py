"""The Raft log in memory, and what of it the disk has not been given yet.

The engine changes the log through the interface of PySyncObj's `Journal` (its names are the
library's). Each change is noted as a record; the member takes the records, has the journal write
them, and says when they are durable. So there is one order of changes, and a *mark* (how many
records there were) says how far a promise depends on the disk:

    mark = log.mark            # what a message promises is in the records up to here
    ... until log.durable_mark >= mark, the message stays

The log always begins with its *base*, an entry without content that stands for everything a
checkpoint holds; a new node's base is (index 1, term 0), as the library has it.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from cluster.storage.records import Base, Commit, Entry, Record, Truncate, Vote

LogEntry = tuple[bytes, int, int]  # command, index, term: the library's order

# The library's entry type "no operation", the whole content of a new leader's first entry.
NO_OP = b"\x01"

FIRST_INDEX = 1


class Recovered(NamedTuple):
    """What the disk said when the node started."""

    base_index: int = FIRST_INDEX
    base_term: int = 0
    entries: Sequence[LogEntry] = ()
    term: int = 0
    voted_for: str | None = None
    commit_index: int = FIRST_INDEX


class Log:
    """Entries from the base on; the base itself is the first."""

    def __init__(self, recovered: Recovered) -> None:
        self._entries: list[LogEntry] = [
            (NO_OP, recovered.base_index, recovered.base_term),
            *recovered.entries,
        ]
        self._term = recovered.term
        self._voted_for = recovered.voted_for
        last_index = self._entries[-1][1]
        self._commit_index = max(min(recovered.commit_index, last_index), recovered.base_index)
        self.size_bytes = sum(len(entry[0]) for entry in recovered.entries)
        # Records that were not taken yet, and how many there ever were.
        self._records: list[Record] = []
        self.mark = 0
        self.durable_mark = 0
        self.term_mark = 0  # where the current term and vote were noted
        self.durable_index = last_index  # invariant: <= last_index; those up to here are on disk
        self._written_commit_index = self._commit_index
        # (mark, last index) of what was taken and is not durable yet.
        self._taken: deque[tuple[int, int]] = deque()

    # For the member

    @property
    def base_index(self) -> int:
        """The last index that is not in the log because a checkpoint has it."""
        return self._entries[0][1]

    @property
    def base_term(self) -> int:
        """The term of the entry at `base_index`."""
        return self._entries[0][2]

    @property
    def last_index(self) -> int:
        """The index of the last entry."""
        return self._entries[-1][1]

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self._entries[-1][2]

    def term_at(self, index: int) -> int | None:
        """The term of an entry; None if it is not in the log."""
        position = index - self._entries[0][1]
        return self._entries[position][2] if 0 <= position < len(self._entries) else None

    def command_at(self, index: int) -> bytes:
        """The command of an entry that is in the log, above the base."""
        return self._entries[index - self._entries[0][1]][0]

    def entry_at(self, index: int) -> LogEntry:
        """An entry that is in the log, above the base."""
        return self._entries[index - self._entries[0][1]]

    def size_bytes_after(self, index: int) -> int:
        """The commands after `index` together: costs their number."""
        return sum([len(entry[0]) for entry in self._entries[index + 1 - self._entries[0][1] :]])

    def run_from(self, first_index: int, size_bytes: int) -> list[LogEntry]:
        """Entries from `first_index` on, at least one if there is one, of about this size."""
        entries = self._entries
        position = end = first_index - entries[0][1]
        while end < len(entries):
            size_bytes -= len(entries[end][0])
            if size_bytes < 0 and end > position:
                break
            end += 1
        return entries[position:end]

    @property
    def has_records(self) -> bool:
        """Whether there is something to write. A bare commit index can wait for company."""
        return bool(self._records)

    def take_records(self) -> list[Record]:
        """What is to be written now, in order; `written` is to be called when it is durable."""
        records, self._records = self._records, []
        if self._commit_index != self._written_commit_index:
            records.append(Commit(self._commit_index))
            self._written_commit_index = self._commit_index
        self._taken.append((self.mark, self.last_index))
        return records

    @property
    def awaits_disk(self) -> bool:
        """Whether something was taken to be written and is not known to be durable."""
        return bool(self._taken)

    def written(self) -> None:
        """Say that what was taken first, of what is not durable yet, is durable now."""
        self.durable_mark, durable_index = self._taken.popleft()
        self.durable_index = max(self.durable_index, durable_index)

    def rebase(self, index: int, term: int) -> None:
        """Let a checkpoint stand for everything up to `index`.

        What follows stays if the log holds this very entry; else the checkpoint is from elsewhere,
        and nothing of the log counts any more.
        """
        position = index - self.base_index
        if self.term_at(index) == term:
            if position == 0:
                return
            kept = self._entries[position + 1 :]
        else:
            kept = []
        gone = self._entries[1 : len(self._entries) - len(kept)]
        self.size_bytes -= sum(len(entry[0]) for entry in gone)
        self._entries = [(NO_OP, index, term), *kept]
        self._commit_index = max(self._commit_index, index)
        self._lower_durable(self.last_index)
        self._note(Base(index, term))
        # The checkpoint is on disk before the log is told of it.
        self.durable_index = max(self.durable_index, index)

    def _note(self, record: Record) -> None:
        self._records.append(record)
        self.mark += 1

    def _lower_durable(self, last_index: int) -> None:
        self.durable_index = min(self.durable_index, last_index)
        self._taken = deque((mark, min(index, last_index)) for mark, index in self._taken)

    # What PySyncObj calls: the interface of its `Journal`

    def __getitem__(self, where: int | slice) -> LogEntry | list[LogEntry]:
        return self._entries[where]

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._entries.append((command, idx, term))
        self.size_bytes += len(command)
        self._note(Entry(idx, term, command))

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803
        removed = self._entries[entryFrom:]
        del self._entries[entryFrom:]
        self.size_bytes -= sum(len(entry[0]) for entry in removed)
        self._lower_durable(self.last_index)
        self._note(Truncate(self.last_index + 1))

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        self._term = term
        self._voted_for = votedForNodeId
        self._note(Vote(term, votedForNodeId))
        self.term_mark = self.mark

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._voted_for

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """The library would write its meta file now; there is none."""

    def _destroy(self) -> None:
        """The library closes its file now; this log has none."""
