"""Seeded random batches, realistic and nasty, that reach all operations.

    python -m tests.state.workload --seed 1 --batches 1000

applies them to a new machine and prints a line for each: index, digest, a hash of the results, a
hash of the events, the awake themes. Two runs must print the same; see `test_determinism`.
"""

import argparse
import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from random import Random
from typing import Any, NamedTuple

import msgpack

from state import (
    LIMITS,
    Applied,
    Capture,
    Cause,
    OnConflict,
    Operation,
    StateMachine,
    encode,
    encode_batch,
    load,
)
from state.limits import LIMIT_RANGES
from state.operations import (
    Acquire,
    AcquireSession,
    Append,
    Barrier,
    ForgetProposer,
    Heartbeat,
    Idempotent,
    New,
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
from state.transitions import Phase
from tests.state.disk import Disk

NEVER_ID = 2**40
THEMES = (1, 2, 3, 4, 5, 2**32 - 1)
KEYS = tuple(b"key-%d" % number for number in range(12))
CONSUMERS = tuple(b"consumer-%d" % number for number in range(6))
PROPOSERS = ("node-1", "node-2", "node-3")
REASONS = ("", "busy", "no answer", "naïve \N{SNOWMAN}", "x" * 256)
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    2**64 - 1,
    1.5,
    "",
    "name",
    b"",
    b"\xff\x00",
    (),
    (1,),
    (1, b"key-1", 3),
    ((),),
    {},
    "\N{SNOWMAN}" * 300,
    ("lease_ms",),
    (("lease_ms", 0),),
    (("tick_page", 2.0),),
    msgpack.ExtType(5, b""),
)
# Bounds that are set low for a while, so that they are reached.
LOW_LIMITS: dict[str, tuple[int, ...]] = {
    "batch_operations": (8, 64),
    "batch_acquired": (2, 8),
    "txn_operations": (1, 3),
    "chunk_bytes": (8, 64),
    "session_bytes": (32, 256),
    "session_chunks": (1, 3),
    "key_bytes": (4,),
    "consumer_bytes": (9,),
    "reason_chars": (0, 4),
    "history_entries": (1, 2),
    "repeat_after_ms": (1, 5_000),
    "themes": (2, 4),
    "consumers": (1, 3),
    "acquire_count": (1, 4),
    "acquire_themes": (1, 2),
    "proposers": (3, 4),
    "window_batches": (1, 3),
    "window_results": (1, 20),
    "receipts": (0, 5),
    "receipt_bytes": (5,),
    "receipt_expires_after_ms": (10_000,),
    "tick_page": (1, 2, 5),
    "state_bytes": (2**20,),
}


class Step(NamedTuple):
    """One batch, and what became of it on the workload's own machine."""

    log_index: int
    batch: bytes
    applied: Applied


class Workload:
    """Makes batches for a machine of its own, whose sessions they are about."""

    def __init__(self, seed: int) -> None:
        self.machine = StateMachine()
        self._random = Random(seed)
        self._incarnations = dict.fromkeys(PROPOSERS, 1)
        self._sequences = dict.fromkeys(PROPOSERS, 0)
        self._ids: deque[int] = deque([1], maxlen=120)
        self._sent: deque[bytes] = deque(maxlen=80)
        self._now_ms = 1_000_000
        self._term = 1
        self._names = 0
        self._operations: list[tuple[int, Callable[[], Operation]]] = [
            (14, self._new),
            (7, self._append),
            (4, self._replace),
            (6, self._remove),
            (8, self._store),
            (8, self._acquire),
            (4, self._acquire_session),
            (5, self._touch),
            (2, self._park),
            (2, self._unpark),
            (5, self._txn),
            (4, self._idempotent),
            (2, self._heartbeat),
            (2, self._release),
            (2, self._set_policy),
            (1, self._pause_or_resume),
            (2, self._tick),
            (1, self._rare),
        ]
        self._weights = [weight for weight, _ in self._operations]
        self._in_txn = self._operations[:10]
        self._in_txn_weights = self._weights[:10]

    def __iter__(self) -> Iterator[Step]:
        while True:
            yield self.step()

    def take(self, count: int) -> list[Step]:
        """The next `count` steps."""
        return [self.step() for _ in range(count)]

    def step(self) -> Step:
        """Make one batch and apply it."""
        batch = self._batch()
        index = self.machine.applied_index + self._random.choice((1, 1, 1, 1, 2, 7))
        applied = self.machine.apply(index, batch)
        for event in applied.events():
            if event.session_id:
                self._ids.append(event.session_id)
        return Step(index, batch, applied)

    # Batches

    def _batch(self) -> bytes:
        chance = self._random.random()
        if self._sent:
            sent = self._random.choice(self._sent)
            if chance < 0.04:
                return sent  # a duplicate: of a known result, or too old
            if chance < 0.06:
                return self._damaged(sent)
        if chance < 0.07:
            return self._random.randbytes(self._random.randrange(40))
        if chance < 0.08:
            return b"\x97\x02" + self._random.randbytes(10)  # a later version
        operations = self._batch_operations()
        proposer = self._random.choice(PROPOSERS)
        incarnation = self._incarnations[proposer]
        sequence = self._sequences[proposer] + self._random.choice((1, 1, 1, 2, 5))
        term = self._term
        if chance < 0.10:
            incarnation += 1
            sequence = self._random.choice((0, 1, 10))
            self._incarnations[proposer] = incarnation
        elif chance < 0.12:
            incarnation = max(0, incarnation - 1)
        elif chance < 0.14:
            sequence = max(0, sequence - self._random.randrange(60))  # perhaps a gap filled
        elif chance < 0.15:
            proposer = self._random.choice(("", "n" * 65, self._name()))
        elif chance < 0.17:
            term = max(0, term - 1)
        else:
            self._sequences[proposer] = sequence
        if chance > 0.99:
            self._term = term = term + 1
        batch = encode_batch(proposer, incarnation, sequence, term, operations)
        self._sent.append(batch)
        return batch

    def _batch_operations(self) -> list[bytes]:
        random = self._random
        operations: list[bytes] = []
        if random.random() < 0.4:
            operations.append(encode(self._tick()))
        if random.random() < 0.3:
            operations += map(encode, self._reap())
        for _ in range(random.choice((0, 1, 2, 5, 10, 20))):
            operation = encode(self._operation())
            if random.random() < 0.05:
                operation = self._mangled(operation)
            operations.append(operation)
        return operations

    def _damaged(self, batch: bytes) -> bytes:
        random = self._random
        damaged = bytearray(batch)
        for _ in range(random.randrange(1, 4)):
            place = random.randrange(len(damaged))
            match random.randrange(3):
                case 0:
                    damaged[place] ^= 1 << random.randrange(8)
                case 1:
                    damaged[place:place] = random.randbytes(2)
                case _:
                    del damaged[place + 1 :]
        return bytes(damaged)

    def _mangled(self, operation: bytes) -> bytes:
        """An operation that has a wrong code, field or length."""
        random = self._random
        fields = list(msgpack.unpackb(operation, use_list=False))
        junk = random.choice(JUNK)
        match random.randrange(4):
            case 0:
                fields[random.randrange(len(fields))] = junk
            case 1:
                fields.append(junk)
            case 2:
                fields.pop()
            case _:
                return msgpack.packb(junk)
        return msgpack.packb(fields)

    # What operations are about

    def _name(self) -> str:
        self._names += 1
        return f"name-{self._names}"

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _theme(self) -> int:
        return 2**32 if self._chance(0.01) else self._random.choice(THEMES)

    def _data(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 1, 5, 20, 20, 100, 1500)))

    def _consumer(self) -> bytes | None:
        if self._chance(0.4):
            return None
        if self._chance(0.05):
            return self._random.choice((b"", b"c" * 65, self._name().encode()))
        return self._random.choice(CONSUMERS)

    def _repeat_ms(self) -> int | None:
        if self._chance(0.03):
            return self._random.choice((-1, 2**50))
        return self._random.choice((None, None, None, 0, 0, 1, 100, 1_000, 5_000, 60_000))

    def _key(self) -> bytes | None:
        if self._chance(0.03):
            return self._random.choice((b"", b"k" * 257))
        return self._random.choice((*(None,) * 8, *KEYS))

    def _reason(self) -> str:
        return "x" * 257 if self._chance(0.03) else self._random.choice(REASONS)

    def _target(self) -> tuple[Target, int | None]:
        """A session, mostly one that exists, and an epoch, mostly the newest."""
        random = self._random
        session_id = random.choice(self._ids)
        session = self.machine.session(session_id)
        if session is None or self._chance(0.03):
            unknown: Target = random.choice((session_id, NEVER_ID, 0, -5, (1, b"nobody"), (9, b"")))
            return unknown, random.choice((None, 1))
        target: Target = session_id
        if session.key is not None and self._chance(0.4):
            target = (session.theme.theme_id, session.key)
        epoch = session.epoch if session.phase is Phase.ACTIVE else None
        if self._chance(0.06):
            epoch = random.choice((None, 0, session.epoch - 1, session.epoch + 1))
        return target, epoch

    def _revision(self, target: Target) -> int | None:
        if self._chance(0.85):
            return None
        session = self.machine.session(target)
        known = session.revision if session is not None else 1
        return self._random.choice((known, known, known + 1, 0))

    # Operations

    def _operation(self) -> Operation:
        return self._random.choices(self._operations, self._weights)[0][1]()

    def _new(self) -> New:
        return New(
            self._theme(),
            self._key(),
            self._data(),
            2**16 if self._chance(0.02) else self._random.choice((0, 1024, 1024, 2**16 - 1)),
            self._repeat_ms(),
            3 if self._chance(0.02) else self._random.choice(list(OnConflict)),
            self._consumer(),
        )

    def _append(self) -> Append:
        target, epoch = self._target()
        return Append(target, epoch, self._data(), self._revision(target))

    def _replace(self) -> Replace:
        target, epoch = self._target()
        return Replace(target, epoch, self._data(), self._revision(target))

    def _remove(self) -> Remove:
        target, epoch = self._target()
        return Remove(target, epoch, self._revision(target))

    def _store(self) -> Store:
        target, epoch = self._target()
        cause: int = self._random.choice(list(Cause)[:4])
        if self._chance(0.05):
            cause = self._random.choice((Cause.STALE, Cause.PARKED, 6))
        revision = self._revision(target)
        return Store(target, epoch, self._repeat_ms(), cause, self._reason(), revision)

    def _acquire(self) -> Acquire:
        themes = tuple(self._theme() for _ in range(self._random.choice((1, 1, 2, 3, 5))))
        if self._chance(0.04):
            return Acquire(self._random.choice(((), themes)), self._random.choice((0, 1025)))
        return Acquire(themes, self._random.choice((1, 1, 2, 7)), self._consumer())

    def _acquire_session(self) -> AcquireSession:
        target, _ = self._target()
        return AcquireSession(target, self._consumer(), self._revision(target))

    def _touch(self) -> Touch:
        target, epoch = self._target()
        return Touch(target, epoch, self._consumer())

    def _park(self) -> Park:
        target, epoch = self._target()
        return Park(target, epoch, self._reason(), self._revision(target))

    def _unpark(self) -> Unpark:
        target, _ = self._target()
        return Unpark(target, self._revision(target))

    def _txn(self) -> Txn:
        random = self._random
        made = random.choices(self._in_txn, self._in_txn_weights, k=random.choice((0, 1, 2, 3, 6)))
        operations = [make() for _, make in made]
        if self._chance(0.3):
            # A session that begins and goes on, or ends, within the transaction.
            begun = self.machine.session(max(self._ids)) is not None
            session_id = max(self._ids) + 1 if begun else 1
            operations[:0] = (
                New(self._theme(), random.choice((None, *KEYS)), self._data()),
                random.choice((Append, Replace))(session_id, 1, self._data()),
                random.choice((Remove(session_id, 1), Store(session_id, 1), Park(session_id, 1))),
            )
        if self._chance(0.3):
            operations.append(Remove(NEVER_ID, None))  # fails
        if self._chance(0.03):
            operations.append(random.choice((Barrier(), Tick(1), Txn(()))))  # has no place here
        return Txn(tuple(operations))

    def _idempotent(self) -> Idempotent:
        key = b"request-%d" % self._random.randrange(30)
        if self._chance(0.03):
            key = self._random.choice((b"", b"r" * 257))
        expires_ms = self._random.choice((1, 100, 100, 1_000, 60_000, 60_000, 0))
        inside = (self._new, self._new, self._acquire, self._txn, self._store, self._set_policy)
        operation: Operation = self._random.choice(inside)()
        if self._chance(0.03):
            inside_of_none = (Barrier(), Heartbeat(b"consumer-1"), Release(b"consumer-1", 1))
            operation = self._random.choice(inside_of_none)
        return Idempotent(key, expires_ms, operation)

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(self._random.choice((*CONSUMERS, b"nobody", b"")))

    def _release(self) -> Release:
        consumer = self._random.choice((*CONSUMERS, b"nobody", b""))
        count = self._random.choice((1, 2, 7, 1024))
        cause: int = self._random.choice((Cause.FAILED, Cause.DISCONNECTED, Cause.SHUTDOWN))
        if self._chance(0.05):
            count = self._random.choice((0, -1, 1025))
        if self._chance(0.05):
            cause = self._random.choice((Cause.REQUESTED, Cause.STALE, Cause.PARKED, 6))
        return Release(consumer, count, cause, self._reason())

    def _set_policy(self) -> SetPolicy:
        random = self._random
        choices: dict[str, tuple[int, ...]] = {
            "repeat_ms": (0, 1_000, 10_000),
            "backoff": (0, 1),
            "repeat_cap_ms": (1, 5_000, 3_600_000),
            "jitter_permille": (0, 100, 1000),
            "lease_ms": (100, 1_000, 5_000, 30_000),
            "progress_ms": (0, 0, 500, 2_000),
            "max_attempts": (0, 0, 1, 2),
            "max_active": (0, 0, 2, 5),
            "max_sessions": (0, 20, 30),
        }
        names = random.choices(list(choices), k=random.choice((0, 1, 1, 3)))
        settings = tuple((name, random.choice(choices[name])) for name in names)
        if self._chance(0.05):
            settings += (random.choice((("unknown", 1), ("lease_ms", 99), ("backoff", 2))),)
        return SetPolicy(self._theme(), settings)

    def _pause_or_resume(self) -> Pause | Resume:
        return self._random.choice((Pause, Resume, Resume))(self._theme())

    def _tick(self) -> Tick:
        self._now_ms += self._random.choice((0, 1, 50, 100, 100, 100, 128, 1_000, 1_000, 30_000))
        if self._chance(0.02):
            return Tick(self._random.choice((0, -1, self._now_ms - 500, 2**48, 2**63)))
        return Tick(self._now_ms)

    def _reap(self) -> Iterator[Store]:
        found = self.machine.stale(self._random.choice((1, 3, 100)))
        if self._chance(0.2):
            found.append((self._random.choice(self._ids), 1))
        for session_id, epoch in found:
            if self._chance(0.9):
                yield Store(session_id, epoch, cause=Cause.STALE)

    def _rare(self) -> Operation:
        match self._random.randrange(5):
            case 0:
                return Barrier()
            case 1:
                proposer = self._random.choice((*PROPOSERS, "name-1", ""))
                if proposer in PROPOSERS and self._chance(0.7):
                    self._incarnations[proposer] += 1  # started anew
                return ForgetProposer(proposer)
            case 2:
                name = self._random.choice(list(LOW_LIMITS))
                return SetLimits(((name, self._random.choice(LOW_LIMITS[name])),))
            case 3:
                return SetLimits(self._random.choice(((("tick_page", 0),), (("none", 1),), ())))
            case _:
                return SetLimits(tuple((name, getattr(LIMITS, name)) for name in LIMIT_RANGES))


@dataclass
class Machine:
    """A machine that is given operations one batch at a time, by hand."""

    state: StateMachine = field(default_factory=StateMachine)
    sequence: int = 0
    proposer: str = "node"

    def do(self, *operations: Operation) -> tuple[Any, ...]:
        """Apply a batch of operations."""
        applied = self.apply(operations)
        assert applied.failure is None
        return applied.results

    def apply(self, operations: Iterable[Operation]) -> Applied:
        self.sequence += 1
        batch = encode_batch(
            self.proposer, 1, self.sequence, 1, [encode(one) for one in operations]
        )
        return self.state.apply(self.state.applied_index + 1, batch)

    def forget(self, proposer: str = "node") -> None:
        """Let another proposer drop all results of this one, which ends it."""
        other = Machine(self.state, proposer="other")
        other.do(ForgetProposer(proposer))

    def reloaded(self) -> "Machine":
        """Another one that was loaded from a checkpoint of this."""
        return Machine(load(whole(self.state)), self.sequence)


def whole(machine: StateMachine) -> Disk:
    """The whole state, written out."""
    disk = Disk()
    disk.write_capture(machine.capture_everything())
    return disk


def hash_of(value: object) -> str:
    """A few digits that tell one `repr` from another."""
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


class Watcher:
    """Looks at a machine at moments of its own choice; none of it may have an influence."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._capture: Capture | None = None

    def look(self, machine: StateMachine) -> None:
        """Do something that should leave no trace, or nothing."""
        random = self._random
        if self._capture is not None:
            if random.random() < 0.02:
                self.stop()
            elif not self._capture.next_piece(random.choice((1, 300, 5_000))):
                self._capture.commit()
                self._capture = None
        match random.randrange(12):
            case 0:
                machine.digest()
            case 1:
                machine.stale(random.choice((1, 10, 1000)))
            case 2 if self._capture is None:
                begin = random.choice((machine.capture_changes, machine.capture_everything))
                self._capture = begin()
            case 3:
                for theme in machine.themes():
                    sum(machine.ready_ids(theme.theme_id))
            case 4:
                assert len(list(machine.sessions())) == machine.session_count
                assert machine.change_count >= 0
                assert machine.next_due_ms is None or machine.next_due_ms >= 0
            case _:
                pass

    def stop(self) -> None:
        """Leave a capture that is not finished."""
        if self._capture is not None and not self._capture.finished:
            self._capture.abandon()
        self._capture = None


def lines(
    seed: int,
    batches: int,
    *,
    digest_every: int = 1,
    watch: int | None = None,
    reload_every: int = 0,
) -> Iterator[str]:
    """Apply the batches of a seed to a new machine, and say what became of each."""
    workload = Workload(seed)
    machine = StateMachine()
    watcher = None if watch is None else Watcher(watch)
    for number in range(1, batches + 1):
        step = workload.step()
        applied = machine.apply(step.log_index, step.batch)
        if watcher is not None:
            watcher.look(machine)
        digest = f"{machine.digest():015x}" if number % digest_every == 0 else "-"
        results = (applied.results, applied.failure, applied.duplicate)
        events = list(applied.events())
        awake = ",".join(map(str, applied.awake)) or "-"
        yield f"{applied.index} {digest} {hash_of(results)} {hash_of(events)} {awake}"
        if reload_every and number % reload_every == 0:
            if watcher is not None:
                watcher.stop()
            machine = load(whole(machine))


def main() -> None:
    parser = argparse.ArgumentParser(description="Apply seeded random batches to a new machine.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--digest-every", type=int, default=1, help="digests of some lines only")
    parser.add_argument("--watch", type=int, help="seed of looks at the machine in between")
    parser.add_argument("--reload-every", type=int, default=0, help="batches between reloads")
    options = parser.parse_args()
    printed = lines(
        options.seed,
        options.batches,
        digest_every=options.digest_every,
        watch=options.watch,
        reload_every=options.reload_every,
    )
    sys.stdout.writelines(chain.from_iterable((line, "\n") for line in printed))


if __name__ == "__main__":
    main()
