"""The replicated state machine: batches in, results out.

`StateMachine.apply` is a function of the state and the bytes, and of nothing else: two machines
that were given the same batches in the same order have the same state, answer the same, and say so
by equal digests. This module opens the envelope, recognises what was applied before, and hands
each operation to the method that does it; what operations mean is in `execution` and `upkeep`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from state import codec, layout
from state.errors import (
    Failure,
    IdempotencyMismatch,
    IncarnationSuperseded,
    LimitExceeded,
    Malformed,
    Refused,
    SequenceExpired,
    TxnAborted,
    UnknownOperation,
)
from state.events import Event, RawEvent
from state.execution import Executor
from state.layout import LAYOUT_VERSION
from state.ledger import Capture
from state.limits import LIMIT_RANGES, LIMITS, RECEIPT_OVERHEAD_BYTES, Limits
from state.operations import (
    OPERATION_BY_CODE,
    Acquire,
    AcquireSession,
    Append,
    Barrier,
    ForgetProposer,
    Heartbeat,
    Idempotent,
    New,
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
    Tick,
    Touch,
    Txn,
    Unpark,
    shapes,
)
from state.records import ID_BITS, ID_MASK, Receipt, Session, Theme, Window
from state.results import Created, Done, Result
from state.tables import Tables
from state.upkeep import Upkeep

_FLAGS = frozenset((0, 1))

Handler = Callable[[tuple[Any, ...]], Result]

# By type (a tuple, or it is no operation), by the types of all fields, by code: finding the handler
# checks them.
Handlers = dict[type, dict[tuple[type, ...], dict[int, Handler]]]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one batch."""

    index: int
    results: tuple[Result, ...]
    """One for each operation, in order; empty if the batch as a whole was refused."""
    failure: Failure | None = None
    """Why the batch as a whole was refused."""
    duplicate: bool = False
    """The batch had been applied before: these are the recorded results, and nothing changed."""
    awake: tuple[int, ...] = ()
    """Themes, ascending, that have something to hand out and may not have had before: a hint."""
    raw_events: tuple[RawEvent, ...] = ()

    def events(self) -> Iterator[Event]:
        """What changed, in order."""
        for raw in self.raw_events:
            yield Event(*raw, self.index)


class StateMachine:
    """All sessions, themes, consumers and results of one cluster, in memory."""

    def __init__(self, limits: Limits = LIMITS, *, tables: Tables | None = None) -> None:
        """Begin an empty state, or go on with `tables`, which are the machine's own from now on."""
        self._tables = tables = Tables(limits) if tables is None else tables
        self._executor = executor = Executor(tables)
        self._upkeep = upkeep = Upkeep(tables)
        in_txn: dict[type[Operation], Handler] = {
            New: executor.new,
            Append: executor.append,
            Replace: executor.replace,
            Remove: executor.remove,
            Store: executor.store,
            Acquire: executor.acquire,
            AcquireSession: executor.acquire_session,
            Touch: executor.touch,
            Park: executor.park,
            Unpark: executor.unpark,
        }
        repeatable = {
            **in_txn,
            SetPolicy: upkeep.set_policy,
            Pause: upkeep.pause,
            Resume: upkeep.resume,
            Txn: self._txn,
        }
        everything = {
            **repeatable,
            Tick: upkeep.tick,
            Barrier: upkeep.barrier,
            Heartbeat: upkeep.heartbeat,
            Idempotent: self._idempotent,
            SetLimits: upkeep.set_limits,
            ForgetProposer: upkeep.forget_proposer,
            Release: executor.release,
        }
        self._handlers = _by_shape(everything)
        self._in_txn = _by_shape(in_txn)
        self._in_idempotent = _by_shape(repeatable)

    # Applying

    def apply(self, index: int, batch: bytes) -> Applied:
        """Apply the batch at `index` of the log.

        Any bytes give results, never an exception. Raises ValueError if `index` is not above that
        of the last batch: the log goes one way. Any other exception is a defect of this package;
        the state may be half changed then, and the caller must stop using it.
        """
        tables = self._tables
        if index <= tables.applied_index:
            raise ValueError(f"index {index} is not above {tables.applied_index}")
        tables.applied_index = index
        try:
            header = codec.decode_header(batch)
            window = self._window(header.proposer, header.incarnation)
            if window is not None and header.incarnation == window.incarnation:
                # Before any limit is asked: an applied batch has passed those of its time.
                recorded = window.answers.get(header.sequence)
                if recorded is not None:
                    return Applied(index, recorded.results, recorded.failure, duplicate=True)
                if header.sequence <= window.floor:
                    return Applied(index, (), SequenceExpired(header.sequence, window.floor))
            failure = codec.check_size(batch, header, tables.limits)
            operations = () if failure else codec.decode_operations(batch)
            if window is None:
                window = self._open_window(header.proposer, header.incarnation)
        except Refused as refused:
            return Applied(index, (), refused.failure)
        if header.incarnation > window.incarnation:
            tables.clear(window, header.incarnation, -1)
        if failure is not None:
            # Recorded like any answer: under other limits the same batch would be applied.
            tables.answer(window, header.sequence, (), failure)
            return Applied(index, (), failure)
        executor, upkeep = self._executor, self._upkeep
        events: list[RawEvent] = []
        executor.events = upkeep.events = events
        executor.term = upkeep.term = header.term
        executor.handed_out = 0
        upkeep.index = index
        upkeep.proposer = header.proposer
        results: list[Result] = []
        add = results.append
        handlers = self._handlers
        for operation in operations:
            try:
                handler = handlers[type(operation)][tuple(map(type, operation))][operation[0]]
            except KeyError:
                add(_unfit(operation, handlers))
                continue
            try:
                add(handler(operation))
            except Refused as refused:
                add(refused.failure)
        answers = tuple(results)
        tables.answer(window, header.sequence, answers)
        return Applied(index, answers, awake=tables.flush(), raw_events=tuple(events))

    def _txn(self, operation: tuple[Any, ...]) -> Done:
        tables = self._tables
        operations = operation[1]
        limits = tables.limits
        if len(operations) > limits.txn_operations:
            raise Refused(LimitExceeded("txn_operations", len(operations), limits.txn_operations))
        executor = self._executor
        event_count, handed_out = len(executor.events), executor.handed_out
        scalars = tables.scalars()
        undos = tables.ledger.begin()
        results: list[Result] = []
        try:
            for one in operations:
                results.append(self._perform(one, self._in_txn))  # noqa: PERF401 - counts them
        except Refused as refused:
            tables.ledger.end()
            tables.undo(undos, scalars)
            del executor.events[event_count:]
            executor.handed_out = handed_out
            raise Refused(TxnAborted(len(results), refused.failure)) from refused
        tables.ledger.end()
        return Done(tuple(results))

    def _idempotent(self, operation: tuple[Any, ...]) -> Result:
        _, key, expires_after_ms, inner, until_used = operation
        if until_used not in _FLAGS:
            raise Refused(Malformed("until_used is 0 or 1"))
        tables = self._tables
        limits = tables.limits
        fingerprint = codec.fingerprint(inner)
        receipt = tables.receipts.get(key)
        # Before any limit is asked, as with batches: what was done has passed those of its time.
        if receipt is not None and receipt.expires_ms > tables.now_ms:
            if receipt.fingerprint != fingerprint:
                raise Refused(IdempotencyMismatch())
            if receipt.unused_id and not until_used:
                tables.keep_though_used(receipt)
            return receipt.result
        if not 0 < len(key) <= limits.receipt_bytes:
            raise Refused(LimitExceeded("receipt_bytes", len(key), limits.receipt_bytes))
        if not 0 < expires_after_ms <= limits.receipt_expires_after_ms:
            bound_ms = limits.receipt_expires_after_ms
            raise Refused(LimitExceeded("receipt_expires_after_ms", expires_after_ms, bound_ms))
        is_full = receipt is None and len(tables.receipts) >= limits.receipts
        if not _is_ending(inner):
            if is_full:
                raise Refused(LimitExceeded("receipts", len(tables.receipts) + 1, limits.receipts))
            size_bytes = tables.size_bytes + RECEIPT_OVERHEAD_BYTES + len(key)
            if size_bytes > limits.state_bytes:
                raise Refused(LimitExceeded("state_bytes", size_bytes, limits.state_bytes))
        result = self._perform(inner, self._in_idempotent)
        if is_full:
            # What ends a session is never refused. It is done, but its key is not remembered:
            # forgetting another's would let that be done twice.
            return result
        expires_ms = tables.now_ms + expires_after_ms
        unused_id = 0
        if until_used and type(result) is Created and result.epoch:
            unused_id = result.session_id
        tables.keep_receipt(Receipt(key, fingerprint, expires_ms, result, unused_id))
        return result

    def _perform(self, operation: Any, handlers: Handlers) -> Result:  # noqa: ANN401
        """Do an operation that is inside another. Raises `Refused`."""
        try:
            handler = handlers[type(operation)][tuple(map(type, operation))][operation[0]]
        except KeyError as error:
            raise Refused(_unfit(operation, handlers)) from error
        return handler(operation)

    # Exactly once

    def _window(self, proposer: str, incarnation: int) -> Window | None:
        """The window of a proposer, if there is one. Raises `Refused`."""
        window = self._tables.windows.get(proposer)
        if window is not None and incarnation < window.incarnation:
            raise Refused(IncarnationSuperseded(incarnation, window.incarnation))
        return window

    def _open_window(self, proposer: str, incarnation: int) -> Window:
        """A window for a proposer that is not known. Raises `Refused`."""
        windows, bound = self._tables.windows, self._tables.limits.proposers
        if len(windows) >= bound:
            raise Refused(LimitExceeded("proposers", len(windows) + 1, bound))
        window = windows[proposer] = Window(proposer, incarnation)
        self._tables.ledger.created(window)
        return window

    # Reading. What these return is the state itself: it is to be read before the next `apply`.

    @property
    def applied_index(self) -> int:
        """Where in the log this state is."""
        return self._tables.applied_index

    @property
    def now_ms(self) -> int:
        """The replicated time."""
        return self._tables.now_ms

    @property
    def term(self) -> int:
        """The newest term whose leader has moved the clock."""
        return self._tables.term

    @property
    def limits(self) -> Limits:
        """The replicated limits."""
        return self._tables.limits

    @property
    def size_bytes(self) -> int:
        """What counts against `state_bytes`: data, keys, histories, receipts, overheads."""
        return self._tables.size_bytes

    @property
    def session_count(self) -> int:
        """How many sessions there are."""
        return len(self._tables.sessions)

    @property
    def last_session_id(self) -> int:
        """The highest id that a session has, or had. Ids are never given twice."""
        return self._tables.last_session_id

    def session(self, target: int | tuple[int, bytes]) -> Session | None:
        """A session by its id, or by theme and key."""
        if isinstance(target, int):
            return self._tables.sessions.get(target)
        theme = self._tables.themes.get(target[0])
        return None if theme is None else self._tables.sessions.get(theme.keys.get(target[1], 0))

    def sessions(self) -> Iterator[Session]:
        """All sessions, in no particular order."""
        return iter(self._tables.sessions.values())

    def listed(self, theme_id: int, after: int, count: int) -> tuple[list[Session], int | None]:
        """The sessions of a theme above an id, in the order of their ids, and where to go on.

        Looks at `count` ids, of which some may be of sessions that are gone; None: these were all.
        Who goes on from page to page sees each session that stays, exactly once.
        """
        theme = self._tables.themes.get(theme_id)
        if theme is None:
            return [], None
        ids = theme.roll.after(after, count)
        found = map(self._tables.sessions.get, ids)
        sessions = [session for session in found if session is not None]
        return sessions, ids[-1] if len(ids) == count else None

    def theme(self, theme_id: int) -> Theme | None:
        """A theme that has sessions, or a policy of its own."""
        return self._tables.themes.get(theme_id)

    def themes(self) -> Iterator[Theme]:
        """All themes that have sessions, or a policy of their own."""
        return iter(self._tables.themes.values())

    def answered(self, proposer: str, incarnation: int, sequence: int) -> Applied | None:
        """What a batch was answered, if it was applied and its results are still known."""
        window = self._tables.windows.get(proposer)
        if window is None or window.incarnation != incarnation:
            return None
        recorded = window.answers.get(sequence)
        if recorded is None:
            return None
        index = self._tables.applied_index
        return Applied(index, recorded.results, recorded.failure, duplicate=True)

    def consumers(self) -> Iterator[bytes]:
        """The ids of all consumers that hold sessions."""
        return iter(self._tables.consumers)

    def held_by(self, consumer_id: bytes) -> Iterator[tuple[int, int]]:
        """The active sessions that a consumer holds, as (id, epoch)."""
        consumer = self._tables.consumers.get(consumer_id)
        if consumer is not None:
            for group in consumer.groups.values():
                for session_id in group:
                    yield session_id, self._tables.sessions[session_id].epoch

    def ready_ids(self, theme_id: int) -> Iterator[int]:
        """The ids of a theme's ready sessions in the order in which they are handed out."""
        theme = self._tables.themes.get(theme_id)
        return iter(()) if theme is None else self._tables.ready_ids(theme)

    def stale(self, count: int) -> list[tuple[int, int]]:
        """Up to `count` active sessions whose lease has ended, as (id, epoch): the reaper's work.

        The same are found again until they have been stored; the reaper does not ask while its
        last Stores are on their way. A call looks at `count` entries after the other until it has
        found something: of those that come up, many may have been renewed.
        """
        return self._tables.leases.stale(self._tables.now_ms, count)

    @property
    def next_due_ms(self) -> int | None:
        """When the next sleeping session is due: in the past if a Tick had too much to wake."""
        first = self._tables.sleeping.first()
        return None if first is None else first >> ID_BITS

    @property
    def next_wake_ms(self) -> int | None:
        """When a Tick may next find something to do; None if it cannot. It may find nothing.

        Sessions fall due, leases and receipts end. In the past if the last Tick had too much to do.
        """
        receipt = self._tables.first_to_expire()
        times_ms = (
            self.next_due_ms,
            self._tables.leases.next_look_ms(),
            None if receipt is None else receipt.expires_ms,
        )
        return min((time_ms for time_ms in times_ms if time_ms is not None), default=None)

    # Checkpoints

    def digest(self) -> int:
        """60 bits that are equal on two machines when their states are, and else are not.

        Where in the log the state is has no part in it. Costs what changed since the last call.
        """
        meta = layout.digest_of(self._meta())
        return (self._tables.ledger.digest() + meta) & layout.DIGEST_MASK

    @property
    def change_count(self) -> int:
        """How many records `capture_changes` would write or delete."""
        return self._tables.ledger.change_count

    def capture_changes(self) -> Capture:
        """What changed since the last call, as it is now; to be read in pieces.

        Raises RuntimeError while another capture is unfinished.
        """
        return self._tables.ledger.capture(self._meta())

    def capture_everything(self) -> Capture:
        """The whole state as it is now; to be read in pieces, for a machine that loads it.

        It leaves `capture_changes` alone: what that answers builds on its own earlier answers, or
        on what this machine was loaded from, and on nothing else. Raises RuntimeError while another
        capture is unfinished.
        """
        return self._tables.ledger.capture(self._meta(), self._tables.everything())

    def _meta(self) -> layout.Item:
        tables = self._tables
        limits = tuple((name, getattr(tables.limits, name)) for name in LIMIT_RANGES)
        return layout.meta(
            (
                LAYOUT_VERSION,
                tables.applied_index,
                tables.term,
                tables.now_ms,
                (tables.horizon >> ID_BITS, tables.horizon & ID_MASK),
                tables.last_session_id,
                tables.key_epoch,
                tables.turn,
                limits,
            )
        )


def _by_shape(handlers: dict[type[Operation], Handler]) -> Handlers:
    found: dict[tuple[type, ...], dict[int, Handler]] = {}
    for operation, handler in handlers.items():
        for shape in shapes(operation):
            found.setdefault(shape, {})[operation.code] = handler
    return {tuple: found}


def _is_ending(operation: Any) -> bool:  # noqa: ANN401 - whatever the bytes said
    return isinstance(operation, tuple) and operation[:1] in _ENDINGS


_ENDINGS = {(Remove.code,), (Store.code,), (Park.code,)}


def _unfit(
    operation: Any,  # noqa: ANN401 - whatever the bytes said
    handlers: Handlers,
) -> UnknownOperation | Malformed:
    """Why there is no handler for an operation."""
    if not isinstance(operation, tuple) or not operation or type(operation[0]) is not int:
        return Malformed("not an operation")
    code: int = operation[0]
    if code not in OPERATION_BY_CODE:
        return UnknownOperation(code)
    name = OPERATION_BY_CODE[code].__name__
    if any(code in by_code for by_code in handlers[tuple].values()):
        return Malformed(f"a field of {name} has the wrong type")
    return Malformed(f"{name} is not possible inside another operation")
