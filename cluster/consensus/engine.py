"""PySyncObj, and everything that is known of its insides. No other module touches them.

`Engine` gives the library a small typed face. Terms, votes, roles, elections, the commit rule,
check-quorum and a follower's log are the library's; what is replaced, and why, stands at `_Raft`.
`docs/divergence.md` tells the same with the tests that show the need.

Nothing here opens a socket or a file, starts a thread, or unpickles: entries are bytes that the
library carries without looking inside, see `check_command`.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from crc32c import crc32c
from pysyncobj import syncobj
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from cluster.consensus.log import NO_OP, Log, LogEntry

LIBRARY_VERSION = "0.3.17"
# SHA-256 of the source of pysyncobj.syncobj that this module was written against.
LIBRARY_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"

# The library looks at the first byte of an entry: 0 is unpickled, 2 and 3 are unpickled as changes
# of members and version, 1 is no operation, everything else means nothing to it.
FIRST_BYTE_MIN = 0x10

_NEVER_S = 1e12


class WrongLibraryError(Exception):
    """PySyncObj is not the version whose insides are known."""


class Role(IntEnum):
    """What a node is in its term; the numbers are the library's."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


def check_library() -> None:
    """Raise `WrongLibraryError` if PySyncObj is not what this module relies on."""
    version = syncobj.VERSION
    if version != LIBRARY_VERSION:
        raise WrongLibraryError(f"PySyncObj {LIBRARY_VERSION} is needed, but this is {version}")
    found = hashlib.sha256(inspect.getsource(syncobj).encode()).hexdigest()
    if found != LIBRARY_SHA256:
        raise WrongLibraryError(f"PySyncObj {version} was changed: its source hashes to {found}")


def check_command(command: bytes) -> bool:
    """Whether the library will carry these bytes without a look inside."""
    return command[:1] >= bytes((FIRST_BYTE_MIN,)) or command == NO_OP


@contextmanager
def library_clock(clock: Callable[[], float]) -> Iterator[None]:
    """Let the library read this clock, in seconds, meanwhile. For simulations."""
    before = syncobj.monotonicTime
    syncobj.monotonicTime = clock
    try:
        yield
    finally:
        syncobj.monotonicTime = before


class _Raft(syncobj.SyncObj):  # type: ignore[misc]  # the library has no types
    """The library with those of its parts replaced that `cluster` does itself.

    The names are the library's private ones, overridden under the form that Python gives them.
    """

    # Whether an election may begin. The library begins one when its own timer ends and it is
    # connected to anybody; the timers and the pre-vote are in `elections`.
    election_is_open = False

    def _SyncObj__connectedToAnyone(self) -> bool:  # noqa: N802
        return self.election_is_open

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        # Its timer never ends by itself, so nothing here is random.
        return _NEVER_S

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802
        # `replica` applies. The library would unpickle, and repeat an entry that raised for ever.
        return False

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802
        """The checkpoint is our own: the library would fork, or write all of it at once."""

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """Sending is our own, in `replication`: the library's resends what was acknowledged."""


class _Member(Node):  # type: ignore[misc]
    """A member as the library knows it.

    The library iterates over sets of them, in an order that a simulation must be able to repeat:
    so the hash is not Python's, which differs by process.
    """

    def __init__(self, node_id: str) -> None:
        super().__init__(node_id)
        self._hash = crc32c(node_id.encode())  # asked for a dozen times a batch

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.id == other.id


class _Outlet(Transport):  # type: ignore[misc]
    """Where the library's messages come out: all but those that `cluster` writes itself."""

    def __init__(
        self,
        send_vote_request: Callable[[str, int, int, int], None],
        send_vote: Callable[[str, int], None],
    ) -> None:
        super().__init__(None, None, [])
        self._send_vote_request = send_vote_request
        self._send_vote = send_vote

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        match message["type"]:
            case "request_vote":
                self._send_vote_request(
                    node.id, message["term"], message["last_log_index"], message["last_log_term"]
                )
            case "response_vote":
                self._send_vote(node.id, message["term"])
            case _:
                pass  # next_node_idx: the guard acknowledges, once the entries are durable
        return True


class _NoPoller:
    """The library polls its sockets at the end of a tick; it has none."""

    def poll(self, timeout: float) -> None:
        pass


class Engine:
    """One node's Raft state, driven from outside: it moves when it is called, and only then."""

    def __init__(
        self,
        node_id: str,
        others: Sequence[str],
        log: Log,
        *,
        quorum_timeout_s: float,
        send_vote_request: Callable[[str, int, int, int], None],
        send_vote: Callable[[str, int], None],
    ) -> None:
        """Go on with what `log` recovered.

        A leader that hears from no majority for `quorum_timeout_s` steps down. The callbacks get
        (node, term, last index, last term) and (node, term). Raises `WrongLibraryError`.
        """
        check_library()
        self.role = Role.FOLLOWER
        self._nodes = {name: _Member(name) for name in others}
        self._myself = _Member(node_id)
        settings = syncobj.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            commandsQueueSize=0,
            leaderFallbackTimeout=quorum_timeout_s,
            appendEntriesPeriod=quorum_timeout_s / 2,  # bounds how long a tick takes up proposals
            commandsWaitLeader=False,  # what is proposed without a leader is dropped, not kept
            raftMinTimeout=_NEVER_S / 2,
            raftMaxTimeout=_NEVER_S,
            connectionTimeout=_NEVER_S,
            logCompactionMinTime=_NEVER_S,
            onStateChanged=self._on_state_changed,
        )
        outlet = _Outlet(send_vote_request, send_vote)
        create_journal = syncobj.createJournal
        syncobj.createJournal = lambda _file: log
        try:
            self._raft = _Raft(
                self._myself, list(self._nodes.values()), conf=settings, transport=outlet
            )
        finally:
            syncobj.createJournal = create_journal
        self._raft._poller = _NoPoller()  # noqa: SLF001 - else a system call a tick
        self._receive = outlet._onMessageReceived  # noqa: SLF001 - its face towards transports

    @property
    def term(self) -> int:
        """The current term."""
        term: int = self._raft.raftCurrentTerm
        return term

    @property
    def commit_index(self) -> int:
        """What is committed as far as this node knows."""
        index: int = self._raft.raftCommitIndex
        return index

    @property
    def leader(self) -> str | None:
        """The leader of the current term, if it is known."""
        node = self._raft._getLeader()  # noqa: SLF001
        return None if node is None else str(node.id)

    def tick(self) -> None:
        """Take up proposals, count copies, and step down without a quorum."""
        self._raft.doTick(0)

    def propose(self, command: bytes) -> None:
        """Let a leader's next tick append an entry. The command passes `check_command`."""
        self._raft._applyCommand(command, None)  # noqa: SLF001

    def elect(self) -> None:
        """Begin an election now; votes are asked for, and a single node wins."""
        raft = self._raft
        raft._SyncObj__raftElectionDeadline = -_NEVER_S  # noqa: SLF001
        raft.election_is_open = True
        try:
            raft.doTick(0)
        finally:
            raft.election_is_open = False

    def resign(self) -> None:
        """Lead no more in this term, as the library does it without a quorum."""
        self._raft._SyncObj__setState(Role.FOLLOWER)  # noqa: SLF001
        self._raft._SyncObj__raftLeader = None  # noqa: SLF001

    def append(
        self,
        leader: str,
        term: int,
        previous: tuple[int, int],
        entries: Sequence[LogEntry],
        commit_index: int,
    ) -> None:
        """Follow `leader`: put entries after `previous` (index, term), which the log holds."""
        self._receive(
            self._nodes[leader],
            {
                "type": "append_entries",
                "term": term,
                "prevLogIdx": previous[0],
                "prevLogTerm": previous[1],
                "entries": entries,
                "commit_index": commit_index,
            },
        )

    def receive_vote_request(
        self, candidate: str, term: int, last_index: int, last_term: int
    ) -> None:
        """Vote or do not vote."""
        self._receive(
            self._nodes[candidate],
            {
                "type": "request_vote",
                "term": term,
                "last_log_index": last_index,
                "last_log_term": last_term,
            },
        )

    def observe_term(self, term: int) -> None:
        """Learn that there is a term, and follow if it is a higher one."""
        if term > self.term:
            # A request that no log can grant: all that is left of it is its term.
            self.receive_vote_request(next(iter(self._nodes)), term, -1, -1)

    def receive_vote(self, voter: str, term: int) -> None:
        """Count a vote for this term, that of a member that has not voted in it before."""
        self._receive(self._nodes[voter], {"type": "response_vote", "term": term})

    def credit(self, follower: str, match_index: int) -> None:
        """Count, in the next tick, a follower's copies up to `match_index`, and a sign of life."""
        self._receive(
            self._nodes[follower],
            {
                "type": "next_node_idx",
                "next_node_idx": match_index + 1,
                "reset": False,
                "success": True,
            },
        )

    def _on_state_changed(self, _old: int, new: int) -> None:
        self.role = Role(new)
