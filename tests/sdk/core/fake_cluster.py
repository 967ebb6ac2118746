"""A cluster as a client sees it, deliberately dumb, with faults that a seed decides.

What is asked over a connection is done after a while, or late (when that connection is gone), or
never; and its answer arrives, or is lost with the connection. What was done is written down, so
that a test can compare it with what callers were told.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ritornello.core import frames

Fields = dict[str, Any]

LEASE_MS = 30_000
LATE_MS = 1000  # what was asked is done so much later at most


class Refused(Exception):
    """An error as the cluster tells it."""

    def __init__(self, code: str, *, outcome: str = "not_applied", retryable: bool = False) -> None:
        super().__init__(code)
        self.fields: Fields = {
            "code": code,
            "outcome": outcome,
            "retryable": retryable,
            "detail": f"refused: {code}",
        }


@dataclass
class FakeSession:
    id: str
    theme: int
    epoch: int = 0
    revision: int = 1
    is_active: bool = False
    is_parked: bool = False
    is_gone: bool = False
    holder: int = 0  # which connection
    chunks: list[bytes] = field(default_factory=list)
    done: list[bytes] = field(default_factory=list)  # all data that was ever applied, in order
    ends: list[tuple[int, str]] = field(default_factory=list)  # (epoch, how)
    history: list[Fields] = field(default_factory=list)


class Connection:
    """One connection: what is on its way in both directions."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_open = True
        self.asked: deque[Fields] = deque()
        self.answers: deque[Fields] = deque()


class FakeCluster:
    """The sessions, and what is on its way to them."""

    def __init__(self, chance: random.Random, now_ms: Callable[[], int]) -> None:
        self._chance = chance
        self._now_ms = now_ms
        self.sessions: dict[str, FakeSession] = {}
        # With the time at which each is forgotten.
        self._receipts: dict[str, tuple[Fields, Fields, float]] = {}
        self._unused: dict[str, str] = {}  # keys of receipts, by sessions that nobody has used
        self._numbers = 0
        self._connections = 0
        self.current: Connection | None = None
        self._late: list[tuple[int, Connection, Fields]] = []
        self.trouble = 0.0  # how often a request is refused for a while, or in doubt

    # The network

    def connect(self) -> Connection:
        self._connections += 1
        self.current = Connection(self._connections)
        self.current.answers.append(
            {
                "push": "hello",
                "node": "fake",
                "frame_bytes": 4 << 20,
                "frame_requests": 4096,
                "requests_in_flight": self._chance.choice((20, 64, 4096)),
            }
        )
        return self.current

    def send(self, frame: bytes) -> None:
        assert self.current is not None
        found = msgspec.msgpack.decode(frame)
        self.current.asked.extend(found if isinstance(found, list) else [found])

    def break_off(self) -> None:
        """Lose the connection, and whatever has not arrived."""
        connection, self.current = self.current, None
        if connection is None:
            return
        connection.is_open = False
        for fields in connection.asked:
            if self._chance.random() < 0.5:
                self._late.append((self._now_ms(), connection, fields))
        connection.asked.clear()

    def step(self) -> None:
        """Do something that was asked."""
        if self._late and self._chance.random() < 0.3:
            place = self._chance.randrange(len(self._late))
            since_ms, connection, fields = self._late.pop(place)
            if self._now_ms() - since_ms <= LATE_MS:
                self._do(connection, fields)
            return
        current = self.current
        if current is None or not current.asked:
            return
        self._serve(current)

    def _serve(self, connection: Connection) -> None:
        # Requests on one session stay in order; others overtake.
        place = self._chance.randrange(len(connection.asked))
        fields = connection.asked[place]
        named = _named(fields)
        for earlier, other in enumerate(connection.asked):
            if earlier == place:
                break
            if named & _named(other):
                fields = other
                break
        connection.asked.remove(fields)
        dice = self._chance.random()
        is_plain = fields["op"] not in {"credit", "heartbeat"}
        if is_plain and dice < self.trouble:
            if dice < self.trouble / 3:
                self._answer(connection, fields, Refused("overloaded", retryable=True))
                return
            if self._chance.random() < 0.5:
                self._late.append((self._now_ms(), connection, {**fields, "seq": -1}))
            error = Refused("timed_out", outcome="unknown", retryable=True)
            self._answer(connection, fields, error)
            return
        self._do(connection, fields)

    def received(self) -> list[frames.Message]:
        """What has arrived at the client."""
        connection = self.current
        if connection is None or not connection.answers:
            return []
        count = self._chance.randint(1, len(connection.answers))
        found = [connection.answers.popleft() for _ in range(count)]
        return frames.decode(msgspec.msgpack.encode(found))

    def _answer(self, connection: Connection, fields: Fields, found: Fields | Refused) -> None:
        if not connection.is_open or fields["seq"] < 0:
            return
        answer = {"seq": fields["seq"]}
        if isinstance(found, Refused):
            connection.answers.append({**answer, "error": found.fields})
        else:
            connection.answers.append({**answer, **found})

    # Operations

    def _do(self, connection: Connection, fields: Fields) -> None:
        try:
            found = self._once(connection, fields)
        except Refused as error:
            self._answer(connection, fields, error)
        else:
            self._answer(connection, fields, found)
            if not connection.is_open or fields["seq"] < 0:
                self._unheard(fields, found)

    def _unheard(self, fields: Fields, found: Fields) -> None:
        """What was handed to nobody is stored again, with the attempt given back."""
        if fields.get("idempotency_key") is not None:
            return
        given = []
        if fields["op"] == "new" and found["epoch"]:
            given = [found["id"]]
        elif fields["op"] == "acquire":
            given = [one["id"] for one in found["sessions"]]
        elif fields["op"] == "take":
            given = [found["session"]["id"]]
        for one in given:
            self._end(self.sessions[one], "shutdown")

    def _once(self, connection: Connection, fields: Fields) -> Fields:
        key = fields.get("idempotency_key")
        if key is None:
            return self._apply(connection, fields)
        until_used = fields.get("until_used", False)
        without = {"seq", "wait", "until_used"}
        asked = {name: value for name, value in fields.items() if name not in without}
        remember_ms = fields.get("remember_for", float("inf")) * 1000
        if key in self._receipts and self._receipts[key][2] <= self._now_ms():
            del self._receipts[key]
        if key in self._receipts:
            was, result, _ = self._receipts[key]
            if was != asked:
                raise Refused("idempotency_mismatch")
            if not until_used:
                self._unused.pop(result.get("id", ""), None)
            if not result.get("epoch"):
                return result
            session = self.sessions[result["id"]]
            if not session.is_active or session.epoch != result["epoch"]:
                return {**result, "lease_ms": 0}
            if fields["seq"] >= 0:  # else it is nobody's, as the node will find out
                self._claim(session, connection)
            return result
        result = self._apply(connection, fields)
        self._receipts[key] = asked, result, self._now_ms() + remember_ms
        if until_used and result["epoch"]:
            self._unused[result["id"]] = key
        return result

    def _use(self, fields: Fields) -> None:
        """Forget the key of a new session that somebody changes who was told of it."""
        is_use = fields["op"] != "touch" and fields.get("cause") != "shutdown"
        if is_use and fields["epoch"] == 1 and fields["id"] in self._unused:
            del self._receipts[self._unused.pop(fields["id"])]

    def _apply(self, connection: Connection, fields: Fields) -> Fields:
        match fields["op"]:
            case "new":
                return self._new(connection, fields)
            case "acquire":
                return self._acquire(connection, fields)
            case "resume":
                return {"sessions": [self._resume(connection, one) for one in fields["sessions"]]}
            case "get":
                return {"session": self._view(self._session(fields))}
            case "heartbeat":
                return {"held": 0, "now_ms": self._now_ms()}
            case "credit":
                return {}
            case "txn":
                return self._txn(connection, fields)
            case _:
                found = self._change(connection, fields)
                self._use(fields)
                return found

    def _claim(self, session: FakeSession, connection: Connection) -> None:
        """Make a session a connection's; the one that had it is told."""
        current = self.current
        if current is not None and session.holder == current.number != connection.number:
            push = {"push": "lease_lost", "id": session.id, "epoch": session.epoch}
            current.answers.append({**push, "cause": "resumed"})
        session.holder = connection.number

    def _new(self, connection: Connection, fields: Fields) -> Fields:
        self._numbers += 1
        session = FakeSession(str(self._numbers), fields["theme"])
        self.sessions[session.id] = session
        session.chunks = [fields["data"]]
        session.done.append(fields["data"])
        if "repeat_after" not in fields:
            session.is_active, session.epoch = True, 1
            is_heard = connection.is_open and fields["seq"] >= 0
            session.holder = connection.number if is_heard else 0
        return {
            "id": session.id,
            "epoch": session.epoch,
            "revision": 1,
            "created": True,
            "lease_ms": LEASE_MS,
        }

    def _acquire(self, connection: Connection, fields: Fields) -> Fields:
        due = [
            one
            for one in self.sessions.values()
            if one.theme in fields["themes"] and not (one.is_active or one.is_gone or one.is_parked)
        ]
        found = due[: fields["count"]]
        for one in found:
            one.is_active, one.holder = True, connection.number
            one.epoch += 1
            one.revision += 1
        return {"sessions": [self._view(one) for one in found]}

    def _resume(self, connection: Connection, fields: Fields) -> Fields:
        try:
            return self._resumed(connection, fields)
        except Refused as error:
            return {"id": fields["id"], "error": error.fields}

    def _resumed(self, connection: Connection, fields: Fields) -> Fields:
        dice = self._chance.random()
        if dice < self.trouble / 4:
            raise Refused("overloaded", retryable=True)
        session = self._held(fields)
        self._claim(session, connection)
        if dice < self.trouble / 2:
            raise Refused("timed_out", outcome="unknown", retryable=True)
        return {
            "id": session.id,
            "epoch": session.epoch,
            "revision": session.revision,
            "lease_ms": LEASE_MS,
        }

    def _txn(self, connection: Connection, fields: Fields) -> Fields:
        for position, one in enumerate(fields["operations"]):
            try:
                self._check(one)
            except Refused as error:
                aborted = Refused("txn_aborted")
                aborted.fields |= {"position": position, "cause": error.fields}
                raise aborted from error
        return {"results": [self._change(connection, one) for one in fields["operations"]]}

    def _session(self, fields: Fields) -> FakeSession:
        session = self.sessions.get(fields["id"])
        if session is None or session.is_gone:
            raise Refused("session_not_found")
        return session

    def _held(self, fields: Fields) -> FakeSession:
        session = self._session(fields)
        if session.epoch != fields["epoch"] or not session.is_active:
            error = Refused("lease_lost")
            error.fields |= {"id": session.id, "epoch": fields["epoch"]}
            error.fields["current_epoch"] = session.epoch
            raise error
        return session

    def _check(self, fields: Fields) -> FakeSession:
        session = self._held(fields)
        expected = fields.get("if_revision")
        if expected is not None and expected != session.revision:
            error = Refused("revision_mismatch")
            error.fields |= {"id": session.id, "revision": expected, "current": session.revision}
            raise error
        if len(fields.get("data", b"")) > 100:
            raise Refused("limit_exceeded")
        return session

    def _change(self, connection: Connection, fields: Fields) -> Fields:
        session = self._check(fields)
        match fields["op"]:
            case "append":
                session.chunks.append(fields["data"])
            case "replace":
                session.chunks = [fields["data"]]
            case "remove":
                session.is_gone = True
                self._ended(session, "remove")
                session.revision += 1
            case "store":
                self._end(session, fields.get("cause", "requested"))
            case "park":
                session.is_parked = True
                self._end(session, "parked")
            case "touch":
                self._claim(session, connection)
            case other:
                raise AssertionError(other)
        if fields["op"] in {"append", "replace"}:
            session.done.append(fields["data"])
            session.revision += 1
        return {"id": session.id, "revision": session.revision, "due_ms": 1, "parked": False}

    def _ended(self, session: FakeSession, how: str) -> None:
        session.is_active = False
        session.ends.append((session.epoch, how))

    def _end(self, session: FakeSession, cause: str) -> None:
        self._ended(session, cause)
        session.revision += 1
        session.history.append(
            {"cause": cause, "reason": "", "times": 1, "first_ms": 0, "last_ms": 0}
        )

    def reap(self, session: FakeSession) -> None:
        """Take an active session away."""
        self._end(session, "stale")
        if self.current is not None:
            push = {"push": "lease_lost", "id": session.id, "epoch": session.epoch}
            self.current.answers.append({**push, "cause": "stale"})

    def _view(self, session: FakeSession) -> Fields:
        phase = "active" if session.is_active else "parked" if session.is_parked else "ready"
        return {
            "id": session.id,
            "theme": session.theme,
            "key": None,
            "phase": phase,
            "epoch": session.epoch,
            "revision": session.revision,
            "attempts": 1,
            "priority": 128,
            "created_ms": 0,
            "updated_ms": 0,
            "due_ms": None if session.is_active else 1,
            "lease_ms": LEASE_MS if session.is_active else None,
            "deadline_ms": self._now_ms() + LEASE_MS if session.is_active else None,
            "size_bytes": 0,
            "history": session.history,
            "chunks": session.chunks,
        }


def _named(fields: Fields) -> set[str]:
    """The sessions that a request shows the epoch of."""
    if fields["op"] == "txn":
        return {one["id"] for one in fields["operations"]}
    return {fields["id"]} if "epoch" in fields else set()
