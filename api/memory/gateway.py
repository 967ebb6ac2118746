"""The gateway to a node in memory. What is read from the state is read as from any node's."""

from typing import Any

from api.gateway import Gateway
from api.memory.node import TIMEOUT_MS, MemoryNode
from cluster.queues import Callback


class MemoryGateway(Gateway):
    """A node in memory, as the front end sees it."""

    def __init__(self) -> None:
        self.watchers = []
        self.memory = MemoryNode(self)
        self._node: Any = self.memory  # has what the gateway asks a node itself for
        self.submit = self.memory.submit_encoded

    def read(self, callback: Callback, *, timeout_ms: int | None = None) -> None:
        timeout_s = (TIMEOUT_MS if timeout_ms is None else timeout_ms) / 1000
        self.memory.queue.read(callback, timeout_s)

    @property
    def timeout_ms(self) -> int:
        return TIMEOUT_MS

    @property
    def journal_waits_s(self) -> float:
        return 0.0

    @property
    def is_ready(self) -> bool:
        return True

    @property
    def reaches_majority(self) -> bool:
        return True

    @property
    def lag(self) -> int:
        return 0

    @property
    def waiting(self) -> int:
        return self.memory.queue.depth
