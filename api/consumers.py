"""Consumers that are connected to this node, and their signs of life.

A consumer has one name, and one heartbeat renews all its sessions. It is sent a few times per
lease, while something was heard from the consumer since the last one. One that is not heard for a
whole lease has vanished; but only the time counts in which it could have been heard.

The answer to a heartbeat tells how many sessions the cluster knows to be the consumer's. If that is
not what is known here, the two are compared. Some may be unknown here: of a New or an Acquire whose
answer came too late. Nobody would ever work on them, and the heartbeats would keep them; so they
are stored. If the consumer has shown their epoch, they are its own. Some may be another's: a
consumer that lost its connection to another node, or seemed to, has resumed them over this one's
head, at a node that has no way to tell.

A consumer that is gone may still be given sessions, by operations that were on their way. If it
left for certain, all that it holds is released once more. If it vanished, what it was never told of
is stored; what it knows, and may resume anywhere, has its lease to wait for that.
"""

import asyncio
from collections.abc import Iterable
from enum import Enum, auto
from functools import partial
from typing import Protocol

from api.gateway import Gateway
from api.operators import RESUMED, Operator, Operators
from state import Cause, Failure, Outcome, Result, encode
from state.operations import Heartbeat

BEATS_PER_LEASE = 4
PERIOD_MIN_S = 0.025
SILENT_PERIODS = BEATS_PER_LEASE + 1
SHOWN_MAX = 16_384
SPARE_S = 10.0  # what may be asked for again is not given back


class Sign(Enum):
    """What a period says about a consumer of which nothing was heard."""

    LIFE = auto()  # it was not listened to, or takes what it is told, and is there
    NONE = auto()  # it could not be asked
    SILENCE = auto()  # it was asked, and has not answered


class Listener(Protocol):
    """The connection of a consumer."""

    def sign(self) -> Sign:
        """Nothing was heard for a period: answer what that means."""

    def on_beat(self) -> None:
        """A period has passed: time to ask for a sign of life."""

    def on_silence(self) -> None:
        """Nothing was heard for too long."""

    def on_lost(self, session_id: int, epoch: int, cause: str) -> None:
        """A session is not the consumer's any more, and it did not ask for that."""


class Consumer:
    """One that directs operators over a connection."""

    def __init__(
        self,
        name: bytes,
        listener: Listener,
        gateway: Gateway,
        operators: Operators,
        loop: asyncio.AbstractEventLoop,
        *,
        idle_period_s: float,
    ) -> None:
        """`idle_period_s` is how often it is asked for a sign of life while it holds nothing."""
        self.name = name
        self.held: set[int] = set()
        self.asked = 0  # see `Operators.release`
        self.was_heard = True  # since the last beat: set by the connection
        self.is_gone = False
        self._listener = listener
        self._gateway = gateway
        self._operators = operators
        self._loop = loop
        self._idle_period_s = idle_period_s
        self._period_s = idle_period_s
        self._silent_periods = 0
        self._heartbeat = encode(Heartbeat(name))
        self._left: tuple[Cause, str] | None = None  # why it is gone for certain
        self._may_hold = False  # whether it was ever given a session, or may be
        self._is_releasing = False  # whether it will be released once more, in a moment
        self._is_unsure = False  # whether it may hold something that is not known here
        # Of that, what it has shown the epoch of: ids and epochs, and in which doubt that was.
        self._shown: dict[tuple[int, int], int] = {}
        self._doubts = 0
        self._spares_until_s = 0.0  # see SPARE_S
        self._found_s: dict[tuple[int, int], float] = {}  # when each was found that is spared
        self._timer = loop.call_later(self._period_s, self._beat)

    # For its connection

    def asks(self) -> None:
        """Take note that an operation is on its way that may give it a session."""
        self._may_hold = True

    def doubts(
        self,
        failure: Failure,
        shown: Iterable[tuple[int, int]] = (),
        *,
        comes_back: bool = False,
    ) -> None:
        """Take note that such an operation was not answered, and may have been done.

        `shown` are the sessions, with their epochs, that would be its own then, and which it knows.
        `comes_back` says that it has a key, and so may be asked for again in a while.
        """
        if failure.outcome is Outcome.UNKNOWN:
            self._is_unsure = True
            if comes_back:
                self._spares_until_s = self._loop.time() + SPARE_S
            self._doubts += 1
            if len(self._shown) < SHOWN_MAX:  # those beyond would come back as if it had vanished
                self._shown |= dict.fromkeys(shown, self._doubts)
            if self._left is not None:
                self._release_once_more(*self._left)

    def take(self, session_id: int, epoch: int, *, is_known: bool = False) -> bool:
        """Hold a session that the cluster has given it, unless that is over already.

        `is_known` says that the consumer knows of it, even if it never hears this answer. It may
        have come under a name that the consumer had before: then it is made its own.

        False if it is not the consumer's, which is there to be told so: see `misses`. It may have
        gone to another, or ended, in the very batch that gave it.
        """
        if not self._gateway.is_held(session_id, epoch, self.name):
            return self.is_gone
        if not self.is_gone:
            self._operators.begin(session_id, epoch, self)
        elif self._left is not None:
            self._release_once_more(*self._left)
        elif not is_known:
            self._operators.give_back(session_id, epoch, "whoever asked for it had vanished")
        return True

    def directs(self, session_id: int, epoch: int) -> bool:
        """Whether a session is its own, as far as it was told here."""
        operator = self._operators.find(session_id)
        return operator is not None and operator.epoch == epoch and operator.consumer is self

    def misses(self, sessions: Iterable[tuple[int, int]]) -> None:
        """Take back what it was just told: that these sessions are its own."""
        for session_id, epoch in sessions:
            is_active = self._gateway.epoch(session_id) == epoch
            operator = self._operators.find(session_id)
            if operator is not None and operator.epoch == epoch and operator.consumer is self:
                if is_active:  # else that is told when all know of the batch
                    self._operators.part(operator)
                continue
            self._operators.lost += 1
            cause = RESUMED if is_active else self._gateway.cause(session_id)
            if not self.is_gone:
                self._listener.on_lost(session_id, epoch, cause)

    def leave(self, cause: Cause, reason: str) -> None:
        """It is gone for certain: what it holds is stored, when all is done that it has said.

        That may take longer than a lease, so its heartbeats go on until then.
        """
        if self.is_gone:
            return
        self.is_gone = True
        self._left = (cause, reason)
        if not self.asked:
            self._timer.cancel()
        if self._may_hold:
            self._release(cause, reason)

    def _release_once_more(self, cause: Cause, reason: str) -> None:
        if not self._is_releasing:
            self._is_releasing = True
            self._loop.call_soon(self._release, cause, reason)

    def _release(self, cause: Cause, reason: str) -> None:
        self._is_releasing = False
        self._operators.release(self, cause, reason)

    def vanish(self) -> None:
        """It is gone, perhaps to come back: what it holds waits for the end of its lease."""
        if not self.is_gone:
            self.is_gone = True
            self._timer.cancel()

    # For operators

    def on_held(self, operator: Operator) -> None:
        self.held.add(operator.session_id)
        self._may_hold = True
        lease_s = self._gateway.lease_ms(operator.session_id) / 1000
        period_s = max(lease_s / BEATS_PER_LEASE, PERIOD_MIN_S)
        if period_s < self._period_s:
            self._period_s = period_s
            self._silent_periods = 0
            self._timer.cancel()
            self._timer = self._loop.call_later(period_s, self._beat)

    def on_ended(self, operator: Operator) -> None:
        self.held.discard(operator.session_id)

    def on_lost(self, operator: Operator, cause: str) -> None:
        self.held.discard(operator.session_id)
        if not self.is_gone:
            self._listener.on_lost(operator.session_id, operator.epoch, cause)

    # Signs of life

    def _beat(self) -> None:
        if self.is_gone and not self.asked:
            return
        if not self.held and not self._silent_periods:
            # In a silence it goes on at the pace at which that began, or its end would be far.
            self._period_s = self._idle_period_s
        self._timer = self._loop.call_later(self._period_s, self._beat)
        if self.is_gone:
            self._gateway.submit(self._heartbeat, self._operators.budget.note, is_ending=True)
            return
        match Sign.LIFE if self.was_heard else self._listener.sign():
            case Sign.LIFE:
                self.was_heard = False
                self._silent_periods = 0
                if self.held or self._is_unsure:
                    answered = partial(self._answered, self._doubts if self._is_unsure else 0)
                    self._is_unsure = False
                    self._gateway.submit(self._heartbeat, answered, is_ending=True)
            case Sign.NONE:
                pass
            case Sign.SILENCE:
                self._silent_periods += 1
                if self._silent_periods >= SILENT_PERIODS:
                    self._listener.on_silence()
                    return
        self._listener.on_beat()

    def _answered(self, doubts: int, result: Result) -> None:
        """Look at a heartbeat's answer; it left after so many doubts, or in none."""
        if isinstance(result, Failure):
            self._operators.budget.spend(result)
            self._is_unsure = True
            return
        self._operators.budget.earn()
        # Equal numbers may hide that one session came and another went.
        if (doubts or result != len(self.held)) and not self.is_gone:
            # Whoever waits for another answer of the same batch has it in a moment.
            self._loop.call_soon(self._compare, doubts)

    def _compare(self, doubts: int) -> None:
        """Let go of what is another's, and store what nobody knows of.

        That settles as many doubts as there were when the heartbeat left. What came into doubt
        since then may not have been done yet.
        """
        if self.is_gone:
            return
        given = dict(self._gateway.held_by(self.name))
        for session_id in self.held - given.keys():
            operator = self._operators.find(session_id)
            if operator is not None and operator.consumer is self:
                self._operators.part(operator)
            self.held.discard(session_id)
        unknown = dict.fromkeys(one for one in given.items() if one[0] not in self.held)
        for session_id, epoch in unknown:
            operator = self._operators.find(session_id)
            if (session_id, epoch) in self._shown:
                # When it was taken nobody knows: perhaps before a verdict of its own.
                self._operators.begin(session_id, epoch, self, is_told=False)
            elif self._is_spared((session_id, epoch)):
                self._is_unsure = True  # look again later
            elif operator is None or not operator.is_storing:
                reason = "nobody was told that it was handed out"
                self._operators.give_back(session_id, epoch, reason)
        self._found_s = {one: at_s for one, at_s in self._found_s.items() if one in unknown}
        if doubts:
            self._shown = {one: doubt for one, doubt in self._shown.items() if doubt > doubts}

    def _is_spared(self, session: tuple[int, int]) -> bool:
        """Whether a session may be of a New that is asked for again: for a while each."""
        now_s = self._loop.time()
        if now_s >= self._spares_until_s:
            return False
        return now_s < self._found_s.setdefault(session, now_s) + SPARE_S


class Consumers:
    """All consumers of a node."""

    def __init__(
        self,
        gateway: Gateway,
        operators: Operators,
        loop: asyncio.AbstractEventLoop,
        *,
        idle_period_s: float,
    ) -> None:
        self._gateway = gateway
        self._operators = operators
        self._loop = loop
        self._idle_period_s = idle_period_s
        self._count = 0

    def connect(self, listener: Listener) -> Consumer:
        """A consumer for a new connection, under a name that no other has or will have."""
        self._count += 1
        return Consumer(
            self._gateway.consumer(b"%d" % self._count),
            listener,
            self._gateway,
            self._operators,
            self._loop,
            idle_period_s=self._idle_period_s,
        )
