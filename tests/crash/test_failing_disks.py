"""A sync fails: the node acknowledges nothing more, says why, ends, and comes back whole."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.crash.clients import Load
from tests.crash.disks import Faults
from tests.crash.history import Fate
from tests.crash.processes import NAMES, Cluster
from tests.crash.server import Status

SYNCS = 40  # of a start, and of the first work after it
LONG_SYNCS = 200
SENT = 20

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("who", ["leader", "follower"])
@pytest.mark.parametrize("part", ["/journal/segment-", "/state.db"], ids=["journal", "checkpoint"])
async def test_a_node_with_a_failing_disk_ends(directory: Path, who: str, part: str) -> None:
    faults = Faults(directory)
    async with Cluster(directory) as cluster:
        for server in cluster:
            faults.meet(server)
        await cluster.start()
        async with Load(cluster, 1):
            await cluster.progress(200)
            victim = cluster.leader if who == "leader" else cluster.followers[0]
            victim.may_end()
            faults.tell(victim, "fail", part)
            assert await victim.ended() == Status.FAILED, victim.last_words
            assert "failed: " in victim.last_words
            assert part in victim.last_words
            await cluster.progress(200)  # the others go on
            assert cluster.leader is not victim
            faults.end(victim)
            await victim.start()
            await victim.started()
            await cluster.progress(200)
        await cluster.check()
        assert await cluster.stop() == [Status.STOPPED] * 3


async def test_nothing_is_acknowledged_after_a_failed_sync(directory: Path) -> None:
    """A cluster of one: no other disk may stand for the one that fails."""
    faults = Faults(directory)
    async with Cluster(directory, NAMES[:1]) as cluster:
        (server,) = cluster
        faults.meet(server)
        await cluster.start()
        history = cluster.history
        async with Load(cluster, 1, workers=0) as load:
            await cluster.progress(200)
            server.may_end()
            faults.tell(server, "fail", "/journal/segment-")
            sent = len(history.attempts)  # what is sent from now on cannot be synced
            load.write(server, SENT)
            assert await server.ended() == Status.FAILED, server.last_words
        later = [attempt for number, attempt in history.attempts.items() if number > sent]
        assert len(later) >= SENT
        assert not [one for one in later if one.fate is Fate.ACKNOWLEDGED]
        faults.end(server)
        await cluster.check()


async def test_a_node_refuses_to_start_on_a_failing_disk(directory: Path) -> None:
    faults = Faults(directory)
    async with Cluster(directory, NAMES[:1]) as cluster:
        (server,) = cluster
        faults.meet(server)
        await cluster.start()
        async with Load(cluster, 1):
            await cluster.progress(200)
            server.kill()
            await server.ended()
        faults.tell(server, "fail", "/journal/segment-")
        await server.start()
        server.may_end()
        assert await server.ended() == Status.REFUSED, server.last_words
        assert "/journal/segment-" in server.last_words
        faults.end(server)
        await cluster.check()


async def killed_at_each_sync(directory: Path, syncs: range) -> None:
    """Kill a node in its n-th sync, for one n after the other, and look at what it left."""
    faults = Faults(directory)
    async with Cluster(directory) as cluster:
        victim = cluster.servers[NAMES[0]]
        faults.meet(victim)
        await cluster.start()
        async with Load(cluster, 1):
            for first in syncs:
                await cluster.progress(10)
                victim.kill()
                await victim.ended()
                faults.tell(victim, "kill", f"/{victim.name}/", first)
                await victim.start()
                victim.may_end()
                # Under load, the sync will come. It dies there or the test fails here.
                assert await victim.ended() == -signal.SIGKILL, victim.last_words
                faults.end(victim)
                await victim.start()
                await asyncio.sleep(0)
            await victim.started()
            await cluster.progress(100)
        await cluster.check()


async def test_a_node_killed_in_any_sync_comes_back(directory: Path) -> None:
    """The first ones are of recovery; then come segments, frames and checkpoints."""
    early = range(1, SYNCS, 3)
    await killed_at_each_sync(directory, early)


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_a_node_killed_in_each_of_many_syncs_comes_back(directory: Path) -> None:
    await killed_at_each_sync(directory, range(1, LONG_SYNCS))
