"""One connection without a network: what is written to it, and what it does."""

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.network.connection import Connection, Ending
from cluster.network.errors import PayloadSizeError, Reason
from cluster.network.frames import HEADER_BYTES, PING, frame
from cluster.network.handshake import Kind, Role, encode_proof, encode_refusal
from cluster.network.settings import Address, Identity, Security, TransportSettings
from cluster.network.transport import Transport
from tests.cluster.network.nodes import (
    CLUSTER,
    LOOPBACK,
    NOWHERE,
    SECRET,
    SETTINGS,
    Recorder,
    handshake,
    quicker,
)

PEER_AT = Address(LOOPBACK, 4242)


class Wire(asyncio.Transport):
    """A loop's transport that takes up to `room_bytes`, and keeps the calls that were made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.parts: list[int] = []  # of each call
        self.room_bytes = 2**60
        self.connection: Connection | None = None
        self.end = ""

    def write(self, data: Any) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Any) -> None:
        data = b"".join(list_of_data)
        self.calls.append(data)
        self.parts.append(len(list_of_data))
        self.room_bytes -= len(data)
        if self.room_bytes < 0 and self.connection is not None:
            self.connection.pause_writing()

    def get_write_buffer_size(self) -> int:
        return max(0, -self.room_bytes)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002
        return default

    def abort(self) -> None:
        self.end = "aborted"

    def close(self) -> None:
        self.end = self.end or "closed"


class Loop:
    """As much of a loop as a connection uses; turns are taken by hand."""

    def __init__(self) -> None:
        self._real = asyncio.new_event_loop()
        self._ready: list[Any] = []
        self.now_s = 0.0

    def create_future(self) -> asyncio.Future[Any]:
        return self._real.create_future()

    def call_soon(self, callback: Any, *args: Any) -> None:
        self._ready.append((callback, args))

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Any) -> None:
        pass

    def turn(self) -> int:
        """Make the calls that were put off, and say how many there were."""
        ready, self._ready = self._ready, []
        for callback, args in ready:
            callback(*args)
        return len(ready)

    def close(self) -> None:
        self._real.close()


LOOP = Loop()


@pytest.fixture(scope="module", autouse=True)
def _loop_is_closed() -> Iterator[None]:
    yield
    LOOP.close()


class Side:
    """A connection of node b, and the wire that it hangs on."""

    def __init__(
        self,
        role: Role = Role.ACCEPTOR,
        settings: TransportSettings = SETTINGS,
        secret: bytes | None = SECRET,
    ) -> None:
        self.listener = Recorder()
        identity = Identity(CLUSTER, "b", 1)
        peers = {"a": NOWHERE, "c": NOWHERE}
        self.transport = Transport(
            identity, Address(LOOPBACK, 0), peers, Security(secret=secret), self.listener, settings
        )
        self.transport.loop = cast("asyncio.AbstractEventLoop", LOOP)
        self.counters = self.transport.counters
        self.peer = "a" if role is Role.ACCEPTOR else "c"
        self.connection, self.wire = self.connect(role)

    def connect(self, role: Role = Role.ACCEPTOR) -> tuple[Connection, Wire]:
        dialed = self.peer if role is Role.DIALER else None
        connection = Connection(self.transport, role, PEER_AT, is_tls=False, dialed=dialed)
        wire = Wire()
        wire.connection = connection
        connection.connection_made(wire)
        return connection, wire

    def shake(self, connection: Connection | None = None, wire: Wire | None = None) -> None:
        """Do the other side's part of the handshake."""
        connection, wire = connection or self.connection, wire or self.wire
        other = handshake(connection.role.other, self.peer)
        said = other.opening()
        while not other.is_done:
            feed(connection, b"".join(map(frame, said)))
            heard, wire.calls = wire.calls, []
            said = [one for call in heard for one in other.receive(call[HEADER_BYTES:])]
        feed(connection, b"".join(map(frame, said)))
        assert connection.is_open
        wire.calls, wire.parts = [], []

    @classmethod
    def opened(cls, settings: TransportSettings = SETTINGS) -> "Side":
        side = cls(settings=settings)
        side.shake()
        return side

    def send(self, payload: bytes) -> bool:
        return self.transport.send(self.peer, payload)


def feed(connection: Connection, stream: bytes, reads: list[int] | None = None) -> None:
    sizes = iter(reads or [])
    while stream:
        space = connection.get_buffer(-1)
        count = min(len(space), len(stream), next(sizes, len(stream)))
        assert count
        space[:count] = stream[:count]
        connection.buffer_updated(count)
        stream = stream[count:]


# Writing


def test_what_is_sent_in_one_turn_leaves_in_one_call() -> None:
    side = Side.opened()
    payloads = [b"%d" % i for i in range(100)]
    assert all(side.send(one) for one in payloads)
    assert side.wire.calls == []
    assert LOOP.turn() == 1
    assert side.wire.calls == [b"".join(map(frame, payloads))]
    assert LOOP.turn() == 0


def test_a_burst_leaves_at_once_when_it_is_large() -> None:
    side = Side.opened(quicker(flush_bytes=10_000))
    for _ in range(25):
        side.send(bytes(1000))
    assert [len(one) for one in side.wire.calls] == [10_080, 10_080]
    LOOP.turn()
    assert b"".join(side.wire.calls) == frame(bytes(1000)) * 25
    assert len(side.wire.calls) == 3


def test_large_payloads_are_handed_over_as_they_are() -> None:
    side = Side.opened()
    for _ in range(3):
        side.send(bytes(20_000))
    LOOP.turn()
    assert side.wire.parts == [6]


def test_what_the_wire_does_not_take_waits_in_order_and_is_counted() -> None:
    side = Side.opened(quicker(flush_bytes=4096))
    side.wire.room_bytes = 6000
    payloads = [b"%04d" % i * 250 for i in range(20)]
    for one in payloads:
        assert side.send(one)
    sent = b"".join(map(frame, payloads))
    LOOP.turn()
    # Two bursts went out before the wire said stop: one to fill it, one to find out.
    assert len(side.wire.calls) == 2
    waiting = len(sent) - sum(map(len, side.wire.calls))
    assert side.transport.buffered_bytes("a") == waiting - side.wire.room_bytes
    side.wire.room_bytes = 2**60
    side.connection.resume_writing()
    assert b"".join(side.wire.calls) == sent
    assert side.transport.buffered_bytes("a") == 0


def test_what_waits_still_goes_to_the_wire_when_the_node_stops() -> None:
    side = Side.opened(quicker(flush_bytes=4096))
    side.connection.pause_writing()
    payloads = [b"%04d" % i * 250 for i in range(20)]
    for one in payloads:
        side.send(one)
    side.connection.finish()
    assert b"".join(side.wire.calls) == b"".join(map(frame, payloads))
    assert side.wire.end == "closed"
    feed(side.connection, frame(b"late"))
    assert side.listener.payloads == []


def test_a_full_buffer_ends_the_connection_and_leaves_no_hole() -> None:
    side = Side.opened(quicker(send_buffer_bytes=64 * 1024))
    side.connection.pause_writing()
    results = [side.send(bytes(10_000)) for _ in range(8)]
    assert results == [True] * 6 + [False] * 2
    assert side.wire.end == "aborted"
    assert side.wire.calls == []
    assert side.counters.overflows == 1
    assert not side.transport.is_connected("a")
    assert side.transport.buffered_bytes("a") == 0
    assert side.listener.connections == [("+", "a", 1)]  # never from within `send`
    LOOP.turn()
    assert side.listener.connections == [("+", "a", 1), ("-", "a")]


def test_a_frame_that_nothing_waits_before_always_passes() -> None:
    side = Side.opened(quicker(send_buffer_bytes=64 * 1024))
    side.connection.pause_writing()
    assert side.send(bytes(100_000))
    assert not side.send(b"more")


@pytest.mark.parametrize("size", [0, 65537])
def test_a_payload_that_no_frame_takes_is_a_mistake_of_the_caller(size: int) -> None:
    side = Side.opened(quicker(frame_bytes=65536))
    with pytest.raises(PayloadSizeError, match=f"1 to 65536 bytes, not {size}"):
        side.send(bytes(size))
    assert side.send(bytes(65536))


def test_sending_to_nobody_is_false_and_to_a_stranger_an_error() -> None:
    side = Side()
    assert not side.send(b"x")
    with pytest.raises(KeyError):
        side.transport.send("nobody", b"x")


# The end


def test_nothing_is_delivered_after_the_end() -> None:
    side = Side.opened()
    feed(side.connection, frame(b"before"))
    space = side.connection.get_buffer(-1)  # the kernel is writing when it ends
    stream = frame(b"after")
    space[: len(stream)] = stream
    side.connection.drop(Ending.SILENT)
    side.connection.buffer_updated(len(stream))
    feed(side.connection, frame(b"later"))
    assert side.listener.payloads == [b"before"]


def test_a_replaced_connection_is_told_of_before_its_successor_and_heard_no_more() -> None:
    side = Side.opened()
    old = side.connection
    connection, wire = side.connect()
    side.shake(connection, wire)
    assert side.listener.events == [("+", "a", 1), ("-", "a"), ("+", "a", 1)]
    feed(old, frame(b"late"))
    feed(connection, frame(b"new"))
    old.connection_lost(None)
    LOOP.turn()
    assert side.listener.events[3:] == [("a", b"new")]
    assert (side.counters.replaced, side.counters.lost) == (1, 0)
    assert side.transport.is_connected("a")


def test_who_is_replaced_right_after_its_end_is_told_of_once() -> None:
    side = Side.opened()
    side.connection.connection_lost(None)  # and before the loop's next turn:
    connection, wire = side.connect()
    side.shake(connection, wire)
    LOOP.turn()
    assert side.listener.events == [("+", "a", 1), ("-", "a"), ("+", "a", 1)]


@pytest.mark.parametrize("ending", Ending)
def test_every_ending_can_happen_and_comes_once(ending: Ending) -> None:
    side = Side.opened()
    side.connection.refused = Reason.SECRET if ending is Ending.REFUSED else None
    side.connection.drop(ending, "detail")
    side.connection.drop(Ending.SILENT, "again")
    side.connection.connection_lost(None)
    LOOP.turn()
    assert side.listener.connections == [("+", "a", 1), ("-", "a")]
    before = {"connections": 1, "frames_out": 0}
    counted = {
        name
        for name, value in side.counters.values().items()
        if value != before.get(name, 0) and name not in {"bytes_in", "bytes_out", "writes"}
    }
    name = {Ending.REFUSED: "refused_secret"}.get(ending, ending.value)
    assert counted == ({name} & set(side.counters.values()))


class Failing(Exception):
    pass


@pytest.mark.parametrize("method", ["on_connected", "on_payload", "on_disconnected"])
def test_a_listener_that_fails_ends_the_connection_and_nothing_else(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise Failing("a reason")

    side = Side()
    monkeypatch.setattr(side.listener, method, fail)
    shake_then = frame(b"first") + frame(b"second")
    if method == "on_connected":
        with pytest.raises(AssertionError):  # the connection is not open
            side.shake()
    else:
        side.shake()
        feed(side.connection, shake_then)
        if method == "on_disconnected":
            side.connection.drop(Ending.SILENT)
    LOOP.turn()
    assert side.counters.listener_errors == 1
    assert side.connection.is_closed
    assert side.wire.end == "aborted"
    told = {
        "on_connected": [("-", "a")],
        "on_payload": [("+", "a", 1), ("-", "a")],
        "on_disconnected": [("+", "a", 1), ("a", b"first"), ("a", b"second")],
    }
    assert side.listener.events == told[method]
    assert "Failing: a reason" in caplog.text


def test_a_payload_that_was_kept_cannot_be_read_later() -> None:
    side = Side.opened()
    kept: list[memoryview] = []
    side.listener.payload_hook = lambda _, payload: kept.append(payload)
    feed(side.connection, frame(b"mine"))
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


def test_a_patience_that_ended_before_the_connection_began() -> None:
    side = Side()
    connection = Connection(side.transport, Role.ACCEPTOR, PEER_AT, is_tls=False)
    connection.drop(Ending.TIMED_OUT)
    wire = Wire()
    connection.connection_made(wire)
    assert (wire.end, wire.calls) == ("aborted", [])


# Silence


def test_silence_is_counted_in_ticks() -> None:
    side = Side.opened()
    side.connection.tick(3, counts=True)  # what it has heard before
    side.connection.tick(3, counts=True)
    side.connection.tick(3, counts=True)
    feed(side.connection, PING)
    for _ in range(3):
        side.connection.tick(3, counts=True)
    for _ in range(50):
        side.connection.tick(3, counts=False)  # the loop stood still: nobody is to blame
    assert side.wire.end == ""
    side.connection.tick(3, counts=True)
    assert side.wire.end == "aborted"
    assert side.counters.silent == 1
    assert side.counters.pings_in == 1
    assert side.listener.payloads == []


def ticks(side: Side, *after_s: float) -> list[bool]:
    """Let the clock's ticks come this much one after the other; whether each was the end."""
    ends = []
    for one_s in after_s:
        LOOP.now_s += one_s
        side.transport._tick()  # noqa: SLF001 - a timer's callback
        ends.append(side.connection.is_closed)
    return ends


def test_the_first_tick_of_a_late_loop_judges_nobody_and_the_next_does() -> None:
    side = Side.opened(quicker(keepalive_ms=100, silence_timeout_ms=300))
    LOOP.now_s = side.transport._tick_due_s  # noqa: SLF001
    assert ticks(side, 0, 0.1, 0.15, 7, 0.1) == [False, False, False, False, True]
    assert side.counters.stalls == 1


def test_a_loop_that_is_always_late_does_not_keep_the_dead() -> None:
    side = Side.opened(quicker(keepalive_ms=100, silence_timeout_ms=300))
    assert ticks(side, 7, 7, 7, 7) == [False, False, False, True]


def test_a_ping_is_sent_when_nothing_else_was() -> None:
    side = Side.opened()
    side.connection.tick(9, counts=True)
    assert side.wire.calls == []  # the handshake was sent in this time
    side.connection.tick(9, counts=True)
    side.connection.tick(9, counts=True)
    assert side.wire.calls == [PING, PING]
    side.send(b"x")
    LOOP.turn()
    side.connection.tick(9, counts=True)
    assert side.wire.calls == [PING, PING, frame(b"x")]
    side.wire.room_bytes = -1
    side.connection.tick(9, counts=True)
    side.connection.tick(9, counts=True)
    assert len(side.wire.calls) == 3  # what does not go out needs no ping behind it


# What comes


def test_a_refusal_is_explained() -> None:
    side = Side()
    feed(side.connection, frame(msgpack.packb([Kind.HELLO, 9, 0])))
    assert side.wire.calls == [frame(encode_refusal(Reason.VERSION))]
    assert side.wire.end == "closed"
    assert side.counters.refused_version == 1
    assert side.counters.unauthenticated == 1


def test_a_dialer_that_has_proved_itself_explains_nothing() -> None:
    # Its proof has opened the other side, to whose listener an explanation would be a payload.
    side = Side(Role.DIALER)
    other = handshake(Role.ACCEPTOR, "c")
    hello = other.receive(side.wire.calls[0][HEADER_BYTES:])
    feed(side.connection, frame(hello[0]))
    side.wire.calls = []
    feed(side.connection, frame(encode_proof(bytes(32))))
    assert side.counters.refused_secret == 1
    assert side.wire.calls == []


def test_payloads_right_behind_the_handshake_have_the_wider_bound() -> None:
    side = Side(Role.DIALER)
    other = handshake(Role.ACCEPTOR, "c")
    hello = other.receive(side.wire.calls[0][HEADER_BYTES:])
    feed(side.connection, frame(hello[0]))
    proof = other.receive(side.wire.calls[1][HEADER_BYTES:])
    feed(side.connection, frame(proof[0]) + frame(b"small") + frame(bytes(50_000)))
    assert side.listener.events == [("+", "c", 1), ("c", b"small"), ("c", bytes(50_000))]


PLAIN = st.binary(max_size=200)
FRAMED = (
    st.binary(max_size=100)
    | st.lists(st.integers(0, 9) | st.binary(max_size=40) | st.text(max_size=9)).map(msgpack.packb)
    | st.sampled_from(
        [
            *handshake(Role.DIALER, "a").opening(),
            *handshake(Role.DIALER, "c").opening(),
            encode_proof(b""),
            encode_proof(bytes(32)),
            encode_refusal(Reason.SECRET),
            bytes(5000),
        ]
    )
).map(frame)
READS = st.lists(st.integers(1, 64), max_size=30)


@given(st.lists(PLAIN | FRAMED, max_size=6), READS, st.sampled_from(Role))
def test_a_stranger_that_sends_anything_reaches_nobody(
    pieces: list[bytes], reads: list[int], role: Role
) -> None:
    side = Side(role)
    feed(side.connection, b"".join(pieces), reads)
    side.connection.connection_lost(ConnectionResetError("by peer"))
    LOOP.turn()
    assert side.listener.events == []
    assert side.counters.unauthenticated == 1
    assert side.counters.connections == side.counters.frames_in == 0


def expected(stream: bytes, limit_bytes: int) -> tuple[list[bytes], str]:
    """What a slow and simple reader finds in a stream, and how it ends."""
    payloads: list[bytes] = []
    while len(stream) >= HEADER_BYTES:
        size = int.from_bytes(stream[:4], "big")
        if size > limit_bytes:
            return payloads, "oversized"
        if len(stream) < HEADER_BYTES + size:
            break
        payload = stream[HEADER_BYTES : HEADER_BYTES + size]
        if frame(payload) != stream[: HEADER_BYTES + size]:
            return payloads, "malformed"
        if payload:
            payloads.append(payload)
        stream = stream[HEADER_BYTES + size :]
    return payloads, ""


@given(
    st.lists(PLAIN | FRAMED | st.just(PING) | st.binary(max_size=9000).map(frame), max_size=6),
    READS,
)
def test_a_peer_that_sends_anything_is_understood_up_to_where_it_makes_no_sense(
    pieces: list[bytes], reads: list[int]
) -> None:
    side = Side.opened(quicker(frame_bytes=65536, read_buffer_bytes=4096))
    stream = b"".join(pieces)
    feed(side.connection, stream, reads)
    payloads, end = expected(stream, 65536)
    assert side.listener.payloads == payloads
    assert (side.counters.malformed, side.counters.oversized) == (
        int(end == "malformed"),
        int(end == "oversized"),
    )
    assert side.connection.is_closed == bool(end)
