"""The server in memory and its clock, as a client sees them."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import ritornello.sync
from ritornello import Store
from ritornello.errors import LeaseLost
from ritornello.sync.session import Session
from ritornello.testing import LocalServer

THEME = 7


def test_repeats_without_sleeping(local: LocalServer, local_client: ritornello.sync.Client) -> None:
    begin_s = time.monotonic()
    local_client.new(THEME, b"", key="k", after=0)
    for day in range(1, 31):
        session = local_client.acquire(THEME, wait=5)
        assert session is not None
        assert session.attempts == day
        session.store(after=86_400)
        local.clock.advance(86_399)
        assert local_client.acquire(THEME) is None
        local.clock.advance(1)
    assert time.monotonic() - begin_s < 20


def test_backoff_of_the_policy_without_sleeping(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    local.clock.freeze()
    local_client.set_policy(
        THEME, repeat_ms=1_000, backoff="exponential", jitter_permille=0, max_attempts=4
    )
    created = local_client.new(THEME, after=0)
    waits: list[int] = []
    while True:
        session = local_client.acquire(THEME, wait=5)
        assert session is not None
        stored = session.store(cause="failed")
        if stored.parked:
            break
        waits.append(stored.due_ms - local.clock.now_ms)
        local.clock.advance(waits[-1] / 1000)
    assert waits == [1_000, 2_000, 4_000]
    assert local_client.get(created.id).phase == "parked"


def test_a_long_poll_is_served_at_once(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    local_client.new(THEME, b"later", after=3600)

    def poll() -> bytes:
        session = local_client.acquire(THEME, wait=40)
        assert session is not None
        session.remove()
        return session.data

    with ThreadPoolExecutor() as pool:
        polling = pool.submit(poll)
        while not local_client.cluster().waiting_consumers:  # the poll is on its way
            time.sleep(0.001)
        local.clock.advance(3600)
        assert polling.result(5) == b"later"


def test_many_consumers_keep_what_they_hold(local: LocalServer) -> None:
    held: list[Session] = []
    with local.sync_client() as one, local.sync_client() as other:
        for client in (one, other):
            held += [client.new(THEME) for _ in range(20)]
        local.clock.advance(7 * 86_400)
        for session in held:
            session.append(b"still mine")
            session.remove()


def test_a_lease_ends_without_sleeping(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    with pytest.raises(LeaseLost) as lost, local_client.new(THEME) as session:
        local.clock.advance(31, heartbeats=False)
        session.append(b"late")
    assert lost.value.code == "lease_lost"
    view = local_client.get(session.id)
    assert view.phase in {"stored", "ready"}
    assert view.history[-1].cause == "stale"


async def test_a_handler_is_cancelled_when_its_lease_is_lost(local: LocalServer) -> None:
    async with local.client() as client:
        begun, gone = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with client.new(THEME):
                begun.set()
                await gone.wait()

        holding = asyncio.ensure_future(hold())
        await asyncio.wait_for(begun.wait(), 5)
        local.clock.advance(31, heartbeats=False)
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(holding, 5)


async def test_who_lost_its_connection_is_not_kept(local: LocalServer) -> None:
    async with local.client() as holder, local.client() as other:
        session = await holder.new(THEME)
        with local.faults.refuse():
            local.faults.cut()
            local.clock.advance(60)
        with pytest.raises(LeaseLost):
            await session.append(b"late", timeout=5)
        view = await other.get(session.id)
        assert view.history[-1].cause == "stale", view.history


def test_it_is_frozen_and_goes_on(local: LocalServer) -> None:
    clock = local.clock
    clock.freeze()
    begin_ms = clock.now_ms
    clock.advance(0.001)
    clock.advance(100 * 365 * 86_400)
    assert clock.now_ms == begin_ms + 1 + 100 * 365 * 86_400_000
    clock.go_on()
    end_s = time.monotonic() + 5
    while clock.now_ms == begin_ms + 1 + 100 * 365 * 86_400_000:
        assert time.monotonic() < end_s


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e12])
def test_time_that_makes_no_sense_is_refused(local: LocalServer, seconds: float) -> None:
    with pytest.raises(ValueError, match="0 to 3153600000"):
        local.clock.advance(seconds)


def test_nothing_of_it_is_left_behind() -> None:
    before = set(threading.enumerate())
    with LocalServer() as local:
        client = local.sync_client()
        client.__enter__()
        held = client.new(THEME)
    client.close()
    assert held.id
    assert set(threading.enumerate()) == before


def test_servers_share_nothing(local: LocalServer, local_client: ritornello.sync.Client) -> None:
    with LocalServer() as other, other.sync_client() as client:
        local_client.new(THEME, key="k", after=0)
        assert list(client.list(THEME)) == []
        other.clock.advance(3600)
        assert other.clock.now_ms - local.clock.now_ms > 3_500_000


def test_before_its_start_it_says_what_to_do() -> None:
    server = LocalServer()
    for name in ("url", "clock"):
        with pytest.raises(RuntimeError, match="context manager"):
            getattr(server, name)
    server.stop()  # of which there is nothing


def test_it_is_started_once_and_stopped_as_often_as_one_likes() -> None:
    server = LocalServer()
    with server, pytest.raises(RuntimeError, match="make another one"):
        server.start()
    server.stop()
    server.faults.cut()  # nothing is left to be cut
    with pytest.raises(RuntimeError, match="the server is stopped"):
        server.clock.advance(1)


def test_a_verdict_of_a_worker_without_sleeping(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    worker = ritornello.sync.Worker(local_client)
    done = threading.Semaphore(0)

    @worker.handler(THEME)
    def work(session: Session) -> Store:  # noqa: ARG001 - it needs nothing of it
        done.release()
        return Store(after=600)

    created = local_client.new(THEME, after=0)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(worker.run)
        for _ in range(5):
            assert done.acquire(timeout=5)
            while local_client.get(created.id).phase == "active":
                time.sleep(0.001)
            local.clock.advance(600)
        worker.stop()
        running.result(10)
