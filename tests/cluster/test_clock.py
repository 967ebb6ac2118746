from cluster.clock import Clock
from tests.simulation.world import VirtualHost, World


class Wall:
    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def test_time_begins_with_the_wall_clock_and_goes_on_by_the_monotonic_one() -> None:
    world, wall = World(1), Wall(50_000)
    clock = Clock(VirtualHost(world), wall, 100)
    assert clock.start(20_000) == 30_000
    wall.now_ms = 1  # set back: nobody minds
    world.step(world.now_s + 2)
    assert clock.now_ms == 52_000


def test_the_first_leader_of_all_was_not_away() -> None:
    assert Clock(VirtualHost(World(1)), Wall(50_000), 100).start(0) == 0


def test_a_wall_clock_that_is_behind_does_not_turn_time_back() -> None:
    world = World(1)
    clock = Clock(VirtualHost(world), Wall(50_000), 100)
    assert clock.start(60_000) == 0
    world.step(world.now_s + 1)
    assert clock.now_ms == 61_000


def test_the_time_is_told_once_a_period() -> None:
    world = World(1)
    clock = Clock(VirtualHost(world), Wall(0), 100)
    clock.start(0)
    late = [clock.is_late]
    clock.tell()
    late.append(clock.is_late)
    world.step(world.now_s + 0.101)
    late.append(clock.is_late)
    assert late == [True, False, True]
