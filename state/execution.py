"""Does the operations on sessions. One method per operation.

Every method first checks, raising `Refused`, and then changes; nothing is changed before the last
check, so a refused operation leaves no trace. The order of checks is part of what all nodes agree
on, and is the same everywhere: are the operation's fields well formed, does its target exist, is
the epoch the newest, does the transition table have the row, is the revision the expected one, are
the limits of data and of the state kept.

The methods take operations as they were decoded, with the outermost types checked
(`operations.shapes`). Empty data is no chunk.
"""

from heapq import nsmallest
from itertools import chain
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
    TRACE_BYTES_MAX,
)
from state.operations import Cause, OnConflict
from state.records import ID_MASK, Consumer, HistoryEntry, Session, Theme
from state.results import Acquired, Created, Stored
from state.tables import Tables
from state.transitions import (
    ACTIVE,
    NOTHING,
    PARKED,
    READY,
    RULES,
    STORED,
    Act,
    Phase,
    Rule,
)

_NEW = RULES[Act.NEW]
_APPEND = RULES[Act.APPEND]
_REPLACE = RULES[Act.REPLACE]
_REMOVE = RULES[Act.REMOVE]
_STORE = RULES[Act.STORE]
_ACQUIRE = RULES[Act.ACQUIRE]
_ACQUIRE_SESSION = RULES[Act.ACQUIRE_SESSION]
_TOUCH = RULES[Act.TOUCH]
_PARK = RULES[Act.PARK]
_UNPARK = RULES[Act.UNPARK]
_REAP = RULES[Act.REAP]
_CREATED, _APPENDED, _REPLACED, _ACQUIRED, _STORED, _READY, _PARKED, _REMOVED, _ = EventKind
_STORE_CAUSES = {int(cause): cause for cause in Cause if cause is not Cause.PARKED}
_RELEASE_CAUSES = {int(one): one for one in (Cause.FAILED, Cause.DISCONNECTED, Cause.SHUTDOWN)}
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
        _, theme_id, key, data, priority, repeat_after_ms, on_conflict, consumer_id, trace = (
            operation
        )
        tables = self._tables
        limits = tables.limits
        if not 0 <= priority <= PRIORITY_MAX or on_conflict not in _CONFLICTS:
            raise Refused(Malformed("priority or on_conflict is out of range"))
        size_bytes = SESSION_OVERHEAD_BYTES
        if data:
            size_bytes += len(data) + CHUNK_OVERHEAD_BYTES
        if key is not None:
            if not 0 < len(key) <= limits.key_bytes:
                _exceeded("key_bytes", len(key), limits.key_bytes)
            size_bytes += len(key)
        if trace:
            if len(trace) > TRACE_BYTES_MAX:
                _exceeded("trace_bytes", len(trace), TRACE_BYTES_MAX)
            size_bytes += len(trace)
        theme = tables.themes.get(theme_id)
        if theme is None:
            tables.check_theme(theme_id)
        elif key is not None and key in theme.keys:
            return self._new_with_held_key(self._sessions[theme.keys[key]], data, on_conflict)
        self._check_only_chunk(len(data))
        if tables.size_bytes + size_bytes > limits.state_bytes:
            _exceeded("state_bytes", tables.size_bytes + size_bytes, limits.state_bytes)
        if theme is not None:
            policy = theme.policy
            if policy.max_sessions and theme.population >= policy.max_sessions:
                _exceeded("max_sessions", theme.population + 1, policy.max_sessions)
            if policy.max_active and repeat_after_ms is None:
                self._check_room(theme)
        if tables.last_session_id >= COUNTER_MAX:
            _exceeded("session_id", tables.last_session_id + 1, COUNTER_MAX)
        if repeat_after_ms is not None:
            self._check_repeat_ms(repeat_after_ms)
        elif consumer_id is not None and consumer_id not in tables.consumers:
            tables.check_consumer(consumer_id)
        if theme is None:
            theme = tables.open_theme(theme_id)
        now_ms = tables.now_ms
        tables.last_session_id = session_id = tables.last_session_id + 1
        chunks = [data] if data else []
        session = Session(session_id, theme, key, chunks, size_bytes, priority, now_ms, trace)
        if key is not None:
            session.epoch = tables.key_epoch
        if repeat_after_ms is not None:
            session.due_ms = now_ms + repeat_after_ms
            session.phase = STORED
        else:
            session.phase = ACTIVE
            session.epoch += 1
            session.attempts = 1
            if consumer_id is not None:
                session.consumer = tables.open_consumer(consumer_id)
            session.lease_ms = theme.policy.lease_ms
            session.progress_ms = theme.policy.progress_ms
        tables.keep(session)
        _NEW.check(NOTHING, session.phase)
        self.events.append((_CREATED, session_id, theme_id, key, 1))
        if session.phase is READY:
            self.events.append((_READY, session_id, theme_id, key, 1))
        epoch = session.epoch if session.phase is ACTIVE else 0
        return Created(session_id, epoch, 1, True)  # noqa: FBT003 - a field of a tuple

    def _new_with_held_key(self, holder: Session, data: bytes, on_conflict: int) -> Created:
        if on_conflict == OnConflict.RETURN_EXISTING:
            return Created(holder.session_id, 0, holder.revision, False)  # noqa: FBT003
        source = holder.phase
        if on_conflict == OnConflict.REJECT or not _NEW.allows(source, READY):
            raise Refused(KeyConflict(holder.session_id, source.name.lower()))
        if data:
            self._check_growth(holder, len(data))
        self._revise(holder)
        self._tables.leave(holder)
        if data:
            self._tables.add_chunk(holder, data)
        # If it is due already, it keeps its turn.
        holder.due_ms = min(holder.due_ms, self._tables.now_ms)
        self._tables.enter(holder)
        _NEW.check(source, holder.phase)
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
        if consumer_id is not None:
            tables.check_consumer(consumer_id)
            if consumer_id in tables.consumers:
                tables.open_consumer(consumer_id)  # a sign of life, whatever is found
        known = map(tables.themes.get, dict.fromkeys(theme_ids))
        # Who was served longest ago comes first, and then each in turn.
        queue = sorted(
            (theme for theme in known if theme is not None and theme.can_serve), key=_by_turn
        )
        if not queue:
            return ()
        room = limits.batch_acquired - self.handed_out
        if room < count:
            count = room
            tables.awake.update(queue)  # whoever waits shall ask again
        if count <= 0:
            return ()
        consumer = None if consumer_id is None else tables.open_consumer(consumer_id)
        acquired: list[Acquired] = []
        room_bytes = limits.session_bytes  # of an answer
        while queue and len(acquired) < count:
            for theme in queue[: count - len(acquired)]:
                place = theme.ready.first()
                if place is not None:
                    session = self._sessions[place & ID_MASK]
                    room_bytes -= session.data_bytes
                    if room_bytes < 0 and acquired:
                        tables.awake.update(queue)  # for whoever asks for the rest
                        count = 0
                        break
                    acquired.append(self._activate(session, _ACQUIRE, consumer))
                    self._serve(theme)
            queue = [theme for theme in queue if theme.can_serve]
        self.handed_out += len(acquired)
        return tuple(acquired)

    def acquire_session(self, operation: tuple[Any, ...]) -> Acquired:
        _, target, consumer_id, if_revision = operation
        session = self._claim(target, None, _ACQUIRE_SESSION, if_revision)
        self._check_room(session.theme)
        consumer = None
        if consumer_id is not None:
            self._tables.check_consumer(consumer_id)
            consumer = self._tables.open_consumer(consumer_id)
        return self._activate(session, _ACQUIRE_SESSION, consumer)

    def append(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, data, if_revision = operation
        session = self._claim(target, epoch, _APPEND, if_revision)
        if data:
            self._check_growth(session, len(data))
        self._change(session)
        if self._tables.unused:
            self._tables.use(session, epoch)
        if data:
            self._tables.add_chunk(session, data)
        revision = session.revision
        self.events.append(
            (_APPENDED, session.session_id, session.theme.theme_id, session.key, revision)
        )
        return revision

    def replace(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, data, if_revision = operation
        session = self._claim(target, epoch, _REPLACE, if_revision)
        tables = self._tables
        limits = tables.limits
        self._check_only_chunk(len(data))
        growth_bytes = -session.data_bytes - len(session.chunks) * CHUNK_OVERHEAD_BYTES
        if data:
            growth_bytes += len(data) + CHUNK_OVERHEAD_BYTES
        if growth_bytes > 0 and tables.size_bytes + growth_bytes > limits.state_bytes:
            _exceeded("state_bytes", tables.size_bytes + growth_bytes, limits.state_bytes)
        self._change(session)
        if tables.unused:
            tables.use(session, epoch)
        self._ledger.rewritten(session)
        session.chunks = [data] if data else []
        tables.resize(session, growth_bytes)
        self._emit(_REPLACED, session)
        return session.revision

    def touch(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, consumer_id = operation
        session = self._claim(target, epoch, _TOUCH, None)
        consumer = session.consumer
        if consumer_id is not None:
            self._tables.check_consumer(consumer_id)
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
            self._check_repeat_ms(repeat_after_ms)
        if cause == Cause.STALE:
            return self._reap(operation)
        session = self._claim(target, epoch, _STORE, if_revision)
        if session.phase is ACTIVE:
            self._renew(session)
            if self._tables.unused and cause != Cause.SHUTDOWN:
                self._tables.use(session, epoch)
            return self._store_active(
                session, _STORE, repeat_after_ms, _STORE_CAUSES[cause], reason
            )
        if repeat_after_ms is None:
            repeat_after_ms = session.theme.policy.delay_ms(session.session_id, session.attempts)
        source = session.phase
        self._revise(session)
        self._tables.leave(session)
        session.due_ms = self._tables.now_ms + repeat_after_ms
        self._tables.enter(session)
        _STORE.check(source, session.phase)
        self._emit_stored(session)
        return Stored(session.session_id, session.revision, session.due_ms, parked=False)

    def _reap(self, operation: tuple[Any, ...]) -> Stored:
        """Store for a consumer that is not heard of: check again whether that is still so."""
        _, target, epoch, repeat_after_ms, _, reason, if_revision = operation
        if epoch is None:
            raise Refused(Malformed("a Store of cause stale shows the epoch that it found"))
        if self.term < self._tables.term:
            raise Refused(StaleTerm(self.term, self._tables.term))
        session = self._claim(target, epoch, _REAP, if_revision)
        if session.deadline_ms > self._tables.now_ms:
            raise Refused(NotStale(session.session_id, session.deadline_ms))
        return self._store_active(session, _REAP, repeat_after_ms, Cause.STALE, reason)

    def release(self, operation: tuple[Any, ...]) -> int:
        """Store in the place of operators whose consumer is gone, so it shows no epochs.

        What another consumer has resumed meanwhile is that one's, and is left alone.
        """
        _, consumer_id, count, cause, reason = operation
        if cause not in _RELEASE_CAUSES:
            raise Refused(Malformed("cause is out of range"))
        self._check_reason(reason)
        limits = self._tables.limits
        if not 0 < count <= limits.acquire_count:
            _exceeded("acquire_count", count, limits.acquire_count)
        consumer = self._tables.consumers.get(consumer_id)
        if consumer is None:
            return 0
        # As with Acquire: whoever is told that some are left asks again.
        count = max(min(count, limits.batch_acquired - self.handed_out), 0)
        # By id: the order in which a consumer knows its sessions is not the same on all nodes.
        held = nsmallest(count, chain.from_iterable(consumer.groups.values()))
        self.handed_out += len(held)
        for session_id in held:
            session = self._sessions[session_id]
            self._store_active(session, _STORE, None, _RELEASE_CAUSES[cause], reason)
        return consumer.population

    def _store_active(
        self, session: Session, rule: Rule, repeat_after_ms: int | None, cause: Cause, reason: str
    ) -> Stored:
        policy = session.theme.policy
        attempts, parks = session.attempts, False
        if cause is Cause.SHUTDOWN:
            attempts -= 1
        else:
            parks = 0 < policy.max_attempts <= attempts
        if repeat_after_ms is None:
            at_once = cause is Cause.SHUTDOWN
            repeat_after_ms = 0 if at_once else policy.delay_ms(session.session_id, attempts)
        self._deactivate(session, rule, PARKED if parks else STORED, cause, reason)
        session.attempts = attempts
        if not parks:
            session.due_ms = self._tables.now_ms + repeat_after_ms
        self._settle(session, rule)
        return Stored(session.session_id, session.revision, session.due_ms, parks)

    def park(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, reason, if_revision = operation
        self._check_reason(reason)
        session = self._claim(target, epoch, _PARK, if_revision)
        self._renew(session)
        if self._tables.unused:
            self._tables.use(session, epoch)
        self._deactivate(session, _PARK, PARKED, Cause.PARKED, reason)
        self._settle(session, _PARK)
        return session.revision

    def unpark(self, operation: tuple[Any, ...]) -> Stored:
        _, target, if_revision = operation
        session = self._claim(target, None, _UNPARK, if_revision)
        self._revise(session)
        self._tables.leave(session)
        session.phase = STORED
        session.attempts = 0
        session.due_ms = self._tables.now_ms
        self._tables.enter(session)
        _UNPARK.check(PARKED, session.phase)
        self._emit_stored(session)
        return Stored(session.session_id, session.revision, session.due_ms, parked=False)

    def remove(self, operation: tuple[Any, ...]) -> int:
        _, target, epoch, if_revision = operation
        session = self._claim(target, epoch, _REMOVE, if_revision)
        _REMOVE.check(session.phase, NOTHING)
        if self._tables.unused:
            self._tables.use(session, epoch)
        self._tables.drop(session)
        revision = session.revision
        self.events.append(
            (_REMOVED, session.session_id, session.theme.theme_id, session.key, revision)
        )
        return revision

    # Checks

    def _claim(
        self, target: int | tuple[Any, ...], epoch: int | None, rule: Rule, if_revision: int | None
    ) -> Session:
        """The session that the rule's act may be done to, by who shows this epoch."""
        session = self._sessions.get(target) if type(target) is int else self._find_by_key(target)
        if session is None:
            raise Refused(SessionNotFound())
        if epoch is not None:
            if session.epoch != epoch or session.phase is not ACTIVE:
                raise Refused(LeaseLost(session.session_id, epoch, session.epoch))
            allowed = rule.by_holder[ACTIVE]
        else:
            allowed = rule.by_producer[session.phase]
        if not allowed:
            raise Refused(
                WrongPhase(session.session_id, session.phase.name.lower(), rule.act.value)
            )
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

    def _check_repeat_ms(self, repeat_after_ms: int) -> None:
        bound_ms = self._tables.limits.repeat_after_ms
        if not 0 <= repeat_after_ms <= bound_ms:
            _exceeded("repeat_after_ms", repeat_after_ms, bound_ms)

    def _check_reason(self, reason: str) -> None:
        bound = self._tables.limits.reason_chars
        if len(reason) > bound:
            _exceeded("reason_chars", len(reason), bound)

    def _check_room(self, theme: Theme) -> None:
        if not theme.has_room:
            _exceeded("max_active", theme.counts[ACTIVE] + 1, theme.policy.max_active)

    def _check_only_chunk(self, chunk_bytes: int) -> None:
        """Whether a session may consist of one such chunk."""
        limits = self._tables.limits
        if chunk_bytes > limits.chunk_bytes:
            _exceeded("chunk_bytes", chunk_bytes, limits.chunk_bytes)
        if chunk_bytes > limits.session_bytes:
            _exceeded("session_bytes", chunk_bytes, limits.session_bytes)

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

    def _change(self, session: Session) -> None:
        """Begin a change of a session, which is a sign of life if it is active."""
        if session.mark != self._ledger.mark:
            self._ledger.note(session)
        now_ms = self._tables.now_ms
        session.revision += 1
        session.updated_ms = now_ms
        if session.phase is ACTIVE:
            session.touched_ms = now_ms

    def _revise(self, session: Session) -> None:
        """Begin a change of a session that says nothing about its consumer."""
        if session.mark != self._ledger.mark:
            self._ledger.note(session)
        session.revision += 1
        session.updated_ms = self._tables.now_ms

    def _renew(self, session: Session) -> None:
        """A sign of life from whoever operates a session."""
        if session.mark != self._ledger.mark:
            self._ledger.note(session)
        session.touched_ms = self._tables.now_ms

    def _activate(self, session: Session, rule: Rule, consumer: Consumer | None) -> Acquired:
        rule.check(session.phase, ACTIVE)
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
        self, session: Session, rule: Rule, phase: Phase, cause: Cause, reason: str
    ) -> None:
        """Take a session from its operator; `_settle` puts it where `phase` belongs."""
        rule.check(session.phase, phase)
        self._revise(session)
        self._tables.leave(session)
        session.phase = phase
        session.due_ms = self._tables.now_ms
        session.consumer = None
        session.lease_ms = 0
        session.progress_ms = 0
        self._add_history(session, cause, reason)

    def _settle(self, session: Session, rule: Rule) -> None:
        self._tables.enter(session)
        rule.check(ACTIVE, session.phase)
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
        added = [*history, HistoryEntry(int(cause), reason, 1, now_ms, now_ms)]
        # A session is parked with the causes of all its attempts; shutdowns are none.
        bound = max(self._tables.limits.history_entries, 2 * session.theme.policy.max_attempts)
        while len(added) > bound:
            causes = [entry.cause for entry in added[:-1]]  # the last one tells how it ended
            del added[causes.index(Cause.SHUTDOWN) if Cause.SHUTDOWN in causes else 0]
        session.history = tuple(added)
        before_bytes = sum([entry.size_bytes for entry in history])
        after_bytes = sum([entry.size_bytes for entry in added])
        self._tables.resize(session, after_bytes - before_bytes)

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
