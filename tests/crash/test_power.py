"""All nodes lose power at once, under load; what was acknowledged was on the disks."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random, SystemRandom

import pytest

from tests.crash.clients import Load
from tests.crash.disks import Disk, Faults
from tests.crash.history import ViolationError
from tests.crash.processes import NAMES, Cluster
from tests.crash.server import Status

CUTS = 4
LONG_CUTS = 48
SIZE_MIB = 128

pytestmark = pytest.mark.faults


@contextmanager
def mounted(directory: Path, names: Sequence[str] = NAMES) -> Iterator[dict[str, Disk]]:
    """A disk for each node."""
    with ExitStack() as stack:
        disks = {}
        for name in names:
            disks[name] = disk = Disk(directory / f"{name}.img", directory / name, SIZE_MIB)
            stack.callback(disk.remove)
        yield disks


async def cut_power(cluster: Cluster, disks: Sequence[Disk]) -> None:
    """Let all disks lose power, then the processes, and give the power back."""
    for server in cluster:
        server.may_end()  # its disk fails before it is killed
    for disk in disks:
        disk.cut_power()
    for server in cluster:
        server.kill()
    for server in cluster:
        await server.ended()
    for disk in disks:
        disk.detach()
    for disk in disks:
        disk.attach()


async def lose_power(directory: Path, seed: int, cuts: int) -> int:
    """Cut the power a number of times, and check after each; how much was acknowledged."""
    random = Random(seed)
    try:
        with mounted(directory) as disks:
            paths = {name: disk.mount / "data" for name, disk in disks.items()}
            async with Cluster(directory / "logs", directories=paths) as cluster:
                await cluster.start()
                for _ in range(cuts):
                    async with Load(cluster, random.randrange(2**32)):
                        await cluster.progress()
                        await asyncio.sleep(random.uniform(0.0, 2.0))
                        shuffled = random.sample(list(disks.values()), len(disks))
                        await cut_power(cluster, shuffled)
                        # Again while the nodes recover, without a pause, or later.
                        if random.random() < 0.5:
                            for server in cluster:
                                await server.start()
                            await asyncio.sleep(random.uniform(0.2, 1.5))
                            await cut_power(cluster, shuffled)
                    await cluster.check()
                await cluster.stop()
                return cluster.history.acknowledged
    except Exception as error:
        error.add_note(f"seed {seed}, {cuts} cuts")
        raise


async def test_a_power_cut_loses_nothing(directory: Path) -> None:
    acknowledged = await lose_power(directory, SystemRandom().randrange(2**32), CUTS)
    assert acknowledged > CUTS * 30


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_many_power_cuts_lose_nothing(directory: Path) -> None:
    acknowledged = await lose_power(directory, SystemRandom().randrange(2**32), LONG_CUTS)
    assert acknowledged > LONG_CUTS * 30


async def test_a_node_whose_disk_is_gone_ends(directory: Path) -> None:
    """A minority without disks is no reason to stop, and none for it to hang."""
    with mounted(directory) as disks:
        paths = {name: disk.mount / "data" for name, disk in disks.items()}
        async with Cluster(directory / "logs", directories=paths) as cluster:
            await cluster.start()
            async with Load(cluster, 1):
                for who in ("leader", "follower"):
                    await cluster.progress(100)
                    victim = cluster.leader if who == "leader" else cluster.followers[0]
                    victim.may_end()
                    disks[victim.name].cut_power()
                    assert await victim.ended() == Status.FAILED, victim.last_words
                    assert "failed: " in victim.last_words
                    await cluster.progress(100)
                    disks[victim.name].detach()
                    disks[victim.name].attach()
                    await victim.start()
                    await victim.started()
                    await cluster.applied(victim)
            await cluster.check()


async def test_a_disk_that_lies_is_found_out(directory: Path) -> None:
    """The same with a sync that does nothing: if this lost nothing, the tests above show nothing.

    All of it is written, to the kernel; so only a power cut tells. A cluster of one with one
    segment: three nodes find out by themselves that they contradict each other, and a segment that
    begins with nothing is found when the node starts.
    """
    faults = Faults(directory)
    with mounted(directory, NAMES[:1]) as disks:
        paths = {name: disk.mount / "data" for name, disk in disks.items()}
        async with Cluster(
            directory / "logs", NAMES[:1], paths, segment_bytes=8 << 20, checkpoint_ms=10**9
        ) as cluster:
            (server,) = cluster
            faults.meet(server)
            await cluster.start()
            async with Load(cluster, 1):
                await cluster.progress(100)
                faults.tell(server, "lie", "/data/journal/")
                await cluster.progress(200)
                await cut_power(cluster, list(disks.values()))
                faults.end(server)
            # With some bad luck the node has begun to write over what was lost before that is seen,
            # or the kernel has written a page, and not the one before.
            with pytest.raises(ViolationError, match=r"and lost|another state|is damaged"):
                await cluster.check()
