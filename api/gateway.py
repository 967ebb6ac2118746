"""The one narrow way from the front end to its node.

What goes in are operations as bytes and queries as plain values; what comes out, through callbacks,
are results and views that hold nothing of the state itself. So the front end could live in
processes of its own, with a pipe in between. Nothing else in `api` looks at the state machine.

A callback is called once, perhaps before the call returns. What it is given was true when it was
called, and may be read in the same turn of the loop only where it says so.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest
from typing import Any, NamedTuple, Protocol

from msgspec import UNSET

from api.answers import (
    AcquiredAnswer,
    CreatedAnswer,
    Seq,
    SessionView,
    TxnAnswer,
    answer_of,
    cause_name,
    view_of,
)
from cluster import Node, NodeSettings, Status
from cluster.meters import NodeMeters, Survey
from cluster.queues import Callback
from state import Applied, EventKind, Failure, Phase, Policy, Result, StateMachine
from state.errors import LeaseLost, SessionNotFound
from state.limits import Limits
from state.operations import Target
from state.policy import DEFAULT_POLICY
from state.results import Acquired, Done

REMOVED = "removed"  # the cause of the end of a session that is gone
NAMED = b"~/"  # begins the names that callers over HTTP give themselves; no node is called so

_ENDS = frozenset((EventKind.STORED, EventKind.PARKED, EventKind.REMOVED))

ViewCallback = Callable[[SessionView | Failure | None], object]
AcquiredCallback = Callable[[list[SessionView] | Failure], object]


class ThemeView(NamedTuple):
    """A theme: its policy, and how many sessions are where."""

    theme: int
    policy: Policy = DEFAULT_POLICY
    paused: bool = False
    stored: int = 0
    ready: int = 0
    active: int = 0
    parked: int = 0
    size_bytes: int = 0
    oldest_due_ms: int | None = None  # of what is ready


class Watcher(Protocol):
    """Who wants to hear what happens at the node. None of these may raise."""

    def on_applied(self, applied: Applied) -> None:
        """A batch was applied, anybody's; who waited for it has been answered."""

    def on_leader(self, leader: str | None) -> None:
        """Another node leads, or nobody that is known."""

    def on_installed(self) -> None:
        """The state was replaced as a whole."""


class Gateway:
    """A node, as the front end sees it."""

    def __init__(self, settings: NodeSettings) -> None:
        self._node = node = Node(settings, self)
        self.submit = node.submit_encoded  # bound once: it is called for every operation
        self.watchers: list[Watcher] = []

    async def start(self) -> None:
        """Start the node. Raises what `Node.start` raises."""
        await self._node.start()

    async def stop(self) -> None:
        """Stop the node, in order."""
        await self._node.stop()

    async def failure(self) -> Exception:
        """Wait until the node cannot go on, and answer why."""
        return await self._node.failure()

    # Operations

    def acquire(
        self,
        encoded: bytes,
        callback: AcquiredCallback,
        *,
        timeout_ms: int | None = None,
        late: Callback | None = None,
    ) -> None:
        """Have an Acquire or AcquireSession done; the views are of the moment of its answer.

        `late` is as with `submit`.

        What has gone on by then is somebody else's, or nobody's: of several it is left out, of one
        it is a failure. That is rare: another operation of the same batch did it, or the answer is
        an old one, known by its idempotency key.
        """

        def answered(result: Result) -> None:
            if isinstance(result, Failure):
                callback(result)
            elif isinstance(result, Acquired):
                found = self._handed_out(result)
                callback(found if isinstance(found, Failure) else [found])
            else:
                several: Any = result
                views = map(self._handed_out, several)
                callback([view for view in views if isinstance(view, SessionView)])

        self.submit(encoded, answered, timeout_ms=timeout_ms, late=late)

    def _handed_out(self, acquired: Acquired) -> SessionView | Failure:
        session = self._machine.session(acquired.session_id)
        if session is None:
            return SessionNotFound()
        if session.phase is not Phase.ACTIVE or session.epoch != acquired.epoch:
            return LeaseLost(acquired.session_id, acquired.epoch, session.epoch)
        return view_of(session)

    def read(self, callback: Callback, *, timeout_ms: int | None = None) -> None:
        """Call back when all that was acknowledged before, by any node, is applied here."""
        node = self._node
        timeout_s = (node.settings.timeout_ms if timeout_ms is None else timeout_ms) / 1000
        node.replica.queue.read(callback, timeout_s)

    def session(
        self,
        target: Target,
        callback: ViewCallback,
        *,
        is_stale: bool = False,
        timeout_ms: int | None = None,
    ) -> None:
        """Read a session; as this node has it, if that is enough."""
        if is_stale:
            callback(self._view(target))
            return

        def answered(result: Result) -> None:
            callback(result if isinstance(result, Failure) else self._view(target))

        self.read(answered, timeout_ms=timeout_ms)

    # What this node has, now

    def _view(self, target: Target) -> SessionView | None:
        session = self._machine.session(target)
        return None if session is None else view_of(session)

    @property
    def _machine(self) -> StateMachine:
        return self._node.machine

    @property
    def applied_index(self) -> int:
        """Where in the log this node's copy is."""
        return self._machine.applied_index

    @property
    def now_ms(self) -> int:
        """The cluster's time."""
        return self._machine.now_ms

    def epoch(self, session_id: int) -> int:
        """The epoch of an active session; 0 if it is not."""
        session = self._machine.session(session_id)
        is_active = session is not None and session.phase is Phase.ACTIVE
        return session.epoch if is_active and session is not None else 0

    def session_id(self, key: tuple[int, bytes]) -> int:
        """The session that holds a theme's key; 0 if none does, as far as this node knows."""
        session = self._machine.session(key)
        return 0 if session is None else session.session_id

    def holder(self, session_id: int, epoch: int) -> bytes | None:
        """Whose a session is that is active in this epoch; None if it is not, or nobody's."""
        session = self._machine.session(session_id)
        if session is None or session.phase is not Phase.ACTIVE or session.epoch != epoch:
            return None
        return None if session.consumer is None else session.consumer.consumer_id

    def is_held(self, session_id: int, epoch: int, consumer: bytes) -> bool:
        """Whether a session is active in this epoch, and this consumer's."""
        return self.holder(session_id, epoch) == consumer

    def theme_of(self, session_id: int) -> int | None:
        """The theme of a session; None if it is not there."""
        session = self._machine.session(session_id)
        return None if session is None else session.theme.theme_id

    def may_begin(self, session_id: int) -> bool:
        """Whether an id has not been given yet, as far as this node knows."""
        return session_id > self._machine.last_session_id

    def held_ms(self, session_id: int, epoch: int, consumer: bytes | None) -> int:
        """The lease of a session that is this consumer's in this epoch; 0 if it is not."""
        if self.epoch(session_id) != epoch or self.holder(session_id, epoch) != consumer:
            return 0
        return self.lease_ms(session_id)

    def answer(self, done: Done, consumer: bytes | None, seq: Seq = UNSET) -> TxnAnswer:
        """The answer of a transaction: it says of each session whether it is this consumer's."""
        results: list[Any] = []
        for one in done.results:
            answer = answer_of(one)
            if isinstance(answer, CreatedAnswer | AcquiredAnswer) and answer.epoch:
                answer.lease_ms = self.held_ms(one.session_id, one.epoch, consumer)
            results.append(answer)
        return TxnAnswer(seq=seq, results=results)

    def lease_ms(self, session_id: int) -> int:
        """The lease of an active session; 0 if it is not."""
        session = self._machine.session(session_id)
        return 0 if session is None else session.lease_ms

    def cause(self, session_id: int) -> str:
        """Why a session stopped being active the last time; `removed` if it is gone."""
        session = self._machine.session(session_id)
        if session is None:
            return REMOVED
        return cause_name(session.history[-1].cause) if session.history else "requested"

    def held_by(self, consumer: bytes) -> list[tuple[int, int]]:
        """The active sessions of a consumer, as (id, epoch)."""
        return list(self._machine.held_by(consumer))

    def ready_count(self, theme_id: int) -> int:
        """How many sessions of a theme an Acquire would find here; a hint."""
        theme = self._machine.theme(theme_id)
        if theme is None or not theme.can_serve:
            return 0
        most = theme.policy.max_active
        ready = len(theme.ready)
        return min(ready, most - theme.counts[Phase.ACTIVE]) if most else ready

    def theme(self, theme_id: int) -> ThemeView:
        """A theme; one without sessions and without a policy of its own is like all such."""
        return next(self.themes([theme_id]), None) or ThemeView(theme_id)

    def theme_ids(
        self, after: int, limit: int, may_see: Callable[[int], bool] = lambda _: True
    ) -> list[int]:
        """The themes above one that somebody may see, in order."""
        themes = (one.theme_id for one in self._machine.themes())
        return nsmallest(limit, (one for one in themes if one > after and may_see(one)))

    def themes(self, theme_ids: Iterable[int]) -> Iterator[ThemeView]:
        """Those of some themes that there still are."""
        machine = self._machine
        for theme_id in theme_ids:
            theme = machine.theme(theme_id)
            if theme is None:
                continue
            counts = theme.counts
            yield ThemeView(
                theme_id,
                theme.policy,
                theme.paused,
                counts[Phase.STORED],
                counts[Phase.READY],
                counts[Phase.ACTIVE],
                counts[Phase.PARKED],
                theme.size_bytes,
                theme.oldest_due_ms,
            )

    def limits(self) -> Limits:
        """The bounds of the replicated state."""
        return self._machine.limits

    # The node itself

    @property
    def timeout_ms(self) -> int:
        """How long an operation is tried if its caller does not say."""
        return self._node.settings.timeout_ms

    def status(self) -> Status:
        """Where the node is."""
        return self._node.status()

    def meters(self) -> NodeMeters:
        """What the node has counted, and how things stand."""
        return self._node.meters()

    async def survey(self, *, busiest: int) -> Survey:
        """Look at all themes, and at that many one by one."""
        return await self._node.survey(busiest=busiest)

    @property
    def leader(self) -> str | None:
        """Who leads, as far as the node knows."""
        return self._node.leader

    async def transfer(self, to: str) -> bool:
        """Hand leadership over, to a member or, if that is empty, to the best placed."""
        return await self._node.transfer(to)

    @property
    def journal_waits_s(self) -> float:
        """How long the disk has answered nothing, though something waits for it."""
        return self._node.journal.stalled_s

    @property
    def is_ready(self) -> bool:
        """Whether it knows a leader, and may send it operations."""
        replica = self._node.replica
        return replica.is_ready and replica.member.leader is not None

    @property
    def reaches_majority(self) -> bool:
        """Whether enough members are connected to commit something."""
        return self._node.replica.member.replication.reaches_majority

    @property
    def lag(self) -> int:
        """Committed entries that are not applied here yet."""
        return self._node.replica.lag

    @property
    def waiting(self) -> int:
        """Operations that wait for a batch."""
        return self._node.replica.queue.depth

    def consumer(self, name: bytes) -> bytes:
        """The name by which the cluster knows a consumer that is connected to this node."""
        return self._node.consumer(name)

    # What the node tells

    def on_applied(self, applied: Applied) -> None:
        for one in self.watchers:
            one.on_applied(applied)

    def on_leader(self, leader: str | None) -> None:
        for one in self.watchers:
            one.on_leader(leader)

    def on_installed(self) -> None:
        for one in self.watchers:
            one.on_installed()


def ended(applied: Applied) -> Iterator[int]:
    """The sessions that may not be active any more after a batch."""
    for kind, session_id, _, _, _ in applied.raw_events:
        if kind in _ENDS:
            yield session_id
