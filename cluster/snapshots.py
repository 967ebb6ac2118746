"""Brings a follower up whose next entry is not in the leader's log any more.

The leader sends a copy of its checkpoint in chunks, each when the follower has written an earlier
one; the follower verifies all of it before anything of its own is touched, puts it in place of its
checkpoint, and lets its log begin after it. A transfer has a number, and knows how far it has come,
so a chunk of another one, or out of order, counts for nothing (ENGINE 4, 10, 11, 12, 14, 16, 21).

A follower may be unable to take a snapshot: it has no room, or what arrived cannot be loaded. It
says how far it had come, and by that the leader knows which of the two it was. Each try costs the
leader a copy of the whole checkpoint, so between tries that lead to nothing it pauses, longer and
longer. A new connection is a new beginning: it may be a new life, with room.
"""

import logging
from functools import partial
from typing import NamedTuple, Protocol

from cluster.checkpoints import Arrival, CheckpointSettings, Copy, Store
from cluster.consensus.host import Host
from cluster.consensus.member import Member
from cluster.consensus.messages import Chunk, ChunkWritten, Installed, Offer
from cluster.storage.errors import DiskFullError, StorageError, TooLargeError
from state import StateMachine

_LOADING_FACTOR = 20  # a large state takes its time to be copied and to be loaded
_RESEND_S = 1.0  # without an answer, which the disk of a follower may take its time for
_PAUSE_MIN_S = 1.0  # after a first try that led to nothing; it doubles from there
_PAUSE_MAX_S = 60.0  # a disk that has room again is noticed within this; one line of the log each

_log = logging.getLogger(__name__)


class Owner(Protocol):
    """The replica, as far as this is concerned with it."""

    member: Member

    def pause_for_install(self) -> None:
        """Apply nothing and write no checkpoint until `install`."""

    def install(self, machine: StateMachine, index: int, term: int) -> None:
        """Go on from a snapshot, which is on disk in the place of the checkpoint."""

    def on_failure(self, error: Exception) -> None: ...


class _Sending:
    """A transfer to a follower."""

    __slots__ = (
        "copy",
        "moved_s",
        "number",
        "read_offset",
        "sent_s",
        "written_offset",
    )

    def __init__(self, number: int, now_s: float) -> None:
        self.number = number
        self.copy: Copy | None = None
        self.read_offset = 0
        self.written_offset = 0
        self.moved_s = now_s  # when the follower's end moved
        self.sent_s = now_s


class _Pause(NamedTuple):
    """A peer is offered nothing for a while."""

    length_s: float
    until_s: float


class _Receiving:
    """A transfer from a leader."""

    __slots__ = ("arrival", "is_whole", "leader", "offer", "offset", "written_offset")

    def __init__(self, leader: str, offer: Offer, arrival: Arrival) -> None:
        self.leader = leader
        self.offer = offer
        self.arrival = arrival
        self.offset = 0  # received
        self.written_offset = 0
        self.is_whole = False


class Snapshots:
    """Sends and receives, at most one transfer for each peer and one from a leader."""

    def __init__(
        self, owner: Owner, store: Store, host: Host, settings: CheckpointSettings
    ) -> None:
        self._owner = owner
        self._store = store
        self._host = host
        self._settings = settings
        self._number = 0
        self._sending: dict[str, _Sending] = {}
        self._pauses: dict[str, _Pause] = {}  # the last one of each peer since one was of use
        self._receiving: _Receiving | None = None
        self._is_installing = False
        self.sent = 0
        self.refused = 0  # by followers that could not take it
        self.installs = 0

    def stop(self) -> None:
        self.end_sending()
        if self._receiving is not None and not self._is_installing:
            self._receiving.arrival.discard()
            self._receiving = None

    def end_sending(self) -> None:
        """Lead no more: the next leader will know what its followers need."""
        for peer in list(self._sending):
            self._end(peer)
        self._pauses.clear()

    def disconnected(self, peer: str) -> None:
        """Forget what was on its way to or from a peer: the rest will not come."""
        self._end(peer)
        self._pauses.pop(peer, None)
        receiving = self._receiving
        if receiving is not None and receiving.leader == peer and not receiving.is_whole:
            self._drop()

    def index_for(self, peer: str) -> int | None:
        """From where on a peer will need the log when its transfer is over."""
        sending = self._sending.get(peer)
        return None if sending is None or sending.copy is None else sending.copy.index

    # The leader's side

    def offer(self, peer: str) -> None:
        """Begin a transfer, unless one is on its way; in a pause `look` will, after it."""
        pause = self._pauses.get(peer)
        if peer in self._sending or (pause is not None and self._host.time() < pause.until_s):
            return
        # Numbers of different terms and leaders must differ for the follower.
        self._number += 1
        sending = self._sending[peer] = _Sending(self._number, self._host.time())
        self._store.copy(lambda copy: self._copied(peer, sending, copy))

    def _copied(self, peer: str, sending: _Sending, copy: Copy | StorageError) -> None:
        if self._sending.get(peer) is not sending:
            if not isinstance(copy, StorageError):
                copy.release()
            return
        if isinstance(copy, StorageError):
            self._end(peer)
            _log.error(
                "no copy of the checkpoint could be made for %s: %s; the next try is in %.0f s",
                peer,
                copy,
                self._pause(peer),
            )
            return
        sending.copy = copy
        self._send_offer(peer, sending, copy)

    def _send_offer(self, peer: str, sending: _Sending, copy: Copy) -> None:
        sending.moved_s = sending.sent_s = self._host.time()
        term = self._owner.member.term
        offer = Offer(term, sending.number, copy.index, copy.term, copy.size_bytes, copy.digest)
        self._owner.member.send(peer, offer)

    def wanted(self, peer: str, message: ChunkWritten) -> None:
        """Send on, as the follower has written this much."""
        sending = self._sending.get(peer)
        if sending is None or sending.number != message.transfer or sending.copy is None:
            return
        if message.offset > sending.read_offset:
            return
        sending.written_offset = max(sending.written_offset, message.offset)
        sending.moved_s = sending.sent_s = self._host.time()
        self._send_on(peer, sending, sending.copy)

    def _send_on(self, peer: str, sending: _Sending, copy: Copy) -> None:
        window = self._settings.chunks_in_flight * self._settings.chunk_bytes
        while (
            sending.read_offset < copy.size_bytes
            and sending.read_offset - sending.written_offset < window
        ):
            offset = sending.read_offset
            size = min(self._settings.chunk_bytes, copy.size_bytes - offset)
            sending.read_offset += size
            copy.read(offset, size, partial(self._read, peer, sending, offset))

    def _read(self, peer: str, sending: _Sending, offset: int, data: bytes | StorageError) -> None:
        if self._sending.get(peer) is not sending:
            return
        if isinstance(data, StorageError):
            self._end(peer)
            _log.error(
                "a copy of the checkpoint for %s could not be read: %s; the next try is in %.0f s",
                peer,
                data,
                self._pause(peer),
            )
            return
        self._owner.member.send(peer, Chunk(self._owner.member.term, sending.number, offset, data))

    def installed(self, peer: str, message: Installed) -> None:
        """End a transfer: the follower has the snapshot, needs none, or could not take it."""
        sending = self._sending.get(peer)
        member = self._owner.member
        if (
            sending is None
            or sending.copy is None
            or sending.number != message.transfer
            or message.term != member.term
        ):
            return
        self._end(peer)
        if message.held_index < sending.copy.index:
            self._refused(peer, sending, sending.copy)
        else:
            self.sent += 1
            self._pauses.pop(peer, None)
        progress = member.replication.progress[peer]
        progress.restart()
        held_index = min(message.held_index, member.log.last_index)
        progress.next_index = max(progress.match_index, held_index) + 1
        member.need_turn()

    def _refused(self, peer: str, sending: _Sending, copy: Copy) -> None:
        self.refused += 1
        pause_s = self._pause(peer)
        if sending.written_offset < copy.size_bytes:
            _log.warning(
                "%s has no room for a snapshot of %d bytes; the next try is in %.0f s",
                peer,
                copy.size_bytes,
                pause_s,
            )
        else:
            # Copies are not checked here: that would take loading another state.
            _log.error(
                "%s has refused a snapshot that had arrived whole, its log says why. If that was "
                "damage, the state.db of this node, %s, may be damaged: hand leadership over, so "
                "that %s gets the copy of another; the next try is in %.0f s",
                peer,
                self._owner.member.node_id,
                peer,
                pause_s,
            )

    def _pause(self, peer: str) -> float:
        """Offer a peer nothing for twice as long as the last time, and say how long that is."""
        before = self._pauses.get(peer)
        length_s = _PAUSE_MIN_S if before is None else min(2 * before.length_s, _PAUSE_MAX_S)
        self._pauses[peer] = _Pause(length_s, self._host.time() + length_s)
        return length_s

    def look(self) -> None:
        """Send again what should have been answered; give up what does not move; end pauses."""
        now_s = self._host.time()
        progress = self._owner.member.replication.progress
        for peer in self._pauses:
            if progress[peer].needs_snapshot:
                self.offer(peer)
        for peer, sending in list(self._sending.items()):
            copy = sending.copy
            waited_s = now_s - sending.moved_s
            timeout_s = self._settings.transfer_timeout_ms / 1000
            if copy is None or sending.written_offset >= copy.size_bytes:
                timeout_s *= _LOADING_FACTOR  # being made, or being verified
            if waited_s > timeout_s:
                self._end(peer)
                self._pause(peer)
                progress[peer].restart()
            elif copy is not None and now_s - sending.sent_s > _RESEND_S:
                sending.sent_s = now_s
                if sending.written_offset == 0:
                    moved_s = sending.moved_s
                    self._send_offer(peer, sending, copy)
                    sending.moved_s = moved_s
                sending.read_offset = sending.written_offset
                self._send_on(peer, sending, copy)

    def _end(self, peer: str) -> None:
        sending = self._sending.pop(peer, None)
        if sending is not None and sending.copy is not None:
            sending.copy.release()

    # The follower's side

    def offered(self, leader: str, offer: Offer) -> None:
        """Take a snapshot if it is ahead of this node."""
        member = self._owner.member
        if offer.term < member.term or leader != member.leader or self._is_installing:
            return
        if offer.snapshot_index <= member.committed_index:
            member.send(leader, Installed(member.term, offer.transfer, member.committed_index))
            return
        receiving = self._receiving
        if receiving is not None and (receiving.leader, receiving.offer) == (leader, offer):
            written_offset = receiving.written_offset
            member.send(leader, ChunkWritten(member.term, offer.transfer, written_offset))
            return
        if receiving is not None and receiving.is_whole:
            return  # one is being verified: it will be answered
        self._drop()
        arrival = self._store.arrive(offer.size_bytes)
        self._receiving = _Receiving(leader, offer, arrival)
        member.send(leader, ChunkWritten(member.term, offer.transfer, 0))

    def received(self, leader: str, chunk: Chunk) -> None:
        """Keep a chunk that is the next of the transfer."""
        receiving = self._receiving
        if (
            receiving is None
            or receiving.leader != leader
            or receiving.offer.transfer != chunk.transfer
            or receiving.offset != chunk.offset
            or receiving.offset + len(chunk.data) > receiving.offer.size_bytes
        ):
            return
        receiving.offset += len(chunk.data)
        offset = receiving.offset
        receiving.arrival.write(
            chunk.offset, chunk.data, lambda error: self._kept(receiving, offset, error)
        )

    def _kept(self, receiving: _Receiving, offset: int, error: StorageError | None) -> None:
        if self._receiving is not receiving:
            return
        if isinstance(error, DiskFullError | TooLargeError):
            _log.error("there is no room for the snapshot of %s: %s", receiving.leader, error)
            self._refuse(receiving)
            return
        if error is not None:
            self._owner.on_failure(error)
            return
        receiving.written_offset = offset
        member, offer = self._owner.member, receiving.offer
        # Also of the last one: so the leader knows that loading is what it waits for.
        member.send(receiving.leader, ChunkWritten(member.term, offer.transfer, offset))
        if offset == offer.size_bytes and not receiving.is_whole:
            receiving.is_whole = True
            receiving.arrival.verify(offer.digest, lambda found: self._verified(receiving, found))

    def _verified(
        self, receiving: _Receiving, found: tuple[StateMachine, int, int] | StorageError
    ) -> None:
        if self._receiving is not receiving:
            return
        member, offer = self._owner.member, receiving.offer
        if isinstance(found, StorageError):
            _log.error("a snapshot of %s is damaged: %s", receiving.leader, found)
            self._refuse(receiving)
            return
        machine, index, term = found
        if (index, term) != (offer.snapshot_index, offer.snapshot_term):
            _log.error("a snapshot of %s is not the one that was offered", receiving.leader)
            self._refuse(receiving)
            return
        if index <= member.committed_index:
            self._refuse(receiving)
            return
        # From here on it will be installed: nothing may be applied or written meanwhile.
        self._is_installing = True
        self._owner.pause_for_install()
        receiving.arrival.install(lambda error: self._install(receiving, machine, error))

    def _install(
        self, receiving: _Receiving, machine: StateMachine, error: StorageError | None
    ) -> None:
        self._is_installing = False
        self._receiving = None
        if error is not None:
            self._owner.on_failure(error)
            return
        offer, member = receiving.offer, self._owner.member
        try:
            self._owner.install(machine, offer.snapshot_index, offer.snapshot_term)
        except Exception as raised:  # noqa: BLE001 - it contradicts what is committed here
            self._owner.on_failure(raised)
            return
        self.installs += 1
        answer = Installed(member.term, offer.transfer, offer.snapshot_index)
        member.send(receiving.leader, answer)

    def _refuse(self, receiving: _Receiving) -> None:
        """End a transfer without its snapshot; the leader may begin another, after a pause."""
        member = self._owner.member
        self._drop()
        answer = Installed(member.term, receiving.offer.transfer, member.committed_index)
        member.send(receiving.leader, answer)

    def _drop(self) -> None:
        if self._receiving is not None:
            self._receiving.arrival.discard()
            self._receiving = None
