"""The state machine does what the dumb model does, whatever is asked of it.

Two sources of chance: seeded runs are fast and reach far; the Hypothesis machine reaches less far
and shrinks what it finds. To repeat a seeded run, call `play` as its failure says.
"""

import random
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from state import Cause
from state.operations import (
    Acquire,
    Append,
    ForgetProposer,
    Idempotent,
    New,
    Operation,
    SetLimits,
    SetPolicy,
    Store,
    Tick,
    Txn,
)
from tests.state.model_run import (
    Batch,
    BeginCapture,
    Compare,
    FindStale,
    ReadCapture,
    Restart,
    Run,
    Seen,
    Step,
)
from tests.state.model_steps import MANY, Writer, play

STEPS_A_RUN = 400
SEEDED_RUNS = 25
LONG_RUNS = 300  # 120,000 steps
HYPOTHESIS_EXAMPLES = 1000  # at most: an example is a whole run


def test_everything_that_can_happen_happens() -> None:
    """These runs are always the same, so that this does not depend on luck."""
    seen = Seen()
    for number in range(22):
        seen.add(play(f"everything {number}", STEPS_A_RUN))
    assert seen.missing() == []


@pytest.mark.parametrize("worker", range(3))
def test_seeded_runs(worker: int) -> None:
    seed = random.SystemRandom().getrandbits(32)
    for number in range(SEEDED_RUNS):
        play(f"{seed}/{worker}/{number}", STEPS_A_RUN)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_soak(capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().getrandbits(32)
    seen = Seen()
    for number in range(LONG_RUNS):
        seen.add(play(f"{seed}/{number}", STEPS_A_RUN))
    with capsys.disabled():
        print(f"\nseed {seed}: {seen.report()}")  # noqa: T201 - what a soak is for
    assert sum(seen.steps.values()) >= 100_000
    assert seen.missing() == []


# Hypothesis takes the chances: it varies them one by one, and cuts down what fails.
_chances = st.randoms(use_true_random=False)


class ModelMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.run_of_both = Run()
        self.writer = Writer(self.run_of_both, Random(0))

    def _do(self, step: Step) -> None:
        note(repr(step))
        self.run_of_both.do(step)

    @rule(chances=_chances)
    def batch(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.batch())

    @rule(chances=_chances)
    def another_batch(self, chances: Random) -> None:
        self.batch(chances)

    @rule(chances=_chances)
    def tick(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.tick())

    @rule(chances=_chances)
    def reap(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.reap())

    @rule(chances=_chances)
    def redeliver(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.redeliver())

    @rule(chances=_chances)
    def junk(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.junk())

    @rule()
    def compare(self) -> None:
        self._do(Compare())

    @rule(chances=_chances)
    def begin_capture(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.begin_capture())

    @precondition(lambda self: any(node.reading for node in self.run_of_both.nodes))
    @rule(chances=_chances)
    def read_capture(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.read_capture())

    @rule(chances=_chances)
    def restart(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.restart())

    @rule()
    def find_stale(self) -> None:
        self._do(self.writer.find_stale())

    @rule(chances=_chances)
    def abandon(self, chances: Random) -> None:
        self.writer.random = chances
        self._do(self.writer.abandon())

    @rule()
    def swap(self) -> None:
        self._do(self.writer.swap())

    def teardown(self) -> None:
        self._do(Compare())


TestModelMachine = ModelMachine.TestCase
TestModelMachine.settings = settings(max_examples=min(settings().max_examples, HYPOTHESIS_EXAMPLES))


# What runs have found, cut down.


def _batches(*batches: Sequence[Operation] | Step) -> list[Step]:
    return [
        Batch("a", 0, number, 0, tuple(one), watched=True) if isinstance(one, Sequence) else one
        for number, one in enumerate(batches)
    ]


_TOO_LONG = b"x" * (2**20 + 1)

SCRIPTS: dict[str, list[Step]] = {
    # A key used again before a Tick came to its old receipt left something behind that counted
    # against the page of a later Tick, but not on a node that was loaded in between.
    "a receipt in place of an expired one": _batches(
        [SetLimits((("tick_page", 1),))],
        [Idempotent(b"i", 10, New(1)), Idempotent(b"j", 10, New(1))],
        [Tick(10)],
        [Idempotent(b"j", 10, New(1)), Idempotent(b"k", 5, New(1))],
        BeginCapture(0, everything=True, digested=True),
        ReadCapture(0, MANY),
        ReadCapture(0, MANY),
        [Tick(20)],
        Compare(),
    ),
    "the reaper shows a revision": _batches(
        [New(1)], [Tick(100_000)], [Store(1, 1, cause=Cause.STALE, if_revision=7)]
    ),
    "stale by its consumer's silence and by its own": _batches(
        [SetPolicy(1, (("progress_ms", 1),)), New(1, consumer=b"c")], [Tick(100_000)], FindStale()
    ),
    "a refused New opens no theme": _batches(
        [SetLimits((("themes", 1),)), New(1, data=_TOO_LONG), New(2), New(1)]
    ),
    "a checkpoint after a proposer was forgotten": _batches(
        [],
        Batch("b", 0, 0, 0, (ForgetProposer("a"),)),
        BeginCapture(0, everything=False, digested=True),
        ReadCapture(0, MANY),
        ReadCapture(0, MANY),
        Restart(0),
    ),
    "a failed transaction hands out nothing": _batches(
        [SetLimits((("batch_acquired", 1),)), New(1, repeat_after_ms=0)],
        [Txn((Acquire((1,)), Append(MANY, None, b""))), Acquire((1,))],
    ),
    "nothing more to hand out, and nobody opened for it": _batches(
        [SetLimits((("consumers", 1),)), *([New(1, repeat_after_ms=0)] * 3)],
        [
            Acquire((1,), 2),
            SetLimits((("batch_acquired", 1),)),
            Acquire((1,), 1, b"c"),
            New(1, consumer=b"d"),
        ],
    ),
    "a transaction undone while it is captured": _batches(
        [New(1, b"k", b"a", repeat_after_ms=0)],
        BeginCapture(0, everything=False, digested=False),
        [Txn((Append(1, None, b"b"), Append(MANY, None, b"")))],
        ReadCapture(0, 1),
        ReadCapture(0, MANY),
        ReadCapture(0, MANY),
        Restart(0),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str) -> None:
    run = Run()
    for step in SCRIPTS[name]:
        run.do(step)
    run.compare_nodes()
