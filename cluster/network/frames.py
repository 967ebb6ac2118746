"""Frames: payloads, one behind the other, in a stream of bytes.

    u32 size | u32 crc32c | payload        big endian; the checksum is that of the payload

An empty payload is a ping: its sender is alive. The reader never waits for more than a frame may
have, and makes room for a large one only when its header has been seen.
"""

from collections.abc import Callable
from struct import Struct

from crc32c import crc32c

from cluster.network.errors import FrameError, OversizedError

_HEADER = Struct(">II")
_pack = _HEADER.pack
_unpack_from = _HEADER.unpack_from

HEADER_BYTES = _HEADER.size
PING = _pack(0, 0)


def header(payload: bytes) -> bytes:
    """What goes before a payload."""
    return _pack(len(payload), crc32c(payload))


def frame(payload: bytes) -> bytes:
    """A payload with its header."""
    return header(payload) + payload


class FrameReader:
    """Cuts what arrives into payloads, in the memory that it arrived in.

    Small frames are looked at where the kernel put them. One that is larger than the buffer gets
    memory of its own, which the kernel fills: so no byte is moved, but those of a frame's beginning
    at the end of a read.
    """

    __slots__ = (
        "_buffer",
        "_buffer_bytes",
        "_end",
        "_large",
        "_large_checksum",
        "_large_end",
        "_limit_bytes",
        "_start",
    )

    def __init__(self, limit_bytes: int, buffer_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._buffer_bytes = buffer_bytes
        self._buffer = memoryview(bytearray(buffer_bytes))
        # What has arrived and was not handed out: buffer[start:end], or large[:large_end].
        self._start = 0
        self._end = 0
        self._large: memoryview | None = None
        self._large_end = 0
        self._large_checksum = 0

    def widen(self, limit_bytes: int, buffer_bytes: int) -> None:
        """Allow more from the next frame on. May be called while a payload is handed out."""
        self._limit_bytes = limit_bytes
        self._buffer_bytes = buffer_bytes

    def space(self) -> memoryview:
        """Where the next bytes are to be put; never empty. Not after `received` has raised."""
        if self._large is None:
            self._make_room()
        large = self._large
        return self._buffer[self._end :] if large is None else large[self._large_end :]

    def _make_room(self) -> None:
        waiting = self._buffer[self._start : self._end]
        if len(self._buffer) < self._buffer_bytes:
            self._buffer = memoryview(bytearray(self._buffer_bytes))
        if len(waiting) >= HEADER_BYTES:
            size, checksum = _unpack_from(waiting)
            if HEADER_BYTES + size > len(self._buffer):
                self._large = memoryview(bytearray(size))
                self._large_checksum = checksum
                self._large_end = len(waiting) - HEADER_BYTES
                self._large[: self._large_end] = waiting[HEADER_BYTES:]
                self._start = self._end = 0
                return
        if self._start or waiting.obj is not self._buffer.obj:
            self._buffer[: len(waiting)] = waiting
        self._start, self._end = 0, len(waiting)

    def received(self, count: int, deliver: Callable[[memoryview], bool]) -> None:
        """Hand out the payloads that are complete with `count` more bytes in `space`.

        A payload is valid until `deliver` returns. False from it ends the matter. Raises
        `FrameError` where the stream makes no sense; nothing behind that place is handed out.
        """
        if self._large is not None:
            self._large_end += count
            if self._large_end == len(self._large):
                payload, self._large = self._large, None
                _check(payload, self._large_checksum)
                deliver(payload)
            return
        buffer, start = self._buffer, self._start
        end = self._end = self._end + count
        while end - start >= HEADER_BYTES:
            size, checksum = _unpack_from(buffer, start)
            if size > self._limit_bytes:
                raise OversizedError(size, self._limit_bytes)
            body = start + HEADER_BYTES
            if body + size > end:
                break
            self._start = start = body + size
            payload = buffer[body:start]
            _check(payload, checksum)
            if not deliver(payload):
                return


def _check(payload: memoryview, checksum: int) -> None:
    if crc32c(payload) != checksum:
        raise FrameError(f"the checksum of a frame of {len(payload)} bytes is wrong")
