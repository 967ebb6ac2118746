"""One connection to another node: frames in, frames out, and who is at the other end.

A `BufferedProtocol`: the kernel writes into the frame reader's memory, and the listener looks at
payloads there. A `Protocol` would get each read as new `bytes`, of which frames that straddle two
reads must be put together again (a large one: over and over), and streams would add a copy and a
task's switch for each frame.

What is sent in one turn of the loop is gathered and leaves with one call. While the other side does
not take it, bursts wait here rather than in the loop's transport, which would copy them.
"""

import asyncio
from collections import deque
from enum import StrEnum
from typing import Protocol, cast

from cluster.network.errors import (
    FrameError,
    OversizedError,
    PayloadSizeError,
    Reason,
    Refused,
    RefusedByPeer,
)
from cluster.network.frames import HEADER_BYTES, PING, FrameReader, frame, header
from cluster.network.handshake import Handshake, Hello, Role, encode_refusal
from cluster.network.settings import Address, Counters, Identity, TransportSettings

# Parts of a burst that are smaller than this are put together, which is cheaper than naming each of
# them to the kernel; larger ones are not copied (where the loop can do without).
_JOIN_BELOW_BYTES = 4096
# What is left of a read after the connection has ended goes nowhere.
_SINK_BYTES = 4096


class Ending(StrEnum):
    """Why a connection is no more. The values are names of counters, but for the last three."""

    LOST = "lost"
    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    SILENT = "silent"
    OVERFLOW = "overflows"
    REPLACED = "replaced"
    REFUSED_BY_PEER = "refused_by_peer"
    TIMED_OUT = "timed_out"
    CROWDED = "crowded_out"
    TLS = "tls_failures"
    REFUSED = "refused"  # counted by reason
    LISTENER = "the listener failed"  # counted where that happens
    STOPPED = "stopped"  # nothing went wrong


class Hub(Protocol):
    """Whom connections belong to."""

    identity: Identity
    secret: bytes | None
    settings: TransportSettings
    counters: Counters
    loop: asyncio.AbstractEventLoop

    def vet(self, connection: "Connection", hello: Hello) -> None:
        """Raise `Refused` unless the hello may be a peer's, and its certificate is."""

    def admit(self, hello: Hello) -> None:
        """Raise `Refused` if a peer is not wanted."""

    def opened(self, connection: "Connection") -> None:
        """Both sides have proved who they are. Before the first payload."""

    def received(self, connection: "Connection", payload: memoryview) -> None:
        """Take a payload. Must not raise."""

    def closed(self, connection: "Connection", ending: Ending, detail: str) -> None:
        """It is over, once. May come in the middle of a `send`."""


class Connection(asyncio.BufferedProtocol):
    """One connection, from its first byte to its last."""

    def __init__(
        self, hub: Hub, role: Role, address: Address, *, is_tls: bool, dialed: str | None = None
    ) -> None:
        """`address` is that of the other side. `dialed` is the only peer that may answer."""
        self.address = address
        self.dialed = dialed
        self.role = role
        self.peer = ""  # known when open
        self.incarnation = 0
        self.is_open = False  # the handshake is done, and it is not closed
        self.is_closed = False  # nothing is sent or delivered any more
        self.refused: Reason | None = None
        # Whether it was opened; false when it is closed before.
        self.has_opened: asyncio.Future[bool] = hub.loop.create_future()
        self.has_closed: asyncio.Future[None] = hub.loop.create_future()
        self.has_gone: asyncio.Future[None] = hub.loop.create_future()  # the socket, too
        self.transport: asyncio.Transport | None = None
        self._hub = hub
        self._settings = hub.settings
        self._counters = hub.counters
        self._is_tls = is_tls
        self._handshake = Handshake(role, hub.identity, hub.secret, vet=self._vet, admit=hub.admit)
        hello_bytes = hub.settings.hello_bytes
        self._reader = FrameReader(hello_bytes, hello_bytes + HEADER_BYTES)
        self._burst: list[bytes] = []  # headers and payloads
        self._burst_bytes = 0
        self._bursts: deque[tuple[list[bytes], int]] = deque()  # full ones, while paused
        self._bursts_bytes = 0
        self._flush_is_due = False
        self._is_paused = False
        self._was_heard = True
        self._was_sent = True
        self._silent_ticks = 0

    # For the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.is_closed:  # by whoever had no more patience
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(high=self._settings.flush_bytes)
        for message in self._handshake.opening():
            self._write_now(frame(message))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the reader knows better
        if self.is_closed:
            return memoryview(bytearray(_SINK_BYTES))
        return self._reader.space()

    def buffer_updated(self, nbytes: int) -> None:
        if self.is_closed:
            return
        self._was_heard = True
        self._counters.bytes_in += nbytes
        try:
            self._reader.received(nbytes, self._take)
        except OversizedError as error:
            self.drop(Ending.OVERSIZED, str(error))
        except FrameError as error:
            self.drop(Ending.MALFORMED, str(error))

    def eof_received(self) -> None:
        """Close: half a connection is of no use."""

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.has_gone.done():
            self.has_gone.set_result(None)
        self.drop(Ending.LOST, "closed by the peer" if exc is None else str(exc))

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._flush()

    # For the hub

    def send(self, payload: bytes) -> bool:
        """Have a payload leave at the end of this turn. False: it never will, and all is over."""
        limit_bytes = self._settings.frame_bytes
        if not 1 <= len(payload) <= limit_bytes:
            raise PayloadSizeError(len(payload), limit_bytes)
        if self.is_closed:
            return False
        size = HEADER_BYTES + len(payload)
        waiting_bytes = self._burst_bytes + self._bursts_bytes
        if waiting_bytes and waiting_bytes + size > self._settings.send_buffer_bytes:
            # A hole in the stream would be worse than its end.
            self.drop(Ending.OVERFLOW, f"{waiting_bytes} bytes wait to be sent")
            return False
        self._counters.frames_out += 1
        self._burst += (header(payload), payload)
        self._burst_bytes += size
        if self._burst_bytes >= self._settings.flush_bytes:
            self._flush()
        elif not self._flush_is_due and not self._is_paused:
            self._flush_is_due = True
            self._hub.loop.call_soon(self._flush_at_end_of_turn)
        return True

    @property
    def label(self) -> str:
        """What to call it in the log."""
        return f"{self.peer or self.dialed or 'a stranger'} at {self.address}"

    @property
    def buffered_bytes(self) -> int:
        """What was sent and is not in the kernel's hands yet."""
        below = self.transport.get_write_buffer_size() if self.transport else 0
        return self._burst_bytes + self._bursts_bytes + below

    def tick(self, silence_ticks: int, *, counts: bool) -> None:
        """Show that we live, and look whether the peer does. A tick may be one that counts not."""
        if self._was_sent:
            self._was_sent = False
        elif not self.buffered_bytes:
            self._counters.pings_out += 1
            self._write_now(PING)
            self._was_sent = False
        if self._was_heard:
            self._was_heard = False
            self._silent_ticks = 0
        elif counts:
            self._silent_ticks += 1
            if self._silent_ticks >= silence_ticks:
                self.drop(Ending.SILENT, f"not heard for {self._settings.silence_timeout_ms} ms")

    def drop(self, ending: Ending, detail: str = "") -> None:
        """End it at once. What waits is lost; nothing that still arrives is looked at."""
        if not self.is_closed:
            self._close()
            if self.transport is not None:
                self.transport.abort()
            self._hub.closed(self, ending, detail)

    def finish(self) -> None:
        """Deliver nothing any more, but let leave what was sent."""
        if not self.is_closed:
            self._seal()
            while self._bursts:
                self._write(*self._bursts.popleft())
            self._close()
            if self.transport is not None:
                self.transport.close()
            self._hub.closed(self, Ending.STOPPED, "")

    def _close(self) -> None:
        self.is_open = False
        self.is_closed = True
        self._burst.clear()
        self._bursts.clear()
        self._burst_bytes = self._bursts_bytes = 0
        if not self.has_opened.done():
            self.has_opened.set_result(False)
        if not self.has_closed.done():
            self.has_closed.set_result(None)

    # Frames

    def _take(self, payload: memoryview) -> bool:
        if not self.is_open:
            self._shake(bytes(payload))
        elif payload:
            self._counters.frames_in += 1
            self._hub.received(self, payload)
        else:
            self._counters.pings_in += 1
        return not self.is_closed

    def _shake(self, message: bytes) -> None:
        handshake = self._handshake
        try:
            answers = handshake.receive(message)
        except RefusedByPeer as error:
            self.drop(Ending.REFUSED_BY_PEER, self._advice(error))
            return
        except Refused as error:
            self._refuse(error)
            return
        for answer in answers:
            self._write_now(frame(answer))
        if handshake.is_done and handshake.peer is not None:
            self.peer = handshake.peer.node_id
            self.incarnation = handshake.peer.incarnation
            self.is_open = True
            settings = self._settings
            self._reader.widen(settings.frame_bytes, settings.read_buffer_bytes)
            self.has_opened.set_result(True)
            self._hub.opened(self)

    def _advice(self, error: RefusedByPeer) -> str:
        """What a refusal means, as far as there is something to do about it."""
        seen = error.seen_incarnation
        if seen is None:
            return error.reason
        # Incarnations grow on a disk; without one they begin with the clock's milliseconds.
        return (
            f"{error.reason}: it has seen this node in incarnation {seen}, this one is "
            f"{self._hub.identity.incarnation}. If its disk is new, its clock is behind: correct "
            f"the clock, or wait until it has passed {seen} ms since 1970, and start the node "
            "again. If not, another process has its name"
        )

    def _vet(self, hello: Hello) -> None:
        self._hub.vet(self, hello)

    def _refuse(self, error: Refused) -> None:
        """Say why before it ends: `close` lets those few bytes leave, where `abort` would not."""
        self.refused = error.reason
        if self._handshake.may_explain:
            self._write_now(frame(encode_refusal(error.reason, error.seen_incarnation)))
        self._close()
        if self.transport is not None:
            self.transport.close()
        self._hub.closed(self, Ending.REFUSED, error.detail)

    # Writing

    def _flush_at_end_of_turn(self) -> None:
        self._flush_is_due = False
        self._flush()

    def _flush(self) -> None:
        self._seal()
        while self._bursts and not self._is_paused:
            burst, size = self._bursts.popleft()
            self._bursts_bytes -= size
            self._write(burst, size)

    def _seal(self) -> None:
        if self._burst:
            self._bursts.append((self._burst, self._burst_bytes))
            self._bursts_bytes += self._burst_bytes
            self._burst, self._burst_bytes = [], 0

    def _write(self, burst: list[bytes], size: int) -> None:
        if self.transport is None:
            return
        self._was_sent = True
        self._counters.writes += 1
        self._counters.bytes_out += size
        if self._is_tls or size < _JOIN_BELOW_BYTES * len(burst):
            self.transport.write(b"".join(burst))  # under TLS each part would be a record
        else:
            self.transport.writelines(burst)

    def _write_now(self, data: bytes) -> None:
        self._write([data], len(data))
