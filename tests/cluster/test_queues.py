"""The double queue by itself: what becomes a batch when, and who is answered what."""

from dataclasses import replace
from functools import partial

from cluster.failures import Overloaded, Stopping, TimedOut, TooLarge
from cluster.queues import ENVELOPE_BYTES, Batch, DoubleQueue, QueueSettings
from state import Applied, Failure, Result, StateMachine, encode
from state.codec import decode_header, decode_operations
from state.limits import LIMITS
from state.operations import Append, Barrier, New
from tests.simulation.world import VirtualHost, World


class Bench:
    """A queue whose batches a test commits and applies by hand."""

    def __init__(self, settings: QueueSettings | None = None) -> None:
        self.world = World(1)
        self.host = VirtualHost(self.world)
        self.has_leader = True
        self.leading: list[bytes] = []
        self.sent: list[tuple[Batch, int, int]] = []
        self.answers: dict[int, Result] = {}
        self.machine = StateMachine()
        self.index = 1
        self.queue = DoubleQueue("a", 7, self.host, self, settings or QueueSettings())

    def propose(self, batch: Batch, stream: int, position: int) -> bool:
        if self.has_leader:
            self.sent.append((batch, stream, position))
        return self.has_leader

    def is_open(self) -> bool:
        return self.has_leader

    def hurry(self) -> None:
        pass

    def leading_operations(self) -> list[bytes]:
        taken, self.leading = self.leading, []
        return taken

    def run(self, seconds: float = 0.0) -> None:
        until_s = self.world.now_s + seconds
        while self.world.step(until_s):
            pass

    def submit(self, *numbers: int, timeout_s: float = 10.0, is_ending: bool = False) -> None:
        for number in numbers:
            encoded = encode(New(1, b"%d" % number))
            answer = partial(self.answer, number)
            self.queue.submit(encoded, answer, timeout_s, is_ending=is_ending)

    def answer(self, number: int, result: Result) -> None:
        assert number not in self.answers, "answered twice"
        self.answers[number] = result

    def apply(self, batch: Batch) -> Applied:
        self.index += 1
        applied = self.machine.apply(self.index, batch.command)
        self.queue.applied(batch, applied)
        self.queue.pump()
        self.run()
        return applied

    @property
    def sizes(self) -> list[int]:
        return [decode_header(batch.command).operation_count for batch, _, _ in self.sent]


def failure(result: Result) -> Failure:
    assert isinstance(result, Failure)
    return result


def test_a_lone_operation_leaves_at_the_end_of_the_turn() -> None:
    bench = Bench()
    bench.submit(1)
    assert bench.sent == []
    bench.run()
    assert bench.sizes == [1]


def test_what_gathers_meanwhile_is_the_next_batch() -> None:
    bench = Bench()
    bench.submit(1)
    bench.run()
    bench.submit(2, 3, 4)
    bench.run()
    assert bench.sizes == [1]
    bench.queue.committed(bench.sent[0][0])
    bench.queue.pump()
    assert bench.sizes == [1, 3], "it leaves when the one before is committed, not yet applied"
    assert bench.answers == {}


def test_many_waiting_operations_make_several_batches() -> None:
    settings = QueueSettings(pipelined_batches=3, pipeline_from_operations=4, batch_operations=5)
    bench = Bench(settings)
    bench.submit(*range(30))
    bench.run()
    assert bench.sizes == [5, 5, 5]


def test_callers_get_the_results_of_their_operations() -> None:
    bench = Bench()
    bench.submit(5, 6)
    bench.run()
    applied = bench.apply(bench.sent[0][0])
    assert bench.answers == {5: applied.results[0], 6: applied.results[1]}
    bench.queue.applied(bench.sent[0][0], applied)
    assert len(bench.answers) == 2, "a batch that comes again answers nobody"


def test_a_batch_keeps_its_bytes_and_place_until_it_is_answered() -> None:
    bench = Bench(QueueSettings(pipeline_from_operations=1, batch_operations=1))
    bench.submit(1, 2)
    bench.run()
    first = [(batch.sequence, batch.command) for batch, _, _ in bench.sent]
    bench.queue.restart()
    again = bench.sent[2:]
    assert [(batch.sequence, batch.command) for batch, _, _ in again] == first
    assert [(stream, position) for _, stream, position in again] == [(2, 0), (2, 1)]


def test_nothing_overtakes_a_batch_that_could_not_be_sent() -> None:
    bench = Bench(QueueSettings(pipeline_from_operations=1, batch_operations=1))
    bench.has_leader = False
    bench.submit(1, 2)
    bench.run()
    bench.has_leader = True
    bench.submit(3)
    bench.run()
    assert [batch.sequence for batch, _, _ in bench.sent] == [0, 1, 2]


def test_what_was_declined_begins_a_stream_again_when_the_oldest_is_taken() -> None:
    bench = Bench(QueueSettings(pipeline_from_operations=1, batch_operations=1))
    bench.submit(1, 2)
    bench.run()
    bench.queue.declined(1, 0)
    bench.submit(3)
    bench.run()
    assert len(bench.sent) == 2, "not at once"
    bench.run(0.25)
    bench.queue.expire(is_lagging=False)
    bench.queue.expire(is_lagging=False)
    assert [(stream, position) for _, stream, position in bench.sent[2:]] == [(2, 0)]
    bench.queue.declined(2, 0)
    bench.run(0.25)
    bench.queue.expire(is_lagging=False)
    assert [(stream, position) for _, stream, position in bench.sent[3:]] == [(3, 0)]
    bench.apply(bench.sent[3][0])
    assert [(stream, position) for _, stream, position in bench.sent[4:]] == [(4, 0), (4, 1)]
    bench.queue.declined(3, 0)
    bench.submit(4)
    bench.run()
    assert bench.sent[-1][1:] == (4, 2), "a word about a stream that is over"


def test_who_lags_tries_a_leader_that_declined_once() -> None:
    bench = Bench()
    bench.submit(1)
    bench.run()
    bench.queue.declined(1, 0)
    for _ in range(30):
        bench.run(0.2)
        bench.queue.expire(is_lagging=True)
    assert len(bench.sent) == 2, "the answer may be in what it has not applied yet"
    bench.queue.declined(2, 0)
    bench.run(0.2)
    bench.queue.expire(is_lagging=True)
    assert len(bench.sent) == 3, "this one was not taken for certain"


def test_what_was_taken_after_a_decline_is_not_sent_again_soon() -> None:
    bench = Bench()
    bench.submit(1)
    bench.run()
    bench.queue.declined(1, 0)
    for _ in range(10):
        bench.run(0.25)
        bench.queue.expire(is_lagging=False)
    assert len(bench.sent) == 2
    bench.run(3)
    bench.queue.expire(is_lagging=False)
    assert len(bench.sent) == 3


def test_another_leader_is_sent_all_that_one_declined() -> None:
    bench = Bench(QueueSettings(pipeline_from_operations=1, batch_operations=1))
    bench.submit(1, 2)
    bench.run()
    bench.queue.declined(1, 0)
    bench.queue.restart()
    assert [(stream, position) for _, stream, position in bench.sent[2:]] == [(2, 0), (2, 1)]


def test_a_batch_whose_answer_is_not_known_is_sent_again() -> None:
    bench = Bench()
    bench.submit(1)
    bench.run()
    batch = bench.sent[0][0]
    bench.queue.committed(batch)
    bench.queue.doubt(batch)
    bench.queue.restart()
    assert [one for one, _, _ in bench.sent] == [batch, batch]


def test_a_batch_without_an_answer_is_sent_again_unless_the_node_lags() -> None:
    bench = Bench()
    bench.submit(1)
    bench.run(5)
    bench.queue.expire(is_lagging=True)
    assert len(bench.sent) == 1
    bench.queue.expire(is_lagging=False)
    assert len(bench.sent) == 2


def test_deadlines_say_whether_the_operation_may_have_been_done() -> None:
    bench = Bench()
    bench.submit(1, timeout_s=1.0)
    bench.run()
    bench.submit(2, timeout_s=1.0)
    bench.submit(3, timeout_s=60.0)
    bench.run(2)
    bench.queue.expire(is_lagging=False)
    assert failure(bench.answers[1]) == TimedOut(was_sent=True, waited_ms=2000)
    assert failure(bench.answers[2]) == TimedOut(was_sent=False, waited_ms=2000)
    assert failure(bench.answers[1]).outcome == "unknown"
    assert failure(bench.answers[2]).outcome == "not_applied"
    bench.apply(bench.sent[0][0])
    assert bench.sizes[-1] == 1, "what was answered is not sent any more"
    bench.apply(bench.sent[-1][0])
    assert 3 in bench.answers


def test_of_what_was_given_up_in_doubt_the_result_is_told_when_it_comes() -> None:
    bench = Bench()
    late: list[Result] = []
    bench.queue.submit(encode(New(1)), late.append, 1.0, late=late.append)
    bench.run()
    bench.queue.submit(encode(New(1)), late.append, 1.0, late=late.append)
    bench.run(2)
    bench.queue.expire(is_lagging=False)
    assert {failure(one).outcome.value for one in late} == {"unknown", "not_applied"}
    bench.run(100)
    bench.queue.expire(is_lagging=False)
    assert len(late) == 2
    bench.apply(bench.sent[0][0])
    assert len(late) == 3
    assert not isinstance(late[2], Failure)


def test_beyond_its_bounds_the_intake_refuses_but_what_ends_sessions() -> None:
    bench = Bench(QueueSettings(intake_operations=2, ending_reserve=2))
    bench.has_leader = False
    bench.submit(1, 2, 3)
    assert failure(bench.answers[3]) == Overloaded(200)
    bench.submit(4, 5, is_ending=True)
    assert 4 not in bench.answers
    bench.submit(6, is_ending=True)
    assert failure(bench.answers[6]).code == "overloaded"


def test_bytes_are_bounded_too() -> None:
    bench = Bench(QueueSettings(intake_bytes=1000))
    answers: list[Result] = []
    bench.queue.submit(bytes(999), answers.append, 1.0)
    bench.queue.submit(bytes(2), answers.append, 1.0)
    assert [failure(one).code for one in answers] == ["overloaded"]
    bench.queue.submit(bytes(5 << 20), answers.append, 1.0)
    assert isinstance(answers[1], TooLarge)


def test_a_batch_is_bounded_by_the_weight_of_what_is_inside() -> None:
    bench = Bench(QueueSettings(batch_operations=10, pipeline_from_operations=2))
    for _ in range(4):
        bench.queue.submit(encode(Barrier()), lambda _: None, 1.0, weight=6)
    bench.run()
    assert bench.sizes == [1, 1, 1]


def test_the_shortest_memory_of_results_lets_one_batch_through_at_a_time() -> None:
    bench = Bench()
    bench.queue.limits = replace(LIMITS, window_batches=1)
    bench.submit(1)
    bench.run()
    bench.submit(2)
    bench.run()
    assert bench.sizes == [1]
    bench.apply(bench.sent[0][0])
    assert bench.sizes == [1, 1]


def test_what_the_node_has_to_say_comes_first() -> None:
    bench = Bench()
    bench.leading = [encode(Barrier())]
    bench.submit(1)
    bench.run()
    (batch, _, _) = bench.sent[0]
    assert [one[0] for one in decode_operations(batch.command)] == [Barrier.code, New.code]
    bench.apply(batch)
    assert 1 in bench.answers


def test_what_waits_goes_along_with_what_the_node_has_to_say() -> None:
    bench = Bench()
    for number in range(5):  # commits take so long that one of these is always on its way
        bench.leading = [encode(Barrier())]
        bench.queue.hurry()
        bench.submit(number)
        bench.run()
    assert bench.sizes == [1, 2, 2, 2, 2]


def too_large_for_company() -> bytes:
    """An operation that fills a batch, but for less than one of the node's own."""
    most_bytes = LIMITS.batch_bytes - ENVELOPE_BYTES
    around_bytes = len(encode(New(1, None, bytes(1 << 20)))) - (1 << 20)
    large = encode(New(1, None, bytes(most_bytes - around_bytes)))
    assert len(large) == most_bytes
    return large


def test_what_the_node_has_to_say_never_keeps_a_large_operation_back() -> None:
    bench = Bench()
    large = too_large_for_company()
    bench.submit(1)
    bench.run()
    bench.queue.submit(large, partial(bench.answer, 2), 10.0)
    for number in range(3):
        bench.leading = [encode(Barrier())]  # it takes so long that there is something each time
        bench.apply(bench.sent[number][0])
    assert 2 in bench.answers


def test_a_large_operation_that_gave_way_and_expired_takes_no_time_from_the_next() -> None:
    bench = Bench()
    large = too_large_for_company()
    bench.submit(1)
    bench.run()
    bench.queue.submit(large, lambda _: None, 1.0)
    bench.leading = [encode(Barrier())]
    bench.apply(bench.sent[0][0])
    bench.run(2)
    bench.queue.expire(is_lagging=True)
    bench.apply(bench.sent[1][0])
    bench.leading = [encode(Barrier())]
    bench.submit(2)
    bench.run()
    assert bench.sizes == [1, 1, 2]


def test_the_time_is_told_although_a_large_operation_waits() -> None:
    bench = Bench()
    large = too_large_for_company()
    bench.submit(1)
    bench.run()
    bench.queue.submit(large, lambda _: None, 9.0)
    bench.leading = [encode(Barrier())]
    bench.queue.hurry()
    bench.leading = [encode(Barrier())]
    bench.queue.hurry()
    assert not bench.leading
    assert bench.sizes == [1, 1, 1, 1]


def test_reads_share_a_barrier_while_it_waits() -> None:
    bench = Bench()
    bench.submit(1)
    bench.run()
    read: list[Result] = []
    for _ in range(3):
        bench.queue.read(read.append, 5.0)
    bench.apply(bench.sent[0][0])
    assert bench.sizes == [1, 1]
    bench.queue.read(read.append, 5.0)
    bench.apply(bench.sent[1][0])
    assert len(read) == 3, "the last came after the barrier had left"
    assert bench.sizes == [1, 1, 1]
    bench.apply(bench.sent[2][0])
    assert len(read) == 4


def test_readers_are_bounded() -> None:
    bench = Bench(QueueSettings(intake_operations=3))
    bench.has_leader = False
    read: list[Result] = []
    for _ in range(4):
        bench.queue.read(read.append, 5.0)
    assert [type(result) for result in read] == [Overloaded]
    bench.has_leader = True
    bench.queue.restart()
    bench.run()
    bench.apply(bench.sent[0][0])
    assert len(read) == 4
    bench.queue.read(read.append, 5.0)
    bench.run()
    bench.apply(bench.sent[1][0])
    assert not isinstance(read[4], Failure)


def test_a_reader_with_more_time_outlives_the_barrier_it_shared() -> None:
    bench = Bench()
    bench.has_leader = False
    read: list[Result] = []
    bench.queue.read(read.append, 1.0)
    bench.queue.read(read.append, 10.0)
    bench.run(2)
    bench.queue.expire(is_lagging=False)
    assert read == [TimedOut(was_sent=False, waited_ms=2000)]
    bench.has_leader = True
    bench.queue.restart()
    bench.run()
    for batch, _, _ in list(bench.sent):
        bench.apply(batch)
    assert len(read) == 2
    assert not isinstance(read[1], Failure)


def test_stopping_answers_what_is_in_and_takes_no_more() -> None:
    bench = Bench()
    bench.submit(1)
    bench.run()
    bench.submit(2)
    bench.queue.stop("enough")
    bench.submit(3)
    bench.queue.fail("enough")
    assert bench.answers == {
        1: Stopping(was_sent=True, reason="enough"),
        2: Stopping(was_sent=False, reason="enough"),
        3: Stopping(was_sent=False, reason="enough"),
    }
    assert bench.queue.is_empty


def test_a_caller_that_raises_takes_nothing_from_the_others() -> None:
    bench = Bench()

    def refuse(_: Result) -> None:
        raise RuntimeError("mine")

    bench.queue.submit(encode(New(1)), refuse, 1.0)
    bench.submit(2)
    bench.run()
    bench.apply(bench.sent[0][0])
    assert 2 in bench.answers


def test_a_batch_that_is_refused_as_a_whole_answers_all() -> None:
    bench = Bench()
    bench.submit(1, 2)
    bench.run()
    batch = bench.sent[0][0]
    refused = bench.machine.apply(2, b"nonsense")
    bench.queue.applied(batch, refused)
    assert failure(bench.answers[1]).code == failure(bench.answers[2]).code == "malformed"


def test_its_own_batches_are_recognised() -> None:
    bench = Bench()
    bench.submit(1)
    bench.run()
    batch = bench.sent[0][0]
    assert bench.queue.find(bytes(batch.command)) is batch
    other = DoubleQueue("a", 8, bench.host, bench, QueueSettings())
    assert other.find(batch.command) is None
    assert bench.queue.find(encode(Append(1, 1, b""))) is None


def test_nobody_joins_a_barrier_that_was_answered() -> None:
    bench = Bench()
    bench.has_leader = False
    read: list[Result] = []
    bench.submit(1)
    bench.queue.read(read.append, 1.0)
    bench.run(2)
    bench.queue.expire(is_lagging=False)
    assert len(read) == 1
    bench.queue.read(read.append, 10.0)
    bench.has_leader = True
    bench.queue.restart()
    bench.apply(bench.sent[0][0])
    assert len(read) == 2


def test_a_read_of_a_stopped_queue_is_answered() -> None:
    bench = Bench()
    read: list[Result] = []
    bench.queue.read(read.append, 1.0)
    bench.queue.fail("enough")
    bench.queue.read(read.append, 1.0)
    assert [failure(one).code for one in read] == ["stopping", "stopping"]


def test_batches_that_are_committed_and_not_applied_are_bounded() -> None:
    bench = Bench(QueueSettings(batch_operations=1, pipeline_from_operations=1))
    bench.submit(*range(100))
    bench.run()
    for batch, _, _ in bench.sent:
        bench.queue.committed(batch)
        bench.queue.pump()
    assert len(bench.sent) == bench.queue.limits.window_batches // 2
