"""The load of the front end's benchmark, as a process of its own: as light as Python lets it be.

One JSON object comes on the command line, and one goes out. Each operator lives through one session
after another: New, Append, Append, Remove, with 256 bytes each. Bytes are put together by hand, and
no more of an answer is read than is needed, so that what is measured is the server.
"""

import asyncio
import base64
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import uvloop

from benchmarks.latencies import counted

DATA = b"x" * 256
THEME = 1
STEPS = 4
CONNECTION_LOST = "connection_lost"  # closed by the server, or what came made no sense

_END = b"\r\n\r\n"
_LENGTH = b"Content-Length: "


@dataclass(slots=True)
class Tally:
    """What was done while it counted, and what failed.

    Connections that are lost count from beginning to end: whoever has lost one does nothing more,
    so that the rate is lower than it should be.
    """

    counts: bool = False
    is_over: bool = False  # connections are closed by the client itself
    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)

    def add(self, since_s: float, failure: str = "") -> None:
        if not self.counts:
            return
        if failure:
            self._fail(failure)
            return
        self.done += 1
        self.latencies_s.append(time.perf_counter() - since_s)

    def lose(self) -> None:
        if not self.is_over:
            self._fail(CONNECTION_LOST)

    def _fail(self, failure: str) -> None:
        self.failed[failure] = self.failed.get(failure, 0) + 1


class Operator(asyncio.Protocol):
    """One connection. What it raises about what it was sent ends the connection, too."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def connection_lost(self, _error: Exception | None) -> None:
        self._tally.lose()


class HttpOperator(Operator):
    """One connection, one request at a time."""

    def __init__(self, tally: Tally, host: str) -> None:
        super().__init__(tally)
        head = f"Host: {host}\r\n"
        body = f"Content-Length: {len(DATA)}\r\n\r\n".encode() + DATA
        self._new = f"POST /v1/themes/{THEME}/sessions HTTP/1.1\r\n{head}".encode() + body
        self._append = f"/append HTTP/1.1\r\n{head}Ritornello-Epoch: 1\r\n".encode() + body
        self._remove = f" HTTP/1.1\r\n{head}Ritornello-Epoch: 1\r\n\r\n".encode()
        self._transport: Any = None
        self._buffer = b""
        self._step = 0
        self._session = b""
        self._since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._next()

    def _next(self) -> None:
        self._since_s = time.perf_counter()
        if self._step == 0:
            self._transport.write(self._new)
        elif self._step < STEPS - 1:
            self._transport.write(b"POST /v1/sessions/" + self._session + self._append)
        else:
            self._transport.write(b"DELETE /v1/sessions/" + self._session + self._remove)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        end = data.find(_END)
        if end < 0:
            self._buffer = data
            return
        at = data.find(_LENGTH, 0, end) + len(_LENGTH)
        length = int(data[at : data.index(b"\r\n", at)])
        if len(data) < end + len(_END) + length:
            self._buffer = data
            return
        self._buffer = b""
        status = data[9:12]
        if status[:1] != b"2":
            self._tally.add(self._since_s, status.decode())
            self._step = 0
        else:
            if self._step == 0:
                at = data.index(b'"id":"', end) + 6
                self._session = data[at : data.index(b'"', at)]
            self._tally.add(self._since_s)
            self._step = (self._step + 1) % STEPS
        self._next()


class Life:
    """An operator over a WebSocket: where it is in its session's life."""

    __slots__ = ("session", "since_s", "step")

    def __init__(self) -> None:
        self.step = 0
        self.session = ""
        self.since_s = 0.0


class WebSocketOperators(Operator):
    """One connection with several operators; what becomes possible at once is sent at once."""

    def __init__(self, tally: Tally, host: str, lives: int, per_frame: int) -> None:
        super().__init__(tally)
        self._host = host
        self._per_frame = per_frame
        self._seqs = itertools.count(1)
        self._lives = [Life() for _ in range(lives)]
        self._waiting: dict[int, Life] = {}
        self._transport: Any = None
        self._buffer = bytearray()
        self._is_open = False
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder().decode

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            f"GET /v1/operate HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: ritornello.msgpack.v1\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._is_open:
            end = buffer.find(_END)
            if end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 101"):
                raise ConnectionError(bytes(buffer[:200]))
            del buffer[: end + len(_END)]
            self._is_open = True
            self._send(self._lives)
        ready: list[Life] = []
        while (frame := self._frame()) is not None:
            opcode, payload = frame
            if opcode == 9:
                self._write(10, payload)
            elif opcode == 8:
                raise ConnectionError(f"closed: {payload[2:]!r}")
            else:
                found = self._decode(payload)
                for answer in found if isinstance(found, list) else (found,):
                    self._answered(answer, ready)
        if ready:
            self._send(ready)

    def _frame(self) -> tuple[int, bytes] | None:
        """The next whole frame, as opcode and payload (RFC 6455, 5.2)."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        length, at = buffer[1], 2
        if length == 126:
            length, at = int.from_bytes(buffer[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < at + length:
            return None
        opcode, payload = buffer[0] & 15, bytes(buffer[at : at + length])
        del buffer[: at + length]
        return opcode, payload

    def _answered(self, answer: dict[str, Any], ready: list[Life]) -> None:
        seq = answer.get("seq")
        if seq is None:
            return  # a push
        life = self._waiting.pop(seq)
        error = answer.get("error")
        if error is not None:
            self._tally.add(life.since_s, error["code"])
            life.step = 0
        else:
            if life.step == 0:
                life.session = answer["id"]
            self._tally.add(life.since_s)
            life.step = (life.step + 1) % STEPS
        ready.append(life)

    def _send(self, lives: list[Life]) -> None:
        now_s = time.perf_counter()
        requests = [self._request(life, now_s) for life in lives]
        size = self._per_frame
        for start in range(0, len(requests), size):
            some = requests[start : start + size]
            self._write(2, self._encode(some[0] if size == 1 else some))

    def _request(self, life: Life, now_s: float) -> dict[str, Any]:
        seq = next(self._seqs)
        self._waiting[seq] = life
        life.since_s = now_s
        if life.step == 0:
            return {"op": "new", "seq": seq, "theme": THEME, "data": DATA}
        if life.step < STEPS - 1:
            return {"op": "append", "seq": seq, "id": life.session, "epoch": 1, "data": DATA}
        return {"op": "remove", "seq": seq, "id": life.session, "epoch": 1}

    def _write(self, opcode: int, payload: bytes) -> None:
        """Send a frame; masked, as a client must, with a key that changes nothing."""
        length = len(payload)
        if length < 126:
            head = bytes((128 | opcode, 128 | length))
        elif length < 65_536:
            head = bytes((128 | opcode, 254)) + length.to_bytes(2, "big")
        else:
            head = bytes((128 | opcode, 255)) + length.to_bytes(8, "big")
        self._transport.write(head + bytes(4) + payload)


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Load the addresses of a plan, and tell what came of it."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    addresses = itertools.cycle(map(tuple, plan["addresses"]))
    transports = []
    for _ in range(plan["connections"]):
        host, port = next(addresses)
        make: Callable[[], asyncio.Protocol]
        if plan["kind"] == "http":
            make = partial(HttpOperator, tally, host)
        else:
            make = partial(WebSocketOperators, tally, host, plan["lives"], plan["per_frame"])
        transports.append((await loop.create_connection(make, host, port))[0])
    await asyncio.sleep(plan["warm_up_s"])
    used_s = _cpu_s()
    begin_s = time.perf_counter()
    tally.counts = True
    await asyncio.sleep(plan["seconds"])
    tally.counts = False
    took_s = time.perf_counter() - begin_s
    used_s = _cpu_s() - used_s
    tally.is_over = True
    for transport in transports:
        transport.close()
    return {
        "done": tally.done,
        "took_s": took_s,
        "failed": tally.failed,
        "cpu_s": used_s,
        "latencies": counted(tally.latencies_s),
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(json.loads(sys.argv[1])))))
