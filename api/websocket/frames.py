"""Frames as bytes: the two subprotocols.

A frame is one request or a list of requests; the answers of a turn of the loop leave as one frame,
an answer by itself or a list. What cannot be read is told from what makes no sense: of the latter
its `seq` is known, so that it can be answered.

Nonsense is cheap to send and dear to answer. So the requests of a frame that has any are counted
before anything is made of them, and of one that makes no sense only its `seq` is decoded.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from api.answers import Answer, SessionView
from api.requests import WebSocketRequest

MSGPACK = "ritornello.msgpack.v1"
JSON = "ritornello.json.v1"

FRAME_REQUESTS_MAX = 4096


class ErrorAnswer(Struct, kw_only=True):
    """A request that was not done; `error` has code, outcome, retryable, detail and more."""

    seq: int
    error: dict[str, Any]


class Resumed(Struct, kw_only=True):
    """A session that is this consumer's again."""

    id: str
    epoch: int
    revision: int
    lease_ms: int


class NotResumed(Struct, kw_only=True):
    """A session that is not; `error` says why."""

    id: str
    error: dict[str, Any]


class ResumedAnswer(Struct, kw_only=True):
    """Of Resume: what became of each session."""

    seq: int
    sessions: list[Any]  # Resumed or NotResumed


class Hello(Struct, kw_only=True):
    """Pushed first: where the consumer is, and what may be sent."""

    push: Literal["hello"] = "hello"
    node: str
    consumer: str
    frame_bytes: int  # the largest frame that is taken
    frame_requests: int  # the most requests in one
    requests_in_flight: int  # how many may be without an answer before nothing more is read
    unread_bytes: int  # of sessions; while more waits for the consumer to read, none is read for it


class SessionPush(Struct, kw_only=True):
    """Pushed for a unit of credit: a session that was handed out to this consumer."""

    push: Literal["session"] = "session"
    session: SessionView


class LeaseLostPush(Struct, kw_only=True):
    """Pushed when a session is not this consumer's any more, though it did not end it."""

    push: Literal["lease_lost"] = "lease_lost"
    id: str
    epoch: int
    cause: str


class DrainingPush(Struct, kw_only=True):
    """Pushed when the node is about to stop: go elsewhere, and resume there."""

    push: Literal["draining"] = "draining"
    within_ms: int


Push = Hello | SessionPush | LeaseLostPush | DrainingPush


@dataclass(frozen=True, slots=True)
class Unfit:
    """A request that makes no sense."""

    seq: int
    problem: str


def frame_head(opcode: int, size_bytes: int) -> bytes:
    """What stands before the payload of a whole frame from a server (RFC 6455, 5.2)."""
    if size_bytes < 126:  # noqa: PLR2004 - up to here the length itself, above how it is written
        return bytes((128 | opcode, size_bytes))
    if size_bytes < 65_536:  # noqa: PLR2004
        return bytes((128 | opcode, 126)) + size_bytes.to_bytes(2, "big")
    return bytes((128 | opcode, 127)) + size_bytes.to_bytes(8, "big")


class UnreadableError(Exception):
    """A frame that is none of this subprotocol."""


class CrowdedError(Exception):
    """A frame with more requests than one may have."""

    def __init__(self) -> None:
        super().__init__(f"a frame has more than {FRAME_REQUESTS_MAX} requests: send several")


class _Numbered(Struct):
    """As much of a request as is needed to answer it."""

    seq: Annotated[int, Meta(ge=0, le=2**53)] = 0


# A list of which nothing is decoded, and beyond its bound nothing is made: msgspec passes over what
# an array has more than the structure has fields. The last field is there if there are too many.
_Pieces = msgspec.defstruct(
    "_Pieces",
    [(f"piece_{place}", Raw, None) for place in range(FRAME_REQUESTS_MAX + 1)],
    array_like=True,
)


class Codec:
    """One of the subprotocols."""

    def __init__(self, name: str) -> None:
        coder: Any = msgspec.msgpack if name == MSGPACK else msgspec.json
        self.name = name
        self.is_text = name == JSON
        self._decode = coder.Decoder(WebSocketRequest | list[WebSocketRequest]).decode
        self._decode_pieces = coder.Decoder(_Pieces).decode
        self._decode_one = coder.Decoder(WebSocketRequest).decode
        self._decode_numbered = coder.Decoder(_Numbered).decode
        self._encode = coder.Encoder().encode

    def decode(self, frame: bytes | str) -> Iterable[WebSocketRequest | Unfit]:
        """The requests of a frame. Raises `UnreadableError` and `CrowdedError`.

        If one of them makes no sense they are decoded as they are taken, so that whoever takes them
        can let others have their turn. That may raise `UnreadableError` as well.
        """
        try:
            found = self._decode(frame)
        except msgspec.ValidationError as error:
            pieces = self._pieces(frame)
            if pieces is None:
                return (self._unfit(frame, error),)
            return map(self._decode_piece, pieces)
        except _UNREADABLE as error:
            raise self._unreadable(error) from error
        if not isinstance(found, list):
            return (found,)
        if len(found) > FRAME_REQUESTS_MAX:
            raise CrowdedError
        return found

    def _pieces(self, frame: bytes | str) -> Iterator[Any] | None:
        """The pieces of a list, each to be decoded alone; None if the frame is no list."""
        try:
            pieces = msgspec.structs.astuple(self._decode_pieces(frame))
        except msgspec.ValidationError:
            return None
        except _UNREADABLE as error:
            raise self._unreadable(error) from error
        if pieces[-1] is not None:
            raise CrowdedError
        return takewhile(_is_there, pieces)

    def _decode_piece(self, piece: Any) -> WebSocketRequest | Unfit:  # noqa: ANN401 - bytes or text
        try:
            found: WebSocketRequest = self._decode_one(piece)
        except msgspec.ValidationError as error:
            return self._unfit(piece, error)
        except _UNREADABLE as error:
            raise self._unreadable(error) from error
        return found

    def _unfit(self, one: Any, problem: Exception) -> Unfit:  # noqa: ANN401 - a frame, or a piece of one
        try:
            seq: int = self._decode_numbered(one).seq
        except msgspec.ValidationError:
            seq = 0
        except _UNREADABLE as error:
            raise self._unreadable(error) from error
        return Unfit(seq, str(problem))

    def _unreadable(self, error: Exception) -> UnreadableError:
        return UnreadableError(f"a frame is no {self.name}: {error}")

    def encode(self, answers: Sequence[Answer | Push], frame_bytes: int) -> list[bytes]:
        """The frames of answers: one as a rule, more if they are large."""
        frame: bytes = self._encode(answers[0] if len(answers) == 1 else answers)
        if len(frame) <= frame_bytes or len(answers) == 1:
            return [frame]
        half = len(answers) // 2
        first = self.encode(answers[:half], frame_bytes)
        return first + self.encode(answers[half:], frame_bytes)


def _is_there(piece: object) -> bool:
    return piece is not None


# What a decoder says of bytes that are none of its own; the last one if they are nested too deep.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

CODECS = {name: Codec(name) for name in (MSGPACK, JSON)}
