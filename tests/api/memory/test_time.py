"""The clock that can be moved."""

import asyncio
from collections.abc import Iterator

import pytest

from api.memory.time import MovableClock


class Loop(asyncio.SelectorEventLoop):
    now_s = 100.0

    def time(self) -> float:
        return self.now_s


@pytest.fixture
def loop() -> Iterator[Loop]:
    found = Loop()
    yield found
    found.close()


def test_it_goes_on_with_its_loop_and_by_what_it_is_advanced(loop: Loop) -> None:
    clock = MovableClock(loop, 5_000)
    assert clock.now_ms == 5_000
    loop.now_s = 101.0
    clock.advance(3_600_000)
    assert clock.now_ms == 3_606_000
    assert clock.time() == 3_606.0


def test_stopped_it_moves_by_advance_alone_and_goes_on_from_there(loop: Loop) -> None:
    clock = MovableClock(loop, 0)
    loop.now_s = 100.5
    clock.stop()
    loop.now_s = 150.0
    assert clock.now_ms == 500
    clock.stop()
    clock.advance(5)
    assert clock.now_ms == 505
    clock.go_on()
    assert clock.now_ms == 505
    clock.go_on()
    loop.now_s = 151.0
    assert clock.now_ms == 1_505


def test_what_is_advanced_adds_up(loop: Loop) -> None:
    clock = MovableClock(loop, 1_795_694_459_705)
    clock.stop()
    for _ in range(10_000):
        clock.advance(1)
    assert clock.now_ms == 1_795_694_469_705


def test_it_is_late_until_its_time_is_told(loop: Loop) -> None:
    clock = MovableClock(loop, 7)
    late = [clock.is_late]
    assert clock.tell() == 7
    late.append(clock.is_late)
    clock.advance(1)
    late.append(clock.is_late)
    assert late == [True, False, True]


def test_it_never_goes_back(loop: Loop) -> None:
    with pytest.raises(ValueError, match="forwards"):
        MovableClock(loop, 0).advance(-1)
