"""The producer: takes events in as they happen, and stores them for delivery, over HTTP.

All events of a key that wait are in one session, which has that key: a new event is added to it and
makes it due (`on_conflict=bring_forward`), or begins it. While a worker has the session, or it is
parked, nobody may add to it: the event waits here, and those of the same key behind it. Each has an
idempotency key, so it may be sent again to any node, however the last attempt ended.

What a run that was cut short has left stands in the same sessions, and is delivered first.
"""

import asyncio
import hashlib
import itertools
import random
from collections.abc import Iterable
from typing import Any

import aiohttp

from examples.webhooks.events import Event

_AT_ONCE = 32
_WAIT_S = 0.25
_KEY_BYTES_MAX = 256  # of a session
_PART_CHARS = 32  # of a digest: enough that no two are the same


class RefusedEventError(Exception):
    """The cluster will never take an event; the message says why."""


def idempotency_key(event: Event) -> str:
    """Names an event for all time: another run's are others, however long their keys are."""
    return f"{event.run}:{event.number}:{_digest(event.key)}"


def session_key(key: str) -> str:
    """The key of the session in which events of a key wait: the same, unless it is too long."""
    if len(key.encode()) <= _KEY_BYTES_MAX:
        return key
    end = key.encode()[_PART_CHARS + 1 - _KEY_BYTES_MAX :].decode(errors="ignore")
    return f"{_digest(key)}:{end}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:_PART_CHARS]


class Producer:
    """Takes events in."""

    def __init__(self, urls: list[str], themes: dict[str, int]) -> None:
        self._urls = itertools.cycle(urls)
        self._themes = themes
        self._queues: dict[str, asyncio.Queue[Event | None]] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._http: aiohttp.ClientSession
        self._are_all_in = False
        self.stored = 0

    @property
    def is_waiting(self) -> bool:
        """Whether all that has happened so far is stored, or waits for a key to be free."""
        return self._are_all_in

    async def run(self, events: Iterable[Event], per_second: float) -> None:
        """Take all events in, at about that pace, and return when all are stored.

        Raises `RefusedEventError`.
        """
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as self._http:
            try:
                await self._run(events, per_second)
            except ExceptionGroup as group:
                raise group.exceptions[0] from None  # the first to fail has ended the others

    async def _run(self, events: Iterable[Event], per_second: float) -> None:
        async with asyncio.TaskGroup() as keys:
            for event in events:
                queue = self._queues.get(event.key)
                if queue is None:
                    queue = self._queues[event.key] = asyncio.Queue()
                    keys.create_task(self._take_in(queue))
                queue.put_nowait(event)
                await asyncio.sleep(1 / per_second)
            self._are_all_in = True
            for queue in self._queues.values():
                queue.put_nowait(None)

    async def _take_in(self, queue: asyncio.Queue[Event | None]) -> None:
        while (event := await queue.get()) is not None:
            while not await self._store(event):  # noqa: ASYNC110 - nothing tells that it may go on
                await asyncio.sleep(random.uniform(_WAIT_S / 2, _WAIT_S))  # noqa: S311 - spreads
            self.stored += 1

    async def _store(self, event: Event) -> bool:
        """Store an event. False: not now, or nobody knows."""
        url = f"{next(self._urls)}/v1/themes/{self._themes[event.customer]}/sessions"
        query = {"key": session_key(event.key), "on_conflict": "bring_forward", "repeat_after": "0"}
        headers = {
            "Content-Type": "application/octet-stream",
            "Idempotency-Key": idempotency_key(event),
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
        what = f"number {event.number} of {event.key}"
        raise RefusedEventError(f"{what} was refused: {problem['detail']}")
