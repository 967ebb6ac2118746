"""What goes over HTTP, and nodes that hang or end what they have begun."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from ritornello import Client, Event, Options
from ritornello.errors import ClientClosed, DeadlineExceeded, Outcome
from ritornello.testing import LocalServer

THEME = 131


class Hung:
    """A node that takes requests and does not answer."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self._is_over = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked[request.method] += 1
        await self._is_over.wait()
        return web.Response()

    def end(self) -> None:
        self._is_over.set()


class Ending:
    """A node that begins streams of events under a path, and ends each of them at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.url = ""

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(body=b": soon over\n\n", content_type="text/event-stream")


@pytest.fixture
async def ending() -> AsyncIterator[Ending]:
    found = Ending()
    app = web.Application()
    app.router.add_get("/behind/v1/events", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/behind"
    yield found
    await runner.cleanup()


@pytest.fixture
async def hung() -> AsyncIterator[Hung]:
    found = Hung()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    found.end()
    await runner.cleanup()


def two(hung: Hung, local: LocalServer, silence_s: float) -> Client:
    return Client([hung.url, local.url], options=Options(silence_s=silence_s, close_s=0.5))


def go_first_to(client: Client, url: str) -> None:
    rest = client.core._rest  # noqa: SLF001
    assert rest is not None
    rest._nodes.favour(url)  # noqa: SLF001


async def make_one(local: LocalServer) -> None:
    async with local.client(Options(close_s=0.5)) as client:
        await client.new(THEME, after=0)


async def first_event(client: Client) -> Event:
    """The first one says that there were others, which are not kept."""
    async with asyncio.timeout(20):
        async for event in client.events(THEME, after="0"):
            return event
    raise AssertionError("they have no end")


async def test_a_node_that_hangs_is_left(local: LocalServer, hung: Hung) -> None:
    async with two(hung, local, silence_s=1) as client:
        go_first_to(client, hung.url)
        for _ in range(3):
            assert (await client.theme(THEME)).theme == THEME
        assert hung.asked == {"GET": 1}
        go_first_to(client, hung.url)
        assert (await client.set_policy(THEME, max_attempts=5)).policy.max_attempts == 5
        assert hung.asked == {"GET": 1, "PATCH": 1}


async def test_a_call_whose_time_is_over_has_the_next_one_go_elsewhere(
    local: LocalServer, hung: Hung
) -> None:
    async with two(hung, local, silence_s=60) as client:
        go_first_to(client, hung.url)
        with pytest.raises(DeadlineExceeded):
            await client.theme(THEME, timeout=0.5)
        assert (await client.theme(THEME)).theme == THEME
        assert hung.asked == {"GET": 1}


async def test_what_is_not_sent_again_is_waited_for(local: LocalServer, hung: Hung) -> None:
    async with two(hung, local, silence_s=0.5) as client:
        go_first_to(client, hung.url)
        with pytest.raises(DeadlineExceeded) as raised:
            await client.transfer(timeout=1.5)
        assert raised.value.outcome is Outcome.UNKNOWN
        assert hung.asked == {"POST": 1}
        assert (await client.theme(THEME)).theme == THEME
        assert hung.asked["POST"] == 1


@pytest.mark.parametrize("is_change", [True, False])
async def test_what_is_on_its_way_when_the_client_is_closed_may_be_done(
    hung: Hung, *, is_change: bool
) -> None:
    async with Client(hung.url, options=Options(close_s=0.1)) as client:
        call = client.set_policy(THEME, max_attempts=5) if is_change else client.themes()
        asked = asyncio.ensure_future(call)
        async with asyncio.timeout(10):
            while not hung.asked:  # noqa: ASYNC110 - in another thread
                await asyncio.sleep(0.01)
    with pytest.raises(ClientClosed) as told:
        await asked
    assert told.value.outcome is (Outcome.UNKNOWN if is_change else Outcome.NOT_APPLIED)


async def test_events_come_from_another_node_than_one_that_hangs(
    local: LocalServer, hung: Hung
) -> None:
    await make_one(local)
    async with two(hung, local, silence_s=1) as client:
        go_first_to(client, hung.url)
        assert (await first_event(client)).kind == "resync"
        assert hung.asked == {"GET": 1}


async def test_events_are_asked_for_elsewhere_when_the_time_was_over(
    local: LocalServer, hung: Hung
) -> None:
    await make_one(local)
    options = Options(timeout_s=0.5, close_s=0.5)
    async with Client([hung.url, local.url], options=options) as client:
        go_first_to(client, hung.url)
        with pytest.raises(DeadlineExceeded):
            await first_event(client)
        assert (await first_event(client)).kind == "resync"
        assert hung.asked == {"GET": 1}


async def test_streams_that_end_at_once_do_not_flood_their_node(ending: Ending) -> None:
    async with Client(ending.url, options=Options(close_s=0.1)) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                async for _ in client.events(THEME):
                    pass
    # With full jitter and bounds of 0.05 s, 0.1 s and so on; without, thousands.
    assert 2 <= ending.asked < 60


async def test_a_node_whose_stream_has_ended_is_left(local: LocalServer, ending: Ending) -> None:
    await make_one(local)
    async with Client([ending.url, local.url], options=Options(close_s=0.1)) as client:
        go_first_to(client, ending.url)
        assert (await first_event(client)).kind == "resync"
    assert ending.asked == 1
