"""The receiver: somebody else's server, as they are. A process of its own.

It drops connections before and after it has taken a delivery, takes its time, answers 500, and
refuses some keys for good until somebody repairs it (`POST /repair`). It knows better than most who
delivers: it remembers the newest session and epoch that it saw for a key, and refuses older ones;
that is what fencing numbers are for. Each delivery, taken or not, it writes to a journal, which the
report reads.
"""

import argparse
import asyncio
import json
import random
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from api.commands.child import end_with
from examples.webhooks.journal import Attempt, Verdict

POISONED_PART = 40  # one key of so many


def is_poisoned(key: str) -> bool:
    """Whether it refuses a key until it is repaired."""
    return zlib.crc32(key.encode()) % POISONED_PART == 0


class Receiver:
    """What it takes, and how it fails."""

    def __init__(self, journal: Path, seed: int, trouble: float) -> None:
        """`trouble` is the part of deliveries that go wrong, from 0 to 1."""
        self._journal = journal.open("a", encoding="utf-8", buffering=1)
        self._random = random.Random(seed)  # noqa: S311 - trouble that can be repeated
        self._trouble = trouble
        self._newest: dict[str, tuple[int, int]] = {}  # key -> session and epoch
        self._is_repaired = False

    def app(self) -> web.Application:
        """Its server."""
        app = web.Application()
        app.router.add_post("/deliver", self._deliver)
        app.router.add_post("/repair", self._repair)
        app.on_cleanup.append(self._close)
        return app

    async def _deliver(self, request: web.Request) -> web.Response:
        event = await request.json()
        session, epoch = (
            int(request.headers["Webhook-Session"], 16),
            request.headers["Webhook-Epoch"],
        )
        work, place = request.headers["Webhook-Work"], (session, int(epoch))

        def note(verdict: Verdict) -> None:
            attempt = Attempt(event["run"], event["key"], event["number"], *place, work, verdict)
            self._journal.write(attempt.line())

        newest = self._newest.get(event["key"], place)
        if place < newest:
            note(Verdict.LATE)
            return web.Response(status=409, text="a newer operator has delivered already")
        self._newest[event["key"]] = place
        return await self._answer(request, event["key"], place, note)

    async def _answer(
        self,
        request: web.Request,
        key: str,
        place: tuple[int, int],
        note: Callable[[Verdict], None],
    ) -> web.Response:
        """Take it, or fail in one of the ways in which receivers fail."""
        if is_poisoned(key) and not self._is_repaired:
            note(Verdict.FAILED)
            return web.Response(status=422, text="this cannot be taken")
        trouble = self._random.random() / self._trouble if self._trouble else 1.0
        if trouble < 0.3:  # noqa: PLR2004 - a part of the trouble
            note(Verdict.FAILED)
            return _drop(request)
        if trouble < 0.6:  # noqa: PLR2004
            note(Verdict.FAILED)
            return web.Response(status=500, text="not now")
        if trouble < 0.8:  # noqa: PLR2004
            await asyncio.sleep(self._random.uniform(0.2, 2.0))
            if place < self._newest[key]:  # whoever asked has given up, and another one came
                note(Verdict.OVERTAKEN)
                return web.Response(status=409, text="a newer operator has delivered meanwhile")
        note(Verdict.TAKEN)
        if 0.8 <= trouble < 1:  # noqa: PLR2004
            return _drop(request)  # taken, but nobody is told
        return web.Response(text="taken")

    async def _repair(self, _request: web.Request) -> web.Response:
        self._is_repaired = True
        self._trouble = 0.0
        return web.Response(text="repaired")

    async def _close(self, _app: web.Application) -> None:
        self._journal.close()


def _drop(request: web.Request) -> web.Response:
    """End the connection; the answer reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _serve(receiver: Receiver, port: int) -> None:
    runner = web.AppRunner(receiver.app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="A receiver of webhooks that fails a lot.")
    parser.add_argument("--journal", type=Path, required=True, help="all deliveries are noted here")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trouble", type=float, default=0.3, help="part of deliveries that fail")
    parser.add_argument("--parent", type=int, help="id of the process with which it ends")
    arguments = parser.parse_args()
    if arguments.parent is not None:
        end_with(arguments.parent)
    receiver = Receiver(arguments.journal, arguments.seed, arguments.trouble)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(receiver, arguments.port))


if __name__ == "__main__":
    main()
