"""Calls as requests, and answers as values, for both fronts."""

from collections.abc import Iterable

from ritornello import fields as say
from ritornello import limits
from ritornello.core.core import Core
from ritornello.core.frames import Message, Result
from ritornello.core.requests import Held, Home, Request, Way, new_key, nobody
from ritornello.errors import Outcome, ProtocolError, RitornelloError, request_error
from ritornello.fields import Data, Fields, OnConflict, Seconds, Target
from ritornello.held import HeldSession
from ritornello.models import Created, SessionView, Stored, Trace


class Calls:
    """Makes the requests of one client."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def timeout_s(self, timeout: Seconds | None) -> float:
        """How long a call may take."""
        default_s = self._core.options.timeout_s
        return default_s if timeout is None else say.seconds_of(timeout, "timeout")

    def _deadline_s(self, timeout: Seconds | None) -> float:
        return self._core.now_s() + self.timeout_s(timeout)

    def new(
        self,
        theme: int,
        data: Data,
        *,
        key: str | None,
        priority: int | None,
        after: Seconds | None,
        on_conflict: OnConflict,
        trace: Trace | None,
    ) -> Fields:
        """Of a `new`, with the trace that is current if it has none."""
        current = self._core.options.trace
        return say.new(
            theme,
            data,
            key=key,
            priority=priority,
            after=after,
            on_conflict=on_conflict,
            trace=trace if trace is not None or current is None else current(),
        )

    def once(self, fields: Fields, key: str | None, timeout: Seconds | None) -> Request:
        """Something that has a key, so that it is done once however often it is sent.

        A key that the caller gave is remembered as long as the cluster does; one of our own only as
        long as it may be sent again.
        """
        now_s, timeout_s = self._core.now_s(), self.timeout_s(timeout)
        remember_s, way = limits.REMEMBER_S, Way.AGAIN
        if key is not None:
            fields["idempotency_key"] = key
        elif self._core.options.retries:
            fields["idempotency_key"] = new_key()
            remember_s = min(timeout_s + limits.REMEMBER_SLACK_S, limits.REMEMBER_MAX_S)
            fields["remember_for"] = remember_s
            if fields["op"] == "new":
                fields["until_used"] = True
        else:
            way = Way.ONCE
        known_until_s = now_s + remember_s - limits.LATE_S
        return Request(fields, now_s + timeout_s, nobody, way=way, known_until_s=known_until_s)

    def acquire(
        self,
        themes: int | Iterable[int],
        count: int,
        wait: Seconds,
        timeout: Seconds | None,
    ) -> Request:
        wait_s = say.seconds_of(wait, "wait")
        now_s = self._core.now_s()
        timeout_s = wait_s + limits.WAIT_SLACK_S if timeout is None else self.timeout_s(timeout)
        fields = {"op": "acquire", "themes": say.themes_of(themes), "count": say.count_of(count)}
        until_s = now_s + wait_s if wait_s else 0.0
        return Request(fields, now_s + timeout_s, nobody, gives=True, until_s=until_s)

    def take(self, target: Target, timeout: Seconds | None) -> Request:
        fields = {"op": "take", **say.target_of(target)}
        return Request(fields, self._deadline_s(timeout), nobody, gives=True)

    def resume(self, id: str, epoch: int, timeout: Seconds | None) -> Request:
        fields = {"op": "resume", "sessions": [{"id": id, "epoch": epoch}]}
        return Request(fields, self._deadline_s(timeout), nobody, gives=True)

    def get(self, target: Target, *, stale: bool, timeout: Seconds | None) -> Request:
        fields: Fields = {"op": "get", **say.target_of(target)}
        if stale:
            fields["consistency"] = "stale"
        return Request(fields, self._deadline_s(timeout), nobody)

    def txn(
        self,
        operations: list[Fields],
        sessions: Iterable[HeldSession],
        key: str | None,
        timeout: Seconds | None,
    ) -> Request:
        if not operations:
            raise ValueError("a transaction has at least one operation")
        request = self.once({"op": "txn", "operations": operations}, key, timeout)
        seen: dict[Held, int] = {}
        for session in sessions:
            held = session.core_held
            seen[held] = max(seen.get(held, 0), session.seen_failures)
        request.held, request.seen_failures = tuple(seen), tuple(seen.values())
        return request


def created_of(message: Message | Result) -> Created:
    return Created(
        id=message.id, epoch=message.epoch, revision=message.revision, created=message.created
    )


def stored_of(message: Message | Result) -> Stored:
    return Stored(
        id=message.id, revision=message.revision, due_ms=message.due_ms, parked=message.parked
    )


def view_of_new(held: Held, fields: Fields) -> SessionView:
    """A session that was begun just now, as far as it is known."""
    data: bytes = fields["data"]
    return SessionView(
        id=held.id,
        theme=fields["theme"],
        key=fields.get("key"),
        phase="active",
        epoch=held.epoch,
        revision=held.revision,
        attempts=1,
        priority=fields.get("priority", 128),
        created_ms=0,
        updated_ms=0,
        due_ms=None,
        lease_ms=round(held.lease_s * 1000),
        deadline_ms=None,
        size_bytes=len(data),
        traceparent=fields.get("traceparent", ""),
        tracestate=fields.get("tracestate", ""),
        chunks=(data,) if data else (),
    )


def resumed(request: Request) -> Held:
    """The session that was resumed. Raises `RequestError`."""
    for one in request.results:
        if one.error is not None:
            raise request_error(one.error)
    (found,) = request.given
    return found[0]


def session_of(message: Message) -> SessionView:
    """The session that was read. Raises `ProtocolError`."""
    if message.session is None:
        raise ProtocolError("an answer to `get` has a session")
    return message.session


class Operations:
    """The operations of a transaction, while they are being said."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._fields: list[Fields] = []
        self._sessions: list[HeldSession] = []
        self.results: tuple[Created | Stored | int, ...] = ()
        self._is_committed = False

    def _commit_once(self) -> None:
        if self._is_committed:
            raise RuntimeError("a transaction is committed once: begin another one")
        self._is_committed = True

    @property
    def home(self) -> Home | None:
        """Where its sessions are held; ValueError if that is not one place. Not for users."""
        homes = {one.core_held.home for one in self._sessions}
        if len(homes) > 1:
            raise ValueError("the sessions of a transaction are held by one client, or one worker")
        return homes.pop() if homes else None

    def new(
        self,
        theme: int,
        data: Data = b"",
        *,
        after: Seconds = 0,
        key: str | None = None,
        priority: int | None = None,
        on_conflict: OnConflict = "reject",
        trace: Trace | None = None,
    ) -> None:
        """Begin a session that is stored, due after so many seconds."""
        self._fields.append(
            self._calls.new(
                theme,
                data,
                key=key,
                priority=priority,
                after=after,
                on_conflict=on_conflict,
                trace=trace,
            )
        )

    def append(self, session: HeldSession | Target, data: Data) -> None:
        """Add a chunk."""
        self._add("append", session, {"data": say.data_of(data)})

    def replace(self, session: HeldSession | Target, data: Data) -> None:
        """Put one chunk in place of all."""
        self._add("replace", session, {"data": say.data_of(data)})

    def touch(self, session: HeldSession) -> None:
        """Say that there is progress."""
        self._add("touch", session, {})

    def remove(self, session: HeldSession | Target) -> None:
        """End it: the work is done."""
        self._add("remove", session, {})

    def store(
        self, session: HeldSession | Target, after: Seconds | None = None, *, reason: str = ""
    ) -> None:
        """Let it come back."""
        self._add("store", session, say.store({}, after, "requested", reason))

    def park(self, session: HeldSession, reason: str = "") -> None:
        """Set it aside."""
        self._add("park", session, {"reason": say.reason_of(reason)})

    def unpark(self, target: Target) -> None:
        """Make a parked session due now."""
        self._add("unpark", target, {})

    def _add(self, op: str, session: HeldSession | Target, fields: Fields) -> None:
        if isinstance(session, HeldSession):
            self._sessions.append(session)
            shown = {"id": session.id, "epoch": session.epoch}
        else:
            shown = say.target_of(session)
        self._fields.append({"op": op, **shown, **fields})

    def failed(self, request: Request, error: RitornelloError) -> None:
        """Take note that it was not done, or nobody knows. Not for users."""
        self._is_committed = error.outcome is Outcome.UNKNOWN
        for session in self._sessions:
            session.catch_up(request)

    def answered(self, results: list[Result]) -> tuple[Created | Stored | int, ...]:
        """Take what each was answered: created, stored, or a revision. Not for users."""
        self.results = tuple(map(_result, self._fields, results))
        for session in dict.fromkeys(self._sessions):
            session.keep_up(self._fields)
        return self.results


def _result(fields: Fields, result: Result) -> Created | Stored | int:
    match fields["op"]:
        case "new":
            return created_of(result)
        case "store" | "unpark":
            return stored_of(result)
        case _:
            return result.revision
