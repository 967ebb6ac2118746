"""One segment file of the journal: its header and its frames.

The file begins with a header in a sector of its own:

| Offset | Field                                                                     |
| ------ | ------------------------------------------------------------------------- |
| 0      | magic, 8 bytes: `RtnlJrnl`                                                |
| 8      | format version, u32: 3                                                    |
| 12     | CRC32C of the 12 bytes before it, u32: so far every version is the same   |
| 16     | segment number, u64                                                       |
| 24     | number of the segment's first frame, u64                                  |
| 32     | size of the file in bytes, u64                                            |
| 40     | tag, 8 random bytes                                                       |
| 48     | CRC32C of the 48 bytes before it, u32                                     |

Frames follow, each at the start of a sector (512 bytes):

| Offset | Field                                                                     |
| ------ | ------------------------------------------------------------------------- |
| 0      | the segment's tag, 8 bytes                                                |
| 8      | frame number, u64: counts up by one through all segments                  |
| 16     | size of the records in bytes, u32                                         |
| 20     | CRC32C of the 20 bytes before it and of the records, starting from the    |
|        | header's own CRC32C instead of 0                                          |
| 24     | the records                                                               |

So a frame belongs to one place in one segment: what a recycled file still holds of its earlier
lives has other tags, and no client can send a command that would pass for a frame.

No sector holds parts of two frames, and a write changes no byte before its frame. It goes on with
zeros to the end of the page, so that the kernel need not read the page first; such bytes, those up
to the next sector, and the free room are the only ones that no checksum covers, and nothing depends
on them.

Below the page cache more is written: the kernel writes back whole pages of 4 KiB, so the sectors of
a durable frame at the beginning of a page are written again, with the same bytes, when the next
frame is. What is relied on is that a power cut in the middle of that leaves each sector with its
old bytes or its new ones, which are the same there. SQLite assumes the same of disks, and calls it
powersafe overwrite: https://www.sqlite.org/psow.html
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crc32c import crc32c

from cluster.storage.disk import Buffer, File
from cluster.storage.errors import DamagedError, OtherVersionError

VERSION = 3  # to be raised, too, when the operations in records have another form or effect
MAGIC = b"RtnlJrnl"
TAG_BYTES = 8
SECTOR_BYTES = 512
PAGE_BYTES = 4096

_START = struct.Struct("<8sII")
_HEADER = struct.Struct("<QQQ8s")
_CRC = struct.Struct("<I")
_FRAME = struct.Struct("<8sQII")
_FRAME_CHECKED = struct.Struct("<8sQI")  # what the checksum covers of a frame's head

HEADER_BYTES = _START.size + _HEADER.size + _CRC.size
FRAME_BYTES = _FRAME.size

_ZEROS = memoryview(bytes(PAGE_BYTES))


def sectors(size_bytes: int) -> int:
    """The bytes of so many whole sectors that `size_bytes` fit."""
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def pages(size_bytes: int) -> int:
    """The bytes of so many whole pages that `size_bytes` fit."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def frame_room(payload_bytes: int) -> int:
    """What a frame with so many bytes of records takes of a segment."""
    return sectors(FRAME_BYTES + payload_bytes)


class Header(NamedTuple):
    """Which segment this is."""

    number: int
    first_frame: int
    size_bytes: int
    tag: bytes

    def encode(self) -> bytes:
        start = MAGIC + struct.pack("<I", VERSION)
        start += _CRC.pack(crc32c(start))
        start += _HEADER.pack(*self)
        return start + _CRC.pack(self.seed)

    @property
    def seed(self) -> int:
        """Where the checksums of the segment's frames start from: the header's own."""
        start = MAGIC + struct.pack("<I", VERSION)
        return crc32c(start + _CRC.pack(crc32c(start)) + _HEADER.pack(*self))


def decode_header(path: str, data: bytes) -> Header:
    """Read a header, or refuse."""
    if len(data) < HEADER_BYTES:
        raise DamagedError(path, "it is too short to have a header", 0)
    magic, version, start_crc = _START.unpack_from(data)
    if magic != MAGIC:
        raise DamagedError(path, "it does not begin as a segment of a journal", 0)
    if crc32c(data[: _START.size - _CRC.size]) != start_crc:
        raise DamagedError(path, "the checksum of the format's version is wrong", 0)
    if version == 0:
        raise DamagedError(path, "there never was a format version 0", 0)
    if version != VERSION:
        raise OtherVersionError(path, version, VERSION)
    header = Header(*_HEADER.unpack_from(data, _START.size))
    (crc,) = _CRC.unpack_from(data, HEADER_BYTES - _CRC.size)
    if crc != header.seed:
        raise DamagedError(path, "the header's checksum is wrong", 0)
    return header


class Frame(NamedTuple):
    """A frame whose checksum is right."""

    offset: int
    number: int
    payload: memoryview

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.offset + frame_room(len(self.payload))


class SegmentReader:
    """All of a segment, in memory."""

    def __init__(self, file: File) -> None:
        self.path = file.path
        self.header = decode_header(self.path, file.read(0, HEADER_BYTES))
        # Before all of it is read into memory.
        if self.header.size_bytes != file.size_bytes:
            raise DamagedError(
                self.path, f"it has {file.size_bytes} bytes, not {self.header.size_bytes}"
            )
        self._data = file.read(0, file.size_bytes)
        self._view = memoryview(self._data)
        self._seed = self.header.seed

    def frames(self) -> Iterator[Frame]:
        """The frames one after the other, up to the first place where there is none."""
        offset = SECTOR_BYTES
        number = self.header.first_frame
        while (frame := self._frame_at(offset)) is not None and frame.number == number:
            yield frame
            offset = frame.end
            number += 1

    def frame_after(self, offset: int) -> Frame | None:
        """Any frame that begins at `offset` or later."""
        tag = self.header.tag
        while (offset := self._data.find(tag, offset)) >= 0:
            if offset % SECTOR_BYTES == 0 and (frame := self._frame_at(offset)) is not None:
                return frame
            offset += 1
        return None

    def _frame_at(self, offset: int) -> Frame | None:
        begin = offset + FRAME_BYTES
        if begin > len(self._data):
            return None
        tag, number, size_bytes, crc = _FRAME.unpack_from(self._data, offset)
        if tag != self.header.tag or size_bytes > len(self._data) - begin:
            return None
        payload = self._view[begin : begin + size_bytes]
        head = self._view[offset : offset + _FRAME_CHECKED.size]
        if crc32c(payload, crc32c(head, self._seed)) != crc:
            return None
        return Frame(offset, number, payload)


class SegmentWriter:
    """Appends frames to a segment."""

    def __init__(self, file: File, header: Header, offset: int, max_index: int) -> None:
        self.file = file
        self.header = header
        self.max_index = max_index  # the highest index of any entry in it, 0 if there is none
        self._offset = offset
        self._tag = header.tag
        self._seed = header.seed

    @property
    def free_bytes(self) -> int:
        """The room that is left."""
        return self.header.size_bytes - self._offset

    def write(self, number: int, buffers: Sequence[Buffer], payload_bytes: int) -> int:
        """Write one frame in one call and say how many bytes that took; `frame_room` fits."""
        head = _FRAME_CHECKED.pack(self._tag, number, payload_bytes)
        crc = crc32c(head, self._seed)
        for buffer in buffers:
            crc = crc32c(buffer, crc)
        end = self._offset + FRAME_BYTES + payload_bytes
        pad_bytes = pages(end) - end
        self.file.write(self._offset, (head + _CRC.pack(crc), *buffers, _ZEROS[:pad_bytes]))
        self._offset = sectors(end)
        return FRAME_BYTES + payload_bytes + pad_bytes
