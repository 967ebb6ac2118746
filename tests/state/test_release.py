"""Release is its operators' Stores in one operation, of the same sessions on every node.

A consumer meets its sessions in an order of its own: by which became active first, or, after a
start from a checkpoint, by which was loaded first. Nothing that it is answered may show that.
"""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from state import LIMITS, Applied, Cause, Phase, StateMachine, load
from state.operations import (
    AcquireSession,
    Heartbeat,
    New,
    Operation,
    Release,
    SetPolicy,
    Store,
    Tick,
    Touch,
)
from tests.state.driver import Driver, contents, everything

CONSUMERS = (b"a", b"b")
THEMES = (1, 2, 3)
LEASES_MS = (1_000, 5_000, 30_000)
SESSIONS = 12

# The last attempt of theme 1 parks; the repeats of theme 2 are due at once.
POLICIES = (
    SetPolicy(1, (("lease_ms", LEASES_MS[0]), ("max_attempts", 1))),
    SetPolicy(2, (("lease_ms", LEASES_MS[1]), ("repeat_ms", 0))),
    SetPolicy(3, (("lease_ms", LEASES_MS[2]), ("backoff", 1), ("progress_ms", 500))),
)


@dataclass(frozen=True, slots=True)
class Past:
    """How a session came to be held: in which place, by whom, and who resumed it since."""

    theme: int
    place: int
    consumer: bytes
    resumed_by: bytes | None


_pasts = st.lists(
    st.builds(
        Past,
        st.sampled_from(THEMES),
        st.integers(0, SESSIONS),
        st.sampled_from(CONSUMERS),
        st.none() | st.sampled_from(CONSUMERS),
    ),
    max_size=SESSIONS,
)


def drivers_with(pasts: list[Past], count: int) -> list[Driver]:
    """Machines with these sessions, that got to know them in the same way."""
    numbered = sorted(enumerate(pasts, 1), key=lambda pair: pair[1].place)
    touches = [
        Touch(number, 1, past.resumed_by)
        for number, past in reversed(numbered)
        if past.resumed_by is not None
    ]
    operations: list[Operation] = [
        *POLICIES,
        *(New(past.theme, repeat_after_ms=60_000) for past in pasts),
        *(AcquireSession(number, past.consumer) for number, past in numbered),
        *touches,
        Tick(100),
        # So that the sign of life of an operator's Store says nothing new.
        *(Touch(number, 1) for number, _ in numbered),
        *map(Heartbeat, CONSUMERS),
    ]
    drivers = [Driver(proposer="n") for _ in range(count)]
    for driver in drivers:
        driver.results(*operations)
    return drivers


def loaded(driver: Driver) -> Driver:
    """Another that was started from a checkpoint of this one."""
    made = Driver(load(everything(driver.machine)), proposer=driver.proposer)
    made.sequence = driver.sequence
    return made


def held(machine: StateMachine, consumer: bytes) -> list[int]:
    """What a consumer holds, found the slow way."""
    return sorted(
        one.session_id
        for one in machine.sessions()
        if one.consumer is not None and one.consumer.consumer_id == consumer
    )


def told(applied: Applied) -> tuple[object, ...]:
    return applied.raw_events, applied.awake


@given(
    pasts=_pasts,
    count=st.integers(1, SESSIONS),
    cause=st.sampled_from((Cause.FAILED, Cause.DISCONNECTED, Cause.SHUTDOWN)),
    reason=st.sampled_from(("", "gone")),
)
def test_a_page_is_the_stores_of_the_smallest_ids(
    pasts: list[Past], count: int, cause: Cause, reason: str
) -> None:
    released, stored = drivers_with(pasts, 2)
    ids = held(released.machine, b"a")
    by_one = released.apply(Release(b"a", count, cause, reason))
    by_many = stored.apply(*(Store(one, 1, None, cause, reason) for one in ids[:count]))
    assert by_one.results == (len(ids[count:]),)
    assert told(by_one) == told(by_many)
    assert contents(released.machine) == contents(stored.machine)
    assert held(released.machine, b"a") == ids[count:]


@given(pasts=_pasts, counts=st.lists(st.integers(1, 4), max_size=4), restarts=st.integers(0, 4))
def test_nodes_that_met_the_sessions_in_another_order_agree(
    pasts: list[Past], counts: list[int], restarts: int
) -> None:
    [driver] = drivers_with(pasts, 1)
    other = loaded(driver)
    for page, count in enumerate(counts):
        if page == restarts:
            other = loaded(other)
        one, another = (each.apply(Release(b"a", count)) for each in (driver, other))
        assert one.results == another.results
        assert one.raw_events == another.raw_events
        assert driver.machine.digest() == other.machine.digest()
    assert contents(driver.machine) == contents(other.machine)


def test_pages_come_to_an_end() -> None:
    driver = Driver()
    page = LIMITS.acquire_count
    driver.results(*(New(7, consumer=b"c") for _ in range(2 * page + 1)), New(7, consumer=b"d"))
    assert [driver.do(Release(b"c", page)) for _ in range(4)] == [page + 1, 1, 0, 0]
    active = [one.session_id for one in driver.machine.sessions() if one.phase is Phase.ACTIVE]
    assert active == [2 * page + 2]
    assert list(driver.machine.consumers()) == [b"d"]
