"""A deliberately dumb state machine, to compare the clever one with.

Dicts, lists and linear scans: what is ready is found by sorting all sessions, what is stale by
looking at each, and a transaction copies everything and puts the copy back when it fails. It knows
no bytes: it takes operations, and says what they should answer and leave behind.

Only what others test is borrowed from the machine: the values that go in and come out, and
`Policy.delay_ms`. The texts of `Malformed` are nobody's contract, so here all are `MALFORMED`.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from state.codec import plain
from state.errors import (
    Failure,
    IdempotencyMismatch,
    IncarnationSuperseded,
    KeyConflict,
    LeaseLost,
    LimitExceeded,
    Malformed,
    NotStale,
    OutOfRange,
    RevisionMismatch,
    SequenceExpired,
    SessionNotFound,
    StaleTerm,
    TxnAborted,
    WrongPhase,
)
from state.events import EventKind
from state.limits import (
    CHUNK_OVERHEAD_BYTES,
    HISTORY_OVERHEAD_BYTES,
    LIMIT_RANGES,
    PRIORITY_MAX,
    PROPOSER_CHARS_MAX,
    RECEIPT_OVERHEAD_BYTES,
    SEQUENCE_MAX,
    SESSION_OVERHEAD_BYTES,
    THEME_MAX,
    TIME_MAX_MS,
    TRACE_BYTES_MAX,
    Limits,
    Range,
)
from state.operations import (
    Acquire,
    AcquireSession,
    Append,
    Barrier,
    Cause,
    ForgetProposer,
    Heartbeat,
    Idempotent,
    New,
    OnConflict,
    Operation,
    Park,
    Pause,
    Release,
    Remove,
    Replace,
    Resume,
    SetLimits,
    SetPolicy,
    Store,
    Target,
    Tick,
    Touch,
    Txn,
    Unpark,
)
from state.policy import POLICY_RANGES, Policy
from state.records import HistoryEntry
from state.results import Acquired, Created, Done, Result, Stored
from state.transitions import Act, Phase

MALFORMED = Malformed("")
LAST_ID = 2**64  # above every session's id

IN_TXN = (
    New,
    Append,
    Replace,
    Remove,
    Store,
    Acquire,
    AcquireSession,
    Touch,
    Park,
    Unpark,
)
IN_IDEMPOTENT = (*IN_TXN, SetPolicy, Pause, Resume, Txn)

ModelEvent = tuple[EventKind, int, int, bytes | None, int]
Move = tuple[Phase, Act, Phase]


class Fail(Exception):
    """An operation is refused."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass(frozen=True)
class Raw:
    """Bytes in the place of an operation that no correct sender makes, and what they answer."""

    encoded: bytes
    failure: Failure


Asked = Operation | Raw


@dataclass
class ModelSession:
    session_id: int
    theme: int
    key: bytes | None
    chunks: list[bytes]
    priority: int
    now_ms: int
    # READY is not kept: it is being stored, and Ticks having come to it.
    phase: Phase = Phase.STORED
    epoch: int = 0
    revision: int = 1
    attempts: int = 0
    created_ms: int = field(init=False)
    updated_ms: int = field(init=False)
    touched_ms: int = field(init=False)
    due_ms: int = field(init=False)
    history: list[HistoryEntry] = field(default_factory=list)
    consumer: bytes | None = None
    trace: bytes = b""
    lease_ms: int = 0
    progress_ms: int = 0

    def __post_init__(self) -> None:
        self.created_ms = self.updated_ms = self.touched_ms = self.due_ms = self.now_ms

    @property
    def data_bytes(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)

    @property
    def size_bytes(self) -> int:
        overhead_bytes = SESSION_OVERHEAD_BYTES + CHUNK_OVERHEAD_BYTES * len(self.chunks)
        history_bytes = sum(HISTORY_OVERHEAD_BYTES + len(one.reason) for one in self.history)
        named_bytes = len(self.key or b"") + len(self.trace)
        return overhead_bytes + history_bytes + self.data_bytes + named_bytes


@dataclass
class ModelTheme:
    policy: Policy = field(default_factory=Policy)
    paused: bool = False
    served: int = 0


@dataclass
class ModelState:
    """All that a transaction may change."""

    sessions: dict[int, ModelSession] = field(default_factory=dict)
    themes: dict[int, ModelTheme] = field(default_factory=dict)
    consumers: dict[bytes, int] = field(default_factory=dict)  # when it was seen
    last_session_id: int = 0
    key_epoch: int = 0  # the highest of the sessions with a key that are gone
    turn: int = 0
    # Of the batch at hand:
    handed_out: int = 0
    events: list[ModelEvent] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


@dataclass
class ModelReceipt:
    operation: Any
    expires_ms: int
    result: Result
    unused_id: int  # the session whose first use ends it


@dataclass
class ModelWindow:
    incarnation: int
    floor: int = -1
    results: dict[int, tuple[Result, ...]] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """What the machine should make of a batch."""

    results: tuple[Result, ...]
    failure: Failure | None = None
    duplicate: bool = False
    events: tuple[ModelEvent, ...] = ()
    moves: tuple[Move, ...] = ()


class Model:
    """What the machine should do, done slowly."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.state = ModelState()
        self.now_ms = 0
        self.term = 0
        self.horizon = (0, LAST_ID)  # (due_ms, id): Ticks have come to what is not above it
        self.windows: dict[str, ModelWindow] = {}
        self.receipts: dict[bytes, ModelReceipt] = {}
        self.is_in_txn = False
        # Of the batch at hand:
        self.proposer = ""
        self.batch_term = 0
        self.index = 0

    # Reading

    def phase(self, session: ModelSession) -> Phase:
        if session.phase is Phase.STORED and self.has_come_to(session):
            return Phase.READY
        return session.phase

    def has_come_to(self, session: ModelSession) -> bool:
        return (session.due_ms, session.session_id) <= self.horizon

    def deadline_ms(self, session: ModelSession) -> int:
        seen_ms = session.touched_ms
        if session.consumer is not None:
            seen_ms = max(seen_ms, self.state.consumers[session.consumer])
        deadline_ms = seen_ms + session.lease_ms
        if session.progress_ms:
            deadline_ms = min(deadline_ms, session.touched_ms + session.progress_ms)
        return deadline_ms

    def of_theme(self, theme_id: int, *phases: Phase) -> list[ModelSession]:
        return [
            one
            for one in self.state.sessions.values()
            if one.theme == theme_id and (not phases or self.phase(one) in phases)
        ]

    def ready_ids(self, theme_id: int) -> list[int]:
        ready = self.of_theme(theme_id, Phase.READY)
        ready.sort(key=lambda one: (one.priority, one.due_ms, one.session_id))
        return [one.session_id for one in ready]

    def has_room(self, theme_id: int) -> bool:
        bound = self.state.themes[theme_id].policy.max_active
        return not bound or len(self.of_theme(theme_id, Phase.ACTIVE)) < bound

    def can_serve(self, theme_id: int) -> bool:
        theme = self.state.themes.get(theme_id)
        return (
            theme is not None
            and not theme.paused
            and self.has_room(theme_id)
            and bool(self.ready_ids(theme_id))
        )

    def servable(self) -> set[int]:
        return {theme_id for theme_id in self.state.themes if self.can_serve(theme_id)}

    def stale(self) -> dict[int, int]:
        """The deadlines of all sessions whose lease has ended, by id."""
        deadlines = {
            one.session_id: self.deadline_ms(one)
            for one in self.state.sessions.values()
            if one.phase is Phase.ACTIVE
        }
        return {one: deadline for one, deadline in deadlines.items() if deadline <= self.now_ms}

    @property
    def size_bytes(self) -> int:
        sessions_bytes = sum(one.size_bytes for one in self.state.sessions.values())
        return sessions_bytes + sum(
            RECEIPT_OVERHEAD_BYTES * _weight((one.result,)) + len(key)
            for key, one in self.receipts.items()
        )

    @property
    def next_due_ms(self) -> int | None:
        sleeping = [
            one.due_ms for one in self.state.sessions.values() if self.phase(one) is Phase.STORED
        ]
        return min(sleeping, default=None)

    def find(self, target: Target) -> ModelSession | None:
        if isinstance(target, int):
            return self.state.sessions.get(target)
        for one in self.state.sessions.values():
            if (one.theme, one.key) == target:
                return one
        return None

    # Batches

    def apply(
        self,
        index: int,
        *,
        proposer: str,
        incarnation: int,
        sequence: int,
        term: int,
        operations: Sequence[Asked],
        size_bytes: int,
    ) -> Expected:
        if not proposer:
            return Expected((), MALFORMED)
        if len(proposer) > PROPOSER_CHARS_MAX:
            too_long = LimitExceeded("proposer_chars", len(proposer), PROPOSER_CHARS_MAX)
            return Expected((), too_long)
        window = self.windows.get(proposer)
        if window is not None and incarnation < window.incarnation:
            return Expected((), IncarnationSuperseded(incarnation, window.incarnation))
        if window is not None and incarnation == window.incarnation:
            if sequence in window.results:
                failure = window.failures.get(sequence)
                return Expected(window.results[sequence], failure, duplicate=True)
            if sequence <= window.floor:
                return Expected((), SequenceExpired(sequence, window.floor))
        if window is None and len(self.windows) >= self.limits.proposers:
            bound = self.limits.proposers
            return Expected((), LimitExceeded("proposers", len(self.windows) + 1, bound))
        if window is None or incarnation > window.incarnation:
            window = self.windows[proposer] = ModelWindow(incarnation)
        try:
            _keep_below("batch_bytes", size_bytes, self.limits.batch_bytes)
            _keep_below("batch_operations", len(operations), self.limits.batch_operations)
        except Fail as fail:
            window.failures[sequence] = fail.failure
            self._keep(window, sequence, ())
            return Expected((), fail.failure)
        self.proposer = proposer
        self.index = index
        self.batch_term = term
        self.state.handed_out = 0
        self.state.events = []
        self.state.moves = []
        results = tuple([self._answer(operation) for operation in operations])
        self._forget_the_idle()
        self._keep(window, sequence, results)
        return Expected(results, events=tuple(self.state.events), moves=tuple(self.state.moves))

    def _keep(self, window: ModelWindow, sequence: int, results: tuple[Result, ...]) -> None:
        window.results[sequence] = results
        while len(window.results) > self.limits.window_batches or (
            len(window.results) > 1
            and sum(map(_weight, window.results.values())) > self.limits.window_results
        ):
            window.floor = min(window.results)
            del window.results[window.floor]

    def _forget_the_idle(self) -> None:
        """At the end of a batch: themes that say nothing, and consumers that hold nothing."""
        state = self.state
        for theme_id, theme in list(state.themes.items()):
            says_nothing = theme.policy == Policy() and not theme.paused
            if says_nothing and not self.of_theme(theme_id):
                del state.themes[theme_id]
        holders = {one.consumer for one in state.sessions.values()}
        for consumer in list(state.consumers):
            if consumer not in holders:
                del state.consumers[consumer]

    def _answer(self, operation: Asked) -> Result:
        try:
            if isinstance(operation, Raw):
                return operation.failure
            return self._do(operation)
        except Fail as fail:
            return fail.failure

    def _do(self, operation: Operation) -> Result:
        handler: Callable[[Any], Result] = getattr(self, "do_" + type(operation).__name__)
        return handler(operation)

    def _do_inside(self, operation: Operation, allowed: tuple[type[Operation], ...]) -> Result:
        if not isinstance(operation, allowed):
            raise Fail(MALFORMED)
        return self._do(operation)

    def do_Txn(self, operation: Txn) -> Result:  # noqa: N802 - named after the operation
        _keep_below("txn_operations", len(operation.operations), self.limits.txn_operations)
        before = copy.deepcopy(self.state)
        results: list[Result] = []
        self.is_in_txn = True
        try:
            for one in operation.operations:
                results.append(self._do_inside(one, IN_TXN))  # noqa: PERF401 - counts them
        except Fail as fail:
            self.state = before
            raise Fail(TxnAborted(len(results), fail.failure)) from fail
        finally:
            self.is_in_txn = False
        return Done(tuple(results))

    def do_Idempotent(self, operation: Idempotent) -> Result:  # noqa: N802
        limits = self.limits
        key, after_ms = operation.key, operation.expires_after_ms
        if operation.until_used not in (0, 1):
            raise Fail(MALFORMED)
        inner = plain(_without_askers(operation.operation))
        receipt = self.receipts.get(key)
        if receipt is not None and receipt.expires_ms > self.now_ms:
            if receipt.operation != inner:
                raise Fail(IdempotencyMismatch())
            if not operation.until_used:
                receipt.unused_id = 0
            return receipt.result
        if not 0 < len(key) <= limits.receipt_bytes:
            _exceed("receipt_bytes", len(key), limits.receipt_bytes)
        if not 0 < after_ms <= limits.receipt_expires_after_ms:
            _exceed("receipt_expires_after_ms", after_ms, limits.receipt_expires_after_ms)
        is_full = receipt is None and len(self.receipts) >= limits.receipts
        if not isinstance(operation.operation, Remove | Store | Park):
            if is_full:
                _exceed("receipts", len(self.receipts) + 1, limits.receipts)
            size_bytes = self.size_bytes + RECEIPT_OVERHEAD_BYTES + len(key)
            _keep_below("state_bytes", size_bytes, limits.state_bytes)
        result = self._do_inside(operation.operation, IN_IDEMPOTENT)
        if is_full:
            # What ends a session is not refused, but neither is it remembered.
            return result
        began = operation.until_used and isinstance(result, Created) and result.epoch
        unused_id = result.session_id if began and isinstance(result, Created) else 0
        self.receipts[key] = ModelReceipt(inner, self.now_ms + after_ms, result, unused_id)
        return result

    def _use(self, session: ModelSession, epoch: int | None) -> None:
        """Forget the key of a session that is changed by whoever was given it when it began."""
        if self.is_in_txn:
            return
        for key, receipt in list(self.receipts.items()):
            began = isinstance(receipt.result, Created) and receipt.result.epoch == epoch
            if receipt.unused_id == session.session_id and began:
                del self.receipts[key]

    # Sessions

    def do_New(self, operation: New) -> Result:  # noqa: N802
        limits, state, data = self.limits, self.state, operation.data
        if not 0 <= operation.priority <= PRIORITY_MAX:
            raise Fail(MALFORMED)
        if operation.on_conflict not in list(OnConflict):
            raise Fail(MALFORMED)
        if operation.key is not None and not 0 < len(operation.key) <= limits.key_bytes:
            _exceed("key_bytes", len(operation.key), limits.key_bytes)
        _keep_below("trace_bytes", len(operation.trace), TRACE_BYTES_MAX)
        self._check_theme(operation.theme)
        if operation.key is not None:
            holder = self.find((operation.theme, operation.key))
            if holder is not None:
                return self._new_with_held_key(operation, holder)
        theme = state.themes.get(operation.theme, ModelTheme())
        _keep_below("chunk_bytes", len(data), limits.chunk_bytes)
        _keep_below("session_bytes", len(data), limits.session_bytes)
        session = ModelSession(
            state.last_session_id + 1,
            operation.theme,
            operation.key,
            [data] if data else [],
            operation.priority,
            self.now_ms,
            trace=operation.trace,
        )
        _keep_below("state_bytes", self.size_bytes + session.size_bytes, limits.state_bytes)
        if theme.policy.max_sessions:
            population = len(self.of_theme(operation.theme))
            _keep_below("max_sessions", population + 1, theme.policy.max_sessions)
        if operation.key is not None:
            session.epoch = state.key_epoch
        repeat_after_ms = operation.repeat_after_ms
        if repeat_after_ms is not None:
            self._check_repeat(repeat_after_ms)
            session.due_ms = self.now_ms + repeat_after_ms
        else:
            self._check_room(operation.theme)
            session.consumer = self._see(operation.consumer)
            session.phase = Phase.ACTIVE
            session.epoch += 1
            session.attempts = 1
            session.lease_ms = theme.policy.lease_ms
            session.progress_ms = theme.policy.progress_ms
        state.last_session_id += 1
        self._open_theme(operation.theme)
        state.sessions[session.session_id] = session
        self._emit(EventKind.CREATED, session)
        self._move(Phase.NOTHING, Act.NEW, session)
        if self.phase(session) is Phase.READY:
            self._emit(EventKind.READY, session)
        epoch = session.epoch if repeat_after_ms is None else 0
        return Created(session.session_id, epoch, 1, created=True)

    def _new_with_held_key(self, operation: New, holder: ModelSession) -> Result:
        source = self.phase(holder)
        if operation.on_conflict == OnConflict.RETURN_EXISTING:
            self._move(source, Act.NEW, holder)
            return Created(holder.session_id, 0, holder.revision, created=False)
        if operation.on_conflict == OnConflict.REJECT or source not in (
            Phase.STORED,
            Phase.READY,
        ):
            raise Fail(KeyConflict(holder.session_id, source.name.lower()))
        self._check_growth(holder, operation.data)
        self._revise(holder)
        holder.due_ms = min(holder.due_ms, self.now_ms)
        if operation.data:
            holder.chunks.append(operation.data)
            self._emit(EventKind.APPENDED, holder)
        self._emit_stored(holder)
        self._move(source, Act.NEW, holder)
        return Created(holder.session_id, 0, holder.revision, created=False)

    def do_Append(self, operation: Append) -> Result:  # noqa: N802
        session = self._claim(operation, operation.epoch, Act.APPEND, operation.if_revision)
        self._check_growth(session, operation.data)
        source = self.phase(session)
        self._use(session, operation.epoch)
        self._revise(session)
        self._renew_if_active(session)
        if operation.data:
            session.chunks.append(operation.data)
        self._emit(EventKind.APPENDED, session)
        self._move(source, Act.APPEND, session)
        return session.revision

    def do_Replace(self, operation: Replace) -> Result:  # noqa: N802
        session = self._claim(operation, operation.epoch, Act.REPLACE, operation.if_revision)
        data = operation.data
        _keep_below("chunk_bytes", len(data), self.limits.chunk_bytes)
        _keep_below("session_bytes", len(data), self.limits.session_bytes)
        new = replace_chunks(session, [data] if data else [])
        if new.size_bytes > session.size_bytes:
            total_bytes = self.size_bytes - session.size_bytes + new.size_bytes
            _keep_below("state_bytes", total_bytes, self.limits.state_bytes)
        source = self.phase(session)
        self._use(session, operation.epoch)
        self._revise(session)
        self._renew_if_active(session)
        session.chunks = new.chunks
        self._emit(EventKind.REPLACED, session)
        self._move(source, Act.REPLACE, session)
        return session.revision

    def do_Remove(self, operation: Remove) -> Result:  # noqa: N802
        session = self._claim(operation, operation.epoch, Act.REMOVE, operation.if_revision)
        self._use(session, operation.epoch)
        self._renew_if_active(session)
        source = self.phase(session)
        del self.state.sessions[session.session_id]
        if session.key is not None:
            self.state.key_epoch = max(self.state.key_epoch, session.epoch)
        self._emit(EventKind.REMOVED, session)
        self.state.moves.append((source, Act.REMOVE, Phase.NOTHING))
        return session.revision

    def do_Store(self, operation: Store) -> Result:  # noqa: N802
        if operation.cause not in list(Cause) or operation.cause == Cause.PARKED:
            raise Fail(MALFORMED)
        stale = operation.cause == Cause.STALE
        _keep_below("reason_chars", len(operation.reason), self.limits.reason_chars)
        if operation.repeat_after_ms is not None:
            self._check_repeat(operation.repeat_after_ms)
        if stale and operation.epoch is None:
            raise Fail(MALFORMED)
        if stale and self.batch_term < self.term:
            raise Fail(StaleTerm(self.batch_term, self.term))
        act = Act.REAP if stale else Act.STORE
        session = self._claim(operation, operation.epoch, act, operation.if_revision)
        if not stale:
            self._renew_if_active(session)
            if operation.cause != Cause.SHUTDOWN:
                self._use(session, operation.epoch)
        elif self.deadline_ms(session) > self.now_ms:
            raise Fail(NotStale(session.session_id, self.deadline_ms(session)))
        repeat_after_ms = operation.repeat_after_ms
        return self._store(session, act, repeat_after_ms, operation.cause, operation.reason)

    def do_Release(self, operation: Release) -> Result:  # noqa: N802
        cause, reason, limits = operation.cause, operation.reason, self.limits
        if cause not in (Cause.FAILED, Cause.DISCONNECTED, Cause.SHUTDOWN):
            raise Fail(MALFORMED)
        _keep_below("reason_chars", len(reason), limits.reason_chars)
        if not 0 < operation.count <= limits.acquire_count:
            _exceed("acquire_count", operation.count, limits.acquire_count)
        sessions = self.state.sessions
        held = sorted(one for one in sessions if sessions[one].consumer == operation.consumer)
        count = min(operation.count, len(held), limits.batch_acquired - self.state.handed_out)
        self.state.handed_out += max(count, 0)
        for session_id in held[: max(count, 0)]:
            self._store(sessions[session_id], Act.STORE, None, cause, reason)
        return len(held[max(count, 0) :])

    def _store(
        self, session: ModelSession, act: Act, repeat_after_ms: int | None, cause: int, reason: str
    ) -> Stored:
        source = self.phase(session)
        policy = self.state.themes[session.theme].policy
        parks = False
        if source is Phase.ACTIVE:
            if cause == Cause.SHUTDOWN:
                session.attempts -= 1
                if repeat_after_ms is None:
                    repeat_after_ms = 0
            elif policy.max_attempts and session.attempts >= policy.max_attempts:
                parks, repeat_after_ms = True, 0  # as of now
        if repeat_after_ms is None:
            repeat_after_ms = policy.delay_ms(session.session_id, session.attempts)
        self._revise(session)
        session.due_ms = self.now_ms + repeat_after_ms
        if source is Phase.ACTIVE:
            self._leave_active(session, cause, reason)
        if parks:
            session.phase = Phase.PARKED
            self._emit(EventKind.PARKED, session)
        else:
            self._emit_stored(session)
        self._move(source, act, session)
        return Stored(session.session_id, session.revision, session.due_ms, parks)

    def do_Park(self, operation: Park) -> Result:  # noqa: N802
        _keep_below("reason_chars", len(operation.reason), self.limits.reason_chars)
        session = self._claim(operation, operation.epoch, Act.PARK, operation.if_revision)
        self._use(session, operation.epoch)
        self._renew_if_active(session)
        self._revise(session)
        self._leave_active(session, Cause.PARKED, operation.reason)
        session.due_ms = self.now_ms
        session.phase = Phase.PARKED
        self._emit(EventKind.PARKED, session)
        self._move(Phase.ACTIVE, Act.PARK, session)
        return session.revision

    def do_Unpark(self, operation: Unpark) -> Result:  # noqa: N802
        session = self._claim(operation, None, Act.UNPARK, operation.if_revision)
        self._revise(session)
        session.phase = Phase.STORED
        session.attempts = 0
        session.due_ms = self.now_ms
        self._emit_stored(session)
        self._move(Phase.PARKED, Act.UNPARK, session)
        return Stored(session.session_id, session.revision, session.due_ms, parked=False)

    def do_Touch(self, operation: Touch) -> Result:  # noqa: N802
        session = self._claim(operation, operation.epoch, Act.TOUCH, None)
        if operation.consumer is not None:
            session.consumer = self._see(operation.consumer)
        self._renew_if_active(session)
        self._move(Phase.ACTIVE, Act.TOUCH, session)
        return session.revision

    def do_Acquire(self, operation: Acquire) -> Result:  # noqa: N802
        limits, state = self.limits, self.state
        if not operation.themes or not all(0 <= one <= THEME_MAX for one in operation.themes):
            raise Fail(MALFORMED)
        _keep_below("acquire_themes", len(operation.themes), limits.acquire_themes)
        if not 0 < operation.count <= limits.acquire_count:
            _exceed("acquire_count", operation.count, limits.acquire_count)
        consumer = operation.consumer
        self._check_consumer(consumer)
        if consumer in state.consumers:
            self._see(consumer)
        turns = sorted(
            (state.themes[one].served, one) for one in set(operation.themes) & self.servable()
        )
        acquired: list[Acquired] = []
        served = True
        size_bytes = 0
        while served:
            served = False
            for _, theme_id in turns:
                room = limits.batch_acquired - state.handed_out
                if len(acquired) < operation.count and room > 0 and self.can_serve(theme_id):
                    session = state.sessions[self.ready_ids(theme_id)[0]]
                    size_bytes += session.data_bytes
                    if acquired and size_bytes > limits.session_bytes:
                        return tuple(acquired)
                    acquired.append(self._activate(session, Act.ACQUIRE, self._see(consumer)))
                    state.turn += 1
                    state.handed_out += 1
                    state.themes[theme_id].served = state.turn
                    served = True
        return tuple(acquired)

    def do_AcquireSession(self, operation: AcquireSession) -> Result:  # noqa: N802
        session = self._claim(operation, None, Act.ACQUIRE_SESSION, operation.if_revision)
        self._check_room(session.theme)
        return self._activate(session, Act.ACQUIRE_SESSION, self._see(operation.consumer))

    # The rest

    def do_Tick(self, operation: Tick) -> Result:  # noqa: N802
        if not 0 <= operation.now_ms <= TIME_MAX_MS:
            raise Fail(MALFORMED)
        if self.batch_term < self.term:
            raise Fail(StaleTerm(self.batch_term, self.term))
        self.term = self.batch_term
        self.now_ms = max(self.now_ms, operation.now_ms)
        page = self.limits.tick_page
        due = sorted(
            (one.due_ms, one.session_id)
            for one in self.state.sessions.values()
            if self.phase(one) is Phase.STORED and one.due_ms <= self.now_ms
        )[:page]
        horizon = due[-1] if len(due) == page else (self.now_ms, LAST_ID)
        self.horizon = max(self.horizon, horizon)
        for _, session_id in due:
            session = self.state.sessions[session_id]
            self._emit(EventKind.READY, session)
            self._move(Phase.STORED, Act.TICK, session)
        expired = sorted(
            (receipt.expires_ms, key)
            for key, receipt in self.receipts.items()
            if receipt.expires_ms <= self.now_ms
        )[:page]
        for _, key in expired:
            del self.receipts[key]
        return self.now_ms

    def do_Barrier(self, _operation: Barrier) -> Result:  # noqa: N802
        return self.index

    def do_Heartbeat(self, operation: Heartbeat) -> Result:  # noqa: N802
        if operation.consumer not in self.state.consumers:
            return 0
        self.state.consumers[operation.consumer] = self.now_ms
        sessions = self.state.sessions.values()
        return len([one for one in sessions if one.consumer == operation.consumer])

    def do_SetPolicy(self, operation: SetPolicy) -> Result:  # noqa: N802
        changes = _checked(operation.settings, POLICY_RANGES)
        self._check_theme(operation.theme)
        theme = self._open_theme(operation.theme)
        theme.policy = replace(theme.policy, **changes)
        self.state.events.append((EventKind.POLICY_CHANGED, 0, operation.theme, None, 0))
        return None

    def do_Pause(self, operation: Pause) -> Result:  # noqa: N802
        self._check_theme(operation.theme)
        self._open_theme(operation.theme).paused = True
        self.state.events.append((EventKind.POLICY_CHANGED, 0, operation.theme, None, 0))
        return None

    def do_Resume(self, operation: Resume) -> Result:  # noqa: N802
        self._check_theme(operation.theme)
        self._open_theme(operation.theme).paused = False
        self.state.events.append((EventKind.POLICY_CHANGED, 0, operation.theme, None, 0))
        return None

    def do_SetLimits(self, operation: SetLimits) -> Result:  # noqa: N802
        self.limits = replace(self.limits, **_checked(operation.settings, LIMIT_RANGES))
        return None

    def do_ForgetProposer(self, operation: ForgetProposer) -> Result:  # noqa: N802
        if operation.proposer == self.proposer:
            raise Fail(MALFORMED)
        window = self.windows.get(operation.proposer)
        if window is not None:
            # Nothing of this incarnation is ever applied again.
            self.windows[operation.proposer] = ModelWindow(window.incarnation, SEQUENCE_MAX)
        return None

    # Checks

    def _claim(
        self,
        operation: Append | Replace | Remove | Store | Park | Unpark | Touch | AcquireSession,
        epoch: int | None,
        act: Act,
        if_revision: int | None,
    ) -> ModelSession:
        session = self.find(operation.target)
        if session is None:
            raise Fail(SessionNotFound())
        phase = self.phase(session)
        if epoch is not None:
            if phase is not Phase.ACTIVE or epoch != session.epoch:
                raise Fail(LeaseLost(session.session_id, epoch, session.epoch))
        elif phase not in PRODUCER_MAY[act]:
            raise Fail(WrongPhase(session.session_id, phase.name.lower(), act.value))
        if if_revision is not None and if_revision != session.revision:
            raise Fail(RevisionMismatch(session.session_id, if_revision, session.revision))
        return session

    def _check_theme(self, theme_id: int) -> None:
        if not 0 <= theme_id <= THEME_MAX:
            raise Fail(MALFORMED)
        if theme_id not in self.state.themes:
            _keep_below("themes", len(self.state.themes) + 1, self.limits.themes)

    def _check_consumer(self, consumer: bytes | None) -> None:
        consumers = self.state.consumers
        if consumer is not None and consumer not in consumers:
            if not 0 < len(consumer) <= self.limits.consumer_bytes:
                _exceed("consumer_bytes", len(consumer), self.limits.consumer_bytes)
            _keep_below("consumers", len(consumers) + 1, self.limits.consumers)

    def _check_repeat(self, repeat_after_ms: int) -> None:
        if not 0 <= repeat_after_ms <= self.limits.repeat_after_ms:
            _exceed("repeat_after_ms", repeat_after_ms, self.limits.repeat_after_ms)

    def _check_room(self, theme_id: int) -> None:
        theme = self.state.themes.get(theme_id)
        if theme is not None and not self.has_room(theme_id):
            active = len(self.of_theme(theme_id, Phase.ACTIVE))
            _exceed("max_active", active + 1, theme.policy.max_active)

    def _check_growth(self, session: ModelSession, data: bytes) -> None:
        limits = self.limits
        if data:
            total_bytes = self.size_bytes + len(data) + CHUNK_OVERHEAD_BYTES
            _keep_below("chunk_bytes", len(data), limits.chunk_bytes)
            _keep_below("session_chunks", len(session.chunks) + 1, limits.session_chunks)
            _keep_below("session_bytes", session.data_bytes + len(data), limits.session_bytes)
            _keep_below("state_bytes", total_bytes, limits.state_bytes)

    # Changes

    def _open_theme(self, theme_id: int) -> ModelTheme:
        """A new theme is the last to be served."""
        return self.state.themes.setdefault(theme_id, ModelTheme(served=self.state.turn))

    def _see(self, consumer: bytes | None) -> bytes | None:
        """A consumer shows up. The last check of every operation that names one."""
        self._check_consumer(consumer)
        if consumer is not None:
            self.state.consumers[consumer] = self.now_ms
        return consumer

    def _revise(self, session: ModelSession) -> None:
        session.revision += 1
        session.updated_ms = self.now_ms

    def _renew_if_active(self, session: ModelSession) -> None:
        if session.phase is Phase.ACTIVE:
            session.touched_ms = self.now_ms

    def _activate(self, session: ModelSession, act: Act, consumer: bytes | None) -> Acquired:
        policy = self.state.themes[session.theme].policy
        source = self.phase(session)
        self._revise(session)
        session.phase = Phase.ACTIVE
        session.epoch += 1
        session.attempts += 1
        session.touched_ms = self.now_ms
        session.consumer = consumer
        session.lease_ms = policy.lease_ms
        session.progress_ms = policy.progress_ms
        self._emit(EventKind.ACQUIRED, session)
        self._move(source, act, session)
        return Acquired(session.session_id, session.epoch, session.revision)

    def _leave_active(self, session: ModelSession, cause: int, reason: str) -> None:
        session.phase = Phase.STORED
        session.consumer = None
        session.lease_ms = session.progress_ms = 0
        last = session.history[-1] if session.history else None
        if last is not None and (last.cause, last.reason) == (cause, reason):
            again = last._replace(times=last.times + 1, last_ms=self.now_ms)
            session.history[-1] = again
            return
        session.history.append(HistoryEntry(cause, reason, 1, self.now_ms, self.now_ms))
        max_attempts = self.state.themes[session.theme].policy.max_attempts
        bound = max(self.limits.history_entries, 2 * max_attempts)
        while len(session.history) > bound:
            # Shutdowns go first: they are no attempts.
            causes = [one.cause for one in session.history[:-1]]
            del session.history[causes.index(Cause.SHUTDOWN) if Cause.SHUTDOWN in causes else 0]

    def _emit(self, kind: EventKind, session: ModelSession) -> None:
        self.state.events.append(
            (kind, session.session_id, session.theme, session.key, session.revision)
        )

    def _emit_stored(self, session: ModelSession) -> None:
        self._emit(EventKind.STORED, session)
        if self.phase(session) is Phase.READY:
            self._emit(EventKind.READY, session)

    def _move(self, source: Phase, act: Act, session: ModelSession) -> None:
        self.state.moves.append((source, act, self.phase(session)))


# From the table of DESIGN: what may be asked without an epoch, and when.
PRODUCER_MAY: dict[Act, tuple[Phase, ...]] = {
    Act.APPEND: (Phase.STORED, Phase.READY),
    Act.REPLACE: (Phase.STORED, Phase.READY),
    Act.REMOVE: (Phase.STORED, Phase.READY, Phase.PARKED),
    Act.STORE: (Phase.STORED, Phase.READY),
    Act.ACQUIRE_SESSION: (Phase.STORED, Phase.READY),
    Act.UNPARK: (Phase.PARKED,),
    Act.TOUCH: (),
    Act.PARK: (),
    Act.REAP: (),
}


def replace_chunks(session: ModelSession, chunks: list[bytes]) -> ModelSession:
    """A copy of a session with other chunks."""
    new = copy.copy(session)
    new.chunks = chunks
    return new


def same_but_for_texts(result: Any) -> Any:
    """A result with the text of each Malformed taken out."""
    if isinstance(result, Malformed):
        return MALFORMED
    if isinstance(result, TxnAborted):
        return replace(result, cause=same_but_for_texts(result.cause))
    return result


def failures_of(result: Result) -> Counter[str]:
    """The codes of a failure and of what caused it."""
    found: Counter[str] = Counter()
    while isinstance(result, Failure):
        found[result.code] += 1
        result = result.cause if isinstance(result, TxnAborted) else None
    return found


def _weight(results: tuple[Any, ...]) -> int:
    """How many results there are, those inside others counted singly."""
    weight = 0
    for result in results:
        weight += 1
        if isinstance(result, Done):
            weight += _weight(result.results)
        elif type(result) is tuple:
            weight += len(result)
    return weight


def _exceed(limit: str, value: int, bound: int) -> None:
    raise Fail(LimitExceeded(limit, value, bound))


def _keep_below(limit: str, value: int, bound: int) -> None:
    if value > bound:
        _exceed(limit, value, bound)


def _checked(settings: Sequence[tuple[str, int]], ranges: dict[str, Range]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in settings:
        if name not in ranges:
            raise Fail(MALFORMED)
        one = ranges[name]
        if value < one.minimum or value > one.maximum:
            raise Fail(OutOfRange(name, value, one.minimum, one.maximum))
        changes[name] = value
    return changes


def _without_askers(operation: Operation) -> Operation:
    match operation:
        case New():
            return replace(operation, consumer=None, trace=b"")
        case Txn(operations):
            return Txn(tuple(map(_without_askers, operations)))
        case _:
            return operation
