"""What clients ask, and the operations that it becomes. One declaration for all ways in.

A request over a WebSocket, an operation of a transaction and the body of an HTTP request are the
same structures, in JSON or msgpack; the OpenAPI document is made of them. Data is bytes: in JSON
base64 (RFC 4648, 4), or plain text as `text` in place of `data`. Times are in seconds, fractions
allowed. A session is named by its `id`, or by `theme` and `key`.

Nothing here knows who asks: the consumer's name is added by whoever does.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from api import tracecontext
from api.identifiers import (
    SESSION_TEXT_MAX,
    SESSION_TEXT_PATTERN,
    key_bytes,
    session_number,
)
from api.problems import bad_request
from state import Cause, OnConflict, Operation, encode_fields
from state import operations as op
from state.codec import plain
from state.limits import DAY_MS, PRIORITY_DEFAULT, PRIORITY_MAX, THEME_MAX
from state.operations import Target

Fields = tuple[Any, ...]

IDEMPOTENCY_S = DAY_MS / 1000  # how long a key is remembered, unless the request says otherwise

Theme = Annotated[int, Meta(ge=0, le=THEME_MAX)]
# Its pattern is for the document: to look at it here takes longer than all else of a request.
SessionId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=SESSION_TEXT_MAX,
        extra_json_schema={"pattern": SESSION_TEXT_PATTERN},
    ),
]
Key = Annotated[str, Meta(min_length=1, max_length=4096)]
Epoch = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Revision = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Priority = Annotated[int, Meta(ge=0, le=PRIORITY_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
RememberSeconds = Annotated[float, Meta(gt=0, le=7 * DAY_MS / 1000)]
Count = Annotated[int, Meta(ge=1, le=16_384)]
Reason = Annotated[str, Meta(max_length=4096)]
# Looked at by `tracecontext`: Python's `$` lets a line end.
TraceParent = Annotated[str, Meta(extra_json_schema={"pattern": tracecontext.PARENT_PATTERN})]
TraceState = Annotated[
    str,
    Meta(
        max_length=tracecontext.STATE_CHARS_MAX,
        extra_json_schema={"pattern": tracecontext.STATE_PATTERN},
    ),
]
IdempotencyKey = Annotated[str, Meta(min_length=1, max_length=4096)]

_CAUSES = {"requested": Cause.REQUESTED, "failed": Cause.FAILED, "shutdown": Cause.SHUTDOWN}
_CONFLICTS = {one.name.lower(): one for one in OnConflict}

CauseName = Literal["requested", "failed", "shutdown"]
ConflictName = Literal["reject", "return_existing", "bring_forward"]
PhaseName = Literal["stored", "ready", "active", "parked"]
PageSize = Annotated[int, Meta(ge=1, le=1000)]
ConsumerName = Annotated[str, Meta(pattern="^[A-Za-z0-9._-]{1,64}$")]
TimeoutSeconds = Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$")]
IdempotencyHeader = Annotated[str, Meta(min_length=1, max_length=256)]
Consistency = Literal["linearizable", "stale"]


class Request(
    Struct,
    tag_field="op",
    forbid_unknown_fields=True,
    omit_defaults=True,
    kw_only=True,
    gc=False,
):
    """Base of what a consumer asks. What it does not know is refused, and not passed over."""

    # Whether it ends a session, or is a sign of life: admitted when others are refused.
    is_ending: ClassVar[bool] = False
    is_verdict: ClassVar[bool] = False  # whether an operator ends by it

    seq: Annotated[int, Meta(ge=0, le=2**53)] = 0
    idempotency_key: IdempotencyKey | None = None
    remember_for: RememberSeconds = IDEMPOTENCY_S  # how long the key is known

    becomes: ClassVar[type[Operation]]

    def fields(self, consumer: bytes | None) -> Fields:
        """The fields of the operation that it becomes. Raises `Refusal`."""
        raise NotImplementedError

    def operation(self, consumer: bytes | None) -> Operation:
        """What the cluster is to do. Raises `Refusal`."""
        return self.becomes(*self.fields(consumer))

    def encoded(self, consumer: bytes | None) -> bytes:
        """The operation's bytes; once for all if there is an idempotency key."""
        return self._encoded(self.fields(consumer))

    def _encoded(self, fields: Fields) -> bytes:
        if self.idempotency_key is None:
            return encode_fields(self.becomes, fields)
        # Done once for all times that it is asked for with its key.
        remember_ms = max(_ms(self.remember_for) or 0, 1)
        key, until_used = key_of(self.idempotency_key), int(getattr(self, "until_used", False))
        inner = (self.becomes.code, *fields)
        return encode_fields(op.Idempotent, (key, remember_ms, inner, until_used))


class Targeted(Request, kw_only=True):
    """Base of what is about one session."""

    id: SessionId | None = None
    theme: Theme | None = None
    key: Key | None = None

    def fields_on(self, target: Target, consumer: bytes | None) -> Fields:
        """As `fields`, on a session that was named elsewhere."""
        raise NotImplementedError

    def fields(self, consumer: bytes | None) -> Fields:
        return self.fields_on(self.target, consumer)

    def encoded_on(self, target: Target, consumer: bytes | None) -> bytes:
        """As `encoded`, on a session that was named elsewhere."""
        return self._encoded(self.fields_on(target, consumer))

    @property
    def target(self) -> Target:
        """The session. Raises `Refusal`."""
        if self.id is not None:
            if self.theme is not None or self.key is not None:
                raise bad_request("name the session by `id`, or by `theme` and `key`, not by both")
            return session_of(self.id)
        if self.theme is None or self.key is None:
            raise bad_request("name the session by `id`, or by `theme` and `key`")
        return self.theme, key_of(self.key)


class New(Request, tag="new", kw_only=True):
    """Begin a session: active, or stored if `repeat_after` is given."""

    becomes: ClassVar[type[Operation]] = op.New
    theme: Theme
    key: Key | None = None
    data: bytes = b""
    text: str | None = None
    priority: Priority = PRIORITY_DEFAULT
    repeat_after: Seconds | None = None
    on_conflict: ConflictName = "reject"
    until_used: bool = False  # it has not been sent before: see `state.operations.Idempotent`
    traceparent: TraceParent | None = None  # W3C Trace Context; the session keeps it
    tracestate: TraceState | None = None

    def fields(self, consumer: bytes | None) -> Fields:
        if self.until_used and self.idempotency_key is None:
            raise bad_request("until_used goes with an idempotency_key")
        return (
            self.theme,
            None if self.key is None else key_of(self.key),
            _chunk(self.data, self.text),
            self.priority,
            _ms(self.repeat_after),
            _CONFLICTS[self.on_conflict],
            consumer,
            b"" if self.traceparent is None else _trace(self.traceparent, self.tracestate or ""),
        )


class Append(Targeted, tag="append", kw_only=True):
    """Add a chunk."""

    becomes: ClassVar[type[Operation]] = op.Append
    epoch: Epoch | None = None
    data: bytes = b""
    text: str | None = None
    if_revision: Revision | None = None

    def fields_on(self, target: Target, _consumer: bytes | None) -> Fields:
        chunk = _chunk(self.data, self.text)
        return target, self.epoch, chunk, self.if_revision


class Replace(Targeted, tag="replace", kw_only=True):
    """Put one chunk in place of all."""

    becomes: ClassVar[type[Operation]] = op.Replace
    epoch: Epoch | None = None
    data: bytes = b""
    text: str | None = None
    if_revision: Revision | None = None

    def fields_on(self, target: Target, _consumer: bytes | None) -> Fields:
        chunk = _chunk(self.data, self.text)
        return target, self.epoch, chunk, self.if_revision


class Remove(Targeted, tag="remove", kw_only=True):
    """End a session."""

    becomes: ClassVar[type[Operation]] = op.Remove
    is_ending: ClassVar[bool] = True
    is_verdict: ClassVar[bool] = True
    epoch: Epoch | None = None
    if_revision: Revision | None = None

    def fields_on(self, target: Target, _consumer: bytes | None) -> Fields:
        return target, self.epoch, self.if_revision


class Store(Targeted, tag="store", kw_only=True):
    """Let a session come back after a while."""

    becomes: ClassVar[type[Operation]] = op.Store
    is_ending: ClassVar[bool] = True
    is_verdict: ClassVar[bool] = True
    epoch: Epoch | None = None
    repeat_after: Seconds | None = None
    cause: CauseName = "requested"
    reason: Reason = ""
    if_revision: Revision | None = None

    def fields_on(self, target: Target, _consumer: bytes | None) -> Fields:
        return (
            target,
            self.epoch,
            _ms(self.repeat_after),
            _CAUSES[self.cause],
            self.reason,
            self.if_revision,
        )


class Touch(Targeted, tag="touch", kw_only=True):
    """A sign of life, and of progress; the session is its consumer's from then on."""

    becomes: ClassVar[type[Operation]] = op.Touch
    is_ending: ClassVar[bool] = True
    epoch: Epoch

    def fields_on(self, target: Target, consumer: bytes | None) -> Fields:
        return target, self.epoch, consumer


class Park(Targeted, tag="park", kw_only=True):
    """Set an active session aside."""

    becomes: ClassVar[type[Operation]] = op.Park
    is_ending: ClassVar[bool] = True
    is_verdict: ClassVar[bool] = True
    epoch: Epoch
    reason: Reason = ""
    if_revision: Revision | None = None

    def fields_on(self, target: Target, _consumer: bytes | None) -> Fields:
        return target, self.epoch, self.reason, self.if_revision


class Unpark(Targeted, tag="unpark", kw_only=True):
    """Make a parked session due now."""

    becomes: ClassVar[type[Operation]] = op.Unpark
    if_revision: Revision | None = None

    def fields_on(self, target: Target, _consumer: bytes | None) -> Fields:
        return target, self.if_revision


class Take(Targeted, tag="take", kw_only=True):
    """Operate one stored session, due or not."""

    becomes: ClassVar[type[Operation]] = op.AcquireSession
    if_revision: Revision | None = None

    def fields_on(self, target: Target, consumer: bytes | None) -> Fields:
        return target, consumer, self.if_revision


class Acquire(Request, tag="acquire", kw_only=True):
    """Operate up to `count` sessions that are due, waiting up to `wait` for the first one."""

    becomes: ClassVar[type[Operation]] = op.Acquire
    themes: Annotated[list[Theme], Meta(min_length=1, max_length=4096)]
    count: Count = 1
    wait: Seconds = 0.0

    def fields(self, consumer: bytes | None) -> Fields:
        return tuple(self.themes), self.count, consumer


TxnRequest = New | Append | Replace | Remove | Store | Touch | Park | Unpark | Take


class Txn(Request, tag="txn", kw_only=True):
    """Do all of these, or none."""

    becomes: ClassVar[type[Operation]] = op.Txn
    operations: Annotated[list[TxnRequest], Meta(min_length=1, max_length=4096)]

    @property
    def shown(self) -> list[tuple[Target, int | None, bool]]:
        """Of each session that is named: which, its epoch, and whether that is a verdict.

        Raises `Refusal`.
        """
        named = [one for one in self.operations if isinstance(one, Targeted)]
        return [(one.target, getattr(one, "epoch", None), one.is_verdict) for one in named]

    def fields(self, consumer: bytes | None) -> Fields:
        for position, one in enumerate(self.operations):
            if one.idempotency_key is not None or one.seq:
                raise bad_request(
                    f"operation {position} has a seq or an idempotency key of its own; "
                    "give them to the transaction"
                )
        return (tuple(one.operation(consumer) for one in self.operations),)

    def _encoded(self, fields: Fields) -> bytes:
        return super()._encoded((tuple(map(plain, fields[0])),))  # others are in it


class Get(Targeted, tag="get", kw_only=True):
    """Read a session."""

    consistency: Consistency = "linearizable"


class Held(Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """A session that a consumer operated over a connection that is no more."""

    id: SessionId
    epoch: Epoch


class Resume(Request, tag="resume", kw_only=True):
    """Go on with sessions over this connection."""

    sessions: Annotated[list[Held], Meta(min_length=1, max_length=4096)]


class Credit(Request, tag="credit", kw_only=True):
    """Let the server push up to `count` sessions more, of these themes from now on."""

    themes: Annotated[list[Theme], Meta(max_length=4096)]
    count: Annotated[int, Meta(ge=0, le=16_384)] = 1


class Heartbeat(Request, tag="heartbeat", kw_only=True):
    """A sign of life, for all sessions of this connection."""


WebSocketRequest = TxnRequest | Acquire | Txn | Get | Resume | Credit | Heartbeat


def session_of(text: str) -> int:
    """The session that a client names. Raises `Refusal`."""
    number = session_number(text)
    if number is None:
        raise bad_request(f"{text!a} is no session's id")
    return number


def key_of(text: str) -> bytes:
    """A key as the cluster keeps it. Raises `Refusal` for what is none."""
    if not text:
        raise bad_request("a key has at least one character")
    try:
        return key_bytes(text)
    except ValueError as error:
        raise bad_request("a key has half of a surrogate pair") from error


def seconds_to_ms(seconds: float) -> int:
    """Milliseconds, the nearest whole number. Raises `Refusal` for what is no number."""
    if not math.isfinite(seconds):
        raise bad_request(f"{seconds} is no time in seconds")
    return round(seconds * 1000)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else seconds_to_ms(seconds)


def _trace(traceparent: str, tracestate: str) -> bytes:
    if not tracecontext.is_parent(traceparent):
        raise bad_request("`traceparent` is not as W3C Trace Context has it")
    if not tracecontext.is_state(tracestate):
        raise bad_request("`tracestate` has other characters than those of ASCII that are printed")
    return tracecontext.pack(traceparent, tracestate)


def _chunk(data: bytes, text: str | None) -> bytes:
    if text is None:
        return data
    if data:
        raise bad_request("give the data as `data` or as `text`, not as both")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise bad_request("`text` has half of a surrogate pair") from error
