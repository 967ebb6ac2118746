"""A fleet of workers that does real work while something breaks, and looks what became of it."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence

from ritornello import Client, Options, Remove, Session, Store, Verdict, Worker, WorkerOptions
from ritornello.errors import DeadlineExceeded, LeaseLost, RitornelloError

THEME = 7
LEASE_MS = 3000

# What the documentation says that a handler may meet.
NAMED = (LeaseLost, DeadlineExceeded)


class Fleet:
    """Workers, a producer, and what they have seen."""

    def __init__(self, urls: list[str], *, sessions: int, seed: int = 1) -> None:
        self.urls = urls
        self.count = sessions
        self.chance = random.Random(seed)
        self.created: set[str] = set()
        self.done: set[str] = set()
        self.told: dict[str, list[bytes]] = defaultdict(list)  # appended, as handlers were told
        self.epochs: dict[str, list[int]] = defaultdict(list)
        self.surprises: list[BaseException] = []
        self.losses = 0
        self.workers: list[Worker] = []
        self.attempts = 0

    async def handle(self, session: Session) -> Verdict:
        self.attempts += 1
        for number in range(2):
            mark = b"%d.%d;" % (session.epoch, number)
            try:
                await session.append(mark)
            except RitornelloError as error:
                if not isinstance(error, NAMED):
                    self.surprises.append(error)
                self.losses += isinstance(error, LeaseLost)
                raise
            self.told[session.id].append(mark)
            await asyncio.sleep(self.chance.uniform(0, 0.05))
        if self.chance.random() < 0.1:
            return Store(after=0)
        self.check(session)
        return Remove()

    def check(self, session: Session) -> None:
        """All that anybody was told to be appended is there, in order, and of one at a time."""
        found = session.data.split(b";")[1:-1]
        epochs = [int(one.split(b".")[0]) for one in found]
        if epochs != sorted(epochs):
            self.surprises.append(AssertionError(f"two at once: {session.id} {found}"))
        places = iter(found)
        told = [one.rstrip(b";") for one in self.told[session.id]]
        if not all(one in places for one in told):
            self.surprises.append(AssertionError(f"lost: {session.id} {told} {found}"))

    async def produce(self, client: Client) -> None:
        for number in range(self.count):
            created = await client.new(THEME, b"begin;", key=f"k{number}", after=0)
            self.created.add(created.id)
            await asyncio.sleep(0.01)

    async def run(self, client: Client, fault: "asyncio.Future[None]") -> None:
        """Work until all is done, and what breaks has broken."""
        await client.set_policy(THEME, lease_ms=LEASE_MS, repeat_ms=0)
        async with Client(self.urls, options=Options(silence_s=2.0)) as other:
            for one in (client, other):
                worker = Worker(one, options=WorkerOptions(concurrency=20, failures_max=None))
                worker.handler(THEME)(self.handle)
                self.workers.append(worker)
            running = [asyncio.ensure_future(one.run()) for one in self.workers]
            await asyncio.gather(self.produce(client), fault)
            await asyncio.wait_for(self.empty(client, running), 60)
            for worker in self.workers:
                worker.stop()
            await asyncio.gather(*running)
        left = [one async for one in client.list(THEME)]
        assert not left, left
        assert len(self.created) == self.count
        assert not self.surprises, self.surprises

    async def empty(self, client: Client, running: Sequence[asyncio.Future[None]]) -> None:
        """Wait until all is done."""
        while [one async for one in client.list(THEME)]:
            for one in running:
                if one.done():
                    one.result()
            await asyncio.sleep(0.2)
