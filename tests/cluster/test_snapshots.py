"""Snapshots that cannot be made, sent or taken are tried again, but not at once."""

import errno
import logging
from collections.abc import Callable
from typing import Any

import pytest

from cluster.checkpoints import CheckpointSettings, Copy, Done
from cluster.consensus.log import FIRST_INDEX, Recovered
from cluster.consensus.member import ConsensusSettings
from cluster.consensus.messages import Chunk, ChunkWritten, Conflict, Installed, Message, Offer
from cluster.replica import ReplicaSettings
from cluster.snapshots import Snapshots
from cluster.storage.errors import DamagedError, DiskError, StorageError
from state import StateMachine
from tests.cluster.consensus.rig import Rig
from tests.simulation.cluster import Cluster, Plan, simulate
from tests.simulation.node import SimNode
from tests.simulation.store import Platter, VirtualArrival, VirtualCopy, VirtualStore

INDEX, TERM = 10, 1  # of the leader's checkpoint, where its log begins
DATA = bytes(250)
SETTINGS = CheckpointSettings(chunk_bytes=100)
LOOK_S = 0.1  # as often as a replica looks
# A cluster whose log is cut soon, but kept for who gets a snapshot.
PLAN = Plan(
    settings=ReplicaSettings(
        checkpoint=CheckpointSettings(
            interval_ms=400, log_bytes=5_000, chunk_bytes=1_000, transfer_timeout_ms=5_000
        ),
        lease_grace_ms=1_000,
        lease_grace_max_ms=4_000,
    )
)
NO_ROOM = DiskError.of("arrival", "write", OSError(errno.ENOSPC, "No space left on device"))


class Shelf(VirtualStore):
    """A store with a checkpoint that is only bytes."""

    copies = 0
    error: StorageError | None = None

    def copy(self, then: Callable[[Copy | StorageError], None]) -> None:
        self.copies += 1
        self.later(then, self.error or VirtualCopy(self, DATA, INDEX, TERM))


class Side(Rig):
    """A member with its snapshots."""

    def __init__(self, recovered: Recovered) -> None:
        patient = ConsensusSettings(quorum_timeout_ms=10**9)  # the others say only what a test says
        super().__init__(recovered, settings=patient)
        self.shelf = Shelf(self.world, self.host, Platter())
        self.snapshots = Snapshots(self, self.shelf, self.host, SETTINGS)

    def on_behind(self, peer: str) -> None:
        self.snapshots.offer(peer)

    def on_message(self, peer: str, message: Message) -> None:
        match message:
            case Offer():
                self.snapshots.offered(peer, message)
            case Chunk():
                self.snapshots.received(peer, message)
            case ChunkWritten():
                self.snapshots.wanted(peer, message)
            case Installed():
                self.snapshots.installed(peer, message)
            case _:
                raise AssertionError(message)

    def pause_for_install(self) -> None:
        raise AssertionError("nothing of what arrives here is any good")

    def install(self, machine: StateMachine, index: int, term: int) -> None:
        raise AssertionError((machine, index, term))

    def pass_time(self, seconds: float = LOOK_S) -> None:
        until_s = self.world.now_s + seconds
        while self.world.now_s < until_s - 1e-6:
            self.run(LOOK_S)
            self.snapshots.look()


class Leader(Side):
    """Its follower b is played by the test."""

    def __init__(self) -> None:
        super().__init__(Recovered(INDEX, TERM, term=TERM, commit_index=INDEX))
        self.lead()
        self.sync()
        self.fall_behind()

    def fall_behind(self) -> None:
        """Let b say that it has nothing."""
        probed_index = self.member.replication.progress["b"].probed_index
        self.deliver("b", Conflict(self.member.term, probed_index, 1))

    def reconnect(self) -> None:
        self.snapshots.disconnected("b")
        self.member.disconnected("b")
        self.member.connected("b", 1)
        self.run()
        self.fall_behind()

    def next_offer(self) -> tuple[Offer, float]:
        """Wait for an offer to b, and say how long that took."""
        began_s = self.world.now_s
        while not (offers := self.take(Offer, "b")):
            self.pass_time()
            assert self.world.now_s < began_s + 200
        (offer,) = offers
        assert isinstance(offer, Offer)
        return offer, round(self.world.now_s - began_s, 1)

    def refuse(self, offer: Offer, *, at: int = 0) -> None:
        """Let b take a copy up to somewhere, and then no more."""
        term, transfer = self.member.term, offer.transfer
        for offset in range(0, at + 1, 50):
            self.deliver("b", ChunkWritten(term, transfer, offset))
        self.deliver("b", Installed(term, transfer, 0))

    def waits(self, count: int) -> list[float]:
        """Refuse again and again, and say how long each offer took to come."""
        waits = []
        for _ in range(count):
            offer, waited_s = self.next_offer()
            self.refuse(offer)
            waits.append(waited_s)
        return waits


# The leader's side


def test_who_refuses_is_offered_the_next_one_later_and_later() -> None:
    leader = Leader()
    waits = leader.waits(9)
    assert waits == pytest.approx([0.1, 1, 2, 4, 8, 16, 32, 60, 60], abs=0.3)
    assert leader.shelf.copies == 9


@pytest.mark.parametrize("how", ["taken", "reconnected", "leads anew"])
def test_a_new_beginning_needs_no_patience(how: str) -> None:
    leader = Leader()
    leader.waits(4)
    match how:
        case "taken":
            offer, _ = leader.next_offer()
            leader.deliver("b", Installed(leader.member.term, offer.transfer, INDEX))
            leader.fall_behind()
        case "reconnected":
            leader.reconnect()
        case _:
            leader.snapshots.end_sending()
            leader.member.replication.progress["b"].restart()
            leader.member.need_turn()
    assert leader.waits(3) == pytest.approx([0.1, 1, 2], abs=0.3)


def test_a_follower_that_has_come_up_by_itself_is_left_alone() -> None:
    leader = Leader()
    offer, _ = leader.next_offer()
    leader.refuse(offer)
    progress = leader.member.replication.progress["b"]
    progress.restart()
    progress.next_index = leader.log.last_index + 1
    leader.pass_time(5)
    assert leader.take(Offer, "b") == []
    assert leader.shelf.copies == 1


def test_the_log_is_not_kept_for_who_waits_for_another_offer() -> None:
    leader = Leader()
    offer, _ = leader.next_offer()
    assert leader.snapshots.index_for("b") == INDEX
    leader.refuse(offer)
    leader.pass_time(0.5)
    assert leader.snapshots.index_for("b") is None
    assert leader.member.replication.progress["b"].needs_snapshot


def test_a_leader_says_who_has_no_room_and_when_it_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leader = Leader()
    for _ in range(2):
        offer, _ = leader.next_offer()
        leader.refuse(offer, at=100)
    leader.pass_time(0.5)
    lines = [(one.levelno, one.getMessage()) for one in caplog.records]
    assert lines == [
        (logging.WARNING, "b has no room for a snapshot of 250 bytes; the next try is in 1 s"),
        (logging.WARNING, "b has no room for a snapshot of 250 bytes; the next try is in 2 s"),
    ]


def test_a_leader_whose_snapshot_arrived_whole_and_is_no_good_suspects_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leader = Leader()
    offer, _ = leader.next_offer()
    leader.refuse(offer, at=250)
    leader.pass_time(0.5)
    (line,) = caplog.records
    assert line.levelno == logging.ERROR
    text = line.getMessage()
    assert text.startswith("b has refused a snapshot that had arrived whole")
    assert "state.db of this node, a, may be damaged" in text
    assert text.endswith("the next try is in 1 s")


def test_a_copy_that_cannot_be_made_is_tried_later_and_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    leader = Leader()
    leader.snapshots.end_sending()  # the copy that is being made
    leader.shelf.error = StorageError("no room")
    leader.shelf.copies = 0
    leader.reconnect()
    leader.pass_time(20)
    assert leader.shelf.copies == 5  # after 0, 1, 3, 7, 15 s
    assert "no copy of the checkpoint could be made for b: no room; the next try is" in caplog.text
    leader.shelf.error = None
    leader.next_offer()


def test_a_copy_that_cannot_be_read_is_tried_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: VirtualCopy, _offset: int, _size: int, then: Callable[..., None]) -> None:
        self._store.later(then, StorageError("a bad sector"))

    leader = Leader()
    offer, _ = leader.next_offer()
    with monkeypatch.context() as patch:
        patch.setattr(VirtualCopy, "read", fail)
        leader.deliver("b", ChunkWritten(leader.member.term, offer.transfer, 0))
        leader.pass_time(0.5)
    assert caplog.text.count("could not be read: a bad sector; the next try is in 1 s") == 1
    assert leader.waits(2) == pytest.approx([0.5, 2], abs=0.3)


# The follower's side


def test_a_follower_says_that_it_has_all_of_it_before_it_looks_at_it() -> None:
    follower = Side(Recovered())
    follower.follow(TERM, (0, 0))
    follower.sent.clear()
    offer = Offer(TERM, 1, INDEX, TERM, len(DATA), b"the digest of something else")
    follower.deliver("b", offer)
    for offset in range(0, len(DATA), 100):
        follower.deliver("b", Chunk(TERM, 1, offset, DATA[offset : offset + 100]))
    follower.run(0.05)
    assert follower.sent == [
        *(("b", ChunkWritten(TERM, 1, offset)) for offset in (0, 100, 200, 250)),
        ("b", Installed(TERM, 1, FIRST_INDEX)),
    ]


# Both


def lose_disk(cluster: Cluster) -> SimNode:
    """Let a follower come back with nothing."""
    follower = next(node for node in cluster.nodes.values() if node is not cluster.leader())
    cluster.kill(follower)
    follower.directory = type(follower.directory)()
    follower.platter.contents = None
    return follower


def copies_made(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When copies are asked for, from now on."""
    copy = VirtualStore.copy
    asked: list[float] = []

    def count(self: VirtualStore, then: Callable[[Copy | StorageError], None]) -> None:
        asked.append(self._world.now_s)
        copy(self, then)

    monkeypatch.setattr(VirtualStore, "copy", count)
    return asked


def test_a_follower_without_room_costs_few_copies_and_comes_up_when_it_has_some(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = VirtualArrival.write
    is_full = True
    asked = copies_made(monkeypatch)

    def write_or_not(self: VirtualArrival, offset: int, data: bytes, then: Done) -> None:
        if is_full:
            self._store.later(then, NO_ROOM)
        else:
            write(self, offset, data, then)

    monkeypatch.setattr(VirtualArrival, "write", write_or_not)

    def script(cluster: Cluster) -> None:
        nonlocal is_full
        cluster.prepare()
        cluster.run(2)
        follower = lose_disk(cluster)
        cluster.run(9)
        assert 2 <= len(asked) <= 4
        is_full = False
        cluster.run(9)
        assert follower.replica is not None
        assert follower.replica.snapshots.installs == 1

    simulate(1, PLAN, script=script)
    assert "has no room for a snapshot of" in caplog.text


def test_who_takes_long_to_load_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    verify = VirtualArrival.verify
    asked = copies_made(monkeypatch)

    def load(self: VirtualArrival, digest: bytes, then: Callable[..., Any]) -> None:
        self._store._host.call_later(12, verify, self, digest, then)  # noqa: SLF001

    monkeypatch.setattr(VirtualArrival, "verify", load)

    def script(cluster: Cluster) -> None:
        cluster.prepare()
        cluster.run(2)
        follower = lose_disk(cluster)
        cluster.run(16)
        assert follower.replica is not None
        assert follower.replica.snapshots.installs == len(asked) == 1

    simulate(1, PLAN, script=script)


def test_a_leader_whose_checkpoint_is_rotten_makes_few_copies_and_another_leader_helps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    verify = VirtualArrival.verify
    asked = copies_made(monkeypatch)
    rotten: list[SimNode] = []

    def script(cluster: Cluster) -> None:
        cluster.prepare()
        cluster.run(2)
        leader = cluster.leader()
        assert leader is not None
        rotten.append(leader)

        def load(self: VirtualArrival, digest: bytes, then: Callable[..., Any]) -> None:
            if cluster.leader() is leader:
                self._store.later(then, DamagedError("arrival", "a page is no page"))
            else:
                verify(self, digest, then)

        monkeypatch.setattr(VirtualArrival, "verify", load)
        follower = lose_disk(cluster)
        cluster.run(9)
        assert 2 <= len(asked) <= 4
        while cluster.leader() in {leader, None}:
            cluster.transfer()
            cluster.run(1.5)
        cluster.run(5)
        assert follower.replica is not None
        assert follower.replica.snapshots.installs == 1

    simulate(1, PLAN, script=script)
    assert f"state.db of this node, {rotten[0].name}, may be damaged" in caplog.text
