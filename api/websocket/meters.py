"""What the WebSockets of a node have done since its start: plain numbers, read by the metrics."""

from dataclasses import dataclass, field

from api import requests as ask
from api.websocket.frames import Unfit

REQUESTS: tuple[type, ...] = (
    ask.New,
    ask.Append,
    ask.Replace,
    ask.Remove,
    ask.Store,
    ask.Touch,
    ask.Park,
    ask.Unpark,
    ask.Take,
    ask.Acquire,
    ask.Txn,
    ask.Get,
    ask.Resume,
    ask.Credit,
    ask.Heartbeat,
    Unfit,
)


@dataclass(slots=True)
class WebSocketMeters:
    """Counted by all connections of a node."""

    requests: dict[type, int] = field(default_factory=lambda: dict.fromkeys(REQUESTS, 0))
    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0  # of payloads; in JSON characters, which are as many unless they are no ASCII
    bytes_out: int = 0
    pushed: int = 0  # sessions
    opened: int = 0  # connections
    closed: dict[int, int] = field(default_factory=dict)  # connections, by the code of their end

    @property
    def open(self) -> int:
        """Connections that have not ended."""
        return self.opened - sum(self.closed.values())
