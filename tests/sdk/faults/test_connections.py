"""Connections that end, and how soon others follow."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from ritornello import Client, Options
from ritornello.core import frames
from ritornello.errors import DeadlineExceeded, LeaseLost
from ritornello.testing import LocalServer

SHORT, LONG = 121, 122  # themes, by their leases


def connections(client: Client) -> int:
    """How many there were."""
    main = client.core._main  # noqa: SLF001
    assert main is not None
    return main.conversation._connections  # noqa: SLF001


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


async def test_what_is_given_up_ends_no_connection_over_which_the_rest_is_being_resumed(
    local: LocalServer, client: Client
) -> None:
    await client.set_policy(SHORT, lease_ms=1000, repeat_ms=60_000)
    await client.set_policy(LONG, lease_ms=30_000)
    rest = await client.new(LONG)
    with pytest.raises(LeaseLost):
        async with client.new(SHORT, key="given up"):
            with local.faults.delay(2.5, of="resume"):
                local.faults.cut()
                await asyncio.sleep(20)
    assert connections(client) == 2
    await asyncio.sleep(0.5)
    assert connections(client) == 2
    await rest.append(b"x")
    await rest.remove()
    async with asyncio.timeout(10):
        while (await client.get((SHORT, "given up"))).phase == "active":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert connections(client) == 3
