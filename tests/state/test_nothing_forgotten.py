"""Nothing is forgotten, and time never runs backwards.

From any state that can be reached, Ticks and the reaper alone make each active or stored session
ready or parked: when its lease has ended (found at most one bucket of the calendar later), and when
it is due.
"""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from state import (
    Cause,
    Failure,
    Operation,
    Phase,
    StateMachine,
    Stored,
    encode,
    encode_batch,
    load,
)
from state.errors import StaleTerm
from state.leases import BUCKET_MS
from state.limits import TIME_MAX_MS
from state.operations import Store, Tick
from tests.state.model import ModelWindow
from tests.state.model_run import MANY, Batch, Run
from tests.state.model_steps import Writer

ROUNDS = 1000  # far more than there are sessions, groups of consumers and receipts in these runs


class Caretaker:
    """A leader that does nothing but tick and reap."""

    def __init__(self, run: Run, random: Random) -> None:
        self.run = run
        self.random = random
        # Small limits may admit no proposer but those that are known.
        self.proposer, window = next(
            iter(run.model.windows.items()), ("a", ModelWindow(incarnation=0))
        )
        self.incarnation = window.incarnation + 1
        self.sequence = 0

    def send(self, operation: Operation) -> object:
        """The answer to an operation, which must not be refused."""
        self.sequence += 1
        term = self.run.model.term
        batch = Batch(self.proposer, self.incarnation, self.sequence, term, (operation,))
        applied = self.run.do(batch)
        assert applied is not None
        [result] = applied.results
        assert not isinstance(result, Failure), result
        return result

    def waiting(self) -> dict[int, int]:
        """When something has to happen to each session that is active or asleep."""
        model = self.run.model
        return {
            one.session_id: (
                model.deadline_ms(one) + BUCKET_MS if one.phase is Phase.ACTIVE else one.due_ms
            )
            for one in model.state.sessions.values()
            if model.phase(one) in (Phase.ACTIVE, Phase.STORED)
        }

    def advance(self) -> None:
        """Tick when the machine asks for it, and do the reaper's work, until all is done."""
        machine = self.run.machine
        for _ in range(ROUNDS):
            next_wake_ms = machine.next_wake_ms
            assert next_wake_ms is not None, "something waits, and no Tick is asked for"
            self.send(Tick(next_wake_ms))
            for session_id, epoch in machine.stale(self.random.choice((1, 2, 5, MANY))):
                assert isinstance(self.send(Store(session_id, epoch, cause=Cause.STALE)), Stored)
            if machine.next_wake_ms is None or machine.next_wake_ms > machine.now_ms:
                return
        raise AssertionError("time stands still")

    def bounds(self) -> dict[int, int]:
        """The last moment at which each session that waits may become ready or parked."""
        model = self.run.model
        bounds = {one: max(at_ms, model.now_ms) for one, at_ms in self.waiting().items()}
        for session_id in bounds:
            session = model.state.sessions[session_id]
            if session.phase is Phase.ACTIVE:
                policy = model.state.themes[session.theme].policy
                bounds[session_id] += policy.delay_ms(session_id, session.attempts)
        return bounds


@settings(max_examples=max(settings().max_examples // 2, 1))
@given(seed=st.integers(0, 2**32), steps=st.integers(0, 300))
def test_nothing_is_forgotten(seed: int, steps: int) -> None:
    run = Run()
    writer = Writer(run, Random(seed))
    for _ in range(steps):
        run.do(writer.step())
    caretaker = Caretaker(run, writer.random)
    bounds = caretaker.bounds()
    for _ in range(ROUNDS):
        waiting = caretaker.waiting()
        if not waiting:
            break
        caretaker.advance()
        now_ms = run.model.now_ms
        for session_id, at_ms in waiting.items():
            session = run.machine.session(session_id)
            assert session is not None
            if at_ms <= now_ms:
                assert session.phase is not Phase.ACTIVE, "not reaped in time"
            if bounds[session_id] <= now_ms:
                assert session.phase in (Phase.READY, Phase.PARKED), "not ready in time"
    assert all(session.phase in (Phase.READY, Phase.PARKED) for session in run.machine.sessions())


_times = st.integers(0, 10_000) | st.integers(0, TIME_MAX_MS)


@given(batches=st.lists(st.tuples(st.integers(0, 3), st.lists(_times, max_size=3), st.booleans())))
def test_time_never_runs_backwards(batches: list[tuple[int, list[int], bool]]) -> None:
    """Whatever leaders of whatever terms say, and whether they were started again or not."""
    machine = StateMachine()
    newest_term = now_ms = 0
    for index, (term, times, restarts) in enumerate(batches, 1):
        ticks = [encode(Tick(time_ms)) for time_ms in times]
        results = machine.apply(index, encode_batch("a", 0, index, term, ticks)).results
        for time_ms, result in zip(times, results, strict=True):
            if term < newest_term:
                assert result == StaleTerm(term, newest_term)
            else:
                newest_term, now_ms = term, max(now_ms, time_ms)
                assert result == now_ms
        assert (machine.now_ms, machine.term) == (now_ms, newest_term)
        if restarts:
            capture = machine.capture_everything()
            machine = load(item for piece in capture.pieces() for item in piece)
            assert machine.now_ms == now_ms
