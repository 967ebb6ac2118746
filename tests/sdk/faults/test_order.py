"""What is said of a session is done in order, once, and whoever said it hears what became of it."""

import asyncio
import gc
import time

import pytest

import ritornello.sync
from ritornello import Client, NoVerdictWarning, Opening, Options, Session, WorkerOptions, limits
from ritornello.core.conversation import Conversation
from ritornello.core.requests import Held, Home, Request
from ritornello.errors import (
    DeadlineExceeded,
    LeaseLost,
    LimitExceeded,
    NotConnected,
    Outcome,
    Overloaded,
    SessionNotFound,
    Skipped,
    WrongPhase,
)
from ritornello.testing import LocalServer
from tests.sdk.faults.sessions import THEME, TOO_LARGE


async def phase(client: Client, session: Session) -> str:
    """Where a session is; `removed` if it is gone."""
    try:
        return (await client.get(session.id)).phase
    except SessionNotFound:
        return "removed"


# A verdict is not done if what was said before it was not


async def test_a_verdict_behind_what_had_no_time(client: Client) -> None:
    session = await client.new(THEME)
    append = session.append(b"x", timeout=0.0)
    found = await asyncio.gather(append, session.remove(), return_exceptions=True)
    assert [type(one) for one in found] == [DeadlineExceeded, Skipped]
    assert await phase(client, session) == "active"
    await session.remove()


async def test_a_verdict_behind_what_had_no_room(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await client.new(THEME)
    monkeypatch.setattr(limits, "REQUESTS_MAX", 0)
    append = asyncio.ensure_future(session.append(b"x"))
    await asyncio.sleep(0)
    time.sleep(0.1)  # noqa: ASYNC251 - the program is busy, and does not hear that it was refused
    monkeypatch.undo()
    found = await asyncio.gather(append, session.remove(), return_exceptions=True)
    assert [type(one) for one in found] == [Overloaded, Skipped]
    assert await phase(client, session) == "active"
    await session.remove()


async def test_a_verdict_behind_what_found_no_node(local: LocalServer) -> None:
    async with local.client(Options(retries=False)) as client:
        session = await client.new(THEME)
        refusing = local.faults.refuse()
        local.faults.cut()
        await asyncio.sleep(0.1)
        append = asyncio.ensure_future(session.append(b"x"))
        await asyncio.sleep(0)
        time.sleep(0.5)  # noqa: ASYNC251 - busy, as above
        refusing.end()
        found = await asyncio.gather(append, session.remove(), return_exceptions=True)
        assert [type(one) for one in found] == [NotConnected, Skipped]
        assert await phase(client, session) == "active"
        await session.remove()


async def test_a_transaction_with_a_verdict_behind_what_was_refused(client: Client) -> None:
    session = await client.new(THEME)
    append = asyncio.ensure_future(session.append(TOO_LARGE))
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - busy, as above
    together = client.txn()
    together.remove(session)
    found = await asyncio.gather(append, together.commit(), return_exceptions=True)
    assert [type(one) for one in found] == [LimitExceeded, Skipped]
    assert await phase(client, session) == "active"
    again = client.txn()
    again.remove(session)  # by now it is known
    await again.commit()


async def test_a_verdict_behind_a_transaction_that_fails_at_another_session(
    local: LocalServer, client: Client
) -> None:
    lost, kept = await client.new(THEME), await client.new(THEME)
    async with local.client() as other:
        await (await other.resume(lost.id, lost.epoch)).remove()
        await asyncio.sleep(0.1)
        together = client.txn()
        together.append(lost, b"x")
        together.append(kept, b"x")
        commit = asyncio.ensure_future(together.commit())
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - busy, as above
        found = await asyncio.gather(commit, kept.remove(), return_exceptions=True)
    assert [type(one) for one in found] == [LeaseLost, Skipped]
    assert await phase(client, kept) == "active"
    await kept.remove()


async def test_a_verdict_behind_what_was_skipped_behind_what_was_withdrawn(
    local: LocalServer, client: Client
) -> None:
    session = await client.new(THEME)
    with local.faults.delay(0.3, of="touch"):
        touch = asyncio.ensure_future(session.touch())
        first, second = (asyncio.ensure_future(session.append(one)) for one in (b"a", b"b"))
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.sleep(0)
        time.sleep(0.1)  # noqa: ASYNC251 - busy, as above
        remove = asyncio.ensure_future(session.remove())
        found = await asyncio.gather(touch, second, remove, return_exceptions=True)
    assert [type(one) for one in found] == [type(None), Skipped, Skipped]
    assert await phase(client, session) == "active"
    await session.remove()


# Whoever is told goes on


async def test_who_was_not_told_of_a_failure_is_told_once(
    local: LocalServer, client: Client
) -> None:
    async with client.new(THEME) as session:
        with local.faults.delay(0.4, of="append"), pytest.raises(DeadlineExceeded):
            await session.append(TOO_LARGE, timeout=0.1)
        await asyncio.sleep(0.5)
        with pytest.raises(Skipped):
            await session.append(b"x")
        await session.append(b"y")
        await session.remove()


async def test_another_object_of_a_session_is_not_told_of_old_failures(client: Client) -> None:
    async with client.new(THEME) as session:
        with pytest.raises(LimitExceeded):
            await session.append(TOO_LARGE)
        again = await client.resume(session.id, session.epoch)
        await again.append(b"x")
        await session.append(b"y")
        await session.remove()


@pytest.mark.parametrize("op", ["remove", "store", "park"])
async def test_a_verdict_that_is_first_given_during_an_outage_is_told_to_be_done(
    local: LocalServer, client: Client, op: str
) -> None:
    session = await client.new(THEME)
    refusing = local.faults.refuse()
    local.faults.cut()
    await asyncio.sleep(0.1)
    given = asyncio.ensure_future(getattr(session, op)())
    await asyncio.sleep(0.2)
    refusing.end()
    await given
    assert await phase(client, session) in {"removed", "stored", "ready", "parked"}


async def test_a_transaction_whose_answer_is_lost_is_told_to_be_done(
    local: LocalServer, client: Client
) -> None:
    session = await client.new(THEME)
    together = client.txn()
    together.remove(session)
    together.new(12, after=0)
    with local.faults.drop(of="txn"):
        await together.commit()
    assert len([one async for one in client.list(12)]) == 1
    assert not session.is_held


async def test_who_asks_for_a_session_again_keeps_it_when_the_first_answer_comes(
    local: LocalServer, client: Client
) -> None:
    session = await client.new(THEME)
    async with local.client() as other:
        with local.faults.delay(0.5, 1, of="resume"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(resumed(other, session), 0.1)
            async with other.resume(session.id, session.epoch) as mine:
                await asyncio.sleep(0.8)
                assert mine.is_held
                await mine.append(b"x")
                await mine.remove()


async def test_a_second_resume_that_reads_the_session_is_not_undone_by_the_first_one(
    local: LocalServer, client: Client
) -> None:
    # The first one's caller leaves while the second one reads.
    session = await client.new(THEME, key="read")
    async with local.client(Options(close_s=0.5, backoff_max_s=0.2)) as other:
        with local.faults.delay(0.5, 2, of="get"):
            first = asyncio.ensure_future(resumed(other, session))
            second = asyncio.ensure_future(resumed(other, session))
            await asyncio.sleep(0.25)  # both are answered, and read
            first.cancel()
            async with await second as mine:
                await asyncio.sleep(0.2)
                assert mine.is_held
                await mine.remove()
        mine = await other.new(THEME, key="read")
        with local.faults.delay(0.5, of="get"), pytest.warns(NoVerdictWarning):  # noqa: PT031
            third = other.resume(mine.id, mine.epoch)
            reading = asyncio.ensure_future(_opened(third))
            await asyncio.sleep(0.25)
            del mine
            gc.collect()
            await (await reading).remove()


async def _opened(opening: Opening[Session]) -> Session:
    return await opening


@pytest.mark.parametrize("is_posted", [False, True])
def test_a_verdict_that_is_interrupted_as_it_is_given_is_done(
    still_client: ritornello.sync.Client, monkeypatch: pytest.MonkeyPatch, *, is_posted: bool
) -> None:
    core = still_client.core
    ask = core.ask

    def interrupted(request: Request, home: Home | None = None) -> None:
        if is_posted:
            ask(request, home)
        raise KeyboardInterrupt

    session = still_client.new(THEME)
    with monkeypatch.context() as patch:
        patch.setattr(core, "ask", interrupted)
        with pytest.raises(KeyboardInterrupt), session:
            session.remove()
    end_s = time.monotonic() + 5
    with pytest.raises(SessionNotFound):
        while time.monotonic() < end_s:
            still_client.get(session.id)
            time.sleep(0.02)


async def test_what_is_spared_for_a_resume_that_ends_without_an_answer_is_given_back(
    local: LocalServer, client: Client
) -> None:
    session = await client.new(THEME, key="spared")
    async with local.client(Options(close_s=0.5, backoff_max_s=0.2)) as other:
        with local.faults.delay(0.3, of="resume"):
            for after_s in (0.1, 0.3):  # the second one is open when the first one's answer comes
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(resumed(other, session), after_s)
            local.faults.cut()
        async with asyncio.timeout(10):
            while await phase(client, session) == "active":  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def resumed(client: Client, session: Session) -> Session:
    return await client.resume(session.id, session.epoch)


async def test_a_transaction_without_retries_is_not_sent_twice(local: LocalServer) -> None:
    options = Options(retries=False, close_s=0.5, backoff_max_s=0.2)
    async with local.client(options) as client:
        session = await client.new(THEME)
        together = client.txn()
        together.append(session, b"once")
        with local.faults.drop(of="txn"), pytest.raises(NotConnected) as caught:
            await together.commit()
        assert caught.value.outcome is Outcome.UNKNOWN
        await session.append(b"and on")
        view = await client.get(session.id)
        assert list(view.chunks) == [b"once", b"and on"]
        await session.remove()


async def test_what_is_refused_when_it_is_sent_again_may_have_been_done(
    local: LocalServer, client: Client
) -> None:
    created = await client.new(THEME, after=0)
    with local.faults.drop(of="take"), pytest.raises(WrongPhase) as caught:
        await client.take(created.id)
    assert caught.value.outcome is Outcome.UNKNOWN
    with pytest.raises(WrongPhase) as caught:
        await client.take(created.id)
    assert caught.value.outcome is Outcome.NOT_APPLIED


# Whoever loses a session is told


async def test_all_who_work_on_a_session_are_told_that_it_is_lost(
    local: LocalServer, client: Client
) -> None:
    first = await client.new(THEME)
    second = await client.resume(first.id, first.epoch)

    async def work(session: Session) -> None:
        async with session:
            await asyncio.sleep(20)

    working = [asyncio.ensure_future(work(one)) for one in (first, second)]
    await asyncio.sleep(0.1)
    local.clock.advance(100, heartbeats=False)
    async with asyncio.timeout(10):
        found = await asyncio.gather(*working, return_exceptions=True)
    assert [type(one) for one in found] == [LeaseLost, LeaseLost]


async def test_who_works_on_what_was_lost_while_a_transaction_was_in_doubt_is_told(
    local: LocalServer, client: Client
) -> None:
    async with local.client() as other:
        session = await client.new(THEME)
        await other.get(session.id)  # it is connected
        with pytest.raises(LeaseLost):
            async with session, asyncio.timeout(10):
                refusing = local.faults.refuse()
                together = client.txn()
                together.append(session, b"x")
                with local.faults.drop(of="txn"):
                    commit = asyncio.ensure_future(together.commit())
                    await asyncio.sleep(0.2)
                await (await other.resume(session.id, session.epoch)).remove()
                refusing.end()
                await commit  # it was done, and its key tells so
                await asyncio.sleep(20)


async def test_a_body_is_cancelled_once(local: LocalServer, client: Client) -> None:
    """It was taken away because it took too long, and then its lease ends, too."""
    theme, is_clean = 112, False
    await client.set_policy(theme, lease_ms=1000)
    with pytest.raises(LeaseLost):
        async with client.new(theme) as session:
            session.bound(total=0.3)
            refusing = local.faults.refuse()
            local.faults.cut()
            try:
                await asyncio.sleep(20)
            finally:
                await asyncio.sleep(1.5)
                is_clean = True
    refusing.end()
    assert is_clean


@pytest.mark.parametrize("is_out", [False, True])
async def test_a_session_of_which_much_waits_is_lost_as_any_other(
    local: LocalServer, client: Client, *, is_out: bool
) -> None:
    theme = 100 + is_out
    await client.set_policy(theme, lease_ms=1000)
    waiting: list[asyncio.Future[int]] = []
    refusing = None
    with pytest.raises(LeaseLost):
        async with client.new(theme) as session, asyncio.timeout(10):
            if is_out:
                refusing = local.faults.refuse()
                local.faults.cut()
            waiting = [asyncio.ensure_future(session.append(b"x", timeout=30)) for _ in range(3000)]
            if not is_out:
                await asyncio.sleep(0.05)
                local.clock.advance(100, heartbeats=False)
            await asyncio.sleep(20)
    async with asyncio.timeout(5):
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(one) for one in found} <= {LeaseLost, int}
    if refusing is not None:
        refusing.end()


async def test_a_session_that_is_resumed_too_late_is_not_kept_by_signs_of_life(
    local: LocalServer, client: Client
) -> None:
    theme = 111
    await client.set_policy(theme, lease_ms=1000, repeat_ms=0)
    with pytest.raises(LeaseLost):
        async with client.new(theme, key="late"):
            with local.faults.delay(1.3, of="resume"):
                local.faults.cut()
                await asyncio.sleep(20)
    async with asyncio.timeout(8):
        while (view := await client.get((theme, "late"))).phase == "active":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert view.history[-1].cause == "stale"


@pytest.mark.parametrize(
    ("is_told_again", "gives_another"), [(False, False), (True, False), (False, True)]
)
async def test_a_body_is_cancelled_whose_verdict_has_failed_as_its_session_was_lost(
    local: LocalServer, client: Client, *, is_told_again: bool, gives_another: bool
) -> None:
    """Both in one turn, as when a machine goes on that stood still for longer than both times."""
    opened, told = asyncio.Event(), list[object]()

    async def body() -> None:
        async with client.new(THEME) as session:
            opened.set()
            sessions.append(session)
            touching = asyncio.ensure_future(session.touch())
            await asyncio.sleep(0)  # the verdict waits behind it
            try:
                await session.remove(timeout=60)
            except DeadlineExceeded as error:
                told.append(error.outcome)
            loss = session.core_held.loss
            assert loss is not None
            if is_told_again:
                session._lost(loss)  # noqa: SLF001 - as whoever watches may be told now only
            try:
                await (session.store() if gives_another else asyncio.sleep(10))
            finally:
                told.append(session.is_lost)
                await asyncio.gather(touching, return_exceptions=True)

    def stand_still(held: Held) -> None:
        home = held.home
        assert isinstance(home, Conversation)
        past_s = time.monotonic() - 1
        held.waiting[0].deadline_s = held.expires_s = past_s
        home._soonest_s = home._expiring_s = past_s  # noqa: SLF001 - or the test would take a lease
        home.tick()

    sessions: list[Session] = []
    with local.faults.withhold(of="touch"):
        task = asyncio.ensure_future(body())
        await opened.wait()
        await asyncio.sleep(0.1)
        client.core.post(stand_still, sessions[0].core_held)
        async with asyncio.timeout(5):
            with pytest.raises(LeaseLost):
                await task
    assert not task.cancelling()
    assert told == [Outcome.NOT_APPLIED, True]


# Options


@pytest.mark.parametrize("name", ["handler_timeout_s", "progress_s", "grace_s"])
def test_times_of_workers_are_finite(name: str) -> None:
    for wrong in (float("inf"), float("nan"), -1.0):
        with pytest.raises(ValueError, match=name):
            WorkerOptions(**{name: wrong})  # type: ignore[arg-type]


async def test_a_worker_that_is_cancelled_while_it_stops_takes_leave(client: Client) -> None:
    worker, begun = ritornello.Worker(client, options=WorkerOptions(grace_s=30)), asyncio.Event()

    @worker.handler(9)
    async def work(_: Session) -> None:
        begun.set()
        await asyncio.sleep(60)

    await client.new(9, key="x", after=0)
    links = len(client.core._links)  # noqa: SLF001 - connections
    running = asyncio.ensure_future(worker.run())
    await begun.wait()
    worker.stop()
    await asyncio.sleep(0.1)
    running.cancel()
    await asyncio.wait([running])
    assert len(client.core._links) == links  # noqa: SLF001
