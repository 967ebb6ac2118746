"""The front ends of a cluster under random steps, and what has to be true of them at any time.

Real state, real operators, consumers and waiters at three nodes; time, commits and failures are in
the hand of chance. Each node has a copy of the state of its own, and may lag behind. A run is a
list of numbers. Each is the seed of one step and of nothing else, so what has failed can be cut
down: a run without some of its steps is a run, too.

The steps, and how to play them, are in `test_front_model`.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple, NoReturn

import msgpack

from api.answers import SessionView
from api.consumers import Consumer, Consumers, Sign
from api.identifiers import session_number
from api.operators import Operator, Operators
from api.steps import SKIPPED, Step
from api.waiting import Waiter, Waiters
from cluster.failures import TimedOut
from cluster.queues import Callback
from state import (
    Cause,
    Created,
    Failure,
    Operation,
    Outcome,
    Result,
    StateMachine,
    encode,
    encode_batch,
)
from state import operations as op
from tests.api.fakes import FakeCluster, FakeGateway, Submitted, patient_budget

NODES = ("a", "b", "c")
SLOW, QUICK = 7, 8  # themes, by their leases
LEASES_MS = {SLOW: 30_000, QUICK: 6_000}
THEMES = tuple(LEASES_MS)
IDLE_S = 8.0
RETRIES_S = 20.0  # all that is retried, or waited for without a lease, is done by then
LEASES_S = 85.0  # who is silent has vanished by then, and has lost what it held
SESSIONS_MAX = 8
CONNECTIONS_MAX = 5
WRONG_REVISION = 10_000
SHOWN = -1  # a session whose epoch was shown by somebody who does not hold it
VERDICTS = (op.Remove, op.Store, op.Park)
OVER = frozenset({"lease_lost", "session_not_found"})

Session = tuple[int, int]  # an id and an epoch


class Violation(AssertionError):
    """A promise is broken."""


def must(is_kept: object, promise: str, *details: object) -> None:
    if not is_kept:
        broken(promise, *details)


def broken(promise: str, *details: object) -> NoReturn:
    raise Violation(" ".join([promise, *map(str, details)]))


# The cluster


@dataclass(eq=False, slots=True)
class Entry:
    """A batch in the log."""

    index: int
    batch: bytes
    owner: "ModelGateway | None"
    callbacks: list[Callback | None]  # of its operations


class ModelGateway(FakeGateway):
    """A node with its own copy of the state."""

    def __init__(self, cluster: "ModelCluster", name: str) -> None:
        super().__init__(cluster, name)
        self._log = cluster
        self.copy = StateMachine()
        self.behind: deque[Entry] = deque()  # committed, and not applied here
        self.is_lagging = False
        self.takes_endings = False  # though it refuses

    @property
    def _machine(self) -> StateMachine:
        return self.copy

    def _submit(
        self,
        encoded: bytes,
        callback: Callback,
        *,
        timeout_ms: int | None = None,
        weight: int = 1,
        is_ending: bool = False,
        late: Callback | None = None,
    ) -> None:
        if self.refusal is not None and is_ending and self.takes_endings:
            self.submitted += 1
            self.queue.append(Submitted(encoded, callback, is_ending))
            return
        super()._submit(
            encoded,
            callback,
            timeout_ms=timeout_ms,
            weight=weight,
            is_ending=is_ending,
            late=late,
        )

    def commit_some(self, count: int) -> None:
        """Have committed what was sent before, and the first of what waits."""
        taken, self.queue = self.queue[:count], self.queue[count:]
        sent, self.sent = self.sent, []
        callbacks: list[Callback | None] = [None] * len(sent)
        callbacks += [one.callback for one in taken]
        self._log.apply([*sent, *(one.encoded for one in taken)], callbacks, self)

    def expire_some(self, count: int, *, was_sent: bool, is_lost: bool) -> None:
        """End the patience of who waits longest. Of what is committed nobody knows that.

        What was sent is done later, or is lost for ever.
        """
        for entry in self.behind:
            for place, callback in enumerate(entry.callbacks):
                if entry.owner is self and callback is not None and count > 0:
                    entry.callbacks[place] = None
                    count -= 1
                    callback(TimedOut(was_sent=True, waited_ms=10))
        taken, self.queue = self.queue[:count], self.queue[count:]
        if was_sent and not is_lost:
            self.sent += [one.encoded for one in taken]
        for one in taken:
            one.callback(TimedOut(was_sent, 10))

    def catch_up(self, count: int = 1_000_000) -> None:
        """Apply what is committed."""
        while self.behind and count > 0:
            count -= 1
            entry = self.behind.popleft()
            applied = self.copy.apply(entry.index, entry.batch)
            self._answer(entry, applied.results)
            self.on_applied(applied)

    def install(self) -> None:
        """Get a snapshot in place of what is committed, and find the node's answers in it."""
        entries, self.behind = list(self.behind), deque()
        done = [self.copy.apply(entry.index, entry.batch).results for entry in entries]
        for entry, results in zip(entries, done, strict=True):
            self._answer(entry, results)
        self.on_installed()

    def _answer(self, entry: Entry, results: tuple[Result, ...]) -> None:
        if entry.owner is self:
            for result, callback in zip(results[1:], entry.callbacks, strict=True):
                if callback is not None:
                    callback(result)


class ModelCluster(FakeCluster):
    """What is committed, and a state that is always up to date."""

    def __init__(self, on_done: Callable[["ModelGateway | None", bytes, Result], None]) -> None:
        super().__init__()
        self._on_done = on_done
        self._gateways: list[ModelGateway] = []
        self.index = 0

    def node(self, name: str) -> ModelGateway:
        found = ModelGateway(self, name)
        self._gateways.append(found)
        return found

    def apply(
        self,
        encoded: list[bytes],
        callbacks: list[Callback | None],
        owner: ModelGateway | None = None,
    ) -> list[Any]:
        self.index += 1
        tick = encode(op.Tick(1_000_000 + int(self.loop.time() * 1000)))
        batch = encode_batch("all", 1, self.index, 1, [tick, *encoded])
        results = self.machine.apply(self.index, batch).results[1:]
        for one, result in zip(encoded, results, strict=True):
            if not isinstance(result, Failure):
                self._on_done(owner, one, result)
        for gateway in self._gateways:
            gateway.behind.append(Entry(self.index, batch, owner, callbacks))
        for gateway in self._gateways:
            if not gateway.is_lagging:
                gateway.catch_up()
        return list(results)

    def epoch(self, session_id: int) -> int:
        """The epoch of an active session; 0 if it is not."""
        session = self.machine.session(session_id)
        return session.epoch if session is not None and session.lease_ms else 0


class Node:
    """A node's front end."""

    def __init__(self, cluster: ModelCluster, name: str) -> None:
        self.name = name
        self.gateway = cluster.node(name)
        later = cluster.loop.call_later
        self.operators = Operators(self.gateway, later, budget=patient_budget(), jitter=Random(0))
        self.consumers = Consumers(self.gateway, self.operators, cluster.loop, idle_period_s=IDLE_S)
        self.waiters = Waiters(self.gateway, cluster.loop)


# Who asks


@dataclass(eq=False, slots=True)
class Said:
    """Something that a session's operator was told to do."""

    number: int
    node: Node
    asker: "Connection | None"
    operators: tuple[Operator, ...]  # in whose queues it is; none if it goes straight on
    about: tuple[Session, ...]  # the sessions that it changes
    ends: tuple[Session, ...]  # those that it ends
    is_unique: bool  # nothing else has the same bytes
    is_remembered: bool  # done once, it answers the same again
    is_insisted: bool  # an operator's verdict, which is tried again while it is open
    has_revision: bool  # it may be refused for that
    cause: str  # of the end that a verdict is, as it is told
    result: Any = None
    is_answered: bool = False
    is_skipped: bool = False  # it has to be: something before it has failed
    is_open: bool = False  # it may still be done, though it is answered
    applied: int = 0

    def __str__(self) -> str:
        return f"#{self.number}"


@dataclass(eq=False)
class Poll:
    """Somebody who waits for sessions."""

    node: Node
    is_given_up: bool = False
    waiter: Waiter | None = None
    is_left: bool = False  # it is told nothing any more
    is_answered: bool = False


@dataclass(eq=False, slots=True)
class Keyed:
    """A New under an idempotency key, which may be asked for more than once."""

    key: bytes
    operation: op.New
    asker: "Connection | None" = None  # the last one
    is_unknown: bool = False  # and that was told so
    is_heard: bool = False  # the answer has come

    @property
    def comes_again(self) -> bool:
        """Whether it is time to ask once more."""
        is_open = self.asker is not None and self.asker.is_open
        return not self.is_heard and (self.is_unknown or not is_open)

    def __str__(self) -> str:
        return self.key.decode()


class Ask(NamedTuple):
    """What is to be said of one session."""

    operation: Any
    session: Session
    is_ending: bool


class Connection:
    """A consumer's connection, and what is known at its other end."""

    def __init__(self, world: "World", node: Node) -> None:
        self.world = world
        self.node = node
        self.is_open = True
        self.is_silent = False
        self.believes: dict[int, int] = {}  # what it holds: epochs by session
        self.maybe: set[int] = set()  # what it may hold, as an answer did not come
        self.heard_of: set[int] = set()  # what it was told that it holds, at some time
        self.is_unsure = False  # whether it may have been given something unheard
        self.polls: list[Poll] = []
        self.consumer: Consumer = node.consumers.connect(self)
        self.name = self.consumer.name

    # As a listener

    def sign(self) -> Sign:
        return Sign.SILENCE if self.is_silent else Sign.LIFE

    def __repr__(self) -> str:
        return self.name.decode()

    def on_beat(self) -> None:
        if not self.is_silent:
            self.consumer.was_heard = True

    def on_silence(self) -> None:
        self.world.seen["silenced"] += 1
        self.vanish()

    def on_lost(self, session_id: int, epoch: int, cause: str) -> None:
        self.world.seen[f"lost: {cause}"] += 1
        self.world.tell((self, "loses", session_id, epoch, cause))
        must(self.is_open, "a connection that is gone was told of a loss", session_id)
        is_held = self.node.gateway.is_held(session_id, epoch, self.name)
        must(not is_held, "a session was said to be lost that is not:", session_id, cause)
        is_own = self.world.has_ended(self, session_id, epoch)
        must(not is_own, "a session was said to be lost that its consumer ended:", session_id)
        if self.believes.get(session_id) == epoch:
            del self.believes[session_id]
        self.maybe.discard(session_id)

    # Its end

    def leave(self, cause: Cause) -> None:
        self.world.tell((self, "leaves"))
        self.world.left.add(self.name)
        self.is_open = False
        self.consumer.leave(cause, "it left")
        self._stop()

    def vanish(self) -> None:
        self.world.tell((self, "vanishes"))
        self.world.memory.update(self.believes)
        self.is_open = False
        self.consumer.vanish()
        self._stop()

    def _stop(self) -> None:
        self.believes = {}
        for poll in self.polls:
            if not poll.is_answered:
                self.world.leave(poll)

    # What gives it a session

    def note(self, result: Result, shown: Iterable[Session] = ()) -> None:
        if isinstance(result, Failure):
            self.is_unsure |= result.outcome is Outcome.UNKNOWN
            self.consumer.doubts(result, shown)

    def given(self, sessions: Iterable[Session], name: bytes | None) -> None:
        """Take what the cluster has given; without a name it is claimed first."""
        for session_id, epoch in sessions:
            if name is not None:
                self.takes(session_id, epoch)
            elif self.node.gateway.epoch(session_id) == epoch:
                self.touch(session_id, epoch)

    def takes(self, session_id: int, epoch: int, *, is_known: bool = False) -> None:
        """Be answered that it holds a session; and be told at once if that is not so."""
        is_taken = self.consumer.take(session_id, epoch, is_known=is_known)
        self.hears(session_id, epoch)
        if not is_taken:
            self.consumer.misses([(session_id, epoch)])

    def hears(self, session_id: int, epoch: int) -> None:
        if self.is_open:
            self.world.tell((self, "holds", session_id, epoch))
            self.believes[session_id] = epoch
            self.heard_of.add(session_id)
            self.world.memory.pop(session_id, None)

    def touch(self, session_id: int, epoch: int) -> None:
        """Make a session its own, not in the order of what is said of it."""

        def touched(result: Result) -> None:
            self.world.tell((self, "is answered to resume", session_id, result))
            self.note(result, [(session_id, epoch)])
            if not isinstance(result, Failure):
                self.takes(session_id, epoch, is_known=True)
            elif result.outcome is Outcome.UNKNOWN:
                self.maybe.add(session_id)
                self.world.remember(session_id, epoch)
            elif result.code in OVER:
                self.world.forget(session_id, epoch)

        self.world.tell((self, "resumes", session_id, epoch))
        self.consumer.asks()
        self.heard_of.add(session_id)
        touch = encode(op.Touch(session_id, epoch, self.name))
        self.node.gateway.submit(touch, self.world.once(touched), is_ending=True)

    def new(self, operation: op.New, keyed: "Keyed | None" = None) -> None:
        """Ask for a new session, under a key perhaps: for the first time, or again."""
        is_first = keyed is not None and keyed.asker is None
        if keyed is not None:
            keyed.asker, keyed.is_unknown = self, False

        def created(result: Result) -> None:
            if isinstance(result, Failure):
                is_unknown = result.outcome is Outcome.UNKNOWN
                self.is_unsure |= is_unknown
                self.consumer.doubts(result, comes_back=keyed is not None)
                if keyed is not None and keyed.asker is self:
                    keyed.is_unknown |= is_unknown
            if not isinstance(result, Created) or not result.epoch:
                return
            session_id, epoch = result.session_id, result.epoch
            if keyed is not None:
                self.heard_of.add(session_id)  # it may ask again
                keyed.is_heard |= self.is_open and keyed.asker is self
            is_held = self.node.gateway.is_held(session_id, epoch, self.name)
            if keyed is None or is_first or is_held:
                if self.consumer.take(session_id, epoch, is_known=keyed is not None):
                    self.hears(session_id, epoch)  # else the answer says that it is over
            elif not self.consumer.is_gone:
                self.given([(session_id, epoch)], None)

        self.consumer.asks()
        self.world.tell((self, "asks for a new one", keyed))
        asked: Operation = op.New(operation.theme, operation.key, consumer=self.name)
        if keyed is not None:
            asked = op.Idempotent(keyed.key, 10**7, asked, int(is_first))
        self.node.gateway.submit(encode(asked), self.world.once(created))

    def acquire(self, operation: op.Acquire | op.AcquireSession) -> None:
        self.consumer.asks()
        self.world.tell((self, "asks", operation))
        self.node.gateway.acquire(encode(operation), self.world.once(self.acquired))

    def acquired(self, result: list[SessionView] | Failure) -> None:
        if isinstance(result, Failure):
            self.note(result)
        else:
            self.given(sessions_of(result), self.name)

    def poll(self, themes: tuple[int, ...], count: int) -> None:
        self.consumer.asks()
        poll = self.world.poll(self.node, themes, count, self.name, self.acquired)
        self.polls.append(poll)


def sessions_of(views: Iterable[SessionView]) -> list[Session]:
    return [(session_number(view.id) or 0, view.epoch) for view in views]


# The world


class World:
    """All nodes and all who ask, and what is known to have happened."""

    def __init__(self, chances: Random) -> None:
        self.seen: Counter[str] = Counter()
        self.trace: list[tuple[float, object]] = []
        self.cluster = ModelCluster(self._done)
        self.loop = self.cluster.loop
        self.nodes = [Node(self.cluster, name) for name in NODES]
        self.connections: list[Connection] = []
        self.memory: dict[int, int] = {}  # known to consumers that have vanished
        self.callers: dict[int, int] = {}  # known to callers that have no connection
        self.left: set[bytes] = set()  # consumers that have left for certain
        # By an operator's verdict that was answered, and by whom.
        self.ended: set[tuple[Connection | None, int, int]] = set()
        self.polls: list[Poll] = []
        self.keyed: list[Keyed] = []
        # By keys: sessions that were begun, but for those whose epoch somebody else has shown.
        self.begun: dict[bytes, int] = {}
        self.spared: set[int] = set()  # all that was begun under a key
        self._is_calm = False
        self._number = 0
        self._open = 0  # requests that are not answered
        self._said: list[Said] = []
        self._by_bytes: dict[tuple[ModelGateway, bytes], list[Said]] = {}
        self._by_operator: dict[Operator, list[Said]] = {}
        self._last: dict[tuple[Node, int], int] = {}  # what was applied last, by node and session
        self.cluster.do(
            *(op.SetPolicy(one, (("lease_ms", ms),)) for one, ms in LEASES_MS.items()),
            op.SetPolicy(QUICK, (("max_attempts", 3), ("repeat_ms", 500))),
            op.SetPolicy(SLOW, (("repeat_ms", 2000),)),
        )
        if chances.random() < 0.3:
            self.cluster.do(op.SetLimits((("acquire_count", 2),)))

    def tell(self, line: object) -> None:
        """Keep a line of what is done, for whoever has to find out what went wrong."""
        self.trace.append((self.loop.time(), line))

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def once(self, callback: Callable[[Any], object]) -> Callable[[Any], None]:
        """A callback that has to be called exactly once."""
        self._open += 1
        is_called = False

        def called(result: Any) -> None:
            nonlocal is_called
            must(not is_called, "a request was answered twice, again with", result)
            is_called = True
            self._open -= 1
            callback(result)

        return called

    def connect(self, node: Node) -> Connection:
        found = Connection(self, node)
        self.connections.append(found)
        return found

    # Who knows of what

    @property
    def open(self) -> list[Connection]:
        return [one for one in self.connections if one.is_open]

    def remember(self, session_id: int, epoch: int) -> None:
        """Whoever has resumed something in vain still knows of it."""
        if not any(one.believes.get(session_id) == epoch for one in self.open):
            self.memory[session_id] = max(epoch, self.memory.get(session_id, 0))

    def forget(self, session_id: int, epoch: int) -> None:
        if self.memory.get(session_id) == epoch:
            del self.memory[session_id]

    def is_known(self, session_id: int, epoch: int) -> bool:
        """Whether anybody believes to hold a session, or could resume it."""
        believers = [one.believes for one in self.open]
        return any(one.get(session_id) == epoch for one in (self.memory, self.callers, *believers))

    def has_ended(self, one: Connection, session_id: int, epoch: int) -> bool:
        """Whether a session ended by the verdict of one who has not resumed it since."""
        if (one, session_id, epoch) in self.ended:
            return True
        # If its node has missed a part, somebody else's end of it is the one that is told.
        cause = one.node.gateway.cause(session_id)
        return one.believes.get(session_id) != epoch and any(
            said.asker is one and said.is_insisted and said.applied and said.cause == cause
            for said in self._said
            if (session_id, epoch) in said.ends
        )

    def _ended(self, said: Said, *, is_certain: bool) -> None:
        """Take note of a verdict that was heard of, or may have been done.

        Whoever else operates the session, at this node or another, is told that it is lost.
        """
        one = said.asker
        for session_id, epoch in said.ends:
            for known in (self.memory, self.callers):
                if known.get(session_id) == epoch:
                    del known[session_id]
            if one is not None and one.believes.get(session_id) == epoch:
                del one.believes[session_id]
                if not is_certain and not said.is_insisted:
                    one.maybe.add(session_id)

    # What is said of sessions

    def say(
        self,
        node: Node,
        asks: Sequence[Ask],
        then: Callable[[Result], object],
        *,
        is_txn: bool,
        asker: Connection | None = None,
        extra: Sequence[Any] = (),
        idempotency_key: bytes | None = None,
    ) -> None:
        """Have something done by the operators of sessions, or by the cluster if there are none."""
        operations = [one.operation for one in asks]
        asked: Operation = op.Txn((*operations, *extra)) if is_txn else operations[0]
        if idempotency_key is not None:
            asked = op.Idempotent(idempotency_key, 10**7, asked)
        encoded = encode(asked)
        shown = [(one.target, one.epoch) for one in operations]
        found = [node.operators.operate(*one) for one in shown]
        verdicts = [one for one in asks if isinstance(one.operation, VERDICTS)]
        is_plain = not is_txn and found[0] is not None
        said = Said(
            self.next_number(),
            node,
            asker,
            tuple(dict.fromkeys(one for one in found if one is not None)),
            # Of what this node does not know the epoch of yet, a transaction has no place in order.
            tuple(
                dict.fromkeys(
                    one.session
                    for one, operator in zip(asks, found, strict=True)
                    if operator is not None or not is_txn
                )
            ),
            tuple(one.session for one in verdicts),
            is_remembered=idempotency_key is not None,
            is_unique=idempotency_key is not None
            or any(not isinstance(one, (op.Remove, op.Touch)) for one in operations),
            is_insisted=bool(is_plain and verdicts),
            has_revision=any(one.operation.if_revision is not None for one in verdicts),
            cause=_cause(verdicts[0].operation) if verdicts else "",
        )
        self.tell((node.name, said.number, asked, "by operators" if said.operators else "alone"))
        self._said.append(said)
        if said.is_unique or verdicts:
            self._by_bytes.setdefault((node.gateway, encoded), []).append(said)
        for operator in said.operators:
            self._by_operator.setdefault(operator, []).append(said)

        def answered(result: Result) -> None:
            self._answered(said, result)
            then(result)

        callback = self.once(answered)
        who = None if asker is None else asker.consumer
        first = found[0]
        if is_txn:
            with_verdicts = [
                (*one, isinstance(operation, VERDICTS))
                for one, operation in zip(shown, operations, strict=True)
            ]
            weight = len(operations)
            node.operators.transact(with_verdicts, encoded, callback, weight=weight, asker=who)
        elif first is not None:
            first.ask(Step(encoded, callback, bool(verdicts), asks[0].is_ending, who))
        else:
            node.gateway.submit(encoded, callback, is_ending=asks[0].is_ending)

    def _answered(self, said: Said, result: Result) -> None:
        said.result, said.is_answered = result, True
        self.tell((said.node.name, said.number, "is answered", result))
        for operator in said.operators:
            self._by_operator[operator].remove(said)
        if not isinstance(result, Failure):
            must(not said.is_skipped, "done though what was before it had failed:", said)
            must(not said.is_unique or said.applied, "said to be done and is not:", said)
            self._ended(said, is_certain=True)
            if said.operators:
                self.ended |= {(said.asker, *one) for one in said.ends if one in said.about}
            return
        if result is SKIPPED:
            self.seen["skipped"] += 1
            is_left = any(one.is_storing for one in said.operators)
            must(said.is_skipped or is_left, "skipped, though nothing before it has failed:", said)
        else:
            must(not said.is_skipped, "answered though what was before it had failed:", said)
        is_heard = said.asker is None or said.asker.is_open
        said.is_open = result.outcome is Outcome.UNKNOWN or (
            said.is_insisted and result.retryable and result is not SKIPPED and not is_heard
        )
        if result.outcome is Outcome.NOT_APPLIED:
            must(not said.applied, "done, and said not to be:", said, result)
        elif said.ends:
            self.seen["verdict unknown"] += 1
            self._ended(said, is_certain=False)
        for operator in said.operators:
            for behind in self._by_operator[operator]:
                if behind.number > said.number:
                    behind.is_skipped = True

    def _done(self, owner: ModelGateway | None, encoded: bytes, result: Result) -> None:
        """Take note of what is applied, and look whether it may be."""
        if owner is None:
            return
        if encoded[1] == op.Idempotent.code and isinstance(result, Created):
            key, session_id = _unpack(encoded)[1], result.session_id
            self.spared.add(session_id)
            is_same = self.begun.setdefault(key, session_id) in {session_id, SHOWN}
            must(is_same, "begun twice under one key:", key, session_id)
        if encoded[1] != op.Heartbeat.code:
            self.tell((owner.name, "does", _unpack(encoded)))
        candidates = self._by_bytes.get((owner, encoded))
        if candidates is not None:
            self._done_as_said(candidates)
            return
        match encoded[1]:  # an array's first element
            case op.Release.code:
                self._released(decoded_release(encoded))
            case op.Store.code:
                session_id, epoch = decoded_store(encoded)
                self.seen["given back"] += 1
                is_known = self.is_known(session_id, epoch)
                is_refused = self._may_be_refused(owner, session_id, epoch)
                # Nobody had come for it in time; it may have been asked for again in that moment.
                is_spared = session_id in self.spared
                is_due = is_refused or is_spared or not is_known
                must(is_due, "stored though somebody knows of it:", session_id, epoch)
            case op.Append.code | op.Replace.code | op.Remove.code | op.Park.code | op.Txn.code:
                broken("done though nobody has asked:", encoded)
            case _:
                pass

    def _may_be_refused(self, gateway: ModelGateway, session_id: int, epoch: int) -> bool:
        """Whether a verdict may have been refused of which it was said that nobody knows.

        What ends its session then is a verdict in doubt, too: who resumes it may lose it by that.
        """
        return any(
            said.node.gateway is gateway and said.has_revision and said.is_open and not said.applied
            for said in self._said
            if said.is_insisted and (session_id, epoch) in said.ends
        )

    def _released(self, name: bytes) -> None:
        must(name in self.left, "a consumer was released that has not left:", name)
        for said in self._said:
            if said.asker is None or said.asker.name != name:
                continue
            is_heard = said.is_answered or not said.operators
            must(is_heard, "released before all was done that it had said:", name, said)
            if said.is_insisted and said.is_open and not said.has_revision:
                is_waited_for = said.operators[0].has_ended or not said.operators[0].is_storing
                must(is_waited_for, "released before its verdict was done:", name, said)

    def _done_as_said(self, candidates: list[Said]) -> None:
        possible = [
            one
            for one in candidates
            if not one.is_skipped and not one.applied and (one.is_open or not one.is_answered)
        ]
        if not possible:
            is_remembered = candidates[0].is_remembered and candidates[0].applied
            must(is_remembered, "done though it was skipped, refused or done before:", *candidates)
            return
        said = possible[0]
        said.applied += 1
        self.tell((said.node.name, said.number, "is applied"))
        if not said.is_unique:
            return
        for session_id, _ in said.about:
            key = said.node, session_id
            last = self._last.get(key, 0)
            must(last < said.number, "applied out of order:", said, "after", last)
            self._last[key] = said.number

    # Who waits

    def poll(
        self,
        node: Node,
        themes: tuple[int, ...],
        count: int,
        name: bytes | None,
        then: Callable[[list[SessionView] | Failure], object],
    ) -> Poll:
        poll = Poll(node)

        def found(result: list[SessionView] | Failure) -> None:
            must(not poll.is_answered, "a waiter was answered twice")
            must(not poll.is_left, "a waiter was answered that had left")
            poll.is_answered = True
            if isinstance(result, Failure) or not poll.is_given_up:
                then(result)
            else:
                for session_id, epoch in sessions_of(result):
                    node.operators.give_back(session_id, epoch, "whoever asked had given up")

        self.polls.append(poll)
        poll.waiter = node.waiters.ask(themes, count, name, found)
        return poll

    def leave(self, poll: Poll) -> None:
        if poll.waiter is not None and not poll.is_answered and not poll.is_left:
            poll.is_left = poll.node.waiters.leave(poll.waiter)

    # Promises that hold at any time

    def check(self) -> None:
        for node in self.nodes:
            held: dict[Any, set[int]] = {}
            for operator in node.operators:
                is_own = node.gateway.epoch(operator.session_id) == operator.epoch
                must(is_own, "an operator is left of what is over:", operator.session_id)
                must(not operator.has_ended, "an operator is left that has ended")
                if operator.consumer is not None:
                    held.setdefault(operator.consumer, set()).add(operator.session_id)
            for one in self.connections:
                if one.node is node and (one.is_open or one.consumer.held):
                    directed = held.get(one.consumer, set())
                    agrees = one.consumer.held == directed
                    must(agrees, "held is not what is directed:", one.name, directed)

    # The end

    def end(self) -> None:
        """Have a calm time, and look whether all has come right."""
        for node in self.nodes:
            node.gateway.refusal = None
            node.gateway.is_lagging = False
            node.gateway.catch_up()
        self._wait(RETRIES_S)
        self._check_rest()
        for poll in self.polls:
            self.leave(poll)
        self._is_calm = True
        self._wait(LEASES_S)
        self._check_rest()
        self._check_held()

    def _wait(self, seconds: float) -> None:
        loop = self.loop
        until_s = loop.time() + seconds
        while loop.time() < until_s:
            self.settle()
            next_s = loop.next_s
            step_s = min(5.0, until_s - loop.time())
            if next_s is not None:
                step_s = min(step_s, next_s - loop.time() + 0.001)
            loop.advance(max(step_s, 0))
            self.reap()
        self.settle()

    def settle(self) -> None:
        """Commit until nothing is left to commit."""
        gateways = [node.gateway for node in self.nodes]
        for _ in range(1000):
            is_done = True
            for gateway in gateways:
                if gateway.queue or gateway.sent:
                    is_done = False
                    gateway.commit_some(1_000_000)
            self.loop.advance(0)
            if is_done:
                return
        broken("it never comes to rest")

    def reap(self) -> None:
        """Do as the leader does: move the clock, and store what is stale."""
        self.cluster.do()
        stale = self.cluster.machine.stale(100)
        if not stale:
            return
        if self._is_calm:
            alive = {one.name for one in self.open if not one.is_silent}
            for session_id, _ in stale:
                session: Any = self.cluster.machine.session(session_id)
                is_alive = session.consumer and session.consumer.consumer_id in alive
                must(not is_alive, "reaped though its consumer is there:", session_id)
        self.seen["reaped"] += len(stale)
        self.cluster.do(*(op.Store(*one, cause=Cause.STALE) for one in stale))

    def _check_rest(self) -> None:
        must(not self._open, "so many requests were never answered:", self._open)
        for name in self.left:
            left = list(self.cluster.machine.held_by(name))
            must(not left, "a consumer that has left holds", left)
        for one in self.connections:
            must(not one.consumer.asked, "counted, and not done:", one.name, one.consumer.asked)
            if not one.is_open and not one.is_unsure:
                held = {session_id for session_id, _ in self.cluster.machine.held_by(one.name)}
                must(held <= one.heard_of, "kept for who has vanished and was never told:", held)
        for said in self._said:
            if said.is_insisted and said.is_open:
                ((session_id, epoch),) = said.ends
                is_done = self.cluster.epoch(session_id) != epoch
                # What may be refused is looked at in `_check_held`.
                must(is_done or said.has_revision, "a verdict was forgotten:", said)
        for node in self.nodes:
            must(not node.operators.releasing, "a release does not end at", node.name)
            for operator in node.operators:
                must(not operator.depth, "an operator stays busy with", operator.session_id)
            for theme in THEMES:
                ready = node.gateway.ready_count(theme)
                waits = any(
                    one.waiter is not None and not one.waiter.is_over and theme in one.waiter.themes
                    for one in self.polls
                    if one.node is node
                )
                must(not ready or not waits, "somebody waits for what is there:", theme)
        self.check()

    def _check_held(self) -> None:
        """Who holds what, when all that could be heard of was heard."""
        held: set[int] = set()
        for one in self.connections:
            given = dict(self.cluster.machine.held_by(one.name))
            must(one.is_open or not given, "somebody who is gone holds:", given)
            if one.is_open:
                agrees = one.consumer.held == given.keys()
                must(agrees, "held is not what was given:", one.name, one.consumer.held, given)
                is_right = one.believes.items() <= given.items()
                must(is_right, "believed to be held:", one.name, one.believes, given)
                unknown = given.keys() - one.believes.keys() - one.maybe
                must(not unknown, "held, and its consumer does not know:", one.name, unknown)
                held |= given.keys()
        for session in self.cluster.machine.sessions():
            is_held = not self.cluster.epoch(session.session_id) or session.session_id in held
            must(is_held, "active, and nobody's:", session.session_id)
        for node in self.nodes:
            must(not len(node.waiters), "a waiter is left at", node.name)
        must(self.loop.count == len(self.open), "timers are left:", self.loop.count)


def _cause(verdict: op.Remove | op.Store | op.Park) -> str:
    match verdict:
        case op.Remove():
            return "removed"
        case op.Park():
            return "parked"
        case op.Store():
            return Cause(verdict.cause).name.lower()


def decoded_release(encoded: bytes) -> bytes:
    return bytes(_unpack(encoded)[1])


def decoded_store(encoded: bytes) -> Session:
    _, session_id, epoch, *_ = _unpack(encoded)
    return session_id, epoch


def _unpack(encoded: bytes) -> list[Any]:
    found: list[Any] = msgpack.unpackb(encoded)
    return found
