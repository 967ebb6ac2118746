"""What clients are answered. One declaration for all ways out, in JSON or msgpack.

`seq` is that of a request over a WebSocket, and absent elsewhere. What an operation answered is one
of the first structures; a session as it is read is `SessionView`. Times are in milliseconds since
1970, as the cluster's clock tells them.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from api import tracecontext
from api.identifiers import key_text, session_text
from state import Acquired, Cause, Created, Phase, Result, Session, Stored

Seq = int | UnsetType


class CreatedAnswer(Struct, kw_only=True):
    """Of New. `epoch` is 0 if the caller does not operate the session, and it has a lease if so."""

    seq: Seq = UNSET
    id: str
    epoch: int
    revision: int
    created: bool
    lease_ms: int | UnsetType = UNSET


class RevisionAnswer(Struct, kw_only=True):
    """Of what changed a session, or was a sign of life of it."""

    seq: Seq = UNSET
    revision: int


class StoredAnswer(Struct, kw_only=True):
    """Of Store and Unpark: stored until `due_ms`, or parked."""

    seq: Seq = UNSET
    id: str
    revision: int
    due_ms: int
    parked: bool


class DoneAnswer(Struct, kw_only=True):
    """Of what has nothing more to say."""

    seq: Seq = UNSET


class HeldAnswer(Struct, kw_only=True):
    """Of Heartbeat: how many sessions the consumer holds, and the cluster's clock."""

    seq: Seq = UNSET
    held: int
    now_ms: int


class AcquiredAnswer(Struct, kw_only=True):
    """Of what handed a session out, where its data has no place: in a transaction."""

    seq: Seq = UNSET
    id: str
    epoch: int
    revision: int
    lease_ms: int | UnsetType = UNSET


class CauseView(Struct, kw_only=True):
    """Why a session stopped being active, `times` times in a row."""

    cause: str
    reason: str
    times: int
    first_ms: int
    last_ms: int


class SessionView(Struct, kw_only=True):
    """A session. `chunks` is absent in lists."""

    id: str
    theme: int
    key: str | None
    phase: Literal["stored", "ready", "active", "parked"]
    epoch: int
    revision: int
    attempts: int
    priority: int
    created_ms: int
    updated_ms: int
    due_ms: int | None  # of what is stored or ready
    lease_ms: int | None  # of what is active
    deadline_ms: int | None  # of what is active: when it is taken away without a sign of life
    size_bytes: int  # of all chunks together
    traceparent: str | UnsetType = UNSET  # of whoever began it, if that is known
    tracestate: str | UnsetType = UNSET
    history: list[CauseView]
    chunks: list[bytes] | UnsetType = UNSET


class SessionAnswer(Struct, kw_only=True):
    """One session, read or handed out."""

    seq: Seq = UNSET
    session: SessionView


class SessionsAnswer(Struct, kw_only=True):
    """Sessions that were handed out; none if the wait ended first."""

    seq: Seq = UNSET
    sessions: list[SessionView]


# Without tags, since what answers an operation is known to whoever asked for it.
_RESULTS = ("CreatedAnswer", "RevisionAnswer", "StoredAnswer", "AcquiredAnswer")
_ONE_OF = [{"$ref": f"#/components/schemas/{name}"} for name in _RESULTS]
OneResult = Annotated[Any, Meta(extra_json_schema={"anyOf": _ONE_OF})]


class TxnAnswer(Struct, kw_only=True):
    """Of a transaction: what each of its operations answered, in order."""

    seq: Seq = UNSET
    results: list[OneResult]


Answer = Any  # one of the above

_PHASES: dict[Phase, Literal["stored", "ready", "active", "parked"]] = {
    Phase.STORED: "stored",
    Phase.READY: "ready",
    Phase.ACTIVE: "active",
    Phase.PARKED: "parked",
}
_CAUSES = {int(cause): cause.name.lower() for cause in Cause}


def answer_of(result: Result, seq: Seq = UNSET) -> Answer:
    """What a client is told of one operation that was done; of several see `Gateway.answer`."""
    return _BY_TYPE[type(result)](result, seq)


def _revision(result: Any, seq: Seq) -> Answer:  # noqa: ANN401 - by its type in the table
    return RevisionAnswer(seq=seq, revision=result)


def _created(result: Created, seq: Seq) -> Answer:
    return CreatedAnswer(
        seq=seq,
        id=session_text(result.session_id),
        epoch=result.epoch,
        revision=result.revision,
        created=result.created,
    )


def _stored(result: Stored, seq: Seq) -> Answer:
    return StoredAnswer(
        seq=seq,
        id=session_text(result.session_id),
        revision=result.revision,
        due_ms=result.due_ms,
        parked=result.parked,
    )


def _acquired(result: Acquired, seq: Seq) -> Answer:
    return AcquiredAnswer(
        seq=seq,
        id=session_text(result.session_id),
        epoch=result.epoch,
        revision=result.revision,
    )


_BY_TYPE: dict[type, Callable[[Any, Seq], Answer]] = {
    int: _revision,
    Created: _created,
    Stored: _stored,
    Acquired: _acquired,
    type(None): lambda _, seq: DoneAnswer(seq=seq),
}


def cause_name(cause: int) -> str:
    """A cause as clients see it."""
    return _CAUSES[cause]


def view_of(session: Session, *, with_chunks: bool = True) -> SessionView:
    """A session as it is now."""
    phase = session.phase
    is_active = phase is Phase.ACTIVE
    traceparent, tracestate = tracecontext.unpack(session.trace)
    return SessionView(
        id=session_text(session.session_id),
        theme=session.theme.theme_id,
        key=None if session.key is None else key_text(session.key),
        phase=_PHASES[phase],
        epoch=session.epoch,
        revision=session.revision,
        attempts=session.attempts,
        priority=session.priority,
        created_ms=session.created_ms,
        updated_ms=session.updated_ms,
        due_ms=session.due_ms if phase in _WAITING else None,
        lease_ms=session.lease_ms if is_active else None,
        deadline_ms=session.deadline_ms if is_active else None,
        size_bytes=session.data_bytes,
        traceparent=traceparent or UNSET,
        tracestate=tracestate or UNSET,
        history=[
            CauseView(
                cause=cause_name(one.cause),
                reason=one.reason,
                times=one.times,
                first_ms=one.first_ms,
                last_ms=one.last_ms,
            )
            for one in session.history
        ],
        chunks=list(session.chunks) if with_chunks else UNSET,
    )


_WAITING = frozenset((Phase.STORED, Phase.READY))
