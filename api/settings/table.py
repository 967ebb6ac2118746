"""All settings of the server, in one table.

From it come the flags, the `RITORNELLO_` variables, what the file may say, docs/settings.md and the
schema for the chart. To add a setting: add a row here and a field of the same name to the class in
`build` that carries its group.

What `cluster` and `state` have a default or a range for is taken from there, and not said again.
Secrets are never values here, only files that hold them: a command line is seen by everybody on the
machine, and an environment by too many.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from cluster import Address, NodeSettings
from cluster.network.settings import CLUSTER_CHARS_MAX
from cluster.storage.segments import PAGE_BYTES
from state.limits import (
    DAY_MS,
    GIB,
    HOUR_MS,
    KIB,
    LIMIT_RANGES,
    MIB,
    MINUTE_MS,
    NODE_LIMIT_RANGES,
    PROPOSER_CHARS_MAX,
    SECOND_MS,
    Range,
)

VARIABLE_PREFIX = "RITORNELLO_"

Value = bool | int | str | Path | Address | Mapping[str, Address] | tuple[str, ...] | None


class Kind(StrEnum):
    """What a setting's value is, in the words of the documentation."""

    INTEGER = "number"
    BOOLEAN = "boolean"
    TEXT = "text"
    TEXTS = "list"
    CHOICE = "choice"
    PATH = "path"
    ADDRESS = "address"
    PEERS = "peers"


class Form(NamedTuple):
    """What a text has to look like: for a machine, and for who has to write it."""

    pattern: str
    says: str

    def fits(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row. `default` is None for what may be left out without anything in its place."""

    group: str
    name: str
    kind: Kind
    default: Value = field(hash=False)  # some have none
    help: str
    minimum: int | None = None
    maximum: int | None = None
    multiple_of: int = 1
    choices: tuple[str, ...] = ()
    form: Form | None = None  # of a text, or of each of a list
    is_file: bool = False  # a path to a file that has to be there, and readable
    holds_secret: bool = False  # what is in the file, never its path
    default_says: str = ""  # instead of "none"

    @property
    def full_name(self) -> str:
        """As the file and all messages know it: `http.bind`."""
        return f"{self.group}.{self.name}"

    @property
    def parameter(self) -> str:
        """As Python knows it: `http_bind`."""
        return f"{self.group}_{self.name}"

    @property
    def flag(self) -> str:
        """`--http-bind`."""
        return "--" + self.parameter.replace("_", "-")

    @property
    def variable(self) -> str:
        """`RITORNELLO_HTTP_BIND`."""
        return VARIABLE_PREFIX + self.parameter.upper()


# The groups, with what they are about.
GROUPS: Mapping[str, str] = {
    "node": "Who this node is, where it keeps its data, and where its peers are.",
    "journal": "The log on disk.",
    "checkpoint": "The state on disk, written behind the log.",
    "consensus": "Who leads. The same on all nodes, but for the time in which it is being changed.",
    "queue": "Operations that wait for a batch.",
    "reaper": "What a leader does about time: due sessions, and leases that ran out.",
    "http": "The front end, for HTTP and WebSocket alike.",
    "operation": "Logs, traces, and when a node gives up.",
}

# Where defaults come from that are not decided here.
_NODE = NodeSettings(Path("data"))
_CONSENSUS, _QUEUE = _NODE.replica.consensus, _NODE.replica.queue
_CHECKPOINT, _REPLICA = _NODE.replica.checkpoint, _NODE.replica

_ID = "ASCII letters, digits, '.', '-' and '_'"
_NODE_ID = Form(rf"[A-Za-z0-9._-]{{1,{PROPOSER_CHARS_MAX}}}", f"1 to {PROPOSER_CHARS_MAX} {_ID}")
_CLUSTER_ID = Form(rf"[A-Za-z0-9._-]{{1,{CLUSTER_CHARS_MAX}}}", f"1 to {CLUSTER_CHARS_MAX} {_ID}")
_ORIGIN = Form(
    r"\*|https?://[A-Za-z0-9._\[\]:-]+",
    "an origin such as https://console.example.org, without a path, or * for all",
)
# No user and password: addresses are shown and logged.
_URL = Form(
    r"https?://[A-Za-z0-9._\[\]:-]+(/[^\s@?#]*)?",
    "an address such as http://127.0.0.1:4318/v1/traces, without a user, query or fragment",
)


def _number(
    group: str, name: str, default: int, minimum: int, maximum: int, text: str, *, of: int = 1
) -> Setting:
    return Setting(
        group=group,
        name=name,
        kind=Kind.INTEGER,
        default=default,
        minimum=minimum,
        maximum=maximum,
        multiple_of=of,
        help=text,
    )


def _ranged(group: str, name: str, allowed: Range, text: str) -> Setting:
    return _number(group, name, allowed.default, allowed.minimum, allowed.maximum, text)


def _switch(group: str, name: str, text: str) -> Setting:
    return Setting(group=group, name=name, kind=Kind.BOOLEAN, default=False, help=text)


def _text(group: str, name: str, default: str, form: Form, text: str) -> Setting:
    return Setting(group=group, name=name, kind=Kind.TEXT, default=default, form=form, help=text)


def _choice(group: str, name: str, choices: tuple[str, ...], text: str) -> Setting:
    """A setting that is the first of the choices unless something else is said."""
    return Setting(
        group=group, name=name, kind=Kind.CHOICE, default=choices[0], choices=choices, help=text
    )


def _file(group: str, name: str, text: str, *, holds_secret: bool = False) -> Setting:
    return Setting(
        group=group,
        name=name,
        kind=Kind.PATH,
        default=None,
        is_file=True,
        holds_secret=holds_secret,
        help=text,
    )


TABLE: tuple[Setting, ...] = (
    _text("node", "id", _NODE.node_id, _NODE_ID, "The name of this node, its own in the cluster."),
    Setting(
        group="node",
        name="data_directory",
        kind=Kind.PATH,
        default=_NODE.data_directory,
        help="Where the node keeps everything. It is made if it is not there; no two nodes share "
        "one.",
    ),
    _text(
        "node",
        "cluster_id",
        _NODE.cluster_id,
        _CLUSTER_ID,
        "The name of the cluster. Nodes and disks of another one are refused.",
    ),
    Setting(
        group="node",
        name="peers",
        kind=Kind.PEERS,
        default={},
        default_says="none: a whole cluster of one node",
        help="All members by their ids, this node among them: the same on all nodes. Three or "
        "five; two are no safer than one.",
    ),
    Setting(
        group="node",
        name="bind",
        kind=Kind.ADDRESS,
        default=None,
        default_says="this node's address in node.peers",
        help="Where this node listens for its peers. Without peers it does not.",
    ),
    _file(
        "node",
        "cluster_secret_file",
        "A file with a secret that all nodes have: 16 random bytes or more. It proves who is a "
        "node, and hides nothing; beyond a network that you trust use TLS.",
        holds_secret=True,
    ),
    _file(
        "node",
        "tls_certificate_file",
        "A PEM file with this node's certificate for its peers, and the chain after it. It names "
        "the node's id or its host in node.peers, and serves both sides of a connection.",
    ),
    _file(
        "node",
        "tls_key_file",
        "A PEM file with the key of that certificate, without a passphrase.",
        holds_secret=True,
    ),
    _file(
        "node",
        "tls_authority_file",
        "A PEM file with the authority that has signed the certificates of all nodes.",
    ),
    _switch(
        "node",
        "insecure",
        "Whether peers may be beyond loopback without TLS and without a secret. Anybody who "
        "reaches the node can then join the cluster and change its data.",
    ),
    _number(
        "node",
        "timeout_ms",
        _NODE.timeout_ms,
        10,
        HOUR_MS,
        "How long an operation is tried if its caller does not say.",
    ),
    _number(
        "node",
        "stop_timeout_ms",
        _NODE.stop_timeout_ms,
        1,
        HOUR_MS,
        "How long stopping may take for handing over and a last checkpoint, and as long again for "
        "closing what is open. http.drain_ms comes before it: give a supervisor's patience "
        "drain_ms, twice this, and 10 seconds more for connections.",
    ),
    _number(
        "journal",
        "segment_bytes",
        _NODE.journal.segment_bytes,
        MIB,
        GIB,
        "Size of one of the journal's files. A few of them are kept ready for use.",
        of=PAGE_BYTES,
    ),
    _number(
        "checkpoint",
        "interval_ms",
        _CHECKPOINT.interval_ms,
        100,
        HOUR_MS,
        "Time between checkpoints, while anything changes. A longer one writes less, and has more "
        "to replay at a start.",
    ),
    _number(
        "checkpoint",
        "log_bytes",
        _CHECKPOINT.log_bytes,
        MIB,
        64 * GIB,
        "A log of this size asks for a checkpoint at once, and is not kept for members that are "
        "away. It is in memory too.",
    ),
    _number(
        "checkpoint",
        "log_bytes_max",
        _CHECKPOINT.log_bytes_max,
        MIB,
        64 * GIB,
        "A log beyond this size is cut without regard to followers; those that still need it get "
        "a snapshot.",
    ),
    _number(
        "consensus",
        "heartbeat_ms",
        _CONSENSUS.heartbeat_ms,
        10,
        MINUTE_MS,
        "How often a leader shows that it is there.",
    ),
    _number(
        "consensus",
        "election_timeout_min_ms",
        _CONSENSUS.election_timeout_min_ms,
        50,
        10 * MINUTE_MS,
        "How long a follower waits for its leader, at least, before it calls an election. Above "
        "the longest pause of a node and the slowest way between two.",
    ),
    _number(
        "consensus",
        "election_timeout_max_ms",
        _CONSENSUS.election_timeout_max_ms,
        50,
        10 * MINUTE_MS,
        "How long it waits at most. Each wait is random between the two, so that two followers "
        "seldom call elections at once.",
    ),
    _number(
        "consensus",
        "quorum_timeout_ms",
        _CONSENSUS.quorum_timeout_ms,
        50,
        10 * MINUTE_MS,
        "How long a leader that hears from no majority goes on believing in itself.",
    ),
    _number(
        "consensus",
        "disk_timeout_ms",
        _CONSENSUS.disk_timeout_ms,
        100,
        10 * MINUTE_MS,
        "How long a leader waits for its own disk before it lets another node lead. Far above what "
        "a busy disk takes.",
    ),
    _ranged(
        "queue",
        "intake_operations",
        NODE_LIMIT_RANGES["intake_operations"],
        "How many operations may wait for a batch. Beyond it callers are told to come back later, "
        "but for what ends a session.",
    ),
    _ranged(
        "queue",
        "intake_bytes",
        NODE_LIMIT_RANGES["intake_bytes"],
        "How many bytes of operations may wait for a batch.",
    ),
    _number(
        "queue",
        "resend_after_ms",
        _QUEUE.resend_after_ms,
        100,
        HOUR_MS,
        "When a batch without an answer is sent again; above the time that an election takes.",
    ),
    _number(
        "reaper",
        "pulse_ms",
        _REPLICA.pulse_ms,
        10,
        SECOND_MS,
        "How often due times, leases and deadlines are looked at.",
    ),
    _number(
        "reaper",
        "lease_grace_ms",
        _REPLICA.lease_grace_ms,
        0,
        HOUR_MS,
        "How much longer leases live, at least, after a new leader or a pause of the old one: it "
        "was the cluster that did not look, and not the consumers that were away.",
    ),
    _number(
        "reaper",
        "lease_grace_max_ms",
        _REPLICA.lease_grace_max_ms,
        0,
        DAY_MS,
        "How much longer they live at most, however long the pause was.",
    ),
    Setting(
        group="http",
        name="bind",
        kind=Kind.ADDRESS,
        default=Address("127.0.0.1", 7601),
        help="Where the front end listens. Port 0 takes one that is free, and the log says which.",
    ),
    _file(
        "http",
        "tls_certificate_file",
        "A PEM file with the front end's certificate, and the chain after it. A changed file is "
        "taken up without a restart.",
    ),
    _file(
        "http",
        "tls_key_file",
        "A PEM file with the key of that certificate, without a passphrase.",
        holds_secret=True,
    ),
    _file(
        "http",
        "tokens_file",
        "A TOML file with the hashes of the tokens that clients show, and what each may do. "
        "Without it anybody may do anything.",
        holds_secret=True,
    ),
    _switch(
        "http",
        "insecure",
        "Whether the front end may listen beyond loopback without tokens, or without TLS. Without "
        "TLS, tokens and data can be read on their way: right only if a proxy adds it.",
    ),
    _switch(
        "http",
        "metrics_open",
        "Whether /metrics is for everybody beyond loopback, too. Else it takes a token with the "
        "scope read, for all themes.",
    ),
    Setting(
        group="http",
        name="cors_origins",
        kind=Kind.TEXTS,
        default=(),
        form=_ORIGIN,
        help="Web sites whose scripts may use the interface. None, unless they are listed here.",
    ),
    _ranged(
        "http",
        "connections",
        NODE_LIMIT_RANGES["connections"],
        "How many connections there may be; each costs buffers and a descriptor.",
    ),
    _number(
        "http",
        "connections_per_host",
        0,
        0,
        NODE_LIMIT_RANGES["connections"].maximum,
        "How many of them one host may have; 0: as many as there are. Behind a proxy all come "
        "from one host.",
    ),
    _number(
        "http",
        "request_bytes",
        20 * MIB,
        2 * LIMIT_RANGES["chunk_bytes"].default,
        GIB,
        "The largest body of a request. It has to hold the largest chunk, which Base64 makes a "
        "third longer.",
    ),
    _number("http", "header_bytes", 8190, KIB, 64 * KIB, "The longest line of a request's header."),
    _number(
        "http",
        "request_timeout_ms",
        30 * SECOND_MS,
        100,
        HOUR_MS,
        "How long a request may take to arrive and to be answered. The waiting of a long poll "
        "does not count.",
    ),
    _number(
        "http",
        "idle_timeout_ms",
        75 * SECOND_MS,
        100,
        DAY_MS,
        "How long a connection may be kept between two requests. Above that of a proxy in front.",
    ),
    _number(
        "http",
        "requests_per_second",
        0,
        0,
        1_000_000,
        "How many requests a second one token may make, or one address where there are no tokens; "
        "0: any number.",
    ),
    _ranged(
        "http",
        "websocket_frame_bytes",
        NODE_LIMIT_RANGES["websocket_frame_bytes"],
        "The largest frame of a WebSocket connection; it is read in one piece.",
    ),
    _number(
        "http",
        "websocket_requests_in_flight",
        4096,
        1,
        65_536,
        "How many requests of one connection may be without an answer. At the bound the server "
        "reads no more of it until some are answered.",
    ),
    _number(
        "http",
        "websocket_send_buffer_bytes",
        8 * MIB,
        64 * KIB,
        GIB,
        "How much of sessions may wait for a consumer to read them. While it is more, no more of "
        "its requests are read.",
    ),
    _number(
        "http",
        "ping_ms",
        15 * SECOND_MS,
        100,
        HOUR_MS,
        "How often a WebSocket connection is pinged, and an event stream gets a comment. Below "
        "what proxies take for silence.",
    ),
    _number(
        "http",
        "drain_ms",
        5 * SECOND_MS,
        0,
        HOUR_MS,
        "How long consumers have to leave by themselves when the server is stopped, and how long "
        "requests are served while some still come.",
    ),
    _number(
        "http",
        "long_poll_max_ms",
        55 * SECOND_MS,
        0,
        HOUR_MS,
        "The longest that a request may wait for a session to become due. Proxies often end at 60 "
        "seconds what is silent.",
    ),
    Setting(
        group="operation",
        name="log_level",
        kind=Kind.CHOICE,
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="The least important lines that are logged.",
    ),
    _choice(
        "operation",
        "log_format",
        ("auto", "console", "json"),
        "How: lines for people, or one JSON object a line; auto is the first on a terminal and "
        "the second elsewhere.",
    ),
    _number(
        "operation",
        "ready_lag_entries",
        1000,
        0,
        100_000_000,
        "How many committed entries may not be applied yet while /readyz calls the node ready.",
    ),
    _number(
        "operation",
        "error_budget_ms",
        5 * MINUTE_MS,
        SECOND_MS,
        DAY_MS,
        "How long errors of the node itself may keep coming, without a success in between, before "
        "it leaves in order for its supervisor to replace it.",
    ),
    _number(
        "operation",
        "error_budget_failures",
        100,
        1,
        1_000_000_000,
        "How many such errors there have to be as well: a few of an idle node are no reason.",
    ),
    _number(
        "operation",
        "events_history",
        100_000,
        0,
        2_000_000,
        "How many past events are kept for event streams that resume. One that asks for older ones "
        "is told to look at everything anew.",
    ),
    _choice(
        "operation",
        "tracing",
        ("off", "otlp"),
        "Whether traces are sent, by OTLP over HTTP. That takes the extra `otel` of the package.",
    ),
    _text(
        "operation",
        "tracing_endpoint",
        "http://127.0.0.1:4318/v1/traces",
        _URL,
        "Where traces are sent to.",
    ),
)

SETTINGS: Mapping[str, Setting] = {one.full_name: one for one in TABLE}
