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

SEEDS = 120  # with two processes about half a minute
LONG_SEEDS = 4_000

# The seed that shows what each guard is for, when this was last looked at: docs/divergence.md tells
# what goes wrong. A change of the code changes what a seed does, so as many more are tried.
QUICK = {
    "matching_entries_stay": 0,
    "own_copy_waits_for_disk": 1,
    "pre_vote": 23,
    "check_quorum": 27,
    "promises_wait_for_disk": 0,
    "retries_are_recognised": 0,
    "batches_stay_in_order": 24,
    "reads_wait_for_barrier": 1,
}
QUICK_MORE = 200
SLOW = {
    "commit_stays_within_verified": 204,
    "leases_get_grace": 70,
    "old_terms_are_answered": 76,
    "acks_name_their_term": 149,
    "one_vote_a_member": 125,
}
SLOW_MORE = 2000


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
    must_fail(guard, QUICK[guard], QUICK_MORE)


@pytest.mark.long
@pytest.mark.parametrize("guard", SLOW)
def test_without_any_guard_a_promise_breaks(guard: str) -> None:
    must_fail(guard, SLOW[guard], SLOW_MORE)


def must_fail(guard: str, first: int, more: int) -> None:
    first = max(first - 1, 0)  # its neighbours are tried at the same time
    seeds = ("--first", str(first), "--seeds", str(more))
    done = run("--without", guard, *seeds, "--failures", "1")
    assert "FAILED seed" in done.stdout, f"nothing goes wrong without {guard}: {done.stdout[-500:]}"


def test_a_seed_is_the_same_run_each_time() -> None:
    first, second = (run("--seed", "24", hash_seed=seed).stdout for seed in ("1", "2"))
    assert first == second != ""
