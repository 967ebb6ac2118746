"""Copies of the whole state for whoever asks: `state.db`, as followers get it and backups are made.

A copy has no name on the disk, and goes when it is left or with the process. It takes as much room
as the checkpoint itself, and the thread of the checkpoint makes it; so a node makes one at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from cluster.checkpoints import Copy, Store
from cluster.failures import ClusterError
from cluster.replica import Replica
from cluster.storage.errors import StorageError

_POLL_S = 0.01


class CopyInUseError(ClusterError):
    """Another copy is being made or read."""


class CopyLateError(ClusterError):
    """No checkpoint that is new enough was written in time."""


class StateCopy:
    """The bytes of an SQLite file: the state as it was at `applied_index`."""

    def __init__(self, copy: Copy, piece_bytes: int) -> None:
        self.applied_index = copy.index
        self.applied_term = copy.term
        self.size_bytes = copy.size_bytes
        self._copy = copy
        self._piece_bytes = piece_bytes

    async def read(self, offset: int) -> bytes:
        """A piece of it, from there on; nothing at the end. Raises `StorageError`."""
        size_bytes = min(self._piece_bytes, self.size_bytes - offset)
        if size_bytes <= 0:
            return b""
        piece: bytes = await _answer_of(partial(self._copy.read, offset, size_bytes))
        return piece


@asynccontextmanager
async def copied(
    replica: Replica, store: Store, *, timeout_s: float, piece_bytes: int
) -> AsyncIterator[StateCopy]:
    """A copy of the state that has all that is applied now, for as long as it is entered.

    Raises `CopyLateError` if `timeout_s` is not enough for a checkpoint, `StorageError`, and
    `ClusterError` if the node stops.
    """
    await _write_checkpoint(replica, timeout_s)
    copy: Copy = await _answer_of(store.copy, _release)
    try:
        yield StateCopy(copy, piece_bytes)
    finally:
        copy.release()


async def _write_checkpoint(replica: Replica, timeout_s: float) -> None:
    """Wait until what is applied now is in the checkpoint."""
    index = replica.machine.applied_index
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while replica.checkpoints.index < index:
        if replica.is_stopped:
            raise ClusterError("the node stops")
        if asyncio.get_running_loop().time() >= deadline_s:
            raise CopyLateError(f"the checkpoint was not written within {timeout_s:.0f} s")
        replica.checkpoints.begin()  # which does nothing while one is being written
        await asyncio.sleep(_POLL_S)


async def _answer_of(
    ask: Callable[[Callable[[Any], None]], None], discard: Callable[[Any], None] | None = None
) -> Any:  # noqa: ANN401 - what the store answers
    """What is answered. Raises it if it is an error; discards it if nobody waits any more."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answered(answer: Any) -> None:  # noqa: ANN401
        if not future.done():
            future.set_result(answer)
        elif discard is not None and not isinstance(answer, StorageError):
            discard(answer)

    ask(answered)
    try:
        answer = await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled():
            answered(future.result())  # it came in the same moment
        raise
    if isinstance(answer, StorageError):
        raise answer
    return answer


def _release(copy: Copy) -> None:
    copy.release()
