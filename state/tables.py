"""The records of a state, and the indexes over them, which always agree.

`enter` and `leave` are the only ways of a session into and out of the indexes of its phase, and
`_keep` and `_drop` into and out of the state. Every index follows from fields of records
(and from the clock), so that an import rebuilds them, and a failed transaction restores them, by
the same two calls.

Readiness. A stored session sleeps in one index by (due time, id) until a Tick comes to it, then
stands in the queue of its theme by (priority, due time, id). How far Ticks have come is one number
of the state, the *horizon*: sessions at or below it are ready, those above it sleep. So a Tick
that wakes a page at a time is still a function of the state, and a million sleepers cost it
nothing.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from state.errors import Failure, LimitExceeded, Malformed, Refused
from state.expiries import Expiries
from state.leases import LeaseCalendar
from state.ledger import Ledger, Undo
from state.limits import CHUNK_OVERHEAD_BYTES, THEME_MAX, Limits
from state.ordered import OrderedInts
from state.records import (
    ANSWERS,
    CONSUMER,
    ID_BITS,
    ID_MASK,
    PRIORITY_SHIFT,
    RECEIPT,
    SESSION,
    THEME,
    WINDOW,
    Answers,
    Consumer,
    Receipt,
    Record,
    Session,
    Theme,
    Window,
)
from state.results import Created, Result
from state.transitions import ACTIVE, NOTHING, PARKED, READY, RULES, STORED, Act

_TICK = RULES[Act.TICK]


class Tables:
    """Everything that is replicated."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.ledger = Ledger()
        self.applied_index = 0
        self.term = 0
        self.now_ms = 0
        self.horizon = ID_MASK  # due_ms << 64 | id of the last sleeper that a Tick came to
        self.last_session_id = 0
        # The highest epoch of the sessions with a key that are gone. Those to come begin above it:
        # so no two sessions of a key share an epoch, and who shows one means one session.
        self.key_epoch = 0
        self.turn = 0  # how many sessions were handed out in all
        self.sessions: dict[int, Session] = {}
        self.themes: dict[int, Theme] = {}
        self.consumers: dict[bytes, Consumer] = {}
        self.windows: dict[str, Window] = {}
        self.receipts: dict[bytes, Receipt] = {}
        # From here on what follows from the above.
        self.size_bytes = 0
        self.sleeping = OrderedInts()  # due_ms << 64 | id
        self.leases = LeaseCalendar(self.sessions.get, self.consumers.get)
        self.expiries = Expiries()  # of receipts
        # Sessions whose epoch nobody has shown since they began, and the keys of their receipts.
        self.unused: dict[int, bytes] = {}
        self.awake: set[Theme] = set()  # themes that may have something to hand out since `flush`
        # May be forgotten at the end of the batch; a dict for its order.
        self.idle: dict[Theme | Consumer, None] = {}

    # Sessions

    def keep(self, session: Session) -> None:
        """Take a new session into the state, its phase set."""
        self.ledger.created(session)
        self._count(session)
        session.theme.roll.append(session.session_id)
        self.enter(session)

    def drop(self, session: Session) -> None:
        """Take a session out of the state, and free its key."""
        self.ledger.removed(session)
        self.leave(session)
        self._uncount(session)
        session.phase = NOTHING
        if session.key is not None and session.epoch > self.key_epoch:
            self.key_epoch = session.epoch

    def _count(self, session: Session) -> None:
        theme = session.theme
        self.sessions[session.session_id] = session
        if session.key is not None:
            theme.keys[session.key] = session.session_id
        self.size_bytes += session.size_bytes
        theme.size_bytes += session.size_bytes

    def _uncount(self, session: Session) -> None:
        theme = session.theme
        del self.sessions[session.session_id]
        if session.key is not None:
            del theme.keys[session.key]
        self.size_bytes -= session.size_bytes
        theme.size_bytes -= session.size_bytes
        self.idle[theme] = None

    def enter(self, session: Session) -> None:
        """Put a session into the index of its phase. STORED may turn into READY here."""
        theme = session.theme
        if session.phase is ACTIVE:
            self.leases.enter(session)
        elif session.phase is not PARKED:
            place = session.place
            if place <= self.horizon:
                session.phase = READY
                theme.ready.add(session.priority << PRIORITY_SHIFT | place)
                self.awake.add(theme)
            else:
                session.phase = STORED
                self.sleeping.add(place)
        theme.counts[session.phase] += 1

    def leave(self, session: Session) -> None:
        """Take a session out of the index of its phase, before any field of it changes."""
        theme = session.theme
        phase = session.phase
        theme.counts[phase] -= 1
        if phase is ACTIVE:
            self.leases.leave(session)
            if session.consumer is not None:
                self.idle[session.consumer] = None
            if theme.policy.max_active:
                self.awake.add(theme)
        elif phase is not PARKED:
            place = session.place
            if phase is READY:
                theme.ready.remove(session.priority << PRIORITY_SHIFT | place)
            else:
                self.sleeping.remove(place)

    def rebind(self, session: Session, consumer: Consumer | None) -> None:
        """Give a noted active session to another consumer of the same operator."""
        self.leases.leave(session)
        if session.consumer is not None:
            self.idle[session.consumer] = None
        session.consumer = consumer
        self.leases.enter(session)

    def wake(self, count: int) -> list[Session]:
        """Make the first `count` sleepers that are due ready, and move the horizon along."""
        end = self.now_ms << ID_BITS | ID_MASK
        places = self.sleeping.pop_until(end, count)
        self.horizon = max(self.horizon, places[-1] if len(places) == count else end)
        woken = [self.sessions[place & ID_MASK] for place in places]
        for session in woken:
            session.theme.counts[STORED] -= 1
            self.enter(session)
            _TICK.check(STORED, session.phase)
        return woken

    def add_chunk(self, session: Session, data: bytes) -> None:
        """Add a chunk to a noted session."""
        session.chunks.append(data)
        self.resize(session, len(data) + CHUNK_OVERHEAD_BYTES)

    def resize(self, session: Session, by_bytes: int) -> None:
        """Account for data or history that a noted session has gained or lost."""
        session.size_bytes += by_bytes
        session.theme.size_bytes += by_bytes
        self.size_bytes += by_bytes

    def ready_ids(self, theme: Theme) -> Iterator[int]:
        """The ids of the ready sessions of a theme in the order of their turn."""
        return (place & ID_MASK for place in theme.ready)

    # Themes and consumers

    def check_theme(self, theme_id: int) -> None:
        """Whether `open_theme` may be called. Raises `Refused`."""
        if theme_id in self.themes:
            return
        if not 0 <= theme_id <= THEME_MAX:
            raise Refused(Malformed("theme is not a uint32"))
        if len(self.themes) >= self.limits.themes:
            raise Refused(LimitExceeded("themes", len(self.themes) + 1, self.limits.themes))

    def open_theme(self, theme_id: int) -> Theme:
        """The theme with this id, which need not have been heard of before."""
        theme = self.themes.get(theme_id)
        if theme is None:
            theme = self.themes[theme_id] = Theme(theme_id, self.turn)
            self.ledger.created(theme)
            self.idle[theme] = None
        return theme

    def check_consumer(self, consumer_id: bytes) -> None:
        """Whether `open_consumer` may be called. Raises `Refused`."""
        if consumer_id in self.consumers:
            return
        if not 0 < len(consumer_id) <= self.limits.consumer_bytes:
            bound = self.limits.consumer_bytes
            raise Refused(LimitExceeded("consumer_bytes", len(consumer_id), bound))
        if len(self.consumers) >= self.limits.consumers:
            bound = self.limits.consumers
            raise Refused(LimitExceeded("consumers", len(self.consumers) + 1, bound))

    def open_consumer(self, consumer_id: bytes) -> Consumer:
        """The consumer with this id, seen now."""
        consumer = self.consumers.get(consumer_id)
        if consumer is None:
            consumer = self.consumers[consumer_id] = Consumer(consumer_id, self.now_ms)
            self.ledger.created(consumer)
            self.idle[consumer] = None
        elif consumer.seen_ms != self.now_ms:
            self.see(consumer)
        return consumer

    def see(self, consumer: Consumer) -> None:
        """Renew all leases of a consumer."""
        if consumer.mark != self.ledger.mark:
            self.ledger.note(consumer)
        consumer.seen_ms = self.now_ms

    # Windows

    def answer(
        self,
        window: Window,
        sequence: int,
        results: tuple[Result, ...],
        failure: Failure | None = None,
    ) -> None:
        """Keep what a batch was answered, and forget the oldest for it."""
        answers = Answers(window.proposer, sequence, results, failure)
        window.answers[sequence] = answers
        self.ledger.created(answers)
        window.result_count += answers.weight
        limits = self.limits
        while len(window.answers) > limits.window_batches or (
            window.result_count > limits.window_results and len(window.answers) > 1
        ):
            if window.mark != self.ledger.mark:
                self.ledger.note(window)
            window.floor = min(window.answers)
            oldest = window.answers.pop(window.floor)
            window.result_count -= oldest.weight
            self.ledger.removed(oldest)

    def clear(self, window: Window, incarnation: int, floor: int) -> None:
        """Forget all results of a proposer, and go on with this incarnation above this floor."""
        if window.mark != self.ledger.mark:
            self.ledger.note(window)
        for answers in window.answers.values():
            self.ledger.removed(answers)
        window.answers = {}
        window.result_count = 0
        window.incarnation = incarnation
        window.floor = floor

    # Receipts

    def keep_receipt(self, receipt: Receipt) -> None:
        """Remember what an idempotency key was answered."""
        self.drop_receipt(receipt.key)
        self.receipts[receipt.key] = receipt
        self.ledger.created(receipt)
        self.index(receipt)

    def drop_receipt(self, key: bytes) -> None:
        """Forget an idempotency key, if it is known."""
        receipt = self.receipts.pop(key, None)
        if receipt is not None:
            self.size_bytes -= receipt.size_bytes
            self.expiries.remove(receipt.expires_ms, key)
            if receipt.unused_id:
                del self.unused[receipt.unused_id]
            self.ledger.removed(receipt)

    def keep_though_used(self, receipt: Receipt) -> None:
        """Remember a key for all of its time, as it was asked for once more."""
        if receipt.mark != self.ledger.mark:
            self.ledger.note(receipt)
        del self.unused[receipt.unused_id]
        receipt.unused_id = 0

    def use(self, session: Session, epoch: int | None) -> None:
        """Take note of a change that shows this epoch of a session, or none.

        Who shows the first one has had the answer to its New. In a transaction, which may come to
        nothing, that is no matter: the key is remembered for longer then.
        """
        if epoch is not None and self.ledger.undo is None:
            key = self.unused.get(session.session_id)
            if key is not None and self._has_begun_in(epoch, self.receipts[key].result):
                self.drop_receipt(key)

    @staticmethod
    def _has_begun_in(epoch: int, result: Result) -> bool:
        return isinstance(result, Created) and result.epoch == epoch

    def expire_receipts(self, count: int) -> None:
        """Forget up to `count` idempotency keys whose time is over."""
        while count > 0:
            receipt = self.first_to_expire()
            if receipt is None or receipt.expires_ms > self.now_ms:
                break
            self.drop_receipt(receipt.key)
            count -= 1

    def first_to_expire(self) -> Receipt | None:
        """The receipt whose time is over first."""
        first = self.expiries.first()
        return None if first is None else self.receipts[first[1]]

    # Batches and transactions

    def flush(self) -> tuple[int, ...]:
        """End a batch: forget what is empty. Answers the themes that have work to hand out."""
        wasteful: list[Theme] = []
        for record in self.idle:
            if isinstance(record, Theme):
                if record.is_default and self.themes.get(record.theme_id) is record:
                    self.ledger.removed(record)
                    del self.themes[record.theme_id]
                elif record.roll.tidy(record.population, self.sessions):
                    wasteful.append(record)
            elif not record.population and self.consumers.get(record.consumer_id) is record:
                self.ledger.removed(record)
                self.leases.forget(record)
                del self.consumers[record.consumer_id]
        self.idle.clear()
        for theme in wasteful:
            self.idle[theme] = None  # the next batch goes on
        if not self.awake:
            return ()
        awake = sorted(theme.theme_id for theme in self.awake if theme.can_serve)
        self.awake.clear()
        return tuple(awake)

    def scalars(self) -> tuple[int, ...]:
        """What a transaction may change that is in no record."""
        return (self.last_session_id, self.key_epoch, self.turn)

    def undo(self, undos: list[Undo], scalars: tuple[int, ...]) -> None:
        """Put back what a failed transaction changed, so that it leaves no trace."""
        self.last_session_id, self.key_epoch, self.turn = scalars
        # The oldest word about a record is what it was before.
        before = {undo.record: undo for undo in reversed(undos)}
        sessions = [record for record in before if isinstance(record, Session)]
        gone = {session for session in sessions if session.phase is NOTHING}
        for session in sessions:
            if before[session].before is None:
                session.theme.roll.cut(self.last_session_id)  # its id will be another's
            if session not in gone:
                self.leave(session)
                self._uncount(session)
        for record, undo in before.items():
            if undo.before is None:
                self._forget(record)
                continue
            for name, value in zip(record.changeable, undo.before, strict=True):
                setattr(record, name, value)
            if isinstance(record, Session):
                del record.chunks[undo.chunk_count :]
            self.ledger.undone(undo, removed=record in gone)
        for session in sessions:
            if before[session].before is not None:
                self._count(session)
                self.enter(session)

    def _forget(self, record: Record) -> None:
        """Undo the creation of a record; sessions have left their tables by now."""
        if isinstance(record, Theme):
            del self.themes[record.theme_id]
        elif isinstance(record, Consumer):
            self.leases.forget(record)
            del self.consumers[record.consumer_id]
        elif isinstance(record, Session) and record.phase is NOTHING:
            return
        self.ledger.removed(record)

    # Import

    def index(self, record: Session | Receipt) -> None:
        """Take a record that was loaded into the indexes; it is in the state already."""
        if isinstance(record, Receipt):
            self.size_bytes += record.size_bytes
            self.expiries.add(record.expires_ms, record.key)
            if record.unused_id:
                self.unused[record.unused_id] = record.key
        else:
            self._count(record)
            record.theme.roll.add(record.session_id)
            self.enter(record)

    def everything(self) -> list[Iterable[Record]]:
        """All records by kind, as they are now."""
        answers = [list(window.answers.values()) for window in self.windows.values()]
        by_kind: dict[int, Iterable[Record]] = {
            THEME: list(self.themes.values()),
            CONSUMER: list(self.consumers.values()),
            WINDOW: list(self.windows.values()),
            ANSWERS: chain.from_iterable(answers),
            RECEIPT: list(self.receipts.values()),
            SESSION: list(self.sessions.values()),
        }
        return [by_kind.get(kind, ()) for kind in range(SESSION + 1)]
