"""Consumers that are connected to this node, and their signs of life.

A consumer has one name, and one heartbeat renews all its sessions. It is sent a few times per
lease, while something was heard from the consumer since the last one. One that is not heard for a
whole lease has vanished.

A heartbeat also tells how many sessions the cluster knows to be the consumer's. Some that it does
not know of itself can be among them: of a New or an Acquire whose answer came too late. Nobody
would ever work on them, and the heartbeats would keep them; so they are stored.
"""

import asyncio
from typing import Protocol

from api.gateway import Gateway
from api.operators import Operator, Operators
from state import Cause, Failure, Result, encode
from state.operations import Heartbeat

BEATS_PER_LEASE = 4
PERIOD_MIN_S = 0.025
SILENT_PERIODS = BEATS_PER_LEASE + 1


class Listener(Protocol):
    """The connection of a consumer."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    def on_vanished(self) -> None:
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
        self._listener = listener
        self._gateway = gateway
        self._operators = operators
        self._loop = loop
        self._idle_period_s = idle_period_s
        self._period_s = idle_period_s
        self._was_heard = True
        self._silent_periods = 0
        self._heartbeat = encode(Heartbeat(name))
        self._is_gone = False
        self._timer = loop.call_later(self._period_s, self._beat)

    # For its connection

    def heard(self) -> None:
        """It lives."""
        self._was_heard = True

    def leave(self, cause: Cause, reason: str) -> None:
        """It is gone for certain: what it holds is stored."""
        if self._is_gone:
            return
        held = bool(self.held)
        self._end()
        if held:
            self._operators.release(self.name, cause, reason)

    def vanish(self) -> None:
        """It is gone, perhaps to come back: what it holds waits for the end of its lease."""
        self._end()

    def _end(self) -> None:
        self._is_gone = True
        self._timer.cancel()

    # For operators

    def on_held(self, operator: Operator) -> None:
        if self._is_gone:
            # Its answer came when nobody was there to hear it.
            operator.store(Cause.DISCONNECTED, "its consumer had left")
            return
        self.held.add(operator.session_id)
        lease_s = self._gateway.lease_ms(operator.session_id) / 1000
        period_s = max(lease_s / BEATS_PER_LEASE, PERIOD_MIN_S)
        if period_s < self._period_s:
            self._period_s = period_s
            self._timer.cancel()
            self._timer = self._loop.call_later(period_s, self._beat)

    def on_ended(self, operator: Operator) -> None:
        self.held.discard(operator.session_id)

    def on_lost(self, operator: Operator, cause: str) -> None:
        self.held.discard(operator.session_id)
        if not self._is_gone:
            self._listener.on_lost(operator.session_id, operator.epoch, cause)

    # Signs of life

    def _beat(self) -> None:
        if not self.held:
            self._period_s = self._idle_period_s
        self._timer = self._loop.call_later(self._period_s, self._beat)
        if self._was_heard:
            self._was_heard = False
            self._silent_periods = 0
            if self.held:
                self._gateway.submit(self._heartbeat, self._answered, is_ending=True)
        else:
            self._silent_periods += 1
            if self._silent_periods >= SILENT_PERIODS:
                self._listener.on_vanished()
                return
        self._listener.ping()

    def _answered(self, result: Result) -> None:
        if isinstance(result, Failure):
            self._operators.budget.spend(result)
        elif isinstance(result, int) and result > len(self.held) and not self._is_gone:
            # Whoever waits for another answer of the same batch has it in a moment.
            self._loop.call_soon(self._look_for_unknown)

    def _look_for_unknown(self) -> None:
        for session_id, epoch in self._gateway.held_by(self.name):
            if session_id not in self.held and not self._is_gone:
                operator = self._operators.begin(session_id, epoch, None)
                operator.store(Cause.SHUTDOWN, "nobody was told that it was handed out")


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
