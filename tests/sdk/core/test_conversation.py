"""Random histories of a client over a network that fails, against a cluster that is simple.

Whatever the faults: what callers were told to be done was done once, what they were told not to be
done was not, in the order in which they asked; and everybody is told something in time. A run that
fails prints its seed: `pytest --seed N` in this file's test replays it.
"""

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import pytest

from ritornello.core.conversation import Conversation
from ritornello.core.frames import Message
from ritornello.core.requests import Held, Request, Way, new_key
from ritornello.errors import LeaseLost, RitornelloError, Skipped
from ritornello.limits import Options
from tests.sdk.core.fake_cluster import LATE_MS, FakeCluster, Fields

RUNS = 150
THEMES = (7, 8)
LATE_S = LATE_MS / 1000


@dataclass(eq=False)
class Asked:
    """Something that a caller asked, and what he was told."""

    request: Request
    data: bytes = b""
    held: Held | None = None
    answers: list[Message | RitornelloError] = field(default_factory=list)
    is_cancelled: bool = False
    is_withdrawn: bool = False  # before it was sent

    @property
    def outcome(self) -> str:
        (answer,) = self.answers
        if isinstance(answer, RitornelloError):
            return answer.outcome.value
        return "applied"


class History:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now_s = 1000.0
        self.cluster = FakeCluster(self.chance, lambda: int(self.now_s * 1000))
        self.retries = self.chance.random() < 0.8
        self.away_until_s = 0.0  # there is no connection before
        options = Options(backoff_max_s=1.0, retries=self.retries)
        self.talk = Conversation(
            options, now=lambda: self.now_s, chance=self.chance, wake=lambda: None
        )
        self.asked: list[Asked] = []
        self.told: dict[Held, int] = {}  # failures of which the caller was told
        self.mine: list[Held] = []
        self.watched: set[Held] = set()
        self.lost: list[Held] = []
        self.numbers = itertools.count()

    # What callers do

    def ask(self, fields: Fields, *, is_keyed: bool = False, **how: object) -> Asked:
        held: tuple[Held, ...] = how.get("held", ())  # type: ignore[assignment]
        timeout_s = self.chance.choice((0.5, 5.0, 60.0))
        deadline_s = self.now_s + timeout_s
        if is_keyed and self.retries:
            remember_s = timeout_s + 2 * LATE_S
            fields = {**fields, "idempotency_key": new_key(), "remember_for": remember_s}
            how["known_until_s"] = self.now_s + remember_s - LATE_S
        elif is_keyed:
            how["way"] = Way.ONCE
        asked = Asked(Request(dict(fields), deadline_s, lambda _: None, **how))  # type: ignore[arg-type]
        asked.data = fields.get("data", b"")
        asked.held = held[0] if len(held) == 1 else None
        asked.request.done = lambda answer: self.answered(asked, answer)
        self.asked.append(asked)
        self.talk.ask(asked.request)
        return asked

    def answered(self, asked: Asked, answer: Message | RitornelloError) -> None:
        asked.answers.append(answer)
        for held, number in zip(asked.request.held, asked.request.failure_numbers, strict=False):
            self.told[held] = max(self.told.get(held, 0), number)
        for held, _ in asked.request.given:
            self.hold(held)
        if asked.request.op == "resume":
            asked.request.let_go()

    def hold(self, held: Held) -> None:
        """Have an object by which to work on it."""
        self.mine.append(held)
        held.owners += 1
        if held not in self.watched:
            self.watched.add(held)
            held.watch(lambda _: self.lost.append(held))

    def forget(self, held: Held) -> None:
        """Have such an object no more."""
        self.mine.remove(held)
        held.owners -= 1
        if held.owners or held.is_gone:
            return
        if held.has_verdict:
            self.talk.leave(held)
        else:
            self.talk.give_back_unowned(held)

    def act(self) -> None:
        held = self.chance.choice(self.mine) if self.mine else None
        match self.chance.randrange(14):
            case 0:
                after = {} if self.chance.random() < 0.6 else {"repeat_after": 0.0}
                fields = {"op": "new", "theme": self.chance.choice(THEMES), "data": self.token()}
                key: Fields = {}
                if self.retries and self.chance.random() < 0.7:
                    key["until_used"] = True
                self.ask({**fields, **after, **key}, is_keyed=True, gives=not after)
            case 1:
                until_s = self.now_s + self.chance.choice((1.0, 4.0))
                fields = {"op": "acquire", "themes": list(THEMES), "count": 2}
                self.ask(fields, gives=True, until_s=until_s)
            case 2:
                fields = {"op": "new", "theme": 9, "data": self.token(), "repeat_after": 0.0}
                self.ask(fields, way=Way.ONCE)
            case 3 if self.asked:
                asked = self.chance.choice(self.asked)
                if not (asked.answers or asked.is_cancelled):
                    asked.is_cancelled = True
                    asked.is_withdrawn = not asked.request.may_be_done
                    self.talk.cancel(asked.request)
            case 4 if held is not None and self.chance.random() < 0.7:
                self.end(held)
            case 5 | 6 if held is not None and len(self.mine) > 1:
                self.transact(held, self.chance.choice(self.mine))
            case 7 if held is not None and not held.is_gone:
                self.ask({"op": "resume", "sessions": [self.shown(held)]}, gives=True)
            case 8 if held is not None and self.chance.random() < 0.5:
                self.forget(held)
            case _ if held is not None:
                for _ in range(self.chance.choice((1, 1, 3))):
                    self.change(held)
            case _:
                pass

    def token(self) -> bytes:
        return b"%d" % next(self.numbers)

    def shown(self, held: Held) -> Fields:
        return {"id": held.id, "epoch": held.epoch}

    def change(self, held: Held) -> None:
        op = self.chance.choice(("append", "append", "append", "replace", "touch"))
        seen = self.told.get(held, 0)
        if op == "touch":
            self.ask({"op": op, **self.shown(held)}, held=(held,), seen_failures=(seen,))
            return
        data = self.token()
        if self.chance.random() < 0.1:
            data += b"!" * 100  # the cluster refuses it
        fields = {"op": op, **self.shown(held), "data": data}
        self.ask(fields, held=(held,), changes=1, seen_failures=(seen,))

    def end(self, held: Held) -> None:
        op = self.chance.choice(("remove", "store", "park"))
        fields = {"op": op, **self.shown(held)}
        self.ask(fields, held=(held,), is_verdict=True, seen_failures=(self.told.get(held, 0),))

    def transact(self, one: Held, other: Held) -> None:
        if one is other:
            return
        operations = [
            {"op": self.chance.choice(("touch", "append", "append")), **self.shown(one)},
            {"op": self.chance.choice(("touch", "remove", "append")), **self.shown(other)},
        ]
        for operation in operations:
            if operation["op"] == "append":
                operation["data"] = self.token()
        self.ask({"op": "txn", "operations": operations}, is_keyed=True, held=(one, other))

    # What happens

    def step(self, *, faults: bool) -> None:
        chance, cluster, talk = self.chance, self.cluster, self.talk
        if faults and chance.random() < 0.4:
            self.act()
        if cluster.current is None:
            if self.now_s < self.away_until_s and faults:
                pass
            elif not faults or chance.random() < 0.3:
                cluster.connect()
                talk.connected()
        elif talk.has_to_end or (faults and chance.random() < 0.03):
            cluster.break_off()
            talk.disconnected("chance")
            if chance.random() < 0.3:
                self.away_until_s = self.now_s + chance.uniform(0, 6)
        else:
            while (frame := talk.take()) is not None:
                cluster.send(frame)
        for _ in range(chance.randint(0, 4) if faults else 20):
            cluster.step()
        if faults and chance.random() < 0.01:
            active = [one for one in cluster.sessions.values() if one.is_active]
            if active:
                cluster.reap(chance.choice(active))
        talk.received(cluster.received())
        self.now_s += chance.uniform(0, 0.05)
        talk.tick()

    def run(self) -> None:
        chance = self.chance
        self.cluster.trouble = chance.choice((0.0, 0.05, 0.3))
        for _ in range(400):
            self.step(faults=True)
        self.cluster.trouble = 0.0
        for _ in range(4000):
            self.step(faults=False)
            if self.now_s > 1200 and self.talk.is_resumed and self.is_told:
                break

    @property
    def is_told(self) -> bool:
        """Whether everybody was told something who waits for it."""
        return all(one.answers or one.is_cancelled for one in self.asked)

    # What must hold

    def check(self) -> None:
        applied = Counter(
            data for session in self.cluster.sessions.values() for data in session.done
        )
        for asked in self.asked:
            assert len(asked.answers) <= 1
            assert asked.answers or asked.is_cancelled, asked.request.fields
            for data in _data_of(asked):
                times = applied[data]
                assert times <= 1, f"{asked.request.fields} was done {times} times"
                assert not (times and asked.is_withdrawn), asked.request.fields
                if asked.answers and asked.outcome == "applied":
                    assert times == 1, f"{asked.request.fields} was lost"
                elif asked.answers and asked.outcome == "not_applied":
                    assert times == 0, f"{asked.request.fields} was done: {asked.answers}"
        self.check_order()
        self.check_verdicts()
        self.check_held()

    def check_order(self) -> None:
        order = {asked.data: place for place, asked in enumerate(self.asked) if asked.held}
        for session in self.cluster.sessions.values():
            places = [order[data] for data in session.done if data in order]
            by_epoch = places  # epochs follow each other, and so do their callers
            assert by_epoch == sorted(by_epoch)

    def check_verdicts(self) -> None:
        for asked in self.asked:
            held, op = asked.held, asked.request.op
            if held is None or not asked.request.is_verdict or not asked.answers:
                continue
            ends = [
                how for epoch, how in self.cluster.sessions[held.id].ends if epoch == held.epoch
            ]
            how = {"store": "requested", "park": "parked"}.get(op, op)
            if asked.outcome == "applied":
                gone = op == "remove" and self.cluster.sessions[held.id].is_gone
                assert ends == [how] or gone, (asked.request.fields, ends)
            elif asked.outcome == "not_applied":
                assert how not in ends or _others(self.asked, asked), (asked.request.fields, ends)

    def check_held(self) -> None:
        """What the client holds is active and its own; what it lost it was told of, once."""
        assert self.cluster.current is not None
        for held in self.mine:
            session = self.cluster.sessions[held.id]
            is_mine = session.is_active and session.epoch == held.epoch
            if held.is_over:
                assert not is_mine or held.loss is not None
            elif is_mine or not self.may_have_ended(held):
                assert is_mine
                assert session.holder == self.cluster.current.number
                assert held.revision == session.revision or self.is_in_doubt(held)
            assert self.lost.count(held) <= 1
        for held in self.talk.held.values():
            assert held.owners or held.takers or held.has_verdict, f"nobody works on {held.id}"
        known = {(held.id, held.epoch) for held in self.talk.held.values()}
        for session in self.cluster.sessions.values():
            if session.is_active and session.holder == self.cluster.current.number:
                assert (session.id, session.epoch) in known, f"nobody knows of {session}"

    def is_in_doubt(self, held: Held) -> bool:
        """Whether something was given up that may have been done."""
        return any(one.request.op == "txn" or not self.retries for one in self.in_doubt(held))

    def may_have_ended(self, held: Held) -> bool:
        """Whether a verdict was given up that may have been done: only without retries."""
        ends = {"txn", "remove", "store", "park"}
        return not self.retries and any(one.request.op in ends for one in self.in_doubt(held))

    def in_doubt(self, held: Held) -> list[Asked]:
        return [
            one
            for one in self.asked
            if held in one.request.held and one.answers and one.outcome == "unknown"
        ]


def _others(asked: list[Asked], one: Asked) -> bool:
    """Whether somebody else has given the same verdict."""
    return any(
        other is not one and other.held is one.held and other.request.op == one.request.op
        for other in asked
    ) or any(one.held in other.request.held for other in asked if other.request.op == "txn")


def _data_of(asked: Asked) -> list[bytes]:
    if asked.request.op == "txn":
        return [one["data"] for one in asked.request.fields["operations"] if "data" in one]
    return [asked.data] if asked.data else []


@pytest.mark.parametrize("block", range(6))
def test_what_callers_are_told_is_what_was_done(block: int) -> None:
    for run in range(RUNS):
        seed = block * 1_000_000 + run
        history = History(seed)
        try:
            history.run()
            history.check()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_the_histories_have_all_kinds_of_ends() -> None:
    """The test above shows something: faults do happen in its histories."""
    outcomes: Counter[str] = Counter()
    for seed in range(60):
        history = History(seed)
        history.run()
        for asked in history.asked:
            if not asked.answers:
                outcomes["cancelled"] += 1
                continue
            answer = asked.answers[0]
            outcomes[type(answer).__name__ if isinstance(answer, LeaseLost | Skipped) else ""] += 1
            outcomes[asked.outcome] += 1
            outcomes["again"] += asked.request.doubts > 0
    for kind in ("applied", "not_applied", "unknown", "again", "cancelled", "LeaseLost", "Skipped"):
        assert outcomes[kind] > 10, outcomes


def test_only_the_first_copy_of_a_new_says_that_it_is_the_first() -> None:
    """The key of a second one has to be remembered: the first may yet come."""
    told: list[object] = []
    fields = {"op": "new", "theme": 7, "data": b"", "idempotency_key": "a", "until_used": True}
    talk = Conversation(Options(), now=lambda: 0.0, chance=random.Random(0), wake=lambda: None)
    talk.ask(Request(fields, 60.0, told.append, way=Way.AGAIN))

    def sent() -> Fields:
        talk.connected()
        frame = talk.take()
        assert frame is not None
        asked = msgspec.msgpack.decode(frame)
        talk.disconnected("it broke")
        found: Fields = next(
            one for one in (asked if isinstance(asked, list) else [asked]) if one["op"] == "new"
        )
        return found

    assert [sent().get("until_used"), sent().get("until_used")] == [True, None]
    assert sent()["idempotency_key"] == "a"
    assert told == []
