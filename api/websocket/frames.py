"""Frames as bytes: the two subprotocols.

A frame is one request or a list of requests; the answers of a turn of the loop leave as one frame,
an answer by itself or a list. What cannot be read is told from what makes no sense: of the latter
its `seq` is known, so that it can be answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from api.answers import Answer, SessionView
from api.requests import WebSocketRequest

MSGPACK = "ritornello.msgpack.v1"
JSON = "ritornello.json.v1"


class ErrorAnswer(Struct, kw_only=True):
    """A request that was not done; `error` has code, outcome, retryable, detail and more."""

    seq: int
    error: dict[str, Any]


class Resumed(Struct, kw_only=True):
    """A session that is this consumer's again."""

    id: str
    epoch: int
    revision: int


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


class Codec:
    """One of the subprotocols."""

    def __init__(self, name: str) -> None:
        coder: Any = msgspec.msgpack if name == MSGPACK else msgspec.json
        self.name = name
        self.is_text = name == JSON
        self._decode = coder.Decoder(WebSocketRequest | list[WebSocketRequest]).decode
        self._decode_raw = coder.Decoder(list[Raw]).decode
        self._decode_one = coder.Decoder(WebSocketRequest).decode
        self._decode_any = coder.Decoder().decode
        self._encode = coder.Encoder().encode

    def decode(self, frame: bytes | str) -> Sequence[WebSocketRequest | Unfit]:
        """The requests of a frame. Raises `UnreadableError`."""
        try:
            found = self._decode(frame)
        except msgspec.ValidationError as error:
            return self._decode_each(frame, str(error))
        except _UNREADABLE as error:
            raise UnreadableError(f"a frame is no {self.name}: {error}") from error
        return found if isinstance(found, list) else (found,)

    def _decode_each(self, frame: bytes | str, problem: str) -> list[WebSocketRequest | Unfit]:
        """The requests of a frame of which one at least makes no sense."""
        try:
            try:
                raws: list[Any] = self._decode_raw(frame)
            except msgspec.ValidationError:
                return [Unfit(self._seq(frame), problem)]
            return [self._decode_raw_one(raw) for raw in raws]
        except _UNREADABLE as error:
            raise UnreadableError(f"a frame is no {self.name}: {error}") from error

    def _decode_raw_one(self, raw: Any) -> WebSocketRequest | Unfit:  # noqa: ANN401 - a piece of a frame
        try:
            found: WebSocketRequest = self._decode_one(raw)
        except msgspec.ValidationError as error:
            return Unfit(self._seq(raw), str(error))
        return found

    def _seq(self, one: Any) -> int:  # noqa: ANN401 - bytes, text or a piece of either
        found = self._decode_any(one)
        seq = found.get("seq") if isinstance(found, dict) else None
        return seq if type(seq) is int and 0 <= seq <= 2**53 else 0

    def encode(self, answers: Sequence[Answer | Push], frame_bytes: int) -> list[bytes]:
        """The frames of answers: one as a rule, more if they are large."""
        frame: bytes = self._encode(answers[0] if len(answers) == 1 else answers)
        if len(frame) <= frame_bytes or len(answers) == 1:
            return [frame]
        half = len(answers) // 2
        first = self.encode(answers[:half], frame_bytes)
        return first + self.encode(answers[half:], frame_bytes)


# What a decoder says of bytes that are none of its own; the last one if they are nested too deep.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

CODECS = {name: Codec(name) for name in (MSGPACK, JSON)}
