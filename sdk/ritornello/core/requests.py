"""What is asked, and what is held: a request, and a session."""

import itertools
import os
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from ritornello.core.frames import Message, Result
from ritornello.errors import (
    ClientClosed,
    LeaseLost,
    Outcome,
    RequestError,
    RitornelloError,
    doubted,
)
from ritornello.models import SessionView

# Of which it is no matter whether a copy is done that nobody heard of.
_HARMLESS = frozenset({"get", "acquire", "resume", "touch"})

Done = Callable[[Message | RitornelloError], None]


class Home(Protocol):
    """Where a session is held, or something is asked; in the core's thread."""

    def ask(self, request: "Request") -> None:
        """Have a request done."""

    def cancel(self, request: "Request") -> None:
        """Forget who waits for it."""

    def give_back(self, held: "Held", reason: str = "") -> None:
        """Store a session that nobody wants, as if it had not been handed out."""

    def give_back_unowned(self, held: "Held", reason: str = "") -> None:
        """The same, unless somebody works on it, or is about to."""

    def leave(self, held: "Held") -> None:
        """Take note that nobody works on a session any more: it ends as it was told, or so."""

    def bound(self, held: "Held", bounds: "Bounds") -> None:
        """Take a session from whoever works on it when that takes too long."""


class Way(Enum):
    """What becomes of a request whose answer was lost."""

    AGAIN = auto()  # it is sent again: doing it twice is as good, or is found out
    ONCE = auto()  # it may have been done, and is not sent again


class Request:
    """One request, from when it is asked until its caller is told."""

    __slots__ = (
        "changes",
        "deadline_s",
        "done",
        "doubts",
        "expected",
        "failure_numbers",
        "failures",
        "fields",
        "given",
        "gives",
        "held",
        "is_asked",
        "is_over",
        "is_own",
        "is_queued",
        "is_sent",
        "is_unconditional",
        "is_verdict",
        "known_until_s",
        "mismatches",
        "results",
        "seen_failures",
        "sent_s",
        "seq",
        "until_s",
        "way",
        "weight",
    )

    def __init__(
        self,
        fields: dict[str, Any],
        deadline_s: float,
        done: Done,
        *,
        way: Way = Way.AGAIN,
        held: "tuple[Held, ...]" = (),
        is_verdict: bool = False,
        is_unconditional: bool = False,
        changes: int = 0,
        gives: bool = False,
        until_s: float = 0.0,
        seen_failures: tuple[int, ...] = (),
        weight: int = 1,
        is_own: bool = False,
        known_until_s: float = float("inf"),
    ) -> None:
        """`fields` are as they are sent. Times are by the monotonic clock."""
        self.fields = fields
        self.deadline_s = deadline_s
        self.done = done
        self.way = way
        self.held = held  # the sessions that it is about; several in a transaction
        self.is_verdict = is_verdict
        # A verdict of a session that nobody works on any more: nothing stands in its way, for else
        # heartbeats would keep the session.
        self.is_unconditional = is_unconditional
        self.changes = changes  # by how much it raises the revision of the session that is held
        self.gives = gives  # whether sessions come with its answer
        self.until_s = until_s  # to which an acquire waits
        # Of each of its sessions, of how many its caller had been told; empty if that is no matter.
        self.seen_failures = seen_failures
        self.weight = weight  # as the server counts what is in flight
        # To which the cluster certainly knows it again by its key. Later it is not sent again: it
        # would be done again.
        self.known_until_s = known_until_s
        self.is_own = is_own  # of the client itself, and of this connection only
        self.seq = -1
        self.sent_s = 0.0
        self.is_asked = False  # it came to where it is to be done, or refused
        self.is_queued = False  # in line to be sent
        self.is_sent = False  # on its way, over the connection that there is
        self.is_over = False  # its caller knows what became of it, or does not want to
        self.doubts = 0  # times that it was sent and may have been done
        self.failures = 0  # times that it was refused for a while
        self.mismatches = 0
        self.expected: int | None = None  # the revision that it has to find
        # With the answer
        # If it fails: how many there were then, at each of its sessions.
        self.failure_numbers: tuple[int, ...] = ()
        self.given: list[tuple[Held, SessionView | None]] = []
        self.results: list[Result] = []

    def tell_closed(self) -> None:
        """Tell the caller that the client is closed."""
        if not self.is_over:
            self.is_over = True
            self.done(ClientClosed("the client is closed"))

    def let_go(self) -> "list[Held]":
        """The sessions that came with its answer, when its caller has them, or wants none."""
        given, self.given = self.given, []
        if self.op == "resume":
            for held, _ in given:
                held.takers -= 1
        return [held for held, _ in given]

    @property
    def op(self) -> str:
        found: str = self.fields["op"]
        return found

    @property
    def may_be_done(self) -> bool:
        """Whether it may have been done, or may yet be, though nobody has said so."""
        return self.is_sent or self.doubts > 0

    @property
    def outcome(self) -> Outcome:
        """Of one that was not answered."""
        return Outcome.UNKNOWN if self.may_be_done else Outcome.NOT_APPLIED

    def refused(self, error: RequestError) -> RequestError:
        """What its caller is told: that one copy was refused says nothing of those before it."""
        if not self.doubts or error.outcome is Outcome.UNKNOWN or self.op in _HARMLESS:
            return error
        return doubted(error)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a session may be worked on."""

    progress_s: float | None = None  # with nothing asked of it
    total_s: float | None = None


class Held:
    """One session in one epoch. What is asked of it is done one after the other.

    The node would do so in any case. So at most one request of a session is ever in doubt, and the
    session's revision tells what became of it.
    """

    __slots__ = (
        "begun_s",
        "bounds",
        "claims",
        "claims_until_s",
        "current",
        "epoch",
        "expires_s",
        "failures",
        "has_verdict",
        "home",
        "id",
        "is_doubtful",
        "is_left",
        "is_over",
        "is_resumed",
        "is_spared",
        "lease_s",
        "loss",
        "moved_s",
        "owners",
        "presumed_loss",
        "revision",
        "since_s",
        "takers",
        "waiting",
        "was_given_back",
        "watchers",
    )

    def __init__(
        self, home: Home, id: str, epoch: int, revision: int, *, lease_s: float, since_s: float
    ) -> None:
        self.home = home
        self.id = id
        self.epoch = epoch
        self.revision = revision  # as it was last told
        self.lease_s = lease_s
        self.since_s = since_s
        self.expires_s = since_s  # when the cluster may take it away, if it hears nothing
        self.current: Request | None = None  # asked for, and not answered
        self.waiting: deque[Request] = deque()  # after that
        self.has_verdict = False  # among those
        self.failures = 0  # of its requests, for good: see `Request.seen_failures`
        # So many requests to make it ours were sent over connections that are gone, and may yet be
        # done: then it seems to be somebody else's, who resumed it.
        self.claims = 0
        self.claims_until_s = since_s
        # A transaction was given up that may yet be done: so another revision than is expected says
        # nothing of the request that found it. Until a change was done for certain.
        self.is_doubtful = False
        self.owners = 0  # objects by which users work on it
        # Callers who were told that it is theirs, and have yet to work on it: they read it first.
        self.takers = 0
        # A `resume` of it that is open may yet be answered: so nobody's it is not given back.
        self.is_spared = False
        self.is_left = False  # nobody works on it: a verdict that fails is followed by another
        self.is_resumed = True  # over the connection that there is
        self.was_given_back = False  # once, at most: what is refused for good is not said again
        self.is_over = False
        self.loss: LeaseLost | None = None  # why, if not by a verdict
        self.presumed_loss: LeaseLost | None = None  # if a transaction in doubt has not ended it
        self.watchers: tuple[Callable[[LeaseLost], None], ...] = ()  # told when it is lost
        self.begun_s = since_s  # when somebody began to work on it
        self.moved_s = since_s  # when something was asked of it
        self.bounds = Bounds()

    def claimed(self, times: int, until_s: float) -> None:
        """Take note that so many requests to make it ours may yet be done, until then at most."""
        self.claims += times
        self.claims_until_s = until_s

    def watch(self, on_lost: Callable[[LeaseLost], None]) -> None:
        """Have somebody told when it is lost; at once if it is."""
        self.watchers += (on_lost,)
        if self.loss is not None:
            on_lost(self.loss)

    def unwatch(self, on_lost: Callable[[LeaseLost], None]) -> None:
        """Tell somebody no more."""
        self.watchers = tuple(one for one in self.watchers if one is not on_lost)

    def tell_loss(self, loss: LeaseLost) -> None:
        """Tell all who watch."""
        for one in self.watchers:
            one(loss)

    def bound(self, bounds: "Bounds") -> None:
        """Have it taken from whoever works on it when that takes too long."""
        self.home.bound(self, bounds)

    @property
    def bound_s(self) -> float:
        """When it is overdue; infinite if never."""
        ends_s = [float("inf")]
        if self.bounds.progress_s is not None:
            ends_s.append(self.moved_s + self.bounds.progress_s)
        if self.bounds.total_s is not None:
            ends_s.append(self.begun_s + self.bounds.total_s)
        return min(ends_s)

    @property
    def is_gone(self) -> bool:
        """Whether nothing more may be asked of it: it is over, or is being taken away."""
        return self.is_over or self.loss is not None

    def lasts_until(self, expires_s: float) -> None:
        """Take note of a sign of life that the cluster has answered."""
        self.expires_s = max(self.expires_s, expires_s)

    def over(self, outcome: Outcome = Outcome.NOT_APPLIED) -> LeaseLost:
        """What is told to whoever asks for more of it, or has asked and was not answered."""
        if self.loss is not None:
            unknown = Outcome.UNKNOWN in {outcome, self.loss.outcome}
            told = Outcome.UNKNOWN if unknown else Outcome.NOT_APPLIED
            return LeaseLost({**self.loss.fields, "outcome": told.value})
        detail = "a verdict was given before: it is removed, stored or parked"
        return self.lost("requested", detail)

    def lost(self, cause: str, detail: str, outcome: Outcome = Outcome.NOT_APPLIED) -> LeaseLost:
        """The error of a session that is not its holder's any more."""
        return LeaseLost(
            {
                "code": "lease_lost",
                "outcome": outcome.value,
                "retryable": False,
                "detail": detail,
                "id": self.id,
                "epoch": self.epoch,
                "cause": cause,
            }
        )


def nobody(_result: Message | RitornelloError) -> None:
    """Takes the answer of what nobody waits for."""


class _Keys:
    """Idempotency keys: what no other process has, and a number. One for each is slow to make."""

    def __init__(self) -> None:
        self.begin()
        os.register_at_fork(after_in_child=self.begin)

    def begin(self) -> None:
        self._prefix = secrets.token_urlsafe(12)
        self._numbers = itertools.count()

    def make(self) -> str:
        return f"{self._prefix}-{next(self._numbers):x}"


new_key = _Keys().make
"""An idempotency key that nobody else has."""
