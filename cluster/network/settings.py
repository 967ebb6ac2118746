"""Who a node is, where nodes are, and the bounds of what goes between them."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

from cluster.network.errors import SecurityError, TransportSettingsError
from state.limits import (
    GIB,
    HOUR_MS,
    KIB,
    MIB,
    MINUTE_MS,
    PROPOSER_CHARS_MAX,
    SECOND_MS,
    bounded,
    ranges,
)

CLUSTER_CHARS_MAX = 128
INCARNATION_MAX = 2**63 - 1
# 128 bits, if they are random: a recorded handshake lets anyone try secrets at home.
SECRET_BYTES_MIN = 16


class Address(NamedTuple):
    """A host, by name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Identity:
    """A node in one of its lives: `incarnation` grows with each start."""

    cluster_id: str
    node_id: str
    incarnation: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.cluster_id) <= CLUSTER_CHARS_MAX:
            raise TransportSettingsError(
                f"a cluster's id has 1 to {CLUSTER_CHARS_MAX} characters: {self.cluster_id!a}"
            )
        check_node_id(self.node_id)
        if not 0 <= self.incarnation <= INCARNATION_MAX:
            raise TransportSettingsError(f"incarnation {self.incarnation} is out of range")


def check_node_id(node_id: str) -> None:
    """Refuse what is no node's id."""
    if not 1 <= len(node_id) <= PROPOSER_CHARS_MAX:
        raise TransportSettingsError(
            f"a node's id has 1 to {PROPOSER_CHARS_MAX} characters: {node_id!a}"
        )


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. The certificate (its chain may follow it) serves for dialing and for accepting."""

    certificate: Path
    key: Path  # without a passphrase
    authority: Path  # the certificates that peers' certificates are checked against, and no others


@dataclass(frozen=True, slots=True)
class Security:
    """How nodes know each other. TLS, a secret, both; or nothing, between loopback addresses.

    With TLS what is sent is secret, and whole. With a secret alone the nodes prove at the beginning
    of a connection that they hold it; after that frames have checksums, which find accidents, not
    attackers: who can change packets on their way can change, add and read what nodes say. So a
    secret alone is for networks where nobody can.
    """

    tls: TlsFiles | None = None
    secret: bytes | None = field(default=None, repr=False)
    insecure: bool = False  # whether neither is all right beyond loopback, too

    def __post_init__(self) -> None:
        if self.secret is not None and len(self.secret) < SECRET_BYTES_MIN:
            raise SecurityError(
                f"the cluster's secret has {len(self.secret)} bytes, "
                f"it takes {SECRET_BYTES_MIN} random ones at least"
            )


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Bounds of one node's connections. Nodes may differ, but for `frame_bytes`."""

    frame_bytes: int = bounded(
        80 * MIB,
        64 * KIB,
        GIB,
        "Above the largest batch of Limits and its envelope; a frame is held in one piece.",
    )
    hello_bytes: int = bounded(
        4 * KIB, KIB, 64 * KIB, "A frame before its sender is known; a hello has about 300 bytes."
    )
    read_buffer_bytes: int = bounded(
        256 * KIB,
        4 * KIB,
        16 * MIB,
        "What one read takes at most, and so what a peer may occupy the loop with at a time.",
    )
    flush_bytes: int = bounded(
        256 * KIB,
        4 * KIB,
        64 * MIB,
        "A burst leaves at the end of the loop's turn, or when it has this size.",
    )
    send_buffer_bytes: int = bounded(
        384 * MIB,
        64 * KIB,
        16 * GIB,
        """Waiting for one peer. Beyond it the connection is dropped: a peer that is this far behind
        is better served by starting over. A frame that nothing waits before always passes. What
        consensus has on its way is bounded by itself, far below this unless batches are as large as
        they may ever be.""",
    )
    unauthenticated_connections: int = bounded(
        32, 1, 4096, "Of strangers; one more ends one, of the host that has most of them."
    )
    backlog_connections: int = bounded(128, 1, 4096, "Connections that wait to be accepted.")
    addresses: int = bounded(8, 1, 64, "Of one name that are tried in one round.")
    connect_timeout_ms: int = bounded(
        2 * SECOND_MS, 10, MINUTE_MS, "For a name to be resolved, and for each of its addresses."
    )
    handshake_timeout_ms: int = bounded(
        5 * SECOND_MS, 10, MINUTE_MS, "From connection to authentication, with TLS's own part."
    )
    backoff_min_ms: int = bounded(
        50, 1, MINUTE_MS, "Bound of the random wait after a first failure; it doubles from there."
    )
    backoff_max_ms: int = bounded(
        2 * SECOND_MS, 1, HOUR_MS, "A peer that comes back is noticed within this."
    )
    steady_after_ms: int = bounded(
        3 * SECOND_MS, 1, HOUR_MS, "A connection that lived shorter counts as one more failure."
    )
    keepalive_ms: int = bounded(
        500, 5, MINUTE_MS, "A ping follows when nothing was sent for this long; eight bytes."
    )
    silence_timeout_ms: int = bounded(
        3 * SECOND_MS,
        15,
        HOUR_MS,
        "A peer that was not heard for this long is gone; three keepalives at least.",
    )
    close_timeout_ms: int = bounded(
        500, 0, MINUTE_MS, "For what was already sent to leave the node when it stops."
    )
    tls_check_ms: int = bounded(
        MINUTE_MS, 10, 24 * HOUR_MS, "How often TLS files are looked at, besides new connections."
    )
    log_interval_ms: int = bounded(
        10 * SECOND_MS, 0, HOUR_MS, "One line for each cause and peer; the rest is counted."
    )

    def __post_init__(self) -> None:
        for name, allowed in TRANSPORT_RANGES.items():
            value = getattr(self, name)
            if not allowed.minimum <= value <= allowed.maximum:
                raise TransportSettingsError(
                    f"{name} = {value} is not within {allowed.minimum} to {allowed.maximum}"
                )
        if self.backoff_min_ms > self.backoff_max_ms:
            raise TransportSettingsError("backoff_min_ms is above backoff_max_ms")
        if self.silence_timeout_ms < 3 * self.keepalive_ms:
            raise TransportSettingsError("silence_timeout_ms is below three times keepalive_ms")


TRANSPORT_RANGES = ranges(TransportSettings)


@dataclass(slots=True)
class Counters:
    """What has happened since the start. `refused_...` are connections, ended for that reason."""

    accepted: int = 0
    accept_failures: int = 0  # no descriptors, no memory
    dials: int = 0
    dial_failures: int = 0  # name not resolved, connection refused or timed out
    tls_failures: int = 0  # the handshake of TLS, on either side
    connections: int = 0  # that passed the handshake
    unauthenticated: int = 0  # that did not, for whatever reason
    refused_malformed: int = 0
    refused_version: int = 0
    refused_cluster: int = 0
    refused_itself: int = 0
    refused_unknown_node: int = 0
    refused_direction: int = 0
    refused_secret: int = 0
    refused_certificate: int = 0
    refused_incarnation: int = 0
    refused_by_peer: int = 0
    timed_out: int = 0  # handshakes that took too long
    crowded_out: int = 0  # strangers ended in favour of later ones
    malformed: int = 0  # connections that ended with what is no frame, or no payload
    oversized: int = 0  # ... with a frame above the bound
    lost: int = 0  # connections that the peer or the network ended
    silent: int = 0
    overflows: int = 0  # of the send buffer
    replaced: int = 0
    listener_errors: int = 0
    internal_errors: int = 0  # defects of the transport itself
    stalls: int = 0  # times that the loop itself was late
    tls_reloads: int = 0
    tls_reload_failures: int = 0
    frames_in: int = 0  # payloads; without pings and handshakes
    frames_out: int = 0
    bytes_in: int = 0  # all of them
    bytes_out: int = 0
    pings_in: int = 0
    pings_out: int = 0
    writes: int = 0  # calls of the loop's transport; each is one system call if there is room

    def values(self) -> dict[str, int]:
        """All counters by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}
