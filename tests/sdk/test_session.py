"""Sessions as context managers, against a real server."""

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import ritornello.sync
from ritornello import Client, NoVerdictWarning, Session
from ritornello.errors import LeaseLost, SessionNotFound, Skipped
from tests.api.servers import HTTP, Running, server, until

THEME = 7


async def history(client: Client, session: Session) -> list[tuple[str, str]]:
    view = await client.get(session.id)
    return [(one.cause, one.reason) for one in view.history]


async def some_history(client: Client, session: Session) -> list[tuple[str, str]]:
    """The same, once there is any."""
    async for _ in client.events(THEME, kinds=["stored"], after="0"):
        return await history(client, session)
    raise AssertionError("events end")


async def test_a_life(client: Client) -> None:
    created = await client.new(THEME, "ship it", key="order-1", after=0)
    assert (created.epoch, created.created) == (0, True)
    async with client.acquire(THEME) as session:
        assert session is not None
        assert (session.id, session.theme, session.key) == (created.id, THEME, "order-1")
        assert (session.data, session.attempts, session.priority) == (b"ship it", 1, 128)
        before = session.revision
        assert await session.append(b"; packed") == before + 1
        assert session.chunks == (b"ship it", b"; packed")
        assert await session.replace("shipped") == before + 2
        assert session.data == b"shipped"
        await session.touch()
        was_held = session.is_held
        await session.remove()
        assert (was_held, session.is_held) == (True, False)
    with pytest.raises(SessionNotFound):
        await client.get(created.id)


async def test_a_long_poll_that_ends_empty_is_none(client: Client) -> None:
    async with client.acquire([THEME, 8], wait=0.1) as session:
        assert session is None
    assert await client.acquire(THEME) is None
    assert await client.acquire_many(THEME, 5) == []


async def test_a_long_poll_wakes_when_a_session_becomes_due(client: Client) -> None:
    waiting = asyncio.ensure_future(client.acquire_many(THEME, 2, wait=20))
    await asyncio.sleep(0.1)
    created = await client.new(THEME, after=0.2)
    (session,) = await waiting
    assert session.id == created.id
    await session.remove()


async def test_a_session_left_without_a_verdict_is_stored_with_a_warning(client: Client) -> None:
    with pytest.warns(NoVerdictWarning, match="without a verdict"):
        async with client.new(THEME, b"x") as session:
            await session.append(b"y")
    assert await history(client, session) == [("failed", "it was left without a verdict")]


async def test_an_error_stores_with_its_type_and_never_its_text(client: Client) -> None:
    with pytest.raises(KeyError, match="secret"):
        async with client.new(THEME) as session:
            raise KeyError("secret")
    assert await history(client, session) == [("failed", "KeyError")]


async def test_an_error_after_a_verdict_changes_nothing(client: Client) -> None:
    with pytest.raises(KeyError):
        async with client.new(THEME) as session:
            await session.store(60, reason="later")
            raise KeyError("secret")
    assert await history(client, session) == [("requested", "later")]


async def test_cancellation_gives_the_attempt_back(client: Client) -> None:
    begun = asyncio.Event()
    found: list[Session] = []

    async def work() -> None:
        async with client.new(THEME) as session:
            found.append(session)
            begun.set()
            await asyncio.sleep(60)

    task = asyncio.ensure_future(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    view = await client.get(found[0].id)
    assert (view.phase, view.attempts) == ("ready", 0)
    assert [one.cause for one in view.history] == ["shutdown"]


async def test_a_lost_lease_cancels_the_body_at_once(client: Client, node: Running) -> None:
    begun_s = time.monotonic()
    with pytest.raises(LeaseLost) as raised:
        async with client.new(THEME) as session:
            await take_away(client, node, session)
            await asyncio.sleep(60)
    assert time.monotonic() - begun_s < 30
    assert raised.value.session_id == session.id
    assert session.is_lost
    assert session.lease_remaining == 0
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_lost_lease_is_told_even_if_the_body_has_ended(
    client: Client, node: Running
) -> None:
    with pytest.raises(LeaseLost):
        async with client.new(THEME) as session:
            await take_away(client, node, session)
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(60)


async def test_who_is_cancelled_as_well_stays_cancelled(still_node: Running) -> None:
    def steal(session: Session) -> None:
        with ritornello.sync.Client(still_node.url) as other:
            other.resume(session.id, session.epoch).store(0)

    async with Client(still_node.url) as client:

        async def work() -> None:
            async with client.new(THEME) as session:
                threading.Thread(target=steal, args=(session,)).start()
                while not session.is_lost:
                    time.sleep(0.01)  # noqa: ASYNC251 - so that both come at the same moment
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(60)

        task = asyncio.ensure_future(work())
        with pytest.raises(asyncio.CancelledError):
            await task


async def take_away(client: Client, node: Running, session: Session) -> None:
    """Have somebody else give a verdict, who shows the same epoch."""
    async with Client(node.url) as other:
        held = await other.resume(session.id, session.epoch)
        await held.store(0)
    assert client is not None


async def test_requests_behind_one_that_is_refused_are_skipped(client: Client) -> None:
    async with client.new(THEME) as session:
        too_large = bytes(2 << 20)
        results = await asyncio.gather(
            session.append(b"a"),
            session.append(too_large),
            session.append(b"b"),
            session.remove(),
            return_exceptions=True,
        )
        first, refused, *skipped = results
        assert first == 2
        assert getattr(refused, "code", None) == "limit_exceeded"
        assert all(isinstance(one, Skipped) for one in skipped)
        assert await session.append(b"c") == 3
        assert session.data == b"ac"
        await session.remove()


async def test_what_is_asked_of_one_session_at_once_is_done_in_order(client: Client) -> None:
    async with client.new(THEME) as session:
        parts = [b"%d," % number for number in range(100)]
        await asyncio.gather(*map(session.append, parts))
        assert (await client.get(session.id)).data == b"".join(parts)
        assert session.data == b"".join(parts)
        await session.remove()


async def test_after_a_verdict_nothing_more_can_be_asked(client: Client) -> None:
    async with client.new(THEME) as session:
        await session.store(60)
        for attempt in (session.append(b"x"), session.touch(), session.remove()):
            with pytest.raises(LeaseLost):
                await attempt


async def test_a_session_is_parked_when_its_attempts_are_used_up(client: Client) -> None:
    await client.set_policy(THEME, max_attempts=2, repeat_ms=0)
    await client.new(THEME, key="k", after=0)
    for parked in (False, True):
        async with client.take((THEME, "k")) as session:
            assert (await session.store(cause="failed")).parked is parked
    stored = await client.unpark((THEME, "k"))
    assert not stored.parked
    assert (await client.get((THEME, "k"))).attempts == 0


async def test_a_parked_session_keeps_its_reason(client: Client) -> None:
    async with client.new(THEME, b"x", key="k") as session:
        await session.park("no such street" + "!" * 300)
    view = await client.get((THEME, "k"))
    assert view.phase == "parked"
    assert view.history[-1].reason.startswith("no such street!!!")


async def test_the_lease_lasts_from_when_the_last_sign_of_life_was_sent(client: Client) -> None:
    async with client.new(THEME) as session:
        first = session.lease_remaining
        assert 0 < first <= 30
        await asyncio.sleep(0.2)
        assert session.lease_remaining < first - 0.1
        begun_s = time.monotonic()
        await session.touch()
        assert 30 - (time.monotonic() - begun_s) <= session.lease_remaining <= 30
        await session.remove()
    await client.new(THEME, after=0)
    async with client.acquire(THEME, wait=5) as acquired:
        assert acquired is not None
        assert 20 < acquired.lease_remaining <= 30
        await acquired.remove()


async def test_leases_are_kept_while_the_program_is_stuck(still_node: Running) -> None:
    async with Client(still_node.url) as client:
        await client.set_policy(THEME, lease_ms=1000)
        async with client.new(THEME) as session:
            time.sleep(3)  # noqa: ASYNC251 - that is the point
            assert session.is_held
            await session.append(b"x")
            await session.remove()


async def test_a_session_without_progress_is_taken_from_a_program_that_is_stuck(
    still_node: Running,
) -> None:
    async with Client(still_node.url) as client:
        with pytest.raises(LeaseLost) as raised:
            async with client.new(THEME) as session:
                session.bound(progress=0.3)
                time.sleep(1)  # noqa: ASYNC251 - that is the point
                await session.append(b"too late")
        assert raised.value.cause == "overdue"
        assert session.is_overdue
        found = await some_history(client, session)
        assert found == [("failed", "nothing was done with it for 0.3 s")]


async def test_progress_is_whatever_is_asked(client: Client) -> None:
    async with client.new(THEME) as session:
        session.bound(progress=0.5)
        for _ in range(5):
            await asyncio.sleep(0.2)
            await session.touch()
        await session.remove()


async def test_a_session_that_takes_too_long_in_all_is_taken_away(client: Client) -> None:
    with pytest.raises(LeaseLost):
        async with client.new(THEME) as session:
            session.bound(total=0.4)
            while True:
                await asyncio.sleep(0.05)
                await session.touch()
    found = await some_history(client, session)
    assert found == [("failed", "it was not done within 0.4 s")]


async def test_a_session_of_another_process_is_resumed(client: Client, node: Running) -> None:
    session = await client.new(THEME, b"x")
    async with Client(node.url) as other:
        with pytest.raises(LeaseLost):
            await other.resume(session.id, session.epoch + 1)
        async with other.resume(session.id, session.epoch) as mine:
            assert mine.data == b"x"
            await until(lambda: session.is_lost)
            await mine.append(b"y")
            await mine.remove()
    with pytest.raises(LeaseLost):
        await session.append(b"z")


async def test_what_is_held_is_finished_at_a_node_that_drains_and_is_the_only_one(
    tmp_path: Path,
) -> None:
    async with (
        server(tmp_path, http=replace(HTTP, drain_ms=10_000)) as node,
        Client(node.url) as client,
    ):
        async with client.new(THEME) as session:
            leaving = asyncio.ensure_future(node.leave())
            await until(lambda: node.front.health.is_draining)
            await asyncio.sleep(0.1)  # for the client to hear of it
            await session.append(b"x", timeout=5)
            await session.remove(timeout=5)
        await client.close()
        await leaving
