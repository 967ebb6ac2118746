"""Frames of the protocol `ritornello.msgpack.v1`, to and from values.

Requests are encoded one by one and put together, so that a frame's size is known while it grows.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from ritornello.errors import ProtocolError
from ritornello.models import SessionView

SUBPROTOCOL = "ritornello.msgpack.v1"

_FIXARRAY_MAX = 15
_ARRAY16_MAX = 65_535


class Message(Struct, kw_only=True):
    """Anything that the server says: an answer has a `seq`, a push has its name."""

    seq: int = -1
    push: str = ""
    error: dict[str, Any] | None = None

    # Answers
    id: str = ""
    epoch: int = 0
    revision: int = 0
    created: bool = False
    due_ms: int = 0
    parked: bool = False
    lease_ms: int | None = None
    session: SessionView | None = None
    sessions: Raw = Raw()  # a list; of what is known to whoever asked
    results: Raw = Raw()
    held: int = 0
    now_ms: int | None = None

    # Pushes
    node: str = ""
    consumer: str = ""
    frame_bytes: int = 0
    frame_requests: int = 0
    requests_in_flight: int = 0
    unread_bytes: int = 0
    cause: str = ""
    within_ms: int = 0


class Result(Struct, kw_only=True):
    """What an operation of a transaction, or a session of a resume, was answered."""

    id: str = ""
    epoch: int = 0
    revision: int = 0
    created: bool = False
    due_ms: int = 0
    parked: bool = False
    lease_ms: int | None = None
    error: dict[str, Any] | None = None


encode = msgspec.msgpack.Encoder().encode

_decode = msgspec.msgpack.Decoder(Message | list[Message]).decode
_sessions = msgspec.msgpack.Decoder(list[SessionView]).decode
_results = msgspec.msgpack.Decoder(list[Result]).decode


def decode(frame: bytes) -> list[Message]:
    """What a frame says. Raises `ProtocolError`."""
    try:
        found = _decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a frame cannot be read: {error}") from error
    return found if isinstance(found, list) else [found]


def sessions_of(message: Message) -> list[SessionView]:
    """The sessions that were handed out. Raises `ProtocolError`."""
    try:
        return _sessions(message.sessions)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a list of sessions cannot be read: {error}") from error


def results_of(raw: Raw) -> list[Result]:
    """What became of several operations, or sessions. Raises `ProtocolError`."""
    try:
        return _results(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a list of results cannot be read: {error}") from error


def together(requests: Sequence[bytes]) -> bytes:
    """Put requests into one frame."""
    count = len(requests)
    if count == 1:
        return requests[0]
    if count <= _FIXARRAY_MAX:
        head = bytes((0x90 | count,))
    elif count <= _ARRAY16_MAX:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        raise ValueError(f"{count} requests are too many for a frame")
    return b"".join((head, *requests))
