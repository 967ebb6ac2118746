"""Single stories, told by hand: what each fault must, and must not, lead to."""

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from cluster.checkpoints import CheckpointSettings, Done
from cluster.consensus.member import ConsensusSettings
from cluster.replica import ReplicaSettings
from cluster.storage.errors import StorageError
from state import Applied, Created, Phase, Result, StateMachine, encode
from state.errors import LimitExceeded
from state.limits import LIMITS
from state.operations import New, SetLimits
from tests.simulation.clients import WORK
from tests.simulation.cluster import WAN, Cluster, Outcome, Plan, simulate
from tests.simulation.disk import Operation
from tests.simulation.node import DiskSpeed, SimNode
from tests.simulation.store import VirtualArrival, VirtualStore

PLAN = Plan(
    settings=ReplicaSettings(
        checkpoint=CheckpointSettings(
            interval_ms=400,
            log_bytes=5_000,
            log_bytes_max=20_000,
            chunk_bytes=1_000,
            transfer_timeout_ms=5_000,
        ),
        lease_grace_ms=1_000,
        lease_grace_max_ms=4_000,
    )
)


def play(script: Callable[[Cluster], None], seed: int = 1, plan: Plan = PLAN) -> Outcome:
    """Run a script on a calm cluster under load; it must come to a peaceful end."""

    def whole(cluster: Cluster) -> None:
        cluster.prepare()
        cluster.run(2)
        script(cluster)

    return simulate(seed, plan, script=whole)


def leader_of(cluster: Cluster) -> SimNode:
    leader = cluster.leader()
    assert leader is not None
    return leader


def follower_of(cluster: Cluster) -> SimNode:
    leader = leader_of(cluster)
    return next(node for node in cluster.nodes.values() if node is not leader)


def term(cluster: Cluster) -> int:
    replica = leader_of(cluster).replica
    assert replica is not None
    return replica.member.term


def test_nothing_happens_and_nobody_is_elected() -> None:
    def script(cluster: Cluster) -> None:
        before = term(cluster)
        cluster.run(20)
        assert term(cluster) == before == 1

    assert play(script).acknowledged > 500


@pytest.mark.parametrize("seed", range(4))
def test_a_follower_that_is_started_again_while_nothing_happens_is_ready_soon(seed: int) -> None:
    def script(cluster: Cluster) -> None:
        cluster.settle()
        cluster.run(60)  # whatever was to be repeated is over, and all that is committed is on disk
        for follower in [one for one in cluster.nodes.values() if one is not leader_of(cluster)]:
            follower.kill()
            cluster.run(0.5)
            follower.start()
            cluster.run(1)
            assert follower.replica is not None
            assert follower.replica.is_ready, cluster.describe()

    play(script, seed)


def test_an_isolated_leader_is_replaced_and_steps_down() -> None:
    def script(cluster: Cluster) -> None:
        old = leader_of(cluster)
        cluster.network.isolate(old.name)
        before = cluster.acknowledged
        cluster.run(3)
        assert leader_of(cluster) is not old
        assert cluster.acknowledged > before, "the others serve"
        assert old.replica is not None
        assert not old.replica.member.is_leader
        cluster.network.heal()
        cluster.run(3)

    play(script)


def test_a_follower_that_was_cut_off_comes_back_without_an_election() -> None:
    def script(cluster: Cluster) -> None:
        before, leader = term(cluster), leader_of(cluster)
        cluster.network.isolate(follower_of(cluster).name)
        cluster.run(10)
        cluster.network.heal()
        cluster.run(5)
        assert (term(cluster), leader_of(cluster)) == (before, leader)

    play(script)


def test_a_leader_whose_disk_hangs_makes_room() -> None:
    def script(cluster: Cluster) -> None:
        old = leader_of(cluster)
        old.hang(30)
        cluster.run(6)
        assert leader_of(cluster) is not old
        before = cluster.acknowledged
        cluster.run(5)
        assert cluster.acknowledged > before + 50, "the others serve"
        cluster.run(20)
        assert leader_of(cluster) is not old

    play(script)


def test_a_disk_that_hangs_for_a_moment_unseats_nobody() -> None:
    def script(cluster: Cluster) -> None:
        before, leader = term(cluster), leader_of(cluster)
        for _ in range(3):
            leader.hang(2)
            cluster.run(4)
            follower_of(cluster).hang(2)
            cluster.run(4)
        assert (term(cluster), leader_of(cluster)) == (before, leader)

    play(script)


def test_followers_whose_disks_hang_stand_for_nothing() -> None:
    def script(cluster: Cluster) -> None:
        before, leader = term(cluster), leader_of(cluster)
        hanging = [node for node in cluster.nodes.values() if node is not leader]
        for node in hanging:
            node.hang(20)
        cluster.run(4)
        cluster.network.isolate(leader.name)
        cluster.run(10)
        assert [node.replica.member.term for node in hanging if node.replica] == [before, before]
        cluster.network.heal()

    play(script)


def test_a_leader_appends_its_own_batches_once_however_long_they_take() -> None:
    def script(cluster: Cluster) -> None:
        leader = leader_of(cluster)
        assert leader.replica is not None
        own = f"{leader.name}".encode()
        for node in cluster.nodes.values():
            if node is not leader:
                node.hang(40)
        cluster.run(35)
        log = leader.replica.member.log
        entries = [
            log.entry_at(index)[0] for index in range(log.base_index + 1, log.last_index + 1)
        ]
        batches = [command for command in entries if own in command[:20]]
        assert len(batches) == len(set(batches))
        assert leader.replica.member.is_leader

    play(script)


def test_a_log_that_no_checkpoint_follows_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = VirtualStore.commit

    def late(self: VirtualStore, index: int, term: int, then: Done) -> None:
        self.later(lambda: self._host.call_later(30, commit, self, index, term, then))

    def script(cluster: Cluster) -> None:
        monkeypatch.setattr(VirtualStore, "commit", late)
        cluster.run(25)
        for node in cluster.nodes.values():
            assert node.replica is not None
            assert 40_000 <= node.replica.member.log.size_bytes < 50_000
        monkeypatch.undo()
        cluster.run(20)

    play(script)


def test_a_slow_follower_goes_on_soon_after_its_leader_has_declined() -> None:
    def script(cluster: Cluster) -> None:
        leader, slow = leader_of(cluster).replica, follower_of(cluster)
        assert leader is not None
        assert slow.replica is not None
        slow.speed = DiskSpeed(0.3, 0.3, 0)
        cluster.run(2)
        leader._is_admitting = False  # noqa: SLF001 - as while it hands over
        answers: list[Result] = []
        slow.replica.queue.submit(encode(New(1)), answers.append, 30.0)
        cluster.run(0.5)
        leader._is_admitting = True  # noqa: SLF001
        leader.queue.restart()
        assert not answers
        cluster.run(3)
        assert isinstance(answers[0], Created)
        slow.speed = DiskSpeed(0.001, 0.001, 0)

    play(script)


@pytest.mark.parametrize("fsync_s", [0.0005, 0.4])
def test_workers_keep_what_they_hold_while_nothing_commits_for_a_while(fsync_s: float) -> None:
    settings = ReplicaSettings(
        checkpoint=CheckpointSettings(interval_ms=400),
        lease_grace_ms=1_500,
        lease_grace_max_ms=4_000,
    )
    plan = Plan(settings=settings, conditions=WAN, keeps_leases=True, workers=6)

    def script(cluster: Cluster) -> None:
        for node in cluster.nodes.values():
            node.speed = DiskSpeed(fsync_s, fsync_s, 0)
        for _ in range(6):
            for node in cluster.nodes.values():
                if node is not leader_of(cluster):
                    node.hang(3.5)
            cluster.run(9.5)

    for seed in (1, 2):
        play(script, seed, plan)


def test_workers_keep_what_they_hold_while_a_leader_takes_nothing_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = ReplicaSettings(
        checkpoint=CheckpointSettings(interval_ms=400, log_bytes=5_000, log_bytes_max=20_000)
    )
    plan = Plan(settings=settings, keeps_leases=True, workers=6)
    later = VirtualStore.later

    def script(cluster: Cluster) -> None:
        cluster.run(13)  # the grace of a new leader is over
        leader = leader_of(cluster).replica
        assert leader is not None
        until_s = cluster.world.now_s + 12
        stalled = leader.checkpoints._store  # noqa: SLF001

        def late(self: VirtualStore, then: Callable[..., object], *arguments: object) -> None:
            wait_s = until_s - cluster.world.now_s
            if self is stalled and wait_s > 0:
                self._host.call_later(wait_s, later, self, then, *arguments)
            else:
                later(self, then, *arguments)

        monkeypatch.setattr(VirtualStore, "later", late)
        closed = 0
        for _ in range(150):
            cluster.run(0.1)
            closed += not leader._has_room  # noqa: SLF001
        assert closed > 30
        cluster.run(15)

    for seed in (2, 3):
        play(script, seed, plan)


def test_sessions_are_reaped_where_everything_takes_long() -> None:
    def script(cluster: Cluster) -> None:
        leader = leader_of(cluster).replica
        assert leader is not None
        created: list[Result] = []
        ghost = leader.consumer(b"ghost")
        leader.queue.submit(encode(New(WORK, consumer=ghost)), created.append, 5.0)
        cluster.run(1)
        session = created[0]
        assert isinstance(session, Created)
        for node in cluster.nodes.values():
            node.speed = DiskSpeed(1.2, 1.2, 0)
        cluster.run(60)
        found = leader.machine.session(session.session_id)
        assert found is not None
        assert found.phase is not Phase.ACTIVE
        for node in cluster.nodes.values():
            node.speed = DiskSpeed(0.001, 0.001, 0)

    play(script, plan=replace(PLAN, workers=0))


def test_a_leader_is_elected_on_disks_that_take_longer_than_an_election() -> None:
    def script(cluster: Cluster) -> None:
        for node in cluster.nodes.values():
            node.speed = DiskSpeed(1.5, 1.5, 0)
        cluster.run(2)
        before = term(cluster)
        leader = leader_of(cluster)
        leader.kill()
        cluster.run(30)
        assert before < term(cluster) < before + 8
        leader.start()
        for node in cluster.nodes.values():
            node.speed = DiskSpeed(0.001, 0.001, 0)

    play(script, plan=replace(PLAN, workers=0))


@pytest.mark.parametrize("from_leader", [True, False])
def test_a_cut_in_one_direction_is_survived(from_leader: bool) -> None:
    def script(cluster: Cluster) -> None:
        leader, follower = leader_of(cluster), follower_of(cluster)
        ends = (leader.name, follower.name) if from_leader else (follower.name, leader.name)
        cluster.network.cut(*ends)
        before = cluster.acknowledged
        cluster.run(10)
        assert cluster.acknowledged > before + 50
        cluster.network.heal()
        cluster.run(3)

    play(script)


@pytest.mark.parametrize("window_bytes", [1, 16 << 20])
def test_leadership_is_handed_over_under_load(window_bytes: int) -> None:
    consensus = ConsensusSettings(window_bytes=window_bytes)
    plan = replace(PLAN, settings=replace(PLAN.settings, consensus=consensus))

    def script(cluster: Cluster) -> None:
        went = 0
        for _ in range(20):
            before = leader_of(cluster)
            cluster.transfer()
            cluster.run(1.5)
            went += leader_of(cluster) is not before
        assert went >= 19

    play(script, plan=plan)


def test_a_follower_far_behind_catches_up_before_anything_is_refused_for_it() -> None:
    settings = replace(PLAN.settings, consensus=ConsensusSettings(window_bytes=1_000))
    settings = replace(settings, checkpoint=CheckpointSettings())

    def script(cluster: Cluster) -> None:
        leader, behind = leader_of(cluster), follower_of(cluster)
        replica, host = leader.replica, leader.host
        assert replica is not None
        assert host is not None
        went: list[bool] = []
        behind.pause(4)
        cluster.run(1)
        before = cluster.acknowledged
        host.run(replica.transfer, 1.0, went.append, behind.name)
        cluster.run(0.9)
        assert cluster.acknowledged > before + 20, "operations go on"
        cluster.run(4)
        assert went == [False]
        host.run(replica.transfer, 1.0, went.append, behind.name)
        cluster.run(1.5)
        assert went == [False, True]
        assert leader_of(cluster) is behind

    play(script, plan=replace(PLAN, settings=settings))


def test_who_asks_the_leader_to_hand_over_to_a_member_that_is_down_hears_no_at_once() -> None:
    def script(cluster: Cluster) -> None:
        asker, down = (one for one in cluster.nodes.values() if one is not leader_of(cluster))
        assert asker.replica is not None
        assert asker.host is not None
        cluster.kill(down)
        cluster.run(0.2)
        went: list[bool] = []
        asker.host.run(asker.replica.transfer, 10.0, went.append, down.name)
        cluster.run(0.5)
        assert went == [False]
        asker.host.run(asker.replica.transfer, 10.0, went.append, asker.name)
        cluster.run(1.5)
        assert went == [False, True]
        assert leader_of(cluster) is asker

    play(script)


def test_a_refused_transfer_is_no_answer_to_another_one() -> None:
    """Two at the same follower: the second is refused, as the first is going on."""

    def script(cluster: Cluster) -> None:
        asker, slow = (one for one in cluster.nodes.values() if one is not leader_of(cluster))
        assert asker.replica is not None
        assert asker.host is not None
        slow.hang(1)
        cluster.run(0.2)
        went: list[tuple[str, bool]] = []
        for name in (slow.name, asker.name):
            told = partial(lambda name, is_done: went.append((name, is_done)), name)
            asker.host.run(asker.replica.transfer, 10.0, told, name)
        cluster.run(0.1)
        assert went == [(asker.name, False)]
        cluster.run(3)
        assert went == [(asker.name, False), (slow.name, True)]
        assert leader_of(cluster) is slow

    play(script)


def test_handing_over_to_a_disk_that_hangs_keeps_nobody_from_working() -> None:
    def script(cluster: Cluster) -> None:
        leader, hanging = leader_of(cluster), follower_of(cluster)
        assert leader.replica is not None
        assert leader.host is not None
        hanging.hang(12)
        cluster.run(0.1)
        went: list[bool] = []
        leader.host.run(leader.replica.transfer, 10.0, went.append, hanging.name)
        cluster.run(4)
        assert went == [False]
        before = cluster.acknowledged
        cluster.run(4)
        assert cluster.acknowledged > before + 50
        assert leader_of(cluster) is leader

    play(script)


def test_a_node_that_starts_makes_its_batches_by_the_limits_of_the_state() -> None:
    settings = ReplicaSettings(checkpoint=CheckpointSettings(interval_ms=500_000))

    def script(cluster: Cluster) -> None:
        leader, node = leader_of(cluster).replica, follower_of(cluster)
        assert leader is not None
        smaller = encode(SetLimits((("batch_operations", 8),)))
        leader.queue.submit(smaller, lambda _: None, 5.0)
        cluster.run(3)
        node.kill()
        cluster.run(0.5)
        node.start()
        assert node.replica is not None
        results: list[Result] = []
        for _ in range(20):
            one = encode(New(WORK, repeat_after_ms=1_000_000))
            node.replica.queue.submit(one, results.append, 5.0)
        cluster.run(5)
        assert [type(one) for one in results] == [Created] * 20

    play(script, plan=Plan(settings=settings, workers=0, writers=0))


def test_a_log_that_is_kept_for_a_follower_costs_no_more_checkpoints() -> None:
    settings = ReplicaSettings(
        checkpoint=CheckpointSettings(interval_ms=5_000, log_bytes=20_000, log_bytes_max=2_000_000)
    )

    def script(cluster: Cluster) -> None:
        leader = leader_of(cluster).replica
        assert leader is not None
        follower_of(cluster).hang(40)
        cluster.run(20)
        assert leader.member.log.size_bytes > 20_000, "it is kept"
        before = leader.checkpoints.written
        cluster.run(20)
        assert leader.checkpoints.written <= before + 8
        cluster.run(5)

    play(script, plan=Plan(settings=settings, workers=1, writers=1))


def test_a_node_that_lost_its_disk_gets_a_snapshot() -> None:
    def script(cluster: Cluster) -> None:
        follower = follower_of(cluster)
        cluster.kill(follower)
        follower.directory = type(follower.directory)()
        follower.platter.contents = None
        cluster.run(5)

    assert play(script).installs == 1


def test_a_node_that_lost_its_disk_is_brought_up_by_a_log_that_is_whole() -> None:
    checkpoint = CheckpointSettings(interval_ms=10**6, log_bytes=10**9, log_bytes_max=10**9)
    plan = replace(PLAN, settings=replace(PLAN.settings, checkpoint=checkpoint))

    def script(cluster: Cluster) -> None:
        cluster.prepare()
        cluster.run(2)
        follower = follower_of(cluster)
        cluster.kill(follower)
        follower.directory = type(follower.directory)()
        cluster.run(5)

    assert simulate(1, plan, script=script).installs == 0


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_node_that_comes_back_soon_costs_no_copy(
    monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    checkpoint = CheckpointSettings(interval_ms=400, log_bytes=10**7, log_bytes_max=10**8)
    plan = replace(PLAN, settings=replace(PLAN.settings, checkpoint=checkpoint))
    copy = VirtualStore.copy
    copies: list[float] = []

    def count(self: VirtualStore, then: Callable[..., None]) -> None:
        copies.append(self._world.now_s)
        copy(self, then)

    monkeypatch.setattr(VirtualStore, "copy", count)

    def script(cluster: Cluster) -> None:
        if not is_busy:
            for client in (*cluster.writers, *cluster.workers):
                client.is_active = False
            cluster.run(4)
        for _ in range(4):
            follower, leader = follower_of(cluster), leader_of(cluster).replica
            assert leader is not None
            cluster.count(follower)
            follower.kill()
            cluster.run(2)
            member = leader.member
            match_index = member.replication.progress[follower.name].match_index
            assert member.log.base_index == match_index, "the log is kept from there on"
            assert (member.log.last_index > match_index) is is_busy
            follower.start()
            cluster.run(1.5)
            assert member.replication.progress[follower.name].match_index >= match_index

    assert play(script, plan=plan).installs == 0
    assert copies == []


def test_a_copy_that_could_not_be_made_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = VirtualStore.copy
    failed: list[str] = []

    def fail_once(self: VirtualStore, then: Callable[..., None]) -> None:
        if failed:
            copy(self, then)
        else:
            failed.append("no room")
            self.later(then, StorageError("no room"))

    monkeypatch.setattr(VirtualStore, "copy", fail_once)

    def script(cluster: Cluster) -> None:
        follower = follower_of(cluster)
        cluster.kill(follower)
        follower.directory = type(follower.directory)()
        follower.platter.contents = None
        cluster.run(8)

    assert play(script).installs == 1
    assert failed


def test_a_snapshot_that_was_damaged_on_its_way_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = VirtualArrival.write
    damaged: list[int] = []

    def damage(self: VirtualArrival, offset: int, data: bytes, then: Done) -> None:
        if not damaged:
            damaged.append(offset)
            data = bytes((data[0] ^ 1, *data[1:]))
        write(self, offset, data, then)

    monkeypatch.setattr(VirtualArrival, "write", damage)

    def script(cluster: Cluster) -> None:
        follower = follower_of(cluster)
        cluster.kill(follower)
        follower.directory = type(follower.directory)()
        follower.platter.contents = None
        cluster.run(8)
        assert follower.replica is not None
        assert follower.replica.snapshots.installs == 1

    play(script)
    assert damaged


def test_a_crash_between_the_checkpoint_and_the_journal_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later = VirtualStore.later
    stories: list[int] = []

    def script(cluster: Cluster) -> None:
        victim = follower_of(cluster)

        def answer(self: VirtualStore, then: Callable[..., object], *arguments: Any) -> None:
            written = victim.platter.contents
            if self.platter is victim.platter and written is not None and len(stories) < 5:
                index = written[1]
                if index not in stories:
                    stories.append(index)
                    cluster.world.at(0.0, cluster.kill, victim, SimNode.lose_power)
                    return
            later(self, then, *arguments)

        monkeypatch.setattr(VirtualStore, "later", answer)
        cluster.run(20)

    play(script)
    assert len(stories) == 5


def test_a_crash_after_a_snapshot_was_put_in_place_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install = VirtualArrival.install
    crashes: list[str] = []

    def script(cluster: Cluster) -> None:
        follower = follower_of(cluster)

        def crash(self: VirtualArrival, then: Done) -> None:
            def put(error: Any) -> None:
                if crashes:
                    then(error)
                else:
                    crashes.append(follower.name)
                    cluster.kill(follower, SimNode.lose_power)

            install(self, put)

        monkeypatch.setattr(VirtualArrival, "install", crash)
        cluster.kill(follower)
        follower.directory = type(follower.directory)()
        follower.platter.contents = None
        cluster.run(8)

    play(script)
    assert crashes


def test_a_state_machine_that_raises_stops_its_node_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apply = StateMachine.apply

    def script(cluster: Cluster) -> None:
        victim = follower_of(cluster)
        cluster.may_fail = {victim.name}
        assert victim.replica is not None
        broken = victim.replica.machine

        def fail(self: StateMachine, index: int, batch: bytes) -> Applied:
            if self is broken:
                raise RuntimeError("a defect")
            return apply(self, index, batch)

        monkeypatch.setattr(StateMachine, "apply", fail)
        before = cluster.acknowledged
        cluster.run(5)
        assert isinstance(cluster.failed[victim.name], RuntimeError)
        assert cluster.acknowledged > before

    play(script)


@pytest.mark.parametrize("operation", [Operation.SYNC, Operation.WRITE])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("leads", [True, False])
def test_a_disk_that_fails_stops_its_node_and_loses_nothing(
    operation: Operation,
    number: int,
    leads: bool,
) -> None:
    def script(cluster: Cluster) -> None:
        victim = leader_of(cluster) if leads else follower_of(cluster)
        cluster.may_fail = {victim.name}
        victim.directory.fail_next(operation, number)
        cluster.run(5)
        assert victim.name in cluster.failed
        victim.directory.heal()

    play(script)


def test_a_batch_that_became_too_large_on_its_way_is_answered() -> None:
    def script(cluster: Cluster) -> None:
        follower = follower_of(cluster).replica
        leader = leader_of(cluster).replica
        assert follower is not None
        assert leader is not None
        leader.queue.submit(encode(SetLimits((("batch_bytes", 65_536),))), lambda _: None, 5.0)
        cluster.run(1)
        follower.queue.limits = LIMITS  # as if it had not applied that yet
        results: list[Result] = []
        large = encode(New(1, None, bytes(100_000)))
        follower.queue.submit(large, results.append, 5.0)
        cluster.run(1)
        assert isinstance(results[0], LimitExceeded)

    play(script)


def test_all_nodes_lose_power_at_once_again_and_again() -> None:
    def script(cluster: Cluster) -> None:
        for _ in range(6):
            cluster.do("power_all")
            cluster.run(6)

    assert play(script).lives >= 21
