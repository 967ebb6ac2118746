"""Programs as users write them: all of this type-checks, and is of the types that are asserted.

It is read by mypy and not run.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Literal, assert_type

import ritornello
import ritornello.sync
from ritornello import (
    Cause,
    ClusterView,
    Created,
    Event,
    Handled,
    Opening,
    Options,
    Outcome,
    Park,
    Policy,
    Remove,
    RitornelloError,
    Session,
    SessionView,
    Store,
    Stored,
    ThemeView,
    Trace,
    Transferred,
    Verdict,
    Worker,
    WorkerOptions,
)
from ritornello.errors import KeyConflict, LeaseLost, RequestError, TxnAborted
from ritornello.worker import Handle


async def sessions(client: ritornello.Client) -> None:
    opening = client.new(7, b"x")
    assert_type(await assert_type(opening, Opening[Session]), Session)
    assert_type(await client.new(7, "x", key="k", priority=1), Session)
    assert_type(await client.new(7, "x", after=0, on_conflict="bring_forward"), Created)
    assert_type(await client.new(7, after=timedelta(hours=1)), Created)
    async with client.new(7, bytearray(b"x")) as begun:
        assert_type(begun, Session)
        assert_type(await begun.append(b"x"), int)
        assert_type(await begun.replace("x", timeout=3), int)
        assert_type(await begun.store(60, cause="failed", reason="r"), Stored)
    async with client.acquire([7, 8], wait=20) as session:
        assert_type(session, Session | None)
        if session is None:
            return
        assert_type(session.key, str | None)
        assert_type(session.data, bytes)
        assert_type(session.chunks, Sequence[bytes])
        assert_type(session.history, tuple[Cause, ...])
        assert_type(session.trace, Trace | None)
        assert_type(session.lease_remaining, float)
        session.bound(progress=1.5, total=timedelta(minutes=1))
        await session.touch()
        await session.park("why")
    assert_type(await client.acquire(7), Session | None)
    assert_type(await client.acquire_many({7, 8}, 10), list[Session])
    assert_type(await client.take((7, "k")), Session)
    assert_type(await client.resume("id", 3), Session)


async def nobodys(client: ritornello.Client) -> None:
    assert_type(await client.get("id", stale=True), SessionView)
    assert_type((await client.get((7, "k"))).phase, Literal["stored", "ready", "active", "parked"])
    assert_type(await client.append("id", "x", if_revision=3), int)
    assert_type(await client.store((7, "k"), after=60), Stored)
    assert_type(await client.unpark("id"), Stored)
    assert_type(client.list(7, phase="parked"), AsyncIterator[SessionView])
    async for view in client.list(7):
        assert_type(view, SessionView)
    assert_type(await client.themes(), list[ThemeView])
    assert_type((await client.set_policy(7, max_attempts=3, backoff="fixed")).policy, Policy)
    assert_type(await client.cluster(), ClusterView)
    assert_type(await client.transfer(), Transferred)
    async for event in client.events(7, kinds=["removed"], after="0"):
        assert_type(event, Event)
        assert_type(event.key, str | None)


async def together(client: ritornello.Client, session: Session) -> None:
    async with client.txn() as txn:
        assert_type(txn, ritornello.Txn)
        txn.new(8, session.data)
        txn.append((8, "k"), "x")
        txn.remove(session)
    assert_type(txn.results, tuple[Created | Stored | int, ...])


async def errors(session: Session) -> None:
    try:
        await session.remove()
    except LeaseLost as lost:
        assert_type(lost.current_epoch, int | None)
    except KeyConflict as conflict:
        assert_type(conflict.holder, str | None)
    except TxnAborted as aborted:
        assert_type(aborted.cause, RequestError | None)
    except RitornelloError as error:
        assert_type(error.code, str)
        assert_type(error.retryable, bool)
        assert_type(error.outcome, Outcome)


def verdict_of(session: Session) -> Verdict:
    match session.attempts:
        case 1:
            return Store(after=60, reason="again")
        case 2:
            return Remove()
        case _:
            return Park()


class Shipping:
    themes: Iterable[int] = (9,)

    async def handle(self, session: Session) -> Verdict | None:
        return verdict_of(session)


async def work(client: ritornello.Client) -> None:
    worker = Worker(client, options=WorkerOptions(concurrency=3, progress_s=60))

    @worker.handler(7, 8)
    async def ship(session: Session) -> Verdict:
        return verdict_of(session)

    assert_type(await ship(await client.new(7)), Remove | Store | Park)

    @worker.handler(10)
    async def finish(session: Session) -> None:
        await session.remove()

    @worker.middleware
    async def around(session: Session, handle: Handle) -> Verdict | None:
        return await handle(session)

    @worker.on_handled
    def count(one: Handled) -> None:
        assert_type(one.verdict, Remove | Store | Park | None)
        assert_type(one.error, BaseException | None)

    handler: ritornello.Handler = Shipping()
    worker.add(handler)
    worker.add(Shipping())
    await worker.run(handle_signals=True)


def threads() -> None:
    options = Options(prefer="leader", trace=lambda: Trace("00-0-0-00"))
    with ritornello.sync.Client(["http://a", "http://b"], token=lambda: "t", options=options) as it:
        assert_type(it, ritornello.sync.Client)
        assert_type(it.new(7), ritornello.sync.Session)
        assert_type(it.new(7, after=0), Created)
        assert_type(it.acquire(7, wait=20), ritornello.sync.Session | None)
        assert_type(it.acquire_many(7, 2), list[ritornello.sync.Session])
        assert_type(it.events(), Iterator[Event])
        assert_type(it.list(7), Iterator[SessionView])
        with it.take("id") as session:
            assert_type(session.append("x"), int)
            assert_type(session.store(), Stored)
        worker = ritornello.sync.Worker(it, concurrency=3)

        @worker.handler(7)
        def ship(session: ritornello.sync.Session) -> Verdict:
            session.touch()
            return Remove()

        assert_type(worker.run(), None)
