"""Connections that end, and how soon others follow."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from ritornello import Client, Options
from ritornello.core import frames
from ritornello.errors import DeadlineExceeded
from ritornello.testing import LocalServer


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
