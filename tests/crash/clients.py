"""The load: clients that write down what they were told. `history` says whether it was true."""

import asyncio
import time
from collections.abc import Coroutine
from random import Random
from types import TracebackType
from typing import Any, Self

from state import Acquired, Created, OnConflict, Operation, Result
from state.operations import Acquire, Append, Heartbeat, New, Remove, SetPolicy, Store
from state.results import unpack_result
from tests.crash.history import LEDGERS, WORK, Attempt, Fate, Removal, ViolationError
from tests.crash.processes import OPERATION_TIMEOUT_MS, Answer, Cluster, Server, Then

LEDGER_NUMBERS = 2_000  # then another session takes over: one has a bound of chunks
NEVER_MS = 10**9
LEASE_MS = 2_000
IN_FLIGHT = 100  # of one writer
NUMBER_BYTES = 8
RETRY_S = 0.1

# What an operation may be answered while nodes die.
_CLUSTERS_FAULT = {"timed_out", "stopping", "overloaded", "died"}


class Load:
    """All clients, for as long as the block lasts; then for what is on its way to be answered."""

    def __init__(self, cluster: Cluster, seed: int, *, writers: int = 3, workers: int = 3) -> None:
        self.cluster = cluster
        self.is_active = True
        self.pending = 0
        self.unknown = 0
        self.last_acknowledged_s = time.monotonic()
        self.longest_gap_s = 0.0  # between two acknowledgements
        # Each client has its own luck, so that none depends on when another is answered.
        self._writers = [
            Writer(self, f"writer-{number}", Random(seed * 1000 + number))
            for number in range(writers)
        ]
        self._workers = [
            Worker(self, f"worker-{number}", Random(seed * 1000 + 500 + number))
            for number in range(workers)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._prepare()
        for work in [
            *(writer.run() for writer in self._writers),
            *(worker.run() for worker in self._workers),
        ]:
            self._begin(work)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.is_active = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            timeout_s = 3 * OPERATION_TIMEOUT_MS / 1000
            await self.cluster.until(lambda: not self.pending, "the last answers", timeout_s)

    async def _prepare(self) -> None:
        """Set what the clients need. Repeated, it does no harm."""
        policy = SetPolicy(WORK, (("lease_ms", LEASE_MS), ("repeat_ms", 200)))
        done = False

        def answered(result: Result | Answer) -> None:
            nonlocal done
            done = done or not isinstance(result, dict)

        while not done:
            self.cluster.look()
            for server in self.cluster.up[:1]:
                self.submit(server, policy, answered)
            await asyncio.sleep(RETRY_S)

    def submit(
        self, server: Server, operation: Operation, then: Any, *, is_ending: bool = False
    ) -> None:
        """Have an operation done. `then` gets the result, or the answer that says why not."""
        self.pending += 1
        server.submit(operation, self._answered(then), is_ending=is_ending)

    def write(self, server: Server, count: int) -> None:
        """Have a node write some numbers, now."""
        self._writers[0].write(server, count)

    def pick(self, random: Random) -> Server | None:
        """A node that is up."""
        up = self.cluster.up
        return random.choice(up) if up else None

    def _answered(self, then: Any) -> Then:
        def answered(answer: Answer) -> None:
            self.pending -= 1
            if "result" in answer:
                self._acknowledged()
                then(unpack_result(_tupled(answer["result"])))
            else:
                self.unknown += answer["outcome"] == "unknown"
                then(answer)

        return answered

    def _acknowledged(self) -> None:
        now_s = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_acknowledged_s)
        self.last_acknowledged_s = now_s
        self.cluster.history.acknowledged += 1

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:  # noqa: BLE001 - it ends the run, see `Cluster.look`
                self.cluster.fail(error)

        self._tasks.append(asyncio.create_task(guarded()))


class Writer:
    """Appends numbers to sessions of its own, several at once, each number once."""

    def __init__(self, load: Load, name: str, random: Random) -> None:
        self._load = load
        self._name = name
        self._random = random
        self._history = load.cluster.history
        self._ledger = ""
        self._written = 0
        self._in_flight = 0
        self._last: tuple[str, int] | None = None  # acknowledged: ledger, number

    async def run(self) -> None:
        while True:
            # The number of what is known so far makes the name of the next one new.
            ledger = f"{self._name}-{len(self._history.attempts)}"
            await self._open(ledger)
            self._ledger = ledger
            self._written = 0
            while self._written < LEDGER_NUMBERS:
                server = self._load.pick(self._random)
                if server is not None and self._in_flight < IN_FLIGHT:
                    self.write(server, self._random.choice((1, 1, 2, 5, 20)))
                reader = self._load.pick(self._random)
                if reader is not None and self._random.random() < 0.05:
                    self._read(reader)
                await asyncio.sleep(self._random.expovariate(25))

    def write(self, server: Server, count: int) -> None:
        """Have a node write some numbers."""
        for _ in range(count):
            self._write(server, self._ledger)

    async def _open(self, ledger: str) -> None:
        is_open = False

        def opened(result: Result | Answer) -> None:
            nonlocal is_open
            is_open = is_open or isinstance(result, Created)

        new = New(
            LEDGERS,
            ledger.encode(),
            repeat_after_ms=NEVER_MS,
            on_conflict=OnConflict.RETURN_EXISTING,
        )
        while not is_open:
            server = self._load.pick(self._random)
            if server is not None:
                self._load.submit(server, new, opened)
            await asyncio.sleep(RETRY_S)

    def _write(self, server: Server, ledger: str) -> None:
        attempt = Attempt(server.life, ledger=ledger)
        number = self._history.attempt(attempt)
        data = _data(number, self._random.choice((10, 60, 300, 300, 300, 1_500)))
        self._written += 1
        self._in_flight += 1

        def written(result: Result | Answer) -> None:
            self._in_flight -= 1
            attempt.fate = _fate(result)
            if attempt.fate is Fate.ACKNOWLEDGED:
                self._last = (ledger, number)

        self._load.submit(server, Append((LEDGERS, ledger.encode()), None, data), written)

    def _read(self, server: Server) -> None:
        if self._last is None:
            return
        ledger, number = self._last

        def read(answer: Answer) -> None:
            if "holds" in answer:
                self._history.saw(server.life, number, holds=answer["holds"])

        server.ask(
            read,
            "holds",
            key=ledger,
            number=_data(number, 0).hex(),
            timeout_ms=OPERATION_TIMEOUT_MS,
        )


class Worker:
    """Acquires sessions, works on them, ends or forgets them."""

    def __init__(self, load: Load, name: str, random: Random) -> None:
        self._load = load
        self._name = name
        self._random = random
        self._history = load.cluster.history
        self._lives = 0

    async def run(self) -> None:
        while True:
            server = self._load.pick(self._random)
            if server is not None and server.consumer:
                self._lives += 1
                await self._live(server, f"{server.consumer}{self._name}-{self._lives}")
            await asyncio.sleep(RETRY_S)

    async def _live(self, home: Server, owner: str) -> None:
        """Work at one node, under one name, for as long as both last."""
        life = home.life
        held: dict[int, int] = {}  # id -> epoch
        beaten_s = 0.0
        while home.is_up and home.life == life and self._random.random() > 0.002:
            if time.monotonic() - beaten_s > LEASE_MS / 4000:
                beaten_s = time.monotonic()
                self._load.submit(home, Heartbeat(owner.encode()), _unheard, is_ending=True)
            choice = self._random.random()
            if choice < 0.25:
                self._new(home)
            elif choice < 0.5:
                self._acquire(home, owner, held)
            elif held:
                session_id = self._random.choice(sorted(held))
                if choice < 0.7:
                    self._append(home, session_id, held[session_id])
                elif choice < 0.85:
                    self._store(home, session_id, held.pop(session_id))
                else:
                    self._remove(home, session_id, held.pop(session_id))
            await asyncio.sleep(self._random.expovariate(30))

    def _new(self, home: Server) -> None:
        attempt = Attempt(home.life)
        number = self._history.attempt(attempt)

        def created(result: Result | Answer) -> None:
            attempt.fate = _fate(result)
            if isinstance(result, Created):
                attempt.session_id = result.session_id

        self._load.submit(home, New(WORK, None, _data(number, 20), repeat_after_ms=0), created)

    def _acquire(self, home: Server, owner: str, held: dict[int, int]) -> None:
        def acquired(result: Result | Answer) -> None:
            if not isinstance(result, tuple):
                _fate(result)
                return
            for one in result:
                assert isinstance(one, Acquired)
                self._history.acquired(one.session_id, one.epoch, owner)
                held[one.session_id] = one.epoch

        count = self._random.choice((1, 3))
        self._load.submit(home, Acquire((WORK,), count, owner.encode()), acquired)

    def _append(self, home: Server, session_id: int, epoch: int) -> None:
        attempt = Attempt(home.life, session_id=session_id, epoch=epoch)
        number = self._history.attempt(attempt)
        newest = self._history.newest[session_id]

        def appended(result: Result | Answer) -> None:
            attempt.fate = _fate(result)
            if attempt.fate is Fate.ACKNOWLEDGED:
                self._history.accepted(session_id, epoch, newest)

        self._load.submit(home, Append(session_id, epoch, _data(number, 40)), appended)

    def _store(self, home: Server, session_id: int, epoch: int) -> None:
        newest = self._history.newest[session_id]

        def stored(result: Result | Answer) -> None:
            if _fate(result) is Fate.ACKNOWLEDGED:
                self._history.accepted(session_id, epoch, newest)

        operation = Store(session_id, epoch, repeat_after_ms=300)
        self._load.submit(home, operation, stored, is_ending=True)

    def _remove(self, home: Server, session_id: int, epoch: int) -> None:
        removal = Removal(session_id)
        self._history.removals.append(removal)
        newest = self._history.newest[session_id]

        def removed(result: Result | Answer) -> None:
            removal.fate = _fate(result)
            if removal.fate is Fate.ACKNOWLEDGED:
                self._history.accepted(session_id, epoch, newest)

        self._load.submit(home, Remove(session_id, epoch), removed, is_ending=True)


def _fate(result: Result | Answer) -> Fate:
    """What an answer says. Raises `ViolationError` at one that the clients cannot have earned."""
    if not isinstance(result, dict):
        return Fate.ACKNOWLEDGED
    if result["code"] not in _CLUSTERS_FAULT | {"lease_lost", "session_not_found"}:
        raise ViolationError(f"{result['code']}: {result['text']}")
    # A machine's refusal is an answer: nothing was done.
    return Fate.UNKNOWN if result["outcome"] == "unknown" else Fate.NOT_APPLIED


def _data(number: int, padding_bytes: int) -> bytes:
    return number.to_bytes(NUMBER_BYTES, "big") + bytes(padding_bytes)


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _unheard(_result: object) -> None:
    pass
