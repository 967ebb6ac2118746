"""Connections that end, and how soon others follow."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from aiohttp import web

import ritornello.sync
from ritornello import Client, Options
from ritornello.core import frames
from ritornello.core.link import Link
from ritornello.errors import ClientClosed, DeadlineExceeded
from ritornello.testing import LocalServer
from tests.sdk.faults.deaf import DeafProxy, deaf_proxy


def connections(client: Client) -> int:
    """How many there were."""
    main = client.core._main  # noqa: SLF001
    assert main is not None
    return main.conversation._connections  # noqa: SLF001


def go_first_to(client: Client, url: str) -> None:
    main = client.core._main  # noqa: SLF001
    assert main is not None
    main._nodes.favour(url)  # noqa: SLF001


async def new_ones(client: Client, theme: int) -> None:
    """Make more than there is room for in all buffers on the way to a node."""
    made = (client.new(theme, bytes(500_000), after=3600, timeout=30) for _ in range(24))
    assert all(one.created for one in await asyncio.gather(*made))


@pytest.fixture
async def way(local: LocalServer) -> AsyncIterator[DeafProxy]:
    port = urlsplit(local.url).port
    assert port is not None
    async with deaf_proxy(port) as found:
        yield found


@pytest.fixture
async def closing_url() -> AsyncIterator[str]:
    """A node that takes connections, and closes each of them at once."""

    async def operate(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=(frames.SUBPROTOCOL,))
        await ws.prepare(request)
        await ws.close(code=1013)
        return ws

    app = web.Application()
    app.router.add_get("/v1/operate", operate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (address,) = runner.addresses
    yield f"http://127.0.0.1:{address[1]}"
    await runner.cleanup()


async def test_a_node_that_closes_each_connection_is_not_flooded(closing_url: str) -> None:
    async with Client(closing_url, options=Options(close_s=0.1)) as client:
        with pytest.raises(DeadlineExceeded):
            await client.get((7, "x"), timeout=2)
        # With full jitter and bounds of 0.05 s, 0.1 s and so on; without, a thousand and more.
        assert 2 <= connections(client) < 60


async def test_a_node_that_renews_no_lease_is_left_in_time(
    local: LocalServer, client: Client
) -> None:
    theme = 121
    await client.set_policy(theme, lease_ms=3000)
    async with client.new(theme) as session:
        await asyncio.sleep(1)
        with local.faults.withhold(of="heartbeat") as withheld:
            async with asyncio.timeout(10):
                while connections(client) == 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert withheld.happened == 1
        assert session.lease_remaining > 0
        await session.append(b"x")
        await session.remove()


async def test_a_node_that_reads_nothing_is_left_while_something_is_sent(
    local: LocalServer, way: DeafProxy
) -> None:
    options = Options(silence_s=1.5, close_s=0.5, backoff_max_s=0.2)
    async with Client([way.url, local.url], options=options) as client:
        go_first_to(client, way.url)
        await client.new(122, after=3600)
        way.deafen(talks=False)
        await new_ones(client, 122)
        assert connections(client) >= 2
        way.hear()
        async with asyncio.timeout(20):
            while not way.left:  # noqa: ASYNC110 - the old connection is not kept
                await asyncio.sleep(0.02)


async def test_a_node_that_renews_no_lease_is_left_while_something_is_sent(
    local: LocalServer, way: DeafProxy
) -> None:
    theme = 123
    async with Client([way.url, local.url], options=Options(close_s=0.5)) as client:
        go_first_to(client, way.url)
        await client.set_policy(theme, lease_ms=10_000)
        async with client.new(theme) as session:
            way.deafen(talks=True)
            await new_ones(client, 122)
            assert connections(client) >= 2
            await session.remove()


async def test_a_client_is_closed_in_time_while_a_node_reads_nothing(
    local: LocalServer, way: DeafProxy
) -> None:
    client = Client([way.url, local.url], options=Options(close_s=0.5))
    async with client:
        go_first_to(client, way.url)
        await client.new(122, after=3600)
        way.deafen(talks=True)
        making = asyncio.ensure_future(new_ones(client, 122))
        await asyncio.sleep(0.5)
        async with asyncio.timeout(20):
            await client.close()
    with pytest.raises(ClientClosed):
        await making
    way.hear()
    async with asyncio.timeout(20):
        while not way.left:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("turns", range(7))
def test_a_client_is_closed_whenever_its_token_comes(local: LocalServer, turns: int) -> None:
    is_asked, is_given = threading.Event(), threading.Event()

    def token() -> str:
        is_asked.set()
        is_given.wait()
        return "t"

    async def close(link: Link) -> None:
        """Close it so many turns of the loop after the token has come."""
        is_given.set()
        time.sleep(0.05)  # noqa: ASYNC251 - the loop is to find it all at once
        for _ in range(turns):
            await asyncio.sleep(0)
        await link.close(0)

    with ritornello.sync.Client(local.url, token=token, options=Options(close_s=0.1)) as client:
        with pytest.raises(DeadlineExceeded):
            client.get((7, "x"), timeout=0.01)
        assert is_asked.wait(20)
        main = client.core._main  # noqa: SLF001
        assert main is not None
        client.core.run(close(main)).result(20)


async def test_a_client_is_closed_though_a_cancellation_is_swallowed(local: LocalServer) -> None:
    is_asked = threading.Event()

    async def token() -> str | None:
        is_asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return None

    async with local.client(Options(close_s=0.1)) as client:
        main = client.core._main  # noqa: SLF001
        assert main is not None
        main._token = token  # noqa: SLF001
        with pytest.raises(DeadlineExceeded):
            await client.get((7, "x"), timeout=0.01)
        await asyncio.to_thread(is_asked.wait, 20)
        async with asyncio.timeout(20):
            await client.close()
        assert not main.conversation.is_connected
