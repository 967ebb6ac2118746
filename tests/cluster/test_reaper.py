"""Who stores what nobody works on, and when."""

from collections.abc import Callable, Iterator

from cluster.failures import Overloaded
from cluster.reaper import Reaper
from state import Result
from tests.simulation.world import VirtualHost, World


class Bench:
    """A reaper whose stores a test answers by hand."""

    def __init__(self) -> None:
        self.stores: list[Callable[[Result], object]] = []
        self.reaper = Reaper(
            VirtualHost(World(1)),
            lambda _, then: self.stores.append(then),
            page=2,
            grace_ms=0,
            grace_max_ms=0,
        )
        self.listed = 0

    def held(self) -> Iterator[tuple[int, int]]:
        self.listed += 1
        return iter([(1, 1), (2, 1), (3, 1)])

    def answer(self, result: Result) -> None:
        stores, self.stores = self.stores, []
        for then in stores:
            then(result)


def test_what_an_earlier_life_held_is_stored_in_pages() -> None:
    bench = Bench()
    assert bench.reaper.release(bench.held)
    assert len(bench.stores) == 2
    assert bench.reaper.release(bench.held)
    assert len(bench.stores) == 2, "the next page when the last one is answered"
    bench.answer(None)
    assert bench.reaper.release(bench.held)
    bench.answer(None)
    assert not bench.reaper.release(bench.held)
    assert bench.listed == 1
    assert bench.reaper.reaped == 3


def test_what_could_not_be_stored_is_tried_again() -> None:
    bench = Bench()
    bench.reaper.release(bench.held)
    bench.answer(Overloaded(100))
    bench.reaper.release(bench.held)
    bench.answer(None)
    assert bench.reaper.release(bench.held), "two may still be held"
    bench.reaper.release(bench.held)
    assert bench.listed == 2
