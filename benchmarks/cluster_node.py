"""One node of the cluster benchmark, in a process of its own, with the load that it makes itself.

It reads commands, one JSON object a line, and answers each with one line. See `cluster_trio.py`.
"""

import asyncio
import json
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import uvloop

from benchmarks.cluster_load import DATA, TIMEOUT_MS, Load
from benchmarks.latencies import counted
from cluster import Address, Node, NodeSettings, Security
from state import Failure, Result, encode
from state.limits import DAY_MS, GIB
from state.operations import New, SetLimits

FILL_THEME = 2
FILL_AHEAD = 2_000  # operations on their way while the state is being filled
READY_MS = 600_000  # a node may first have to get all of a large state

Answer = dict[str, Any]


class Meters(NamedTuple):
    """Counters of a node."""

    batches: int
    operations: int
    fsyncs: int
    cpu_s: float
    term: int
    resends: int
    stalls: int

    @classmethod
    def of(cls, node: Node) -> Self:
        replica = node.replica
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(
            replica.queue.batches,
            replica.queue.operations,
            node.journal.counters.fsyncs,
            usage.ru_utime + usage.ru_stime,
            replica.member.term,
            replica.queue.resends,
            replica.stalls,
        )


class Session:
    """What one parent asks for, from the first command to the last."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._load = Load(node, 0, 0)
        self._before = Meters.of(node)

    async def do(self, command: dict[str, Any]) -> Answer:
        match command["do"]:
            case "ready":
                await self._node.wait_until_ready(timeout_ms=READY_MS)
                return self._status()
            case "status":
                return self._status()
            case "begin":
                self._load = Load(self._node, command["operators"], command["rate"])
                self._before = Meters.of(self._node)
                self._load.start()
                return {}
            case "halt":
                return await self._halt()
            case "fill":
                return await fill(self._node, command["sessions"])
            case "settle":
                return await settle(self._node)
            case "stop":
                return {}
            case unknown:
                raise ValueError(f"{unknown!r} is no command")

    def _status(self) -> Answer:
        snapshots = self._node.replica.snapshots
        return {
            "is_leader": self._node.is_leader,
            "sessions": self._node.machine.session_count,
            "snapshots": snapshots.installs,
        }

    async def _halt(self) -> Answer:
        load = self._load
        done, took_s = load.halt()
        after = Meters.of(self._node)
        meters = {
            name: end - begin
            for name, begin, end in zip(Meters._fields, self._before, after, strict=True)
        }
        await load.ended()
        # Not on the loop: the others would take this node for dead.
        latencies = await asyncio.to_thread(counted, load.latencies_s)
        return {
            **meters,
            "took_s": took_s,
            "done": done,
            "latencies": latencies,
            "longest_ms": max(load.latencies_s, default=0.0) * 1000,
            "failures": load.failures,
        }


async def fill(node: Node, sessions: int) -> Answer:
    """Put stored sessions into the state."""
    begin_s = time.perf_counter()
    await node.submit(SetLimits((("state_bytes", 16 * GIB),)))
    encoded = encode(New(FILL_THEME, None, DATA, repeat_after_ms=DAY_MS))
    done = asyncio.Event()
    left, on_their_way = sessions, 0
    failures: dict[str, int] = {}

    def answered(result: Result) -> None:
        nonlocal on_their_way
        on_their_way -= 1
        if isinstance(result, Failure):
            failures[result.code] = failures.get(result.code, 0) + 1
        send()

    def send() -> None:
        nonlocal left, on_their_way
        while left and on_their_way < FILL_AHEAD:
            left -= 1
            on_their_way += 1
            node.submit_encoded(encoded, answered, timeout_ms=TIMEOUT_MS)
        if not left and not on_their_way:
            done.set()

    send()
    await done.wait()
    return {"took_s": time.perf_counter() - begin_s, "failures": failures}


async def settle(node: Node) -> Answer:
    """Wait until a checkpoint has all that is applied now."""
    begin_s = time.perf_counter()
    index = node.machine.applied_index
    while node.status().checkpoint_index < index:  # noqa: ASYNC110 - of another task
        await asyncio.sleep(0.05)
    return {"took_s": time.perf_counter() - begin_s}


async def serve(arguments: dict[str, Any]) -> None:
    """Run a node and do what the lines of standard input say."""
    peers = {name: Address("127.0.0.1", port) for name, port in arguments["peers"].items()}
    name = arguments["name"]
    settings = NodeSettings(
        Path(arguments["directory"]),
        node_id=name,
        bind=peers[name],
        peers=peers,
        security=Security(secret=b"of the benchmark"),
    )
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async with Node(settings) as node:
        failing = asyncio.create_task(end_when_failed(node))
        session = Session(node)
        while line := await reader.readline():
            command = json.loads(line)
            answer = await session.do(command)
            print(json.dumps(answer), flush=True)
            if command["do"] == "stop":
                break
        failing.cancel()


async def end_when_failed(node: Node) -> None:
    error = await node.failure()
    print(f"{node.settings.node_id} has failed: {error}", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    uvloop.run(serve(json.loads(sys.argv[1])))
