"""Batches as bytes. The only module that knows msgpack.

A batch is one msgpack array: `[version, proposer, incarnation, sequence, term, operations]`, and an
operation is an array too (see `operations`). An operation is encoded once, by whoever asks for it;
making a batch of encoded operations copies bytes and no more.

Decoding trusts nobody. It never raises anything but `Refused`, makes no maps or extensions that
hold anything, and what it builds is bounded by the length of what it was given.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgpack

from state.errors import LimitExceeded, Malformed, Refused, UnsupportedVersion
from state.limits import SEQUENCE_MAX, Limits
from state.operations import OPERATIONS, Operation, field_names

BATCH_VERSION = 1

_FIXARRAY_6 = 0x96
_PREFIX = bytes((_FIXARRAY_6, BATCH_VERSION))
_UINT64_END = 2**64


class Batch(NamedTuple):
    """A decoded envelope. Its operations are as they came: nothing inside them is checked yet."""

    proposer: str
    incarnation: int
    sequence: int
    term: int
    operations: tuple[Any, ...]


_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True, strict_types=False).pack


def _readers() -> dict[type[Operation], Callable[[Operation], tuple[Any, ...]]]:
    """For each operation a function that reads all its fields at once."""
    found: dict[type[Operation], Callable[[Operation], tuple[Any, ...]]] = {}
    for operation in OPERATIONS:
        names = field_names(operation)
        if len(names) > 1:
            found[operation] = attrgetter(*names)
        else:  # attrgetter answers a bare value, not a tuple, for a single name
            found[operation] = lambda one, names=names: tuple(  # type: ignore[misc]
                getattr(one, name) for name in names
            )
    return found


_read_fields = _readers()


def plain(operation: Operation) -> tuple[Any, ...]:
    """An operation as the tuple that its bytes decode to."""
    values = _read_fields[type(operation)](operation)
    return (operation.code, *map(_plain_value, values))


def _plain_value(value: Any) -> Any:  # noqa: ANN401 - any field of any operation
    if isinstance(value, Operation):
        return plain(value)
    if isinstance(value, tuple):
        return tuple(map(_plain_value, value))
    return value


def encode(operation: Operation) -> bytes:
    """The bytes of one operation. Not for several threads at once."""
    return _pack(plain(operation))


def encode_batch(
    proposer: str, incarnation: int, sequence: int, term: int, operations: Sequence[bytes]
) -> bytes:
    """One batch out of operations that are encoded already."""
    return b"".join(
        (
            _PREFIX,
            _pack(proposer),
            _pack(incarnation),
            _pack(sequence),
            _pack(term),
            _array_header(len(operations)),
            *operations,
        )
    )


def _array_header(length: int) -> bytes:
    if length < 16:  # noqa: PLR2004 - the sizes of msgpack's three array forms
        return bytes((0x90 | length,))
    if length < 0x10000:  # noqa: PLR2004
        return b"\xdc" + length.to_bytes(2, "big")
    return b"\xdd" + length.to_bytes(4, "big")


def decode_batch(data: bytes, limits: Limits) -> Batch:
    """Read a batch. Raises `Refused` with UnsupportedVersion, LimitExceeded or Malformed."""
    if len(data) > limits.batch_bytes:
        raise Refused(LimitExceeded("batch_bytes", len(data), limits.batch_bytes))
    if data[:2] != _PREFIX:
        raise Refused(_what_begins(data))
    decoded = decode(data)
    # decode() read the prefix as an array of six, so there are six.
    _, proposer, incarnation, sequence, term, operations = decoded
    kinds = (type(proposer), type(incarnation), type(sequence), type(term), type(operations))
    if kinds != (str, int, int, int, tuple):
        raise Refused(Malformed("an envelope field has the wrong type"))
    if not 0 < len(proposer) <= limits.proposer_chars:
        raise Refused(LimitExceeded("proposer_chars", len(proposer), limits.proposer_chars))
    for name, value in (("incarnation", incarnation), ("sequence", sequence), ("term", term)):
        if not 0 <= value <= SEQUENCE_MAX:
            raise Refused(Malformed(f"{name} is out of range"))
    if len(operations) > limits.batch_operations:
        raise Refused(LimitExceeded("batch_operations", len(operations), limits.batch_operations))
    return Batch(proposer, incarnation, sequence, term, operations)


def _what_begins(data: bytes) -> UnsupportedVersion | Malformed:
    """Say why data does not begin like a batch of this version."""
    # A later version may have more fields, and may be of bytes that this one does not decode.
    unpacker = msgpack.Unpacker(max_buffer_size=64)
    unpacker.feed(data[:16])
    try:
        unpacker.read_array_header()
        version = unpacker.unpack()
    except Exception:  # noqa: BLE001 - whatever msgpack makes of arbitrary bytes
        return Malformed("not a batch")
    if type(version) is not int or not BATCH_VERSION < version < _UINT64_END:
        return Malformed("not a batch")
    return UnsupportedVersion(version, BATCH_VERSION)


def decode(data: bytes) -> Any:  # noqa: ANN401 - whatever the bytes say
    """Plain values from bytes, arrays as tuples. Raises `Refused` with Malformed."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            strict_map_key=True,
            max_map_len=0,
            max_ext_len=0,
        )
    except Exception as error:
        # msgpack raises a dozen types, and decoding has no effects that could be half done.
        raise Refused(Malformed("not msgpack")) from error


def encode_values(values: Iterable[Any]) -> bytes:
    """Plain values as one msgpack array, for checkpoints and digests."""
    return _pack(tuple(values))


def fingerprint(value: Any) -> bytes:  # noqa: ANN401 - any decoded operation
    """16 bytes that tell two decoded operations apart (BLAKE2b, RFC 7693).

    Raises `Refused` with Malformed for a value nested deeper than msgpack writes.
    """
    try:
        packed = _pack(value)
    except ValueError as error:
        raise Refused(Malformed("nested too deeply")) from error
    return hashlib.blake2b(packed, digest_size=16).digest()
