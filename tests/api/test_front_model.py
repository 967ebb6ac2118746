"""The front ends of a cluster at random, against the promises of `front_model`.

A run is a list of numbers, each the seed of one step. What fails is cut down before it is shown,
with what was done. To repeat it, call `play` with the numbers that its failure tells.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random, SystemRandom
from typing import Any, NoReturn

import pytest

from api import consumers
from api.answers import SessionView
from cluster.failures import Overloaded, Stopping, TimedOut
from state import Cause, Created, Done, Failure, Outcome, Result, encode
from state import operations as op
from tests.api.front_mistakes import MISTAKES
from tests.api.front_model import (
    CONNECTIONS_MAX,
    IDLE_S,
    OVER,
    QUICK,
    SESSIONS_MAX,
    SHOWN,
    SLOW,
    THEMES,
    WRONG_REVISION,
    Ask,
    Connection,
    Keyed,
    Node,
    Session,
    World,
    sessions_of,
)

STEPS_A_RUN = 90
RUNS = 250
LONG_RUNS = 20_000
SHRINKING_RUNS = 500


VERDICTS = ("store", "store", "remove", "park")
KINDS = ("append",) * 10 + ("replace", "touch", *VERDICTS)


class Steps:
    """What may happen next."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(0)

    def do(self, number: int) -> None:
        self.random = Random(number)
        (name,) = self.random.choices(NAMES, tuple(WEIGHTS.values()))
        self.world.tell(name)
        STEPS[name](self)
        if self.random.random() < 0.8:
            self.world.loop.advance(0)
        self.world.check()

    # What is chosen

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def node(self) -> Node:
        return self.random.choice(self.world.nodes)

    def busy(self) -> Node:
        """A node that has something to commit or to apply, if there is one."""
        gateways = ((one, one.gateway) for one in self.world.nodes)
        busy = [node for node, one in gateways if one.queue or one.sent or one.behind]
        return self.random.choice(busy or self.world.nodes)

    def connection(self) -> Connection:
        """An open connection, as a rule one that holds something."""
        world = self.world
        if not world.open or (len(world.open) < CONNECTIONS_MAX and self.chance(0.05)):
            return world.connect(self.node())
        holders = [one for one in world.open if one.believes]
        return self.random.choice(holders if holders and self.chance(0.7) else world.open)

    def session(self, known: dict[int, int]) -> Session | None:
        """A session with an epoch that is believed to be the newest, or an old one."""
        world = self.world
        if not known or self.chance(0.1):
            others = [one.believes for one in world.open]
            known = {**world.memory, **world.callers}
            for one in others:
                known.update(one)
        if not known:
            return None
        session_id = self.random.choice(list(known))
        epoch = known[session_id]
        if self.chance(0.06):
            epoch = max(epoch + self.random.choice((-1, 1000)), 1)
        return session_id, epoch

    def themes(self) -> tuple[int, ...]:
        return self.random.choice(((QUICK,), THEMES, THEMES))

    def ask(self, session: Session, node: Node, kinds: Sequence[str] = KINDS) -> Ask:
        """Something to be done to a session."""
        chance, world = self.random.choice, self.world
        session_id, epoch = session
        there = node.gateway.copy.session(session_id)
        target: Any = session_id
        if there is not None and there.key is not None and self.chance(0.5):
            target = there.theme.theme_id, there.key
        revision = None
        if self.chance(0.1):
            is_wrong = there is None or self.chance(0.7)
            revision = WRONG_REVISION if is_wrong or there is None else there.revision
        label = b"%d" % (world.next_number())
        operation: Any
        match chance(kinds):
            case "append":
                operation = op.Append(target, epoch, label, revision)
            case "replace":
                operation = op.Replace(target, epoch, label, revision)
            case "touch":
                operation = op.Touch(target, epoch)
            case "store":
                after_ms = chance((None, 0, 1500))
                operation = op.Store(
                    target, epoch, after_ms, reason=label.decode(), if_revision=revision
                )
            case "remove":
                operation = op.Remove(target, epoch, revision)
            case _:
                operation = op.Park(target, epoch, label.decode(), revision)
        is_ending = not isinstance(operation, op.Append | op.Replace)
        return Ask(operation, session, is_ending)

    # What is said of sessions

    def work(self) -> None:
        """Say several things at once, alone or in transactions, without a look at the answers."""
        world = self.world
        connection = self.connection() if self.chance(0.85) else None
        node = self.node() if connection is None else connection.node
        known = world.callers if connection is None else connection.believes
        chosen = [one for one in (self.session(known) for _ in range(3)) if one is not None]
        if not chosen:
            return
        for _ in range(self.random.randint(1, 6)):
            if self.chance(0.3):
                picked = [self.random.choice(chosen) for _ in range(self.random.randint(1, 3))]
                self._transact(node, connection, [self.ask(one, node) for one in picked])
            else:
                self._say(node, connection, self.ask(self.random.choice(chosen), node))

    def finish(self) -> None:
        """Give a verdict, of which as a rule the outcome is not told."""
        connection = self.connection()
        node, session = connection.node, self.session(connection.believes)
        if session is not None:
            self._say(node, connection, self.ask(session, node, VERDICTS))
            if self.chance(0.7):
                node.gateway.expire_some(100, was_sent=True, is_lost=self.chance(0.7))

    def _key(self) -> bytes | None:
        return b"key %d" % self.world.next_number() if self.chance(0.15) else None

    def _say(self, node: Node, connection: Connection | None, ask: Ask) -> None:
        world = self.world

        def answered(result: Result) -> None:
            session_id, epoch = ask.session
            is_over = isinstance(result, Failure) and result.code in OVER
            if is_over and connection is None and world.callers.get(session_id) == epoch:
                del world.callers[session_id]

        key = self._key()
        world.say(node, [ask], answered, is_txn=False, asker=connection, idempotency_key=key)

    def claim(self) -> None:
        """Touch a session in the order of what is said of it, which makes it the consumer's."""
        connection = self.connection()
        session = self.session(connection.believes or self.world.memory)
        if session is None:
            return
        touch = op.Touch(session[0], session[1], connection.name)
        connection.consumer.asks()
        done = self._claimed(connection, [session])
        ask = Ask(touch, session, is_ending=True)
        self.world.say(connection.node, [ask], done, is_txn=False, asker=connection)

    def _claimed(self, connection: Connection, touched: list[Session]) -> Callable[[Result], None]:
        connection.heard_of |= {session_id for session_id, _ in touched}

        def done(result: Result) -> None:
            connection.note(result, touched)
            if isinstance(result, Failure):
                if result.outcome is Outcome.UNKNOWN:
                    for session_id, epoch in touched:
                        connection.maybe.add(session_id)
                        self.world.remember(session_id, epoch)
                return
            for session_id, epoch in touched:
                if connection.node.gateway.epoch(session_id) == epoch:
                    connection.takes(session_id, epoch, is_known=True)
            if isinstance(result, Done):
                given = [one for one in result.results if isinstance(one, Created) and one.epoch]
                connection.given([one[:2] for one in given], connection.name)

        return done

    def _transact(self, node: Node, connection: Connection | None, asks: list[Ask]) -> None:
        extra: list[Any] = []
        touched: list[Session] = []
        if connection is not None:
            if self.chance(0.2):
                connection.consumer.asks()
                extra.append(op.New(QUICK, consumer=connection.name))
            asks = [self._with_name(one, connection) for one in asks]
            touched = [one.session for one in asks if isinstance(one.operation, op.Touch)]
            if touched:
                connection.consumer.asks()
        elif self.chance(0.1):
            extra.append(op.New(QUICK, repeat_after_ms=500))
        done: Callable[[Result], object] = lambda _: None  # noqa: E731 - nobody wants to know
        if connection is not None:
            done = self._claimed(connection, touched)
        # Under a key, or it could not be told from another one.
        key = b"txn %d" % self.world.next_number()
        self.world.say(
            node, asks, done, is_txn=True, asker=connection, extra=extra, idempotency_key=key
        )

    def _with_name(self, ask: Ask, connection: Connection) -> Ask:
        if not isinstance(ask.operation, op.Touch):
            return ask
        touch = op.Touch(ask.operation.target, ask.operation.epoch, connection.name)
        return Ask(touch, ask.session, is_ending=True)

    # What gives sessions

    def begin(self) -> None:
        world = self.world
        again = [one for one in world.keyed if one.comes_again]
        if again and self.chance(0.5):
            one = self.random.choice(again)
            self.connection().new(one.operation, one)
            return
        if world.cluster.machine.session_count >= SESSIONS_MAX:
            self.acquire()
            return
        key = b"k%d" % world.next_number() if self.chance(0.2) else None
        new = op.New(self.random.choice(THEMES), key)
        if self.chance(0.8):
            keyed: Keyed | None = None
            if self.chance(0.3):
                keyed = Keyed(b"new %d" % world.next_number(), new)
                world.keyed.append(keyed)
            self.connection().new(new, keyed)
            return
        node, is_abandoned = self.node(), self.chance(0.3)

        def created(result: Result) -> None:
            if isinstance(result, Created) and result.epoch:
                self._called(node, [(result.session_id, result.epoch)], is_abandoned=is_abandoned)

        node.gateway.submit(encode(new), world.once(created))

    def _called(self, node: Node, given: list[Session], *, is_abandoned: bool) -> None:
        """Give sessions to a caller without a connection, who may have left."""
        for session_id, epoch in given:
            operator = node.operators.operate(session_id, epoch)
            if not is_abandoned:
                self.world.callers[session_id] = epoch
            elif operator is not None:
                operator.store(Cause.SHUTDOWN, "whoever asked for it had left")

    def acquire(self) -> None:
        connection, count = self.connection(), self.random.choice((1, 1, 2))
        if self.chance(0.6):
            connection.acquire(op.Acquire(self.themes(), count, connection.name))
            return
        stored = [one for one in self.world.cluster.machine.sessions() if not one.lease_ms]
        if stored:
            session_id = self.random.choice(stored).session_id
            connection.acquire(op.AcquireSession(session_id, connection.name))

    def poll(self) -> None:
        world, count = self.world, self.random.choice((1, 1, 2))
        if self.chance(0.7):
            self.connection().poll(self.themes(), count)
            return
        node = self.node()
        has_left: list[bool] = []

        def found(result: list[SessionView] | Failure) -> None:
            if not isinstance(result, Failure):
                self._called(node, sessions_of(result), is_abandoned=bool(has_left))

        world.poll(node, self.themes(), count, None, found)

    def give_up(self) -> None:
        """Lose the patience of who waits."""
        waiting = [one for one in self.world.polls if not one.is_answered and not one.is_left]
        if waiting:
            poll = self.random.choice(waiting)
            self.world.leave(poll)
            poll.is_given_up = True

    def resume(self) -> None:
        """Go on with what was held over another connection, perhaps while that one lives."""
        world = self.world
        known = dict(world.memory)
        if self.chance(0.4):
            known |= self.connection().believes
        if not known:
            return
        connection = self.connection()
        if self.chance(0.4) and len(world.open) < CONNECTIONS_MAX:
            connection = world.connect(self.node())
        for session_id, epoch in known.items():
            if connection.believes.get(session_id) != epoch and self.chance(0.8):
                connection.touch(session_id, epoch)

    # How connections go

    def leave(self) -> None:
        if self.world.open:
            cause = self.random.choice((Cause.DISCONNECTED, Cause.SHUTDOWN, Cause.FAILED))
            self.random.choice(self.world.open).leave(cause)

    def vanish(self) -> None:
        if self.world.open:
            self.random.choice(self.world.open).vanish()

    def fall_silent(self) -> None:
        if self.world.open:
            one = self.random.choice(self.world.open)
            one.is_silent = not one.is_silent

    # What the cluster does

    def commit(self) -> None:
        gateway = self.busy().gateway
        gateway.commit_some(self.random.choice((1, 3, 100, 100)))

    def settle(self) -> None:
        """Let a node have its way for a while."""
        gateway = self.busy().gateway
        for _ in range(self.random.randint(2, 8)):
            gateway.commit_some(100)

    def expire(self) -> None:
        count = self.random.choice((1, 2, 100))
        was_sent, is_lost = self.chance(0.7), self.chance(0.4)
        self.busy().gateway.expire_some(count, was_sent=was_sent, is_lost=is_lost)

    def refuse(self) -> None:
        gateway = self.node().gateway
        gateway.takes_endings = self.chance(0.5)
        if gateway.refusal is not None or self.chance(0.5):
            gateway.refusal = None
        else:
            refusals = (
                Overloaded(200),
                TimedOut(was_sent=False, waited_ms=1),
                Stopping(was_sent=False, reason="it has to"),
            )
            gateway.refusal = self.random.choice(refusals)

    def lag(self) -> None:
        gateway = self.node().gateway
        gateway.is_lagging = not gateway.is_lagging and self.chance(0.5)
        if not gateway.is_lagging:
            gateway.catch_up()

    def catch_up(self) -> None:
        self.node().gateway.catch_up(self.random.randint(1, 3))

    def install(self) -> None:
        behind = [one for one in self.world.nodes if one.gateway.behind]
        if behind:
            self.random.choice(behind).gateway.install()

    def elect(self) -> None:
        for node in self.world.nodes:
            node.gateway.on_leader(self.random.choice(("a", "b", None)))

    def advance(self) -> None:
        self.world.loop.advance(self.random.choice((0.05, 0.3, 1.0, 2.0, 6.0)))

    def reap(self) -> None:
        self.world.reap()

    def meddle(self) -> None:
        """Have something done by somebody who is not connected here."""
        world = self.world
        sessions = list(world.cluster.machine.sessions())
        if not sessions:
            return
        one = self.random.choice(sessions)
        epoch = one.epoch if one.lease_ms else None
        operation: Any = self.random.choice(
            (
                op.Store(one.session_id, epoch, self.random.choice((None, 0))),
                op.Remove(one.session_id, epoch),
                op.Append(one.session_id, epoch, b""),
                op.Unpark(one.session_id),
                op.Acquire(THEMES, 1, b"elsewhere"),
            )
        )
        for key, session_id in world.begun.items():
            if session_id == one.session_id:
                world.begun[key] = SHOWN
        world.cluster.do(operation)


WEIGHTS: dict[Callable[[Steps], None], int] = {
    Steps.work: 26,
    Steps.finish: 3,
    Steps.claim: 3,
    Steps.begin: 9,
    Steps.acquire: 6,
    Steps.poll: 4,
    Steps.give_up: 2,
    Steps.resume: 5,
    Steps.leave: 2,
    Steps.vanish: 2,
    Steps.fall_silent: 1,
    Steps.commit: 16,
    Steps.settle: 7,
    Steps.expire: 8,
    Steps.refuse: 3,
    Steps.lag: 4,
    Steps.catch_up: 2,
    Steps.install: 3,
    Steps.elect: 1,
    Steps.advance: 8,
    Steps.reap: 3,
    Steps.meddle: 2,
}
STEPS = {one.__name__: one for one in WEIGHTS}
NAMES = tuple(STEPS)


# Runs


def play(numbers: Sequence[int]) -> World:
    """Take these steps, and come to an end. Raises what a promise that is broken raises."""
    world = World(Random(numbers[0]))
    steps = Steps(world)
    try:
        for number in numbers:
            steps.do(number)
        world.tell("end")
        world.end()
    except BaseException as error:
        error.add_note("\n".join(f"{time_s:7.2f} {line}" for time_s, line in world.trace))
        raise
    return world


def failure(numbers: Sequence[int]) -> Exception | None:
    try:
        play(numbers)
    except Exception as error:  # noqa: BLE001 - a defect may show itself in any
        return error
    return None


def shortest(numbers: Sequence[int], runs: int = SHRINKING_RUNS) -> list[int]:
    """As few of the steps as fail, too: larger parts are left out first, then smaller ones."""
    found = list(numbers)
    size = len(found) // 2
    while size:
        start, was_shorter = 0, False
        while start < len(found) and runs:
            shorter = found[:start] + found[start + size :]
            runs -= 1
            if shorter and failure(shorter) is not None:
                found, was_shorter = shorter, True
            else:
                start += size
        if not was_shorter:
            size //= 2
    return found


def report(numbers: Sequence[int]) -> NoReturn:
    """Fail with the shortest run that does."""
    found = shortest(numbers)
    error = failure(found) or failure(numbers)
    notes = "\n".join(getattr(error, "__notes__", ()))
    pytest.fail(f"{error!r}\nplay({found})\nplay({list(numbers)})\n{notes}", pytrace=False)


def run(number: int) -> list[int]:
    """The steps of a run."""
    draw = Random(number)
    return [draw.getrandbits(32) for _ in range(STEPS_A_RUN)]


def run_many(runs: int, seed: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for number in range(seed, seed + runs):
        try:
            seen += play(run(number)).seen
        except Exception:  # noqa: BLE001 - it is shown in short
            report(run(number))
    return seen


SEEN = {
    "given back",
    "lost: removed",
    "lost: requested",
    "lost: resumed",
    "lost: stale",
    "reaped",
    "silenced",
    "skipped",
    "verdict unknown",
}


def test_everything_that_can_happen_happens() -> None:
    """These runs are always the same, so that this does not depend on luck."""
    assert run_many(40, 0).keys() >= SEEN


@pytest.mark.parametrize("worker", range(2))
def test_random_runs_keep_every_promise(worker: int) -> None:
    assert worker < RUNS
    run_many(RUNS // 2, SystemRandom().getrandbits(48))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_random_runs_keep_every_promise() -> None:
    run_many(LONG_RUNS, SystemRandom().getrandbits(48))


# What runs have found, cut down


class Story:
    """Two connections, of which the first holds a session."""

    def __init__(self, second: int) -> None:
        self.world = World(Random(0))
        self.here, self.there = self.world.nodes[0], self.world.nodes[second]
        self.first = self.world.connect(self.here)
        self.second = self.world.connect(self.there)
        self.first.new(op.New(SLOW))
        self.here.gateway.commit_some(1)
        ((self.id, _),) = self.first.believes.items()

    def append(self, data: bytes, *, is_txn: bool, asker: Connection | None = None) -> None:
        ask = Ask(op.Append(self.id, 1, data), (self.id, 1), is_ending=False)
        self.world.say(self.here, [ask], lambda _: None, is_txn=is_txn, asker=asker)

    def remove(self, asker: Connection) -> None:
        ask = Ask(op.Remove(self.id, 1), (self.id, 1), is_ending=True)
        self.world.say(self.here, [ask], lambda _: None, is_txn=False, asker=asker)


def test_one_session_lost_and_one_gained_are_as_many_but_not_the_same() -> None:
    story = Story(second=1)
    story.first.new(op.New(SLOW))
    story.here.gateway.expire_some(1, was_sent=True, is_lost=False)
    story.second.touch(story.id, 1)
    story.world.end()


def test_a_transaction_without_a_verdict_does_not_hide_that_its_session_is_lost() -> None:
    story = Story(second=0)
    story.second.touch(story.id, 1)
    story.append(b"x", is_txn=True)
    story.second.leave(Cause.DISCONNECTED)
    story.world.end()


def test_order_holds_though_a_session_was_resumed_at_another_node() -> None:
    story = Story(second=1)
    story.second.touch(story.id, 1)
    story.there.gateway.commit_some(1)
    story.world.loop.advance(IDLE_S)  # so a heartbeat is on its way
    story.append(b"1", is_txn=False)
    story.append(b"2", is_txn=False)
    story.append(b"3", is_txn=False)
    story.here.gateway.commit_some(1)
    story.world.loop.advance(0)
    story.append(b"4", is_txn=False)
    story.world.end()


def test_what_was_asked_for_by_who_has_left_is_released_whenever_it_is_done() -> None:
    story = Story(second=0)
    story.second.new(op.New(SLOW), Keyed(b"key", op.New(SLOW)))
    story.second.leave(Cause.DISCONNECTED)
    story.here.gateway.commit_some(2)
    story.here.gateway.expire_some(1, was_sent=True, is_lost=False)
    story.world.end()


def test_who_resumes_is_told_of_the_end_that_it_had_asked_for_and_not_heard_of() -> None:
    play(
        [
            *(2980573983, 3339994626, 1345562821, 3025777247, 1193426202, 3095724996, 3456437972),
            *(515674472, 85936042, 3333789905, 4087502875, 3788439446, 2977422274),
        ]
    )


def test_what_is_said_before_leaving_is_done_though_the_session_was_not_its_own_yet() -> None:
    story = Story(second=0)
    story.first.vanish()
    story.second.touch(story.id, 1)
    story.append(b"1", is_txn=False, asker=story.second)
    story.append(b"2", is_txn=True, asker=story.second)
    story.remove(story.second)
    story.second.leave(Cause.DISCONNECTED)
    story.world.end()
    assert story.world.cluster.machine.session(story.id) is None


def test_who_resumes_is_told_of_the_end_that_another_had_asked_for() -> None:
    story = Story(second=0)
    story.remove(story.first)
    story.here.gateway.expire_some(1, was_sent=True, is_lost=True)
    story.second.touch(story.id, 1)
    story.world.end()


def test_what_came_into_doubt_after_a_heartbeat_left_is_not_settled_by_it() -> None:
    _doubts(is_first_done=True)


def test_what_was_in_doubt_takes_no_room_when_it_is_settled() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consumers, "SHOWN_MAX", 1)
        _doubts(is_first_done=False)


def _doubts(*, is_first_done: bool) -> None:
    """Resume two sessions in doubt, with a heartbeat between them; the second is done late."""
    story = Story(second=0)
    story.first.new(op.New(SLOW))
    story.here.gateway.commit_some(1)
    story.first.vanish()
    one, other = story.world.memory
    gateway = story.here.gateway
    story.second.touch(one, 1)
    gateway.expire_some(1, was_sent=True, is_lost=not is_first_done)
    story.world.loop.advance(IDLE_S)
    if is_first_done:
        story.second.touch(other, 1)
        gateway.commit_some(1)
    else:
        gateway.commit_some(1)
        story.world.loop.advance(0)
        story.second.touch(other, 1)
    gateway.expire_some(1, was_sent=True, is_lost=False)
    story.world.loop.advance(0)
    story.world.end()


# Mistakes, each of which some run or story tells


STORIES = (
    test_one_session_lost_and_one_gained_are_as_many_but_not_the_same,
    test_a_transaction_without_a_verdict_does_not_hide_that_its_session_is_lost,
    test_order_holds_though_a_session_was_resumed_at_another_node,
    test_what_was_asked_for_by_who_has_left_is_released_whenever_it_is_done,
    test_who_resumes_is_told_of_the_end_that_it_had_asked_for_and_not_heard_of,
    test_what_is_said_before_leaving_is_done_though_the_session_was_not_its_own_yet,
    test_who_resumes_is_told_of_the_end_that_another_had_asked_for,
    test_what_came_into_doubt_after_a_heartbeat_left_is_not_settled_by_it,
    test_what_was_in_doubt_takes_no_room_when_it_is_settled,
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MISTAKES[mistake])
    assert any(map(_fails, STORIES)) or any(
        failure(run(number)) is not None for number in range(RUNS)
    ), mistake


def _fails(story: Callable[[], None]) -> bool:
    try:
        story()
    except Exception:  # noqa: BLE001 - a mistake may show itself in any
        return True
    return False
