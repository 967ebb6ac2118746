"""Makes the state machine replicated: what was acknowledged is never lost.

    node, settings, failures       what a user holds: start, submit, read, stop
    replica                        one node without sockets, disks and clocks; what ties it together
    queues                         operations become batches, batches get answers
    clock, reaper                  what a leader does besides
    checkpoints, snapshots         state behind the log, and for followers that fell behind it
    recovery                       what two files say together when a node starts
    consensus/                     Raft: PySyncObj, and what stands around it
    storage/                       the journal and the checkpoint on disk
    network/                       the way between nodes

Everything below `node` is moved by calls and knows no event loop, file or socket, so that
`tests/simulation` can run whole clusters in virtual time. `docs/design.md` says why things are as
they are, `docs/divergence.md` where this differs from Raft's paper and from PySyncObj.
"""

from cluster.failures import (
    ClusterError,
    MisalignedError,
    OperationError,
    Overloaded,
    SettingsError,
    Stopping,
    TimedOut,
    TooLarge,
)
from cluster.network.settings import Address, Security, TlsFiles
from cluster.node import Listener, Node, Status
from cluster.settings import NodeSettings

__all__ = [
    "Address",
    "ClusterError",
    "Listener",
    "MisalignedError",
    "Node",
    "NodeSettings",
    "OperationError",
    "Overloaded",
    "Security",
    "SettingsError",
    "Status",
    "Stopping",
    "TimedOut",
    "TlsFiles",
    "TooLarge",
]
