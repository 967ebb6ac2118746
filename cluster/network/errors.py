"""What can go wrong between nodes.

NetworkError
├── TransportSettingsError  a setting, an address or a name that makes no sense
├── SecurityError           nodes would talk unprotected over a network, and nobody has allowed it
├── BindError               the address to listen at is not to be had
├── TlsFilesError           certificate, key or authority cannot be used
├── PayloadSizeError        a payload that no frame takes: empty, or too large
├── FrameError              what a peer sent is no frame
│   └── OversizedError      ... because it would be larger than it may be
├── MalformedPayloadError   what a peer sent makes no sense to the listener, which raises it
├── Refused                 a handshake that failed; `reason` says why
└── RefusedByPeer           ... at the other side, in its words

The first five are for who uses the transport. The others are about a peer: they end its connection,
are counted, and go no further.
"""

from enum import StrEnum


class NetworkError(Exception):
    """The root: catching it catches all that the network raises on purpose."""


class TransportSettingsError(NetworkError):
    pass


class SecurityError(NetworkError):
    pass


class BindError(NetworkError):
    def __init__(self, host: str, port: int, error: OSError | UnicodeError) -> None:
        super().__init__(f"cannot listen at {host!a} port {port}: {error}")
        self.host = host
        self.port = port
        self.errno = error.errno if isinstance(error, OSError) else None


class TlsFilesError(NetworkError):
    def __init__(self, paths: str, problem: str) -> None:
        super().__init__(f"cannot use {paths} for TLS: {problem}")
        self.paths = paths
        self.problem = problem


class PayloadSizeError(NetworkError):
    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"a payload has 1 to {limit_bytes} bytes, not {size_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class FrameError(NetworkError):
    pass


class OversizedError(FrameError):
    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"a frame of {size_bytes} bytes, the limit is {limit_bytes}")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class MalformedPayloadError(NetworkError):
    """For listeners: the peer is to blame, and not who had to read this."""


class Reason(StrEnum):
    """Why a handshake was refused. The words travel, so they never change their meaning."""

    MALFORMED = "malformed"  # not the message that has its turn
    VERSION = "version"  # another major version of the protocol
    CLUSTER = "cluster"  # a node of another cluster
    ITSELF = "itself"  # the node has reached itself, or one that has its name
    UNKNOWN_NODE = "unknown_node"  # not one of our peers, or not the one that was dialed
    DIRECTION = "direction"  # a peer that should wait to be dialed
    SECRET = "secret"  # noqa: S105 - wrong, or only one side has one
    CERTIFICATE = "certificate"  # valid, but for another node
    INCARNATION = "incarnation"  # an earlier life of a node that has been seen in a later one


class Refused(NetworkError):
    """`seen_incarnation` is the later one that was here, if that is the reason."""

    def __init__(self, reason: Reason, detail: str, seen_incarnation: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.seen_incarnation = seen_incarnation


class RefusedByPeer(NetworkError):
    """`reason` is a `Reason`, or "unknown". Nobody vouches for it, nor for the incarnation."""

    def __init__(self, reason: str, seen_incarnation: int | None = None) -> None:
        super().__init__(f"the peer refuses: {reason}")
        self.reason = reason
        self.seen_incarnation = seen_incarnation
