"""Signs of life, and what becomes of what a consumer holds; time is in the test's hand."""

from random import Random
from typing import Any

import pytest

from api.consumers import BEATS_PER_LEASE, SILENT_PERIODS, SPARE_S, Consumer, Consumers, Sign
from api.operators import Operators
from api.steps import Step
from cluster.failures import TimedOut
from state import Cause, Phase, encode
from state import operations as op
from state.policy import DEFAULT_POLICY
from tests.api.fakes import FakeCluster, FakeGateway, patient_budget

THEME = 7
IDLE_S = 15.0
LEASE_S = DEFAULT_POLICY.lease_ms / 1000


class Connection:
    """A listener that counts."""

    def __init__(self) -> None:
        self.beats = 0
        self.silences = 0
        self.lost: list[tuple[int, int, str]] = []
        self.means = Sign.SILENCE  # that nothing is heard

    def sign(self) -> Sign:
        return self.means

    def on_beat(self) -> None:
        self.beats += 1

    def on_silence(self) -> None:
        self.silences += 1

    def on_lost(self, session_id: int, epoch: int, cause: str) -> None:
        self.lost.append((session_id, epoch, cause))


class Node:
    """A node's operators and consumers."""

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        self.cluster = cluster
        self.gateway: FakeGateway = cluster.node(name)
        self.operators = Operators(
            self.gateway, cluster.loop.call_later, budget=patient_budget(), jitter=Random(0)
        )
        self.consumers = Consumers(self.gateway, self.operators, cluster.loop, idle_period_s=IDLE_S)

    def connect(self) -> tuple[Consumer, Connection]:
        connection = Connection()
        return self.consumers.connect(connection), connection

    def new(self, consumer: Consumer) -> int:
        """Have a session begun that the consumer holds."""
        found: list[int] = []

        def created(result: Any) -> None:
            found.append(result.session_id)
            consumer.take(result.session_id, result.epoch)

        consumer.asks()
        self.gateway.submit(encode(op.New(THEME, consumer=consumer.name)), created)
        self.gateway.commit()
        return found[0]

    def session(self, session_id: int) -> Any:
        return self.cluster.machine.session(session_id)


@pytest.fixture
def node() -> Node:
    return Node(FakeCluster(), "a")


def heartbeats(node: Node) -> int:
    return sum(one.encoded == encode(op.Heartbeat(b"a/1/1")) for one in node.gateway.queue)


def test_one_heartbeat_a_few_times_a_lease_renews_all_that_it_holds(node: Node) -> None:
    consumer, connection = node.connect()
    ids = [node.new(consumer) for _ in range(50)]
    for beats in range(1, 4 * BEATS_PER_LEASE):
        consumer.was_heard = True
        node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
        assert (len(node.gateway.queue), heartbeats(node)) == (1, 1)
        node.gateway.commit()
        assert connection.beats == beats
    assert node.cluster.machine.stale(100) == []
    assert node.session(ids[0]).deadline_ms > node.cluster.machine.now_ms + 0.9 * LEASE_S * 1000


def test_one_that_holds_nothing_is_asked_for_signs_of_life_and_costs_the_cluster_nothing(
    node: Node,
) -> None:
    consumer, connection = node.connect()
    for _ in range(20):
        consumer.was_heard = True
        node.cluster.loop.advance(IDLE_S)
    assert (connection.beats, connection.silences, node.gateway.submitted) == (20, 0, 0)


def test_a_short_lease_makes_it_beat_faster_and_a_long_one_no_slower(node: Node) -> None:
    node.cluster.do(op.SetPolicy(THEME, (("lease_ms", 400),)))
    consumer, connection = node.connect()
    session_id = node.new(consumer)
    node.cluster.loop.advance(1)
    assert connection.beats == SILENT_PERIODS
    node.cluster.do(op.SetPolicy(THEME, (("lease_ms", 10 * 3600 * 1000),)))
    consumer, connection = node.connect()
    node.new(consumer)
    node.cluster.loop.advance(IDLE_S + 1)
    assert connection.beats == 1
    assert session_id


def test_who_is_not_heard_sends_no_heartbeats_and_has_vanished_after_a_lease(node: Node) -> None:
    consumer, connection = node.connect()
    node.new(consumer)
    node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
    node.gateway.commit()
    node.cluster.loop.advance(LEASE_S)
    assert connection.silences == 0
    node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
    assert (connection.silences, len(node.gateway.queue)) == (1, 0)
    assert len(node.cluster.machine.stale(100)) == 0
    node.cluster.do()
    assert len(node.cluster.machine.stale(100)) == 1


def test_who_is_not_heard_has_vanished_as_soon_when_its_sessions_are_lost_before(
    node: Node,
) -> None:
    consumer, connection = node.connect()
    session_id = node.new(consumer)
    node.cluster.loop.advance(2 * LEASE_S / BEATS_PER_LEASE)
    node.cluster.do(op.Remove(session_id, 1))
    assert not consumer.held
    node.cluster.loop.advance(LEASE_S)
    assert connection.silences == 1
    consumer.was_heard = True
    node.cluster.loop.advance(LEASE_S)
    assert connection.silences == 1


def test_one_that_could_not_be_asked_is_neither_gone_nor_alive(node: Node) -> None:
    consumer, connection = node.connect()
    node.new(consumer)
    node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
    node.gateway.commit()
    connection.means = Sign.NONE
    node.cluster.loop.advance(4 * LEASE_S)
    assert (connection.silences, heartbeats(node)) == (0, 0)
    connection.means = Sign.SILENCE
    node.cluster.loop.advance(LEASE_S)
    assert connection.silences == 0
    node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
    assert connection.silences == 1


def test_one_that_is_not_listened_to_or_takes_what_it_is_told_is_alive(node: Node) -> None:
    consumer, connection = node.connect()
    node.new(consumer)
    connection.means = Sign.LIFE
    for _ in range(4 * BEATS_PER_LEASE):
        node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
        node.gateway.commit()
    assert (connection.silences, node.cluster.machine.stale(100)) == (0, [])


# How it goes


def test_one_that_leaves_has_all_it_holds_stored(node: Node) -> None:
    consumer, _ = node.connect()
    ids = [node.new(consumer) for _ in range(3)]
    consumer.leave(Cause.DISCONNECTED, "it left")
    node.gateway.commit()
    assert {node.session(one).phase for one in ids} == {Phase.STORED}
    assert node.session(ids[0]).history[0].reason == "it left"
    assert (len(node.operators), node.operators.releasing, node.cluster.loop.count) == (0, 0, 0)


def test_one_that_never_asked_for_anything_leaves_without_a_word(node: Node) -> None:
    consumer, _ = node.connect()
    consumer.leave(Cause.DISCONNECTED, "it left")
    assert node.gateway.submitted == 0


def test_leaving_covers_what_is_still_on_its_way(node: Node) -> None:
    consumer, _ = node.connect()
    consumer.asks()
    node.gateway.submit(encode(op.New(THEME, consumer=consumer.name)), lambda _: None)
    consumer.leave(Cause.DISCONNECTED, "it left")
    node.gateway.expire()
    node.cluster.loop.advance(0.1)
    node.gateway.commit_all()
    assert node.session(1).phase is Phase.STORED


def test_heartbeats_go_on_until_all_is_done_that_one_had_said_who_has_left(node: Node) -> None:
    consumer, _ = node.connect()
    ids = [node.new(consumer), node.new(consumer)]
    operator = node.operators.operate(ids[0], 1)
    assert operator is not None
    for data in (b"1", b"2"):
        append = encode(op.Append(ids[0], 1, data))
        step = Step(append, lambda _: None, is_verdict=False, is_ending=False, asker=consumer)
        operator.ask(step)
    consumer.leave(Cause.DISCONNECTED, "it left")
    consumer.vanish()  # as its connection says when it is over
    node.cluster.loop.advance(LEASE_S * 0.9)
    assert heartbeats(node) == 3
    node.gateway.commit()
    node.cluster.loop.advance(LEASE_S * 0.9)
    assert node.cluster.machine.stale(100) == []
    node.gateway.commit_all()
    assert [node.session(one).phase for one in ids] == [Phase.STORED] * 2
    assert node.session(ids[0]).data == b"12"
    node.cluster.loop.advance(LEASE_S)
    assert (node.cluster.loop.count, len(node.gateway.queue)) == (0, 0)


def test_what_is_given_to_one_that_has_left_is_released_once_more(node: Node) -> None:
    consumer, _ = node.connect()
    consumer.leave(Cause.SHUTDOWN, "it left")
    for _ in range(10):
        node.new(consumer)
    node.gateway.commit_all()
    node.cluster.loop.advance(0)
    assert len(node.gateway.queue) == 1
    node.gateway.commit_all()
    assert {node.session(one).phase for one in range(1, 11)} == {Phase.READY}
    assert len(node.operators) == 0


def test_what_is_given_to_one_that_has_vanished_and_never_told_is_given_back(node: Node) -> None:
    consumer, _ = node.connect()
    kept = node.new(consumer)
    consumer.vanish()
    given = node.new(consumer)
    node.gateway.commit_all()
    assert (node.session(kept).phase, node.session(given).phase) == (Phase.ACTIVE, Phase.READY)


def test_what_one_that_has_vanished_knows_of_waits_for_its_lease(node: Node) -> None:
    consumer, _ = node.connect()
    session_id = node.new(consumer)
    consumer.vanish()
    consumer.take(session_id, 1, is_known=True)
    node.gateway.commit_all()
    assert node.session(session_id).phase is Phase.ACTIVE


def test_the_same_session_of_an_epoch_that_is_over_is_not_taken(node: Node) -> None:
    consumer, _ = node.connect()
    session_id = node.new(consumer)
    node.cluster.do(op.Store(session_id, 1, 0), op.Acquire((THEME,), 1, b"other"))
    consumer.take(session_id, 1)
    consumer.take(session_id, 2)
    assert consumer.held == set()
    assert len(node.operators) == 0


# What the answers to heartbeats tell


def test_what_nobody_was_told_of_is_found_and_stored(node: Node) -> None:
    consumer, connection = node.connect()
    known = node.new(consumer)
    node.gateway.submit(encode(op.New(THEME, consumer=consumer.name)), lambda _: None)
    node.gateway.expire()
    node.gateway.commit_all()
    lost = node.gateway.held_by(consumer.name)[1][0]
    node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
    node.gateway.commit_all()
    session = node.session(lost)
    assert (session.phase, session.attempts) == (Phase.READY, 0)
    assert (consumer.held, connection.lost) == ({known}, [])


def test_doubt_is_reason_enough_to_look(node: Node) -> None:
    consumer, _ = node.connect()
    consumer.asks()
    doubts: Any = consumer.doubts
    node.gateway.submit(encode(op.New(THEME, consumer=consumer.name)), doubts)
    node.gateway.expire()
    node.cluster.loop.advance(IDLE_S)
    node.gateway.commit_all()
    assert node.session(1).phase is Phase.READY
    consumer.was_heard = True
    node.cluster.loop.advance(IDLE_S)
    assert node.gateway.queue == []  # once is enough: the answer was about all that came before


def test_what_the_consumer_has_shown_the_epoch_of_is_its_own_and_not_stored(node: Node) -> None:
    consumer, connection = node.connect()
    ids = [node.new(node.connect()[0]) for _ in range(2)]

    def doubts(failure: Any) -> None:
        consumer.doubts(failure, [(ids[0], 1)])

    for one in ids:
        node.gateway.submit(encode(op.Touch(one, 1, consumer.name)), doubts)
    node.gateway.expire()
    consumer.doubts(TimedOut(was_sent=True, waited_ms=1), [(ids[0], 99)])  # it was wrong there
    node.cluster.loop.advance(IDLE_S)
    node.gateway.commit_all()
    assert consumer.held == {ids[0]}
    assert [node.session(one).phase for one in ids] == [Phase.ACTIVE, Phase.READY]
    assert connection.lost == []


def test_what_may_be_asked_for_again_is_given_back_only_after_a_while(node: Node) -> None:
    consumer, _ = node.connect()
    held = node.new(consumer)  # so that there are heartbeats
    consumer.asks()
    new = op.Idempotent(b"key", 10**6, op.New(THEME, consumer=consumer.name))
    node.gateway.submit(encode(new), lambda one: consumer.doubts(one, comes_back=True))  # type: ignore[arg-type]
    node.gateway.expire()
    period_s = LEASE_S / BEATS_PER_LEASE
    given_back_s = 0.0
    while node.session(held + 1) is None or node.session(held + 1).phase is Phase.ACTIVE:
        given_back_s += period_s
        consumer.was_heard = True
        node.cluster.loop.advance(period_s)
        node.gateway.commit_all()
        assert given_back_s < SPARE_S + 3 * period_s
    assert given_back_s > SPARE_S
    assert node.session(held + 1).phase is Phase.READY
    assert node.session(held).phase is Phase.ACTIVE


def test_new_doubts_do_not_keep_what_nobody_knows_of(node: Node) -> None:
    consumer, _ = node.connect()
    held = node.new(consumer)
    consumer.asks()
    acquire = op.New(THEME, consumer=consumer.name)
    node.gateway.submit(encode(acquire), consumer.doubts)  # type: ignore[arg-type]
    node.gateway.expire()
    unknown_s = TimedOut(was_sent=True, waited_ms=1)
    period_s = LEASE_S / BEATS_PER_LEASE
    for _ in range(int((SPARE_S + 3 * period_s) / period_s)):
        consumer.doubts(unknown_s, comes_back=True)
        consumer.was_heard = True
        node.cluster.loop.advance(period_s)
        node.gateway.commit_all()
    assert node.session(held + 1).phase is Phase.READY
    assert node.session(held).phase is Phase.ACTIVE


def test_what_is_found_to_be_its_own_was_not_taken_after_its_own_verdict(node: Node) -> None:
    consumer, connection = node.connect()
    session_id = node.new(node.connect()[0])

    def doubts(failure: Any) -> None:
        consumer.doubts(failure, [(session_id, 1)])

    node.gateway.submit(encode(op.Touch(session_id, 1, consumer.name)), doubts)
    node.gateway.expire()
    node.cluster.loop.advance(IDLE_S - 0.01)
    operator = node.operators.operate(session_id, 1)
    assert operator is not None
    store = encode(op.Store(session_id, 1))
    operator.ask(Step(store, lambda _: None, is_verdict=True, is_ending=True, asker=consumer))
    node.gateway.expire()
    node.gateway.sent.pop()  # the verdict never arrives
    node.cluster.loop.advance(0.01)
    node.gateway.commit()  # a heartbeat; the verdict is not tried again yet
    node.cluster.loop.advance(0)
    assert consumer.held == {session_id}
    node.cluster.loop.advance(0.2)
    node.gateway.commit_all()
    assert node.session(session_id).phase is Phase.STORED
    assert (consumer.held, connection.lost) == (set(), [])


def test_what_it_has_shown_is_known_to_each_heartbeat_that_leaves_after_the_doubt(
    node: Node,
) -> None:
    consumer, _ = node.connect()
    held = node.new(consumer)
    first, second = (node.new(node.connect()[0]) for _ in range(2))

    def touch(session_id: int) -> None:
        def doubts(failure: Any) -> None:
            consumer.doubts(failure, [(session_id, 1)])

        node.gateway.submit(encode(op.Touch(session_id, 1, consumer.name)), doubts)

    def beat() -> None:
        consumer.was_heard = True
        node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)

    touch(first)
    node.gateway.expire()
    beat()
    beat()  # both are answered by the same batch
    queue, node.gateway.queue = node.gateway.queue, []
    touch(second)
    late, sent = node.gateway.queue, node.gateway.sent
    node.gateway.queue, node.gateway.sent = late, []
    node.gateway.expire()
    node.gateway.queue, node.gateway.sent, late_sent = queue, sent, node.gateway.sent
    node.gateway.commit()  # but for what came into doubt after they had left
    node.cluster.loop.advance(0)
    assert consumer.held == {held, first}
    node.gateway.sent = late_sent
    beat()
    node.gateway.commit_all()
    assert consumer.held == {held, first, second}
    assert {node.session(one).phase for one in consumer.held} == {Phase.ACTIVE}


def test_what_is_being_stored_already_is_not_stored_once_more(node: Node) -> None:
    consumer, _ = node.connect()
    node.new(consumer)
    node.gateway.submit(encode(op.New(THEME, consumer=consumer.name)), lambda _: None)
    node.gateway.expire()
    node.gateway.commit()
    lost = node.gateway.held_by(consumer.name)[1][0]
    beat = encode(op.Heartbeat(consumer.name))
    for _ in range(4 * BEATS_PER_LEASE):
        consumer.was_heard = True
        node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
        queue = node.gateway.queue
        node.gateway.queue = [one for one in queue if one.encoded != beat]
        node.gateway.expire(was_sent=False)
        node.gateway.queue += [one for one in queue if one.encoded == beat]
        node.gateway.commit()
    operator = node.operators.find(lost)
    assert operator is not None
    assert (operator.is_storing, operator.depth) == (True, 1)


def test_of_two_who_resume_at_once_one_is_told_that_it_has_not(node: Node) -> None:
    """Both are applied in one batch, and answered only then."""
    (first, told), (second, other) = node.connect(), node.connect()
    session_id = node.new(node.connect()[0])
    for consumer in (first, second):

        def touched(_: Any, consumer: Consumer = consumer) -> None:
            if not consumer.take(session_id, 1, is_known=True):
                consumer.misses([(session_id, 1)])

        node.gateway.submit(encode(op.Touch(session_id, 1, consumer.name)), touched)
    node.gateway.commit()
    assert (first.held, second.held) == (set(), {session_id})
    assert (told.lost, other.lost) == ([(session_id, 1, "resumed")], [])


@pytest.mark.parametrize("is_over", [False, True])
def test_what_is_taken_from_one_in_the_batch_that_gave_it_is_told_once(
    node: Node, *, is_over: bool
) -> None:
    """Though it held it before, and only resumes it."""
    consumer, told = node.connect()
    session_id = node.new(consumer)

    def touched(_: Any) -> None:
        if not consumer.take(session_id, 1, is_known=True):
            consumer.misses([(session_id, 1)])

    node.gateway.submit(encode(op.Touch(session_id, 1, consumer.name)), touched)
    after = op.Remove(session_id, 1) if is_over else op.Touch(session_id, 1, b"elsewhere")
    node.gateway.submit(encode(after), lambda _: None)
    node.gateway.commit()
    assert consumer.held == set()
    assert told.lost == [(session_id, 1, "removed" if is_over else "resumed")]


def test_a_refused_verdict_leaves_alone_what_another_node_has(node: Node) -> None:
    elsewhere = Node(node.cluster, "b")
    (consumer, told), (other, other_told) = node.connect(), elsewhere.connect()
    session_id = node.new(consumer)
    _insist(node, consumer, op.Store(session_id, 1, if_revision=9))
    elsewhere.gateway.submit(
        encode(op.Touch(session_id, 1, other.name)), lambda _: other.take(session_id, 1)
    )
    elsewhere.gateway.commit()
    node.cluster.loop.advance(0.3)
    node.gateway.commit_all()
    assert node.session(session_id).phase is Phase.ACTIVE
    assert (told.lost, other_told.lost) == ([(session_id, 1, "resumed")], [])


def test_a_refused_verdict_leaves_alone_what_may_be_resumed(node: Node) -> None:
    consumer, _ = node.connect()
    session_id = node.new(consumer)
    _insist(node, consumer, op.Store(session_id, 1, if_revision=9))
    consumer.vanish()
    node.cluster.loop.advance(6)
    node.gateway.commit_all()
    assert node.session(session_id).phase is Phase.ACTIVE


def test_a_verdict_in_doubt_and_a_take_in_one_batch_are_no_loss(node: Node) -> None:
    consumer, told = node.connect()
    session_id = node.new(consumer)
    operator = node.operators.find(session_id)
    assert operator is not None
    store = encode(op.Store(session_id, 1, 0))
    operator.ask(Step(store, lambda _: None, is_verdict=True, is_ending=True, asker=consumer))
    node.gateway.expire()
    node.gateway.submit(
        encode(op.AcquireSession(session_id, consumer.name)), lambda _: consumer.take(session_id, 2)
    )
    node.gateway.commit()
    assert (consumer.held, told.lost) == ({session_id}, [])


def test_a_transaction_of_the_holder_does_not_hide_that_another_has_removed_it(node: Node) -> None:
    consumer, told = node.connect()
    session_id = node.new(consumer)
    append = encode(op.Txn((op.Append(session_id, 1, b"x"),)))
    node.operators.transact(
        [(session_id, 1, False)], append, lambda _: None, weight=1, asker=consumer
    )
    node.gateway.submit(encode(op.Remove(session_id, 1)), lambda _: None)
    node.gateway.commit()
    assert told.lost == [(session_id, 1, "removed")]


def _insist(node: Node, consumer: Consumer, verdict: op.Operation) -> None:
    """Have a verdict of the consumer's in doubt, whose first try never arrives."""
    operator = node.operators.find(verdict.target)  # type: ignore[attr-defined]
    assert operator is not None
    step = Step(encode(verdict), lambda _: None, is_verdict=True, is_ending=True, asker=consumer)
    operator.ask(step)
    node.gateway.expire()
    node.gateway.sent.clear()


def test_what_was_resumed_at_another_node_is_told_and_let_go(node: Node) -> None:
    consumer, connection = node.connect()
    ids = [node.new(consumer) for _ in range(3)]
    other, _ = Node(node.cluster, "b").connect()
    node.cluster.do(op.Touch(ids[1], 1, other.name))
    node.cluster.loop.advance(LEASE_S / BEATS_PER_LEASE)
    node.gateway.commit()
    node.cluster.loop.advance(0)
    assert connection.lost == [(ids[1], 1, "resumed")]
    assert consumer.held == {ids[0], ids[2]}
    consumer.leave(Cause.DISCONNECTED, "it left")
    node.gateway.commit()
    assert node.session(ids[1]).phase is Phase.ACTIVE
