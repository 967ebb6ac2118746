"""Every bound and default of the client. What a caller may choose is in `Options`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ritornello.models import Trace

TIMEOUT_S = 30.0  # of a call, with all that is tried again in it
WAIT_MAX_S = 50.0  # of one long poll; longer waits are several. The server allows 55 s
WAIT_SLACK_S = 15.0  # an answer may come so much later than the wait ends

CONNECT_S = 5.0  # to a node, until it has said hello
CLOSE_S = 5.0  # for what is asked to be answered when the client is closed
SILENCE_S = 8.0  # after which a connection is given up; it is asked for a sign of life before
HEARTBEAT_MIN_S = 0.1
HEARTBEATS_PER_LEASE = 5
HEARTBEAT_IDLE_S = 10.0  # while nothing is held
UNHEARD_PER_LEASE = 0.5  # a node that renews no lease for so much of it is left for another

FOLLOW_S = 15.0  # between two looks at who leads, if it is the leader that is preferred
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 5.0
STEADY_S = 1.0  # a connection that ends sooner counts as a failure to connect
FORSAKEN_S = 5.0  # of a connection, for what is held to be resumed before it may have to end

REQUESTS_MAX = 65_536  # that a client has without an answer, the waiting ones included
FRAME_BYTES = 4 << 20  # until the server has said what it takes
FRAME_REQUESTS = 1024  # a frame of more saves nothing, and its answers come later
IN_FLIGHT = 1024  # until the server has said how many it takes
IN_FLIGHT_SPARE = 16  # of that, kept for signs of life
RESUME_MAX = 1024  # sessions in one request
MISMATCHES_MAX = 3  # times that a session is found at another revision than it was left

# How long the cluster knows a request again that may be sent twice: as long as it may be sent, and
# so much longer, as what a node has taken in may be done ten seconds later.
REMEMBER_SLACK_S = 20.0
LATE_S = 10.0  # what a node has taken in is done so much later at most
CLAIM_S = 30.0  # what was lost on its way makes no session anybody's after that
REMEMBER_S = 86_400.0  # if a request does not say how long, as the cluster has it
REMEMBER_MAX_S = 7 * 86_400.0  # as the cluster has it

REASON_CHARS = 256
COUNT_MAX = 16_384

Preference = Literal["any", "leader", "nearest"]  # which node a client goes to


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a client behaves. All times are in seconds."""

    timeout_s: float = TIMEOUT_S  # of a call, unless it says otherwise
    connect_s: float = CONNECT_S
    close_s: float = CLOSE_S
    prefer: Preference = "any"  # which node to be connected to
    follow_s: float = FOLLOW_S  # between two looks at who leads, if that one is preferred
    retries: bool = True  # False: whatever fails is raised at once
    backoff_min_s: float = BACKOFF_MIN_S
    backoff_max_s: float = BACKOFF_MAX_S
    silence_s: float = SILENCE_S
    trace: Callable[[], Trace | None] | None = None  # asked for each `new` that says none

    def __post_init__(self) -> None:
        for name in ("timeout_s", "connect_s", "close_s", "follow_s", "backoff_min_s", "silence_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is more than 0")
        if self.backoff_max_s < self.backoff_min_s:
            raise ValueError("backoff_max_s is less than backoff_min_s")
        if self.prefer not in {"any", "leader", "nearest"}:
            raise ValueError(f"prefer is {self.prefer!r}; it is any, leader or nearest")
