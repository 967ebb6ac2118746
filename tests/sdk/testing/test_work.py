"""Workers under faults: each session is worked off as promised, whatever is lost on the way."""

import asyncio
import random
from collections import Counter

import pytest

from ritornello import Client, Options, Remove, Session, Store, Verdict, Worker, WorkerOptions
from ritornello.errors import LeaseLost
from ritornello.testing import Fault, Faults, LocalServer

THEME = 7
SESSIONS = 60
STEPS = 3


class Work:
    """Sessions of three steps, each in an attempt of its own."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()  # appends that a handler was told of
        self.wrong: list[str] = []
        self.faults: list[Fault | None] = []
        self.ended = asyncio.Event()  # of a handler, whichever

    async def handle(self, session: Session) -> Verdict:
        steps = session.data.split(b";")[1:]
        expected = [b"%d" % number for number in range(len(steps))]
        if steps != expected or len(steps) < self.told[session.id]:
            self.wrong.append(f"{session.id}: {steps}, told {self.told[session.id]}")
        if len(steps) < STEPS:
            await session.append(b";%d" % len(steps))
            self.told[session.id] = len(steps) + 1
            return Store(after=0)
        self.ended.set()
        return Remove()


def break_something(faults: Faults, chance: random.Random) -> Fault | None:
    match chance.randint(0, 4):
        case 0:
            return faults.drop()
        case 1:
            return faults.drop(of=("append", "store", "remove"))
        case 2:
            return faults.duplicate(5, of=("append", "remove", "store"))
        case 3:
            return faults.delay(0.02, 10)
        case _:
            faults.cut()
            return None


async def work_off(local: LocalServer, client: Client, chance: random.Random) -> Work:
    """Have all worked off, with something going wrong again and again."""
    work = Work()
    await client.set_policy(THEME, repeat_ms=0, jitter_permille=0)
    worker = Worker(client, options=WorkerOptions(concurrency=8, failures_max=None))
    worker.handler(THEME)(work.handle)
    running = asyncio.ensure_future(worker.run())
    for number in range(SESSIONS):
        await client.new(THEME, b"begin", key=f"{number}", after=0)
        if number % 4 == 0:
            work.faults.append(break_something(local.faults, chance))
    local.faults.clear()
    async with local.client() as other:
        async with asyncio.timeout(20):
            while [one async for one in other.list(THEME)]:
                work.ended.clear()
                try:
                    async with asyncio.timeout(0.3):
                        await work.ended.wait()
                except TimeoutError:
                    # What was handed out to a connection that broke has its lease to wait for.
                    local.clock.advance(60)
        worker.stop()
        await running
    return work


@pytest.mark.parametrize("seed", range(4))
async def test_each_step_is_done_once(local: LocalServer, seed: int) -> None:
    options = Options(backoff_min_s=0.005, backoff_max_s=0.05)
    async with local.client(options) as client:
        work = await work_off(local, client, random.Random(seed))
    assert not work.wrong
    assert sum(fault.happened for fault in work.faults if fault is not None) > 10
    assert len(work.told) == SESSIONS
    assert set(work.told.values()) == {STEPS}


async def test_who_loses_its_lease_changes_nothing_more(local: LocalServer) -> None:
    """Two believe that they hold it: the one that was slept on is refused."""
    async with local.client() as slow, local.client() as quick:
        await slow.set_policy(THEME, repeat_ms=0, jitter_permille=0)
        lost = await slow.new(THEME, b"begin", key="k")
        local.clock.advance(31, heartbeats=False)
        found = await quick.take((THEME, "k"))
        assert found.epoch == 2
        with pytest.raises(LeaseLost):
            await lost.append(b"; by the slow one")
        await found.append(b"; by the quick one")
        assert (await quick.get(found.id)).data == b"begin; by the quick one"
        await found.remove()
