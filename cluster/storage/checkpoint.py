"""Gives the checkpoint a thread, so that the event loop never waits for its disk.

What is asked for is done in that order, one thing at a time, and answered on the loop. Only a copy
that is asked for in the middle of a checkpoint waits for its end. How much is asked for at a time
is up to the caller, who hands over the next piece when the last was answered.

Long work hardly holds up the loop: SQLite runs without the interpreter's lock, and Python lets the
loop in between any two instructions, after `sys.getswitchinterval()` at the latest. What it would
not interrupt is a garbage collection, so there is none while a state is loaded.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from cluster.storage.errors import (
    ClosedError,
    DamagedError,
    DiskError,
    StorageError,
    TooLargeError,
)
from cluster.storage.state_file import StateFile, Summary, file_digest, receive
from state import Item, StateMachine

_log = logging.getLogger(__name__)

_COPY = ".copy-"
_ARRIVAL = ".arrival-"

Done = Callable[[StorageError | None], None]


class _Job(NamedTuple):
    work: Callable[[], Any]
    then: Callable[[Any], None]
    is_copy: bool = False


class CheckpointThread:
    """A `StateFile` and the thread that it belongs to from now on.

    `then` is called on the loop, once, with the result or a `StorageError`; one that is neither the
    disk's nor the file's fault has as its cause what was raised.
    """

    def __init__(self, file: StateFile, loop: asyncio.AbstractEventLoop) -> None:
        self.path = file.path
        self._file = file
        self._loop = loop
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._postponed: deque[_Job] = deque()  # copies, until the transaction has ended
        self._copies: set[CheckpointCopy] = set()  # not released yet; the thread's
        self._number = 0  # of the last copy or arrival
        self._is_closing = False  # set on the loop, read by the thread
        self._is_closed = False  # by the thread
        # A daemon: a process that ends without `close` leaves what a kill would.
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def begin(self, then: Done) -> None:
        """Do `StateFile.begin`."""
        self._ask(self._file.begin, then)

    def put(self, items: Sequence[Item], then: Done) -> None:
        """Do `StateFile.put`."""
        self._ask(lambda: self._file.put(items), then)

    def commit(self, index: int, term: int, then: Done) -> None:
        """Do `StateFile.commit`."""
        self._ask(lambda: self._file.commit(index, term), then)

    def rollback(self, then: Done) -> None:
        """Do `StateFile.rollback`."""
        self._ask(self._file.rollback, then)

    def copy(self, then: Callable[["CheckpointCopy | StorageError"], None]) -> None:
        """Make a copy of the checkpoint to be sent away."""
        self._number += 1
        path = f"{self.path}{_COPY}{self._number}"
        self._ask(lambda: self._copy(path), then, is_copy=True)

    def copy_to(self, path: str, then: Done) -> None:
        """Make a copy of the checkpoint that stays: a backup."""
        self._ask(lambda: self._file.copy(path), then, is_copy=True)

    def receive_verify(
        self, path: str, then: Callable[[tuple[StateMachine, Summary] | StorageError], None]
    ) -> None:
        """Load a copy that came from elsewhere, and so check all of it."""
        self._ask(lambda: receive(path, self._file.cluster_id, self._go_on), then)

    def install(self, path: str, then: Done) -> None:
        """Put a verified copy in the place of the checkpoint; ends a transaction."""
        self._ask(lambda: self._file.replace(path), then)

    def arrive(self, size_bytes: int) -> "CheckpointArrival":
        """Take a copy that comes in pieces."""
        self._number += 1
        return CheckpointArrival(self, f"{self.path}{_ARRIVAL}{self._number}", size_bytes)

    def close(self, then: Done) -> None:
        """End the thread when what was asked for before is done. Loading is cut short."""
        self._is_closing = True
        self._ask(self._close, then)

    def ask(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Let the thread do something, in its turn."""
        self._ask(work, then)

    def _ask(
        self, work: Callable[[], Any], then: Callable[[Any], None], *, is_copy: bool = False
    ) -> None:
        if self._is_closed:
            self._loop.call_soon(then, ClosedError(self.path))
        else:
            self._jobs.put(_Job(work, then, is_copy))

    # On the thread

    def _run(self) -> None:
        self._sweep()
        while not self._is_closed:
            job = self._jobs.get()
            if job.is_copy and self._file.is_writing:
                self._postponed.append(job)
            else:
                self._do(job)
            while self._postponed and not self._file.is_writing:
                self._do(self._postponed.popleft())
        while not self._jobs.empty():
            self._answer(self._jobs.get().then, ClosedError(self.path))

    def _copy(self, path: str) -> "CheckpointCopy":
        copy = CheckpointCopy(self, self._file, path)
        self._copies.add(copy)
        return copy

    def forget(self, copy: "CheckpointCopy") -> None:
        """For a copy, on the thread: it is closed."""
        self._copies.discard(copy)

    def _do(self, job: _Job) -> None:
        try:
            answer = job.work()
        except StorageError as error:
            answer = error
        except Exception as error:  # noqa: BLE001 - see below
            # A defect, or no memory. Whoever asked must hear of it: a checkpoint that is neither
            # written nor failed would keep the log from being cut for ever.
            _log.exception("the checkpoint at %s was given something that it cannot do", self.path)
            answer = StorageError(f"{self.path}: {error!r}")
            answer.__cause__ = error
        self._answer(job.then, answer)

    def _answer(self, then: Callable[[Any], None], answer: object) -> None:
        try:
            self._loop.call_soon_threadsafe(then, answer)
        except RuntimeError:  # the loop is closed
            _log.warning(
                "nobody was there to hear from the checkpoint at %s: %r", self.path, answer
            )

    def _close(self) -> None:
        self._is_closed = True
        try:
            self._file.close()
        finally:
            for job in self._postponed:
                self._answer(job.then, ClosedError(self.path))
            self._postponed.clear()
            # Who has one would come too late to release it, or will never hear that there is one.
            for copy in list(self._copies):
                copy.close()

    def _go_on(self) -> None:
        if self._is_closing:
            raise ClosedError(self.path)

    def _sweep(self) -> None:
        """Remove what a killed process had copied or received."""
        name = Path(self.path).name
        try:
            for other in Path(self.path).parent.iterdir():
                if other.name.startswith((name + _COPY, name + _ARRIVAL)):
                    other.unlink()
        except OSError as error:
            _log.warning("what is left of copies beside %s stays there: %s", self.path, error)


class CheckpointCopy:
    """A copy of the checkpoint, without a name, so that it goes with the process."""

    def __init__(self, thread: CheckpointThread, file: StateFile, path: str) -> None:
        self._thread = thread
        self._path = path
        self._descriptor = -1
        self.index = file.applied_index
        self.term = file.applied_term
        file.copy(path)
        try:
            self.digest = file_digest(path)
            self._descriptor = os.open(path, os.O_RDONLY)
            self.size_bytes = os.fstat(self._descriptor).st_size
            Path(path).unlink()
        except BaseException as error:
            # It is as large as the checkpoint itself, and nobody would have it.
            self.close()
            with contextlib.suppress(OSError):  # the first error is the one that matters
                Path(path).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise DiskError.of(path, "read", error) from error
            raise

    def read(self, offset: int, size: int, then: Callable[[bytes | StorageError], None]) -> None:
        """A piece of its bytes."""
        self._thread.ask(lambda: self._read(offset, size), then)

    def release(self) -> None:
        """It is needed no more."""
        self._thread.ask(self.close, _unheard)

    def close(self) -> None:
        """For the thread: let it go. Closing twice does nothing."""
        self._thread.forget(self)
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _read(self, offset: int, size: int) -> bytes:
        if self._descriptor < 0:
            raise ClosedError(self._path)
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise DiskError.of(self._path, "read", error) from error
        if len(data) != size:
            raise DamagedError(self._path, f"{size} bytes are expected, not {len(data)}", offset)
        return data


class CheckpointArrival:
    """A copy that arrives from elsewhere, in pieces of any order."""

    def __init__(self, thread: CheckpointThread, path: str, size_bytes: int) -> None:
        self._thread = thread
        self._path = path
        self._size_bytes = size_bytes
        self._descriptor = -1
        self._is_over = False

    def write(self, offset: int, data: bytes, then: Done) -> None:
        """Keep a piece of it."""
        self._thread.ask(lambda: self._write(offset, data), then)

    def verify(
        self, digest: bytes, then: Callable[[tuple[StateMachine, int, int] | StorageError], None]
    ) -> None:
        """Answer the state in it with its index and term, if it is whole and undamaged."""

        def loaded(found: tuple[StateMachine, Summary] | StorageError) -> None:
            if isinstance(found, StorageError):
                then(found)
            else:
                machine, summary = found
                then((machine, summary.applied_index, summary.applied_term))

        def checked(error: StorageError | None) -> None:
            if error is not None:
                then(error)
            else:
                self._thread.receive_verify(self._path, loaded)

        self._thread.ask(lambda: self._check(digest), checked)

    def install(self, then: Done) -> None:
        """Put it in place of the checkpoint, as a whole, durably."""
        self._thread.install(self._path, then)

    def discard(self) -> None:
        """It is needed no more."""
        self._thread.ask(self._discard, _unheard)

    def _write(self, offset: int, data: bytes) -> None:
        if self._is_over:
            raise ClosedError(self._path)
        if offset < 0 or offset + len(data) > self._size_bytes:
            raise TooLargeError("a copy of a checkpoint", offset + len(data), self._size_bytes)
        rest = memoryview(data)
        try:
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                self._descriptor = os.open(self._path, flags, 0o600)
            while rest:
                written = os.pwrite(self._descriptor, rest, offset)
                rest = rest[written:]
                offset += written
        except OSError as error:
            raise DiskError.of(self._path, "write", error) from error

    def _check(self, digest: bytes) -> None:
        self._close()
        if file_digest(self._path) != digest:
            raise DamagedError(self._path, "it is not what was sent")

    def _discard(self) -> None:
        self._is_over = True
        self._close()
        try:
            Path(self._path).unlink(missing_ok=True)  # perhaps nothing came, or it is installed
        except OSError as error:
            raise DiskError.of(self._path, "remove", error) from error

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _unheard(error: StorageError | None) -> None:
    if error is not None and not isinstance(error, ClosedError):
        _log.warning("what was copied from a checkpoint stays behind: %s", error)
