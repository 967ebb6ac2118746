"""A worker: delivers the events of one key after the other, in their order. A process of its own.

A session has the events of a key that are not delivered yet, one a line. What was delivered is
taken out of it at once (`replace`), so that whoever comes next does not begin anew; when nothing is
left, the session is removed. A delivery that fails stores the session: its theme's backoff decides
when it comes back, and after too many attempts it is parked. One that will never go through is
parked at once.
"""

import argparse
import asyncio
import base64
import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import aiohttp

from api.commands.child import end_with
from examples.webhooks.client import Client
from examples.webhooks.events import Event

_DELIVERY_TIMEOUT_S = 1.0
_NEVER = 422  # of HTTP: it was understood, and will not be taken


class Refused(Exception):
    """The receiver has not taken an event."""

    def __init__(self, reason: str, *, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


class Worker:
    """Takes sessions, and delivers what is in them."""

    def __init__(
        self, name: str, urls: list[str], themes: Sequence[int], receiver: str, concurrency: int
    ) -> None:
        self._name = name
        self._works = itertools.count(1)
        self._receiver = receiver
        self.client = Client(urls, list(themes), concurrency, self._on_session)

    async def run(self) -> None:
        """Work until it is cancelled."""
        timeout = aiohttp.ClientTimeout(total=_DELIVERY_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as self._http:
            await self.client.run()

    async def _on_session(self, session: dict[str, Any]) -> None:
        mine = {"id": session["id"], "epoch": session["epoch"]}
        # A name of its own: that two of one worker were at the same session would be seen.
        work = f"{self._name}.{next(self._works)}"
        lines = b"".join(map(base64.b64decode, session["chunks"])).splitlines(keepends=True)
        try:
            while lines:
                await self._deliver(lines[0], mine, work)
                del lines[0]
                if lines:
                    rest = b"".join(lines).decode()
                    await self.client.ask("replace", **mine, text=rest)
        except Refused as refused:
            verdict = "park" if refused.for_good else "store"
            cause = {} if refused.for_good else {"cause": "failed"}
            await self.client.ask(verdict, **mine, reason=str(refused), **cause)
        else:
            await self.client.ask("remove", **mine)

    async def _deliver(self, line: bytes, mine: dict[str, Any], work: str) -> None:
        headers = {
            "Content-Type": "application/json",
            "Webhook-Work": work,
            "Webhook-Session": mine["id"],
            "Webhook-Epoch": str(mine["epoch"]),
        }
        try:
            url = f"{self._receiver}/deliver"
            async with self._http.post(url, data=line, headers=headers) as answer:
                if answer.status >= 300:  # noqa: PLR2004 - what is no success
                    what = f"the receiver answers {answer.status} to number {Event.of(line).number}"
                    raise Refused(what, for_good=answer.status == _NEVER)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Refused(f"the receiver does not answer: {type(error).__name__}") from error


def main() -> None:
    """Work until the process is ended."""
    parser = argparse.ArgumentParser(description="Delivers webhooks.")
    parser.add_argument("--name", required=True, help="that the receiver is told")
    parser.add_argument("--urls", required=True, help="of the nodes, separated by commas")
    parser.add_argument("--themes", required=True, help="to work on, separated by commas")
    parser.add_argument("--receiver", required=True, help="its URL")
    parser.add_argument("--concurrency", type=int, default=8, help="sessions at a time")
    parser.add_argument("--parent", type=int, help="id of the process with which it ends")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        end_with(arguments.parent)
    logging.basicConfig(format=f"{arguments.name}: %(message)s")
    themes = list(map(int, arguments.themes.split(",")))
    urls = arguments.urls.split(",")
    worker = Worker(arguments.name, urls, themes, arguments.receiver, arguments.concurrency)
    with suppress(KeyboardInterrupt):
        asyncio.run(worker.run())


if __name__ == "__main__":
    main()
