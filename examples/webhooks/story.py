"""The whole story: events are taken in, delivered, parked, repaired, and judged."""

import asyncio
import json
import os
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from examples.webhooks.events import Event
from examples.webhooks.journal import Verdict, read
from examples.webhooks.producer import Producer
from examples.webhooks.report import Report, judge

THEMES = range(10_000, 20_000)
WORKERS = ("worker-1", "worker-2")
POLICY = {
    "repeat_ms": 200,
    "backoff": "exponential",
    "repeat_cap_ms": 3_000,
    "jitter_permille": 300,
    "lease_ms": 4_000,
    "max_attempts": 25,
}
_POLL_S = 1.0
_PATIENCE_S = 300.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is told."""

    urls: list[str]
    events: Sequence[Event]
    journal: Path
    per_second: float
    trouble: float

    @property
    def themes(self) -> dict[str, int]:
        """The theme of each customer: the same in each run, whatever events it has.

        That two customers share one is unlikely, and does no harm: keys begin with the customer.
        """
        customers = sorted({event.customer for event in self.events})
        return {one: THEMES[zlib.crc32(one.encode()) % len(THEMES)] for one in customers}


class StoryError(Exception):
    """It came to no end."""


class Cluster:
    """The cluster, asked over HTTP: any node that answers."""

    def __init__(self, http: aiohttp.ClientSession, urls: list[str]) -> None:
        self._http = http
        self._urls = urls

    async def ask(self, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401 - JSON
        """Ask until some node has an answer."""
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            for url in self._urls:
                with suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with self._http.request(method, url + path, **options) as answer:
                        if answer.status < 300:  # noqa: PLR2004 - a success
                            return await answer.json()
                        if not (await answer.json(content_type=None))["retryable"]:
                            raise StoryError(f"{method} {path}: {await answer.text()}")
            await asyncio.sleep(0.2)
        raise StoryError(f"no node answers {method} {path}")

    async def counts(self, themes: dict[str, int]) -> dict[str, int]:
        """How many sessions are in which phase, of these themes."""
        found = await self._all("/v1/themes", "themes", limit="1000")
        mine = [one for one in found if one["theme"] in themes.values()]
        phases = ("ready", "stored", "active", "parked")
        return {phase: sum(one[phase] for one in mine) for phase in phases}

    async def parked(self, themes: dict[str, int]) -> list[dict[str, Any]]:
        """The parked sessions of these themes."""
        found: list[dict[str, Any]] = []
        for theme in set(themes.values()):
            found += await self._all(f"/v1/themes/{theme}/sessions", "sessions", phase="parked")
        return found

    async def _all(self, path: str, name: str, **query: str) -> list[dict[str, Any]]:
        """What is in all pages of a list."""
        found: list[dict[str, Any]] = []
        while True:
            page = await self.ask("GET", path, params=query)
            found += page[name]
            if page.get("cursor") is None:
                return found
            query["cursor"] = page["cursor"]


async def tell(plan: Plan, say: Say) -> Report:
    """Let it happen. Raises `StoryError`, `RefusedEventError`."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        _receiver(plan) as receiver,
    ):
        cluster = Cluster(http, plan.urls)
        themes = plan.themes
        for customer, theme in themes.items():
            await cluster.ask("PATCH", f"/v1/themes/{theme}/policy", json=POLICY)
            say(f"theme {theme} is customer {customer}")
        left = sum((await cluster.counts(themes)).values())
        if left:
            say(f"an earlier run was cut short and left events of {left} keys: they go first")
        async with _workers(plan, receiver):
            producer = Producer(plan.urls, themes)
            taking_in = asyncio.ensure_future(producer.run(plan.events, plan.per_second))
            try:
                await _until_done(plan, cluster, producer, taking_in, say, receiver, http)
            finally:
                taking_in.cancel()
                await asyncio.wait({taking_in})
    return judge(plan.events, plan.journal)


async def _until_done(
    plan: Plan,
    cluster: Cluster,
    producer: Producer,
    taking_in: "asyncio.Future[None]",
    say: Say,
    receiver: str,
    http: aiohttp.ClientSession,
) -> None:
    """Watch until nothing is left, and have the receiver repaired when nothing else moves."""
    begin_s = moved_s = time.monotonic()
    before: tuple[int, ...] = ()
    is_repaired = False
    while True:
        await asyncio.sleep(_POLL_S)
        counts = await cluster.counts(plan.themes)
        delivered = sum(one.verdict is Verdict.TAKEN for one in read(plan.journal))
        seen = (producer.stored, delivered, *counts.values())
        say(
            f"{time.monotonic() - begin_s:4.0f} s   stored {producer.stored:4d} of "
            f"{len(plan.events)}   delivered {delivered:4d}   waiting "
            f"{counts['ready'] + counts['stored']:3d}   active {counts['active']:3d}   "
            f"parked {counts['parked']:2d}"
        )
        if taking_in.done():
            taking_in.result()
            if not sum(counts.values()):
                return
        if seen != before:
            before, moved_s = seen, time.monotonic()
        only_parked = counts["parked"] and sum(counts.values()) == counts["parked"]
        if only_parked and time.monotonic() - moved_s > 2 * _POLL_S and producer.is_waiting:
            await _repair(plan, cluster, say, receiver, http, is_again=is_repaired)
            is_repaired = True
        if time.monotonic() - moved_s > _PATIENCE_S:
            raise StoryError(f"nothing has moved for {_PATIENCE_S:.0f} s")


async def _repair(
    plan: Plan,
    cluster: Cluster,
    say: Say,
    receiver: str,
    http: aiohttp.ClientSession,
    *,
    is_again: bool,
) -> None:
    parked = await cluster.parked(plan.themes)
    if not is_again:
        say("")
        say(f"{len(parked)} keys never go through, and are parked with all that waits for them:")
        for one in parked[:5]:
            why = one["history"][-1]["reason"] if one["history"] else ""
            say(f"    {one['key']}: {why}")
        if len(parked) > 5:  # noqa: PLR2004 - what was shown
            say(f"    and {len(parked) - 5} more")
        async with http.post(f"{receiver}/repair"):
            say("somebody repairs the receiver, and they are unparked")
        say("")
    for one in parked:
        with suppress(StoryError):  # of what somebody else has unparked
            await cluster.ask("POST", f"/v1/sessions/{one['id']}/unpark")


@asynccontextmanager
async def _receiver(plan: Plan) -> AsyncIterator[str]:
    plan.journal.touch()
    arguments = ["--journal", str(plan.journal), "--trouble", str(plan.trouble)]
    async with _process("examples.webhooks.receiver", *arguments) as process:
        if process.stdout is None:
            raise StoryError("the receiver has no output")
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        yield f"http://127.0.0.1:{json.loads(line)['port']}"


@asynccontextmanager
async def _workers(plan: Plan, receiver: str) -> AsyncIterator[None]:
    themes = ",".join(map(str, sorted(set(plan.themes.values()))))
    common = ["--urls", ",".join(plan.urls), "--themes", themes, "--receiver", receiver]
    first, second = WORKERS
    async with (
        _process("examples.webhooks.worker", "--name", first, *common),
        _process("examples.webhooks.worker", "--name", second, *common),
    ):
        yield


@asynccontextmanager
async def _process(module: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments, "--parent", str(os.getpid())),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the parent, which ends it in its turn
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 5)
        if process.returncode is None:
            process.kill()
            await process.wait()
