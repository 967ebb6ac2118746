"""What one node is started with. Everything has a default but its place on the disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.failures import SettingsError
from cluster.network.settings import Address, Security, TransportSettings
from cluster.replica import ReplicaSettings
from cluster.storage.journal_files import JournalSettings
from state.limits import PROPOSER_CHARS_MAX

LOOPBACK = Address("127.0.0.1", 0)


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
        if not 1 <= len(self.node_id) <= PROPOSER_CHARS_MAX:
            raise SettingsError(
                f"node_id has 1 to {PROPOSER_CHARS_MAX} characters, not {len(self.node_id)}"
            )
        for name in ("timeout_ms", "stop_timeout_ms"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}; it has to be 1 or more")
        if len(self.others) == 1:
            raise SettingsError(
                "two nodes are no safer than one: losing either stops both. "
                "Give three members, or none"
            )

    @property
    def others(self) -> dict[str, Address]:
        """The other members."""
        return {name: address for name, address in self.peers.items() if name != self.node_id}
