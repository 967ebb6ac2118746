"""Random seeds, anew in each run. A failure prints the seed; `python -m tests.simulation --seed N`
replays it at this commit. The long runs are `make simulate`.
"""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from cluster.consensus.guards import Guards

SEEDS = 240  # with two processes about a minute
LONG_SEEDS = 4_000

# Guards whose absence some seed shows within so many. docs/divergence.md tells what goes wrong.
QUICK = {
    "matching_entries_stay": 200,
    "own_copy_waits_for_disk": 200,
    "pre_vote": 200,
    "check_quorum": 200,
    "promises_wait_for_disk": 200,
    "retries_are_recognised": 200,
    "batches_stay_in_order": 200,
    "reads_wait_for_barrier": 200,
}
SLOW = {
    "commit_stays_within_verified": 2000,
    "leases_get_grace": 2000,
    "old_terms_are_answered": 2000,
    "acks_name_their_term": 2000,
    "one_vote_a_member": 2000,
}


def run(*arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(  # noqa: S603 - our own program
        command, cwd=root, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(600)
def test_random_seeds_hold_every_promise() -> None:
    done = run("--seeds", str(SEEDS))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.long
def test_many_random_seeds_hold_every_promise() -> None:
    done = run("--seeds", str(LONG_SEEDS))
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_every_guard_has_its_test() -> None:
    assert {one.name for one in fields(Guards)} == {*QUICK, *SLOW}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("guard", QUICK)
def test_without_a_guard_a_promise_breaks(guard: str) -> None:
    must_fail(guard, QUICK[guard])


@pytest.mark.long
@pytest.mark.parametrize("guard", SLOW)
def test_without_any_guard_a_promise_breaks(guard: str) -> None:
    must_fail(guard, SLOW[guard])


def must_fail(guard: str, seeds: int) -> None:
    done = run("--without", guard, "--seeds", str(seeds), "--first", "0", "--failures", "1")
    assert "FAILED seed" in done.stdout, f"nothing goes wrong without {guard}: {done.stdout[-500:]}"


def test_a_seed_is_the_same_run_each_time() -> None:
    first, second = (run("--seed", "24", hash_seed=seed).stdout for seed in ("1", "2"))
    assert first == second != ""
