"""A disk is full: the node says so and ends, the others go on; with room again it comes back."""

import asyncio
from pathlib import Path

import pytest

from tests.crash.clients import Load
from tests.crash.disks import Disk
from tests.crash.processes import NAMES, Cluster
from tests.crash.server import Status

SIZE_MIB = 24
NEVER_MS = 10**9
SEGMENT_BYTES = 64 << 10

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("who", ["leader", "follower"])
@pytest.mark.parametrize("what", ["journal", "checkpoint"])
async def test_a_node_with_a_full_disk_ends(directory: Path, who: str, what: str) -> None:
    # Each of the two on a disk of its own, so that it is clear which one is full.
    small = "journal" if what == "journal" else ""
    disks = {}
    try:
        for name in NAMES:
            disks[name] = [Disk(directory / f"{name}.img", directory / name, SIZE_MIB)]
            journal = directory / name / "journal"
            disks[name].append(Disk(directory / f"{name}-journal.img", journal, SIZE_MIB))
        # With a checkpoint the log is cut and its segments are used again: a full disk would not
        # matter to the journal.
        checkpoint_ms, log_bytes = (NEVER_MS, 1 << 30) if small else (250, 60_000)
        async with Cluster(
            directory, checkpoint_ms=checkpoint_ms, log_bytes=log_bytes, log_bytes_max=1 << 30
        ) as cluster:
            await cluster.start()
            async with Load(cluster, 1):
                await cluster.progress(200)
                victim = cluster.leader if who == "leader" else cluster.followers[0]
                victim.may_end()
                ballast = disks[victim.name][1 if small else 0].fill()
                assert await victim.ended() == Status.FAILED, victim.last_words
                assert "failed: " in victim.last_words
                assert ("/journal" if small else "state.db") in victim.last_words
                assert "full" in victim.last_words or "No space left" in victim.last_words
                await cluster.progress(200)
                # It does not start on a full disk either, or fails again; and harms nothing.
                await victim.start()
                victim.may_end()
                assert await victim.ended() in {Status.REFUSED, Status.FAILED}, victim.last_words
                ballast.unlink()
                await victim.start()
                await victim.started()
                await cluster.progress(200)
                await asyncio.sleep(0.5)
            await cluster.check()
            assert await cluster.stop() == [Status.STOPPED] * 3
    finally:
        for pair in disks.values():
            for disk in reversed(pair):
                disk.remove()
