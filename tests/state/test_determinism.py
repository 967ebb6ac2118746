"""A state is a function of its batches: not of the process, its hash seed, or who looks at it.

By design only the running interpreter is tried: `make test` runs under each version that is
supported, and `test_no_answer_depends_on_a_unicode_version` looks at what would differ.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from state import StateMachine, encode, encode_batch, load
from state.operations import SetLimits, SetPolicy
from tests.state import workload
from tests.state.workload import Step, Workload

BATCHES = 400
SEEDS = (1, 2, 3)


def run(seed: int, *, hash_seed: str, batches: int = BATCHES) -> list[str]:
    """The lines of a workload in a process of its own."""
    command = [sys.executable, "-m", "tests.state.workload"]
    command += ["--seed", str(seed), "--batches", str(batches)]
    done = subprocess.run(  # noqa: S603 - our own module
        command,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def words(lines: Iterator[str]) -> list[list[str]]:
    return [line.split() for line in lines]


@pytest.mark.parametrize("seed", SEEDS)
def test_processes_with_other_hash_seeds_agree(seed: int) -> None:
    expected = list(workload.lines(seed, BATCHES))
    assert len(expected) == BATCHES
    for hash_seed in ("0", "1", "random"):
        assert run(seed, hash_seed=hash_seed) == expected


def test_other_batches_give_another_state() -> None:
    # So that equality above is not for lack of a difference.
    first = words(workload.lines(1, 50))
    second = words(workload.lines(2, 50))
    assert not {line[1] for line in first} & {line[1] for line in second}


@pytest.mark.parametrize("watch", range(8))
def test_looking_at_a_machine_does_not_change_it(watch: int) -> None:
    # Digests and captures begin, pause and end at moments of their own in each of these.
    expected = words(workload.lines(4, BATCHES))
    every = 1 + watch * 3
    for plain, watched in zip(
        expected, words(workload.lines(4, BATCHES, digest_every=every, watch=watch)), strict=True
    ):
        if watched[1] == "-":
            watched[1] = plain[1]
        assert watched == plain


@pytest.mark.parametrize(("seed", "reload_every"), [(5, 2), (6, 7), (7, 50), (8, 399)])
def test_a_machine_that_is_loaded_in_the_middle_goes_on_the_same(
    seed: int, reload_every: int
) -> None:
    expected = words(workload.lines(seed, BATCHES))
    reloaded = words(workload.lines(seed, BATCHES, reload_every=reload_every))
    for plain, other in zip(expected, reloaded, strict=True):
        assert other[:-1] == plain[:-1]
        # A loaded machine does not know who was told already, and may name more themes once.
        assert set(plain[-1].split(",")) - {"-"} <= set(other[-1].split(","))


@pytest.mark.parametrize("seed", SEEDS)
def test_batches_after_a_reload_wake_the_same_themes(seed: int) -> None:
    # The exception above is for the first batch after a load only.
    steps = Workload(seed).take(200)
    original = StateMachine()
    for step in steps[:100]:
        original.apply(step.log_index, step.batch)
    loaded = load(workload.whole(original))
    told = False
    for step in steps[100:]:
        applied, again = (
            original.apply(step.log_index, step.batch),
            loaded.apply(step.log_index, step.batch),
        )
        if told:
            assert again == applied
        told = told or (again.failure is None and not again.duplicate)


def test_the_workload_reaches_everything() -> None:
    codes: set[str] = set()
    kinds: set[str] = set()
    batches: set[str] = set()
    for seed in range(4):
        for step in Workload(seed).take(600):
            codes |= {getattr(one, "code", type(one).__name__) for one in step.applied.results}
            kinds |= {event.kind.name for event in step.applied.events()}
            batches.add(_verdict(step))
    assert codes >= {
        *("int", "NoneType", "tuple", "Created", "Stored", "Acquired", "Done"),
        *("malformed", "unknown_operation", "limit_exceeded", "stale_term", "session_not_found"),
        *("lease_lost", "wrong_phase", "revision_mismatch", "not_stale", "key_conflict"),
        *("idempotency_mismatch", "txn_aborted"),
    }
    assert kinds == {
        *("CREATED", "APPENDED", "REPLACED", "ACQUIRED", "STORED", "READY", "PARKED", "REMOVED"),
        "POLICY_CHANGED",
    }
    assert batches == {
        *("applied", "duplicate", "malformed", "unsupported_version", "limit_exceeded"),
        *("sequence_expired", "incarnation_superseded"),
    }


def _verdict(step: Step) -> str:
    if step.applied.failure is not None:
        return step.applied.failure.code
    return "duplicate" if step.applied.duplicate else "applied"


def test_no_answer_depends_on_a_unicode_version() -> None:
    # Answers are part of the state, and which characters `repr` escapes depends on the Unicode
    # tables of the Python version (U+1FAE8 is new in Python 3.12). So an answer has to treat what
    # is printable and what is not alike.
    def answer(character: str) -> str:
        operations = [SetPolicy(1, ((character, 1),)), SetLimits(((character, 1),))]
        batch = encode_batch("node", 1, 1, 1, [encode(one) for one in operations])
        return ",".join(map(str, StateMachine().apply(1, batch).results))

    printable, private = "\u00e9", "\ue000"
    assert printable.isprintable()
    assert not private.isprintable()
    assert answer(printable).count(printable) == answer(private).count(private)
