"""Does to a local cluster what the world does to clusters: kills nodes, and lets them sleep.

Never more of them at a time than the cluster can do without, and the next only when all are ready
again. What is done follows from a seed; when exactly, from how fast the nodes are.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from api.dev import DevError, LocalCluster


@dataclass(frozen=True, slots=True)
class ChaosSettings:
    """How hard the world is."""

    calm_min_s: float = 3.0  # between two events, all nodes ready
    calm_max_s: float = 12.0
    away_min_s: float = 0.3  # how long a node is killed or asleep
    away_max_s: float = 6.0
    ready_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Event:
    """What happens next."""

    after_s: float
    action: Literal["kill", "pause"]
    victims: tuple[str, ...]
    for_s: float


def minority(count: int) -> int:
    """How many nodes may be away while the others still are a majority."""
    return (count - 1) // 2


def plan(seed: int, names: Sequence[str], settings: ChaosSettings) -> Iterator[Event]:
    """What will happen, without end. Raises `DevError` if the cluster can do without nobody."""
    most = minority(len(names))
    if not most:
        raise DevError("chaos needs three nodes or more: one that is killed would take all with it")
    random = Random(seed)  # noqa: S311 - to be repeated is what it is for
    while True:
        yield Event(
            after_s=random.uniform(settings.calm_min_s, settings.calm_max_s),
            action=random.choice(("kill", "pause")),
            victims=tuple(random.sample(list(names), random.randint(1, most))),
            for_s=random.uniform(settings.away_min_s, settings.away_max_s),
        )


async def chaos(
    cluster: LocalCluster,
    seed: int,
    say: Callable[[str], object],
    settings: ChaosSettings | None = None,
) -> None:
    """Let it happen, until cancelled.

    Raises `NotReadyError` if the cluster does not get well again, and `DevError` if one of its
    nodes never will.
    """
    settings = settings or ChaosSettings()
    for event in plan(seed, list(cluster.nodes), settings):
        await cluster.wait_until_ready(timeout_s=settings.ready_timeout_s)
        await asyncio.sleep(event.after_s)
        names = " and ".join(event.victims)
        if event.action == "kill":
            say(f"chaos: {names} killed (SIGKILL), for {event.for_s:.1f} s")
            await asyncio.gather(*map(cluster.kill, event.victims))
            await asyncio.sleep(event.for_s)
            say(f"chaos: {names} started again")
            await asyncio.gather(*map(cluster.restart, event.victims))
        else:
            say(f"chaos: {names} paused (SIGSTOP), for {event.for_s:.1f} s")
            for name in event.victims:
                cluster.pause(name)
            try:
                await asyncio.sleep(event.for_s)
            finally:
                for name in event.victims:
                    cluster.resume(name)
            say(f"chaos: {names} goes on")
