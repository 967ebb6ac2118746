"""The journal loses nothing that it said to be durable, wherever a process or a machine ends.

A run writes at random on the virtual disk and ends at random, inside any operation too, and inside
the recovery from the end before. What is recovered is one of the model's states: that after the
last durable frame, or after a later one.
"""

import errno
import random
import re
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage.errors import DiskError, DiskFullError
from cluster.storage.journal_files import JournalFiles, JournalSettings
from cluster.storage.records import Base, Commit, Entry, Record
from tests.cluster.storage.journal_model import IDENTITY, Model, Writer
from tests.simulation.disk import Crashed, Operation, VirtualDirectory

STEPS_A_RUN = 120
SEEDED_RUNS = 150
LONG_RUNS = 5000


class Run:
    """One journal through many lives."""

    def __init__(self, seed: int | str) -> None:
        self.random = Random(seed)
        self.directory = VirtualDirectory(Random(f"{seed} disk"))
        self.writer = Writer(self.random)
        self.seen = self.writer.made
        # What each frame left; those up to `durable` have to be there after a power loss.
        self.models = [Model()]
        self.durable = 0
        # Those up to this one are in the files, as long as the machine runs.
        self.written = 0
        self.files: JournalFiles | None = None

    def play(self, steps: int) -> None:
        for _ in range(steps):
            if self.files is None:
                self.open()
            else:
                self.step(self.files)
        self.directory.kill()
        self.open(may_end=False)

    def step(self, files: JournalFiles) -> None:
        if self.random.random() < 0.1:
            self.directory.crash_after(self.random.randint(1, 12))
        try:
            match self.random.choices(range(6), (12, 4, 1, 1, 1, 1))[0]:
                case 0:
                    self.append(files)
                case 1:
                    files.reclaim()
                    assert not files.wants_reclaim
                case 2:
                    files.close()
                    self.durable = len(self.models) - 1
                    self.end("closed")
                case 3:
                    self.written = len(self.models) - 1
                    self.end("killed", is_kill=True)
                case 4:
                    self.end("power lost")
                case _:
                    self.fail(files)
        except Crashed:
            self.end("crashed")

    def append(self, files: JournalFiles) -> None:
        records = self.writer.frame(self.models[-1])
        self.models.append(self.models[-1].after(records))
        segment = self.newest_segment()
        files.append(records)
        self.durable = len(self.models) - 2  # the frame before has to be
        if self.newest_segment() != segment:
            self.seen.add("rotation")
        if self.random.random() < 0.9:
            files.sync()
            self.durable += 1

    def fail(self, files: JournalFiles) -> None:
        """The disk refuses something; then the process has to end."""
        operation = self.random.choice(list(Operation))
        self.directory.fail_next(operation, self.random.choice((errno.EIO, errno.ENOSPC)))
        try:
            for _ in range(3):
                self.append(files)
                self.reclaim(files)
        except DiskError as error:
            self.seen.add(f"failed to {operation}")
            with pytest.raises(DiskError, match=re.escape(str(error))):
                files.append(())
            self.end("failed")
        else:
            self.directory.heal()

    def reclaim(self, files: JournalFiles) -> None:
        try:
            files.reclaim()
        except DiskFullError:
            self.seen.add("no room for a spare segment")
            files.append(())  # goes on
            files.sync()
            self.durable = len(self.models) - 1

    def end(self, how: str, *, is_kill: bool = False) -> None:
        """This life ends."""
        self.seen.add(how)
        self.files = None
        if how != "power lost" and (is_kill or self.random.random() < 0.5):
            self.directory.kill()
        else:
            self.directory.power_loss(self.random)
            self.written = 0

    def open(self, *, may_end: bool = True) -> None:
        settings = JournalSettings(
            segment_bytes=self.random.choice((8192, 8192, 16_384)),
            frame_max_bytes=1 << 19,
            spares_max=self.random.randint(0, 2),
            recycled_max=self.random.randint(0, 2),
        )
        if may_end and self.random.random() < 0.3:
            self.directory.crash_after(self.random.randint(1, 20))
        try:
            self.files, recovered = JournalFiles.open(
                self.directory, IDENTITY, settings, make_tag=lambda: self.random.randbytes(8)
            )
        except Crashed:
            self.seen.add("crashed while opening")
            self.end("crashed")
            return
        first = max(self.durable, self.written)
        possible = [model.recovered() for model in self.models[first:]]
        assert recovered in possible, (recovered, possible)
        found = first + max(number for number, model in enumerate(possible) if model == recovered)
        if found < len(self.models) - 1:
            self.seen.add("a frame was lost")
        elif found > self.durable:
            self.seen.add("a frame was kept without a sync")
        if any(name.startswith("spare-") for name in self.directory.names()):
            self.seen.add("spare segments when opened")
        del self.models[found + 1 :]
        self.durable = self.written = found  # it was recovered, so it may have been told

    def newest_segment(self) -> str:
        return max(name for name in self.directory.names() if name.startswith("segment-"))


def play(seed: int | str, steps: int = STEPS_A_RUN) -> set[str]:
    run = Run(seed)
    run.play(steps)
    return run.seen


def test_everything_that_can_happen_happens() -> None:
    """These runs are always the same, so that this does not depend on luck."""
    seen: set[str] = set()
    for number in range(60):
        seen |= play(f"everything {number}")
    assert seen == {
        "a frame was kept without a sync",
        "a frame was lost",
        "base",
        "closed",
        "crashed",
        "crashed while opening",
        "failed",
        "failed to create",
        "failed to open",
        "failed to remove",
        "failed to rename",
        "failed to sync",
        "failed to sync the names in",
        "failed to write",
        "install beyond the end",
        "install over a suffix",
        "killed",
        "large entry",
        "no room for a spare segment",
        "power lost",
        "rotation",
        "spare segments when opened",
        "truncate",
    }


def test_seeded_runs() -> None:
    seed = random.SystemRandom().getrandbits(32)
    for number in range(SEEDED_RUNS):
        _play_or_tell(f"{seed}-{number}")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_seeded_runs() -> None:
    seed = random.SystemRandom().getrandbits(32)
    for number in range(LONG_RUNS):
        _play_or_tell(f"{seed}-{number}")


@given(st.integers(0, 2**64), st.integers(1, 40))
def test_short_runs(seed: int, steps: int) -> None:
    """Hypothesis finds the shortest run that goes wrong."""
    play(seed, steps)


def _play_or_tell(seed: str) -> None:
    try:
        play(seed)
    except BaseException as error:
        error.add_note(f"to repeat this: play({seed!r})")
        raise


@pytest.mark.parametrize("is_power_loss", [False, True])
def test_a_crash_at_each_operation_of_rotations(*, is_power_loss: bool) -> None:
    """Not left to chance: every single operation, each with several fates."""
    for crash_at in count(1):
        crashes = [
            _crashes_while_rotating(crash_at, luck, is_power_loss=is_power_loss)
            for luck in range(8)
        ]
        if not any(crashes):
            break
    assert crash_at > 20


def _crashes_while_rotating(crash_at: int, luck: int, *, is_power_loss: bool) -> bool:
    directory = VirtualDirectory(Random(luck))
    settings = JournalSettings(segment_bytes=8192, spares_max=1)
    durable = written = Model()
    is_crash = False
    directory.crash_after(crash_at)
    try:
        files, _ = JournalFiles.open(directory, IDENTITY, settings)
        for index in range(2, 10):
            records: list[Record] = [
                Entry(index, 1, bytes(3000)),
                Commit(index),
                Base(index - 1, min(index - 2, 1)),
            ]
            written = durable.after(records)
            files.append(records)
            files.sync()
            durable = written
            files.reclaim()
        assert directory.names() == ["segment-0000000000000004", "spare-0000000000000004"]
    except Crashed:
        is_crash = True
    if is_power_loss:
        directory.power_loss()
    else:
        directory.kill()
    _, recovered = JournalFiles.open(directory, IDENTITY, settings)
    assert recovered in (durable.recovered(), written.recovered()), (crash_at, luck)
    return is_crash
