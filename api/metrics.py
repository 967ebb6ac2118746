"""What a node tells about itself in numbers: `/metrics`, for Prometheus.

Where things happen there are plain ints; nothing else is done for a number until somebody asks.
`METRICS` says what there is: each row has a name, a meaning, and how it is read. The page in
`docs/metrics.md` is held to it by a test.

Labels have few values: routes, codes, members, and the `THEMES_MAX` busiest themes. Never a key, a
session, a token, or anything else that a client has chosen, but for the number of a theme.

Why not the library's own counters: each has a lock and a lookup of labels, a microsecond an
increment. Its collectors of numbers that are read when asked, and its text format, are used.
"""

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from api.health import Health
from api.history import History
from api.operators import Operators
from api.problems import STATUSES
from api.security.files import Watched
from api.waiting import Waiters
from api.websocket.meters import WebSocketMeters
from cluster.meters import (
    LATENCY_BUCKETS_S,
    Histogram,
    HistogramValues,
    NodeMeters,
    PeerMeters,
    Survey,
    ThemeMeters,
)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "ritornello_"
# Shown one by one; with more themes than these, the busiest. A theme has six lines.
THEMES_MAX = 100

LAG_PERIOD_S = 0.1
LAG_BUCKETS_S = (0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
REQUEST_BUCKETS_S = (*LATENCY_BUCKETS_S[2:], 30.0, 60.0)  # those beyond wait for sessions

_TURN_S = 0.002  # how long a scrape keeps the loop at a time, about
_NO_ROUTE = "none"
_OTHER = "other"
# Those of RFC 6455 (7.4.1), and the two registered later that this server has a use for.
_CLOSE_CODES = frozenset((*range(1000, 1016), 3000, 3008))


# Counting: each of these is on somebody's way, and does as little as it can.


class _Route:
    """The requests of one route."""

    __slots__ = ("buckets", "method", "path", "statuses", "total_s")

    def __init__(self, method: str, path: str) -> None:
        self.method = method
        self.path = path
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(REQUEST_BUCKETS_S) + 1)
        self.total_s = 0.0


class HttpMeter:
    """Counts requests over HTTP, by route."""

    def __init__(self, routes: Iterable[tuple[str, str]]) -> None:
        """`routes` are methods and paths, in the order by which `observe` is told of them."""
        # One more at the end, which is also the place of -1.
        self._routes = [_Route(*one) for one in (*routes, (_NO_ROUTE, _NO_ROUTE))]

    def observe(self, route: int, status: int, seconds: float) -> None:
        """Count a request that was answered; -1 is one without a route. Takes below 0.5 us."""
        one = self._routes[route]
        one.buckets[bisect_left(REQUEST_BUCKETS_S, seconds)] += 1
        one.total_s += seconds
        try:
            one.statuses[status] += 1
        except KeyError:
            one.statuses[status] = 1

    def requests(self) -> dict[tuple[str, ...], int]:
        """How many there were, by route, method and status."""
        return {
            (one.path, one.method, str(status)): count
            for one in self._routes
            for status, count in sorted(one.statuses.items())
        }

    def durations(self) -> dict[tuple[str, ...], HistogramValues]:
        """How long they took, by route and method; of routes that were asked for."""
        return {
            (one.path, one.method): HistogramValues(
                REQUEST_BUCKETS_S, tuple(one.buckets), one.total_s
            )
            for one in self._routes
            if one.statuses
        }


class RefusalMeter:
    """Counts what was refused or not done, as clients are told, by code."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys((*STATUSES, _OTHER), 0)

    def count(self, code: str) -> None:
        """Take note of one."""
        self.counts[code if code in self.counts else _OTHER] += 1


class LoopLag:
    """Measures how late the loop comes to what is due: one timer, again and again."""

    def __init__(self, period_s: float = LAG_PERIOD_S) -> None:
        self.late_s = Histogram(LAG_BUCKETS_S)
        self._period_s = period_s
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        if self._timer is None:
            self._arm(asyncio.get_running_loop())

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_s = perf_counter() + self._period_s  # finer than some loops' own clocks
        self._timer = loop.call_later(self._period_s, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self.late_s.observe(max(perf_counter() - self._due_s, 0.0))
        self._arm(loop)


# What there is to read


class Front(Protocol):
    """What a front end has that is counted."""

    @property
    def node_id(self) -> str: ...
    @property
    def health(self) -> Health: ...
    @property
    def operators(self) -> Operators: ...
    @property
    def waiters(self) -> Waiters: ...
    @property
    def history(self) -> History: ...
    @property
    def connections(self) -> Collection[object]:
        """WebSockets that are open."""

    @property
    def websockets(self) -> WebSocketMeters: ...


class Measured(Protocol):
    """A node that can be asked what it has counted."""

    def meters(self) -> NodeMeters: ...
    async def survey(self, *, busiest: int) -> Survey: ...


class Reading(NamedTuple):
    """Everything that is known at the moment of a scrape."""

    metrics: "Metrics"
    front: Front
    node: NodeMeters
    survey: Survey


class Kind(StrEnum):
    """How a number moves."""

    COUNTER = "counter"  # up, and from 0 when the node starts
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


Value = float | HistogramValues
Values = Value | Mapping[Any, Value]  # by the label's value, or by a tuple of several


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric. `read` answers its value, or with labels its values by theirs."""

    name: str
    kind: Kind
    help: str
    read: Callable[[Reading], Values]
    labels: tuple[str, ...] = ()

    def family(self, reading: Reading) -> Metric:
        """Its values now."""
        found = self.read(reading)
        values: Iterable[tuple[Any, Value]] = (
            found.items() if isinstance(found, Mapping) else (((), found),)
        )
        family: Any = _FAMILIES[self.kind](self.name, self.help, labels=self.labels)
        for labels, value in values:
            texts = [str(one) for one in (labels if isinstance(labels, tuple) else (labels,))]
            if isinstance(value, HistogramValues):
                family.add_metric(texts, list(_cumulative(value)), value.total)
            else:
                family.add_metric(texts, value)
        made: Metric = family
        return made


_FAMILIES: dict[Kind, Any] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


def _cumulative(values: HistogramValues) -> Iterator[tuple[str, int]]:
    """Buckets as Prometheus has them: how many were up to each bound."""
    count = 0
    for bound, more in zip((*values.bounds, None), values.buckets, strict=True):
        count += more
        yield ("+Inf" if bound is None else str(float(bound))), count


def _of(kind: Kind) -> Callable[..., Declared]:
    def declare(name: str, text: str, read: Callable[[Reading], Values], *labels: str) -> Declared:
        return Declared(PREFIX + name, kind, text, read, labels)

    return declare


_counter, _gauge, _histogram = map(_of, Kind)


def _of_peers(read: Callable[[PeerMeters], float | None]) -> Callable[[Reading], Values]:
    def values(r: Reading) -> dict[str, float]:
        found = {peer: read(one) for peer, one in r.node.peers.items()}
        return {peer: value for peer, value in found.items() if value is not None}

    return values


def _of_themes(read: Callable[[ThemeMeters], float]) -> Callable[[Reading], Values]:
    return lambda r: {one.theme: read(one) for one in r.survey.busiest}


def _of_files(read: Callable[[Watched[Any]], float]) -> Callable[[Reading], Values]:
    return lambda r: {name: read(one) for name, one in r.metrics.files.items()}


def _reloads(own: str, of_peers: str) -> Callable[[Reading], Values]:
    """Of files that both the front end and the transport between nodes know."""

    def values(r: Reading) -> dict[str, float]:
        found = {name: getattr(one, own) for name, one in r.metrics.files.items()}
        if of_peers in r.node.transport:
            found["peer_tls"] = r.node.transport[of_peers]
        return found

    return values


def _peer_lags(r: Reading) -> dict[str, float]:
    """A member that has more than is committed lacks nothing."""
    return {
        peer: max(r.node.committed_index - one.match_index, 0)
        for peer, one in r.node.peers.items()
        if one.match_index is not None
    }


def _requests(r: Reading) -> dict[str, float]:
    """By what they ask for; what makes no sense has no name."""
    found: Counter[str] = Counter()
    for kind, count in r.front.websockets.requests.items():
        config = getattr(kind, "__struct_config__", None)
        found[str(getattr(config, "tag", _OTHER))] += count
    return dict(found)


def _closings(r: Reading) -> dict[str, float]:
    """By code, which may be a client's own invention."""
    found: Counter[str] = Counter()
    for code, count in r.front.websockets.closed.items():
        found[str(code) if code in _CLOSE_CODES else _OTHER] += count
    return dict(found)


def _traffic(what: str) -> Callable[[Reading], Values]:
    def values(r: Reading) -> dict[str, float]:
        transport = r.node.transport
        return {way: transport[f"{what}_{way}"] for way in ("in", "out")} if transport else {}

    return values


# Counters of the transport that have a metric of their own.
_TOLD = frozenset(
    {"frames_in", "frames_out", "bytes_in", "bytes_out", "tls_reloads", "tls_reload_failures"}
)


def _transport_events(r: Reading) -> dict[str, float]:
    return {name: value for name, value in r.node.transport.items() if name not in _TOLD}


METRICS: tuple[Declared, ...] = (
    # The node
    _gauge(
        "info",
        "Always 1; its labels say which node of which version this is.",
        lambda r: {(r.front.node_id, r.metrics.version): 1},
        "node",
        "version",
    ),
    _gauge(
        "ready",
        "Whether requests had better be sent here, as /readyz says (0 or 1).",
        lambda r: not r.front.health.ready(),
    ),
    _gauge(
        "draining",
        "Whether the node is about to stop (0 or 1).",
        lambda r: r.front.health.is_draining,
    ),
    _histogram(
        "loop_lag_seconds",
        f"How late a timer of {LAG_PERIOD_S * 1000:.0f} ms was: what everything else waits, too.",
        lambda r: r.metrics.loop_lag.late_s.values(),
    ),
    _counter(
        "stalls_total",
        "Times that the node itself stood still, for more than its settings expect.",
        lambda r: r.node.stalls,
    ),
    # Consensus
    _gauge("is_leader", "Whether this node leads (0 or 1).", lambda r: r.node.is_leader),
    _gauge("has_leader", "Whether it knows a leader (0 or 1).", lambda r: r.node.has_leader),
    _gauge("term", "The Raft term.", lambda r: r.node.term),
    _counter(
        "leader_changes_total",
        "Leaders that this node came to know, one for each term that has one.",
        lambda r: r.node.leader_changes,
    ),
    _counter(
        "elections_total",
        "Elections that this node has begun.",
        lambda r: r.node.elections,
    ),
    _gauge(
        "committed_index",
        "The last entry that this node knows to be committed, and has on its disk.",
        lambda r: r.node.committed_index,
    ),
    _gauge("applied_index", "The last entry that is applied.", lambda r: r.node.applied_index),
    _gauge(
        "lag_entries",
        "Entries that the leader has committed and this node has not applied.",
        lambda r: r.node.heard_index - r.node.applied_index,
    ),
    _gauge("log_bytes", "The Raft log in memory.", lambda r: r.node.log_bytes),
    _gauge(
        "peer_connected",
        "Whether another member can be sent to (0 or 1).",
        _of_peers(lambda one: one.is_connected),
        "peer",
    ),
    _gauge(
        "peer_lag_entries",
        "Committed entries that another member's disk does not have; only a leader knows.",
        _peer_lags,
        "peer",
    ),
    _gauge(
        "peer_buffered_bytes",
        "Sent to another member, and not left yet.",
        _of_peers(lambda one: one.buffered_bytes),
        "peer",
    ),
    _counter(
        "transport_frames_total",
        "Messages between this node and the others, by direction (in, out).",
        _traffic("frames"),
        "direction",
    ),
    _counter(
        "transport_bytes_total",
        "Bytes between this node and the others, by direction (in, out).",
        _traffic("bytes"),
        "direction",
    ),
    _counter(
        "transport_events_total",
        "What else has happened to connections between nodes: dials, refusals and their reasons, "
        "losses, writes.",
        _transport_events,
        "event",
    ),
    # The double queue
    _gauge(
        "intake_operations",
        "Operations that wait for a batch.",
        lambda r: r.node.intake_operations,
    ),
    _gauge("intake_bytes", "What they take.", lambda r: r.node.intake_bytes),
    _gauge(
        "intake_oldest_seconds",
        "How long the first of them has waited; 0 if there is none.",
        lambda r: r.node.intake_oldest_s,
    ),
    _gauge(
        "unanswered_batches",
        "Batches that are on their way, or not applied here yet.",
        lambda r: r.node.unanswered_batches,
    ),
    _counter("batches_total", "Batches of this node.", lambda r: r.node.batches),
    _counter(
        "operations_total",
        "Operations in them, the node's own included.",
        lambda r: r.node.operations,
    ),
    _counter(
        "answered_operations_total",
        "Operations whose batch was applied, whatever came of them.",
        lambda r: r.node.answered,
    ),
    _counter(
        "failed_operations_total",
        "Operations that the node itself answered with a failure, by its code; some of them were "
        "never in a batch. What the state refuses is in ritornello_refusals_total.",
        lambda r: r.node.failed,
        "code",
    ),
    _counter(
        "reads_total",
        "Linearizable reads that were answered; many share one operation.",
        lambda r: r.node.reads,
    ),
    _counter("resent_batches_total", "Batches that were sent once more.", lambda r: r.node.resends),
    _histogram(
        "commit_seconds",
        "From the first sending of a batch of this node to its commit.",
        lambda r: r.node.commit_s,
    ),
    _histogram(
        "apply_seconds",
        "What one committed batch, anybody's, kept the loop busy with: to apply it, to answer.",
        lambda r: r.node.apply_s,
    ),
    _histogram(
        "batch_operations",
        "Operations in one batch of this node.",
        lambda r: r.node.batch_operations,
    ),
    _histogram("batch_bytes", "Bytes of one batch of this node.", lambda r: r.node.batch_bytes),
    # The disk
    _histogram("fsync_seconds", "How long an fsync of the journal took.", lambda r: r.node.fsync_s),
    _gauge(
        "journal_bytes",
        "What the journal takes on disk, with its spare segments.",
        lambda r: r.node.journal_bytes,
    ),
    _gauge(
        "journal_segments",
        "Files that hold the log, without the spare ones.",
        lambda r: r.node.journal_segments,
    ),
    _counter(
        "journal_written_bytes_total",
        "What was written to the journal, with what pads it.",
        lambda r: r.node.journal_written_bytes,
    ),
    _counter(
        "journal_writes_total",
        "Writes that the journal was given.",
        lambda r: r.node.journal_writes,
    ),
    _counter(
        "journal_frames_total",
        "Frames that they became, one fsync each.",
        lambda r: r.node.journal_frames,
    ),
    _gauge(
        "journal_waiting_writes",
        "Writes that are not durable yet.",
        lambda r: r.node.journal_waiting,
    ),
    _gauge(
        "journal_stalled_seconds",
        "How long the disk has answered nothing though something waits for it.",
        lambda r: r.node.journal_stalled_s,
    ),
    _gauge(
        "spare_segment_error",
        "Whether no spare segment could be made (0 or 1), as on a full disk: without one the node "
        "ends.",
        lambda r: r.node.has_spare_segment_error,
    ),
    _gauge(
        "checkpoint_index",
        "The entry up to which the checkpoint on disk has the state.",
        lambda r: r.node.checkpoint_index,
    ),
    _gauge(
        "checkpoint_age_seconds",
        "Since the last checkpoint, or the start; it grows while nothing changes.",
        lambda r: r.node.checkpoint_age_s,
    ),
    _histogram(
        "checkpoint_seconds",
        "How long it took to write a checkpoint behind the work.",
        lambda r: r.node.checkpoint_s,
    ),
    _counter(
        "snapshots_sent_total",
        "Whole states that were sent to members too far behind.",
        lambda r: r.node.snapshots_sent,
    ),
    _counter(
        "snapshots_installed_total",
        "Whole states that this node took from a leader.",
        lambda r: r.node.snapshots_installed,
    ),
    # The state
    _gauge(
        "state_bytes",
        "The state, as its limits count it.",
        lambda r: r.node.state_bytes,
    ),
    _gauge(
        "state_limit_bytes",
        "Above it New and Append are refused.",
        lambda r: r.node.state_limit_bytes,
    ),
    _gauge(
        "sessions",
        "All sessions, by phase (stored, ready, active, parked).",
        lambda r: {
            phase: getattr(r.survey, phase) for phase in ("stored", "ready", "active", "parked")
        },
        "phase",
    ),
    _gauge(
        "themes",
        "Themes that have sessions, or a policy of their own.",
        lambda r: r.survey.themes,
    ),
    _gauge(
        "oldest_due_seconds",
        "The longest that a session has been due, of all themes that are not paused.",
        lambda r: r.survey.oldest_due_s,
    ),
    _gauge(
        "theme_stored_sessions",
        "Sessions of a theme that are not due.",
        _of_themes(lambda one: one.stored),
        "theme",
    ),
    _gauge(
        "theme_ready_sessions",
        "Sessions of a theme that are due.",
        _of_themes(lambda one: one.ready),
        "theme",
    ),
    _gauge(
        "theme_active_sessions",
        "Sessions of a theme that are worked on.",
        _of_themes(lambda one: one.active),
        "theme",
    ),
    _gauge(
        "theme_parked_sessions",
        "Sessions of a theme that were set aside.",
        _of_themes(lambda one: one.parked),
        "theme",
    ),
    _gauge(
        "theme_paused",
        "Whether a theme is paused (0 or 1).",
        _of_themes(lambda one: one.paused),
        "theme",
    ),
    _gauge(
        "theme_oldest_due_seconds",
        "The longest that a session of a theme has been due.",
        _of_themes(lambda one: one.oldest_due_s),
        "theme",
    ),
    _counter(
        "reaped_sessions_total",
        "Sessions that this node stored for consumers that are gone, by cause: stale (their lease "
        "ended; the leader does that), disconnected (of the node's life before).",
        lambda r: r.node.reaped,
        "cause",
    ),
    # The front end
    _gauge("operators", "Sessions worked on through this node.", lambda r: len(r.front.operators)),
    _counter(
        "leases_lost_total",
        "Sessions that a consumer of this node lost and had not given up.",
        lambda r: r.front.operators.lost,
    ),
    _gauge(
        "releasing_consumers",
        "Consumers that are gone, and of which something is not stored yet.",
        lambda r: r.front.operators.releasing,
    ),
    _counter(
        "retries_total",
        "Endings of sessions that were tried again because nobody knew what came of them.",
        lambda r: r.front.operators.retried,
    ),
    _gauge("waiters", "Who waits for sessions to become due.", lambda r: len(r.front.waiters)),
    _counter(
        "waiter_acquires_total",
        "Times that the cluster was asked for sessions for those who wait.",
        lambda r: r.front.waiters.acquires,
    ),
    _counter(
        "waiter_empty_answers_total",
        "Those of them for which there was nothing.",
        lambda r: r.front.waiters.empty_answers,
    ),
    _gauge(
        "error_budget_failures",
        "Operations that failed one after the other for reasons of the node's own.",
        lambda r: r.front.operators.budget.failures,
    ),
    _gauge("events", "Events that are kept for streams.", lambda r: r.front.history.event_count),
    _counter(
        "event_resyncs_total",
        "Streams that were told that what they need is gone.",
        lambda r: r.front.history.resyncs,
    ),
    _gauge(
        "http_connections",
        "Open connections of clients, those of WebSockets included.",
        lambda r: r.metrics.connection_count(),
    ),
    _counter(
        "http_requests_total",
        "Requests by route, method and status. What waits or follows counts when it ends.",
        lambda r: r.metrics.http.requests(),
        "route",
        "method",
        "status",
    ),
    _histogram(
        "http_request_seconds",
        "How long they took, the waiting for sessions included.",
        lambda r: r.metrics.http.durations(),
        "route",
        "method",
    ),
    _counter(
        "refusals_total",
        "What clients were told was not done, over HTTP and WebSockets, by the problem's code.",
        lambda r: r.metrics.refusals.counts,
        "code",
    ),
    _gauge("websocket_connections", "Open WebSockets.", lambda r: r.front.websockets.open),
    _counter("websocket_opened_total", "WebSockets so far.", lambda r: r.front.websockets.opened),
    _counter(
        "websocket_requests_total",
        "Requests over WebSockets, by what they ask for; other makes no sense.",
        _requests,
        "op",
    ),
    _counter(
        "websocket_frames_total",
        "Frames of WebSockets, by direction (in, out).",
        lambda r: {"in": r.front.websockets.frames_in, "out": r.front.websockets.frames_out},
        "direction",
    ),
    _counter(
        "websocket_bytes_total",
        "What is in them, by direction (in, out).",
        lambda r: {"in": r.front.websockets.bytes_in, "out": r.front.websockets.bytes_out},
        "direction",
    ),
    _counter(
        "websocket_closed_total",
        "WebSockets that have ended, by the code of the end; other is one that has no meaning.",
        _closings,
        "code",
    ),
    _counter(
        "websocket_pushed_sessions_total",
        "Sessions that were pushed to consumers.",
        lambda r: r.front.websockets.pushed,
    ),
    # Files
    _counter(
        "file_reloads_total",
        "Times that changed files were put in use: tokens, tls, peer_tls.",
        _reloads("reloads", "tls_reloads"),
        "files",
    ),
    _counter(
        "file_reload_failures_total",
        "Times that changed files could not be used, and the old ones stayed.",
        _reloads("reload_failures", "tls_reload_failures"),
        "files",
    ),
    _gauge(
        "file_problem",
        "Whether the files as they are now are not in use (0 or 1): tokens, tls.",
        _of_files(lambda one: bool(one.problem)),
        "files",
    ),
)


class Metrics:
    """All numbers of one node."""

    def __init__(self, front: Front, node: Measured, *, is_open: bool) -> None:
        """`is_open` is for those who show no token."""
        self.is_open = is_open
        self.http = HttpMeter(())
        self.refusals = RefusalMeter()
        self.loop_lag = LoopLag()
        self.files: dict[str, Watched[Any]] = {}
        self.connection_count: Callable[[], int] = lambda: len(front.connections)
        self.version = _version()
        self._front = front
        self._node = node
        self._process = CollectorRegistry()  # the library's own, of the process
        for kind in (ProcessCollector, PlatformCollector, GCCollector):
            kind(registry=self._process)

    def count_routes(self, routes: Iterable[tuple[str, str]]) -> HttpMeter:
        """Count requests of these routes: methods and paths, in order."""
        self.http = HttpMeter(routes)
        return self.http

    async def scrape(self) -> bytes:
        """Everything, as text. Takes some ms, and lets the loop do other things between."""
        survey = await self._node.survey(busiest=THEMES_MAX)
        reading = Reading(self, self._front, self._node.meters(), survey)
        loop = asyncio.get_running_loop()
        text: list[bytes] = []
        begin_s = loop.time()
        for one in METRICS:
            text.append(generate_latest(_Families([one.family(reading)])))
            if loop.time() - begin_s >= _TURN_S:
                await asyncio.sleep(0)
                begin_s = loop.time()
        text.append(generate_latest(self._process))
        return b"".join(text)


class _Families(Collector):
    """What the library's text is made of, where it is known already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _version() -> str:
    try:
        return metadata.version("ritornello-server")
    except metadata.PackageNotFoundError:
        return "unknown"
