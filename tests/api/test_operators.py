"""The cycle of an operator, against real state, with time and failures in the test's hand."""

from itertools import pairwise
from typing import Any

import pytest

from api.gateway import NAMED
from api.operators import BACKOFF_MAX_S, RELEASE_PAGE, Operator, Operators
from api.steps import SKIPPED, Caller, Step
from cluster.failures import Overloaded, TimedOut
from state import Acquired, Cause, Done, Failure, Operation, Outcome, Phase, Session, encode
from state import operations as op
from state.errors import LeaseLost, RevisionMismatch, SessionNotFound, TxnAborted
from state.policy import DEFAULT_POLICY
from tests.api.fakes import Answers, FakeCluster, patient_budget

THEME = 7
VERDICTS = (op.Remove, op.Store, op.Park)


class Consumer:
    """Remembers what operators tell it."""

    def __init__(self, name: bytes = b"worker") -> None:
        self.name = name
        self.asked = 0
        self.is_gone = False
        self.held: set[int] = set()
        self.ended: list[int] = []
        self.lost: list[tuple[int, str]] = []

    def on_held(self, operator: Operator) -> None:
        self.held.add(operator.session_id)

    def on_ended(self, operator: Operator) -> None:
        self.held.remove(operator.session_id)
        self.ended.append(operator.session_id)

    def on_lost(self, operator: Operator, cause: str) -> None:
        self.held.remove(operator.session_id)
        self.lost.append((operator.session_id, cause))


class Setting:
    """A node, and a session that a consumer operates there."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.node = self.cluster.node("a")
        self.operators = Operators(self.node, self.cluster.loop.call_later, budget=patient_budget())
        self.consumer = Consumer(self.node.consumer(b"1"))
        self.id = self.new()
        self.operator = self.operators.begin(self.id, 1, self.consumer)

    def new(self, **fields: Any) -> int:
        new = op.New(THEME, consumer=self.consumer.name, **fields)
        (created,) = self.cluster.do(new)
        session_id: int = created.session_id
        return session_id

    def ask(self, operation: Operation) -> Answers:
        """Have the operator do it."""
        answers = Answers()
        is_verdict = isinstance(operation, VERDICTS)
        step = Step(encode(operation), answers, is_verdict, is_verdict, self.consumer)
        self.operator.ask(step)
        return answers

    def append(self, data: bytes = b"x", if_revision: int | None = None) -> Answers:
        return self.ask(op.Append(self.id, 1, data, if_revision))

    def session(self, session_id: int = 0) -> Session:
        session = self.cluster.machine.session(session_id or self.id)
        assert session is not None
        return session

    def operator_of(self, session_id: int) -> Operator:
        operator = self.operators.operate(session_id, 1)
        assert operator is not None
        return operator

    def phase(self, session_id: int = 0) -> Phase | None:
        session = self.cluster.machine.session(session_id or self.id)
        return None if session is None else session.phase


@pytest.fixture
def at() -> Setting:
    return Setting()


# The cycle


def test_operations_are_done_one_after_the_other_each_when_the_one_before_is_answered(
    at: Setting,
) -> None:
    first, second = at.append(b"1"), at.append(b"2")
    assert (len(at.node.queue), at.operator.depth) == (1, 2)
    at.node.commit()
    assert (first, second) == ([2], [])
    at.node.commit()
    assert second == [3]
    assert at.session().chunks == [b"1", b"2"]
    assert at.operator.depth == 0


def test_what_was_said_in_advance_is_skipped_after_a_failure(at: Setting) -> None:
    refused = at.append(if_revision=9)
    skipped = [at.append(), at.ask(op.Remove(at.id, 1))]
    at.node.commit_all()
    assert refused == [RevisionMismatch(at.id, 9, 1)]
    assert skipped == [[SKIPPED], [SKIPPED]]
    assert SKIPPED.outcome is Outcome.NOT_APPLIED
    assert at.phase() is Phase.ACTIVE
    assert at.append() == []
    at.node.commit()  # whoever goes on after it is served as before
    assert at.session().revision == 2


@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_verdict_ends_the_operator_and_tells_its_consumer_so(
    at: Setting, verdict: type[Any]
) -> None:
    answers = at.ask(verdict(at.id, 1))
    at.node.commit()
    assert len(answers) == 1
    assert len(at.operators) == 0
    assert (at.consumer.ended, at.consumer.lost, at.consumer.held) == ([at.id], [], set())


def test_what_was_said_after_a_verdict_is_answered_by_the_cluster(at: Setting) -> None:
    at.ask(op.Remove(at.id, 1))
    late, later = at.append(), at.append()
    at.node.commit_all()
    assert (late, later) == ([SessionNotFound()], [SKIPPED])


# When it goes wrong


def test_a_failed_operation_is_the_consumers_to_judge_and_the_session_stays_its_own(
    at: Setting,
) -> None:
    answers = at.append()
    at.node.expire(was_sent=False)
    assert answers == [TimedOut(was_sent=False, waited_ms=10)]
    assert at.phase() is Phase.ACTIVE
    assert at.operators.find(at.id) is at.operator
    assert at.node.queue == []


def test_a_verdict_of_unknown_outcome_is_tried_again_until_it_is_known(at: Setting) -> None:
    answers = at.ask(op.Store(at.id, 1))
    at.node.expire()
    assert answers == [TimedOut(was_sent=True, waited_ms=10)]
    at.cluster.loop.advance(0.1)
    at.node.expire(was_sent=False)  # once more in vain
    at.cluster.loop.advance(0.2)
    assert len(at.node.queue) == 1
    at.node.commit()  # applies the first one, and refuses the other
    session = at.session()
    assert (session.phase, session.revision, len(session.history)) == (Phase.STORED, 2, 1)
    assert len(answers) == 1
    assert len(at.operators) == 0
    assert (at.consumer.ended, at.consumer.lost) == ([at.id], [])
    at.cluster.loop.advance(60)
    assert at.node.queue == []


def test_a_verdict_that_certainly_was_not_done_is_the_consumers_again(at: Setting) -> None:
    answers = at.ask(op.Remove(at.id, 1))
    at.node.expire(was_sent=False)
    at.cluster.loop.advance(60)
    assert len(answers) == 1
    assert at.node.queue == []
    assert at.phase() is Phase.ACTIVE


def test_what_follows_a_verdict_of_unknown_outcome_waits_until_that_is_known(at: Setting) -> None:
    at.ask(op.Remove(at.id, 1))
    at.node.expire()
    late = at.append()
    assert at.node.queue == []
    at.cluster.loop.advance(0.1)
    at.node.commit()
    at.node.commit()
    assert late == [SessionNotFound()]


def test_an_insisting_operator_that_loses_its_session_answers_who_still_waits(at: Setting) -> None:
    at.ask(op.Remove(at.id, 1, if_revision=5))
    at.node.expire(was_sent=False)
    at.ask(op.Remove(at.id, 1))
    at.node.expire()
    at.node.sent.clear()  # it never arrived
    late = at.append()
    at.cluster.do(op.Release(at.consumer.name, 10))
    assert at.consumer.lost == [(at.id, "disconnected")]
    at.cluster.loop.advance(0.1)
    at.node.commit()
    at.node.commit()
    assert late == [LeaseLost(at.id, 1, 1)]
    at.cluster.loop.advance(60)
    assert (at.node.queue, at.cluster.loop.count) == ([], 0)


def test_a_refusal_at_once_is_no_recursion(at: Setting) -> None:
    at.node.refusal = Overloaded(200)
    answers = [at.append() for _ in range(5000)]
    assert all(one == [Overloaded(200)] for one in answers)


def test_trials_are_spread_over_a_growing_time_with_an_end(at: Setting) -> None:
    at.ask(op.Remove(at.id, 1))
    at.node.expire()
    at.node.sent.clear()
    trials = []
    while at.cluster.loop.time() < 300:
        at.cluster.loop.advance(0.01)
        if at.node.queue:
            trials.append(at.cluster.loop.time())
            at.node.expire(was_sent=False)
    waited = [after - before for before, after in pairwise(trials)]
    assert max(waited) <= BACKOFF_MAX_S + 0.02
    assert len(trials) > 300 / BACKOFF_MAX_S
    assert at.operators.retried == len(trials) + 1


# When the session is another's, or nobody's


def test_the_reaper_takes_a_session_and_its_consumer_hears_of_it(at: Setting) -> None:
    at.cluster.loop.advance(DEFAULT_POLICY.lease_ms / 1000 + 1)
    at.cluster.do(op.Store(at.id, 1, cause=Cause.STALE))
    at.cluster.do(op.Store(at.id, 1, cause=Cause.STALE))
    assert at.consumer.lost == [(at.id, "stale")]
    assert (len(at.operators), at.operators.lost) == (0, 1)


def test_a_session_that_ends_and_begins_within_one_batch_is_a_new_operators(at: Setting) -> None:
    other = Consumer(b"other")
    at.cluster.do(op.Store(at.id, 1, 0), op.Acquire((THEME,), 1, other.name))
    assert at.consumer.lost == [(at.id, "requested")]
    operator = at.operators.begin(at.id, 2, other)
    at.cluster.do(op.Append(at.id, 2, b""))
    assert at.operators.find(at.id) is operator
    assert other.held == {at.id}


def test_own_verdict_and_acquire_in_one_batch_end_one_operator_and_keep_the_other(
    at: Setting,
) -> None:
    stored = at.ask(op.Store(at.id, 1, 0))
    acquired = Answers()

    def begin(result: Any) -> None:
        acquired(result)
        at.operators.begin(result[0].session_id, result[0].epoch, at.consumer)

    at.node.submit(encode(op.Acquire((THEME,), 1, at.consumer.name)), begin)
    at.node.commit()
    assert len(stored) == 1
    assert acquired == [(Acquired(at.id, 2, 3),)]
    assert (at.consumer.ended, at.consumer.lost, at.consumer.held) == ([at.id], [], {at.id})
    operator = at.operators.find(at.id)
    assert operator is not None
    assert operator.epoch == 2


def test_a_new_state_ends_the_operators_whose_sessions_have_gone_on(at: Setting) -> None:
    kept = at.new()
    at.operators.begin(kept, 1, at.consumer)
    watchers, at.node.watchers = at.node.watchers, []
    at.cluster.do(op.Remove(at.id, 1))  # which this node never saw: it got a snapshot
    at.node.watchers = watchers
    at.node.on_installed()
    assert at.consumer.lost == [(at.id, "removed")]
    assert [one.session_id for one in at.operators] == [kept]


def test_a_consumer_that_resumes_takes_the_operator_over_with_what_is_on_its_way(
    at: Setting,
) -> None:
    answers = at.append()
    other = Consumer(b"other")
    assert at.operators.begin(at.id, 1, other) is at.operator
    assert at.consumer.lost == [(at.id, "resumed")]
    assert other.held == {at.id}
    ask(at.operator, op.Remove(at.id, 1), other)
    at.node.commit_all()
    assert answers == [2]
    assert (other.ended, other.lost) == ([at.id], [])


@pytest.mark.parametrize("is_txn", [False, True])
def test_who_has_resumed_is_told_of_the_verdict_of_who_held_before(
    at: Setting, *, is_txn: bool
) -> None:
    remove = op.Remove(at.id, 1)
    answers = transact(at, remove) if is_txn else at.ask(remove)
    other = Consumer(b"other")
    at.operators.begin(at.id, 1, other)
    at.node.commit_all()
    assert len(answers) == 1
    assert not isinstance(answers[0], Failure)
    assert (other.ended, other.lost) == ([], [(at.id, "removed")])


def test_who_resumes_though_its_own_verdict_is_in_doubt_is_told_when_that_is_done(
    at: Setting,
) -> None:
    at.ask(op.Store(at.id, 1))
    at.node.expire()
    at.node.sent.clear()
    at.cluster.do(op.Touch(at.id, 1, at.consumer.name))
    at.operators.begin(at.id, 1, at.consumer)
    at.cluster.loop.advance(0.2)
    at.node.commit_all()
    assert at.phase() is Phase.STORED
    assert (at.consumer.ended, at.consumer.lost) == ([], [(at.id, "requested")])


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize(
    "verdict",
    [
        op.Remove(1, 1),
        op.Store(1, 1),
        op.Store(1, 1, cause=Cause.FAILED),
        op.Park(1, 1),
        op.Idempotent(b"key", 10**6, op.Store(1, 1, cause=Cause.FAILED)),
    ],
)
def test_a_verdict_in_doubt_is_its_consumers_own_whichever_try_of_it_is_done(
    at: Setting, verdict: Operation, *, is_lost: bool
) -> None:
    answers = Answers()
    step = Step(encode(verdict), answers, is_verdict=True, is_ending=True, asker=at.consumer)
    at.operator.ask(step)
    at.node.expire()
    if is_lost:
        at.node.sent.clear()
        at.cluster.loop.advance(0.2)
    at.node.commit_all()
    assert answers == [TimedOut(was_sent=True, waited_ms=10)]
    assert (at.consumer.ended, at.consumer.lost) == ([at.id], [])
    at.cluster.loop.advance(0.2)
    at.node.commit_all()
    assert (at.consumer.asked, len(at.operators)) == (0, 0)


def test_a_verdict_in_doubt_that_is_refused_in_the_end_lets_the_session_come_back(
    at: Setting,
) -> None:
    answers = at.ask(op.Remove(at.id, 1, if_revision=9))
    at.node.expire()
    at.node.sent.clear()
    at.cluster.loop.advance(0.2)
    at.node.commit_all()
    assert answers == [TimedOut(was_sent=True, waited_ms=10)]
    assert at.phase() is Phase.STORED
    assert (at.consumer.ended, at.consumer.lost) == ([], [(at.id, "failed")])
    assert (at.consumer.asked, len(at.operators)) == (0, 0)
    assert at.session().history[-1].reason == "its verdict was refused: revision_mismatch"


@pytest.mark.parametrize("name", [b"~/http-worker", b"b/1/1", None])
def test_a_verdict_over_http_that_is_refused_in_the_end_ends_what_heartbeats_would_keep(
    at: Setting, *, name: bytes | None
) -> None:
    """Under a name of HTTP, by which anybody may show signs of life for ever.

    But a consumer that is connected to another node knows nothing of the verdict.
    """
    (created,) = at.cluster.do(op.New(THEME, consumer=name))
    operator = at.operators.begin(created.session_id, 1, None)
    remove = encode(op.Remove(created.session_id, 1, if_revision=9))
    operator.ask(Step(remove, Answers(), is_verdict=True, is_ending=True))
    at.node.expire()
    at.node.sent.clear()
    at.cluster.loop.advance(0.2)
    at.node.commit_all()
    is_kept = name is None or not name.startswith(NAMED)
    assert at.phase(created.session_id) is (Phase.ACTIVE if is_kept else Phase.STORED)


@pytest.mark.parametrize("name", [b"~/http-worker", None])
@pytest.mark.parametrize("is_behind", [False, True])
def test_a_verdict_over_http_whose_caller_has_left_is_not_refused_in_silence(
    at: Setting, *, name: bytes | None, is_behind: bool
) -> None:
    """Its caller was told that nobody knows, and its name's heartbeats would keep the session."""
    (created,) = at.cluster.do(op.New(THEME, consumer=name))
    session_id, caller = created.session_id, Caller()
    operator = at.operators.begin(session_id, 1, None)
    remove = op.Remove(session_id, 1, if_revision=None if is_behind else 9)
    if is_behind:
        refused = encode(op.Append(session_id, 1, b"x", 9))
        operator.ask(Step(refused, Answers(), is_verdict=False, is_ending=False))
    operator.ask(Step(encode(remove), Answers(), is_verdict=True, is_ending=True, caller=caller))
    caller.is_gone = True
    at.node.commit_all()
    assert at.phase(session_id) is (Phase.ACTIVE if name is None else Phase.STORED)


@pytest.mark.parametrize("how", ["behind", "late", "inside"])
def test_a_verdict_over_http_that_a_transaction_kept_from_being_done_gives_the_session_up(
    at: Setting, how: str
) -> None:
    (created,) = at.cluster.do(op.New(THEME, consumer=b"~/http-worker"))
    session_id, caller = created.session_id, Caller()
    operator = at.operators.begin(session_id, 1, None)
    remove = op.Remove(session_id, 1, 9 if how == "inside" else None)
    other = remove if how == "inside" else op.Append(session_id, 1, b"x", 9)
    at.operators.transact(
        [(session_id, 1, how == "inside")],
        encode(op.Txn((other,))),
        Answers(),
        weight=1,
        caller=caller,
    )
    if how == "late":  # it waits behind another verdict in doubt
        at.node.expire()
    if how != "inside":
        step = Step(encode(remove), Answers(), is_verdict=True, is_ending=True, caller=caller)
        operator.ask(step)
    caller.is_gone = True
    at.node.commit_all()
    at.cluster.loop.advance(60)
    at.node.commit_all()
    assert at.phase(session_id) in {None, Phase.STORED}


@pytest.mark.parametrize("is_gone", [True, False])
@pytest.mark.parametrize("before", ["operation", "transaction"])
def test_a_transaction_over_http_that_is_skipped_gives_up_what_it_would_have_ended(
    at: Setting, before: str, *, is_gone: bool
) -> None:
    (created,) = at.cluster.do(op.New(THEME, consumer=b"~/http-worker"))
    session_id, caller = created.session_id, Caller()
    operator = at.operators.begin(session_id, 1, None)
    refused = op.Append(session_id, 1, b"x", 9)
    if before == "operation":
        operator.ask(Step(encode(refused), Answers(), is_verdict=False, is_ending=False))
    else:
        shown = [(session_id, 1, False)]
        at.operators.transact(shown, encode(op.Txn((refused,))), Answers(), weight=1)
    remove = encode(op.Txn((op.Remove(session_id, 1),)))
    shown = [(session_id, 1, True)]
    at.operators.transact(shown, remove, Answers(), weight=1, caller=caller)
    caller.is_gone = is_gone
    at.node.commit_all()
    assert at.phase(session_id) is (Phase.STORED if is_gone else Phase.ACTIVE)


def test_who_is_told_of_a_refused_verdict_over_http_keeps_the_session(at: Setting) -> None:
    (created,) = at.cluster.do(op.New(THEME, consumer=b"~/http-worker"))
    operator = at.operators.begin(created.session_id, 1, None)
    remove = encode(op.Remove(created.session_id, 1, if_revision=9))
    operator.ask(Step(remove, Answers(), is_verdict=True, is_ending=True, caller=Caller()))
    at.node.commit_all()
    assert at.phase(created.session_id) is Phase.ACTIVE


def test_a_consumer_whose_session_is_touched_over_http_is_told_at_once(at: Setting) -> None:
    at.operators.see_holder(at.operator)
    assert not at.consumer.lost
    at.cluster.do(op.Touch(at.id, 1, b"~/http-worker"))
    at.operators.see_holder(at.operator)
    assert at.consumer.lost == [(at.id, "resumed")]
    assert at.operators.lost == 1
    at.operators.see_holder(at.operator)
    assert at.operators.lost == 1


def test_what_is_released_is_not_counted_as_lost(at: Setting) -> None:
    at.consumer.is_gone = True
    at.operators.release(at.consumer, Cause.DISCONNECTED, "it left")
    at.node.commit_all()
    assert at.phase() is Phase.STORED
    assert at.operators.lost == 0


def test_a_verdict_over_http_that_could_not_be_sent_is_tried_again_when_its_caller_has_left(
    at: Setting,
) -> None:
    caller = Caller()
    remove = encode(op.Remove(at.id, 1))
    at.operator.ask(Step(remove, Answers(), is_verdict=True, is_ending=True, caller=caller))
    caller.is_gone = True
    at.node.expire(was_sent=False)
    at.cluster.loop.advance(0.2)
    at.node.commit_all()
    assert at.phase() is None


def test_who_is_gone_when_its_turn_comes_takes_no_session_from_who_has_resumed_it(
    at: Setting,
) -> None:
    other = at.cluster.node("b").consumer(b"1")
    at.append(b"x")
    claim, plain = op.Touch(at.id, 1, at.consumer.name), op.Touch(at.id, 1)
    step = Step(encode(claim), Answers(), is_verdict=False, is_ending=True, asker=at.consumer)
    at.operator.ask(step._replace(unclaimed=lambda: encode(plain)))
    at.append(b"y")
    at.consumer.is_gone = True
    at.cluster.do(op.Touch(at.id, 1, other))
    at.node.commit_all()
    assert at.node.is_held(at.id, 1, other)
    assert at.session().chunks == [b"x", b"y"]  # what it has said is done all the same


def test_a_transaction_of_who_is_gone_claims_nothing_either(at: Setting) -> None:
    other = at.cluster.node("b").consumer(b"1")
    at.append(b"x")
    claim = op.Txn((op.Append(at.id, 1, b"y"), op.Touch(at.id, 1, at.consumer.name)))
    plain = op.Txn((op.Append(at.id, 1, b"y"), op.Touch(at.id, 1)))
    at.operators.transact(
        [(at.id, 1, False)],
        encode(claim),
        Answers(),
        weight=2,
        asker=at.consumer,
        unclaimed=lambda: encode(plain),
    )
    at.consumer.is_gone = True
    at.cluster.do(op.Touch(at.id, 1, other))
    at.node.commit_all()
    assert at.node.is_held(at.id, 1, other)
    assert at.session().chunks == [b"x", b"y"]


def test_a_verdict_that_is_refused_in_the_end_leaves_the_session_to_who_has_resumed_it(
    at: Setting,
) -> None:
    at.ask(op.Remove(at.id, 1, if_revision=9))
    at.node.expire()
    at.node.sent.clear()
    other = Consumer(b"other")
    at.operators.begin(at.id, 1, other)
    at.cluster.loop.advance(0.2)
    at.node.commit_all()
    assert at.phase() is Phase.ACTIVE
    assert (other.held, other.lost) == ({at.id}, [])


def test_what_is_said_behind_a_verdict_that_is_insisted_on_ends_in_time(at: Setting) -> None:
    at.ask(op.Store(at.id, 1))
    at.node.expire()
    at.node.refusal = Overloaded(100)
    first, second = at.append(b"1"), at.append(b"2")
    timeout_ms = at.node.timeout_ms
    at.cluster.loop.advance(timeout_ms / 1000 - 0.1)
    assert (first, second) == ([], [])
    at.cluster.loop.advance(0.2)
    assert (first, second) == ([TimedOut(was_sent=False, waited_ms=timeout_ms)], [SKIPPED])
    at.node.refusal = None
    at.cluster.loop.advance(BACKOFF_MAX_S)
    at.node.commit_all()
    assert at.phase() is Phase.STORED
    assert at.session().data == b""
    assert at.consumer.asked == 0


def test_an_older_epoch_never_replaces_a_newer_one(at: Setting) -> None:
    at.cluster.do(op.Store(at.id, 1, 0), op.Acquire((THEME,)))
    newer = at.operators.begin(at.id, 2, None)
    assert at.operators.begin(at.id, 1, at.consumer) is newer
    assert at.operators.operate(at.id, 1) is None
    assert at.operators.operate(at.id, 2) is newer


def test_whoever_shows_the_epoch_is_served_by_id_and_by_key(at: Setting) -> None:
    keyed = at.new(key=b"k")
    operator = at.operators.operate((THEME, b"k"), 1)
    assert operator is not None
    assert operator.session_id == keyed
    assert at.operators.operate(keyed, 1) is operator
    assert at.operators.operate((THEME, b"other"), 1) is None
    assert at.operators.operate(999, 1) is None


# What nobody works on


def test_a_session_that_nobody_was_told_of_comes_back_at_once_and_costs_no_attempt(
    at: Setting,
) -> None:
    (acquired,) = at.cluster.do(op.New(THEME, repeat_after_ms=0), op.Acquire((THEME,)))[1]
    at.operators.give_back(acquired.session_id, acquired.epoch, "nobody")
    at.node.commit()
    session = at.session(acquired.session_id)
    assert (session.phase, session.attempts) == (Phase.READY, 0)
    assert at.operators.find(acquired.session_id) is None


def test_what_somebody_holds_or_has_gone_on_is_not_given_back(at: Setting) -> None:
    at.operators.give_back(at.id, 1, "nobody")
    at.operators.give_back(at.id, 2, "nobody")
    assert at.node.queue == []
    assert at.consumer.held == {at.id}


def test_giving_back_survives_the_failure_of_what_is_on_its_way(at: Setting) -> None:
    refused, waiting = at.append(if_revision=9), at.append()
    at.operator.store(Cause.FAILED, "its consumer is gone")
    assert at.consumer.held == set()
    assert waiting == [SKIPPED]
    at.node.commit()
    assert len(refused) == 1
    at.node.expire()
    at.cluster.loop.advance(0.1)
    at.node.commit()
    assert at.phase() is Phase.STORED
    assert len(at.operators) == 0


def test_release_stores_page_by_page_what_is_still_the_consumers(at: Setting) -> None:
    ids = [at.new() for _ in range(RELEASE_PAGE + 5)]
    resumed = ids[3]
    at.cluster.do(op.Touch(resumed, 1, b"elsewhere"))
    at.operators.release(at.consumer, Cause.DISCONNECTED, "gone")
    assert at.operators.releasing == 1
    at.node.commit()
    assert at.operators.releasing == 1
    at.node.commit()
    assert at.operators.releasing == 0
    assert {at.phase(one) for one in ids if one != resumed} == {Phase.STORED}
    assert at.phase(resumed) is Phase.ACTIVE


def test_release_goes_on_through_failures_and_within_the_clusters_limits(at: Setting) -> None:
    at.cluster.do(op.SetLimits((("acquire_count", 1),)))
    other = at.new()
    at.operators.release(at.consumer, Cause.SHUTDOWN, "gone")
    at.node.expire()
    at.node.sent.clear()
    at.cluster.loop.advance(0.3)
    for _ in range(3):
        at.node.commit()
    assert at.operators.releasing == 0
    assert (at.phase(), at.phase(other)) == (Phase.READY, Phase.READY)


# Transactions


def transact(at: Setting, *operations: Any) -> Answers:
    answers = Answers()
    shown = [
        (one.target, one.epoch, isinstance(one, VERDICTS))
        for one in operations
        if hasattr(one, "epoch")
    ]
    encoded = encode(op.Txn(tuple(operations)))
    at.operators.transact(shown, encoded, answers, weight=len(operations), asker=at.consumer)
    return answers


def test_a_transaction_has_its_place_in_the_order_of_each_session(at: Setting) -> None:
    other = at.new()
    first = at.append(b"1")
    second = at.append(b"2")
    done = transact(at, op.Append(at.id, 1, b"3"), op.Append(other, 1, b"3"))
    third = at.append(b"4")
    at.node.commit_all()
    assert (first, second, done, third) == ([2], [3], [Done((4, 2))], [5])
    assert at.session().data == b"1234"


def test_a_transaction_whose_turn_does_not_come_in_time_is_not_done(at: Setting) -> None:
    first = at.append(b"1")
    answers = Answers()
    append = op.Append(at.id, 1, b"2")
    encoded = encode(op.Txn((append,)))
    shown = [(append.target, append.epoch, False)]
    at.operators.transact(shown, encoded, answers, weight=1, timeout_ms=500)
    behind = at.append(b"3")
    at.cluster.loop.advance(0.6)
    assert answers == [TimedOut(was_sent=False, waited_ms=500)]
    assert behind == [SKIPPED]
    at.node.commit_all()
    assert first == [2]
    assert at.session().data == b"1"


def test_every_transaction_counts_for_the_error_budget_once(at: Setting) -> None:
    for operation in (op.New(THEME), op.Append(at.id, 1, b"x")):
        before = at.operators.budget.failures
        transact(at, operation)
        at.node.expire()
        assert at.operators.budget.failures == before + 1
    transact(at, op.New(THEME))
    at.node.commit_all()
    assert at.operators.budget.failures == 0


def test_the_verdicts_of_a_transaction_end_operators_as_any(at: Setting) -> None:
    kept = at.new()
    at.operators.begin(kept, 1, at.consumer)
    at.cluster.do(op.SetPolicy(THEME, (("repeat_ms", 1000),)))
    done = transact(at, op.Append(kept, 1, b"x"), op.Remove(at.id, 1), op.New(THEME))
    late = at.append()
    at.node.commit_all()
    assert isinstance(done[0], Done)
    assert (at.consumer.ended, at.consumer.lost, at.consumer.held) == ([at.id], [], {kept})
    assert late == [SessionNotFound()]


def ask(operator: Operator, operation: Operation, asker: Consumer | None = None) -> Answers:
    """Have any operator do something."""
    answers = Answers()
    is_verdict = isinstance(operation, VERDICTS)
    operator.ask(Step(encode(operation), answers, is_verdict, is_verdict, asker))
    return answers


def test_a_transaction_that_fails_skips_what_is_behind_it(at: Setting) -> None:
    other = at.new()
    operator = at.operator_of(other)
    failed = transact(at, op.Append(at.id, 1, b"x", 9), op.Append(other, 1, b"x"))
    after = [at.append(), ask(operator, op.Append(other, 1, b"y"))]
    at.node.commit_all()
    assert isinstance(failed[0], TxnAborted)
    assert after == [[SKIPPED], [SKIPPED]]
    assert (at.operator.depth, operator.depth) == (0, 0)


def test_a_transaction_that_is_skipped_skips_what_is_behind_it_at_all_its_sessions(
    at: Setting,
) -> None:
    other, third = at.new(), at.new()
    second, last = at.operator_of(other), at.operator_of(third)
    before = ask(second, op.Append(other, 1, b"a"))
    refused = at.append(if_revision=9)
    skipped = transact(at, op.Append(at.id, 1, b"x"), op.Append(other, 1, b"result"))
    chained = transact(at, op.Append(other, 1, b"x"), op.Append(third, 1, b"x"))
    behind = [ask(second, op.Remove(other, 1)), ask(last, op.Remove(third, 1))]
    at.node.commit_all()
    assert isinstance(refused[0], Failure)
    assert (skipped, chained) == ([SKIPPED], [SKIPPED])
    assert behind == [[SKIPPED], [SKIPPED]], "nothing is removed whose result was not stored"
    assert before == [2], "what was said before is done"
    assert [one.depth for one in (at.operator, second, last)] == [0, 0, 0]
    assert at.session(other).data == b"a"


@pytest.mark.parametrize("is_chain", [False, True])
def test_any_number_of_transactions_is_skipped_at_once(at: Setting, is_chain: bool) -> None:
    count = 4_000
    ids = [at.new() for _ in range(count + 1 if is_chain else 2)]
    operators = list(map(at.operator_of, ids))
    held_up = [ask(one, op.Append(one.session_id, 1, b"a")) for one in operators[1:]]
    refused = ask(operators[0], op.Append(ids[0], 1, b"a", 9))
    answers = [
        transact(
            at,
            *(op.Append(one, 1, b"x") for one in (ids[number : number + 2] if is_chain else ids)),
        )
        for number in range(count)
    ]
    at.node.commit_all()
    assert isinstance(refused[0], Failure)
    assert all(one == [2] for one in held_up)
    assert all(one == [SKIPPED] for one in answers)
    assert not any(one.depth for one in operators)
    assert ask(operators[1], op.Append(ids[1], 1, b"b")) == []
    at.node.commit_all()
    assert at.session(ids[1]).data == b"ab", "operators go on"


def test_what_a_consumer_has_said_is_done_before_it_is_released(at: Setting) -> None:
    said = [at.append(b"1"), at.append(b"2"), at.ask(op.Remove(at.id, 1))]
    at.operators.release(at.consumer, Cause.DISCONNECTED, "gone")
    for _ in range(20):
        at.node.commit_all()
        at.cluster.loop.advance(0.05)
    at.node.commit_all()
    assert said == [[2], [3], [3]]
    assert at.operators.releasing == 0
    assert at.cluster.machine.session(at.id) is None


def test_a_verdict_that_is_insisted_on_is_done_before_its_consumer_is_released(
    at: Setting,
) -> None:
    other = at.new()
    at.ask(op.Remove(at.id, 1))
    at.node.expire()
    at.node.sent.clear()
    at.operators.release(at.consumer, Cause.DISCONNECTED, "gone")
    assert (at.operators.releasing, at.node.queue) == (1, [])
    at.cluster.loop.advance(0.2)
    at.node.commit_all()
    at.node.commit_all()
    assert at.cluster.machine.session(at.id) is None
    assert at.phase(other) is Phase.STORED
    assert at.operators.releasing == 0


@pytest.mark.parametrize("failure", [TimedOut(was_sent=False, waited_ms=9), Overloaded(100)])
def test_a_verdict_that_could_not_be_sent_is_tried_again_for_who_has_left(
    at: Setting, failure: Failure
) -> None:
    answers = at.ask(op.Remove(at.id, 1))
    at.consumer.is_gone = True
    at.operators.release(at.consumer, Cause.DISCONNECTED, "gone")
    (waiting,) = at.node.queue
    at.node.queue.clear()
    waiting.callback(failure)
    assert answers == [failure]
    at.cluster.loop.advance(0.2)
    at.node.commit_all()
    assert at.cluster.machine.session(at.id) is None
    assert at.operators.releasing == 0


def test_a_verdict_keeps_its_turn_behind_another_that_is_insisted_on_for_who_has_left(
    at: Setting,
) -> None:
    at.ask(op.Store(at.id, 1))
    at.node.expire()
    at.node.refusal = Overloaded(100)
    answers = at.ask(op.Remove(at.id, 1))
    at.consumer.is_gone = True
    at.operators.release(at.consumer, Cause.DISCONNECTED, "gone")
    at.cluster.loop.advance(at.node.timeout_ms / 1000 + 1)
    assert answers == []
    at.node.refusal = None
    at.node.sent.clear()
    at.cluster.loop.advance(BACKOFF_MAX_S)
    at.node.commit_all()
    assert answers == [LeaseLost(at.id, 1, 1)]
    assert (at.phase(), at.operators.releasing) == (Phase.STORED, 0)


@pytest.mark.parametrize("is_hurried_before", [False, True])
def test_in_a_hurry_nothing_is_waited_for_before_a_release(
    at: Setting, *, is_hurried_before: bool
) -> None:
    at.ask(op.Remove(at.id, 1))
    at.node.expire()
    at.node.sent.clear()
    if is_hurried_before:
        at.operators.hurry()
    at.operators.release(at.consumer, Cause.SHUTDOWN, "gone")
    if not is_hurried_before:
        at.operators.hurry()
    at.node.commit_all()
    assert at.phase() is Phase.READY
    assert at.operators.releasing == 0
    # What it had asked for ends later, and that releases nobody once more.
    at.cluster.loop.advance(BACKOFF_MAX_S)
    at.node.commit_all()
    assert at.consumer.asked == 0
    assert at.operators.releasing == 0
    assert not at.node.queue


def fail(_: object) -> None:
    raise ZeroDivisionError


def test_a_callback_that_fails_leaves_nobody_untold(at: Setting) -> None:
    refused = encode(op.Append(at.id, 1, b"1", if_revision=9))
    at.operator.ask(
        Step(refused, lambda _: None, is_verdict=False, is_ending=False, asker=at.consumer)
    )
    append = encode(op.Append(at.id, 1, b"2"))
    at.operator.ask(Step(append, fail, is_verdict=False, is_ending=False, asker=at.consumer))
    behind = [at.append(b"3"), at.append(b"4")]
    with pytest.raises(ZeroDivisionError):
        at.node.commit()
    assert behind == [[SKIPPED], [SKIPPED]]
    assert at.consumer.asked == 0
    again = at.append(b"5")
    at.node.commit_all()
    assert again == [2]


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_transactions_callback_that_fails_leaves_nothing_waiting(
    at: Setting, *, is_refused: bool
) -> None:
    append = op.Append(at.id, 1, b"1", 9 if is_refused else None)
    shown = [(at.id, 1, False)]
    encoded = encode(op.Txn((append,)))
    at.operators.transact(shown, encoded, fail, weight=1, asker=at.consumer)
    with pytest.raises(ZeroDivisionError):
        at.node.commit()
    again = at.append(b"2")
    at.node.commit_all()
    assert len(again) == 1
    assert not isinstance(again[0], Failure)
    assert at.consumer.asked == 0


def test_a_callback_that_fails_leaves_nothing_waiting(at: Setting) -> None:
    append = encode(op.Append(at.id, 1, b"1"))
    at.operator.ask(Step(append, fail, is_verdict=False, is_ending=False, asker=at.consumer))
    behind = at.append(b"2")
    with pytest.raises(ZeroDivisionError):
        at.node.commit()
    at.node.commit_all()
    assert behind == [3]
    assert at.consumer.asked == 0


def test_transactions_over_the_same_sessions_never_wait_for_each_other(at: Setting) -> None:
    other = at.new()
    at.append()
    answers = [
        transact(at, op.Append(at.id, 1, b"a"), op.Append(other, 1, b"a")),
        transact(at, op.Append(other, 1, b"b"), op.Append(at.id, 1, b"b")),
        transact(at, op.Append(other, 1, b"c"), op.Append(other, 1, b"c")),
    ]
    at.node.commit_all()
    assert all(isinstance(one[0], Done) for one in answers)
    assert at.session(other).data == b"abcc"


def test_a_transaction_of_sessions_that_nobody_operates_goes_straight_on(at: Setting) -> None:
    answers = transact(
        at, op.New(THEME, b"k", repeat_after_ms=9), op.Append((THEME, b"k"), None, b"x")
    )
    at.node.commit()
    assert isinstance(answers[0], Done)
