"""Every bound of the system, in one place: its default, its range, and the reason.

Two homes, because a bound is decided in one of two places:

* `Limits` is part of the replicated state. Whether an operation passes one of these decides what
  `apply` answers, so all nodes must hold the same values: they travel in `SetLimits` operations
  and in every checkpoint, never in a node's own settings file.
* `NodeLimits` guards one node's memory and sockets. Each node may have its own.

Passing a bound is a `LimitExceeded` that carries the field's name, the value and the bound.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any, NamedTuple

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
YEAR_MS = 365 * DAY_MS

# Widths that are part of the formats and of the ids, so never settings.
THEME_MAX = 2**32 - 1
PRIORITY_MAX = 2**16 - 1
PRIORITY_DEFAULT = 128  # an int that Python has once: others cost 32 bytes a session
SEQUENCE_MAX = 2**63 - 1
TIME_MAX_MS = 2**48 - 1  # the year 10889; leaves room below 64 bits for sums
GROUP_SHIFT = 48
COUNTER_MAX = 2**GROUP_SHIFT - 1
PROPOSER_CHARS_MAX = 64
TRACE_BYTES_MAX = 568  # W3C Trace Context, 3.2 and 3.3: 55 + 512, and one between them

# What the accounting adds to the bytes of data, keys, traces and reasons. Constants and not
# measurements, because nodes of different Python versions must count alike.
SESSION_OVERHEAD_BYTES = 700
CHUNK_OVERHEAD_BYTES = 64
HISTORY_OVERHEAD_BYTES = 200
RECEIPT_OVERHEAD_BYTES = 500  # for each result that it holds


class Range(NamedTuple):
    """What a setting may be, and why it is what it is."""

    default: int
    minimum: int
    maximum: int
    reason: str


def bounded(default: int, minimum: int, maximum: int, reason: str) -> Any:  # noqa: ANN401 - a dataclass field stands for its value
    """A dataclass field that knows its range."""
    return field(
        default=default,
        metadata={"range": Range(default, minimum, maximum, " ".join(reason.split()))},
    )


def ranges(owner: type) -> dict[str, Range]:
    """The ranges of all fields of a class that were made by `bounded`, by name."""

    def range_of(one: Field[Any]) -> Range:
        found: Range = one.metadata["range"]
        return found

    return {one.name: range_of(one) for one in fields(owner)}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the replicated state: the same on all nodes at the same place in the log."""

    batch_bytes: int = bounded(
        4 * MIB,
        64 * KIB,
        64 * MIB,
        "One batch is one Raft entry: it is held in memory several times over.",
    )
    batch_operations: int = bounded(
        4096, 1, 65_536, "Bounds the time of one apply, during which a node answers nobody."
    )
    batch_acquired: int = bounded(
        16_384,
        1,
        1_048_576,
        """Sessions handed out, or released, by one batch; bounds its time, and its results, which
        are kept.""",
    )
    txn_operations: int = bounded(128, 1, 4096, "A transaction keeps what it may have to undo.")
    chunk_bytes: int = bounded(MIB, 1, 16 * MIB, "A chunk is written and sent in one piece.")
    session_bytes: int = bounded(
        16 * MIB,
        1,
        GIB,
        """A session is read in one answer. Several that one Acquire hands out have no more data
        together, for the same reason.""",
    )
    session_chunks: int = bounded(10_000, 1, 1_000_000, "Each chunk costs a row and an object.")
    key_bytes: int = bounded(256, 1, 4096, "Keys live in an index in memory.")
    consumer_bytes: int = bounded(
        160,
        1,
        256,
        """A node's id (64) and its incarnation (13 digits) stand before the name that a front end
        gives, which may have 64 bytes and more.""",
    )
    reason_chars: int = bounded(256, 0, 4096, "Reasons are kept in the history of each session.")
    history_entries: int = bounded(
        32, 1, 1024, "Causes kept of a session; a theme's max_attempts may ask for more."
    )
    repeat_after_ms: int = bounded(
        10 * YEAR_MS, 1, 100 * YEAR_MS, "Beyond this a repeat is more likely a mistake in a unit."
    )
    themes: int = bounded(65_536, 1, 1_048_576, "Each theme has a policy, an index and counters.")
    consumers: int = bounded(
        262_144, 1, 16_777_216, "Each consumer that holds a session is a record."
    )
    acquire_count: int = bounded(
        1024, 1, 16_384, "Sessions that one Acquire may hand out, or one Release store."
    )
    acquire_themes: int = bounded(256, 1, 4096, "Themes that one Acquire looks at.")
    proposers: int = bounded(
        1024, 3, 65_536, "Nodes that have ever proposed; a forgotten one keeps its place."
    )
    window_batches: int = bounded(
        32, 1, 1024, "How late a repeated batch may come; well above the batches in flight."
    )
    window_results: int = bounded(
        131_072, 1, 1_048_576, "Results kept of a proposer; its highest sequence always is."
    )
    receipts: int = bounded(1_000_000, 0, 100_000_000, "Idempotency keys remembered at a time.")
    receipt_bytes: int = bounded(
        256, 1, 4096, "Length of an idempotency key, which lives in an index in memory."
    )
    receipt_expires_after_ms: int = bounded(
        7 * DAY_MS, 1, YEAR_MS, "How long an idempotency key may ask to be remembered."
    )
    tick_page: int = bounded(
        4096,
        1,
        65_536,
        "Sessions that a Tick wakes, leases it looks at, receipts it drops; the rest waits.",
    )
    state_bytes: int = bounded(
        4 * GIB,
        MIB,
        1024 * GIB,
        """Data, keys, histories, receipts, overheads. New and Append are refused above it, what
        ends a session never is.""",
    )


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """Bounds of one node, outside the replicated state; enforced by `cluster` and `api`."""

    intake_operations: int = bounded(65_536, 1, 16_777_216, "Operations that wait for a batch.")
    intake_bytes: int = bounded(
        64 * MIB, MIB, 16 * GIB, "Encoded operations that wait for a batch."
    )
    connections: int = bounded(
        10_000, 1, 1_000_000, "Each connection costs buffers and a descriptor."
    )
    websocket_frame_bytes: int = bounded(
        4 * MIB, 64 * KIB, 64 * MIB, "A frame is read in one piece."
    )


LIMITS = Limits()
LIMIT_RANGES = ranges(Limits)
NODE_LIMIT_RANGES = ranges(NodeLimits)
