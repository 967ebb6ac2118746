"""What a node counts, while it does what is counted."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import Node, OperationError, meters
from cluster.meters import Histogram, NodeMeters, ThemeMeters, survey
from cluster.queues import QueueSettings
from state import Acquired, Created, Phase, StateMachine, encode, encode_batch
from state.operations import Acquire, New, Operation, Park, Pause, Remove, SetPolicy, Store, Tick
from tests.cluster.test_node import alone, running, trio, until
from tests.cluster.test_queues import Bench

NOW_MS = 1_700_000_000_000


# Histograms


@given(st.lists(st.floats(0, 20) | st.sampled_from([1.0, 5.0])))
def test_a_value_is_in_the_first_bucket_whose_bound_it_does_not_pass(values: list[float]) -> None:
    histogram = Histogram((1.0, 5.0, 10.0))
    for value in values:
        histogram.observe(value)
    found = histogram.values()
    up_to = [sum(value <= bound for value in values) for bound in (1.0, 5.0, 10.0)]
    between = [up_to[0], up_to[1] - up_to[0], up_to[2] - up_to[1], len(values) - up_to[2]]
    assert list(found.buckets) == between
    assert found.count == len(values)
    assert found.total == pytest.approx(sum(values))


def test_what_was_read_does_not_change_any_more() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(0.5)
    found = histogram.values()
    histogram.observe(0.5)
    assert list(found.buckets) == [1, 0]


# The double queue


def test_each_batch_is_measured_once_when_it_is_answered() -> None:
    bench = Bench()
    queue = bench.queue
    bench.submit(1, 2, 3)
    bench.run()
    batch = bench.sent[0][0]
    assert (queue.batches, queue.operations, queue.answered) == (1, 3, 0)
    assert queue.commit_s.values().count == 0
    queue.committed(batch)
    queue.doubt(batch)  # as after a snapshot, and so it is committed twice
    queue.restart()
    applied = bench.apply(batch)
    queue.applied(batch, applied)  # it comes again
    assert queue.answered == 3
    assert queue.resends == 1
    assert queue.commit_s.values().count == 1
    assert 0 < queue.commit_s.total < 10
    assert queue.batch_operations.values().total == 3
    assert queue.batch_bytes.values().total == len(batch.command)


def test_what_the_queue_itself_answers_is_counted_by_code() -> None:
    bench = Bench(QueueSettings(intake_operations=2))
    queue = bench.queue
    bench.has_leader = False
    bench.submit(1, 2, timeout_s=1.0)
    bench.submit(3)
    assert queue.depth == 2
    bench.run(2.0)
    assert queue.oldest_s == pytest.approx(2.0)
    queue.expire(is_lagging=False)
    assert (queue.depth, queue.oldest_s) == (0, 0.0)
    queue.submit(bytes(queue.limits.batch_bytes), lambda _: None, 1.0)
    bench.submit(4)
    bench.run()
    queue.fail("of the test")
    bench.submit(5)
    assert queue.failed == {"overloaded": 1, "timed_out": 2, "too_large": 1, "stopping": 2}


def test_reads_are_counted_when_they_are_answered() -> None:
    bench = Bench()
    answers: list[object] = []
    for _ in range(3):
        bench.queue.read(answers.append, 5.0)
    bench.run()
    assert bench.queue.reads == 0
    bench.apply(bench.sent[0][0])
    assert bench.queue.reads == len(answers) == 3
    assert bench.queue.operations == 1, "they share a barrier"


# A node


async def test_the_numbers_of_a_node_move_with_what_it_does(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        before = node.meters()
        for number in range(50):
            await node.submit(New(number % 5, b"%d" % number, bytes(200)))
        await node.read()
        after = node.meters()

        def gain(read: Callable[[NodeMeters], float]) -> float:
            return read(after) - read(before)

        assert after.is_ready
        assert after.is_leader
        assert after.has_leader
        assert (after.term, after.leader_changes, after.elections) == (1, 1, 1)
        assert after.committed_index == after.applied_index == after.heard_index
        assert gain(lambda one: one.applied_index) == gain(lambda one: one.batches)
        assert gain(lambda one: one.operations) >= 51
        assert after.operations == after.answered
        assert gain(lambda one: one.reads) == 1
        assert gain(lambda one: one.commit_s.count) == gain(lambda one: one.batches)
        assert gain(lambda one: one.batch_operations.total) == gain(lambda one: one.operations)
        assert gain(lambda one: one.batch_bytes.total) > 50 * 200
        assert gain(lambda one: one.apply_s.count) == gain(lambda one: one.batches)
        assert after.fsync_s.count > before.fsync_s.count
        assert after.fsync_s.count <= after.journal_frames
        assert gain(lambda one: one.journal_frames) <= gain(lambda one: one.journal_writes)
        assert gain(lambda one: one.journal_written_bytes) > 50 * 200
        assert after.journal_bytes >= after.journal_segments * 64 * 1024
        assert (after.intake_operations, after.unanswered_batches) == (0, 0)
        assert after.sessions == 50
        assert gain(lambda one: one.state_bytes) > 50 * 200
        assert after.state_limit_bytes == node.machine.limits.state_bytes
        assert (after.transport, after.peers) == ({}, {})


async def test_checkpoints_are_measured(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        await asyncio.sleep(0.15)  # so that an age is seen that is not a checkpoint's
        aged_s = node.meters().checkpoint_age_s
        assert aged_s >= 0.1
        await node.submit(New(7, b"a"))
        await until(lambda: node.meters().checkpoint_s.count >= 1)
        found = node.meters()
        assert found.checkpoint_index >= 2
        assert found.checkpoint_age_s < 10
        assert 0 < found.checkpoint_s.total < 10


async def test_stale_sessions_are_counted_where_they_were_reaped(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        await node.submit(SetPolicy(7, (("lease_ms", 100),)))
        for number in range(3):
            await node.submit(New(7, b"%d" % number))
        await until(lambda: node.meters().reaped["stale"] == 3)
        assert node.meters().reaped["disconnected"] == 0


async def test_what_an_earlier_life_held_is_counted_when_it_is_stored(tmp_path: Path) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        for number in range(4):
            await node.submit(New(7, b"%d" % number, consumer=node.consumer(b"worker")))
    async with Node(alone(tmp_path)) as node:
        await until(lambda: node.meters().reaped["disconnected"] == 4)
        assert node.meters().reaped["stale"] == 0


async def test_members_count_each_other(tmp_path: Path) -> None:
    async with running(trio(tmp_path)) as nodes:
        await nodes[0].submit(New(7, b"a"))
        await until(lambda: all(all(one.peers.values()) for one in (n.status() for n in nodes)))
        (leader,) = [node for node in nodes if node.is_leader]
        (follower, _) = [node for node in nodes if node is not leader]
        await follower.submit(New(7, b"b"))
        await until(lambda: leader.replica.lag == follower.replica.lag == 0)
        led = leader.meters()
        assert {len(node.meters().peers) for node in nodes} == {2}
        assert led.transport["frames_in"] > 0
        assert led.transport["bytes_out"] > led.transport["frames_out"]
        assert all(one.is_connected for one in led.peers.values())
        indexes = [one.match_index or 0 for one in led.peers.values()]
        # A majority has what is committed, and the leader is one of it.
        assert max(indexes) >= led.committed_index
        followed = follower.meters()
        assert not followed.is_leader
        assert followed.has_leader
        assert {one.match_index for one in followed.peers.values()} == {None}
        assert followed.heard_index >= followed.applied_index

        changes = [node.meters().leader_changes for node in nodes]
        assert await leader.transfer()
        await until(
            lambda: [n.meters().leader_changes for n in nodes] >= [one + 1 for one in changes]
        )
        terms = {node.meters().term for node in nodes}
        assert terms == {max(terms)} != {led.term}


async def test_a_node_without_a_majority_says_how_long_operations_wait(tmp_path: Path) -> None:
    settings = trio(tmp_path)
    async with Node(settings[0]) as node:
        with pytest.raises(OperationError, match="timed_out"):
            await node.submit(New(7, b"a"), timeout_ms=50)
        waiting = asyncio.ensure_future(node.submit(New(7, b"b"), timeout_ms=60_000))
        await until(lambda: node.meters().intake_oldest_s >= 0.2)
        found = node.meters()
        assert not found.has_leader
        assert (found.intake_operations, found.committed_index) == (1, 1)
        assert found.intake_bytes > 0
        assert found.failed["timed_out"] == 1
    with pytest.raises(OperationError, match="stopping"):
        await waiting


# Themes


class Machine:
    """A state machine that is told what to do."""

    def __init__(self) -> None:
        self.machine = StateMachine()
        self._index = 1
        self.do(Tick(NOW_MS))

    def do(self, *operations: Operation) -> tuple[object, ...]:
        self._index += 1
        encoded = [encode(one) for one in operations]
        batch = encode_batch("a", 1, self._index, 1, encoded)
        return self.machine.apply(self._index, batch).results

    def theme(self, theme: int, *, ready: int = 0, stored: int = 0) -> None:
        for delay_ms, count in ((0, ready), (60_000, stored)):
            self.do(*(New(theme, repeat_after_ms=delay_ms) for _ in range(count)))


async def test_a_survey_counts_what_is_there() -> None:
    bench = Machine()
    random = Random(7)
    held: list[tuple[int, int]] = []
    for _ in range(600):
        theme = random.randrange(12)
        match random.randrange(6):
            case 0 | 1:
                delay_ms = random.choice([None, 0, 0, 5_000])
                priority = random.choice([1, 128, 9_000])
                new = New(theme, priority=priority, repeat_after_ms=delay_ms)
                (created,) = bench.do(new)
                assert isinstance(created, Created)
                if created.epoch:
                    held.append((created.session_id, created.epoch))
            case 2:
                (several,) = bench.do(Acquire((theme,)))
                assert isinstance(several, tuple)
                held.extend((one.session_id, one.epoch) for one in several)
                assert all(isinstance(one, Acquired) for one in several)
            case 3 if held:
                ending = random.choice([Remove, Park, Store])
                bench.do(ending(*held.pop(random.randrange(len(held)))))
            case _:
                bench.do(Tick(bench.machine.now_ms + random.randrange(500)))
    machine = bench.machine
    now_ms = machine.now_ms + 3
    found = await survey(machine, now_ms, busiest=1000)
    sessions = list(machine.sessions())
    for phase in (Phase.STORED, Phase.READY, Phase.ACTIVE, Phase.PARKED):
        expected = sum(one.phase is phase for one in sessions)
        assert expected
        assert getattr(found, phase.name.lower()) == expected
    ready = [one for one in sessions if one.phase is Phase.READY]
    assert found.oldest_due_s == (now_ms - min(one.due_ms for one in ready)) / 1000
    assert found.themes == len(found.busiest) == len({one.theme.theme_id for one in sessions})
    for one in found.busiest:
        of_theme = [session for session in sessions if session.theme.theme_id == one.theme]
        phases = Counter(each.phase for each in of_theme)
        due = [now_ms - each.due_ms for each in of_theme if each.phase is Phase.READY]
        assert one == ThemeMeters(
            one.theme,
            phases[Phase.STORED],
            phases[Phase.READY],
            phases[Phase.ACTIVE],
            phases[Phase.PARKED],
            paused=False,
            oldest_due_s=max(due, default=0) / 1000,
        )


async def test_only_the_busiest_themes_are_shown_one_by_one_and_all_are_counted() -> None:
    bench = Machine()
    for theme in range(2000):  # more than are looked at in a turn
        bench.theme(theme, stored=1)
    bench.theme(1990, ready=3)
    bench.theme(5, ready=2)
    bench.theme(700, stored=10)
    found = await survey(bench.machine, bench.machine.now_ms, busiest=4)
    assert [one.theme for one in found.busiest] == [0, 5, 700, 1990]
    assert (found.themes, found.stored, found.ready) == (2000, 2010, 5)


async def test_the_oldest_of_all_is_found_in_a_theme_that_is_not_shown() -> None:
    bench = Machine()
    bench.theme(1, ready=1)
    bench.do(Tick(NOW_MS + 5_000))
    bench.theme(2, ready=2)
    found = await survey(bench.machine, NOW_MS + 6_000, busiest=1)
    assert [one.theme for one in found.busiest] == [2]
    assert found.busiest[0].oldest_due_s == 1.0
    assert found.oldest_due_s == 6.0


async def test_a_paused_theme_is_old_for_a_reason() -> None:
    bench = Machine()
    bench.theme(1, ready=1)
    bench.do(Pause(1))
    found = await survey(bench.machine, NOW_MS + 9_000, busiest=10)
    assert found.busiest == (ThemeMeters(1, 0, 1, 0, 0, paused=True, oldest_due_s=9.0),)
    assert found.oldest_due_s == 0.0


async def test_a_survey_lets_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = itertools.count()
    monkeypatch.setattr(meters, "perf_counter", lambda: next(moments) / 10_000)
    bench = Machine()
    for theme in range(300):
        bench.theme(theme, stored=1)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(other())
    await asyncio.sleep(0)
    turns = 0
    found = await survey(bench.machine, NOW_MS, busiest=10)
    task.cancel()
    assert found.themes == 300
    assert turns >= 10


async def test_what_is_due_grows_old_though_the_replicated_time_stands_still(
    tmp_path: Path,
) -> None:
    async with Node(alone(tmp_path)) as node:
        await node.wait_until_ready()
        await node.submit(New(7, b"a", repeat_after_ms=0))
        now_ms = node.machine.now_ms
        before = await node.survey(busiest=1)
        await asyncio.sleep(0.4)
        after = await node.survey(busiest=1)
        assert node.machine.now_ms == now_ms, "nothing is scheduled"
        assert after.oldest_due_s - before.oldest_due_s >= 0.3
        assert after.busiest[0].ready == 1
