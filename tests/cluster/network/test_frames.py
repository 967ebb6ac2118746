"""Frames cut from a stream, however it arrives."""

import contextlib
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.network.errors import FrameError, OversizedError
from cluster.network.frames import HEADER_BYTES, PING, FrameReader, frame, header

LIMIT_BYTES = 1000
BUFFER_BYTES = 64


def into(payloads: list[bytes], *, more: bool = True) -> Callable[[memoryview], bool]:
    def deliver(payload: memoryview) -> bool:
        payloads.append(bytes(payload))
        return more

    return deliver


def feed(reader: FrameReader, stream: bytes, reads: list[int] | None = None) -> list[bytes]:
    """What a reader makes of a stream that comes in reads of these sizes (then as it fits)."""
    payloads: list[bytes] = []
    sizes = iter(reads or [])
    while stream:
        space = reader.space()
        assert space
        count = min(len(space), len(stream), next(sizes, len(stream)))
        space[:count] = stream[:count]
        reader.received(count, into(payloads))
        stream = stream[count:]
    return payloads


def test_a_frame_is_size_checksum_payload() -> None:
    # The check value of CRC-32C: its sum of the nine digits.
    assert frame(b"123456789") == bytes.fromhex("00000009 e3069283") + b"123456789"
    assert PING == header(b"") == bytes(8)


@given(
    st.lists(st.binary(max_size=300), max_size=20),
    st.lists(st.integers(1, 200), max_size=200),
    st.integers(HEADER_BYTES, 400),
)
def test_any_payloads_come_through_in_any_reads(
    payloads: list[bytes], reads: list[int], buffer_bytes: int
) -> None:
    reader = FrameReader(LIMIT_BYTES, buffer_bytes)
    assert feed(reader, b"".join(map(frame, payloads)), reads) == payloads


def test_payloads_that_arrive_together_come_in_one_call() -> None:
    reader = FrameReader(LIMIT_BYTES, 4096)
    stream = frame(b"one") + frame(b"two") + frame(b"three")
    reader.space()[: len(stream)] = stream
    payloads: list[bytes] = []
    reader.received(len(stream), into(payloads))
    assert payloads == [b"one", b"two", b"three"]


def test_a_payload_is_looked_at_where_it_arrived() -> None:
    reader = FrameReader(LIMIT_BYTES, 4096)
    space = reader.space()
    stream = frame(b"here") + frame(b"there")
    space[: len(stream)] = stream
    owners: list[object] = []

    def deliver(payload: memoryview) -> bool:
        owners.append(payload.obj)
        return True

    reader.received(len(stream), deliver)
    assert [owner is space.obj for owner in owners] == [True, True]


def test_a_large_frame_is_filled_by_the_kernel_to_its_end_and_no_further() -> None:
    reader = FrameReader(10_000, BUFFER_BYTES)
    stream = frame(bytes(range(250)) * 20)
    space = reader.space()
    space[:] = stream[:BUFFER_BYTES]
    reader.received(BUFFER_BYTES, lambda _: pytest.fail("too early"))
    rest = reader.space()
    assert len(rest) == len(stream) - BUFFER_BYTES
    rest[:] = stream[BUFFER_BYTES:]
    seen: list[memoryview] = []

    def deliver(payload: memoryview) -> bool:
        seen.append(payload)
        return True

    reader.received(len(rest), deliver)
    assert seen[0] == stream[HEADER_BYTES:]
    assert seen[0].obj is rest.obj


@given(st.binary(min_size=1, max_size=200), st.data())
def test_any_changed_byte_is_found(payload: bytes, data: st.DataObject) -> None:
    stream = bytearray(frame(payload))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FrameError):  # or it waits for more
        assert feed(FrameReader(LIMIT_BYTES, BUFFER_BYTES), bytes(stream)) == []


def test_what_was_good_before_damage_is_handed_out_and_nothing_behind_it() -> None:
    stream = frame(b"good") + frame(b"bad")[:-1] + b"D" + frame(b"unseen")
    reader = FrameReader(LIMIT_BYTES, 4096)
    reader.space()[: len(stream)] = stream
    payloads: list[bytes] = []
    with pytest.raises(FrameError, match="checksum of a frame of 3 bytes"):
        reader.received(len(stream), into(payloads))
    assert payloads == [b"good"]


def test_a_large_frame_is_checked_too() -> None:
    stream = frame(bytes(500))[:-1] + b"!"
    with pytest.raises(FrameError, match="checksum"):
        feed(FrameReader(LIMIT_BYTES, BUFFER_BYTES), stream)


def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    reader = FrameReader(LIMIT_BYTES, BUFFER_BYTES)
    assert feed(reader, frame(bytes(LIMIT_BYTES))) == [bytes(LIMIT_BYTES)]
    tracemalloc.start()
    try:
        with pytest.raises(OversizedError, match="4294967295 bytes, the limit is 1000"):
            feed(reader, b"\xff" * HEADER_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_ping_with_a_checksum_is_damage() -> None:
    with pytest.raises(FrameError):
        feed(FrameReader(LIMIT_BYTES, BUFFER_BYTES), bytes(7) + b"\x01")


def test_false_from_the_receiver_ends_the_matter() -> None:
    reader = FrameReader(LIMIT_BYTES, 4096)
    stream = frame(b"one") + frame(b"two")
    reader.space()[: len(stream)] = stream
    payloads: list[bytes] = []
    reader.received(len(stream), into(payloads, more=False))
    assert payloads == [b"one"]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(1, 100))
def test_wider_bounds_hold_from_the_next_frame_on(sizes: list[int], cut: int) -> None:
    first, rest = frame(b"open"), b"".join(frame(bytes(size)) for size in sizes)
    stream = first + rest
    reader = FrameReader(4, 12)
    payloads: list[bytes] = []

    def deliver(payload: memoryview) -> bool:
        if not payloads:
            reader.widen(LIMIT_BYTES, 128)
        payloads.append(bytes(payload))
        return True

    cuts = [0, *range(cut, len(stream), cut), len(stream)]
    for start, end in pairwise(cuts):
        piece = stream[start:end]
        while piece:
            space = reader.space()
            count = min(len(space), len(piece))
            space[:count] = piece[:count]
            reader.received(count, deliver)
            piece = piece[count:]
    assert payloads == [b"open", *map(bytes, sizes)]
