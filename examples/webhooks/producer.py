"""The producer: takes events in as they happen, and stores them for delivery, over HTTP.

All events of a key that wait are in one session, which has that key: a new event is added to it and
makes it due (`on_conflict=bring_forward`), or begins it. While a worker has the session, or it is
parked, nobody may add to it: the event waits here, and those of the same key behind it. Each has an
idempotency key, so it may be sent again to any node, however the last attempt ended.
"""

import asyncio
import itertools
import random
from collections.abc import Iterable
from typing import Any

import aiohttp

from examples.webhooks.events import Event

_AT_ONCE = 32
_WAIT_S = 0.25


class Producer:
    """Takes events in."""

    def __init__(self, urls: list[str], themes: dict[str, int]) -> None:
        self._urls = itertools.cycle(urls)
        self._themes = themes
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._http: aiohttp.ClientSession
        self._are_all_in = False
        self.stored = 0

    @property
    def is_waiting(self) -> bool:
        """Whether all that has happened so far is stored, or waits for a key to be free."""
        return self._are_all_in

    async def run(self, events: Iterable[Event], per_second: float) -> None:
        """Take all events in, at about that pace, and return when all are stored."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as self._http:
            try:
                await self._run(events, per_second)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, events: Iterable[Event], per_second: float) -> None:
        for event in events:
            queue = self._queues.get(event.key)
            if queue is None:
                queue = self._queues[event.key] = asyncio.Queue()
                self._tasks.append(asyncio.ensure_future(self._take_in(queue)))
            queue.put_nowait(event)
            await asyncio.sleep(1 / per_second)
        self._are_all_in = True
        for queue in self._queues.values():
            await queue.join()

    async def _take_in(self, queue: asyncio.Queue[Event]) -> None:
        while True:
            event = await queue.get()
            while not await self._store(event):  # noqa: ASYNC110 - nothing tells that it may go on
                await asyncio.sleep(random.uniform(_WAIT_S / 2, _WAIT_S))  # noqa: S311 - spreads
            self.stored += 1
            queue.task_done()

    async def _store(self, event: Event) -> bool:
        """Store an event. False: not now, or nobody knows."""
        url = f"{next(self._urls)}/v1/themes/{self._themes[event.customer]}/sessions"
        query = {"key": event.key, "on_conflict": "bring_forward", "repeat_after": "0"}
        headers = {
            "Content-Type": "application/octet-stream",
            "Idempotency-Key": f"{event.number}:{event.key}"[-200:],
        }
        try:
            async with (
                self._room,
                self._http.post(url, params=query, data=event.line(), headers=headers) as answer,
            ):
                if answer.status < 300:  # noqa: PLR2004 - a success
                    return True
                problem: dict[str, Any] = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        if problem["retryable"] or problem["code"] == "key_conflict":
            return False
        raise RuntimeError(f"an event was refused: {problem['detail']}")
