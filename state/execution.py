"""Does the operations on sessions. One method per operation.

Every method first checks, raising `Refused`, and then changes; nothing is changed before the last
check, so a refused operation leaves no trace. The order of checks is part of what all nodes agree
on, and is the same everywhere: is the operation well formed, does its target exist, is the epoch
the newest, does the transition table have the row, is the revision the expected one, are the limits
kept.

The methods take operations as they were decoded, with the outermost types checked
(`operations.shapes`). Empty data is no chunk.
"""

from typing import Any, Never

from state.errors import (
    KeyConflict,
    LeaseLost,
    LimitExceeded,
    Malformed,
    NotStale,
    Refused,
    RevisionMismatch,
    SessionNotFound,
    StaleTerm,
    WrongPhase,
)
from state.events import EventKind, RawEvent
from state.limits import (
    CHUNK_OVERHEAD_BYTES,
    COUNTER_MAX,
    PRIORITY_MAX,
    SESSION_OVERHEAD_BYTES,
    THEME_MAX,
)
from state.operations import Cause, OnConflict
from state.records import ID_MASK, Consumer, HistoryEntry, Session, Theme
from state.results import Acquired, Created, Stored
from state.tables import Tables
from state.transitions import (
    ACTIVE,
    PARKED,
    READY,
    STORED,
    Act,
    Actor,
    Phase,
    check_move,
    permitted,
)

_PRODUCER_PHASES = {act: permitted(act, Actor.PRODUCER) for act in Act}
_APPEND, _REMOVE, _NEW = Act.APPEND, Act.REMOVE, Act.NEW
_CREATED, _APPENDED, _REPLACED, _ACQUIRED, _STORED, _READY, _PARKED, _REMOVED, _ = EventKind
_STORE_CAUSES = frozenset(Cause) - {Cause.PARKED}
_CONFLICTS = frozenset(OnConflict)


def _exceeded(limit: str, value: int, bound: int) -> Never:
    raise Refused(LimitExceeded(limit, value, bound))


class Executor:
    """Does operations on the sessions of `tables`, and notes the events."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._ledger = tables.ledger
        self._sessions = tables.sessions
        # Of the batch at hand:
        self.events: list[RawEvent] = []
        self.term = 0
        self.handed_out = 0

    # The life of a session, in the order of the transition table

    def new(self, operation: tuple[Any, ...]) -> Created:
        _, theme_id, key, data, priority, repeat_after_ms, on_conflict, consumer_id = operation
        tables = self._tables
        limits = tables.limits
        if not 0 <= priority <= PRIORITY_MAX or on_conflict not in _CONFLICTS:
            raise Refused(Malformed("priority or on_conflict is out of range"))
        size_bytes = SESSION_OVERHEAD_BYTES
        if data:
            size_bytes += len(data) + CHUNK_OVERHEAD_BYTES
        theme = tables.themes.get(theme_id)
        if theme is None:
            theme = tables.open_theme(theme_id)
        if key is not None:
            if not 0 < len(key) <= limits.key_bytes:
                _exceeded("key_bytes", len(key), limits.key_bytes)
            size_bytes += len(key)
            holder_id = theme.keys.get(key)
            if holder_id is not None:
                return self._new_with_held_key(self._sessions[holder_id], data, on_conflict)
        if len(data) > limits.chunk_bytes:
            _exceeded("chunk_bytes", len(data), limits.chunk_bytes)
        if len(data) > limits.session_bytes:
            _exceeded("session_bytes", len(data), limits.session_bytes)
        if tables.size_bytes + size_bytes > limits.state_bytes:
            _exceeded("state_bytes", tables.size_bytes + size_bytes, limits.state_bytes)
        policy = theme.policy
        if policy.max_sessions and theme.population >= policy.max_sessions:
            _exceeded("max_sessions", theme.population + 1, policy.max_sessions)
        if tables.last_session_id >= COUNTER_MAX:
            _exceeded("session_id", tables.last_session_id + 1, COUNTER_MAX)
        now_ms = tables.now_ms
        chunks = [data] if data else []
        if repeat_after_ms is not None:
            due_ms = now_ms + self._checked_repeat_ms(repeat_after_ms)
            tables.last_session_id = session_id = tables.last_session_id + 1
            session = Session(session_id, theme, key, chunks, size_bytes, priority, now_ms)
            session.due_ms = due_ms
            session.phase = STORED
        else:
            if policy.max_active:
                self._check_room(theme)
            consumer = None if consumer_id is None else tables.open_consumer(consumer_id)
            tables.last_session_id = session_id = tables.last_session_id + 1
            session = Session(session_id, theme, key, chunks, size_bytes, priority, now_ms)
            session.phase = ACTIVE
            session.epoch = 1
            session.attempts = 1
            session.consumer = consumer
            session.lease_ms = policy.lease_ms
            session.progress_ms = policy.progress_ms
        tables.keep(session)
        self.events.append((_CREATED, session_id, theme_id, key, 1))
        if session.phase is READY:
            self.events.append((_READY, session_id, theme_id, key, 1))
        return Created(session_id, session.epoch, 1, True)  # noqa: FBT003 - a field of a tuple

    def _new_with_held_key(self, holder: Session, data: bytes, on_conflict: int) -> Created:
        if on_conflict == OnConflict.RETURN_EXISTING:
            return Created(holder.session_id, 0, holder.revision, False)  # noqa: FBT003
        source = holder.phase
        if on_conflict == OnConflict.REJECT or source not in (STORED, READY):
            raise Refused(KeyConflict(holder.session_id, source.name.lower()))
        if data:
            self._check_growth(holder, len(data))
        self._revise(holder)
        self._tables.leave(holder)
        if data:
            self._add_chunk(holder, data)
        holder.due_ms = self._tables.now_ms
        self._tables.enter(holder)
        check_move(source, _NEW, holder.phase)
        if data:
            self._emit(_APPENDED, holder)
        self._emit_stored(holder)
        return Created(holder.session_id, 0, holder.revision, False)  # noqa: FBT003

    def acquire(self, operation: tuple[Any, ...]) -> tuple[Acquired, ...]:
        _, theme_ids, count, consumer_id = operation
        tables = self._tables
        limits = tables.limits
        if not set(map(type, theme_ids)) == {int}:
            raise Refused(Malformed("themes are not ints, or there are none"))
        if min(theme_ids) < 0 or max(theme_ids) > THEME_MAX:
            raise Refused(Malformed("theme is not a uint32"))
        if len(theme_ids) > limits.acquire_themes:
            _exceeded("acquire_themes", len(theme_ids), limits.acquire_themes)
        if not 0 < count <= limits.acquire_count:
            _exceeded("acquire_count", count, limits.acquire_count)
        consumer = None if consumer_id is None else tables.open_consumer(consumer_id)
        count = min(count, limits.batch_acquired - self.handed_out)
        known = map(tables.themes.get, dict.fromkeys(theme_ids))
        # Who was served longest ago comes first, and then each in turn.
        queue = sorted(
            (theme for theme in known if theme is not None and theme.can_serve), key=_by_turn
        )
        acquired: list[Acquired] = []
        while queue and len(acquired) < count:
            for theme in queue[: count - len(acquired)]:
                place = theme.ready.first()
                if place is not None:
                    session = self._sessions[place & ID_MASK]
                    acquired.append(self._activate(session, Act.ACQUIRE, consumer))
                    self._serve(theme)
            queue = [theme for theme in queue if theme.can_serve]
        self.handed_out += len(acquired)
        return tuple(acquired)

    def acquire_session(self, operation: tuple[Any, ...]) -> Acquired:
        _, target, consumer_id, if_revision = operation
        session = self._claim(target, None, Act.ACQUIRE_SESSION, if_revision)
        self._check_room(session.theme)
        consumer = None if consumer_id is None else self._tables.open_consumer(consumer_id)
        return self._activate(session, Act.ACQUIRE_SESSION, consumer)

    def append(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, data, if_revision = operation
        session = self._claim(target, epoch, _APPEND, if_revision)
        if data:
            self._check_growth(session, len(data))
        self._revise(session)
        if session.phase is ACTIVE:
            self._renew(session)
        if data:
            self._add_chunk(session, data)
        revision = session.revision
        self.events.append(
            (_APPENDED, session.session_id, session.theme.theme_id, session.key, revision)
        )
        return revision

    def replace(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, data, if_revision = operation
        session = self._claim(target, epoch, Act.REPLACE, if_revision)
        tables = self._tables
        limits = tables.limits
        if len(data) > limits.chunk_bytes:
            _exceeded("chunk_bytes", len(data), limits.chunk_bytes)
        if len(data) > limits.session_bytes:
            _exceeded("session_bytes", len(data), limits.session_bytes)
        growth_bytes = -session.data_bytes - len(session.chunks) * CHUNK_OVERHEAD_BYTES
        if data:
            growth_bytes += len(data) + CHUNK_OVERHEAD_BYTES
        if growth_bytes > 0 and tables.size_bytes + growth_bytes > limits.state_bytes:
            _exceeded("state_bytes", tables.size_bytes + growth_bytes, limits.state_bytes)
        self._revise(session)
        if session.phase is ACTIVE:
            self._renew(session)
        self._ledger.rewritten(session)
        session.chunks = [data] if data else []
        tables.resize(session, growth_bytes)
        self._emit(_REPLACED, session)
        return session.revision

    def touch(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, consumer_id = operation
        session = self._claim(target, epoch, Act.TOUCH, None)
        consumer = session.consumer
        if consumer_id is not None:
            consumer = self._tables.open_consumer(consumer_id)
        if session.mark != self._ledger.mark:
            self._ledger.note(session)
        if consumer is not session.consumer:
            self._tables.rebind(session, consumer)
        self._renew(session)
        return session.revision

    def store(self, operation: tuple[Any, ...]) -> Stored:
        _, target, epoch, repeat_after_ms, cause, reason, if_revision = operation
        if cause not in _STORE_CAUSES:
            raise Refused(Malformed("cause is out of range"))
        self._check_reason(reason)
        if repeat_after_ms is not None:
            self._checked_repeat_ms(repeat_after_ms)
        if cause == Cause.STALE:
            return self._reap(target, epoch, repeat_after_ms, reason)
        session = self._claim(target, epoch, Act.STORE, if_revision)
        if session.phase is ACTIVE:
            self._renew(session)
            return self._store_active(session, Act.STORE, repeat_after_ms, Cause(cause), reason)
        if repeat_after_ms is None:
            repeat_after_ms = session.theme.policy.delay_ms(session.session_id, session.attempts)
        source = session.phase
        self._revise(session)
        self._tables.leave(session)
        session.due_ms = self._tables.now_ms + repeat_after_ms
        self._tables.enter(session)
        check_move(source, Act.STORE, session.phase)
        self._emit_stored(session)
        return Stored(session.session_id, session.revision, session.due_ms, parked=False)

    def _reap(
        self,
        target: int | tuple[Any, ...],
        epoch: int | None,
        repeat_after_ms: int | None,
        reason: str,
    ) -> Stored:
        """Store for a consumer that is not heard of: check again whether that is still so."""
        if epoch is None:
            raise Refused(Malformed("a Store of cause stale shows the epoch that it found"))
        if self.term < self._tables.term:
            raise Refused(StaleTerm(self.term, self._tables.term))
        session = self._claim(target, epoch, Act.REAP, None)
        if session.deadline_ms > self._tables.now_ms:
            raise Refused(NotStale(session.session_id, session.deadline_ms))
        return self._store_active(session, Act.REAP, repeat_after_ms, Cause.STALE, reason)

    def _store_active(
        self, session: Session, act: Act, repeat_after_ms: int | None, cause: Cause, reason: str
    ) -> Stored:
        now_ms = self._tables.now_ms
        policy = session.theme.policy
        attempts, parks = session.attempts, False
        if cause is Cause.SHUTDOWN:
            attempts -= 1
        else:
            parks = 0 < policy.max_attempts <= attempts
        if parks or (cause is Cause.SHUTDOWN and repeat_after_ms is None):
            repeat_after_ms = 0
        elif repeat_after_ms is None:
            repeat_after_ms = policy.delay_ms(session.session_id, attempts)
        self._deactivate(session, act, PARKED if parks else STORED, cause, reason)
        session.attempts = attempts
        session.due_ms = now_ms + repeat_after_ms
        self._settle(session, act)
        return Stored(session.session_id, session.revision, session.due_ms, parks)

    def park(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, reason, if_revision = operation
        self._check_reason(reason)
        session = self._claim(target, epoch, Act.PARK, if_revision)
        self._renew(session)
        self._deactivate(session, Act.PARK, PARKED, Cause.PARKED, reason)
        self._settle(session, Act.PARK)
        return session.revision

    def unpark(self, operation: tuple[Any, ...]) -> Stored:
        _, target, if_revision = operation
        session = self._claim(target, None, Act.UNPARK, if_revision)
        self._revise(session)
        self._tables.leave(session)
        session.phase = STORED
        session.attempts = 0
        session.due_ms = self._tables.now_ms
        self._tables.enter(session)
        check_move(PARKED, Act.UNPARK, session.phase)
        self._emit_stored(session)
        return Stored(session.session_id, session.revision, session.due_ms, parked=False)

    def remove(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, if_revision = operation
        session = self._claim(target, epoch, _REMOVE, if_revision)
        if session.phase is ACTIVE:
            consumer = session.consumer
            if consumer is not None and consumer.seen_ms != self._tables.now_ms:
                self._tables.see(consumer)
        self._tables.drop(session)
        revision = session.revision
        self.events.append(
            (_REMOVED, session.session_id, session.theme.theme_id, session.key, revision)
        )
        return revision

    # Checks

    def _claim(
        self, target: int | tuple[Any, ...], epoch: int | None, act: Act, if_revision: int | None
    ) -> Session:
        """The session that `act` may be done to, by who shows this epoch."""
        session = self._sessions.get(target) if type(target) is int else self._find_by_key(target)
        if session is None:
            raise Refused(SessionNotFound())
        if epoch is not None:
            # Every row of an operator, and the reaper's, begins in ACTIVE.
            if session.epoch != epoch or session.phase is not ACTIVE:
                raise Refused(LeaseLost(session.session_id, epoch, session.epoch))
        elif session.phase not in _PRODUCER_PHASES[act]:
            raise Refused(WrongPhase(session.session_id, session.phase.name.lower(), act.value))
        if if_revision is not None and if_revision != session.revision:
            raise Refused(RevisionMismatch(session.session_id, if_revision, session.revision))
        return session

    def _find_by_key(self, target: Any) -> Session | None:  # noqa: ANN401 - a decoded tuple
        if tuple(map(type, target)) != (int, bytes):
            raise Refused(Malformed("a target is an id, or a theme and a key"))
        theme_id, key = target
        theme = self._tables.themes.get(theme_id)
        if theme is None:
            return None
        return self._sessions.get(theme.keys.get(key, 0))  # no session has id 0

    def _checked_repeat_ms(self, repeat_after_ms: int) -> int:
        bound_ms = self._tables.limits.repeat_after_ms
        if not 0 <= repeat_after_ms <= bound_ms:
            _exceeded("repeat_after_ms", repeat_after_ms, bound_ms)
        return repeat_after_ms

    def _check_reason(self, reason: str) -> None:
        bound = self._tables.limits.reason_chars
        if len(reason) > bound:
            _exceeded("reason_chars", len(reason), bound)

    def _check_room(self, theme: Theme) -> None:
        if not theme.has_room:
            _exceeded("max_active", theme.counts[ACTIVE] + 1, theme.policy.max_active)

    def _check_growth(self, session: Session, chunk_bytes: int) -> None:
        """Whether one more chunk may be added."""
        limits = self._tables.limits
        if chunk_bytes > limits.chunk_bytes:
            _exceeded("chunk_bytes", chunk_bytes, limits.chunk_bytes)
        if len(session.chunks) >= limits.session_chunks:
            _exceeded("session_chunks", len(session.chunks) + 1, limits.session_chunks)
        # size_bytes is never less than data_bytes, and is at hand
        if session.size_bytes + chunk_bytes > limits.session_bytes:
            data_bytes = session.data_bytes + chunk_bytes
            if data_bytes > limits.session_bytes:
                _exceeded("session_bytes", data_bytes, limits.session_bytes)
        size_bytes = self._tables.size_bytes + chunk_bytes + CHUNK_OVERHEAD_BYTES
        if size_bytes > limits.state_bytes:
            _exceeded("state_bytes", size_bytes, limits.state_bytes)

    # Changes

    def _revise(self, session: Session) -> None:
        """Begin a change of a session."""
        if session.mark != self._ledger.mark:
            self._ledger.note(session)
        session.revision += 1
        session.updated_ms = self._tables.now_ms

    def _renew(self, session: Session) -> None:
        """A sign of life from whoever operates a session."""
        if session.mark != self._ledger.mark:
            self._ledger.note(session)
        session.touched_ms = now_ms = self._tables.now_ms
        consumer = session.consumer
        if consumer is not None and consumer.seen_ms != now_ms:
            self._tables.see(consumer)

    def _add_chunk(self, session: Session, data: bytes) -> None:
        session.chunks.append(data)
        self._tables.resize(session, len(data) + CHUNK_OVERHEAD_BYTES)

    def _activate(self, session: Session, act: Act, consumer: Consumer | None) -> Acquired:
        check_move(session.phase, act, ACTIVE)
        policy = session.theme.policy
        self._revise(session)
        self._tables.leave(session)
        session.phase = ACTIVE
        session.epoch += 1
        session.attempts += 1
        session.touched_ms = self._tables.now_ms
        session.consumer = consumer
        session.lease_ms = policy.lease_ms
        session.progress_ms = policy.progress_ms
        self._tables.enter(session)
        self._emit(_ACQUIRED, session)
        return Acquired(session.session_id, session.epoch, session.revision)

    def _deactivate(
        self, session: Session, act: Act, phase: Phase, cause: Cause, reason: str
    ) -> None:
        """Take a session from its operator; `_settle` puts it where `phase` belongs."""
        check_move(session.phase, act, phase)
        self._revise(session)
        self._tables.leave(session)
        session.phase = phase
        session.consumer = None
        session.lease_ms = 0
        session.progress_ms = 0
        self._add_history(session, cause, reason)

    def _settle(self, session: Session, act: Act) -> None:
        self._tables.enter(session)
        check_move(ACTIVE, act, session.phase)
        if session.phase is PARKED:
            self._emit(_PARKED, session)
        else:
            self._emit_stored(session)

    def _add_history(self, session: Session, cause: Cause, reason: str) -> None:
        now_ms = self._tables.now_ms
        history = session.history
        if history and history[-1].cause == cause and history[-1].reason == reason:
            last = history[-1]
            merged = HistoryEntry(int(cause), reason, last.times + 1, last.first_ms, now_ms)
            session.history = (*history[:-1], merged)
            return
        # A session is parked with all its causes: as many as attempts, and shutdowns between.
        bound = max(self._tables.limits.history_entries, 2 * session.theme.policy.max_attempts)
        added = (*history, HistoryEntry(int(cause), reason, 1, now_ms, now_ms))
        session.history = added[-bound:]

    def _serve(self, theme: Theme) -> None:
        """Note that it was a theme's turn."""
        if theme.mark != self._ledger.mark:
            self._ledger.note(theme)
        self._tables.turn += 1
        theme.served = self._tables.turn

    def _emit(self, kind: EventKind, session: Session) -> None:
        self.events.append(
            (kind, session.session_id, session.theme.theme_id, session.key, session.revision)
        )

    def _emit_stored(self, session: Session) -> None:
        self._emit(_STORED, session)
        if session.phase is READY:
            self._emit(_READY, session)


def _by_turn(theme: Theme) -> tuple[int, int]:
    return theme.served, theme.theme_id
