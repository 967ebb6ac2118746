"""Nodes that talk over real sockets on loopback."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.network.errors import (
    BindError,
    MalformedPayloadError,
    Reason,
    RefusedByPeer,
    TlsFilesError,
)
from cluster.network.frames import HEADER_BYTES, PING, frame
from cluster.network.handshake import Kind, Role, encode_proof
from cluster.network.settings import Address, Security, TlsFiles
from tests.cluster.network.nodes import (
    LOOPBACK,
    NOWHERE,
    SECRET,
    SECURITY,
    SETTINGS,
    Node,
    Stranger,
    handshake,
    pair,
    quicker,
    until,
)

# Delivery


async def test_payloads_arrive_in_order_in_both_directions_at_once() -> None:
    sizes = [1, 200, 20_000, 300_000, 7, 5_000_000, 1, 65_528, 262_136, 262_137] * 3
    sent = [bytes([i]) * size for i, size in enumerate(sizes)]
    async with pair() as (a, b):
        for payload in sent:
            assert a.transport.send("b", payload)
            assert b.transport.send("a", payload)
            await asyncio.sleep(0)
        await a.has(len(sent))
        await b.has(len(sent))
        assert a.listener.payloads == sent
        assert b.listener.payloads == sent
        assert a.listener.connections == [("+", "b", 1)]
        assert b.counters["frames_in"] == b.counters["frames_out"] == len(sent)


async def test_many_small_payloads_arrive_in_order() -> None:
    async with pair() as (a, b):
        for i in range(50_000):
            assert a.transport.send("b", b"%d" % i)
            if i % 1000 == 0:
                await asyncio.sleep(0)
        await b.has(50_000)
        assert b.listener.payloads == [b"%d" % i for i in range(50_000)]


async def test_a_burst_is_one_write() -> None:
    async with pair() as (a, b):
        before = a.counters["writes"]
        for i in range(500):
            a.transport.send("b", b"%d" % i)
        await b.has(500)
        assert a.counters["writes"] == before + 1


async def test_an_answer_is_sent_from_within_the_listener() -> None:
    async with pair() as (a, b):
        b.listener.payload_hook = lambda peer, one: _discard(b.transport.send(peer, bytes(one)))
        a.transport.send("b", b"echo")
        await a.listener.until(lambda: a.listener.payloads == [b"echo"])


def _discard(_: object) -> None:
    pass


async def test_the_largest_frame_passes_and_one_byte_more_ends_the_connection() -> None:
    async with (
        Node("b", {"a": NOWHERE}, settings=quicker(frame_bytes=100_000)) as b,
        Node("a", {"b": b.address}) as a,
    ):
        await a.has_met("b")
        a.transport.send("b", bytes(100_000))
        a.transport.send("b", bytes(100_001))
        a.transport.send("b", b"behind it")
        await b.listener.until(lambda: ("-", "a") in b.listener.events)
        assert b.listener.payloads == [bytes(100_000)]
        assert b.counters["oversized"] == 1


async def test_three_nodes_have_one_connection_for_each_pair() -> None:
    async with contextlib.AsyncExitStack() as stack:
        nodes: dict[str, Node] = {}
        for node_id in ["c", "b", "a"]:  # those that are dialed first
            peers = {other: NOWHERE for other in "abc" if other < node_id}
            peers |= {other: node.address for other, node in nodes.items()}
            nodes[node_id] = await stack.enter_async_context(Node(node_id, peers))
        for node_id, node in nodes.items():
            others = set(nodes) - {node_id}
            await node.has_met(*others)
            for other in others:
                node.transport.send(other, f"{node_id} to {other}".encode())
        for node_id, node in nodes.items():
            await node.has(2)
            told = {f"{other} to {node_id}".encode() for other in nodes if other != node_id}
            assert set(node.listener.payloads) == told
            assert node.counters["connections"] == 2
        accepted = {node_id: node.counters["accepted"] for node_id, node in nodes.items()}
        assert accepted == {"a": 0, "b": 1, "c": 2}


# Loss


async def test_a_peer_that_comes_back_is_found_again() -> None:
    async with Node("b", {"a": NOWHERE}) as b:
        address = b.address
        async with Node("a", {"b": address}) as a:
            await a.has_met("b")
            await b.transport.stop()
            await a.listener.until(lambda: not a.transport.is_connected("b"))
            assert not a.transport.send("b", b"lost")
            await a.has_counted(3, "dial_failures")
            async with Node("b", {"a": NOWHERE}, bind=address, incarnation=2) as later:
                await a.has_met("b")
                assert a.transport.send("b", b"found")
                await later.listener.until(lambda: later.listener.payloads == [b"found"])
                assert a.listener.events == [("+", "b", 1), ("-", "b"), ("+", "b", 2)]


async def test_what_was_sent_before_a_stop_still_leaves() -> None:
    payload = bytes(10_000_000)  # more than the sockets hold
    slow = quicker(close_timeout_ms=30_000, silence_timeout_ms=30_000)  # a busy machine may be
    async with pair(slow) as (a, b):
        assert a.transport.send("b", payload)
        assert a.transport.send("b", b"goodbye")
        await a.transport.stop()
        assert a.listener.events == [("+", "b", 1), ("-", "b")]
        await b.listener.until(lambda: ("-", "a") in b.listener.events)
        assert b.listener.payloads == [payload, b"goodbye"]


async def test_a_stop_does_not_wait_for_who_does_not_read() -> None:
    async with (
        Node("b", {"a": NOWHERE}, settings=quicker(close_timeout_ms=50)) as b,
        Stranger.dial(b.address) as stranger,
    ):
        await stranger.shake(handshake(Role.DIALER, "a"))
        await b.has_met("a")
        for _ in range(30):
            b.transport.send("a", bytes(1_000_000))
        began_s = time.monotonic()
        await b.transport.stop()
        assert time.monotonic() - began_s < 1
        assert b.listener.events == [("+", "a", 1), ("-", "a")]


async def test_after_a_stop_there_is_nothing() -> None:
    async with pair() as (a, b):
        await a.transport.stop()
        await a.transport.stop()
        assert not a.transport.send("b", b"x")
        assert not a.transport.is_connected("b")
        with pytest.raises(RuntimeError, match="started once"):
            await a.transport.start()
        await b.transport.stop()
        with pytest.raises(OSError):  # noqa: PT011 - nobody listens, however that is said
            await asyncio.open_connection(*b.address)
        events = (list(a.listener.events), list(b.listener.events))
        await asyncio.sleep(0.05)
        assert (a.listener.events, b.listener.events) == events


async def test_a_newer_connection_replaces_the_older_one() -> None:
    async with (
        Node("b", {"a": NOWHERE}) as b,
        Stranger.dial(b.address) as first,
        Stranger.dial(b.address) as second,
    ):
        await first.shake(handshake(Role.DIALER, "a"))
        first.say(b"early")
        await b.listener.until(lambda: b.listener.payloads == [b"early"])
        await second.shake(handshake(Role.DIALER, "a"))
        first.say(b"late")
        second.say(b"new")
        await b.listener.until(lambda: b"new" in b.listener.payloads)
        assert await first.is_hung_up()
        assert b.listener.events == [
            ("+", "a", 1),
            ("a", b"early"),
            ("-", "a"),
            ("+", "a", 1),
            ("a", b"new"),
        ]
        assert b.counters["replaced"] == 1
        assert b.transport.send("a", b"to the second")
        assert await second.hear() == b"to the second"


async def test_an_earlier_incarnation_is_refused_and_a_later_one_replaces() -> None:
    async with (
        Node("b", {"a": NOWHERE}) as b,
        Stranger.dial(b.address) as first,
        Stranger.dial(b.address) as stale,
        Stranger.dial(b.address) as later,
    ):
        await first.shake(handshake(Role.DIALER, "a", incarnation=5))
        with pytest.raises(RefusedByPeer, match="the peer refuses: incarnation") as caught:
            await stale.shake(handshake(Role.DIALER, "a", incarnation=4))
        assert caught.value.seen_incarnation == 5
        assert await stale.is_hung_up()
        assert b.transport.is_connected("a")
        await later.shake(handshake(Role.DIALER, "a", incarnation=6))
        await b.listener.until(lambda: len(b.listener.events) == 3)
        assert b.listener.events == [("+", "a", 5), ("-", "a"), ("+", "a", 6)]
        assert b.counters["refused_incarnation"] == 1
        assert b.counters["replaced"] == 1


async def test_a_dialer_too_refuses_an_earlier_incarnation() -> None:
    async with Node("b", {"a": NOWHERE}, incarnation=7) as b:
        address = b.address
        async with Node("a", {"b": address}) as a:
            await a.has_met("b")
            await b.transport.stop()
            async with Node("b", {"a": NOWHERE}, bind=address, incarnation=6) as earlier:
                await a.has_counted(2, "refused_incarnation")
                assert a.listener.events == [("+", "b", 7), ("-", "b")]
                # It is told so, instead of seeing a peer that comes and goes.
                await earlier.has_counted(2, "refused_by_peer")
                assert earlier.listener.events == []


@pytest.mark.parametrize("dials", [True, False], ids=["dials", "is dialed"])
async def test_a_node_that_is_locked_out_says_why_and_what_to_do(
    dials: bool, caplog: pytest.LogCaptureFixture
) -> None:
    name, other = ("a", "b") if dials else ("b", "a")
    seen, back = 1_700_000_000_000, 1_600_000_000_000  # the disk was lost, and the clock is behind
    async with contextlib.AsyncExitStack() as stack:
        ends: dict[str, Node] = {}
        for node_id in ("b", "a"):
            peers = {"a": NOWHERE} if node_id == "b" else {"b": ends["b"].address}
            node = Node(node_id, peers, incarnation=seen if node_id == name else 1)
            ends[node_id] = await stack.enter_async_context(node)
        await ends[other].has_met(name)
        await ends[name].transport.stop()
        address = ends[name].address
        peers = {other: ends[other].address if dials else NOWHERE}
        async with Node(name, peers, bind=address, incarnation=back) as node:
            await node.has_counted(1, "refused_by_peer")
            assert node.listener.events == []
    lines = [one.getMessage() for one in caplog.records]
    text = next(line for line in lines if "refused_by_peer" in line)
    assert f"incarnation: it has seen this node in incarnation {seen}, this one is {back}" in text
    assert "correct the clock" in text
    assert f"until it has passed {seen} ms since 1970" in text


async def test_a_silent_peer_is_dropped_and_a_living_one_is_not() -> None:
    quick = quicker(keepalive_ms=20, silence_timeout_ms=100)
    async with pair(quick) as (a, b), Node("c", {"a": NOWHERE}, settings=quick) as c:
        async with Stranger.dial(c.address) as stranger:
            await stranger.shake(handshake(Role.DIALER, "a"))
            began_s = time.monotonic()
            await c.listener.until(lambda: ("-", "a") in c.listener.events)
            assert 0.08 <= time.monotonic() - began_s < 2
            assert c.counters["silent"] == 1
        await asyncio.sleep(0.3)
        for node in (a, b):
            assert node.counters["silent"] == 0
            assert node.counters["pings_in"] > 3
            assert len(node.listener.events) == 1


async def test_a_loop_that_stood_still_blames_nobody() -> None:
    async with pair(quicker(keepalive_ms=50, silence_timeout_ms=150)) as (a, b):
        for _ in range(3):
            await asyncio.sleep(0.12)
            time.sleep(0.5)  # noqa: ASYNC251 - this is the point
        await asyncio.sleep(0.1)
        for node in (a, b):
            assert node.counters["silent"] == 0
            assert node.counters["stalls"] >= 1
            assert len(node.listener.events) == 1


async def test_who_does_not_read_costs_no_more_than_the_bound() -> None:
    settings = quicker(send_buffer_bytes=4 * 1024 * 1024)
    async with (
        Node("b", {"a": NOWHERE}, settings=settings) as b,
        Stranger.dial(b.address) as stranger,
    ):
        await stranger.shake(handshake(Role.DIALER, "a"))
        await b.has_met("a")
        stranger.reader._transport.pause_reading()  # type: ignore[attr-defined]  # noqa: SLF001
        sent = 0
        largest = 0
        while b.transport.send("a", bytes(100_000)):
            sent += 1
            largest = max(largest, b.transport.buffered_bytes("a"))
            await asyncio.sleep(0)
            assert sent < 1000
        # Above it is what the loop's transport has taken already.
        assert 3_000_000 < largest < 6 * 1024 * 1024
        assert b.counters["overflows"] == 1
        assert not b.transport.is_connected("a")
        await b.listener.until(lambda: ("-", "a") in b.listener.events)


@pytest.mark.parametrize("makes_sense", [False, True], ids=["nonsense", "sense"])
async def test_a_peer_that_talks_nonsense_is_told_from_a_listener_that_fails(
    makes_sense: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_peer: str, _payload: memoryview) -> None:
        if makes_sense:
            raise ValueError("a defect")
        raise MalformedPayloadError("it is no message")

    async with (
        Node("b", {"a": NOWHERE}) as b,
        Stranger.dial(b.address) as stranger,
    ):
        b.listener.payload_hook = refuse
        await stranger.shake(handshake(Role.DIALER, "a"))
        stranger.say(b"one", b"two")
        assert await stranger.is_hung_up()
        await b.listener.until(lambda: ("-", "a") in b.listener.events)
        assert b.listener.payloads == [b"one"]
        counted = (b.counters["malformed"], b.counters["listener_errors"])
        assert counted == ((0, 1) if makes_sense else (1, 0))
        assert b.counters["unauthenticated"] == 0
    assert any(one.exc_info for one in caplog.records) is makes_sense
    assert ("malformed: it is no message" in caplog.text) is not makes_sense


# Strangers


async def refused(node: Node, stranger: Stranger, reason: str) -> None:
    """What ends every stranger: hung up on, counted, and never heard by the listener."""
    assert await stranger.is_hung_up()
    await node.has_counted(1, "unauthenticated")
    counted = {k for k, v in node.counters.items() if v and k.startswith("refused")}
    assert counted == ({reason} if reason.startswith("refused") else set())
    assert node.counters[reason] == 1
    assert node.listener.events == []
    assert node.counters["connections"] == 0


@dataclass(frozen=True)
class Case:
    reason: Reason
    node_id: str = "b"
    secret: bytes | None = SECRET
    cluster_id: str = "orchestra"


@pytest.mark.parametrize(
    "case",
    [
        Case(Reason.SECRET, secret=b"some other secret"),
        Case(Reason.SECRET, secret=None),
        Case(Reason.CLUSTER, cluster_id="band"),
        Case(Reason.ITSELF, node_id="c"),
        Case(Reason.UNKNOWN_NODE, node_id="stranger"),
        Case(Reason.DIRECTION, node_id="d"),
    ],
    ids=["other secret", "no secret", "cluster", "itself", "unknown", "direction"],
)
async def test_who_is_no_peer_is_refused(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    peers = {"b": NOWHERE, "d": Address(LOOPBACK, 1)}
    async with (
        Node("c", peers, settings=quicker(backoff_min_ms=10_000, backoff_max_ms=10_000)) as c,
        Stranger.dial(c.address) as stranger,
    ):
        shake = handshake(Role.DIALER, case.node_id, secret=case.secret, cluster_id=case.cluster_id)
        with pytest.raises(Exception, match=f"the peer refuses: {case.reason}"):
            await stranger.shake(shake)
        await refused(c, stranger, f"refused_{case.reason}")
    assert f"refused_{case.reason}: " in caplog.text
    assert SECRET.decode() not in caplog.text


async def test_another_version_is_refused_and_both_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node("b", {"a": NOWHERE}) as b, Stranger.dial(b.address) as stranger:
        stranger.say(msgpack.packb([Kind.HELLO, 3, 4, "orchestra", "a"]))
        await refused(b, stranger, "refused_version")
    assert "it speaks protocol 3.4, this node 1.0" in caplog.text


async def test_a_dialer_refuses_who_answers_as_somebody_else() -> None:
    async with Node("c", {"a": NOWHERE}) as c, Node("a", {"b": c.address, "c": NOWHERE}) as a:
        await a.has_counted(1, "refused_unknown_node")
        assert a.listener.events == []
        assert c.listener.events == []


async def test_both_sides_of_a_refusal_know_it() -> None:
    other = Security(secret=b"some other secret")
    async with (
        Node("b", {"a": NOWHERE}) as b,
        Node("a", {"b": b.address}, security=other) as a,
    ):
        await a.has_counted(2, "refused_by_peer")
        assert b.counters["refused_secret"] >= 2
        assert a.listener.events == b.listener.events == []


async def test_a_recorded_handshake_is_refused() -> None:
    async with Node("b", {"a": NOWHERE}) as b, Stranger.dial(b.address) as honest:
        shake = handshake(Role.DIALER, "a")
        (hello,) = shake.opening()
        honest.say(hello)
        (proof,) = shake.receive(await honest.hear())
        honest.say(proof)
        await b.has_met("a")
        async with Stranger.dial(b.address) as thief:
            thief.say(hello, proof, b"stolen")
            assert await thief.is_hung_up()
        assert b.counters["refused_secret"] == 1
        assert b.listener.events == [("+", "a", 1)]


async def test_a_reflected_handshake_is_refused() -> None:
    # The attacker has no secret, and lets the node answer itself: what it says is sent back to it,
    # or to another connection with it.
    async with (
        Node("b", {"a": NOWHERE}) as b,
        Stranger.dial(b.address) as one,
        Stranger.dial(b.address) as other,
    ):
        pretended = handshake(Role.DIALER, "a", secret=None)
        one.say(*pretended.opening())
        hello = await one.hear()
        one.say(hello)
        other.say(hello)
        assert await one.is_hung_up()
        assert await other.is_hung_up()
        assert b.counters["refused_malformed"] == 1
        assert b.counters["refused_itself"] == 1
        assert b.listener.events == []


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", "oversized"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "oversized"),
        (frame(b"hello")[:-1] + b"!", "malformed"),
        (frame(b"hello"), "refused_malformed"),
        (PING, "refused_malformed"),
        (frame(encode_proof(bytes(32))), "refused_malformed"),
        (frame(bytes(4097)), "oversized"),
        (frame(b"\x91" * 4096), "refused_malformed"),
    ],
    ids=["http", "tls", "damaged", "text", "ping", "proof", "oversized", "nested"],
)
async def test_garbage_ends_the_connection(said: bytes, reason: str) -> None:
    async with Node("b", {"a": NOWHERE}) as b, Stranger.dial(b.address) as stranger:
        stranger.writer.write(said)
        await refused(b, stranger, reason)


async def test_who_says_too_little_for_too_long_is_hung_up_on() -> None:
    async with (
        Node("b", {"a": NOWHERE}, settings=quicker(handshake_timeout_ms=100)) as b,
        Stranger.dial(b.address) as stranger,
    ):

        async def trickle() -> None:
            with contextlib.suppress(OSError):
                for byte in frame(handshake(Role.DIALER, "a").opening()[0]):
                    stranger.writer.write(bytes([byte]))
                    await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            trickling = group.create_task(trickle())
            await refused(b, stranger, "timed_out")
            trickling.cancel()


async def test_strangers_do_not_keep_nodes_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with contextlib.AsyncExitStack() as stack:
        b = await stack.enter_async_context(
            Node("b", {"a": NOWHERE}, settings=quicker(unauthenticated_connections=4))
        )
        strangers = [await stack.enter_async_context(Stranger.dial(b.address)) for _ in range(20)]
        await b.has_counted(20, "accepted")
        assert b.counters["crowded_out"] == 16
        hung_up = [asyncio.create_task(one.is_hung_up()) for one in strangers]
        await until(lambda: sum(one.done() for one in hung_up) == 16)
        for one in hung_up:
            one.cancel()
        a = await stack.enter_async_context(Node("a", {"b": b.address}))
        await a.has_met("b")
        assert b.counters["crowded_out"] == 17
        # Whoever is in is no stranger any more.
        for _ in range(20):
            await stack.enter_async_context(Stranger.dial(b.address))
        await b.has_counted(41, "accepted")
        assert a.transport.is_connected("b")
        assert len(b.listener.events) == 1


async def test_who_comes_often_crowds_out_itself() -> None:
    async with (
        Node("b", {"a": NOWHERE}, settings=quicker(unauthenticated_connections=4)) as b,
        Stranger.dial(b.address) as honest,
        contextlib.AsyncExitStack() as stack,
    ):
        shake = handshake(Role.DIALER, "a")
        honest.say(*shake.opening())
        (proof,) = shake.receive(await honest.hear())
        for _ in range(40):  # within its round trip
            await stack.enter_async_context(Stranger.dial(b.address, host="127.0.0.2"))
        await b.has_counted(41, "accepted")
        honest.say(proof)
        await b.has_met("a")
        assert b.counters["crowded_out"] == 37


async def test_who_is_crowded_out_is_left_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def choice(ones: list[Any]) -> Any:
        asked.append(len(ones))
        return ones[-1]

    monkeypatch.setattr("cluster.network.transport.random.choice", choice)
    async with (
        Node("b", {"a": NOWHERE}, settings=quicker(unauthenticated_connections=4)) as b,
        Stranger.dial(b.address) as honest,
        contextlib.AsyncExitStack() as stack,
    ):
        for count in range(2, 12):
            await stack.enter_async_context(Stranger.dial(b.address))
            await b.has_counted(count, "accepted")
        await honest.shake(handshake(Role.DIALER, "a"))
        await b.has_met("a")
    assert asked == [4] * 7


async def test_who_is_crowded_out_before_it_began_is_forgotten() -> None:
    async with Node("b", {"a": NOWHERE}, settings=quicker(unauthenticated_connections=1)) as b:
        # Two in one turn of the loop, as from two sockets.
        with socket.create_connection(b.address), socket.create_connection(b.address):
            for _ in range(2):
                b.transport._accept(b.transport._sockets[0])  # noqa: SLF001 - as the loop would
            await b.has_counted(1, "crowded_out")
            await asyncio.sleep(0.05)
            assert len(b.transport._connections) == 1  # noqa: SLF001


async def test_who_has_just_proved_who_it_is_is_not_crowded_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        Node("b", {"a": NOWHERE}, settings=quicker(unauthenticated_connections=1)) as b,
        Stranger.dial(b.address) as honest,
        contextlib.AsyncExitStack() as stack,
    ):
        connected = b.listener.on_connected

        def crowd(peer: str, incarnation: int) -> None:
            connected(peer, incarnation)
            stack.enter_context(socket.create_connection(b.address))
            b.transport._accept(b.transport._sockets[0])  # noqa: SLF001 - as the loop would

        monkeypatch.setattr(b.listener, "on_connected", crowd)
        await honest.shake(handshake(Role.DIALER, "a"))
        await b.has_counted(2, "accepted")
        assert b.transport.is_connected("a")
        assert b.counters["crowded_out"] == 0


async def test_lines_of_the_log_are_few(caplog: pytest.LogCaptureFixture) -> None:
    async with Node("b", {"a": NOWHERE}, settings=quicker(log_interval_ms=60_000)) as b:
        for i in range(1, 21):
            async with Stranger.dial(b.address) as stranger:
                stranger.writer.write(b"payload that is not to be seen" * 9)
                await b.has_counted(i, "oversized")
    lines = [record for record in caplog.records if "oversized" in record.getMessage()]
    assert len(lines) == 1
    assert "payload" not in caplog.text


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["stranger", "hello", "peer"]),
    st.lists(st.binary(max_size=5000) | st.binary(max_size=300).map(frame), max_size=4),
)
async def test_arbitrary_bytes_at_any_stage_harm_nobody(stage: str, pieces: list[bytes]) -> None:
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: failures.append(what))
    async with Node("b", {"a": NOWHERE}) as b:
        async with Stranger.dial(b.address) as stranger:
            shake = handshake(Role.DIALER, "a")
            if stage == "hello":
                stranger.say(*shake.opening())
                await stranger.hear()
            elif stage == "peer":
                await stranger.shake(shake)
            stranger.writer.write(b"".join(pieces))
            stranger.writer.write_eof()
            assert await stranger.is_hung_up()
        if stage == "peer":
            await b.listener.until(lambda: ("-", "a") in b.listener.events)
            assert b.listener.connections == [("+", "a", 1), ("-", "a")]
        else:
            await b.has_counted(1, "unauthenticated")
            assert b.listener.events == []
        # And it serves on.
        async with Stranger.dial(b.address) as honest:
            await honest.shake(handshake(Role.DIALER, "a", incarnation=2))
            await b.has_met("a")
    assert failures == []
    assert b.counters["internal_errors"] == b.counters["listener_errors"] == 0


def descriptors() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/fd").iterdir()]


async def test_a_node_without_descriptors_accepts_again_when_it_has_some() -> None:
    async with Node("b", {"a": NOWHERE}) as b:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as one:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(descriptors()), limits[1]))
            taken: list[int] = []
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(one.fileno()))
            try:
                one.connect(b.address)
                await b.has_counted(2, "accept_failures")
                assert b.counters["accept_failures"] < 5  # it does not spin
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                for descriptor in taken:
                    os.close(descriptor)
            await b.has_counted(1, "accepted")


# Addresses


async def test_an_address_that_is_taken_is_told() -> None:
    async with Node("b", {}) as b:
        with pytest.raises(BindError, match=f"127.0.0.1' port {b.address.port}") as caught:
            await Node("b", {}, bind=b.address).transport.start()
        assert caught.value.errno == errno.EADDRINUSE


async def test_a_name_that_is_none_is_told() -> None:
    for host in ["no.such.host.invalid", "x" * 70 + ".invalid"]:
        with pytest.raises(BindError, match="cannot listen at"):
            await Node("b", {}, bind=Address(host, 0)).transport.start()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_all_addresses_of_a_name_are_listened_at() -> None:
    async with Node("b", {"a": NOWHERE}, bind=Address("", 0)) as b:
        hosts = ["127.0.0.1"] + ["::1"] * has_ipv6()
        assert len(b.transport.addresses) == len(hosts)
        for host in hosts:
            async with Stranger.dial(Address(host, b.address.port)) as stranger:
                await stranger.shake(handshake(Role.DIALER, "a"))
        assert b.counters["connections"] == len(hosts)


def names(monkeypatch: pytest.MonkeyPatch, found: dict[str, list[Address]]) -> Counter[str]:
    """Let the loop resolve names as told; count how often it was asked."""
    asked: Counter[str] = Counter()
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        asked[host] += 1
        await asyncio.sleep(0)
        addresses = found.get(host, [Address(host, port)])
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (
                socket.AF_INET6 if ":" in one.host else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (*one, 0, 0) if ":" in one.host else tuple(one),
            )
            for one in addresses
        ]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_is_resolved_again_at_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Node("b", {"a": NOWHERE}) as old, Node("b", {"a": NOWHERE}, incarnation=2) as new:
        found: dict[str, list[Address]] = {"node-b": []}
        asked = names(monkeypatch, found)
        async with Node("a", {"b": Address("node-b", 1)}) as a:
            await until(lambda: asked["node-b"] >= 2)
            found["node-b"] = [old.address]
            await a.has_met("b")
            found["node-b"] = [new.address]
            await old.transport.stop()
            await a.listener.until(lambda: len(a.listener.events) == 3)
            assert a.listener.events == [("+", "b", 1), ("-", "b"), ("+", "b", 2)]


async def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind((LOOPBACK, 0))
        dead = Address(*closed.getsockname())
        async with (
            Node("c", {"a": NOWHERE}) as wrong,
            Node("b", {"a": NOWHERE}) as b,
        ):
            asked = names(
                monkeypatch,
                {"node-b": [Address("::1", dead.port), dead, wrong.address, b.address]},
            )
            async with Node("a", {"b": Address("node-b", 1), "c": NOWHERE}) as a:
                await a.has_met("b")
                assert asked["node-b"] == 1
                assert a.counters["refused_unknown_node"] == 1


async def test_a_resolver_that_hangs_is_asked_once_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0
    async with Node("b", {"a": NOWHERE}) as b:
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        async def getaddrinfo(*_: object, **__: object) -> list[Any]:
            nonlocal asked
            asked += 1
            return await asyncio.shield(answer)

        async with Node("a", {"b": Address("n", 1)}, settings=quicker(connect_timeout_ms=20)) as a:
            # Before the first task of the transport has run.
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
            await a.has_counted(3, "dial_failures")
            assert asked == 1
            answer.set_result(
                [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", tuple(b.address))]
            )
            await a.has_met("b")


async def test_waits_grow_at_random_up_to_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return 1

    monkeypatch.setattr("cluster.network.transport.random.uniform", uniform)
    settings = quicker(backoff_min_ms=50, backoff_max_ms=2000, steady_after_ms=100)
    async with (
        Node("b", {"a": NOWHERE}, security=Security(secret=b"x" * 16)) as b,
        # A connection that is accepted and then fails is a failure, too.
        Node("a", {"b": b.address}, settings=settings) as a,
    ):
        await until(lambda: len(bounds) >= 8)
    assert bounds[:8] == [50, 100, 200, 400, 800, 1600, 2000, 2000]
    bounds.clear()
    async with (
        Node("b", {"a": NOWHERE}) as b,
        Node("a", {"b": b.address}, settings=settings) as a,
    ):
        for lived_s in [0.0, 0.0, 0.15]:
            await a.has_met("b")
            await b.has_met("a")
            await asyncio.sleep(lived_s)
            async with Stranger.dial(b.address) as stranger:  # replaces it
                await stranger.shake(handshake(Role.DIALER, "a"))
                await a.listener.until(lambda: not a.transport.is_connected("b"))
        await until(lambda: len(bounds) >= 3)
    assert bounds[:3] == [50, 100, 50]


# TLS


class Authority:
    """Issues certificates, and writes them where a node looks for them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()

    def files(self, name: str, *names: str, ca: trustme.CA | None = None) -> TlsFiles:
        issued = (ca or self.ca).issue_cert(*(names or [name]))
        base = self.directory / name
        files = TlsFiles(
            base.with_suffix(".pem"), base.with_suffix(".key"), base.with_suffix(".ca")
        )
        for path, data in [
            (files.certificate, b"".join(one.bytes() for one in issued.cert_chain_pems)),
            (files.key, issued.private_key_pem.bytes()),
            (files.authority, self.ca.cert_pem.bytes()),
        ]:
            new = path.with_suffix(path.suffix + ".new")
            new.write_bytes(data)
            new.replace(path)
        return files

    def security(
        self,
        name: str,
        *names: str,
        ca: trustme.CA | None = None,
        secret: bytes | None = None,
    ) -> Security:
        return Security(tls=self.files(name, *names, ca=ca), secret=secret)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.mark.parametrize("secret", [None, SECRET], ids=["alone", "with a secret"])
async def test_nodes_talk_over_tls(authority: Authority, secret: bytes | None) -> None:
    async with (
        Node("b", {"a": NOWHERE}, security=authority.security("b", secret=secret)) as b,
        Node("a", {"b": b.address}, security=authority.security("a", secret=secret)) as a,
    ):
        await a.has_met("b")
        sent = [b"small", bytes(20_000), bytes(3_000_000), b"last"] * 3
        for payload in sent:
            assert a.transport.send("b", payload)
        await b.has(len(sent))
        assert b.listener.payloads == sent
        for payload in sent:
            assert b.transport.send("a", payload)
        await a.has(len(sent))
        assert a.listener.payloads == sent
        await a.transport.stop()
        await b.listener.until(lambda: ("-", "a") in b.listener.events)


async def test_a_certificate_for_the_address_will_do(authority: Authority) -> None:
    async with (
        Node("b", {"a": NOWHERE}, security=authority.security("b", LOOPBACK)) as b,
        Node("a", {"b": b.address}, security=authority.security("a", LOOPBACK)) as a,
    ):
        await a.has_met("b")


async def test_a_certificate_of_another_node_is_refused_by_either_side(
    authority: Authority,
) -> None:
    good, bad = authority.security("b"), authority.security("a", "c", "b")
    async with (
        Node("b", {"a": NOWHERE, "c": NOWHERE}, security=good) as b,
        Node("a", {"b": b.address}, security=bad) as a,
    ):
        await b.has_counted(1, "refused_certificate")
        assert a.listener.events == b.listener.events == []
    good, bad = authority.security("a"), authority.security("b", "c", "a")
    async with (
        Node("b", {"a": NOWHERE}, security=bad) as b,
        Node("a", {"b": b.address}, security=good) as a,
    ):
        await a.has_counted(1, "refused_certificate")
        assert a.listener.events == b.listener.events == []


async def test_a_certificate_of_another_authority_is_refused_by_either_side(
    authority: Authority,
) -> None:
    stranger = trustme.CA()
    for other in ("a", "b"):
        issuers = {other: stranger}
        async with (
            Node("b", {"a": NOWHERE}, security=authority.security("b", ca=issuers.get("b"))) as b,
            Node("a", {"b": b.address}, security=authority.security("a", ca=issuers.get("a"))) as a,
        ):
            judge = b if other == "a" else a
            await judge.has_counted(1, "tls_failures")
            assert a.listener.events == b.listener.events == []


async def test_tls_and_no_tls_do_not_meet(authority: Authority) -> None:
    async with (
        Node("b", {"a": NOWHERE}, security=authority.security("b", secret=SECRET)) as b,
        Node("a", {"b": b.address}, security=SECURITY) as a,
    ):
        await b.has_counted(1, "tls_failures")
        assert a.listener.events == b.listener.events == []
    async with (
        Node("b", {"a": NOWHERE}, security=SECURITY) as b,
        Node("a", {"b": b.address}, security=authority.security("a", secret=SECRET)) as a,
    ):
        await until(lambda: b.counters["oversized"] >= 1 and a.counters["tls_failures"] >= 1)
        assert a.listener.events == b.listener.events == []


async def test_who_never_begins_tls_is_hung_up_on(authority: Authority) -> None:
    quick = quicker(handshake_timeout_ms=100)
    async with Node("b", {"a": NOWHERE}, security=authority.security("b"), settings=quick) as b:
        async with Stranger.dial(b.address) as stranger:
            assert await stranger.is_hung_up()
        assert b.counters["timed_out"] == b.counters["unauthenticated"] == 1


async def test_changed_files_serve_the_next_connection(authority: Authority) -> None:
    a_security, b_security = authority.security("a"), authority.security("b")
    async with (
        Node("b", {"a": NOWHERE}, security=b_security) as b,
        Node("a", {"b": b.address}, security=a_security) as a,
    ):
        await a.has_met("b")
        # The cluster moves to another authority, whose first certificates are not good.
        authority.ca = trustme.CA()
        authority.files("a", "x")
        authority.files("b")
        await asyncio.sleep(0.05)
        assert a.transport.is_connected("b")  # what exists is left alone
        connection = b.transport._links["a"].connection  # noqa: SLF001 - the network's part
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
        await b.has_counted(1, "refused_certificate")
        assert not a.transport.is_connected("b")
        authority.files("a")
        await a.has_met("b")
        assert a.counters["tls_reloads"] >= 2
        assert b.counters["tls_reloads"] >= 1


async def test_files_are_looked_at_now_and_then(authority: Authority) -> None:
    settings = quicker(tls_check_ms=20)
    async with Node("b", {}, security=authority.security("b"), settings=settings) as b:
        authority.files("b")
        await b.has_counted(1, "tls_reloads")
        (authority.directory / "b.key").write_text("nonsense")
        await b.has_counted(1, "tls_reload_failures")
        authority.files("b")
        await b.has_counted(2, "tls_reloads")


async def test_a_node_does_not_start_with_files_that_are_no_good(authority: Authority) -> None:
    security = authority.security("b")
    (authority.directory / "b.pem").unlink()
    node = Node("b", {}, security=security)
    with pytest.raises(TlsFilesError, match=r"b\.pem"):
        await node.transport.start()
    await node.transport.stop()


# Resources


async def test_nothing_is_left_open(authority: Authority) -> None:
    async def life(security: tuple[Security, Security]) -> None:
        async with (
            Node("b", {"a": NOWHERE}, security=security[1]) as b,
            Node("a", {"b": b.address}, security=security[0]) as a,
        ):
            await a.has_met("b")
            async with Stranger.dial(b.address):
                await b.has_counted(2, "accepted")
                began_s = time.monotonic()
                await b.transport.stop()
                assert time.monotonic() - began_s < 0.4  # nothing had to be waited for
            await a.has_counted(1, "dial_failures")

    tls = (authority.security("a"), authority.security("b"))
    for security in [(SECURITY, SECURITY), tls]:
        await life(security)  # whatever is made once
        await asyncio.sleep(0.05)
        before = len(descriptors())
        for _ in range(3):
            await life(security)
        await asyncio.sleep(0.05)
        assert len(descriptors()) == before
        tasks = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
        assert tasks == []
    gc.collect()


async def test_a_stop_waits_for_nobody_who_has_just_come() -> None:
    async with Node("b", {"a": NOWHERE}) as b:
        with socket.create_connection(b.address) as one:
            b.transport._accept(b.transport._sockets[0])  # noqa: SLF001 - as the loop would
            began_s = time.monotonic()
            await b.transport.stop()
            assert time.monotonic() - began_s < 0.4
            one.settimeout(1)
            assert one.recv(1) == b""
        assert b.counters["accepted"] == b.counters["unauthenticated"] == 1


async def test_a_stop_right_after_the_start_leaves_nothing() -> None:
    for _ in range(20):
        node = Node("b", {"a": NOWHERE, "c": Address("localhost", 1)})
        await node.transport.start()
        await node.transport.stop()
        tasks = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
        assert tasks == []


def test_headers_are_small() -> None:
    assert HEADER_BYTES == 8
    assert SETTINGS.hello_bytes == 4096
