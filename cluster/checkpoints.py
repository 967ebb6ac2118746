"""When to write a checkpoint, and how far to cut the log after it.

What has changed since the last checkpoint goes to the store piece by piece, while batches go on
(see `state.ledger`); the store writes it in one transaction with the index that it belongs to. Only
then is the log cut, and not beyond what a follower within reach still needs, unless the log has
become too large: then that follower gets a snapshot.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from cluster.consensus.host import Host
from cluster.consensus.member import Member
from cluster.storage.errors import StorageError
from state import Capture, Item, StateMachine

_MIB = 1 << 20

Done = Callable[[StorageError | None], None]


class Copy(Protocol):
    """A consistent copy of the checkpoint, to be sent away."""

    index: int
    term: int
    size_bytes: int
    digest: bytes

    def read(self, offset: int, size: int, then: Callable[[bytes | StorageError], None]) -> None:
        """A piece of its bytes."""

    def release(self) -> None:
        """It is needed no more."""


class Arrival(Protocol):
    """A copy that is arriving from elsewhere."""

    def write(self, offset: int, data: bytes, then: Done) -> None:
        """Keep a piece of it."""

    def verify(
        self, digest: bytes, then: Callable[[tuple[StateMachine, int, int] | StorageError], None]
    ) -> None:
        """Answer the state in it with its index and term, if it is whole and undamaged."""

    def install(self, then: Done) -> None:
        """Put it in place of the checkpoint, as a whole, durably."""

    def discard(self) -> None:
        """It is needed no more."""


class Store(Protocol):
    """The checkpoint on disk. All answers come later, on the loop."""

    def begin(self, then: Done) -> None: ...
    def put(self, items: Sequence[Item], then: Done) -> None: ...
    def commit(self, index: int, term: int, then: Done) -> None: ...
    def rollback(self, then: Done) -> None: ...
    def copy(self, then: Callable[[Copy | StorageError], None]) -> None: ...
    def arrive(self, size_bytes: int) -> Arrival: ...


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """When, and in pieces of which size."""

    interval_ms: int = 5_000  # between checkpoints, while anything changes
    # A log of this size asks for one at once, and is not kept for members that are away.
    log_bytes: int = 64 * _MIB
    log_bytes_max: int = 512 * _MIB  # beyond it no follower is waited for
    piece_bytes: int = 8 * 1024  # captured in one turn of the loop, a few ms at most
    # Pauses between pieces, in times of what the last piece took: batches come first. Without
    # them a checkpoint held batches up by 0.3 s. Not while the log is about to become too large.
    pause_factor: int = 3
    chunk_bytes: int = 256 * 1024  # of a snapshot on its way
    chunks_in_flight: int = 4
    transfer_timeout_ms: int = 30_000  # a snapshot's, without moving


class Owner(Protocol):
    """The replica, as far as this is concerned with it."""

    member: Member
    machine: StateMachine

    def on_failure(self, error: Exception) -> None: ...


class Checkpoints:
    """Writes the changes of one node's state behind it."""

    def __init__(
        self,
        owner: Owner,
        store: Store,
        host: Host,
        random: Random,
        settings: CheckpointSettings,
        snapshot_index: Callable[[str], int | None],
    ) -> None:
        """`snapshot_index` says from where on a follower that gets a snapshot needs the log."""
        self._owner = owner
        self._store = store
        self._host = host
        self._random = random
        self._spread = random.uniform(0.75, 1.25)  # so that nodes do not write at one time
        self._settings = settings
        self._snapshot_index = snapshot_index
        self._capture: Capture | None = None
        self._index = 0
        self._term = 0
        self._is_busy = False  # the store has not answered yet
        self._is_paused = False
        self._last_s = host.time()
        self._kept_bytes = 0  # of the log, after the last checkpoint or cut
        self._pause_s = 0.0
        self._life = 0  # answers for an abandoned one count no more
        self.index = owner.machine.applied_index  # of the checkpoint on disk
        self.written = 0  # checkpoints since the node started
        self.on_written: Callable[[], None] = _nothing

    @property
    def is_writing(self) -> bool:
        return self._is_busy

    def look(self) -> None:
        """Begin one if it is time, and cut the log as far as that goes."""
        if self._is_busy or self._is_paused:
            return
        machine, log = self._owner.machine, self._owner.member.log
        self._cut()
        waited_ms = (self._host.time() - self._last_s) * 1000
        is_time = waited_ms >= self._settings.interval_ms * self._spread
        is_large = log.size_bytes - self._kept_bytes >= self._settings.log_bytes
        if machine.applied_index > self.index and (is_time or is_large):
            self.begin()

    def begin(self) -> None:
        """Begin one now, unless one is being written."""
        machine = self._owner.machine
        index = machine.applied_index
        term = self._owner.member.log.term_at(index)
        if self._is_busy or self._is_paused or term is None:
            return
        self._is_busy = True
        self._index, self._term = index, term
        self._capture = machine.capture_changes()
        life = self._life
        self._store.begin(lambda error: self._next(life, error))

    def pause(self) -> None:
        """Let nothing of what is being written count, and begin nothing: a snapshot comes."""
        self._life += 1
        self._is_paused = True
        if self._capture is not None:
            self._capture = None
            self._store.rollback(self._abandoned)

    def stop(self) -> None:
        """Let nothing of what is being written count, and begin nothing any more."""
        self._life += 1
        self._is_paused = True
        self._capture = None

    def resume(self) -> None:
        """Go on from the snapshot that the state was loaded from."""
        self._life += 1
        self._is_paused = False
        self.index = self._owner.machine.applied_index
        self._last_s = self._host.time()

    def _abandoned(self, _error: StorageError | None) -> None:
        self._is_busy = False

    def _next(self, life: int, error: StorageError | None) -> None:
        if life != self._life or self._capture is None:
            return
        if error is not None:
            self._owner.on_failure(error)
            return
        begin_s = self._host.time()
        try:
            piece = self._capture.next_piece(self._settings.piece_bytes)
        except Exception as raised:  # noqa: BLE001 - a state that cannot be read must not be served
            self._owner.on_failure(raised)
            return
        self._pause_s = (self._host.time() - begin_s) * self._settings.pause_factor
        if piece:
            self._store.put(piece, lambda error: self._pause(life, error))
        else:
            self._store.commit(self._index, self._term, lambda error: self._written(life, error))

    def _pause(self, life: int, error: StorageError | None) -> None:
        is_urgent = self._owner.member.log.size_bytes >= self._settings.log_bytes_max // 2
        if is_urgent or self._pause_s <= 0:
            self._next(life, error)
        else:
            self._host.call_later(self._pause_s, self._next, life, error)

    def _written(self, life: int, error: StorageError | None) -> None:
        if life != self._life or self._capture is None:
            return
        if error is not None:
            self._owner.on_failure(error)
            return
        self._capture.commit()
        self._capture = None
        self._is_busy = False
        self._last_s = self._host.time()
        self._spread = self._random.uniform(0.75, 1.25)
        self.index = self._index
        self.written += 1
        try:
            self._cut()
        except Exception as raised:  # noqa: BLE001 - it contradicts the log
            self._owner.on_failure(raised)
            return
        # What a follower needs stays, however many checkpoints follow.
        self._kept_bytes = self._owner.member.log.size_bytes
        self.on_written()

    def _cut(self) -> None:
        """Let the checkpoint stand for the log before it, as far as nobody needs that."""
        member = self._owner.member
        log = member.log
        index = self.index
        if log.size_bytes < self._settings.log_bytes_max and member.is_leader:
            index = min([index, *self._needed(member)])
        term = log.term_at(index)
        if index > log.base_index and term is not None:
            member.rebase(index, term)
            self._kept_bytes = log.size_bytes

    def _needed(self, member: Member) -> Iterator[int]:
        """The last entries that the followers have, or will have from a snapshot.

        One that is away for a moment shall not need a snapshot when it comes back, so a log that
        is not large yet is kept for it. Of one that has just come back it is not known what it has.
        """
        base_index = member.log.base_index
        waits_for_absent = member.log.size_bytes < self._settings.log_bytes
        for peer, progress in member.replication.progress.items():
            snapshot_index = self._snapshot_index(peer)
            if snapshot_index is not None:
                yield snapshot_index
            elif progress.needs_snapshot:
                continue
            elif progress.is_connected and progress.match_index:
                yield progress.match_index
            elif waits_for_absent and not 0 < progress.match_index < base_index:
                yield progress.match_index or base_index  # else it needs a snapshot anyway


def _nothing() -> None:
    pass
