"""What must hold at every step, and what must hold in the end.

Safety (Raft, figure 3): one leader a term, elected by a majority; logs that agree on an entry agree
on all before it; what is committed is on a majority's disks, is in every later leader's log, and
never changes. Above it: equal states at equal indexes. What clients were told is checked by
`clients`.
"""

from collections.abc import Iterable

from cluster.consensus.log import NO_OP
from state import Applied
from tests.simulation.disks import Disks
from tests.simulation.node import SimNode

DIGEST_EVERY = 8


class ViolationError(AssertionError):
    """Something happened that must never happen."""


class _Seen:
    """How much of a node's life was looked at."""

    def __init__(self, last: tuple[int, int], committed_index: int) -> None:
        self.last = last
        self.committed_index = committed_index


class Checks:
    """Looks at all nodes after every step."""

    def __init__(self, names: Iterable[str]) -> None:
        self.disks = Disks(names)
        self.leaders: dict[int, str] = {}  # by term
        self.committed: dict[int, tuple[int, bytes]] = {}  # term and command by index
        self.committed_index = 0
        self._commit_terms: dict[int, int] = {}  # the term of who was first seen to commit it
        self._entries: dict[tuple[int, int], tuple[int, bytes]] = {}  # previous term, command
        self._digests: dict[int, int] = {}
        self._seen: dict[str, _Seen] = {}

    def started(self, node: SimNode) -> None:
        assert node.replica is not None
        log = node.replica.member.log
        self.disks.started(node.name, log)
        self._seen[node.name] = _Seen((log.base_index, log.base_term), log.base_index)

    def step(self, nodes: Iterable[SimNode]) -> None:
        for node in nodes:
            if node.replica is not None:
                self._log(node)
                self._leader(node)

    def applied(self, node: SimNode, applied: Applied) -> None:
        if applied.index % DIGEST_EVERY or node.replica is None:
            return
        digest = node.replica.machine.digest()
        known = self._digests.setdefault(applied.index, digest)
        if known != digest:
            raise ViolationError(f"{node.name} has another state at {applied.index}")

    def _leader(self, node: SimNode) -> None:
        assert node.replica is not None
        member = node.replica.member
        if not member.is_leader:
            return
        known = self.leaders.get(member.term)
        if known == node.name:
            return
        if known is not None:
            raise ViolationError(f"{known} and {node.name} both lead in term {member.term}")
        self.leaders[member.term] = node.name
        if not self.disks.elects(node.name, member.term):
            raise ViolationError(f"{node.name} leads in term {member.term} without being elected")
        # What was committed in earlier terms; a late winner of an old term need not have more.
        index = self.committed_index
        while index > 0 and self._commit_terms.get(index, 0) >= member.term:
            index -= 1
        if index > member.log.base_index:
            term, _ = self.committed[index]
            if member.log.term_at(index) != term:
                raise ViolationError(
                    f"{node.name} leads in term {member.term} without entry {index}, "
                    f"which was committed in term {term}"
                )

    def _log(self, node: SimNode) -> None:
        assert node.replica is not None
        member = node.replica.member
        log, seen = member.log, self._seen[node.name]
        last = (log.last_index, log.last_term)
        if last != seen.last:
            first = max(min(seen.last[0], last[0]), log.base_index + 1)
            for index in range(first, last[0] + 1):
                self._entry(node, index)
            seen.last = last
        if member.committed_index > seen.committed_index:
            first = max(seen.committed_index, log.base_index) + 1
            for index in range(first, member.committed_index + 1):
                self._commit(node, index)
            seen.committed_index = member.committed_index
            if member.is_leader:
                self._majority(node, member.committed_index)

    def _majority(self, node: SimNode, index: int) -> None:
        assert node.replica is not None
        term = node.replica.member.log.term_at(index)
        if term is not None and not self.disks.holds(index, term):
            raise ViolationError(
                f"{node.name} commits entry {index} of term {term}, which no majority has on disk"
            )

    def _entry(self, node: SimNode, index: int) -> None:
        assert node.replica is not None
        log = node.replica.member.log
        command, _, term = log.entry_at(index)
        content = (log.term_at(index - 1) or 0, command)
        known = self._entries.setdefault((index, term), content)
        if known != content:
            raise ViolationError(f"{node.name} has another entry {index} of term {term}")

    def _commit(self, node: SimNode, index: int) -> None:
        assert node.replica is not None
        command, _, term = node.replica.member.log.entry_at(index)
        known = self.committed.setdefault(index, (term, command))
        if known != (term, command):
            raise ViolationError(
                f"{node.name} commits entry {index} of term {term}, "
                f"which was committed in term {known[0]}"
            )
        if index > self.committed_index:
            self.committed_index = index
            self._commit_terms[index] = node.replica.member.term

    @property
    def batches(self) -> int:
        """Committed entries that are not a leader's first."""
        return sum(command != NO_OP for _, command in self.committed.values())
