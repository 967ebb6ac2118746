"""Makes up steps for the driver, by chance and with an eye on where things collide.

Few themes, keys, consumers and proposers, small limits, and times at which something happens: what
is rare in life is frequent here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from state import LIMITS, Cause, OnConflict, Phase
from state.errors import Malformed, TxnAborted, UnknownOperation, UnsupportedVersion
from state.limits import (
    LIMIT_RANGES,
    MIB,
    PRIORITY_MAX,
    SEQUENCE_MAX,
    THEME_MAX,
    TIME_MAX_MS,
    TRACE_BYTES_MAX,
    Range,
)
from state.operations import (
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
    Target,
    Tick,
    Touch,
    Txn,
    Unpark,
)
from state.policy import POLICY_RANGES
from tests.state.model import MALFORMED, Asked, Model, ModelSession, Raw
from tests.state.model_run import (
    Abandon,
    Batch,
    BeginCapture,
    Compare,
    FindStale,
    Junk,
    ReadCapture,
    Restart,
    Run,
    Seen,
    Step,
    Swap,
    ending,
    shorten,
)

T = TypeVar("T")

_LONG_TRACES = (b"t" * TRACE_BYTES_MAX, b"t" * (TRACE_BYTES_MAX + 1))
MANY = 1_000_000
POPULATION = 25

_JUNK: tuple[Junk, ...] = (
    Junk(b"", Malformed),
    Junk(b"\x96\x01", Malformed),
    Junk(b"\xc1\xff\x00", Malformed),
    Junk(b"\x96\x01\xa1a\x00\x00\x00\x80", Malformed),  # operations are a map
    Junk(b"\x96\x01\xa1z\x00\x00\x00\x91", Malformed),  # an operation is missing
    Junk(b"\x96\x01\xa1a\x00\xff\x00\x90", Malformed),  # sequence -1
    Junk(b"\x97\x02\xa1a\x00\x00\x00\x90\xc0", UnsupportedVersion),
)
_RAW: tuple[Raw, ...] = (
    Raw(b"\x91\x63", UnknownOperation(99)),
    Raw(b"\x91\xff", UnknownOperation(-1)),
    Raw(b"\x90", MALFORMED),
    Raw(b"\xc0", MALFORMED),
    Raw(b"\x91\x01", MALFORMED),  # New of nothing
    Raw(b"\x92\x11\x05", MALFORMED),  # Heartbeat of 5
    Raw(b"\x94\x06\x91\xa1a\x01\xc0", MALFORMED),  # Acquire of themes ("a",)
    Raw(b"\x95\x02\x91\x01\xc0\xc4\x00\xc0", MALFORMED),  # Append to (1,)
    Raw(b"\x93\x0b\x01\x91\x91\xa1a", MALFORMED),  # SetPolicy with (("a",),)
    Raw(b"\x92\x0e\x91\x91\x63", TxnAborted(0, UnknownOperation(99))),
    Raw(b"\x92\x0e\x91\x05", TxnAborted(0, MALFORMED)),
)

_SMALL_LIMITS: dict[str, tuple[int, ...]] = {
    "batch_bytes": (64 * 1024,),
    "batch_operations": (2, 3),
    "batch_acquired": (1, 2, 3),
    "txn_operations": (1, 2, 3),
    "chunk_bytes": (1, 2, 20),
    "session_bytes": (1, 3, 22),
    "session_chunks": (1, 2, 3),
    "key_bytes": (1, 2),
    "consumer_bytes": (1,),
    "reason_chars": (0, 1, 2),
    "history_entries": (1, 2, 3),
    "repeat_after_ms": (1, 100, 1000),
    "themes": (1, 2, 3, 4),
    "consumers": (1, 2, 3),
    "acquire_count": (1, 2),
    "acquire_themes": (1, 2),
    "proposers": (3,),
    "window_batches": (1, 2, 4),
    "window_results": (1, 2, 5, 9),
    "receipts": (0, 1, 2),
    "receipt_bytes": (1,),
    "receipt_expires_after_ms": (1, 400),
    "tick_page": (1, 1, 2, 3),
    "state_bytes": (MIB,),
}
_POLICIES: dict[str, tuple[int, ...]] = {
    "repeat_ms": (0, 1, 10, 300, 10_000),
    "backoff": (0, 1),
    "repeat_cap_ms": (1, 50, 1000),
    "jitter_permille": (0, 100, 1000),
    "lease_ms": (100, 128, 200, 1000),
    "progress_ms": (0, 1, 150, 500),
    "max_attempts": (0, 1, 2, 3),
    "max_active": (0, 1, 2),
    "max_sessions": (0, 2, 4),
}

_WEIGHTS: dict[type[Operation] | type[Raw], int] = {
    New: 16,
    Append: 7,
    Replace: 5,
    Remove: 6,
    Store: 14,
    Acquire: 10,
    AcquireSession: 6,
    Touch: 7,
    Park: 4,
    Unpark: 4,
    SetPolicy: 4,
    Pause: 1,
    Resume: 2,
    Txn: 8,
    Tick: 9,
    Barrier: 1,
    Heartbeat: 4,
    Idempotent: 14,
    SetLimits: 3,
    ForgetProposer: 1,
    Release: 4,
    Raw: 1,
}
_IN_TXN = (New, Append, Replace, Remove, Store, Acquire, AcquireSession, Touch, Park, Unpark)
_IN_IDEMPOTENT = (*_IN_TXN, SetPolicy, Pause, Resume, Txn)

_ON_SESSION = (Append, Replace, Remove, Store, AcquireSession, Touch, Park, Unpark)

# What may be done to a session, as a rule: so that most attempts have an effect.
_FITTING: dict[Phase, tuple[type[Operation], ...]] = {
    Phase.STORED: (AcquireSession, Append, Replace, Remove, Store, New),
    Phase.READY: (AcquireSession, Append, Replace, Remove, Store, New),
    Phase.ACTIVE: (Append, Replace, Touch, Touch, Remove, Store, Store, Park),
    Phase.PARKED: (Unpark, Unpark, Remove),
}


class Writer:
    """Makes up steps for a run, by the chances that `random` takes.

    Each run has a character of its own: some operations and limits it uses much, others never
    (Groce et al., Swarm Testing, 2012). What needs much of one thing to happen is found so.
    """

    def __init__(self, run: Run, random: Random) -> None:
        self.run = run
        self.random = random
        self._weights = {
            kind: weight * random.choice((0.1, 0.5, 1, 1, 4)) for kind, weight in _WEIGHTS.items()
        }
        self._limits = random.sample(
            tuple(_SMALL_LIMITS), random.choice((1, 3, 6, len(_SMALL_LIMITS)))
        )
        self._incarnations: Counter[str] = Counter()
        self._sequences: Counter[str] = Counter()
        self._recent: list[Batch] = []
        self._idempotent: list[Idempotent] = []

    @property
    def model(self) -> Model:
        return self.run.model

    # Chances

    def chance(self, percent: float) -> bool:
        return self.random.random() * 100 < percent

    def mostly(self, usual: T, percent: float, *others: T) -> T:
        """The usual, or with a chance one of the others."""
        return self.random.choice(others) if self.chance(percent) else usual

    # Steps

    def step(self) -> Step:
        kinds = (
            (self.batch, 70),
            (self.tick, 9),
            (self.reap, 4),
            (self.redeliver, 5),
            (self.junk, 0.7),
            (self.compare, 4),
            (self.begin_capture, 3),
            (self.read_capture, 18),
            (self.abandon, 0.7),
            (self.find_stale, 5),
            (self.restart, 1),
            (self.swap, 0.7),
        )
        makers = [maker for maker, _ in kinds]
        [maker] = self.random.choices(makers, [weight for _, weight in kinds])
        return maker()

    def batch(self) -> Step:
        count = self.random.choice((0, 1, 1, 1, 1, 2, 2, 3, 4, 6))
        return self._send([self.operation() for _ in range(count)])

    def tick(self) -> Step:
        return self._send([self._tick()])

    def reap(self) -> Step:
        """As the reaper does, and as it must not."""
        active = [one for one in self._sessions() if one.phase is Phase.ACTIVE]
        stale = self.model.stale()
        found = [one for one in active if one.session_id in stale or self.chance(20)]
        return self._send([self._store(one, one.epoch, Cause.STALE) for one in found[:4]])

    def redeliver(self) -> Step:
        return self.random.choice(self._recent) if self._recent else self.batch()

    def junk(self) -> Step:
        return self.random.choice(_JUNK)

    def compare(self) -> Step:
        return Compare()

    def begin_capture(self) -> Step:
        return BeginCapture(self._node(), self.chance(30), self.chance(50))

    def read_capture(self) -> Step:
        return ReadCapture(self._node(), self.random.choice((1, 300, 1000, 5000, MANY)))

    def find_stale(self) -> Step:
        return FindStale()

    def abandon(self) -> Step:
        return Abandon(self._node(), self.chance(50))

    def restart(self) -> Step:
        return Restart(self._node())

    def swap(self) -> Step:
        return Swap()

    def _node(self) -> int:
        return self.random.randrange(len(self.run.nodes))

    def _send(self, operations: list[Asked]) -> Batch:
        proposer = self.random.choice(("a", "a", "b", "b", "cc", "d"))
        proposer = self.mostly(proposer, 0.5, "", "x" * 65)
        window = self.model.windows.get(proposer)
        forgotten = window is not None and window.floor == SEQUENCE_MAX
        if self.chance(50 if forgotten else 1.5):
            self._incarnations[proposer] += 1
            self._sequences[proposer] = 0
        incarnation = self._incarnations[proposer] - self.mostly(0, 1.5, 1)
        self._sequences[proposer] += self.mostly(1, 5, 2, 3)
        # Going back reaches into the gaps, and below the floor.
        sequence = self._sequences[proposer] - self.mostly(0, 4, 1, 2, 5, 40)
        batch = Batch(
            proposer,
            max(incarnation, 0),
            max(sequence, 0),
            max(self.model.term + self.mostly(0, 7, -1, 1), 0),
            tuple(operations),
            watched=self.chance(10),
        )
        self._recent = [*self._recent[-9:], batch]
        return batch

    # Operations

    def operation(self) -> Asked:
        [kind] = self.random.choices(tuple(self._weights), tuple(self._weights.values()))
        return self._make(kind)

    def _inside(self, allowed: Sequence[type[Operation]]) -> Operation:
        if self.chance(3):
            return self.random.choice(
                (Tick(0), Barrier(), Heartbeat(b"c"), SetLimits(()), Release(b"c", 1))
            )
        [kind] = self.random.choices(allowed, [self._weights[one] for one in allowed])
        made = self._make(kind)
        assert isinstance(made, Operation)
        return made

    def _make(self, kind: type[Asked]) -> Asked:
        random = self.random
        if kind in _ON_SESSION:
            return self._on_session(kind)
        match kind.__name__:
            case "New":
                if len(self._sessions()) < POPULATION:
                    return self._new()
                return self._on_session(Remove)
            case "Acquire":
                themes = [self._theme() for _ in range(random.choice((1, 1, 2, 3)))]
                return Acquire(
                    tuple(self.mostly(themes, 2, [])),
                    self.mostly(random.choice((1, 1, 2, 3, 5)), 3, 0, -1, 2000),
                    self._consumer(),
                )
            case "SetPolicy":
                return SetPolicy(
                    self._theme(), self._settings(tuple(_POLICIES), _POLICIES, POLICY_RANGES)
                )
            case "Pause":
                return Pause(self._theme())
            case "Resume":
                return Resume(self._theme())
            case "Txn":
                return self._txn()
            case "Tick":
                return self._tick()
            case "Barrier":
                return Barrier()
            case "Heartbeat":
                return Heartbeat(self._consumer() or b"c")
            case "Idempotent":
                return self._make_idempotent()
            case "SetLimits":
                return SetLimits(self._settings(self._limits, _SMALL_LIMITS, LIMIT_RANGES))
            case "ForgetProposer":
                return ForgetProposer(random.choice(("a", "b", "cc", "d", "nobody", "x" * 65)))
            case "Release":
                return self._release()
            case _:
                return random.choice(_RAW)

    def _release(self) -> Release:
        usual = self.random.choice((Cause.FAILED, Cause.DISCONNECTED, Cause.SHUTDOWN))
        return Release(
            self._consumer() or b"c",
            self.mostly(self.random.choice((1, 1, 2, 3, 1024)), 3, 0, -1, 1025),
            self.mostly(usual, 3, Cause.REQUESTED, Cause.STALE, Cause.PARKED, 9, -1),
            self._reason(),
        )

    def _txn(self) -> Txn:
        count = self.random.choice((0, 1, 2, 2, 3, 4))
        operations = [self._inside(_IN_TXN) for _ in range(count)]
        if self.chance(30):  # much to undo
            operations.append(Append(MANY, None, b""))
        return Txn(tuple(operations))

    def _make_idempotent(self) -> Idempotent:
        if self._idempotent and self.chance(40):
            again = self.random.choice(self._idempotent)
            again = replace(again, until_used=self.random.choice((0, again.until_used)))
            return self.mostly(again, 20, replace(again, operation=self._inside(_IN_IDEMPOTENT)))
        inner = self._inside(_IN_IDEMPOTENT)
        if self.chance(40):  # what is used later
            inner = replace(self._new(), repeat_after_ms=None)
        made = Idempotent(
            self.mostly(
                self.random.choice((b"h", b"i", b"j", b"kk", b"l", b"m")), 2, b"", b"x" * 257
            ),
            self.mostly(
                self.random.choice((1, 1, 20, 100, 500, 5000)),
                2,
                0,
                -1,
                LIMITS.receipt_expires_after_ms + 1,
            ),
            inner,
            self.mostly(self.random.choice((0, 1, 1)), 2, 2, -1),
        )
        self._idempotent = [*self._idempotent[-7:], made]
        return made

    def _settings(
        self, names: Sequence[str], small: dict[str, tuple[int, ...]], ranges: dict[str, Range]
    ) -> tuple[tuple[str, int], ...]:
        random = self.random
        settings: list[tuple[str, int]] = []
        for _ in range(random.choice((1, 1, 2, 4))):
            name = random.choice(names)
            one = ranges[name]
            value = self.mostly(random.choice(small[name]), 50, one.default)
            value = self.mostly(value, 2, one.minimum - 1, one.maximum + 1)
            settings.append((self.mostly(name, 1, "no such setting"), value))
        return tuple(settings)

    def _tick(self) -> Tick:
        """Often to just when something happens."""
        model, random = self.model, self.random
        now_ms = model.now_ms
        by_ms = random.choice((0, 1, 20, 100, 127, 128, 129, 300, 1000, 5000))
        if self.chance(50):
            times = [one.due_ms for one in self._sessions() if one.phase is Phase.STORED]
            times += [
                model.deadline_ms(one) for one in self._sessions() if one.phase is Phase.ACTIVE
            ]
            times += [one.expires_ms for one in model.receipts.values()]
            times = [one for one in times if now_ms < one < now_ms + 100_000]
            if times:
                by_ms = random.choice(times) - now_ms + random.choice((-1, 0, 0, 0, 1, 128))
        time_ms = max(now_ms + self.mostly(by_ms, 5, -1, -1000), 0)
        return Tick(self.mostly(time_ms, 1, -1, TIME_MAX_MS + 1))

    def _new(self) -> New:
        random = self.random
        return New(
            self._theme(),
            self._key(),
            self._data(),
            self.mostly(random.choice((0, 1, 1, 5)), 1, -1, PRIORITY_MAX, PRIORITY_MAX + 1),
            self._repeat(),
            self.mostly(random.choice(tuple(OnConflict)), 1, 3, -1),
            self._consumer(),
            self.mostly(random.choice((b"", b"trace")), 1, *_LONG_TRACES),
        )

    def _on_session(self, kind: type[Asked]) -> Operation:
        """An operation on a session; usually one that it is in the phase for."""
        random = self.random
        sessions = self._sessions()
        session: ModelSession | None = None
        if sessions and not self.chance(4):
            session = random.choice(sessions)
            phase = self.model.phase(session)
            if kind not in _FITTING[phase] and self.chance(80):
                kind = random.choice(_FITTING[phase])
        target: Target
        if session is None:
            # Perhaps one that an operation before this one has made.
            target = self.model.state.last_session_id + random.choice((1, 1, 2, -3, MANY))
            target = max(target, 0)
            epoch: int | None = self.mostly(1, 50, None)
        else:
            target = session.session_id
            epoch = session.epoch if session.phase is Phase.ACTIVE else None
            epoch = self.mostly(epoch, 10, None, session.epoch, session.epoch - 1, 99)
        if session is not None and session.key is not None and self.chance(30):
            target = (session.theme, session.key)
        elif self.chance(2):
            target = (self._theme(), random.choice((b"k", b"none", b"")))
        revision = None
        if self.chance(20):
            revision = random.choice((1, 2, 0 if session is None else session.revision))
        match kind.__name__:
            case "Append":
                return Append(target, epoch, self._data(), revision)
            case "Replace":
                return Replace(target, epoch, self._data(), revision)
            case "Remove":
                return Remove(target, epoch, revision)
            case "AcquireSession":
                return AcquireSession(target, self._consumer(), revision)
            case "Touch":
                return Touch(target, epoch, self._consumer())
            case "Park":
                return Park(target, epoch, self._reason(), revision)
            case "Unpark":
                return Unpark(target, revision)
            case "New" if session is not None and session.key is not None:
                return replace(self._new(), theme=session.theme, key=session.key)
            case _:
                cause = self._cause()
                return Store(
                    target,
                    epoch,
                    self._repeat(),
                    cause,
                    self._reason(),
                    revision,
                )

    def _store(self, session: ModelSession, epoch: int, cause: Cause) -> Store:
        target = session.session_id
        return Store(target, epoch, self._repeat(), cause, self._reason())

    # Parts of operations

    def _sessions(self) -> list[ModelSession]:
        return list(self.model.state.sessions.values())

    def _theme(self) -> int:
        usual = self.random.choice((1, 1, 2, 2, 3, 4))
        return self.mostly(usual, 1, 7, 0, THEME_MAX, -1, THEME_MAX + 1)

    def _key(self) -> bytes | None:
        usual = self.random.choice((None, None, b"k", b"l", b"mm"))
        return self.mostly(usual, 1, b"", b"x" * 257)

    def _consumer(self) -> bytes | None:
        usual = self.random.choice((None, b"c", b"c", b"d", b"ee"))
        return self.mostly(usual, 1, b"", b"x" * 65, b"f", b"g")

    def _data(self) -> bytes:
        usual = self.random.choice((b"", b"a", b"bb", b"c" * 20))
        return self.mostly(usual, 1.5, b"d" * 70_000, b"e" * 400_000, b"f" * (MIB + 1))

    def _repeat(self) -> int | None:
        usual = self.random.choice((None, None, 0, 0, 1, 50, 127, 128, 300, 1000))
        return self.mostly(usual, 2, -1, 30_000, LIMITS.repeat_after_ms + 1)

    def _cause(self) -> int:
        usual = self.random.choice(
            (Cause.REQUESTED, Cause.FAILED, Cause.DISCONNECTED, Cause.SHUTDOWN, Cause.STALE)
        )
        return self.mostly(usual, 1, Cause.PARKED, 9, -1)

    def _reason(self) -> str:
        return self.mostly(self.random.choice(("", "x", "yy")), 1, "r" * 257)


def play(seed: int | str, steps: int) -> Seen:
    """Carry out `steps` made-up steps. A failure comes with what it takes to repeat it."""
    run = Run()
    writer = Writer(run, Random(seed))
    script: list[Step] = []
    try:
        for _ in range(steps):
            script.append(writer.step())
            run.do(script[-1])
        run.compare_nodes()
    except Exception as error:
        short = shorten(script)
        lines = "\n".join(f"    {step!r}," for step in short)
        error.add_note(f"seed {seed!r}, step {len(script)}; to repeat: play({seed!r}, {steps})")
        error.add_note(f"a shorter script ends with {ending(short)!r}:\n{lines}")
        raise
    return run.seen
