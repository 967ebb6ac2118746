"""Nodes are killed at any moment; what was acknowledged is there, once, on all of them."""

from pathlib import Path
from random import SystemRandom

import pytest

from tests.crash.nemesis import Kind, run_seed, schedule

STEPS = 12
LONG_STEPS = 300


async def test_killed_nodes_lose_nothing(directory: Path) -> None:
    outcome = await run_seed(SystemRandom().randrange(2**32), directory, STEPS)
    assert outcome.kills > STEPS
    assert outcome.leader_changes
    assert outcome.hits["start"], "no node was killed while it started"
    assert outcome.reads


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_nodes_killed_hundreds_of_times_lose_nothing(directory: Path) -> None:
    outcome = await run_seed(SystemRandom().randrange(2**32), directory, LONG_STEPS)
    assert outcome.kills > LONG_STEPS
    # Otherwise it has not shown what it is for.
    for moment in ("start", "checkpoint", "snapshot's arrival", "segment being made"):
        assert outcome.hits[moment], moment


def test_a_seed_is_a_schedule() -> None:
    assert schedule(7, STEPS) == schedule(7, STEPS)
    assert schedule(7, STEPS) != schedule(8, STEPS)
    assert {step.kind for step in schedule(7, STEPS)} == set(Kind)
