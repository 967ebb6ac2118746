"""What nodes say to each other: msgpack arrays of a code and the fields that stand here.

Decoding believes nothing: what is not exactly a message raises `MalformedMessageError`, and what it
builds is bounded by the length of what it was given. Every message shows its sender's term, so that
one of an older term can be told so.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

MESSAGE_NUMBER_MAX = 2**63 - 1
# A thousand elections a second for 8,000 years. A term is adopted for good, so one near the end of
# the numbers would be the last.
TERM_MAX = 2**48


class MalformedMessageError(Exception):
    """Bytes from a peer that are no message."""


class Code(IntEnum):
    """The first element of a message. Numbers are never used again for another meaning."""

    APPEND = 1
    APPENDED = 2
    CONFLICT = 3
    VOTE_REQUEST = 4
    VOTE = 5
    PRE_VOTE_REQUEST = 6
    PRE_VOTE = 7
    TIMEOUT_NOW = 8
    TERM = 9
    FORWARD = 10
    DECLINED = 11
    OFFER = 12
    CHUNK = 13
    CHUNK_WRITTEN = 14
    INSTALLED = 15
    HANDOVER = 16
    HANDOVER_REFUSED = 17


class Append(NamedTuple):
    """A leader's entries after `previous_index`; a heartbeat if there are none (Raft, 5.3)."""

    term: int
    previous_index: int
    previous_term: int
    commit_index: int
    entries: tuple[tuple[int, bytes], ...]  # term, command


class Appended(NamedTuple):
    """The follower's disk holds the leader's log up to `match_index`."""

    term: int
    match_index: int


class Conflict(NamedTuple):
    """The follower does not hold the entry at `previous_index`; it has all below `next_index`."""

    term: int
    previous_index: int
    next_index: int


class VoteRequest(NamedTuple):
    """A candidate asks for a vote (Raft, 5.2)."""

    term: int
    last_index: int
    last_term: int


class Vote(NamedTuple):
    """A vote in `term`."""

    term: int


class PreVoteRequest(NamedTuple):
    """Would you vote for me in the term after `term`? (Ongaro's thesis, 9.6)."""

    term: int
    last_index: int
    last_term: int
    number: int  # of the asker's round


class PreVote(NamedTuple):
    """I would."""

    term: int
    number: int


class TimeoutNow(NamedTuple):
    """The leader hands over: begin an election at once (Ongaro's thesis, 3.10)."""

    term: int


class Term(NamedTuple):
    """You spoke of an older term than this."""

    term: int


class Forward(NamedTuple):
    """A batch for the leader to propose: the one at `position` of the sender's `stream`.

    A stream is taken in order, and ends at what was declined, so that batches of one proposer
    never overtake each other.
    """

    term: int
    stream: int
    position: int
    batch: bytes


class Declined(NamedTuple):
    """The stream ends before `position`: its receiver does not lead, or not yet."""

    term: int
    stream: int
    position: int


class Offer(NamedTuple):
    """The leader's log does not go back far enough: here comes a snapshot of `size_bytes`.

    It holds the state up to `snapshot_index`, an entry of `snapshot_term`. `digest` is its bytes'.
    """

    term: int
    transfer: int
    snapshot_index: int
    snapshot_term: int
    size_bytes: int
    digest: bytes


class Chunk(NamedTuple):
    """A piece of a snapshot."""

    term: int
    transfer: int
    offset: int
    data: bytes


class ChunkWritten(NamedTuple):
    """The follower has the transfer up to `offset`, and wants to go on from there."""

    term: int
    transfer: int
    offset: int


class Installed(NamedTuple):
    """The transfer is over for the follower, who has all that is committed up to `held_index`."""

    term: int
    transfer: int
    held_index: int


class Handover(NamedTuple):
    """Whoever leads is asked to hand over within `timeout_ms`: to a member, or `to` is empty.

    Each that a node sends has another number.
    """

    term: int
    number: int
    to: str
    timeout_ms: int


class HandoverRefused(NamedTuple):
    """A Handover leads to nothing: nobody can take it, or whoever was asked leads no more."""

    term: int
    number: int


Message = (
    Append
    | Appended
    | Conflict
    | VoteRequest
    | Vote
    | PreVoteRequest
    | PreVote
    | TimeoutNow
    | Term
    | Forward
    | Declined
    | Offer
    | Chunk
    | ChunkWritten
    | Installed
    | Handover
    | HandoverRefused
)

_BY_CODE: dict[int, type[Message]] = {
    Code.APPEND: Append,
    Code.APPENDED: Appended,
    Code.CONFLICT: Conflict,
    Code.VOTE_REQUEST: VoteRequest,
    Code.VOTE: Vote,
    Code.PRE_VOTE_REQUEST: PreVoteRequest,
    Code.PRE_VOTE: PreVote,
    Code.TIMEOUT_NOW: TimeoutNow,
    Code.TERM: Term,
    Code.FORWARD: Forward,
    Code.DECLINED: Declined,
    Code.OFFER: Offer,
    Code.CHUNK: Chunk,
    Code.CHUNK_WRITTEN: ChunkWritten,
    Code.INSTALLED: Installed,
    Code.HANDOVER: Handover,
    Code.HANDOVER_REFUSED: HandoverRefused,
}
_CODES: dict[type[Message], int] = {kind: int(code) for code, kind in _BY_CODE.items()}


def _shape(kind: type[Message]) -> tuple[type, ...]:
    hints = {"batch": bytes, "data": bytes, "digest": bytes, "entries": tuple, "to": str}
    return (int, *(hints.get(name, int) for name in kind._fields))


_SHAPES = {code: _shape(kind) for code, kind in _BY_CODE.items()}

_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode(message: Message) -> bytes:
    """The bytes of a message. Not for several threads at once."""
    return _pack((_CODES[type(message)], *message))


def _refuse(*_: object) -> None:
    raise ValueError("no message has maps or extensions")


def decode(data: bytes | memoryview) -> Message:
    """A message from bytes. Raises `MalformedMessageError`."""
    try:
        values = msgpack.unpackb(
            data, use_list=False, raw=False, object_hook=_refuse, ext_hook=_refuse, max_map_len=0
        )
    except MemoryError:
        raise  # of this node alone: it says nothing about the message
    except Exception as error:
        raise MalformedMessageError("not msgpack") from error
    if type(values) is not tuple or not values or type(values[0]) is not int:
        raise MalformedMessageError("not a message")
    code, *fields = values
    if code not in _BY_CODE:
        raise MalformedMessageError(f"message code {code} is not known")
    kind = _BY_CODE[code]
    if tuple(map(type, values)) != _SHAPES[code]:
        raise MalformedMessageError(f"a field of {kind.__name__} has the wrong type")
    for value in fields:
        if type(value) is int and not 0 <= value <= MESSAGE_NUMBER_MAX:
            raise MalformedMessageError(f"a number of {kind.__name__} is out of range")
    message: Message = kind(*fields)
    if message.term > TERM_MAX:
        raise MalformedMessageError(f"term {message.term} is beyond what elections can count to")
    if isinstance(message, Append):
        _check_entries(message)
    return message


def _check_entries(message: Append) -> None:
    term_before = message.previous_term
    for entry in message.entries:
        if type(entry) is not tuple or tuple(map(type, entry)) != (int, bytes):
            raise MalformedMessageError("an entry is not a term and a command")
        if not term_before <= entry[0] <= message.term:
            raise MalformedMessageError("the terms of entries go back, or beyond their leader's")
        term_before = entry[0]
