"""The node in memory does what a leader does with a state machine, and nothing else."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.answers import view_of
from api.memory.gateway import MemoryGateway
from cluster.failures import ClusterError, OperationError, Stopping
from state import (
    Applied,
    Cause,
    Failure,
    Operation,
    Phase,
    StateMachine,
    encode,
    encode_batch,
)
from state.operations import (
    Acquire,
    AcquireSession,
    Append,
    Heartbeat,
    Idempotent,
    New,
    Park,
    Remove,
    Replace,
    SetPolicy,
    Store,
    Tick,
    Touch,
    Txn,
    Unpark,
)

THEME = 7
HOUR_MS = 3_600_000


@pytest.fixture
async def gateway() -> AsyncIterator[MemoryGateway]:
    found = MemoryGateway()
    found.memory.clock.stop()
    await found.start()
    yield found
    await found.stop()


async def ask(gateway: MemoryGateway, operation: Operation) -> Any:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    gateway.submit(encode(operation), done.set_result)
    return await done


class Bare:
    """A state machine, and the least that a leader does for it."""

    def __init__(self, now_ms: int) -> None:
        self.machine = StateMachine()
        self.now_ms = now_ms
        self._sequence = itertools.count(1)

    def ask(self, *operations: Operation) -> Any:
        number = next(self._sequence)
        encoded = [encode(one) for one in (Tick(self.now_ms), *operations)]
        applied = self.machine.apply(number, encode_batch("bare", 1, number, 1, encoded))
        return applied.results[-1]

    def advance(self, ms: int, beating: list[bytes]) -> None:
        least_ms = -(-ms // 500)
        end_ms = self.now_ms + ms
        self.look(beating)
        while self.now_ms < end_ms:
            wake_ms = self.machine.next_wake_ms
            step_ms = ms if wake_ms is None else wake_ms - self.now_ms
            self.now_ms = min(end_ms, self.now_ms + max(step_ms, least_ms))
            self.look(beating)

    def look(self, beating: list[bytes]) -> None:
        while True:
            self.ask(*(Heartbeat(one) for one in beating))
            for session_id, epoch in self.machine.stale(512):
                self.ask(Store(session_id, epoch, cause=Cause.STALE))
            wake_ms = self.machine.next_wake_ms
            if wake_ms is None or wake_ms > self.now_ms:
                return


def operation(chance: random.Random, machine: StateMachine) -> Operation:
    """Something that may or may not be possible just now."""
    target = chance.randint(1, max(machine.last_session_id, 1))
    session = machine.session(target)
    epoch = session.epoch if session is not None and chance.random() < 0.8 else 1
    consumer = chance.choice([None, b"a", b"b"])
    data = chance.randbytes(chance.randint(0, 20))
    after_ms = chance.choice([None, 0, 1_000, 40_000])
    key = chance.choice([None, b"k1", b"k2"])
    simple: list[Operation] = [
        New(THEME, key, data, repeat_after_ms=after_ms, consumer=consumer),
        New(THEME + 1, key, data, on_conflict=chance.randint(0, 2), consumer=consumer),
        Append(target, epoch, data),
        Replace(target, None, data),
        Remove(target, epoch),
        Store(target, epoch, after_ms, Cause.FAILED, "why"),
        Acquire((THEME, THEME + 1), chance.randint(1, 3), consumer),
        AcquireSession(target, consumer),
        Touch(target, epoch, consumer),
        Park(target, epoch, "later"),
        Unpark(target),
        SetPolicy(THEME, (("lease_ms", chance.choice([5_000, 30_000])), ("max_attempts", 4))),
    ]
    one = chance.choice(simple)
    match chance.randint(0, 9):
        case 0:
            return Txn((one, chance.choice(simple)))
        case 1:
            return Idempotent(b"%d" % chance.randint(1, 5), 60_000, one)
        case _:
            return one


@pytest.mark.parametrize("seed", range(8))
async def test_a_random_history_is_that_of_a_bare_state_machine(
    gateway: MemoryGateway, seed: int
) -> None:
    chance = random.Random(seed)
    memory = gateway.memory
    bare = Bare(memory.clock.now_ms)
    seen = set[type[Any]]()
    for _ in range(400):
        if chance.random() < 0.1:
            ms = chance.choice([1, 700, 6_000, 31_000, 90_000])
            beating = chance.choice([[], [b"a"]])
            await memory.advance(ms, lambda beating=beating: beating)  # type: ignore[misc]
            bare.advance(ms, beating)
        else:
            one = operation(chance, bare.machine)
            result = await ask(gateway, one)
            assert result == bare.ask(one), one
            seen.add(type(result))
        assert memory.clock.now_ms == memory.machine.now_ms == bare.now_ms
    views = [
        sorted(map(view_of, machine.sessions()), key=lambda view: view.id)
        for machine in (memory.machine, bare.machine)
    ]
    assert views[0] == views[1]
    assert memory.reaper.reaped > 0
    assert len(seen) > 5, seen


async def test_operations_of_one_turn_are_one_batch(gateway: MemoryGateway) -> None:
    batches: list[int] = []

    class Watcher:
        def on_applied(self, applied: Applied) -> None:
            batches.append(len(applied.results))

        def on_leader(self, leader: str | None) -> None: ...
        def on_installed(self) -> None: ...

    gateway.watchers.append(Watcher())
    await asyncio.gather(*(ask(gateway, New(THEME)) for _ in range(10)))
    assert batches == [10]  # no Tick: time stands still
    gateway.memory.clock.advance(1_000)
    await asyncio.gather(*(ask(gateway, New(THEME)) for _ in range(3)))
    assert batches == [10, 4]


async def test_time_that_goes_by_itself_brings_sessions_back(gateway: MemoryGateway) -> None:
    gateway.memory.clock.go_on()
    ready = asyncio.Event()

    class Watcher:
        def on_applied(self, _applied: Applied) -> None:
            if gateway.ready_count(THEME):
                ready.set()

        def on_leader(self, leader: str | None) -> None: ...
        def on_installed(self) -> None: ...

    gateway.watchers.append(Watcher())
    await ask(gateway, SetPolicy(THEME, (("lease_ms", 100), ("repeat_ms", 0))))
    await ask(gateway, New(THEME))
    async with asyncio.timeout(10):
        await ready.wait()
    (session,) = gateway.memory.machine.sessions()
    assert session.history[-1].cause == Cause.STALE


async def test_far_and_near_advances_are_exact(gateway: MemoryGateway) -> None:
    begin_ms = gateway.memory.clock.now_ms
    for ms in (0, 1, 999, 10 * 365 * 24 * HOUR_MS):
        await gateway.memory.advance(ms, None)
    assert gateway.now_ms - begin_ms == 1_000 + 10 * 365 * 24 * HOUR_MS


async def test_a_lease_that_ends_on_the_way_ends_at_its_time(gateway: MemoryGateway) -> None:
    await ask(gateway, SetPolicy(THEME, (("lease_ms", 30_000), ("repeat_ms", 60_000))))
    created = await ask(gateway, New(THEME))
    await gateway.memory.advance(80_000, tuple)
    session = gateway.memory.machine.session(created.session_id)
    assert session is not None
    assert session.phase is Phase.STORED
    await gateway.memory.advance(11_000, tuple)  # 30 s, 60 s, and their jitter and look
    session = gateway.memory.machine.session(created.session_id)
    assert session is not None
    assert session.phase in {Phase.STORED, Phase.READY}
    await gateway.memory.advance(6_000, tuple)
    assert gateway.ready_count(THEME) == 1


async def test_signs_of_life_wait_while_nobody_gives_any(gateway: MemoryGateway) -> None:
    await ask(gateway, New(THEME, consumer=b"a"))
    told: list[Any] = []
    held: list[Any] = []

    class Watcher:
        """Beats at each batch, as a consumer may at any moment."""

        def on_applied(self, applied: Applied) -> None:
            if len(told) < 50:
                told.append(applied)
                gateway.submit(encode(Heartbeat(b"a")), held.append, is_ending=True)

        def on_leader(self, leader: str | None) -> None: ...
        def on_installed(self) -> None: ...

    gateway.watchers.append(Watcher())
    await gateway.memory.advance(31_000, None)
    assert gateway.memory.reaper.reaped == 1
    assert held
    assert held[-1] == 0


async def test_stopped_it_takes_nothing_in(gateway: MemoryGateway) -> None:
    await gateway.stop()
    assert isinstance(await ask(gateway, New(THEME)), Stopping)
    with pytest.raises(OperationError, match="stopping"):
        await gateway.memory.advance(1, None)


async def test_time_ends_somewhere(gateway: MemoryGateway) -> None:
    with pytest.raises(OperationError, match="time is out of range"):
        await gateway.memory.advance(1 << 62, None)


async def test_a_defect_ends_it(
    gateway: MemoryGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(gateway.memory.machine, "apply", fail)
    assert isinstance(await ask(gateway, New(THEME)), Stopping)
    assert str(await gateway.failure()) == "a defect"
    assert "cannot go on" in caplog.text


async def test_it_leads_and_nobody_else_could(gateway: MemoryGateway) -> None:
    assert gateway.leader == "memory"
    assert await gateway.transfer("memory")
    assert not await gateway.transfer("")
    with pytest.raises(ClusterError, match="no member"):
        await gateway.transfer("node-1")


async def test_many_signs_of_life_come_before_the_reaper(gateway: MemoryGateway) -> None:
    """More of them than a batch has room for."""
    names = [b"%d" % number for number in range(5_000)]
    held = await asyncio.gather(*(ask(gateway, New(THEME, consumer=one)) for one in names))
    assert len(held) == 5_000
    await gateway.memory.advance(40_000, lambda: names)
    assert gateway.memory.reaper.reaped == 0


async def test_bounds_are_those_of_a_real_queue(gateway: MemoryGateway) -> None:
    result = await ask(gateway, New(THEME, data=b"x" * (5 << 20)))
    assert isinstance(result, Failure)
    assert result.code == "too_large"
