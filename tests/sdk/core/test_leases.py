"""When a lease is over, as a client knows it; time and the cluster's answers in the test's hand."""

import random
from typing import Any

import msgspec
import pytest

from ritornello.core import frames
from ritornello.core.conversation import Conversation
from ritornello.core.requests import Held, Request, Way
from ritornello.errors import LeaseLost, Outcome, RitornelloError
from ritornello.limits import CLAIM_S, HEARTBEAT_IDLE_S, Options

LEASE_MS = 1000
HELLO = {
    "push": "hello",
    "node": "fake",
    "frame_bytes": 4 << 20,
    "frame_requests": 4096,
    "requests_in_flight": 4096,
}
VIEW = {
    "id": "1a",
    "theme": 7,
    "key": None,
    "phase": "active",
    "epoch": 1,
    "revision": 1,
    "attempts": 1,
    "priority": 128,
    "created_ms": 0,
    "updated_ms": 0,
    "due_ms": None,
    "lease_ms": LEASE_MS,
    "size_bytes": 0,
}


class Talk:
    """A client that is connected, and its cluster, whose clock is `skew_s` beside its own."""

    def __init__(self) -> None:
        self.now_s, self.skew_s = 1000.0, 5_000_000.0
        self.talk = Conversation(
            Options(), now=lambda: self.now_s, chance=random.Random(0), wake=lambda: None
        )
        self.talk.connected()
        self.answer(HELLO)
        self.losses: list[RitornelloError] = []

    def has_to_end(self) -> bool:
        return self.talk.has_to_end

    def is_quiet(self) -> bool:
        return self.talk.is_quiet

    @property
    def now_ms(self) -> int:
        return int((self.now_s + self.skew_s) * 1000)

    def answer(self, *fields: dict[str, Any]) -> None:
        self.talk.received(frames.decode(msgspec.msgpack.encode(list(fields))))

    def sent(self) -> list[dict[str, Any]]:
        """What is sent now."""
        self.talk.tick()
        found: list[dict[str, Any]] = []
        while (frame := self.talk.take()) is not None:
            said = msgspec.msgpack.decode(frame)
            found += said if isinstance(said, list) else [said]
        return found

    def pass_by(self, seconds: float, *, answers: bool = True) -> list[str]:
        """Let time go by, in which signs of life are answered; what was sent."""
        seen: list[str] = []
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            for one in self.sent():
                seen.append(one["op"])
                if one["op"] == "heartbeat" and answers:
                    self.answer({"seq": one["seq"], "held": 0, "now_ms": self.now_ms})
            self.now_s += 0.05
        self.talk.tick()
        return seen

    def take(self, id: str = "1a", lease_ms: int = LEASE_MS) -> Held:
        """Be handed a session out, this moment."""
        asked = Request({"op": "take", "id": id}, self.now_s + 10, lambda _: None, gives=True)
        self.talk.ask(asked)
        lease = {"lease_ms": lease_ms, "deadline_ms": self.now_ms + lease_ms}
        view = {**VIEW, "id": id, **lease}
        for one in self.sent():
            is_beat = one["op"] == "heartbeat"
            said = {"held": 0, "now_ms": self.now_ms} if is_beat else {"session": view}
            self.answer({"seq": one["seq"], **said})
        ((held, _),) = asked.given
        held.watch(self.losses.append)
        return held


@pytest.mark.parametrize("idle_s", [0.0, 0.5, 1.5, 25.0, 3600.0])
def test_a_session_is_not_lost_as_it_comes_however_long_nothing_was_held(idle_s: float) -> None:
    talk = Talk()
    talk.pass_by(idle_s)
    held = talk.take()
    assert 0.7 <= held.expires_s - talk.now_s <= 1.0 or idle_s < 0.5
    talk.pass_by(5)
    assert not talk.losses
    assert held.expires_s > talk.now_s


def test_the_cluster_may_have_stood_still_meanwhile() -> None:
    talk = Talk()
    talk.pass_by(30)
    talk.skew_s -= 600  # nobody led for so long, and time goes on from there
    talk.pass_by(HEARTBEAT_IDLE_S)
    talk.take()
    talk.pass_by(5)
    assert not talk.losses


def test_it_is_over_when_nothing_is_answered_for_as_long_as_it_lasts() -> None:
    talk = Talk()
    talk.pass_by(2)
    held = talk.take()
    talk.pass_by(0.7, answers=False)
    assert not talk.losses
    talk.pass_by(0.5, answers=False)
    (loss,) = talk.losses
    assert isinstance(loss, LeaseLost)
    assert held.expires_s <= talk.now_s


def test_signs_of_life_are_few_while_nothing_is_held() -> None:
    talk = Talk()
    assert talk.pass_by(60) == ["heartbeat"] * 6
    talk.take()
    assert 20 <= len(talk.pass_by(5)) <= 30


def test_who_may_not_give_them_is_not_told_again_and_again() -> None:
    talk = Talk()
    (beat,) = talk.sent()
    forbidden = {"code": "forbidden", "outcome": "not_applied", "retryable": False, "detail": ""}
    talk.answer({"seq": beat["seq"], "error": forbidden})
    assert talk.pass_by(60) == []


# What the cluster may keep for us that was given up


def connect_again(talk: Talk) -> list[dict[str, Any]]:
    """Over another connection; what is sent over it first."""
    talk.talk.disconnected("it broke")
    talk.talk.connected()
    talk.answer(HELLO)
    return talk.sent()


def resumes(sent: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (one for one in sent if one["op"] == "resume")
    return found


def resumed(talk: Talk, asked: dict[str, Any]) -> None:
    """Have a `resume` answered."""
    sessions = [{**one, "revision": 1, "lease_ms": 60_000} for one in asked["sessions"]]
    talk.answer({"seq": asked["seq"], "sessions": sessions})


def lost_to_another(talk: Talk) -> None:
    talk.answer({"push": "lease_lost", "id": "1a", "epoch": 1, "cause": "resumed"})


def test_a_connection_ends_that_would_keep_what_was_given_up_once_the_rest_is_held() -> None:
    talk = Talk()
    talk.take()
    talk.take("2b", lease_ms=60_000)
    asked = resumes(connect_again(talk))
    talk.pass_by(2)
    assert len(talk.losses) == 1
    assert not talk.has_to_end()
    resumed(talk, asked)
    assert talk.has_to_end()


def test_a_connection_ends_that_would_keep_what_was_given_up_if_the_rest_takes_too_long() -> None:
    talk = Talk()
    talk.take()
    talk.take("2b", lease_ms=60_000)
    connect_again(talk)
    talk.pass_by(4)
    assert not talk.has_to_end()
    talk.pass_by(2)
    assert talk.has_to_end()


def test_a_connection_ends_over_which_a_session_came_back_that_was_lost_meanwhile() -> None:
    talk = Talk()
    talk.take(lease_ms=60_000)
    asked = resumes(connect_again(talk))
    talk.answer({"push": "lease_lost", "id": "1a", "epoch": 1, "cause": "stale"})
    assert not talk.has_to_end()
    resumed(talk, asked)
    assert talk.has_to_end()


@pytest.mark.parametrize("is_txn", [False, True])
def test_a_connection_ends_over_which_a_touch_came_after_the_session_was_lost(
    *, is_txn: bool
) -> None:
    talk = Talk()
    held = talk.take(lease_ms=60_000)
    touch: dict[str, Any] = {"op": "touch", "id": "1a", "epoch": 1}
    fields = {"op": "txn", "operations": [touch]} if is_txn else touch
    talk.talk.ask(Request(fields, talk.now_s + 10, lambda _: None, held=(held,)))
    (sent,) = (one for one in talk.sent() if one["op"] == fields["op"])
    lost_to_another(talk)
    assert not talk.has_to_end()
    result = {"id": "1a", "revision": 1}
    talk.answer({"seq": sent["seq"], **({"results": [result]} if is_txn else result)})
    assert talk.has_to_end()


@pytest.mark.parametrize("is_late", [False, True])
def test_what_another_has_resumed_is_taken_back_only_if_that_was_perhaps_this_client(
    *, is_late: bool
) -> None:
    talk = Talk()
    held = talk.take(lease_ms=60_000)
    touch = {"op": "touch", "id": "1a", "epoch": 1}
    talk.talk.ask(Request(touch, talk.now_s + 10, lambda _: None, held=(held,)))
    talk.sent()
    for one in connect_again(talk):
        if one["op"] == "resume":
            resumed(talk, one)
    talk.pass_by(CLAIM_S + 1 if is_late else 1)
    lost_to_another(talk)
    assert bool(talk.losses) is is_late
    assert any(one["op"] == "resume" for one in talk.sent()) is not is_late


def test_a_claim_in_doubt_counts_for_its_session_alone() -> None:
    talk = Talk()
    one, other = talk.take(lease_ms=60_000), talk.take("2b", lease_ms=60_000)
    asked = resumes(connect_again(talk))
    mine, doubtful = asked["sessions"]
    error = {"code": "timed_out", "outcome": "unknown", "retryable": True, "detail": "late"}
    found = [{**mine, "revision": 1, "lease_ms": 60_000}, {"id": doubtful["id"], "error": error}]
    talk.answer({"seq": asked["seq"], "sessions": found})
    assert (one.claims, other.claims) == (0, 1)


def test_a_new_session_that_was_begun_before_and_has_gone_on_is_not_held() -> None:
    talk = Talk()
    fields = {"op": "new", "theme": 7, "data": b"", "idempotency_key": "a"}
    asked = Request(fields, talk.now_s + 10, lambda _: None, gives=True)
    talk.talk.ask(asked)
    (sent,) = (one for one in talk.sent() if one["op"] == "new")
    talk.answer({"seq": sent["seq"], "id": "1a", "epoch": 1, "revision": 1, "lease_ms": 0})
    ((held, _),) = asked.given
    assert isinstance(held.loss, LeaseLost)
    talk.pass_by(1)
    assert not talk.has_to_end()


def test_a_transaction_is_not_sent_again_when_its_key_may_be_forgotten() -> None:
    talk, told = Talk(), list[object]()
    held = talk.take(lease_ms=60_000)
    append = {"op": "append", "id": "1a", "epoch": 1, "data": b"x"}
    fields = {"op": "txn", "operations": [append], "idempotency_key": "a"}
    known_until_s = talk.now_s + 5
    asked = Request(fields, known_until_s, told.append, held=(held,), known_until_s=known_until_s)
    talk.talk.ask(asked)
    assert "txn" in {one["op"] for one in talk.sent()}
    talk.talk.disconnected("it broke")
    talk.now_s += 6
    talk.talk.tick()
    talk.talk.connected()
    talk.answer(HELLO)
    resumed(talk, resumes(talk.sent()))
    assert "txn" not in {one["op"] for one in talk.sent()}
    (error,) = told
    assert isinstance(error, RitornelloError)
    assert error.outcome is Outcome.UNKNOWN
    talk.talk.ask(Request({**append}, talk.now_s + 5, told.append, held=(held,), changes=1))
    assert "append" in {one["op"] for one in talk.sent()}


# Before another connection follows


def test_nothing_is_pushed_any_more_when_the_connection_is_about_to_be_left() -> None:
    talk = Talk()
    talk.talk.want([7], 5)
    (given,) = (one for one in talk.sent() if one["op"] == "credit")
    talk.talk.pause_credit()
    assert not talk.is_quiet()
    (ended,) = (one for one in talk.sent() if one["op"] == "credit")
    assert (list(ended["themes"]), ended["count"]) == ([], 0)
    talk.answer({"seq": given["seq"]}, {"seq": ended["seq"]})
    assert not talk.is_quiet()  # something may be on its way
    talk.pass_by(0.1)
    assert talk.is_quiet()
    assert any(one["op"] == "credit" and one["count"] == 5 for one in connect_again(talk))


# What is not known to be done


def ask(
    talk: Talk, fields: dict[str, Any], told: list[Any], held: Held, **how: Any
) -> dict[str, Any]:
    """Ask for something; how it is sent."""
    talk.talk.ask(Request(dict(fields), talk.now_s + 60, told.append, held=(held,), **how))
    (sent,) = (one for one in talk.sent() if one["op"] == fields["op"])
    return sent


APPEND = {"op": "append", "id": "1a", "epoch": 1, "data": b"x"}
LATE = {"code": "timed_out", "outcome": "unknown", "retryable": True, "detail": "late"}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "touch", "id": "1a", "epoch": 1},
        {"op": "append", "id": "1a", "epoch": 1, "data": b""},
    ],
    ids=["touch", "empty append"],
)
def test_a_transaction_in_doubt_stays_in_doubt_when_another_one_changes_nothing(
    operation: dict[str, Any],
) -> None:
    """It may be done late, and then the revision says nothing of what was asked after it."""
    talk, told = Talk(), list[Any]()
    held = talk.take(lease_ms=60_000)
    ask(talk, {"op": "txn", "operations": [APPEND]}, [], held, way=Way.ONCE)
    resumed(talk, resumes(connect_again(talk)))
    sent = ask(talk, {"op": "txn", "operations": [operation]}, [], held, way=Way.ONCE)
    talk.answer({"seq": sent["seq"], "results": [{"revision": 1}]})
    ask(talk, APPEND, told, held, changes=1)
    asked = resumes(connect_again(talk))
    sessions = [{**one, "revision": 2, "lease_ms": 60_000} for one in asked["sessions"]]
    talk.answer({"seq": asked["seq"], "sessions": sessions})
    (error,) = told
    assert isinstance(error, RitornelloError)
    assert error.outcome is Outcome.UNKNOWN


def test_a_copy_that_is_refused_as_the_first_was_done_renews_nothing() -> None:
    talk, told = Talk(), list[Any]()
    held = talk.take(lease_ms=60_000)
    until_s = held.expires_s
    sent = ask(talk, APPEND, told, held, changes=1)
    talk.answer({"seq": sent["seq"], "error": LATE})
    talk.now_s += 5
    (again,) = (one for one in talk.sent() if one["op"] == "append")
    mismatch = {"code": "revision_mismatch", "outcome": "not_applied", "retryable": False}
    error = {**mismatch, "detail": "", "id": "1a", "revision": 1, "current": 2}
    talk.answer({"seq": again["seq"], "error": error})
    (answer,) = told
    assert answer.revision == 2
    assert held.expires_s == until_s


def test_a_transaction_that_is_answered_by_its_key_renews_nothing() -> None:
    talk, told = Talk(), list[Any]()
    held = talk.take(lease_ms=60_000)
    until_s = held.expires_s
    sent = ask(talk, {"op": "txn", "operations": [APPEND], "idempotency_key": "a"}, told, held)
    talk.answer({"seq": sent["seq"], "error": LATE})
    talk.now_s += 5
    (again,) = (one for one in talk.sent() if one["op"] == "txn")
    talk.answer({"seq": again["seq"], "results": [{"revision": 2}]})
    assert (len(told), held.revision) == (1, 2)
    assert held.expires_s == until_s


def test_what_is_presumed_lost_is_told_at_the_end_of_its_lease_whatever_is_in_doubt() -> None:
    talk, told = Talk(), list[Any]()
    held = talk.take()
    ask(talk, {"op": "txn", "operations": [APPEND], "idempotency_key": "a"}, told, held)
    sent = connect_again(talk)
    asked = resumes(sent)
    (beat,) = (one for one in sent if one["op"] == "heartbeat")
    talk.answer({"seq": beat["seq"], "held": 0, "now_ms": talk.now_ms})
    lost = {"code": "lease_lost", "outcome": "not_applied", "retryable": False, "detail": ""}
    error = {**lost, "id": "1a", "epoch": 1, "current_epoch": 2}
    talk.answer({"seq": asked["seq"], "sessions": [{"id": "1a", "error": error}]})
    talk.pass_by(0.5)
    assert not talk.losses
    talk.pass_by(1)
    assert len(talk.losses) == 1
    assert told[0].outcome is Outcome.UNKNOWN
    assert not talk.has_to_end()


def test_a_lease_is_watched_that_was_over_while_a_verdict_was_on_its_way() -> None:
    talk, told = Talk(), list[Any]()
    held = talk.take()
    store = {"op": "store", "id": "1a", "epoch": 1, "repeat_after": 1e12}
    ask(talk, store, told, held, is_verdict=True)
    talk.pass_by(2, answers=False)
    assert not talk.losses
    sent = connect_again(talk)
    asked = resumes(sent)
    sessions = [{**one, "revision": 1, "lease_ms": LEASE_MS} for one in asked["sessions"]]
    talk.answer({"seq": asked["seq"], "sessions": sessions})
    (again,) = (one for one in talk.sent() if one["op"] == "store")
    refused = {"code": "out_of_range", "outcome": "not_applied", "retryable": False, "detail": ""}
    talk.answer({"seq": again["seq"], "error": refused})
    assert len(told) == 1
    talk.pass_by(2, answers=False)
    assert len(talk.losses) == 1


def resume(talk: Talk, told: list[Any]) -> dict[str, Any]:
    """Ask for a session as users do; how it is sent."""
    fields = {"op": "resume", "sessions": [{"id": "1a", "epoch": 1}]}
    talk.talk.ask(Request(fields, talk.now_s + 10, told.append, gives=True))
    return resumes(talk.sent())


@pytest.mark.parametrize("is_refused", [True, False])
def test_what_was_spared_for_a_resume_that_fails_comes_back(*, is_refused: bool) -> None:
    talk, told = Talk(), list[Any]()
    held = talk.take()
    asked = resume(talk, told)
    talk.talk.give_back_unowned(held)
    assert held.is_spared
    if is_refused:
        error = {**LATE, "code": "forbidden", "outcome": "not_applied", "retryable": False}
        talk.answer({"seq": asked["seq"], "sessions": [{"id": "1a", "error": error}]})
        assert len(told) == 1
        assert "store" in {one["op"] for one in talk.sent()}
    else:
        resumed(talk, asked)
        assert "store" not in {one["op"] for one in talk.sent()}


def test_a_session_that_cannot_be_resumed_just_now_is_asked_for_again() -> None:
    talk, told = Talk(), list[Any]()
    held = talk.take(lease_ms=60_000)
    asked = resume(talk, told)
    talk.answer({"seq": asked["seq"], "sessions": [{"id": "1a", "error": LATE}]})
    assert not told
    assert held.claims == 1
    talk.now_s += 5
    resumed(talk, resumes(talk.sent()))
    assert [type(one) for one in told] == [frames.Message]


def test_what_begins_a_session_is_not_sent_again_either_when_its_key_may_be_forgotten() -> None:
    talk, told = Talk(), list[Any]()
    fields = {"op": "new", "theme": 7, "data": b"", "idempotency_key": "a"}
    talk.talk.ask(
        Request(fields, talk.now_s + 60, told.append, gives=True, known_until_s=talk.now_s + 5)
    )
    assert "new" in {one["op"] for one in talk.sent()}
    talk.talk.disconnected("it broke")
    talk.now_s += 6
    talk.talk.connected()
    talk.answer(HELLO)
    assert "new" not in {one["op"] for one in talk.sent()}
    assert told[0].outcome is Outcome.UNKNOWN
