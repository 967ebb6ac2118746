"""What else a client asks, against a real server."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from api.security.tokens import new_token
from ritornello import (
    Client,
    Created,
    Options,
    Remove,
    RitornelloError,
    Session,
    Verdict,
    Worker,
)
from ritornello.errors import (
    BadRequest,
    ClientClosed,
    DeadlineExceeded,
    Forbidden,
    KeyConflict,
    NotConnected,
    Outcome,
    RevisionMismatch,
    SessionNotFound,
    TxnAborted,
    Unauthenticated,
    WrongPhase,
)
from tests.api.security.files import entry
from tests.api.servers import Running, cluster_of_three, server

THEME, OTHER = 7, 8


async def test_a_key_is_held_by_one_session(client: Client) -> None:
    first = await client.new(THEME, b"a", key="k", after=3600)
    with pytest.raises(KeyConflict) as raised:
        await client.new(THEME, b"b", key="k", after=0)
    assert (raised.value.holder, raised.value.phase) == (first.id, "stored")
    assert raised.value.outcome is Outcome.NOT_APPLIED
    same = await client.new(THEME, b"b", key="k", after=0, on_conflict="return_existing")
    assert (same.id, same.created) == (first.id, False)
    await client.new(THEME, b"b", key="k", after=0, on_conflict="bring_forward")
    view = await client.get((THEME, "k"))
    assert (view.data, view.phase) == (b"ab", "ready")


async def test_an_idempotency_key_makes_it_once(client: Client, node: Running) -> None:
    first = await client.new(THEME, b"a", after=0, idempotency_key="once")
    async with Client(node.url) as other:
        again = await other.new(THEME, b"a", after=0, idempotency_key="once")
    assert again == first


async def test_producers_change_what_nobody_holds(client: Client) -> None:
    created = await client.new(THEME, b"a", key="k", after=3600)
    assert await client.append(created.id, "b") == 2
    assert await client.replace((THEME, "k"), b"c", if_revision=2) == 3
    with pytest.raises(RevisionMismatch) as raised:
        await client.append(created.id, b"d", if_revision=2)
    assert raised.value.current == 3
    stored = await client.store(created.id, after=60, reason="sooner")
    assert (stored.id, stored.parked) == (created.id, False)
    async with client.take((THEME, "k")) as session:
        with pytest.raises(WrongPhase):
            await client.remove(created.id)
        await session.store(60)
    await client.remove((THEME, "k"))
    with pytest.raises(SessionNotFound):
        await client.get((THEME, "k"))


async def test_a_transaction_is_all_or_nothing(client: Client) -> None:
    async with client.new(THEME, b"a") as session:
        async with client.txn() as txn:
            txn.append(session, b"b")
            txn.new(OTHER, b"next", key="n", after=60)
            txn.touch(session)
        assert (txn.results[0], txn.results[2], session.revision) == (2, 2, 2)
        assert session.data == b"ab"
        with pytest.raises(TxnAborted) as raised:
            async with client.txn() as txn:
                txn.remove(session)
                txn.new(OTHER, key="n")
        assert raised.value.position == 1
        assert isinstance(raised.value.cause, KeyConflict)
        was_held = session.is_held
        with pytest.raises(KeyError):
            async with client.txn() as txn:
                txn.remove(session)
                raise KeyError
        async with client.txn() as txn:
            txn.store((OTHER, "n"), after=0)
            txn.remove(session)
        assert (was_held, session.is_held) == (True, False)
    with pytest.raises(ValueError, match="at least one"):
        async with client.txn():
            pass


async def test_a_transaction_may_hold_nothing(client: Client) -> None:
    first = await client.new(THEME, b"a", after=60)
    async with client.txn() as txn:
        txn.append(first.id, b"b")
        txn.new(OTHER, b"c", after=60)
    revision, created = txn.results
    assert revision == 2
    assert isinstance(created, Created)
    assert (await client.get(created.id)).data == b"c"


async def test_lists_go_through_all_pages(client: Client) -> None:
    created = [await client.new(THEME, key=f"{n % 2}-{n}", after=0) for n in range(7)]
    assert [one.id async for one in client.list(THEME)] == [one.id for one in created]
    assert len([one async for one in client.list(THEME, key_prefix="1-", stale=True)]) == 3
    async with client.acquire(THEME) as session:
        assert session is not None
        assert [one.id async for one in client.list(THEME, phase="active")] == [session.id]
        await session.remove()


async def test_themes_and_their_policies(client: Client) -> None:
    await client.new(THEME, after=0)
    changed = await client.set_policy(THEME, max_attempts=5, backoff="exponential")
    assert (changed.policy.max_attempts, changed.policy.backoff) == (5, "exponential")
    assert (await client.theme(THEME)).ready == 1
    assert [one.theme for one in await client.themes()] == [THEME]
    assert (await client.pause_theme(THEME)).paused
    assert await client.acquire(THEME) is None
    assert not (await client.resume_theme(THEME)).paused
    with pytest.raises(BadRequest, match="lease_ms is between"):
        await client.set_policy(THEME, lease_ms=0)
    with pytest.raises(ValueError, match="what is to change"):
        await client.set_policy(THEME)


async def test_events_come_as_things_happen(client: Client) -> None:
    found = []

    async def follow() -> None:
        async for event in client.events([THEME], kinds=["created", "removed"], after="0"):
            found.append((event.kind, event.key))
            if event.kind == "removed":
                return

    following = asyncio.ensure_future(follow())
    await client.new(OTHER, key="other", after=0)
    async with client.new(THEME, key="k") as session:
        await session.remove()
    async with asyncio.timeout(20):
        await following
    assert found == [("created", "k"), ("removed", "k")]


async def test_leadership_moves(tmp_path: Path) -> None:
    async with cluster_of_three(tmp_path) as nodes:
        urls = [one.url for one in nodes]
        async with Client(urls, options=Options(prefer="leader")) as client:
            await client.new(THEME, after=0)
            cluster = await client.cluster()
            assert client.node == cluster.leader
            assert len(cluster.members) == 3
            to = next(one.node for one in cluster.members if not one.is_leader)
            assert (await client.transfer(to)).leader == to
        async with Client(urls, options=Options(prefer="nearest")) as client:
            assert (await client.theme(THEME)).ready == 1
            await client.new(THEME, after=0)
            assert client.node in {one.node for one in cluster.members}


async def test_who_prefers_the_leader_follows_it_with_all_that_is_held(tmp_path: Path) -> None:
    options = Options(prefer="leader", follow_s=0.1)
    async with (
        cluster_of_three(tmp_path) as nodes,
        Client([one.url for one in nodes], options=options) as client,
        client.new(THEME, b"a") as session,
    ):
        cluster = await client.cluster()
        to = next(one.node for one in cluster.members if not one.is_leader)
        assert (await client.transfer(to)).leader == to
        async with asyncio.timeout(20):
            while client.node != to:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)
        assert await session.append(b"b") == 2
        assert session.epoch == 1
        await session.remove()


async def test_a_call_may_take_as_long_as_anybody_likes(client: Client) -> None:
    assert (await client.new(THEME, after=0, timeout=1e9)).created


async def test_what_cannot_be_said_is_refused_and_all_else_goes_on(client: Client) -> None:
    held = await client.new(THEME)
    for wrong in ("\udcff", "a\ud800"):
        with pytest.raises(BadRequest, match="cannot be said"):
            await client.get(wrong)
        with pytest.raises(BadRequest):
            await client.new(THEME, after=0, idempotency_key=wrong)
        with pytest.raises(ValueError, match="surrogates"):
            await held.append(wrong)
    assert await held.append("a") == 2
    stored = await held.store(after=60, reason="why\udcff")
    assert (await client.get(stored.id)).history[0].reason == "why?"


async def test_a_worker_whose_token_is_refused_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        server(tmp_path, tokens=entry(new_token())) as node,
        Client(node.url, token=new_token(), options=Options(backoff_max_s=0.05)) as client,
    ):
        worker = Worker(client)
        worker.handler(THEME)(_nothing)
        running = asyncio.ensure_future(worker.run())
        async with asyncio.timeout(20):
            while "401" not in caplog.text:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # for many more tries
        worker.stop()
        await running
    assert caplog.text.count("status 401") == 1


async def _nothing(_: Session) -> Verdict:
    return Remove()


async def test_tokens(tmp_path: Path) -> None:
    reader, worker = new_token(), new_token()
    tokens = entry(reader, "reader", '["read"]') + entry(worker, "worker", '["operate"]')
    async with server(tmp_path, tokens=tokens) as node:
        async with Client(node.url, token=lambda: worker) as client:
            created = await client.new(THEME, after=0)
        async with Client(node.url, token=reader) as client:
            assert (await client.get(created.id)).phase == "ready"
            with pytest.raises(Forbidden):
                await client.new(THEME, after=0)
            with pytest.raises(Forbidden):
                await client.pause_theme(THEME)
        for token in (None, new_token(), "nonsense"):
            async with Client(node.url, token=token) as client:
                with pytest.raises(Unauthenticated):
                    await client.new(THEME, after=0, timeout=20)
                with pytest.raises(Unauthenticated):
                    await client.themes()


async def test_nobody_answers() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with Client(url) as client:
            with pytest.raises(DeadlineExceeded, match="no connection") as raised:
                await client.new(THEME, timeout=0.3)
            assert (raised.value.outcome, raised.value.retryable) == (Outcome.NOT_APPLIED, True)
            with pytest.raises(DeadlineExceeded):
                await client.themes(timeout=0.3)
            with pytest.raises(DeadlineExceeded):
                await client.acquire(THEME, wait=30, timeout=0.3)
        async with Client(url, options=Options(retries=False)) as client:
            with pytest.raises(NotConnected):
                await client.new(THEME)
            with pytest.raises(NotConnected):
                await client.cluster()


async def test_what_is_no_ritornello_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(RitornelloError):
            await client.new(THEME, timeout=1)
        with pytest.raises(RitornelloError):
            await client.themes(timeout=1)


async def test_a_client_is_open_or_says_that_it_is_not(node: Running) -> None:
    client = Client(node.url)
    with pytest.raises(ClientClosed):
        await client.get("1")
    async with client:
        session = await client.new(THEME)
    for attempt in (client.get("1"), session.append(b"x"), client.themes()):
        with pytest.raises(RitornelloError):
            await attempt
    with pytest.raises(ClientClosed):
        async with client:
            pass
    async with Client(node.url) as other:
        view = await other.get(session.id)
        assert (view.phase, view.history[-1].cause) == ("stored", "disconnected")


async def test_arguments_that_make_no_sense_are_told_before_anything_is_sent(
    client: Client,
) -> None:
    for theme in (-1, 2**32):
        with pytest.raises(ValueError, match="theme"):
            await client.new(theme)
    for key in ("", "k" * 257, "\udcff"):
        with pytest.raises(ValueError, match="key"):
            await client.new(THEME, key=key)
    with pytest.raises(ValueError, match="after"):
        await client.new(THEME, after=-1)
    with pytest.raises(TypeError, match="bytes or text"):
        await client.new(THEME, 7)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="on_conflict"):
        await client.new(THEME, after=0, on_conflict="maybe")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="at least one theme"):
        await client.acquire([])
    with pytest.raises(ValueError, match="count"):
        await client.acquire_many(THEME, 0)
    with pytest.raises(BadRequest):
        await client.get("no such id")
    addresses: list[str | list[str]] = ["", [], "ftp://x", "http://user:word@x", "http://x?y=z"]
    for urls in addresses:
        with pytest.raises(ValueError, match=r"node|address"):
            Client(urls)
    nonsense: list[dict[str, Any]] = [{"timeout_s": 0}, {"prefer": "best"}]
    for options in (*nonsense, {"backoff_max_s": 0.001}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Options(**options)


async def test_what_was_handed_to_nobody_comes_back(client: Client) -> None:
    waiting = asyncio.ensure_future(client.acquire_many(THEME, 1, wait=20))
    await asyncio.sleep(0.1)
    waiting.cancel()
    created = await client.new(THEME, after=0)
    async with asyncio.timeout(10):
        while (view := await client.get(created.id)).phase != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert view.attempts == 0


async def test_a_thousand_sessions_share_a_connection(client: Client, node: Running) -> None:
    async def live(number: int) -> None:
        async with client.new(THEME, b"%d" % number) as session:
            await session.append(b"x")
            assert (await client.get(session.id)).data == b"%dx" % number
            await session.remove()

    await asyncio.gather(*map(live, range(1000)))
    assert len(node.front.connections) == 1
    frames = node.front.websockets.frames_in
    assert frames < 1000, "what is ready at the same moment leaves together"
