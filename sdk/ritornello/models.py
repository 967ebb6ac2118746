"""What the cluster answers, as frozen values. Points in time are in ms since 1970, by its clock.

Members that this version does not know are passed over, so that a newer cluster can be asked.
"""

from typing import Literal, TypedDict

from msgspec import Struct

Phase = Literal["stored", "ready", "active", "parked"]  # where a session is in its life


class Cause(Struct, frozen=True, kw_only=True):
    """Why a session stopped being active, `times` times in a row.

    `cause` is one of `requested`, `failed`, `disconnected`, `shutdown`, `stale`, `parked`.
    """

    cause: str
    reason: str
    times: int
    first_ms: int
    last_ms: int


class Trace(Struct, frozen=True):
    """A trace context (W3C Trace Context, 3.2 and 3.3): what caused a piece of work."""

    traceparent: str
    tracestate: str = ""


class SessionView(Struct, frozen=True, kw_only=True):
    """A session as it was when it was read. In lists it has no chunks."""

    id: str
    theme: int
    key: str | None
    phase: Phase
    epoch: int
    revision: int
    attempts: int
    priority: int
    created_ms: int
    updated_ms: int
    due_ms: int | None  # of what is stored or ready
    lease_ms: int | None  # of what is active
    deadline_ms: int | None  # of what is active: when it is taken away without a sign of life
    size_bytes: int  # of all chunks together
    traceparent: str = ""  # of whoever began it, if that is known
    tracestate: str = ""
    history: tuple[Cause, ...] = ()
    chunks: tuple[bytes, ...] = ()

    @property
    def data(self) -> bytes:
        """All chunks, one after the other."""
        return b"".join(self.chunks)

    @property
    def trace(self) -> Trace | None:
        """The trace context of whoever began it, if that is known."""
        return Trace(self.traceparent, self.tracestate) if self.traceparent else None


class Created(Struct, frozen=True, kw_only=True):
    """What became of a `new`. Without `created`, another session held the key: this one."""

    id: str
    epoch: int  # 0: nobody's, or another's
    revision: int
    created: bool


class Stored(Struct, frozen=True, kw_only=True):
    """Until when a session is stored; or that it is parked, having had all its attempts."""

    id: str
    revision: int
    due_ms: int
    parked: bool


class Policy(Struct, frozen=True, kw_only=True):
    """What a theme decides for its sessions. Of a bound, 0 means that there is none.

    A session that is stored without a time comes back after `repeat_ms`; if `backoff` is
    `exponential`, after twice that for each attempt that it has had, but for `repeat_cap_ms` at
    most. `jitter_permille` of that time are spread, so that not all come back at once.

    `lease_ms` is how long a session is kept for an operator that gives no sign of life, and
    `progress_ms` for one that gives signs of life, and does nothing with it. After `max_attempts`
    it is parked. `max_active` bounds the sessions that are active at a time, `max_sessions` all of
    them.
    """

    repeat_ms: int
    backoff: Literal["fixed", "exponential"]
    repeat_cap_ms: int
    jitter_permille: int
    lease_ms: int
    progress_ms: int
    max_attempts: int
    max_active: int
    max_sessions: int


class ThemeView(Struct, frozen=True, kw_only=True):
    """A theme: how many sessions are where, and its policy."""

    theme: int
    paused: bool
    stored: int
    ready: int
    active: int
    parked: int
    size_bytes: int
    oldest_due_ms: int | None  # of what is ready longest
    policy: Policy


class Member(Struct, frozen=True, kw_only=True):
    """A member of the cluster, as the node that answered sees it."""

    node: str
    is_leader: bool
    is_connected: bool


class ClusterView(Struct, frozen=True, kw_only=True):
    """The cluster, as the node that answered sees it."""

    node: str
    leader: str | None
    term: int
    is_ready: bool
    committed_index: int
    applied_index: int
    checkpoint_index: int
    sessions: int
    operators: int
    waiting_operations: int
    waiting_consumers: int
    members: tuple[Member, ...]


class Transferred(Struct, frozen=True, kw_only=True):
    """Whether leadership is where it was to go, and who leads now."""

    transferred: bool
    leader: str | None


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened. `place` is where to go on from after it.

    `kind` is `resync` where events are missing: look at everything anew, and go on from there.
    """

    kind: str
    place: str
    log_index: int
    theme: int | None = None
    id: str | None = None
    key: str | None = None
    revision: int | None = None


class PolicyChanges(TypedDict, total=False):
    """The settings of a policy that are to change: see `Policy`."""

    repeat_ms: int
    backoff: Literal["fixed", "exponential"]
    repeat_cap_ms: int
    jitter_permille: int
    lease_ms: int
    progress_ms: int
    max_attempts: int
    max_active: int
    max_sessions: int


class SessionPage(Struct, frozen=True, kw_only=True):
    """Some of the sessions of a theme; there are more if it has a cursor."""

    sessions: tuple[SessionView, ...]
    cursor: str | None = None


class ThemePage(Struct, frozen=True, kw_only=True):
    """Some of the themes; there are more if it has a cursor."""

    themes: tuple[ThemeView, ...]
    cursor: str | None = None
