"""What consensus needs of its surroundings. An asyncio loop is one; a simulation is another."""

from collections.abc import Callable
from typing import Any, Protocol

from cluster.storage.errors import StorageError
from cluster.storage.records import Record


class Timer(Protocol):
    """A call that was arranged for later."""

    def cancel(self) -> None: ...


class Host(Protocol):
    """Time, and calls at another time; the names are those of asyncio's event loop."""

    def time(self) -> float:
        """Seconds on a clock that never goes back."""

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object: ...  # noqa: ANN401

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer: ...  # noqa: ANN401


class Network(Protocol):
    """The way to the other members."""

    def send(self, peer: str, payload: bytes) -> bool:
        """Send, or say that it did not go out. Never blocks."""

    def is_connected(self, peer: str) -> bool:
        """Whether sending may work."""


# Writes records in order and says when they are durable, or that the disk failed.
Write = Callable[[list[Record], Callable[[StorageError | None], None]], None]
