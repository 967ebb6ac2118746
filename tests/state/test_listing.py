"""Lists of a theme's sessions: read in pages, while sessions come and go."""

from bisect import insort
from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from state import Failure, StateMachine, load, roll
from state.operations import Acquire, New, Operation, Pause, Remove, Resume, Store, Txn
from state.roll import Roll
from tests.state.driver import Driver, everything, rich_batches
from tests.state.model_run import Run
from tests.state.model_steps import Writer

THEME = 7
FAILS = Remove(999_999_999, None)


def removals(ids: Iterable[int]) -> list[Operation]:
    return [Remove(session_id, None) for session_id in ids]


def listing(machine: StateMachine, theme: int = THEME, page: int = 10_000) -> list[int]:
    """The ids of a whole list, page after page."""
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        sessions, after = machine.listed(theme, after, page)
        assert len(sessions) <= page
        found += [session.session_id for session in sessions]
    return found


def expected(machine: StateMachine, theme: int = THEME) -> list[int]:
    """The same, from what there is, in no order."""
    return sorted(
        session.session_id for session in machine.sessions() if session.theme.theme_id == theme
    )


def themes(machine: StateMachine) -> set[int]:
    return {theme.theme_id for theme in machine.themes()} | {THEME}


# The roll


@pytest.fixture(params=[4, 1024])
def block_ids(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Small blocks, so that there are many, and those that are used."""
    size: int = request.param
    monkeypatch.setattr(roll, "_BLOCK_IDS", size)
    return size


class RollMachine(RuleBasedStateMachine):
    """A roll with small blocks beside a list; `known` are those that are not gone."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(roll, "_BLOCK_IDS", 3)
        self.patch.setattr(roll, "_SPARE_IDS", 2)
        self.patch.setattr(roll, "_TIDY_BLOCKS", 2)
        self.roll = Roll()
        self.known: list[int] = []
        self.gone: set[int] = set()
        self.last = 0

    def teardown(self) -> None:
        self.patch.undo()

    @rule(count=st.integers(1, 8), step=st.integers(1, 3))
    def append(self, count: int, step: int) -> None:
        for _ in range(count):
            self.last += step
            self.roll.append(self.last)
            self.known.append(self.last)

    @rule(item=st.integers(1, 60))
    def add(self, item: int) -> None:
        if item not in self.gone and item not in self.known:
            self.roll.add(item)
            insort(self.known, item)
            self.last = max(self.last, item)

    @rule(data=st.data(), count=st.integers(1, 8))
    @precondition(lambda self: self.known)
    def remove(self, data: st.DataObject, count: int) -> None:
        start = data.draw(st.integers(0, len(self.known) - 1))
        self.gone.update(self.known[start : start + count])
        del self.known[start : start + count]

    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        self.last = data.draw(st.integers(max(0, self.last - 8), self.last))
        self.roll.cut(self.last)
        self.known = [one for one in self.known if one <= self.last]
        self.gone = {one for one in self.gone if one <= self.last}

    @rule()
    def tidy(self) -> None:
        before = len(self.roll)
        is_more = self.roll.tidy(len(self.known), set(self.known))
        assert is_more == (len(self.roll) > 3 * len(self.known) + 2)
        assert len(self.roll) <= before

    @rule()
    def tidy_to_the_end(self) -> None:
        for _ in range(len(self.roll) + 2):
            if not self.roll.tidy(len(self.known), set(self.known)):
                break
        assert len(self.roll) <= 3 * len(self.known) + 2

    @rule(page=st.integers(1, 10))
    def read(self, page: int) -> None:
        found: list[int] = []
        while True:
            part = self.roll.after(found[-1] if found else 0, page)
            found += part
            if len(part) < page:
                break
        assert found == sorted(set(found))
        assert len(found) == len(self.roll)
        assert [one for one in found if one in self.known] == self.known
        assert set(found) <= {*self.known, *self.gone}

    @rule(start=st.integers(0, 80), page=st.integers(0, 10))
    def read_from(self, start: int, page: int) -> None:
        everything_above = [one for one in self.roll.after(0, 10_000) if one > start]
        assert self.roll.after(start, page) == everything_above[:page]


TestRoll = RollMachine.TestCase


# The machine


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_lists_are_in_the_order_of_ids_theme_by_theme(page: int, block_ids: int) -> None:
    driver = Driver()
    for number in range(3 * min(block_ids, 50)):
        driver.new(THEME + number % 3, repeat_after_ms=number % 2 or None)
    for theme in range(THEME, THEME + 3):
        assert listing(driver.machine, theme, page) == expected(driver.machine, theme)
    assert driver.machine.listed(99, 0, page) == ([], None)
    assert driver.machine.listed(THEME, 10_000, page) == ([], None)


def test_a_list_begins_after_any_id_even_one_that_is_gone() -> None:
    driver = Driver()
    ids = [driver.new() for _ in range(6)]
    driver.succeed(Remove(ids[2], 1))
    for after in range(ids[0] - 1, ids[-1] + 2):
        sessions, _ = driver.machine.listed(THEME, after, 10)
        assert [session.session_id for session in sessions] == [
            one for one in ids if one > after and one != ids[2]
        ]


def test_phases_do_not_matter() -> None:
    driver = Driver()
    ids = [driver.new(repeat_after_ms=0) for _ in range(4)]
    driver.succeed(Store(ids[3], None, 60_000))
    assert len(driver.succeed(Acquire((THEME,), 2))) == 2
    assert listing(driver.machine) == ids


@pytest.mark.parametrize("seed", range(5))
def test_what_stays_is_seen_exactly_once_while_others_come_and_go(
    seed: int, block_ids: int
) -> None:
    random = Random(seed)
    driver = Driver()
    stays = {driver.new(repeat_after_ms=60_000) for _ in range(2 * min(block_ids, 300))}
    goes = [driver.new(repeat_after_ms=60_000) for _ in range(500)]
    random.shuffle(goes)
    found: list[int] = []
    after: int | None = 0
    while after is not None:
        sessions, after = driver.machine.listed(THEME, after, random.choice((1, 7, 20, 100)))
        found += [session.session_id for session in sessions]
        operations: list[Operation] = []
        for _ in range(random.randrange(60)):
            if goes and random.random() < 0.8:
                operations += removals([goes.pop()])
            elif len(found) < 400:
                operations.append(New(THEME, repeat_after_ms=60_000))
        if operations:
            driver.apply(*operations)
    assert len(found) == len(set(found))
    assert found == sorted(found)
    assert stays <= set(found)
    assert listing(driver.machine) == expected(driver.machine)


def test_a_failed_transaction_leaves_no_trace_in_a_list(block_ids: int) -> None:
    driver = Driver()
    for _ in range(block_ids - 2):
        driver.new(repeat_after_ms=0)
    before = listing(driver.machine)
    news = (New(THEME, repeat_after_ms=0),) * 5
    failed = driver.do(Txn((*news, Remove(before[0], None), FAILS)))
    assert isinstance(failed, Failure)
    assert listing(driver.machine) == before
    # The ids are given out again, to sessions of another theme as well.
    again = [driver.new(THEME + number % 2, repeat_after_ms=0) for number in range(6)]
    assert again[0] == before[-1] + 1
    for theme in (THEME, THEME + 1):
        assert listing(driver.machine, theme) == expected(driver.machine, theme)


def test_a_session_that_came_and_went_in_a_failed_transaction_is_not_listed() -> None:
    driver = Driver()
    first = driver.new()
    new = New(THEME, key=b"k", repeat_after_ms=0)
    assert isinstance(driver.do(Txn((new, Remove((THEME, b"k"), None), new, FAILS))), Failure)
    assert listing(driver.machine) == [first]
    assert driver.new() == first + 1
    assert listing(driver.machine) == [first, first + 1]


def test_random_lives_are_listed_as_they_are(block_ids: int) -> None:
    """With transactions that fail, restarts from a disk, and themes that are forgotten."""
    del block_ids
    for seed in range(6):
        run = Run()
        writer = Writer(run, Random(f"listing {seed}"))
        for number in range(150):
            run.do(writer.step())
            for theme in themes(run.machine):
                page = 1 + (number + theme) % 5
                assert listing(run.machine, theme, page) == expected(run.machine, theme)


def test_a_loaded_state_is_listed_like_the_one_that_was_written(block_ids: int) -> None:
    driver = Driver()
    for batch in rich_batches():
        driver.apply_bytes(batch)
    for _ in range(min(block_ids, 50) * 3):
        driver.new(repeat_after_ms=0)
    driver.succeed(Remove(driver.new(repeat_after_ms=0), None))
    loaded = load(everything(driver.machine))
    for theme in themes(driver.machine):
        assert listing(loaded, theme) == listing(driver.machine, theme)


def test_sessions_are_loaded_in_any_order(block_ids: int) -> None:
    driver = Driver()
    for number in range(2000 if block_ids > 100 else 50):
        driver.new(THEME + number % 2, repeat_after_ms=0)
    items = everything(driver.machine)
    places = [place for place, item in enumerate(items) if item.kind == items[-2].kind]
    sessions = items[places[0] : places[-1] + 1]
    Random(1).shuffle(sessions)
    loaded = load([*items[: places[0]], *sessions, *items[places[-1] + 1 :]])
    for theme in (THEME, THEME + 1):
        assert listing(loaded, theme) == listing(driver.machine, theme)
    driver_again = Driver(loaded, incarnation=2)
    driver_again.new(repeat_after_ms=0)
    assert listing(loaded) == expected(loaded)


def waste(machine: StateMachine) -> int:
    """Ids of sessions that are gone, as far as they are kept."""
    theme = machine.theme(THEME)
    return 0 if theme is None else len(theme.roll) - theme.population


def test_what_is_gone_is_forgotten_in_time() -> None:
    """A theme that has few sessions at a time does not grow by those that it had."""
    driver = Driver()
    driver.new(repeat_after_ms=0)
    for _ in range(40):
        ids = [driver.new(repeat_after_ms=0) for _ in range(20)]
        driver.apply(*removals(ids))
        assert waste(driver.machine) <= 2 * 1 + 64 + 20


def test_after_a_crowd_has_left_its_ids_go_a_few_with_each_batch() -> None:
    driver = Driver()
    stays = driver.new(repeat_after_ms=0)
    ids: list[int] = []
    for _ in range(40):
        applied = driver.apply(*[New(THEME, repeat_after_ms=0)] * 1000)
        ids += [result.session_id for result in applied.results]  # type: ignore[union-attr]
    for start in range(0, len(ids), 4000):
        driver.apply(*removals(ids[start : start + 4000]))
    before = waste(driver.machine)
    for _ in range(10):
        driver.apply(Pause(99), Resume(99))  # nothing that has to do with the theme
    assert waste(driver.machine) <= 2 + 64 < before
    assert listing(driver.machine) == [stays]


def test_ids_that_wait_to_be_forgotten_do_not_hold_up_a_page() -> None:
    """A page looks at a bounded number of ids, and says where to go on if none is left."""
    driver = Driver()
    ids = [driver.new(repeat_after_ms=0) for _ in range(60)]
    driver.apply(*removals(ids[:50]))
    sessions, after = driver.machine.listed(THEME, 0, 20)
    assert sessions == []
    assert after == ids[19]
    assert listing(driver.machine, page=20) == ids[50:]
