"""Drives the state machine and the dumb model side by side, and says where they part.

A *script* is a list of concrete steps, so a failing run can be cut down and run again:

    Run      carries out one step after the other, and checks everything after each
    Writer   makes up the next step, by chance and with an eye on where things collide
    Seen     counts what has happened, so that a run can prove that it was worth its time
    shorten  cuts a failing script down

Besides the model there may be a second *node*: a machine that was copied from the first one and
must stay equal to it. Each node has a disk, to which it writes what has changed, in pieces between
the batches, and from which it can be started again.
"""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from state import (
    FIELDS,
    LIMITS,
    TRANSITIONS,
    Act,
    Applied,
    Capture,
    EventKind,
    Failure,
    Item,
    Phase,
    Result,
    Session,
    StateMachine,
    encode,
    encode_batch,
    load,
)
from state.codec import decode
from state.errors import (
    FAILURES,
    TxnAborted,
)
from state.leases import BUCKET_MS
from state.operations import (
    OPERATIONS,
    Txn,
)
from state.records import ANSWERS, CHECK, CONSUMER, META, RECEIPT, WINDOW
from state.results import unpack_result
from tests.state.disk import Disk
from tests.state.model import (
    Asked,
    Expected,
    Model,
    ModelSession,
    Raw,
    failures_of,
    same_but_for_texts,
)

T = TypeVar("T")

MANY = 1_000_000

# Steps


@dataclass(frozen=True)
class Batch:
    """Apply a batch on all nodes."""

    proposer: str
    incarnation: int
    sequence: int
    term: int
    operations: tuple[Asked, ...]
    watched: bool = False
    """Look at all records before and after: if everything failed, nothing has changed."""

    def encoded(self) -> bytes:
        return encode_batch(
            self.proposer,
            self.incarnation,
            self.sequence,
            self.term,
            [one.encoded if isinstance(one, Raw) else encode(one) for one in self.operations],
        )


@dataclass(frozen=True)
class Junk:
    """Apply bytes that are no batch."""

    data: bytes
    failure: type[Failure]


@dataclass(frozen=True)
class Compare:
    """The digests of all nodes are equal."""


@dataclass(frozen=True)
class BeginCapture:
    """A node begins to write what has changed, or everything, for a copy of it."""

    node: int
    everything: bool
    digested: bool
    """Ask for the digest first: it must be the one in the capture."""


@dataclass(frozen=True)
class ReadCapture:
    """A node writes the next piece; after the last, the capture counts."""

    node: int
    size_bytes: int


@dataclass(frozen=True)
class Abandon:
    """A node gives its capture up, though if it was read to the end, all of it may be written."""

    node: int
    written: bool


@dataclass(frozen=True)
class FindStale:
    """All nodes find all stale sessions, whatever Ticks have looked at."""


@dataclass(frozen=True)
class Restart:
    """A node starts again from its disk and the log."""

    node: int


@dataclass(frozen=True)
class Swap:
    """The second node becomes the one that is compared with the model."""


Step = Batch | Junk | Compare | BeginCapture | ReadCapture | Abandon | FindStale | Restart | Swap


# What has happened


@dataclass
class Seen:
    """How often what has happened."""

    steps: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    limits: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[Phase, Act, Phase]] = field(default_factory=Counter)

    def add(self, other: "Seen") -> None:
        self.steps += other.steps
        self.operations += other.operations
        self.done += other.done
        self.failures += other.failures
        self.limits += other.limits
        self.moves += other.moves

    def operation(self, operation: Asked, result: Result) -> None:
        name = type(operation).__name__
        self.operations[name] += 1
        if not isinstance(result, Failure):
            self.done[name] += 1
        if isinstance(operation, Txn):
            inner = getattr(result, "results", ())
            for position, one in enumerate(operation.operations):
                self.operations[type(one).__name__] += 1
                if position < len(inner):
                    self.done[type(one).__name__] += 1
        self.failed(result)

    def failed(self, result: Result | None) -> None:
        self.failures += failures_of(result)
        while isinstance(result, TxnAborted):
            result = result.cause
        self.limits[getattr(result, "limit", "")] += 1

    def missing(self) -> list[str]:
        """What a thorough run should have seen and this one has not."""
        rows = [(row.source, row.act, row.target) for row in TRANSITIONS]
        return [
            *(f"operation {one.__name__}" for one in OPERATIONS if not self.done[one.__name__]),
            *(f"failure {one.code}" for one in FAILURES if not self.failures[one.code]),
            *(_describe_move(row) for row in dict.fromkeys(rows) if not self.moves[row]),
        ]

    def report(self) -> str:
        parts: list[tuple[str, dict[str, str]]] = [
            ("steps", {name: str(count) for name, count in self.steps.most_common()}),
            (
                "operations (done of all)",
                {
                    name: f"{self.done[name]}/{count}"
                    for name, count in self.operations.most_common()
                },
            ),
            ("failures", {name: str(count) for name, count in self.failures.most_common()}),
            (
                "limits",
                {name: str(count) for name, count in self.limits.most_common() if name},
            ),
            (
                "moves",
                {_describe_move(move): str(count) for move, count in self.moves.most_common()},
            ),
        ]
        lines = [f"{sum(self.steps.values())} steps"]
        for title, counts in parts:
            lines.append(f"{title}:")
            lines += [f"    {name:36} {count:>10}" for name, count in counts.items()]
        return "\n".join(lines)


def _describe_move(move: tuple[Phase, Act, Phase]) -> str:
    source, act, target = move
    return f"{source.name} {act} {target.name}"


# Nodes


@dataclass(frozen=True)
class Entry:
    """One entry of the log, and what became of it."""

    index: int
    data: bytes
    applied: Applied


@dataclass
class Reading:
    """A capture under way."""

    capture: Capture
    everything: bool
    digest: int | None  # what it has to be, if that was asked
    log_start: int
    items: list[Item] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return bool(self.items) and self.items[-1].kind == CHECK


@dataclass
class Node:
    """A machine, its disk, and the log from where the disk is."""

    machine: StateMachine
    disk: Disk = field(default_factory=Disk)
    log: list[Entry] = field(default_factory=list)
    reading: Reading | None = None
    has_abandoned: bool = False

    def apply(self, index: int, data: bytes) -> Applied:
        applied = self.machine.apply(index, data)
        self.log.append(Entry(index, data, applied))
        return applied

    def begin_capture(self, *, everything: bool, digested: bool) -> None:
        if self.reading is None:
            machine = self.machine
            digest = machine.digest() if digested else None
            begin = machine.capture_everything if everything else machine.capture_changes
            self.reading = Reading(begin(), everything, digest, len(self.log))

    def read_capture(self, size_bytes: int) -> "Node | None":
        """Read a piece, or commit. Answers the copy when there is one."""
        reading = self.reading
        if reading is None:
            return None
        if not reading.complete:
            piece = reading.capture.next_piece(size_bytes)
            assert piece, "an unfinished capture has no piece"
            reading.items += piece
            return None
        assert reading.capture.next_piece() == []
        reading.capture.commit()
        assert reading.capture.finished
        self.reading = None
        if reading.everything:
            identities = [(item.kind, item.identity) for item in reading.items]
            assert len(set(identities)) == len(identities)
            copied = Node(self.machine, log=self.log[reading.log_start :])
            copied.write(reading)
            return copied.started_again()
        self.log = self.log[reading.log_start :]
        self.write(reading)
        self.started_again()  # to see that it could be
        return None

    def abandon(self, *, written: bool) -> None:
        reading = self.reading
        if reading is None:
            return
        if written and reading.complete and not reading.everything:
            self.log = self.log[reading.log_start :]
            self.write(reading)
        if not reading.capture.finished:
            reading.capture.abandon()
            self.has_abandoned = True
        self.reading = None

    def write(self, reading: Reading) -> None:
        first, *_, last = reading.items
        assert (first.kind, last.kind) == (META, CHECK)
        if reading.digest is not None:
            assert last.fields is not None
            assert last.fields[0] == reading.digest
        for item in reading.items:
            if (
                self.has_abandoned  # it cannot know what of that was written, and deletes it all
                and item.fields is None
                and (item.kind, item.identity) not in self.disk
            ):
                continue
            self.disk.write([item])

    def started_again(self) -> "Node":
        """A node with the disk and the log of this one, and a machine made from them."""
        records = list(self.disk)
        machine = load(records) if records else StateMachine()
        for entry in self.log:
            applied = machine.apply(entry.index, entry.data)
            assert _same(applied, entry.applied), "a machine from a checkpoint answers otherwise"
        assert machine.digest() == self.machine.digest(), "a machine from a checkpoint differs"
        disk = Disk()
        disk.write(records)
        return Node(machine, disk, list(self.log))


def _same(one: Applied, other: Applied) -> bool:
    """Whether two nodes answer alike.

    A machine that was loaded says once of all that is ready that it may not have been before.
    """
    return replace(one, awake=()) == replace(other, awake=())


# Carrying out steps


class Run:
    """A model, a machine or two, and every check that can be made of them."""

    def __init__(self) -> None:
        self.model = Model(LIMITS)
        self.nodes = [Node(StateMachine())]
        self.index = 0
        self.seen = Seen()

    @property
    def machine(self) -> StateMachine:
        return self.nodes[0].machine

    def do(self, step: Step) -> Applied | None:
        """Carry out one step. Raises AssertionError, or whatever the machine raises."""
        self.seen.steps[type(step).__name__] += 1
        match step:
            case Batch():
                return self._apply(step)
            case Junk():
                return self._apply_junk(step)
            case Compare():
                self.compare_nodes()
            case BeginCapture() if step.node < len(self.nodes):
                self.nodes[step.node].begin_capture(
                    everything=step.everything, digested=step.digested
                )
            case ReadCapture() if step.node < len(self.nodes):
                copied = self.nodes[step.node].read_capture(step.size_bytes)
                if copied is not None:
                    self.nodes = [self.nodes[0], copied]
            case Abandon() if step.node < len(self.nodes):
                self.nodes[step.node].abandon(written=step.written)
            case FindStale():
                self.find_stale()
            case Restart() if step.node < len(self.nodes):
                self.nodes[step.node] = self.nodes[step.node].started_again()
                self.compare_state()
            case Swap():
                self.nodes.reverse()
                self.compare_state()
            case _:
                pass  # about a node that is not there
        return None

    def compare_nodes(self) -> None:
        digests = {node.machine.digest() for node in self.nodes}
        assert len(digests) == 1, "the digests of the nodes differ"

    def _apply_everywhere(self, data: bytes) -> Applied:
        self.index += 1
        applied, *others = [node.apply(self.index, data) for node in self.nodes]
        for other in others:
            assert _same(other, applied), "the nodes answer differently"
        return applied

    def _apply_junk(self, step: Junk) -> Applied:
        applied = self._apply_everywhere(step.data)
        assert applied.index == self.index
        assert isinstance(applied.failure, step.failure)
        assert (applied.results, applied.awake, applied.raw_events) == ((), (), ())
        self.seen.failed(applied.failure)
        self.compare_state()
        return applied

    def _apply(self, step: Batch) -> Applied:
        node, model = self.nodes[0], self.model
        watched = step.watched and node.reading is None
        records = _records(node.machine) if watched else []
        before = {one.session_id: _Before(one) for one in node.machine.sessions()}
        servable = model.servable()
        now_ms = model.now_ms
        data = step.encoded()
        applied = self._apply_everywhere(data)
        expected = model.apply(
            self.index,
            proposer=step.proposer,
            incarnation=step.incarnation,
            sequence=step.sequence,
            term=step.term,
            operations=step.operations,
            size_bytes=len(data),
        )
        self._count(step, expected)
        assert applied.index == self.index
        assert same_but_for_texts(applied.failure) == expected.failure
        results = tuple(map(same_but_for_texts, applied.results))
        assert results == expected.results
        assert applied.duplicate == expected.duplicate
        assert applied.raw_events == expected.events
        for event in applied.events():
            assert event.log_index == self.index
        assert self.machine.now_ms >= now_ms, "time runs backwards"
        self.compare_state()
        self._check_awake(applied, servable)
        self._check_events(applied, before)
        if watched:
            now = _records(node.machine)
            self._compare_records(now)
            if all(isinstance(one, Failure) for one in expected.results):
                assert _without_windows(now) == _without_windows(records), "a trace was left"
        return applied

    def _count(self, step: Batch, expected: Expected) -> None:
        self.seen.failed(expected.failure)
        if expected.failure is None and not expected.duplicate:
            for operation, result in zip(step.operations, expected.results, strict=True):
                self.seen.operation(operation, result)
        self.seen.moves.update(expected.moves)

    def compare_state(self) -> None:
        """What the first node shows is what the model has."""
        machine, model = self.machine, self.model
        state = model.state
        assert machine.applied_index == self.index
        assert machine.now_ms == model.now_ms
        assert machine.term == model.term
        assert machine.limits == model.limits
        assert machine.session_count == len(state.sessions)
        shown = {one.session_id: _show(one) for one in machine.sessions()}
        assert shown == {
            session_id: _show_model(model, one) for session_id, one in state.sessions.items()
        }
        assert machine.size_bytes == model.size_bytes
        assert machine.next_due_ms == model.next_due_ms
        self._check_wake()
        assert {one.theme_id for one in machine.themes()} == set(state.themes)
        for theme_id, expected in state.themes.items():
            theme = machine.theme(theme_id)
            assert theme is not None
            assert theme.policy == expected.policy
            assert theme.paused == expected.paused
            assert theme.served == expected.served
            assert theme.can_serve == model.can_serve(theme_id)
            sessions = model.of_theme(theme_id)
            counts = Counter(model.phase(one) for one in sessions)
            assert theme.counts == [counts[phase] for phase in Phase]
            assert theme.size_bytes == sum(one.size_bytes for one in sessions)
            assert list(machine.ready_ids(theme_id)) == model.ready_ids(theme_id)
            assert theme.keys == {
                one.key: one.session_id for one in sessions if one.key is not None
            }
        for one in machine.sessions():
            assert machine.session(one.session_id) is one
            if one.key is not None:
                assert machine.session((one.theme.theme_id, one.key)) is one

    def _compare_records(self, items: list[Item]) -> None:
        """What is only seen in checkpoints is what the model has, too."""
        model = self.model
        rows = [
            (item.kind, dict(zip(FIELDS[item.kind], item.fields or (), strict=True)))
            for item in items
        ]
        assert {row["consumer_id"]: row["seen_ms"] for kind, row in rows if kind == CONSUMER} == (
            model.state.consumers
        )
        assert {
            row["key"]: (
                row["expires_ms"],
                same_but_for_texts(unpack_result(row["result"])),
                row["unused_id"],
            )
            for kind, row in rows
            if kind == RECEIPT
        } == {
            key: (one.expires_ms, one.result, one.unused_id) for key, one in model.receipts.items()
        }
        assert {
            row["proposer"]: (row["incarnation"], row["floor"])
            for kind, row in rows
            if kind == WINDOW
        } == {proposer: (one.incarnation, one.floor) for proposer, one in model.windows.items()}
        assert {
            (row["proposer"], row["sequence"]): _unpacked(row["results"])
            for kind, row in rows
            if kind == ANSWERS
        } == {
            (proposer, sequence): results
            for proposer, one in model.windows.items()
            for sequence, results in one.results.items()
        }

    def _check_awake(self, applied: Applied, servable: set[int]) -> None:
        now_servable = self.model.servable()
        assert list(applied.awake) == sorted(set(applied.awake))
        assert set(applied.awake) <= now_servable
        if applied.failure is None and not applied.duplicate:
            assert now_servable - servable <= set(applied.awake), "nobody was woken"

    def _check_events(self, applied: Applied, before: dict[int, "_Before"]) -> None:
        """Whoever only follows the events knows what exists, and in which phase and revision."""
        machine = self.machine
        newest = {session_id: one.revision for session_id, one in before.items()}
        phases = {session_id: one.phase for session_id, one in before.items()}
        for event in applied.events():
            session_id = event.session_id
            match event.kind:
                case EventKind.CREATED:
                    assert session_id not in newest
                    # Its phase is in the record, as Ready follows if it is that.
                    created = machine.session(session_id)
                    phases[session_id] = Phase.ACTIVE if created is None else created.phase
                case EventKind.REMOVED:
                    assert newest.pop(session_id) <= event.revision
                    del phases[session_id]
                    continue
                case EventKind.ACQUIRED:
                    phases[session_id] = Phase.ACTIVE
                case EventKind.STORED:
                    phases[session_id] = Phase.STORED
                case EventKind.READY:
                    phases[session_id] = Phase.READY
                case EventKind.PARKED:
                    phases[session_id] = Phase.PARKED
                case EventKind.POLICY_CHANGED:
                    assert session_id == event.revision == 0
                    assert event.key is None
                    continue
                case _:
                    pass
            assert newest.get(session_id, 0) <= event.revision
            newest[session_id] = event.revision
        assert newest == {one.session_id: one.revision for one in machine.sessions()}
        assert phases == {one.session_id: one.phase for one in machine.sessions()}

    def find_stale(self) -> None:
        """What is found is stale, and found at most one bucket after its lease has ended."""
        now_ms = self.model.now_ms
        stale = self.model.stale()
        certain = {one for one, deadline_ms in stale.items() if _bucket_end(deadline_ms) <= now_ms}
        for node in self.nodes:
            found = node.machine.stale(MANY)
            ids = {session_id for session_id, _ in found}
            assert certain <= ids <= set(stale)
            assert len(ids) == len(found), "a session is found twice"
            for session_id, epoch in found:
                assert epoch == self.model.state.sessions[session_id].epoch

    def _check_wake(self) -> None:
        """Whoever Ticks only when the machine says so misses nothing."""
        model = self.model
        times = [model.next_due_ms] if model.next_due_ms is not None else []
        times += [one.expires_ms for one in model.receipts.values()]
        times += [
            _bucket_end(model.deadline_ms(one))
            for one in model.state.sessions.values()
            if one.phase is Phase.ACTIVE
        ]
        next_wake_ms = self.machine.next_wake_ms
        if times:
            assert next_wake_ms is not None
            assert next_wake_ms <= min(times)


def _bucket_end(deadline_ms: int) -> int:
    return (deadline_ms // BUCKET_MS + 1) * BUCKET_MS


class _Before:
    """What `_check_events` needs of a session as it was."""

    def __init__(self, session: Session) -> None:
        self.revision = session.revision
        self.phase = session.phase


def _records(machine: StateMachine) -> list[Item]:
    """All records in an order of their own, and nothing of where in the log they are."""
    capture = machine.capture_everything()
    items = [item for piece in capture.pieces() for item in piece]
    capture.commit()
    header = items[0]
    assert header.fields is not None
    version, _, *others = header.fields
    records = [item for item in items if item.kind not in (META, CHECK)]
    records.sort(key=lambda item: (item.kind, item.identity))
    return [header._replace(fields=(version, None, *others)), *records]


def _without_windows(items: list[Item]) -> list[Item]:
    return [item for item in items if item.kind not in (WINDOW, ANSWERS)]


def _unpacked(results: bytes) -> tuple[Result, ...]:
    return tuple(same_but_for_texts(unpack_result(one)) for one in decode(results))


def _show(one: Session) -> tuple[Any, ...]:
    return (
        one.theme.theme_id,
        one.key,
        one.chunks,
        one.priority,
        one.trace,
        one.phase,
        one.epoch,
        one.revision,
        one.attempts,
        one.created_ms,
        one.updated_ms,
        one.touched_ms,
        one.due_ms,
        list(one.history),
        None if one.consumer is None else (one.consumer.consumer_id, one.consumer.seen_ms),
        one.lease_ms,
        one.progress_ms,
        one.deadline_ms if one.phase is Phase.ACTIVE else None,
        one.size_bytes,
        one.data_bytes,
        one.last_reason,
    )


def _show_model(model: Model, one: ModelSession) -> tuple[Any, ...]:
    consumer = one.consumer
    return (
        one.theme,
        one.key,
        one.chunks,
        one.priority,
        one.trace,
        model.phase(one),
        one.epoch,
        one.revision,
        one.attempts,
        one.created_ms,
        one.updated_ms,
        one.touched_ms,
        one.due_ms,
        one.history,
        None if consumer is None else (consumer, model.state.consumers[consumer]),
        one.lease_ms,
        one.progress_ms,
        model.deadline_ms(one) if one.phase is Phase.ACTIVE else None,
        one.size_bytes,
        one.data_bytes,
        one.history[-1].reason if one.history else "",
    )


# Cutting scripts down


Place = tuple[type[Exception], str, int]


def ending(script: Iterable[Step]) -> Exception | None:
    """What a script ends with, if that is not well."""
    run = Run()
    try:
        for step in script:
            run.do(step)
        run.compare_nodes()
    except Exception as error:  # noqa: BLE001 - that is what is wanted
        return error
    return None


def place_of(error: Exception | None) -> Place | None:
    """Where it was raised: what tells one defect from another."""
    if error is None:
        return None
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return type(error), frame.f_code.co_filename, line


def shorten(script: Sequence[Step], seconds: float = 30) -> list[Step]:
    """A script with the same end in fewer steps and operations (Zeller's ddmin, roughly)."""
    deadline = time.monotonic() + seconds
    place = place_of(ending(script))

    def same_end(shorter: list[Step]) -> bool:
        return place_of(ending(shorter)) == place

    best = _without_parts(list(script), same_end, deadline)
    for position, step in enumerate(best):
        if isinstance(step, Batch):

            def same_end_with(
                operations: list[Asked], position: int = position, step: Batch = step
            ) -> bool:
                batch = replace(step, operations=tuple(operations))
                return same_end([*best[:position], batch, *best[position + 1 :]])

            kept = _without_parts(list(step.operations), same_end_with, deadline)
            best[position] = replace(step, operations=tuple(kept))
    return best


def _without_parts(items: list[T], same_end: Callable[[list[T]], bool], deadline: float) -> list[T]:
    size = max(len(items) // 2, 1)
    while True:
        position = 0
        removed = False
        while position < len(items):
            if time.monotonic() > deadline:
                return items
            fewer = items[:position] + items[position + size :]
            if same_end(fewer):
                items, removed = fewer, True
            else:
                position += size
        if size == 1 and not removed:
            return items
        size = max(size // 2, 1)
