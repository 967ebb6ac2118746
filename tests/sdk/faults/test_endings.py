"""No session stays active with nobody at work on it, however whoever had it came to leave it.

A client's heartbeats renew all that its connection holds, so each has to have a live owner, or an
ending that is pursued.
"""

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
import warnings

import pytest

import ritornello
import ritornello.sync
from ritornello import (
    Client,
    NoVerdictWarning,
    Options,
    Remove,
    Session,
    TooManyFailures,
    WorkerOptions,
)
from ritornello.errors import (
    ClientClosed,
    DeadlineExceeded,
    LimitExceeded,
    NotConnected,
    RitornelloError,
    SessionNotFound,
)
from ritornello.testing import LocalServer
from tests.sdk.faults.sessions import THEME, TOO_LARGE


async def comes_back(client: Client, key: str, theme: int = THEME) -> str:
    """Why a session stopped being active; within a time much shorter than its lease."""
    async with asyncio.timeout(10):
        while (view := await client.get((theme, key))).phase == "active":  # noqa: ASYNC110 - in the cluster
            await asyncio.sleep(0.02)
    return view.history[-1].cause


def comes_back_still(client: ritornello.sync.Client, key: str) -> str:
    end_s = time.monotonic() + 10
    while (view := client.get((THEME, key))).phase == "active":
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return view.history[-1].cause


async def test_what_is_left_while_nothing_answers(local: LocalServer, client: Client) -> None:
    session = await client.new(THEME, key="outage")
    with pytest.raises(ZeroDivisionError) as told:
        async with session:
            refusing = local.faults.refuse()
            local.faults.cut()
            raise ZeroDivisionError
    assert "not known to be stored" in told.value.__notes__[0]
    refusing.end()
    assert await comes_back(client, "outage") == "failed"


def test_what_is_left_without_a_loop_while_nothing_answers(
    local: LocalServer, still_client: ritornello.sync.Client
) -> None:
    session = still_client.new(THEME, key="still outage")
    with pytest.raises(ZeroDivisionError), session:
        refusing = local.faults.refuse()
        local.faults.cut()
        raise ZeroDivisionError
    refusing.end()
    assert comes_back_still(still_client, "still outage") == "failed"


async def test_what_is_left_without_retries_while_nothing_answers(local: LocalServer) -> None:
    async with local.client(Options(close_s=0.5, retries=False)) as client, local.client() as other:
        session = await client.new(THEME, key="no retries")
        with pytest.raises(ZeroDivisionError):
            async with session:
                refusing = local.faults.refuse()
                local.faults.cut()
                await asyncio.sleep(0.1)
                raise ZeroDivisionError
        refusing.end()
        assert await comes_back(other, "no retries") in {"failed", "shutdown"}


async def test_what_is_left_behind_something_that_is_refused(
    local: LocalServer, client: Client
) -> None:
    async def work() -> None:
        async with client.new(THEME, key="behind") as session:
            await session.append(TOO_LARGE)

    with local.faults.delay(0.5, of="append"):
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await comes_back(client, "behind") == "shutdown"


async def test_what_is_overdue_behind_something_that_is_refused(
    local: LocalServer, client: Client
) -> None:
    with (
        local.faults.delay(0.5, of="append"),
        contextlib.suppress(RitornelloError, asyncio.CancelledError),
    ):
        async with client.new(THEME, key="overdue") as session:
            session.bound(total=0.2)
            await session.append(TOO_LARGE)
    assert await comes_back(client, "overdue") == "failed"


async def test_a_verdict_that_is_refused_after_its_caller_has_left(
    local: LocalServer, client: Client
) -> None:
    """It is skipped, as what was said before it; then nobody else would give one."""

    async def work() -> None:
        async with client.new(THEME, key="skipped") as session:
            appending = asyncio.ensure_future(session.append(TOO_LARGE))
            await asyncio.sleep(0)
            removing = asyncio.ensure_future(session.remove())
            await asyncio.sleep(0.1)
            removing.cancel()
            with pytest.raises(LimitExceeded):
                await appending

    with local.faults.delay(0.5, of="append"):
        await work()
    assert await comes_back(client, "skipped") == "shutdown"


async def test_what_comes_in_the_turn_in_which_its_caller_is_cancelled(client: Client) -> None:
    await client.new(14, key="same turn", after=0)
    begun = asyncio.Event()

    async def hold_the_loop() -> None:
        await begun.wait()
        time.sleep(0.4)  # noqa: ASYNC251 - that is the point

    holding = asyncio.ensure_future(hold_the_loop())
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            begun.set()
            await client.acquire(14, wait=5)
    await holding
    assert await comes_back(client, "same turn", 14) == "shutdown"
    assert (await client.get((14, "same turn"))).attempts == 0


@pytest.mark.parametrize("is_error", [False, True])
async def test_what_is_left_without_a_verdict_and_with_warnings_as_errors(
    client: Client, *, is_error: bool
) -> None:
    with warnings.catch_warnings(record=not is_error):
        warnings.simplefilter("error" if is_error else "always")
        with contextlib.suppress(NoVerdictWarning):
            async with client.new(THEME, key=f"warned {is_error}"):
                pass
    assert await comes_back(client, f"warned {is_error}") == "failed"


async def test_what_is_forgotten(client: Client) -> None:
    session = await client.new(THEME, key="forgotten")
    again = await client.resume(session.id, session.epoch)
    with pytest.warns(NoVerdictWarning, match="forgotten"):  # noqa: PT031
        del session
        gc.collect()
        await again.append(b"still somebody's")
        del again
        gc.collect()
    assert await comes_back(client, "forgotten") == "shutdown"


async def test_what_is_resumed_and_cannot_be_read(local: LocalServer, client: Client) -> None:
    async with local.client() as other:
        session = await client.new(THEME, key="unread")
        with local.faults.delay(3, of="get"), pytest.raises(DeadlineExceeded):
            await other.resume(session.id, session.epoch, timeout=0.5)
        assert await comes_back(client, "unread") == "shutdown"


async def test_a_cancellation_that_nobody_asked_for_is_a_failure(client: Client) -> None:
    with pytest.raises(asyncio.CancelledError):
        async with client.new(THEME, key="own"):
            gone = asyncio.ensure_future(asyncio.sleep(9))
            gone.cancel()
            await gone
    assert await comes_back(client, "own") == "failed"


async def test_a_verdict_that_is_refused_leaves_the_session_to_be_stored(client: Client) -> None:
    """Whoever is told of it looks at once, in another thread than the one that tells."""
    for number in range(100):
        with pytest.raises(RitornelloError):
            async with client.new(THEME, key=f"refused {number}") as session:
                await session.store(10**12)
    for number in range(100):
        assert await comes_back(client, f"refused {number}") == "failed"


async def test_a_verdict_behind_what_is_cancelled_unsent_is_not_done(
    local: LocalServer, client: Client
) -> None:
    """It was said in the belief that what stood before it would be done."""
    for is_first_cancelled in (False, True):
        key = f"unsent {is_first_cancelled}"
        async with client.new(THEME, b"before", key=key) as session:
            with local.faults.refuse():
                local.faults.cut()
                await asyncio.sleep(0.1)
                asked = [
                    asyncio.ensure_future(session.append(b"important")),
                    asyncio.ensure_future(session.remove()),
                ]
                await asyncio.sleep(0.05)
                for one in asked if is_first_cancelled else reversed(asked):
                    one.cancel()
                await asyncio.wait(asked)
        assert await comes_back(client, key) == "shutdown"
        assert (await client.get((THEME, key))).data == b"before"


async def test_what_is_said_after_something_was_cancelled_unsent_is_done(
    local: LocalServer, client: Client
) -> None:
    async with client.new(THEME, key="goes on") as session:
        with local.faults.refuse():
            local.faults.cut()
            await asyncio.sleep(0.1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.append(b"given up"), 0.1)
        await session.append(b"done")
        assert (await client.get(session.id)).chunks == (b"done",)
        await session.remove()


@pytest.mark.parametrize("is_collected", [False, True])
async def test_a_verdict_that_is_refused_after_its_time(
    local: LocalServer, client: Client, *, is_collected: bool
) -> None:
    key = f"late {is_collected}"
    with local.faults.delay(0.6, of="store"):
        if is_collected:
            session = await client.new(THEME, key=key)
            with pytest.raises(DeadlineExceeded):
                await session.store(10**12, timeout=0.2)
            del session
            gc.collect()
        else:
            with contextlib.suppress(DeadlineExceeded):
                async with client.new(THEME, key=key) as session:
                    await session.store(10**12, timeout=0.2)
    assert await comes_back(client, key) == "shutdown"


async def test_a_verdict_in_doubt_that_is_refused_when_it_is_sent_again(
    local: LocalServer, client: Client
) -> None:
    with local.faults.drop(of="store"), contextlib.suppress(RitornelloError):
        async with client.new(THEME, key="doubt") as session:
            await session.store(10**12)
    assert await comes_back(client, "doubt") in {"failed", "shutdown"}


async def test_what_somebody_works_on_is_not_given_back_with_a_second_resume(
    local: LocalServer, client: Client
) -> None:
    async with client.new(THEME) as session:
        with local.faults.delay(0.5, of="resume"), pytest.raises(TimeoutError):
            await asyncio.wait_for(_resumed(client, session), 0.2)
        await asyncio.sleep(0.6)
        await session.append(b"still mine")
        await session.remove()


async def _resumed(client: Client, session: Session) -> None:
    await client.resume(session.id, session.epoch)


# Workers


async def test_a_worker_that_stops_burns_no_attempts(client: Client) -> None:
    await client.set_policy(8, repeat_ms=0)
    handled = 0
    await asyncio.gather(*(client.new(8, key=f"{number}", after=0) for number in range(500)))
    for _ in range(10):
        worker = ritornello.Worker(client, concurrency=20)

        @worker.handler(8)
        async def work(_: Session) -> Remove:
            nonlocal handled
            handled += 1
            if handled % 7 == 0:
                worker.stop()  # noqa: B023 - the one that runs
            return Remove()

        await worker.run()
    left = [one async for one in client.list(8)]
    assert left
    for view in left:
        assert view.phase == "ready"
        assert {one.cause for one in view.history} <= {"shutdown"}
        assert view.attempts == 0


def test_a_worker_of_threads_that_stops_burns_no_attempts(
    still_client: ritornello.sync.Client,
) -> None:
    still_client.set_policy(9, repeat_ms=0)
    for number in range(200):
        still_client.new(9, key=f"{number}", after=0)
    for _ in range(10):
        worker = ritornello.sync.Worker(still_client, concurrency=5)

        @worker.handler(9)
        def work(_: ritornello.sync.Session) -> Remove:
            worker.stop()  # noqa: B023 - the one that runs
            return Remove()

        worker.run()
    for left in still_client.list(9):
        assert left.phase == "ready"
        assert {one.cause for one in left.history} <= {"shutdown"}
        assert left.attempts == 0


def test_a_handler_in_a_thread_may_end_the_program(still_client: ritornello.sync.Client) -> None:
    worker = ritornello.sync.Worker(still_client, concurrency=2)

    @worker.handler(10)
    def work(_: ritornello.sync.Session) -> Remove:
        sys.exit(3)

    still_client.new(10, key="exit", after=0)
    with pytest.raises(SystemExit) as told:
        worker.run()
    assert told.value.code == 3
    assert still_client.get((10, "exit")).history[-1].cause == "shutdown"
    still_client.remove((10, "exit"))


class OfItsOwn(BaseException):
    """As test runners have them."""


@pytest.mark.parametrize("how", ["cancelled", "forgotten", "raised"])
async def test_what_fails_without_an_error_counts_for_the_budget(client: Client, how: str) -> None:
    await client.set_policy(11, repeat_ms=0)
    worker = ritornello.Worker(client, options=WorkerOptions(failures_max=3))

    @worker.handler(11)
    async def work(_: Session) -> None:
        if how == "cancelled":
            gone = asyncio.ensure_future(asyncio.sleep(9))
            gone.cancel()
            await gone
        if how == "raised":
            raise OfItsOwn

    await client.new(11, key=how, after=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoVerdictWarning)
        async with asyncio.timeout(10):
            with pytest.raises(TooManyFailures):
                await worker.run()
    causes = {one.cause for one in (await client.get((11, how))).history}
    assert causes - {"shutdown"} == {"failed"}  # it may have been handed out once more
    await client.remove((11, how))


@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit])
def test_in_a_thread_nothing_tells_a_session_to_stop_but_the_end_of_the_program(
    still_client: ritornello.sync.Client, error: type[BaseException]
) -> None:
    key = f"still {error.__name__}"
    with pytest.raises(error), still_client.new(THEME, key=key):
        raise error
    assert comes_back_still(still_client, key) == "failed"


async def test_a_verdict_whose_caller_has_left_is_done_however_long_that_takes(
    local: LocalServer, client: Client
) -> None:
    session = await client.new(THEME)
    refusing = local.faults.refuse()
    local.faults.cut()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.remove(timeout=0.4), 0.1)
    await asyncio.sleep(0.6)
    refusing.end()
    async with asyncio.timeout(10):
        with pytest.raises(SessionNotFound):
            while True:
                await client.get(session.id)
                await asyncio.sleep(0.02)


async def test_a_worker_that_stops_while_nothing_is_answered_burns_no_attempt(
    local: LocalServer, client: Client
) -> None:
    await client.new(15, key="unanswered", after=0)
    async with local.client(Options(close_s=0.3)) as other:
        worker = ritornello.Worker(other, options=WorkerOptions(grace_s=0.1))
        begun = asyncio.Event()

        @worker.handler(15)
        async def work(session: Session) -> Remove:
            begun.set()
            await session.append(b"x")
            return Remove()

        with local.faults.withhold(of="append"):
            running = asyncio.ensure_future(worker.run())
            await begun.wait()
            await asyncio.sleep(0.1)
            worker.stop()
            await running
            async with asyncio.timeout(5):
                while (view := await client.get((15, "unanswered"))).phase == "active":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
    assert (view.attempts, view.history[-1].cause) == (0, "shutdown")
    assert view.chunks == (b"x",)


async def test_a_worker_ends_with_its_client(local: LocalServer) -> None:
    async with local.client() as client:
        worker = ritornello.Worker(client)
        worker.handler(15)(_never)
        running = asyncio.ensure_future(worker.run())
        await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        with pytest.raises(ClientClosed):
            await running


async def test_a_worker_of_a_client_that_is_not_open_says_so(local: LocalServer) -> None:
    worker = ritornello.Worker(local.client())
    worker.handler(15)(_never)
    with pytest.raises(ClientClosed):
        await worker.run()


async def test_a_worker_that_is_stopped_before_it_runs_ends(client: Client) -> None:
    worker = ritornello.Worker(client)
    worker.handler(15)(_never)
    worker.stop()
    async with asyncio.timeout(5):
        await worker.run()


async def _never(_: Session) -> Remove:
    raise AssertionError("nothing is there")


def test_how_many_at_a_time_may_be_said_in_two_ways(local: LocalServer) -> None:
    client = local.client()
    for worker, wanted in (
        (ritornello.Worker(client), 10),
        (ritornello.Worker(client, concurrency=20), 20),
        (ritornello.Worker(client, concurrency=20, options=WorkerOptions(grace_s=1)), 20),
        (ritornello.Worker(client, options=WorkerOptions(concurrency=3)), 3),
    ):
        assert worker._options.concurrency == wanted  # noqa: SLF001 - it would take a fleet to see


# Clients


async def test_a_transaction_that_is_committed_within_its_block_is_done_once(
    client: Client,
) -> None:
    async with client.txn() as txn:
        txn.new(12)
        await txn.commit()
        with pytest.raises(RuntimeError, match="committed once"):
            await txn.commit()
    assert len([one async for one in client.list(12)]) == 1


async def test_a_token_that_cannot_be_had_for_a_moment_is_asked_for_again(
    local: LocalServer,
) -> None:
    calls = 0

    def token() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise FileNotFoundError("it is being replaced")
        return "a"

    async with Client(local.url, token=token, options=Options(timeout_s=5)) as client:
        await client.new(THEME, after=60)
    assert calls >= 2


async def test_a_token_that_cannot_be_sent_is_told(local: LocalServer) -> None:
    options = Options(timeout_s=0.5)
    async with Client(local.url, token="a\n", options=options) as client:  # noqa: S106 - none
        with pytest.raises(DeadlineExceeded, match="header"):
            await client.new(THEME, after=60)
        with pytest.raises((NotConnected, DeadlineExceeded), match="header"):
            await client.themes()


async def test_a_token_that_takes_long_costs_no_lease(local: LocalServer) -> None:
    is_slow = False

    def token() -> str:
        if is_slow:
            time.sleep(2)
        return "a"

    async with Client(local.url, token=token) as client:
        await client.set_policy(13, lease_ms=1000)
        async with client.new(13) as session:
            is_slow = True
            reading = asyncio.ensure_future(client.themes())
            await asyncio.sleep(1.8)
            assert session.is_held
            await session.remove()
        await reading


async def test_a_client_that_is_closed_says_so_to_who_waits_over_http(local: LocalServer) -> None:
    async with local.client(Options(close_s=0.2)) as client:
        with local.faults.withhold():
            waiting = asyncio.ensure_future(client.themes())
            await asyncio.sleep(0.2)
            await client.close()
            with pytest.raises(ClientClosed):
                await waiting
    local.faults.clear()


async def test_a_close_that_is_cancelled_leaves_nobody_waiting(local: LocalServer) -> None:
    client = local.client(Options(close_s=60))
    await client.__aenter__()
    with local.faults.withhold(of="get"):
        waiting = asyncio.ensure_future(client.get((THEME, "nothing")))
        await asyncio.sleep(0.2)
        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0.1)
        closing.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(ClientClosed):
                await waiting
    local.faults.clear()


def test_a_client_that_is_closed_while_a_worker_ends_tells_its_handlers(
    local: LocalServer,
) -> None:
    found: list[BaseException] = []
    client = local.sync_client(Options(close_s=2))
    client.__enter__()
    worker = ritornello.sync.Worker(client, options=WorkerOptions(grace_s=0.1))

    @worker.handler(16)
    def work(session: ritornello.sync.Session) -> Remove:
        worker.stop()
        try:
            session.append(b"x", timeout=30)
        except RitornelloError as error:
            found.append(error)
            raise
        return Remove()

    client.new(16, after=0)
    with local.faults.withhold(20, of="append"):
        running = threading.Thread(target=worker.run)
        running.start()
        time.sleep(0.6)  # it is closing its connection by now
        client.close()
        running.join(10)
        end_s = time.monotonic() + 5
        while not found and time.monotonic() < end_s:
            time.sleep(0.02)
    assert found
    local.faults.clear()


async def test_numbers_that_no_message_can_hold_are_refused_at_once(client: Client) -> None:
    async with client.new(THEME) as session:
        with pytest.raises(ValueError, match="priority"):
            await client.new(THEME, after=0, priority=2**70)
        with pytest.raises(ValueError, match="if_revision"):
            await client.append((THEME, "k"), b"x", if_revision=2**70)
        with pytest.raises(RitornelloError, match="cannot be said"):
            await client.set_policy(THEME, repeat_ms=2**70)
        await session.remove()


async def test_a_client_is_used_in_its_own_loop(client: Client) -> None:
    found: list[BaseException] = []

    def elsewhere() -> None:
        try:
            asyncio.run(_new(client))
        except RuntimeError as error:
            found.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "event loop" in str(found[0])


async def _new(client: Client) -> None:
    await client.new(THEME, after=60)


def test_a_client_stays_with_the_process_that_opened_it(
    still_client: ritornello.sync.Client,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are threads
        child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            try:
                still_client.new(THEME, after=60)
            except ClientClosed:
                status = 7
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
