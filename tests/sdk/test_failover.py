"""A fleet of workers, and a cluster of real processes of which some die, hang, or are replaced.

No session is lost, none is changed by two at once, what handlers were told to be done was done, and
no handler meets an error that the documentation does not name.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ritornello import Client, Options
from tests.api.processes import Process, three_processes
from tests.sdk.fleet import Fleet
from tests.sdk.proxy import proxy

SESSIONS = 300
BEFORE_S = 1.0  # while all is well


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Process]]:
    async with three_processes(tmp_path) as found:
        yield found


async def leader_of(client: Client, nodes: list[Process]) -> Process:
    leader = (await client.cluster()).leader
    (found,) = [one for one in nodes if one.node_id == leader]
    return found


def used_by(name: str, nodes: list[Process]) -> Process:
    (found,) = [one for one in nodes if one.node_id == name]
    return found


async def kill(node: Process) -> None:
    node.signal(signal.SIGKILL)
    await node.ended()
    await asyncio.sleep(1)
    await node.start()
    await node.ready()


async def kill_the_leader(client: Client, _: Fleet, nodes: list[Process]) -> None:
    await kill(await leader_of(client, nodes))


async def kill_the_node_of_a_client(client: Client, _: Fleet, nodes: list[Process]) -> None:
    await kill(used_by(client.node, nodes))


async def kill_the_node_of_a_worker(_: Client, fleet: Fleet, nodes: list[Process]) -> None:
    await kill(used_by(fleet.workers[0].node, nodes))


async def pause_the_node_of_a_worker(_: Client, fleet: Fleet, nodes: list[Process]) -> None:
    node = used_by(fleet.workers[0].node, nodes)
    node.signal(signal.SIGSTOP)
    await asyncio.sleep(6)
    node.signal(signal.SIGCONT)


async def pause_the_leader(client: Client, _: Fleet, nodes: list[Process]) -> None:
    node = await leader_of(client, nodes)
    node.signal(signal.SIGSTOP)
    await asyncio.sleep(6)
    node.signal(signal.SIGCONT)


async def roll_all_nodes(_client: Client, _: Fleet, nodes: list[Process]) -> None:
    for node in nodes:
        node.signal(signal.SIGTERM)
        assert await node.ended() == 0
        await node.start()
        await node.ready()


Fault = Callable[[Client, Fleet, list[Process]], Awaitable[None]]


@pytest.mark.parametrize(
    "fault",
    [
        kill_the_leader,
        kill_the_node_of_a_client,
        kill_the_node_of_a_worker,
        pause_the_node_of_a_worker,
        pause_the_leader,
        roll_all_nodes,
    ],
    ids=lambda one: one.__name__,
)
async def test_a_fleet_goes_on(nodes: list[Process], fault: Fault) -> None:
    urls = [one.url for one in nodes]
    fleet = Fleet(urls, sessions=SESSIONS)

    async def happen(client: Client) -> None:
        await asyncio.sleep(BEFORE_S)
        await fault(client, fleet, nodes)

    async with Client(urls, options=Options(silence_s=2.0)) as client:
        await fleet.run(client, asyncio.ensure_future(happen(client)))
    assert fleet.attempts >= SESSIONS
    if fault is roll_all_nodes:
        assert fleet.losses == 0, "what is held goes on at the next node before the last one stops"


async def test_a_fleet_goes_on_through_connections_that_drop(nodes: list[Process]) -> None:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(proxy(one.port)) for one in nodes]
        urls = [f"http://127.0.0.1:{one.port}" for one in proxies]
        fleet = Fleet(urls, sessions=SESSIONS)

        async def drop() -> None:
            for _ in range(20):
                await asyncio.sleep(0.2)
                for one in proxies:
                    one.drop()

        async with Client(urls, options=Options(silence_s=2.0)) as client:
            await fleet.run(client, asyncio.ensure_future(drop()))
    assert fleet.losses == 0
