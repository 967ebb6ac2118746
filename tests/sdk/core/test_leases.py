"""When a lease is over, as a client knows it; time and the cluster's answers in the test's hand."""

import random
from typing import Any

import msgspec
import pytest

from ritornello.core import frames
from ritornello.core.conversation import Conversation
from ritornello.core.requests import Held, Request
from ritornello.errors import LeaseLost, RitornelloError
from ritornello.limits import HEARTBEAT_IDLE_S, Options

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

    def take(self) -> Held:
        """Be handed a session out, this moment."""
        asked = Request({"op": "take", "id": "1a"}, self.now_s + 10, lambda _: None, gives=True)
        self.talk.ask(asked)
        view = {**VIEW, "deadline_ms": self.now_ms + LEASE_MS}
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
