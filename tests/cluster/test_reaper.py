"""Who stores what nobody works on, and when."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.failures import Overloaded, Stopping, TooLarge
from cluster.reaper import Reaper, Submit
from state import LIMITS, Cause, Phase, Result
from state.codec import decode, plain
from state.errors import LimitExceeded, NotStale
from state.operations import New, Operation, Release, SetLimits, Store, Tick, Touch
from tests.simulation.world import VirtualHost, World
from tests.state.driver import Driver

PAGE = 2
REASON = "its node started again"


def reaper_with(submit: Submit, page: int = PAGE) -> Reaper:
    host = VirtualHost(World(1))
    return Reaper(host, submit, page=page, grace_ms=0, grace_max_ms=0)


@dataclass(frozen=True)
class Asked:
    """An operation that waits for its answer."""

    encoded: bytes
    then: Callable[[Result], object]


class Bench:
    """A reaper whose operations a test answers by hand."""

    def __init__(self, page: int = PAGE) -> None:
        self.asked: list[Asked] = []
        self.reaper = reaper_with(lambda *asked: self.asked.append(Asked(*asked)), page)
        self.listed = 0

    def earlier(self) -> Iterator[bytes]:
        self.listed += 1
        return iter([b"n/1/a", b"n/1/b"])

    def look(self) -> bool:
        return self.reaper.release(self.earlier)

    def answer(self, result: Result) -> None:
        asked, self.asked = self.asked, []
        for one in asked:
            one.then(result)

    def assert_asks(self, *operations: Operation) -> None:
        assert [decode(one.encoded) for one in self.asked] == list(map(plain, operations))


class Home:
    """A reaper at a state machine, which answers when a test says so."""

    def __init__(self, page: int = PAGE) -> None:
        self.driver = Driver()
        self.waiting: list[Asked] = []
        self.reaper = reaper_with(lambda *asked: self.waiting.append(Asked(*asked)), page)

    def earlier(self) -> Iterator[bytes]:
        return iter([one for one in self.driver.machine.consumers() if one.startswith(b"n/1/")])

    def answer(self) -> None:
        while self.waiting:
            asked = self.waiting.pop(0)
            asked.then(self.driver.do(asked.encoded))

    def release_all(self) -> None:
        for _ in range(10):
            if not self.reaper.release(self.earlier):
                return
            self.answer()
        raise AssertionError("it comes to no end")

    def active(self) -> list[int]:
        sessions = self.driver.machine.sessions()
        return [one.session_id for one in sessions if one.phase is Phase.ACTIVE]


def released(consumer: bytes, count: int = PAGE) -> Release:
    return Release(consumer, count, Cause.DISCONNECTED, REASON)


# What earlier lives held


def test_consumers_are_released_one_after_the_other_in_pages() -> None:
    bench = Bench()
    assert bench.look()
    bench.assert_asks(released(b"n/1/a"))
    assert bench.look()
    bench.assert_asks(released(b"n/1/a"))  # the next when the last one is answered
    bench.answer(3)
    bench.assert_asks(released(b"n/1/a"))
    bench.answer(1)
    bench.assert_asks(released(b"n/1/a"))
    bench.answer(0)
    bench.assert_asks(released(b"n/1/b"))
    assert bench.look()
    bench.answer(0)
    bench.assert_asks()
    assert not bench.look()
    assert bench.listed == 1
    assert bench.reaper.reaped == 0, "they were not stale"


def test_nobody_to_release_is_the_end() -> None:
    bench = Bench()
    assert not bench.reaper.release(lambda: iter(()))
    bench.assert_asks()


def test_who_could_not_be_released_is_tried_again() -> None:
    for failure in (Overloaded(100), Stopping(was_sent=True, reason="it must")):
        bench = Bench()
        bench.look()
        bench.answer(failure)
        bench.assert_asks()
        assert bench.look(), "the others first"
        bench.assert_asks(released(b"n/1/b"))
        bench.answer(0)
        assert bench.look(), "one may still hold something"
        assert bench.look()
        bench.assert_asks(released(b"n/1/a"))
        bench.answer(0)
        bench.answer(0)
        assert not bench.look()
        assert bench.listed == 2


def test_a_refusal_at_once_is_not_answered_by_asking_on_and_on() -> None:
    asked: list[bytes] = []

    def refuse(encoded: bytes, then: Callable[[Result], object]) -> None:
        asked.append(encoded)
        then(Overloaded(100))

    reaper = reaper_with(refuse)
    many = [b"n/1/%d" % number for number in range(10_000)]
    assert reaper.release(lambda: iter(many))
    assert len(asked) == 1
    assert reaper.release(lambda: iter(many))
    assert len(asked) == 2


def test_who_will_never_be_released_is_left_to_its_lease() -> None:
    bench = Bench()
    bench.look()
    bench.answer(TooLarge(2, 1))
    bench.look()
    bench.answer(TooLarge(2, 1))
    assert not bench.look()
    assert bench.listed == 1


def test_a_page_is_no_larger_than_the_state_machine_allows() -> None:
    bench = Bench(page=1_000_000)
    bench.look()
    bench.assert_asks(released(b"n/1/a", LIMITS.acquire_count))
    bench.answer(LimitExceeded("acquire_count", LIMITS.acquire_count, 3))
    bench.look()
    bench.assert_asks(released(b"n/1/a", 3))
    bench.answer(0)
    bench.assert_asks(released(b"n/1/b", 3))


def test_in_another_state_all_are_listed_anew() -> None:
    bench = Bench()
    bench.look()
    bench.reaper.forget_held()
    assert bench.look(), "one is still on its way"
    bench.answer(5)
    bench.assert_asks()
    assert bench.look()
    assert bench.listed == 2
    bench.assert_asks(released(b"n/1/a"))


def test_a_state_machine_is_rid_of_earlier_lives_and_of_nothing_else() -> None:
    home = Home()
    for consumer in (b"n/1/a", b"n/2/a", b"n/1/b", b"m/1/a"):
        home.driver.results(*(New(7, consumer=consumer) for _ in range(5)))
    home.driver.succeed(SetLimits((("acquire_count", 1),)))
    home.release_all()
    assert home.active() == [*range(6, 11), *range(16, 21)]
    session = home.driver.machine.session(1)
    assert session is not None
    assert [(one.cause, one.reason) for one in session.history] == [(Cause.DISCONNECTED, REASON)]
    assert session.touched_ms == session.created_ms


def test_what_is_resumed_while_it_is_released_stays() -> None:
    home = Home(page=1)
    home.driver.results(*(New(7, consumer=b"n/1/a") for _ in range(4)))
    assert home.reaper.release(home.earlier)
    # After it was listed, and before anything is applied.
    home.driver.results(Touch(1, 1, b"n/2/a"), Touch(3, 1, b"m/1/a"))
    home.answer()
    home.release_all()
    assert home.active() == [1, 3]


# What is stale


def test_what_is_stale_is_stored_in_pages() -> None:
    home = Home()
    home.driver.results(*(New(7) for _ in range(3)))
    home.driver.advance(60_000)
    home.reaper.give_grace(0)
    home.reaper.look(home.driver.machine)
    assert len(home.waiting) == PAGE
    home.reaper.look(home.driver.machine)
    assert len(home.waiting) == PAGE, "the next page when the last one is answered"
    home.answer()
    home.reaper.look(home.driver.machine)
    home.answer()
    assert home.active() == []
    assert home.reaper.reaped == 3


def test_releasing_and_reaping_do_not_wait_for_each_other() -> None:
    home = Home()
    home.driver.results(New(7, consumer=b"n/1/a"), New(7))
    home.driver.advance(60_000)
    home.reaper.give_grace(0)
    assert home.reaper.release(home.earlier)
    home.reaper.look(home.driver.machine)
    kinds = [decode(one.encoded)[0] for one in home.waiting]
    assert kinds == [Release.code, Store.code, Store.code]
    home.answer()  # one of the two was released before it was found to be stale
    assert home.active() == []
    assert home.reaper.reaped == 1


def test_who_shows_a_sign_of_life_is_not_counted() -> None:
    bench = Bench()
    driver = Driver()
    driver.results(New(7), Tick(60_000))
    bench.reaper.give_grace(0)
    bench.reaper.look(driver.machine)
    bench.assert_asks(Store(1, 1, cause=Cause.STALE))
    bench.answer(NotStale(1, 90_000))
    assert bench.reaper.reaped == 0
