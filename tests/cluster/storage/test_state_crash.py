"""Kills processes that write checkpoints; what is on disk is always the last or the one before."""

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.cluster.storage.state_files import Log, listing, listing_of, opened
from tests.state.workload import whole

KILLS = 25


def lived(path: Path, lifetime_s: float) -> int:
    """The last index that a child said it had committed before it was killed; 0 for none."""
    command = [sys.executable, "-m", "tests.cluster.storage.checkpoint_child", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603 - ours
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(lifetime_s)
        assert child.poll() is None, "it ended by itself"
        child.kill()
        lines = child.stdout.read().split("\n")
    # What comes after the last line's end was cut off, and was not said.
    return int(lines[-2]) if len(lines) > 1 else 0


def killed_repeatedly(path: Path, kills: int, seed: int) -> int:
    """How many of the kills were in the middle of a transaction that had reached the file."""
    random = Random(seed)
    twin = Log()
    hot = 0
    on_disk = 0
    for _ in range(kills):
        said = lived(path, random.uniform(0, 0.3))
        if not path.exists():
            assert said == 0
            continue
        journal = path.with_name("state.db-journal")
        hot += journal.exists() and journal.stat().st_size > 512
        with closing(opened(path)) as file:
            found = file.applied_index
            assert max(said, on_disk) <= found <= max(said, on_disk) + 1
            assert file.applied_term == found % 7
            while twin.machine.applied_index < found:
                twin.step()
            assert listing_of(file) == listing(whole(twin.machine))
            assert file.load_machine().digest() == twin.machine.digest()
        on_disk = found
    assert on_disk > kills / 2, "the children came to nothing"
    return hot


def test_a_killed_process_leaves_a_checkpoint(tmp_path: Path) -> None:
    hot = killed_repeatedly(tmp_path / "state.db", KILLS, seed=1)
    assert hot, "no kill was in the middle: this has shown nothing"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_many_killed_processes_leave_a_checkpoint(tmp_path: Path) -> None:
    assert killed_repeatedly(tmp_path / "state.db", 100, seed=2) > 10
