"""What all ways in share: the node, its operators, who waits, who may what."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from api.budget import ErrorBudget
from api.consumers import Consumers
from api.gateway import Gateway
from api.health import Health
from api.history import History
from api.metrics import Metrics
from api.operators import Operators
from api.problems import Refusal, of_failure
from api.security import Authenticator, Principal, Scope
from api.settings.addresses import is_loopback
from api.settings.build import HttpSettings
from api.tracing import Tracing
from api.waiting import Waiters
from api.websocket.meters import WebSocketMeters
from state import Failure, Result
from state.errors import SessionNotFound
from state.operations import Target

Known = Callable[[Refusal | None], object]

_NOT_FOUND = Refusal(of_failure(SessionNotFound()))


class Draining(Protocol):
    """A connection that is told when the node is about to stop."""

    def drain(self, within_ms: int) -> None:
        """Tell the consumer that it had better go elsewhere."""

    def shut_down(self) -> None:
        """End now."""


class FrontEnd:
    """Everything of a node that requests are served with."""

    def __init__(
        self,
        gateway: Gateway,
        node_id: str,
        settings: HttpSettings,
        *,
        budget: ErrorBudget,
        health: Health,
        tokens: Authenticator,
        events_max: int = 10_000,
    ) -> None:
        self.gateway = gateway
        self.health = health
        self.tokens = tokens
        self.node_id = node_id
        self.settings = settings
        loop = asyncio.get_running_loop()
        self.operators = Operators(gateway, loop.call_later, budget=budget)
        self.waiters = Waiters(gateway, loop)
        self.history = History(gateway, events_max=events_max)
        idle_period_s = settings.ping_ms / 1000
        self.consumers = Consumers(gateway, self.operators, loop, idle_period_s=idle_period_s)
        self.connections: set[Draining] = set()
        self.websockets = WebSocketMeters()
        is_open = settings.metrics_open or is_loopback(settings.bind)
        self.metrics = Metrics(self, gateway, is_open=is_open)
        self.tracing: Tracing | None = None  # while it is off
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something be done that nobody waits for; it must not raise."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Who may what

    def check(self, principal: Principal, scope: Scope, *themes: int) -> None:
        """Whether a principal may do something with these themes. Raises `Refusal`."""
        principal.require(scope)
        for theme in themes:
            principal.require_theme(theme)

    def check_target(self, principal: Principal, scope: Scope, target: Target, then: Known) -> None:
        """The same for a session, whose theme may have to be read."""
        self.check_targets(principal, scope, (target,), then)

    def check_targets(
        self,
        principal: Principal,
        scope: Scope,
        targets: Sequence[Target],
        then: Known,
        *,
        timeout_ms: int | None = None,
    ) -> None:
        """The same for several; they are read in the given time, or in an operation's.

        Some time passes between this and what is then done. So an id that no session has had yet is
        refused here: one of anybody's may have it by then. One that is gone stays so.
        """
        try:
            self.check(principal, scope)
        except Refusal as error:
            then(error)
            return
        if principal.may_all_themes:
            then(None)
            return
        unknown = [one for one in targets if self._theme(one) is None]
        if not unknown:
            then(self._refusal_of(principal, scope, targets))
            return

        def read(result: Result) -> None:
            if isinstance(result, Failure):
                then(Refusal(of_failure(result)))
            else:
                then(self._refusal_of(principal, scope, targets))

        self.gateway.read(read, timeout_ms=timeout_ms)

    def _theme(self, target: Target) -> int | None:
        return target[0] if isinstance(target, tuple) else self.gateway.theme_of(target)

    def _refusal_of(
        self, principal: Principal, scope: Scope, targets: Sequence[Target]
    ) -> Refusal | None:
        try:
            for target in targets:
                theme = self._theme(target)
                if theme is not None:
                    self.check(principal, scope, theme)
                elif isinstance(target, int) and self.gateway.may_begin(target):
                    raise _NOT_FOUND
        except Refusal as error:
            return error
        return None
