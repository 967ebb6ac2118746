"""How two nodes make sure of each other. Messages in, messages out: no sockets here.

    dialer -> acceptor    hello   version, cluster, node, incarnation, nonce
    acceptor -> dialer    hello   ... its own
    dialer -> acceptor    proof   HMAC-SHA-256(secret, "dialer", both hellos)
    acceptor -> dialer    proof   HMAC-SHA-256(secret, "acceptor", both hellos): be welcome

The proofs cover both hellos byte by byte, and in them a fresh nonce of either side: none can be
used again, on the other side's behalf, or with another name, version or incarnation. The acceptor
proves last, so that a stranger gets nothing to try secrets on. Without a secret the proofs are
empty, and TLS has to tell who is there.

A minor version may add elements to the end of a message, which older ones ignore. Another major
version is refused. A side that refuses says in a last message why: a word for the other's log, that
nobody vouches for, and the incarnation that was seen if the other's is an earlier one.
"""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import msgpack

from cluster.network.errors import Reason, Refused, RefusedByPeer
from cluster.network.settings import CLUSTER_CHARS_MAX, INCARNATION_MAX, Identity
from state.limits import PROPOSER_CHARS_MAX

MAJOR = 1
MINOR = 0
NONCE_BYTES = 32

_VERSION_MAX = 2**32 - 1
_PROOF_FIELDS = 2
_HELLO_FIELDS = 7


class Kind(IntEnum):
    """The first element of a message."""

    HELLO = 1
    PROOF = 2
    REFUSAL = 3


class Role(IntEnum):
    """A side of a connection."""

    DIALER = 1
    ACCEPTOR = 2

    @property
    def label(self) -> bytes:
        """What a proof of this side begins with."""
        return b"ritornello/1 dialer" if self is Role.DIALER else b"ritornello/1 acceptor"

    @property
    def other(self) -> "Role":
        return Role.ACCEPTOR if self is Role.DIALER else Role.DIALER


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node says of itself. To be believed when the handshake is done."""

    major: int
    minor: int
    cluster_id: str
    node_id: str
    incarnation: int
    nonce: bytes


def encode_hello(hello: Hello) -> bytes:
    """The bytes of a hello."""
    return _pack(
        [
            Kind.HELLO,
            hello.major,
            hello.minor,
            hello.cluster_id,
            hello.node_id,
            hello.incarnation,
            hello.nonce,
        ]
    )


def encode_proof(proof: bytes) -> bytes:
    """The bytes of a proof."""
    return _pack([Kind.PROOF, proof])


def encode_refusal(reason: Reason, seen_incarnation: int | None = None) -> bytes:
    """A last message."""
    more = [] if seen_incarnation is None else [seen_incarnation]
    return _pack([Kind.REFUSAL, reason.value, *more])


def prove(secret: bytes | None, role: Role, dialer_hello: bytes, acceptor_hello: bytes) -> bytes:
    """What `role` shows in order to be believed its hello, in answer to the other's."""
    if secret is None:
        return b""
    parts = (role.label, dialer_hello, acceptor_hello)
    message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(secret, message, "sha256")


class Handshake:
    """One side's part in a handshake. Not to be used again once it has raised."""

    def __init__(
        self,
        role: Role,
        identity: Identity,
        secret: bytes | None,
        *,
        vet: Callable[[Hello], None],
        admit: Callable[[Hello], None],
    ) -> None:
        """Both callbacks raise `Refused` of whom they do not want.

        `vet` is asked when somebody claims to be a node, `admit` when it has proved to be.
        """
        self.role = role
        self.peer: Hello | None = None
        self.is_done = False
        self._identity = identity
        self._secret = secret
        self._vet = vet
        self._admit = admit
        hello = Hello(
            MAJOR,
            MINOR,
            identity.cluster_id,
            identity.node_id,
            identity.incarnation,
            secrets.token_bytes(NONCE_BYTES),
        )
        self._hellos = {role: encode_hello(hello)}

    @property
    def may_explain(self) -> bool:
        """Whether a refusal would be understood: a proof may have opened the other side."""
        return self.role is Role.ACCEPTOR or self.peer is None

    def opening(self) -> list[bytes]:
        """What to send at once."""
        return [self._hellos[self.role]] if self.role is Role.DIALER else []

    def receive(self, message: bytes) -> list[bytes]:
        """Take a message, and say what to answer. Raises `Refused` and `RefusedByPeer`."""
        values = _decode(message)
        if values[0] == Kind.REFUSAL:
            word, seen = (*values[1:3], None, None)[:2]
            raise RefusedByPeer(
                word if word in list(Reason) else "unknown",
                seen if _is_number(seen, INCARNATION_MAX) else None,
            )
        if self.is_done:
            raise Refused(Reason.MALFORMED, "a message after the last one")
        if self.peer is None:
            return self._take_hello(values, message)
        return self._take_proof(values, self.peer)

    def _take_hello(self, values: list[Any], message: bytes) -> list[bytes]:
        hello = _hello(values)
        identity = self._identity
        if hello.cluster_id != identity.cluster_id:
            raise Refused(
                Reason.CLUSTER,
                f"of cluster {hello.cluster_id!a}, this is {identity.cluster_id!a}",
            )
        if hello.node_id == identity.node_id:
            raise Refused(Reason.ITSELF, f"it is {hello.node_id!a}, as this node")
        self._vet(hello)
        self.peer = hello
        self._hellos[self.role.other] = message
        if self.role is Role.ACCEPTOR:
            return [self._hellos[self.role]]
        return [encode_proof(self._proof(self.role))]

    def _take_proof(self, values: list[Any], peer: Hello) -> list[bytes]:
        if values[0] != Kind.PROOF or len(values) < _PROOF_FIELDS or type(values[1]) is not bytes:
            raise Refused(Reason.MALFORMED, "not a proof")
        proof: bytes = values[1]
        if not hmac.compare_digest(proof, self._proof(self.role.other)):
            raise Refused(Reason.SECRET, _why_not(proof, self._secret))
        self._admit(peer)
        self.is_done = True
        return [encode_proof(self._proof(self.role))] if self.role is Role.ACCEPTOR else []

    def _proof(self, role: Role) -> bytes:
        return prove(self._secret, role, self._hellos[Role.DIALER], self._hellos[Role.ACCEPTOR])


def _why_not(proof: bytes, secret: bytes | None) -> str:
    if secret is None:
        return "it has a secret, this node has none"
    return "its secret is another one" if proof else "it has no secret, this node has one"


_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def _decode(message: bytes) -> list[Any]:
    try:
        values = msgpack.unpackb(message, raw=False)
    except MemoryError:
        raise  # of this node alone: it says nothing about the message
    except Exception as error:
        raise Refused(Reason.MALFORMED, "not msgpack") from error
    if type(values) is not list or not values or type(values[0]) is not int:
        raise Refused(Reason.MALFORMED, "not a message")
    return values


def _hello(values: list[Any]) -> Hello:
    match values[:3]:
        case [Kind.HELLO, int(major), int(minor)] if _is_number(major, _VERSION_MAX):
            pass
        case _:
            raise Refused(Reason.MALFORMED, "not a hello")
    if major != MAJOR:  # before anything that another version may have changed
        raise Refused(
            Reason.VERSION, f"it speaks protocol {major}.{minor}, this node {MAJOR}.{MINOR}"
        )
    match values[3:_HELLO_FIELDS]:
        case [str(cluster_id), str(node_id), incarnation, bytes(nonce)]:
            is_good = (
                _is_number(minor, _VERSION_MAX)
                and 1 <= len(cluster_id) <= CLUSTER_CHARS_MAX
                and 1 <= len(node_id) <= PROPOSER_CHARS_MAX
                and _is_number(incarnation, INCARNATION_MAX)
                and len(nonce) == NONCE_BYTES
            )
            if is_good:
                return Hello(major, minor, cluster_id, node_id, incarnation, nonce)
        case _:
            pass
    raise Refused(Reason.MALFORMED, "a field of a hello is wrong")


def _is_number(value: object, maximum: int) -> bool:
    return type(value) is int and 0 <= value <= maximum
