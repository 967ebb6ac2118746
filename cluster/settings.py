"""What one node is started with. Everything has a default but its place on the disk."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.failures import SettingsError
from cluster.network.settings import Address, Security, TransportSettings
from cluster.replica import ReplicaSettings
from cluster.storage.journal_files import JournalSettings
from cluster.storage.records import ENTRY_OVERHEAD_BYTES
from cluster.storage.segments import FRAME_BYTES
from state.limits import KIB, LIMIT_RANGES, PROPOSER_CHARS_MAX

LOOPBACK = Address("127.0.0.1", 0)

_NODE_ID = re.compile(r"[A-Za-z0-9._-]+")

_BATCH_MAX_BYTES = LIMIT_RANGES["batch_bytes"].maximum
# What stands around a batch in a message, or around a piece of a snapshot: below 100 bytes.
_MESSAGE_OVERHEAD_BYTES = KIB
# Of many small entries in a message: each takes up to 15 bytes beside its command.
_ENTRIES_FACTOR = 2


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """A node, its cluster, its disk.

    Without peers it is a whole cluster of one: it listens nowhere, and is as durable as any.
    """

    data_directory: Path
    node_id: str = "node-1"
    cluster_id: str = "ritornello"  # nodes and disks of another one are refused
    bind: Address = LOOPBACK
    # All members by their ids, this node among them or not: the same set on all nodes.
    peers: Mapping[str, Address] = field(default_factory=dict)
    security: Security = field(default_factory=Security)
    transport: TransportSettings = field(default_factory=TransportSettings)
    journal: JournalSettings = field(default_factory=JournalSettings)
    replica: ReplicaSettings = field(default_factory=ReplicaSettings)
    # How long an operation is tried if its caller does not say.
    timeout_ms: int = 10_000
    # How long stopping may take for handing over, answering what is on its way and a last
    # checkpoint; and then, once more, for closing what is open.
    stop_timeout_ms: int = 10_000
    # Keep Python's garbage collector away from the state (see docs/design.md). It belongs to the
    # process: who runs other things in it may want to decide for themselves.
    tunes_collector: bool = True

    def __post_init__(self) -> None:
        _check_node_id("node_id", self.node_id)
        for peer in self.peers:
            _check_node_id("a peer's id", peer)
        for name in ("timeout_ms", "stop_timeout_ms"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it has to be 1 or more")
        if len(self.others) == 1:
            raise SettingsError(
                "two nodes are no safer than one: losing either stops both. "
                "Give three members, or none"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Refuse bounds that a batch would break on its way, when it is too late.

        How large a batch may be is replicated, and may change at any time: so what counts is the
        most that it can ever be.
        """
        consensus, checkpoint = self.replica.consensus, self.replica.checkpoint
        _check_at_least(
            "journal.frame_max_bytes",
            self.journal.frame_max_bytes,
            FRAME_BYTES + ENTRY_OVERHEAD_BYTES + _BATCH_MAX_BYTES,
            f"a batch, of up to {_BATCH_MAX_BYTES} bytes, is written in one frame",
        )
        message_bytes = _MESSAGE_OVERHEAD_BYTES + max(
            _BATCH_MAX_BYTES,
            consensus.message_bytes * _ENTRIES_FACTOR,
            checkpoint.chunk_bytes,
        )
        _check_at_least(
            "transport.frame_bytes",
            self.transport.frame_bytes,
            message_bytes,
            f"a batch, of up to {_BATCH_MAX_BYTES} bytes, is sent in one frame, and so are "
            "replica.consensus.message_bytes of entries and replica.checkpoint.chunk_bytes",
        )
        # As a leader: the window, the message that goes beyond it, chunks of a snapshot. As a
        # follower: batches for the leader. A node may have been both in a short time.
        waiting_bytes = (
            consensus.window_bytes
            + message_bytes
            + checkpoint.chunk_bytes * checkpoint.chunks_in_flight
            + message_bytes * self.replica.queue.pipelined_batches
        )
        _check_at_least(
            "transport.send_buffer_bytes",
            self.transport.send_buffer_bytes,
            waiting_bytes,
            "more than that may wait for one peer when batches are large, and beyond it the "
            "connection is dropped, again and again",
        )

    @property
    def others(self) -> dict[str, Address]:
        """The other members."""
        return {name: address for name, address in self.peers.items() if name != self.node_id}


def _check_node_id(name: str, node_id: str) -> None:
    """Refuse an id that is too long, or could be read as more than an id.

    Consumers are named `node/incarnation/name`, and a node that comes back looks for its own.
    """
    if not 1 <= len(node_id) <= PROPOSER_CHARS_MAX:
        raise SettingsError(f"{name} has 1 to {PROPOSER_CHARS_MAX} characters, not {len(node_id)}")
    if not _NODE_ID.fullmatch(node_id):
        raise SettingsError(
            f"{name} is {node_id!a}; write it with ASCII letters, digits, '.', '-' and '_' only"
        )


def _check_at_least(name: str, value: int, least: int, why: str) -> None:
    if value < least:
        raise SettingsError(f"{name} is {value}, but {why}: give {least} or more")
