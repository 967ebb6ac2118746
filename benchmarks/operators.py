"""Measures what operators cost: `python -m benchmarks.operators [--sessions 100000]`.

One `ritornello-server serve` on loopback holds that many active sessions for 1,000 consumers, each
over a WebSocket of its own. They do nothing but answer pings, with leases of 8 s, so that each
consumer sends a heartbeat every 2 s. What the whole process takes is read when all are held, and
again after a while of heartbeats: the state itself, the operators, the connections.

The exit status is 0 if it stays within the goal, 3 if not; 1 if the run could not be done.
"""

import argparse
import asyncio
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop
from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector, WSMsgType

from benchmarks.cluster_trio import free_ports
from benchmarks.front_end import MISSED_STATUS, RunError, Server

MIB = 1 << 20
GOAL_BYTES = 1024 * MIB
THEME = 1
LEASE_S = 8
PER_FRAME = 100
PROTOCOL = "ritornello.msgpack.v1"


class Node(Server):
    """One whose memory is looked at."""

    @property
    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024


class Consumer:
    """Holds its share of the sessions, and answers pings."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self.lost = 0
        self.beats = 0
        self._answers = 0

    async def begin(self, count: int, data: bytes) -> None:
        """Begin so many sessions."""
        for start in range(0, count, PER_FRAME):
            requests = [
                {"op": "new", "seq": seq, "theme": THEME, "data": data}
                for seq in range(start, min(start + PER_FRAME, count))
            ]
            await self._socket.send_bytes(msgspec.msgpack.encode(requests))
        while self._answers < count:
            await self._read()

    async def idle(self) -> None:
        """Answer pings, until it is cancelled."""
        while True:
            await self._read()

    async def _read(self) -> None:
        message = await self._socket.receive()
        if message.type is WSMsgType.PING:
            self.beats += 1
            await self._socket.pong(message.data)
        elif message.type is WSMsgType.BINARY:
            found = msgspec.msgpack.decode(message.data)
            for one in found if isinstance(found, list) else [found]:
                if "error" in one:
                    raise RunError(f"refused: {one['error']}")
                self._answers += "seq" in one
                self.lost += one.get("push") == "lease_lost"
        elif message.type is not WSMsgType.PONG:
            raise RunError(f"the connection is closed: {message}")


async def run(arguments: argparse.Namespace, server: Node) -> int:
    url = f"http://{server.address[0]}:{server.address[1]}"
    count = arguments.sessions // arguments.consumers
    print(f"empty: {server.rss_bytes / MIB:.0f} MiB")
    async with ClientSession(connector=TCPConnector(limit=0)) as client:
        policy = {"lease_ms": LEASE_S * 1000}
        async with client.patch(f"{url}/v1/themes/{THEME}/policy", json=policy) as answer:
            if answer.status != 200:
                raise RunError(await answer.text())
        begin_s = time.monotonic()
        consumers = [
            Consumer(
                await client.ws_connect(
                    f"{url}/v1/operate", protocols=[PROTOCOL], autoping=False, max_msg_size=0
                )
            )
            for _ in range(arguments.consumers)
        ]
        print(f"{len(consumers):,} connections: {server.rss_bytes / MIB:.0f} MiB")
        data = b"x" * arguments.data_bytes
        idle: list[asyncio.Task[None]] = []
        for one in consumers:
            await one.begin(count, data)
            idle.append(asyncio.ensure_future(one.idle()))
        took_s = time.monotonic() - begin_s
        total = count * len(consumers)
        held_bytes = server.rss_bytes
        print(f"{total:,} active sessions: {held_bytes / MIB:.0f} MiB, after {took_s:.0f} s")
        beats, cpu_s = sum(one.beats for one in consumers), server.cpu_s
        await asyncio.sleep(arguments.seconds)
        beats = sum(one.beats for one in consumers) - beats
        cpu_s = server.cpu_s - cpu_s
        for task in idle:
            if task.done():
                task.result()
            task.cancel()
        lost = sum(one.lost for one in consumers)
        after_bytes = server.rss_bytes
    print(
        f"after {arguments.seconds} s of heartbeats: {after_bytes / MIB:.0f} MiB, "
        f"{beats / arguments.seconds:.0f} pings a second, "
        f"{cpu_s / arguments.seconds * 100:.0f} % of a core, {lost} leases lost"
    )
    most_bytes = max(held_bytes, after_bytes)
    print(f"    {most_bytes / total:,.0f} bytes a session, everything included")
    is_met = most_bytes <= GOAL_BYTES and not lost
    print(f"    goal: {GOAL_BYTES / MIB:.0f} MiB, and no lease lost: {_verdict(is_met=is_met)}")
    return 0 if is_met else MISSED_STATUS


def _verdict(*, is_met: bool) -> str:
    return "met" if is_met else "NOT MET"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--consumers", type=int, default=1000)
    parser.add_argument("--data-bytes", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=30, help="of heartbeats")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    directory = Path(tempfile.mkdtemp(prefix="operators-", dir=arguments.directory))
    peer_port, http_port = free_ports(2)
    server = Node("node-1", directory / "node-1", {"node-1": peer_port}, http_port)
    try:
        server.wait()
        return uvloop.run(run(arguments, server))
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        server.end()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
