"""One node of the cluster benchmark, in a process of its own, with the load that it makes itself.

It reads commands, one JSON object a line, and answers each with one line. See `cluster.py`.
"""

import asyncio
import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from cluster import Address, Node, NodeSettings, Security
from state import Created, Failure, Result, encode
from state.operations import Append, New, Remove, SetLimits

DATA = b"d" * 256
THEME = 1
FILL_THEME = 2
FILL_AHEAD = 2_000
DAY_MS = 24 * 3600 * 1000


class Operator:
    """Lives through one session after another: New, Append, Append, Remove."""

    __slots__ = ("_load", "_session_id", "_since_s", "_step")

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._step = 0
        self._session_id = 0
        self._since_s = 0.0

    def go(self) -> None:
        step = self._step
        if step == 0:
            encoded = encode(New(THEME, None, DATA))
        elif step < 3:
            encoded = encode(Append(self._session_id, 1, DATA))
        else:
            encoded = encode(Remove(self._session_id, 1))
        self._since_s = time.perf_counter()
        self._load.node.submit_encoded(encoded, self._done, timeout_ms=60_000, is_ending=step == 3)

    def _done(self, result: Result) -> None:
        load = self._load
        load.latencies_s.append(time.perf_counter() - self._since_s)
        if isinstance(result, Failure):
            load.failures += 1
            self._step = 0
        elif self._step == 0 and isinstance(result, Created):
            self._session_id = result.session_id
            self._step = 1
        else:
            self._step = (self._step + 1) % 4
        if load.is_running:
            load.next(self)
        else:
            load.ended += 1


class Load:
    """Operators without a pause, or a stream of operations at a steady rate."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.latencies_s: list[float] = []
        self.failures = 0
        self.ended = 0
        self.is_running = True
        self._idle: list[Operator] | None = None  # with a rate: who has nothing to do
        self.late = 0  # operations that found nobody idle

    def next(self, operator: Operator) -> None:
        if self._idle is None:
            operator.go()
        else:
            self._idle.append(operator)

    async def run(self, count: int, seconds: float, rate: float) -> float:
        """Load the node, and answer the seconds that it took."""
        operators = [Operator(self) for _ in range(count)]
        begin_s = time.perf_counter()
        if rate:
            await self._run_open(operators, seconds, rate)
        else:
            for operator in operators:
                operator.go()
            await asyncio.sleep(seconds)
        took_s = time.perf_counter() - begin_s
        done = len(self.latencies_s)
        self.is_running = False
        idle = 0 if self._idle is None else len(self._idle)
        while self.ended + idle < count:  # noqa: ASYNC110 - they answer within moments
            await asyncio.sleep(0.01)
        del self.latencies_s[done:]
        return took_s

    async def _run_open(self, operators: list[Operator], seconds: float, rate: float) -> None:
        """Begin operations when it is their time, whatever became of the ones before."""
        idle = self._idle = operators
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        sent = 0
        while (elapsed_s := loop.time() - begin_s) < seconds:
            due = int(elapsed_s * rate)
            while sent < due:
                sent += 1
                if idle:
                    idle.pop().go()
                else:
                    self.late += 1
            await asyncio.sleep(0.001)


async def serve(arguments: dict[str, Any]) -> None:
    """Run a node and do what the lines of standard input say."""
    peers = {name: Address("127.0.0.1", port) for name, port in arguments["peers"].items()}
    name = arguments["name"]
    settings = NodeSettings(
        Path(arguments["directory"]),
        node_id=name,
        bind=peers.get(name, Address("127.0.0.1", 0)),
        peers=peers,
        security=Security(secret=b"of the benchmark"),
    )
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with Node(settings) as node:
        while line := await reader.readline():
            command = json.loads(line)
            answer = await do(node, command)
            print(json.dumps(answer), flush=True)
            if command["do"] == "stop":
                break


async def do(node: Node, command: dict[str, Any]) -> dict[str, Any]:
    match command["do"]:
        case "ready":
            await node.wait_until_ready(timeout_ms=30_000)
            return {"is_leader": node.is_leader, "sessions": node.machine.session_count}
        case "fill":
            return await fill(node, command["sessions"])
        case "load":
            return await load(node, command)
        case "transfer":
            return {"went": await node.transfer(command["to"])}
        case "wait":
            await node.read(timeout_ms=60_000)
            return {"applied_index": node.status().applied_index}
        case _:
            return {}


async def load(node: Node, command: dict[str, Any]) -> dict[str, Any]:
    one = Load(node)
    queue, journal = node.replica.queue, node.journal.counters
    before = (queue.batches, queue.operations, journal.fsyncs, cpu_s())
    took_s = await one.run(command["operators"], command["seconds"], command["rate"])
    after = (queue.batches, queue.operations, journal.fsyncs, cpu_s())
    batches, operations, fsyncs, spent_s = (b - a for a, b in zip(before, after, strict=True))
    return {
        "took_s": took_s,
        "latencies_us": [round(latency_s * 1e6) for latency_s in one.latencies_s],
        "failures": one.failures,
        "late": one.late,
        "batches": batches,
        "operations": operations,
        "fsyncs": fsyncs,
        "cpu_s": spent_s,
    }


async def fill(node: Node, sessions: int) -> dict[str, Any]:
    """Put stored sessions into the state."""
    begin_s = time.perf_counter()
    await node.submit(SetLimits((("state_bytes", 16 << 30),)))
    encoded = encode(New(FILL_THEME, None, DATA, repeat_after_ms=DAY_MS))
    done = asyncio.Event()
    left, on_their_way, failures = sessions, 0, 0

    def answered(result: Result) -> None:
        nonlocal on_their_way, failures
        on_their_way -= 1
        failures += isinstance(result, Failure)
        send()

    def send() -> None:
        nonlocal left, on_their_way
        while left and on_their_way < FILL_AHEAD:
            left -= 1
            on_their_way += 1
            node.submit_encoded(encoded, answered, timeout_ms=60_000)
        if not left and not on_their_way:
            done.set()

    send()
    await done.wait()
    return {"took_s": time.perf_counter() - begin_s, "failures": failures}


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    uvloop.run(serve(json.loads(sys.argv[1])))
