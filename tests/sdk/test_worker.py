"""Workers with an event loop, against a real server."""

import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import pytest

from api.security.tokens import new_token
from ritornello import (
    Client,
    Handled,
    NoVerdictWarning,
    Park,
    Remove,
    Session,
    Store,
    TooManyFailures,
    Verdict,
    Worker,
    WorkerOptions,
)
from ritornello.errors import Forbidden
from ritornello.worker import Handle
from tests.api.security.files import entry
from tests.api.servers import Running, server, until

THEME, OTHER = 7, 8


async def run_until(worker: Worker, done: asyncio.Event) -> None:
    running = asyncio.ensure_future(worker.run())
    await asyncio.wait({running, asyncio.ensure_future(done.wait())}, return_when="FIRST_COMPLETED")
    worker.stop()
    await running


async def test_handlers_for_themes_answer_verdicts(client: Client) -> None:
    worker = Worker(client, concurrency=5)
    done = asyncio.Event()
    seen: list[bytes] = []

    @worker.handler(THEME)
    async def first(session: Session) -> Verdict:
        await client.new(OTHER, session.data + b"!", after=0)
        return Remove()

    class Second:
        themes = (OTHER,)

        async def handle(self, session: Session) -> Verdict:
            seen.append(session.data)
            if len(seen) == 3:
                done.set()
            return Store(after=60, reason="later") if len(seen) < 3 else Park("enough")

    worker.add(Second())
    for number in range(3):
        await client.new(THEME, b"%d" % number, after=0)
    await run_until(worker, done)
    assert sorted(seen) == [b"0!", b"1!", b"2!"]
    found = [one async for one in client.list(OTHER)]
    assert sorted(one.phase for one in found) == ["parked", "stored", "stored"]
    assert {one.history[-1].reason for one in found} == {"later", "enough"}
    assert (await client.theme(THEME)).ready == 0


async def test_a_handler_that_fails_stores_by_the_policy(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await client.set_policy(THEME, repeat_ms=0, max_attempts=3)
    worker = Worker(client)
    done = asyncio.Event()
    handled: list[Handled] = []

    @worker.handler(THEME)
    async def fail(session: Session) -> Verdict:
        raise ValueError(f"secret {session.data!r}")

    @worker.on_handled
    def note(one: Handled) -> None:
        handled.append(one)
        if len(handled) == 3:
            done.set()

    created = await client.new(THEME, b"x", after=0)
    with caplog.at_level(logging.CRITICAL):
        await run_until(worker, done)
    assert [one.attempts for one in handled] == [1, 2, 3]
    assert all(isinstance(one.error, ValueError) and not one.is_lost for one in handled)
    view = await client.get(created.id)
    assert view.phase == "parked"
    assert [(one.cause, one.reason, one.times) for one in view.history] == [
        ("failed", "ValueError", 3)
    ]


async def test_no_verdict_is_a_failure_with_a_warning(client: Client) -> None:
    worker = Worker(client)
    done = asyncio.Event()

    @worker.handler(THEME)
    async def forget(_: Session) -> None:
        done.set()

    created = await client.new(THEME, after=0)
    with pytest.warns(NoVerdictWarning):
        await run_until(worker, done)
    assert (await client.get(created.id)).history[-1].cause == "failed"


async def test_a_verdict_given_by_the_handler_itself_counts(client: Client) -> None:
    worker = Worker(client)
    done = asyncio.Event()

    @worker.handler(THEME)
    async def finish(session: Session) -> None:
        await session.remove()
        done.set()

    await client.new(THEME, after=0)
    await run_until(worker, done)
    assert [one async for one in client.list(THEME)] == []


async def test_so_many_at_a_time_and_no_more(client: Client) -> None:
    worker = Worker(client, concurrency=3)
    done = asyncio.Event()
    active = most = count = 0

    @worker.handler(THEME)
    async def work(_: Session) -> Verdict:
        nonlocal active, most, count
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.02)
        active -= 1
        count += 1
        if count == 20:
            done.set()
        return Remove()

    for _ in range(20):
        await client.new(THEME, after=0)
    await run_until(worker, done)
    assert (most, count) == (3, 20)


async def test_a_stop_lets_handlers_finish_and_burns_no_attempt(client: Client) -> None:
    worker = Worker(client, options=WorkerOptions(concurrency=2, grace_s=0.5))
    begun: list[str] = []
    finished: list[str] = []

    @worker.handler(THEME)
    async def work(session: Session) -> Verdict:
        begun.append(session.id)
        await asyncio.sleep(0.2 if session.data == b"quick" else 60)
        finished.append(session.id)
        return Remove()

    quick = await client.new(THEME, b"quick", after=0)
    slow = await client.new(THEME, b"slow", after=0)
    waiting = await client.new(THEME, b"waiting", after=0, priority=200)
    running = asyncio.ensure_future(worker.run())
    await until(lambda: len(begun) == 2)
    worker.stop()
    await running
    assert finished == [quick.id]
    view = await client.get(slow.id)
    assert (view.phase, view.attempts) == ("ready", 0)
    assert [one.cause for one in view.history] == ["shutdown"]
    assert (await client.get(waiting.id)).attempts == 0


async def test_a_signal_stops_it(client: Client) -> None:
    worker = Worker(client)

    @worker.handler(THEME)
    async def work(_: Session) -> Verdict:
        return Remove()

    running = asyncio.ensure_future(worker.run(handle_signals=True))
    await until(lambda: worker.node)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await running


async def test_too_many_failures_stop_it(client: Client) -> None:
    await client.set_policy(THEME, repeat_ms=0)
    worker = Worker(client, options=WorkerOptions(failures_max=5))
    count = 0

    @worker.handler(THEME)
    async def work(_: Session) -> Verdict:
        nonlocal count
        count += 1
        raise KeyError

    for _ in range(3):
        await client.new(THEME, after=0)
    with pytest.raises(TooManyFailures, match=r"5 sessions in a row have failed, .* KeyError"):
        await worker.run()
    assert 5 <= count <= 15


async def test_middleware_goes_around_handlers_the_first_outermost(client: Client) -> None:
    worker = Worker(client)
    done = asyncio.Event()
    told: list[str] = []

    @worker.middleware
    async def outer(session: Session, handle: Handle) -> Verdict | None:
        told.append("outer")
        verdict = await handle(session)
        told.append(f"outer {type(verdict).__name__}")
        done.set()
        return Store(after=60)

    @worker.middleware
    async def inner(session: Session, handle: Handle) -> Verdict | None:
        told.append("inner")
        return await handle(session)

    @worker.handler(THEME)
    async def work(_: Session) -> Verdict:
        told.append("work")
        return Remove()

    created = await client.new(THEME, after=0)
    await run_until(worker, done)
    assert told == ["outer", "inner", "work", "outer Remove"]
    assert (await client.get(created.id)).phase == "stored"


async def test_a_handler_that_takes_too_long_is_a_failure(client: Client) -> None:
    worker = Worker(client, options=WorkerOptions(handler_timeout_s=0.3))
    done = asyncio.Event()
    handled: list[Handled] = []

    @worker.handler(THEME)
    async def work(_: Session) -> Verdict:
        await asyncio.sleep(60)
        return Remove()

    @worker.on_handled
    def note(one: Handled) -> None:
        handled.append(one)
        done.set()

    begun_s = time.monotonic()
    created = await client.new(THEME, after=0)
    await run_until(worker, done)
    assert time.monotonic() - begun_s < 20
    assert not handled[0].is_lost
    async for _ in client.events(THEME, kinds=["stored"], after="0"):
        if (await client.get(created.id)).history:
            break
    history = (await client.get(created.id)).history
    assert history[-1].reason == "it was not done within 0.3 s"


async def test_a_session_that_is_lost_is_no_failure(client: Client, node: Running) -> None:
    worker = Worker(client, options=WorkerOptions(failures_max=1))
    done = asyncio.Event()
    handled: list[Handled] = []
    thieves: list[asyncio.Task[None]] = []

    async def steal(session: Session) -> None:
        async with Client(node.url) as other:
            await (await other.resume(session.id, session.epoch)).store(60)

    @worker.handler(THEME)
    async def work(session: Session) -> Verdict:
        thieves.append(asyncio.ensure_future(steal(session)))
        await asyncio.sleep(60)
        return Remove()

    @worker.on_handled
    def note(one: Handled) -> None:
        handled.append(one)
        done.set()

    await client.new(THEME, after=0)
    await run_until(worker, done)
    assert [one.is_lost for one in handled] == [True]


async def test_what_makes_no_sense_is_refused(client: Client) -> None:
    worker = Worker(client)
    with pytest.raises(ValueError, match="at least one handler"):
        await worker.run()
    with pytest.raises(TypeError, match="async def"):
        worker.handler(THEME)(lambda _: None)  # type: ignore[type-var]
    worker.add(Nothing())
    with pytest.raises(ValueError, match="theme 7 has a handler already"):
        worker.add(Nothing())
    for nonsense in (
        {"concurrency": 0},
        {"grace_s": -1},
        {"progress_s": 0},
        {"handler_timeout_s": -1},
        {"failures_max": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(nonsense))):
            WorkerOptions(**nonsense)


class Nothing:
    themes = (THEME,)

    async def handle(self, session: Session) -> Verdict:
        raise NotImplementedError


async def test_a_token_that_may_not_work_stops_it(tmp_path: Path) -> None:
    token = new_token()
    tokens = entry(token, "reader", '["read"]')
    async with server(tmp_path, tokens=tokens) as node, Client(node.url, token=token) as client:
        worker = Worker(client)
        worker.add(Nothing())
        with pytest.raises(Forbidden):
            await worker.run()
