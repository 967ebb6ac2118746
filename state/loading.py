"""Builds a state from the items of a checkpoint, believing none of them.

Items come in the order of a capture: META, then themes, consumers, windows, receipts and sessions,
then CHECK. Each is checked by itself and against those before it; in the end the digest of what was
built must be the one in CHECK. Whatever is wrong raises `DamagedStateError`, which names the item,
and nothing of the state can be had.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from state import codec, layout
from state.errors import DamagedStateError, Failure
from state.layout import FIELDS, LAYOUT_VERSION, Item
from state.limits import (
    CHUNK_OVERHEAD_BYTES,
    COUNTER_MAX,
    LIMIT_RANGES,
    LIMITS,
    PRIORITY_MAX,
    SEQUENCE_MAX,
    SESSION_OVERHEAD_BYTES,
    THEME_MAX,
    TIME_MAX_MS,
    TRACE_BYTES_MAX,
)
from state.machine import StateMachine
from state.operations import Cause
from state.policy import POLICY_RANGES, Policy
from state.records import (
    ANSWERS,
    CHECK,
    CONSUMER,
    ID_BITS,
    ID_MASK,
    META,
    RECEIPT,
    SESSION,
    THEME,
    WINDOW,
    Answers,
    Consumer,
    HistoryEntry,
    Receipt,
    Record,
    Session,
    Theme,
    Window,
)
from state.results import unpack_result
from state.tables import Tables
from state.transitions import ACTIVE, PARKED, STORED

_DUE_MAX_MS = 2 * TIME_MAX_MS
_STORED_PHASES = {int(phase): phase for phase in (STORED, ACTIVE, PARKED)}


def load(items: Iterable[Item]) -> StateMachine:
    """The state that was captured as `items`. Raises `DamagedStateError`."""
    loader = Loader()
    loader.feed(items)
    return loader.finish()


class Loader:
    """Takes the items of a whole capture piece by piece."""

    def __init__(self) -> None:
        self._tables: Tables | None = None
        self._kind = META
        self._digest: int | None = None
        self._meta: Item | None = None
        self._take: dict[int, Callable[[Tables, Any], Record]] = {
            THEME: _theme,
            CONSUMER: _consumer,
            WINDOW: _window,
            ANSWERS: _answers,
            RECEIPT: _receipt,
        }

    def feed(self, items: Iterable[Item]) -> None:
        """Take the next items. Raises `DamagedStateError`; the loader is of no use after that."""
        for item in items:
            try:
                self._feed(item)
            except MemoryError:
                raise  # it says nothing about the items
            except Exception as error:
                # Items may be anything, so anything may go wrong with them; nothing is served.
                raise DamagedStateError(f"{_describe(item)}: {error}") from error

    def finish(self) -> StateMachine:
        """The state, once all items were fed. Raises `DamagedStateError`."""
        tables = self._tables
        if tables is None or self._digest is None or self._meta is None:
            raise DamagedStateError("the state is incomplete: it does not end with its digest")
        try:
            digest = (tables.ledger.digest() + layout.digest_of(self._meta)) & layout.DIGEST_MASK
        except MemoryError:
            raise
        except Exception as error:
            # Something in a result is not what msgpack writes.
            raise DamagedStateError(f"the state has no digest: {error}") from error
        if digest != self._digest:
            raise DamagedStateError(f"the digest of the state is {digest}, not {self._digest}")
        return StateMachine(tables=tables)

    def _feed(self, item: Item) -> None:
        kind, fields = item.kind, item.fields
        if fields is None:
            raise ValueError("a deletion has no place in a whole state")
        _require(kind in FIELDS and len(fields) == len(FIELDS[kind]), "its layout is unknown")
        _require(kind >= self._kind and self._digest is None, "it is out of order")
        self._kind = kind
        if kind == META:
            _require(self._tables is None, "it comes twice")
            self._tables = _tables(fields)
            self._meta = item
            return
        tables = self._tables
        if tables is None:
            raise ValueError("META does not come first")
        if kind == CHECK:
            digest, applied_index = fields
            _require(applied_index == tables.applied_index, "its applied index is another")
            self._digest = _int(digest, layout.DIGEST_MASK)
            return
        if kind == SESSION:
            _require(item.first_chunk == 0, "its first chunks are missing")
            record: Record = _session(tables, item)
        else:
            record = self._take[kind](tables, fields)
        _require(record.identity == item.identity, "its identity is another")
        tables.ledger.loaded(record)


def _tables(fields: tuple[Any, ...]) -> Tables:
    version, applied_index, term, now_ms, horizon, *counters, limits = fields
    if version != LAYOUT_VERSION:
        raise ValueError(f"layout version {version} is not supported, only {LAYOUT_VERSION} is")
    last_session_id, key_epoch, turn = counters
    settings = {}
    for name, value in limits:
        one = LIMIT_RANGES[name]
        _require(one.minimum <= _int(value, one.maximum), f"limit {name} is out of range")
        settings[name] = value
    tables = Tables(replace(LIMITS, **settings))
    tables.applied_index = _int(applied_index, SEQUENCE_MAX)
    tables.term = _int(term, SEQUENCE_MAX)
    tables.now_ms = _int(now_ms, TIME_MAX_MS)
    horizon_ms, horizon_id = horizon
    tables.horizon = _int(horizon_ms, tables.now_ms) << ID_BITS | _int(horizon_id, ID_MASK)
    tables.last_session_id = _int(last_session_id, COUNTER_MAX)
    tables.key_epoch = _int(key_epoch, SEQUENCE_MAX)
    tables.turn = _int(turn, SEQUENCE_MAX)
    return tables


def _theme(tables: Tables, fields: tuple[Any, ...]) -> Theme:
    theme_id, policy, paused, served = fields
    _require(theme_id not in tables.themes, "it comes twice")
    theme = tables.themes[_int(theme_id, THEME_MAX)] = Theme(theme_id, 0)
    settings = dict(zip(POLICY_RANGES, policy, strict=True))
    for name, value in settings.items():
        one = POLICY_RANGES[name]
        _require(one.minimum <= _int(value, one.maximum), f"{name} is out of range")
    theme.policy = Policy(**settings)
    _require(type(paused) in (bool, int) and paused in {0, 1}, "paused is not a bool")
    theme.paused = bool(paused)
    theme.served = _int(served, tables.turn)
    return theme


def _consumer(tables: Tables, fields: tuple[Any, ...]) -> Consumer:
    consumer_id, seen_ms = fields
    _require(type(consumer_id) is bytes, "its id is not bytes")
    _require(consumer_id not in tables.consumers, "it comes twice")
    consumer = Consumer(consumer_id, _int(seen_ms, tables.now_ms))
    tables.consumers[consumer_id] = consumer
    return consumer


def _window(tables: Tables, fields: tuple[Any, ...]) -> Window:
    proposer, incarnation, floor = fields
    _require(type(proposer) is str, "its proposer is not a str")
    _require(proposer not in tables.windows, "it comes twice")
    window = Window(proposer, _int(incarnation, SEQUENCE_MAX))
    window.floor = floor if floor == -1 else _int(floor, SEQUENCE_MAX)
    tables.windows[proposer] = window
    return window


def _answers(tables: Tables, fields: tuple[Any, ...]) -> Answers:
    proposer, sequence, packed, packed_failure = fields
    window = tables.windows[proposer]
    _require(sequence not in window.answers, "it comes twice")
    _require(window.floor < _int(sequence, SEQUENCE_MAX), "it is below the floor of its window")
    results = tuple(map(unpack_result, codec.decode(packed)))
    failure = unpack_result(packed_failure)
    if failure is not None and (results or not isinstance(failure, Failure)):
        raise ValueError("its failure is none")
    answers = window.answers[sequence] = Answers(proposer, sequence, results, failure)
    window.result_count += answers.weight
    return answers


def _receipt(tables: Tables, fields: tuple[Any, ...]) -> Receipt:
    key, fingerprint, expires_ms, result, unused_id = fields
    _require(type(key) is bytes and type(fingerprint) is bytes, "its key is not bytes")
    _require(key not in tables.receipts, "it comes twice")
    _require(unused_id not in tables.unused, "its session has two")
    _int(unused_id, tables.last_session_id)
    expires_ms = _int(expires_ms, _DUE_MAX_MS)
    receipt = Receipt(key, fingerprint, expires_ms, unpack_result(result), unused_id)
    tables.receipts[key] = receipt
    tables.index(receipt)
    return receipt


def _session(tables: Tables, item: Item) -> Session:
    fields = dict(zip(FIELDS[SESSION], item.fields or (), strict=True))
    session_id, key = fields["session_id"], fields["key"]
    _require(_int(session_id, tables.last_session_id) > 0, "its id was never given out")
    _require(session_id not in tables.sessions, "it comes twice")
    theme = tables.themes[fields["theme_id"]]
    _require(key is None or (type(key) is bytes and key != b""), "its key is not bytes")
    _require(key not in theme.keys, "its key is held by another")
    _require(len(item.chunks) == fields["chunk_count"], "a chunk is missing")
    _require(all(type(chunk) is bytes for chunk in item.chunks), "a chunk is not bytes")
    trace = fields["trace"]
    _require(type(trace) is bytes and len(trace) <= TRACE_BYTES_MAX, "its trace is none")
    size_bytes = SESSION_OVERHEAD_BYTES + len(key or b"") + len(trace)
    size_bytes += sum(map(len, item.chunks)) + CHUNK_OVERHEAD_BYTES * len(item.chunks)
    now_ms = tables.now_ms
    session = Session(
        session_id,
        theme,
        key,
        list(item.chunks),
        size_bytes,
        _int(fields["priority"], PRIORITY_MAX),
        _int(fields["created_ms"], now_ms),
        trace,
    )
    session.phase = _STORED_PHASES[fields["phase"]]
    session.epoch = _int(fields["epoch"], SEQUENCE_MAX)
    session.revision = _int(fields["revision"], SEQUENCE_MAX)
    session.attempts = _int(fields["attempts"], session.epoch)
    session.updated_ms = _same(session.created_ms, _int(fields["updated_ms"], now_ms))
    session.due_ms = _int(fields["due_ms"], _DUE_MAX_MS)
    session.touched_ms = _same(session.updated_ms, _int(fields["touched_ms"], now_ms))
    session.lease_ms = _int(fields["lease_ms"], POLICY_RANGES["lease_ms"].maximum)
    session.progress_ms = _int(fields["progress_ms"], POLICY_RANGES["progress_ms"].maximum)
    if fields["consumer_id"] is not None:
        session.consumer = tables.consumers[fields["consumer_id"]]
    active = session.phase is ACTIVE
    _require(active == (session.lease_ms > 0), "only an active session has a lease")
    _require(active or (session.consumer is None and not session.progress_ms), "it is not active")
    _require(not active or session.epoch > 0, "an active session has an epoch")
    session.history = tuple(_history_entry(now_ms, entry) for entry in fields["history"])
    session.size_bytes += sum(entry.size_bytes for entry in session.history)
    tables.index(session)
    return session


def _history_entry(now_ms: int, entry: tuple[Any, ...]) -> HistoryEntry:
    cause, reason, times, first_ms, last_ms = entry
    _require(type(reason) is str, "a reason is not a str")
    _int(first_ms, _int(last_ms, now_ms))
    return HistoryEntry(int(Cause(cause)), reason, _int(times, SEQUENCE_MAX), first_ms, last_ms)


def _same(known: int, value: int) -> int:
    """The object that is known already, if it is equal: half the times of a session are."""
    return known if known == value else value


def _int(value: Any, maximum: int) -> int:  # noqa: ANN401 - that is what is checked
    if type(value) is not int or not 0 <= value <= maximum:
        raise ValueError(f"{str(value)[:64]} is not an int between 0 and {maximum}")
    return value


def _require(holds: bool, problem: str) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(problem)


def _describe(item: Any) -> str:  # noqa: ANN401
    kind, name = (item.kind, item.identity) if isinstance(item, Item) else (None, None)
    names = ("META", "theme", "consumer", "window", "answers", "receipt", "session", "CHECK")
    word = names[kind] if isinstance(kind, int) and 0 <= kind < len(names) else "item"
    try:
        return f"{word} {str(name)[:64]}"
    except ValueError:  # Python does not print ints of thousands of digits
        return word
