"""Batches as bytes. The only module that knows msgpack.

A batch is one msgpack array: `[version, proposer, incarnation, sequence, term, operations]`, and an
operation is an array too (see `operations`). An operation is encoded once, by whoever asks for it;
making a batch of encoded operations copies bytes and no more.

Decoding trusts nobody. It never raises anything but `Refused`, makes no maps or extensions, and
what it builds is bounded by the length of what it was given.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgpack

from state.errors import LimitExceeded, Malformed, Refused, UnsupportedVersion
from state.limits import LIMIT_RANGES, PROPOSER_CHARS_MAX, SEQUENCE_MAX, Limits
from state.operations import OPERATIONS, Idempotent, New, Operation, Txn, field_names

BATCH_VERSION = 1

# Batch, operations, Idempotent, Txn, operation, settings, setting: nothing correct is deeper.
_DEPTH_MAX = 8

if msgpack.Unpacker.__module__ == "msgpack.fallback":
    # It is slow, and refuses other depths of nesting than the compiled one: nodes would disagree.
    raise ImportError("msgpack was installed without its compiled part")

# More than a header has: a proposer of 64 characters of 4 bytes, and five numbers.
_HEADER_BYTES = 512

_ARRAY_LENGTH_MAX = LIMIT_RANGES["batch_operations"].maximum

_FIXARRAY_6 = 0x96
_PREFIX = bytes((_FIXARRAY_6, BATCH_VERSION))
_UINT64_END = 2**64


def _refuse(*_: object) -> None:
    raise ValueError("no operation has maps or extensions")


_STRICT: dict[str, Any] = {
    "raw": False,
    "use_list": False,
    "object_hook": _refuse,
    "ext_hook": _refuse,
    "max_map_len": 0,
    "max_ext_len": 0,
}


class Header(NamedTuple):
    """What stands before the operations of a batch."""

    proposer: str
    incarnation: int
    sequence: int
    term: int
    operation_count: int


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
# The last two fields of a New tell who asks; its code comes first.
_ASKER_PLACE = field_names(New).index("consumer") + 1
_NESTING = frozenset((Txn, Idempotent))  # with operations inside; all others are plain values


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
    kind = type(operation)
    if kind in _NESTING:
        return _pack(plain(operation))
    return _pack((operation.code, *_read_fields[kind](operation)))


def encode_fields(kind: type[Operation], fields: tuple[Any, ...]) -> bytes:
    """The bytes of an operation out of its fields: as `encode`, without the operation itself."""
    return _pack((kind.code, *fields))


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


def decode_header(data: bytes) -> Header:
    """Read the header of a batch. Raises `Refused` with UnsupportedVersion or Malformed."""
    if data[:2] != _PREFIX:
        raise Refused(_what_begins(data))
    unpacker = msgpack.Unpacker(max_buffer_size=_HEADER_BYTES, **_STRICT)
    unpacker.feed(data[2 : 2 + _HEADER_BYTES])
    try:
        proposer, incarnation, sequence, term = (unpacker.unpack() for _ in range(4))
        operation_count = unpacker.read_array_header()
    except MemoryError:
        raise  # of this node alone, so it must not become an answer
    except Exception as error:
        raise Refused(Malformed("the header of the batch is not msgpack")) from error
    if (type(proposer), type(incarnation), type(sequence), type(term)) != (str, int, int, int):
        raise Refused(Malformed("a field of the header has the wrong type"))
    if not proposer:
        raise Refused(Malformed("the proposer has no name"))
    if len(proposer) > PROPOSER_CHARS_MAX:
        raise Refused(LimitExceeded("proposer_chars", len(proposer), PROPOSER_CHARS_MAX))
    if not max(incarnation, sequence, term) <= SEQUENCE_MAX or min(incarnation, sequence, term) < 0:
        raise Refused(Malformed("a number of the header is out of range"))
    return Header(proposer, incarnation, sequence, term, operation_count)


def check_size(data: bytes, header: Header, limits: Limits) -> LimitExceeded | None:
    """Which limit a batch passes, if any. To be asked before its operations are decoded."""
    if len(data) > limits.batch_bytes:
        return LimitExceeded("batch_bytes", len(data), limits.batch_bytes)
    if header.operation_count > limits.batch_operations:
        bound = limits.batch_operations
        return LimitExceeded("batch_operations", header.operation_count, bound)
    return None


def decode_operations(data: bytes) -> tuple[Any, ...]:
    """Read the operations of a batch, whose header was read; nothing inside is checked yet.

    Raises `Refused` with Malformed.
    """
    operations: tuple[Any, ...] = decode(data)[5]
    return operations


def _what_begins(data: bytes) -> UnsupportedVersion | Malformed:
    """Say why data does not begin like a batch of this version."""
    # A later version may have more fields, and may be of bytes that this one does not decode.
    unpacker = msgpack.Unpacker(max_buffer_size=64)
    unpacker.feed(data[:16])
    try:
        unpacker.read_array_header()
        version = unpacker.unpack()
    except MemoryError:
        raise  # of this node alone, so it must not become an answer
    except Exception:  # noqa: BLE001 - whatever msgpack makes of arbitrary bytes
        return Malformed("not a batch")
    if type(version) is not int or not BATCH_VERSION < version < _UINT64_END:
        return Malformed("not a batch")
    return UnsupportedVersion(version, BATCH_VERSION)


def decode(data: bytes) -> Any:  # noqa: ANN401 - whatever the bytes say
    """Plain values from bytes, arrays as tuples. Raises `Refused` with Malformed."""
    try:
        return msgpack.unpackb(data, max_array_len=_ARRAY_LENGTH_MAX, **_STRICT)
    except MemoryError:
        raise  # of this node alone, so it must not become an answer
    except Exception as error:
        # msgpack raises a dozen types, and decoding has no effects that could be half done.
        raise Refused(Malformed("not msgpack")) from error


def encode_values(values: Iterable[Any]) -> bytes:
    """Plain values as one msgpack array, for checkpoints and digests."""
    return _pack(tuple(values))


def fingerprint(value: Any) -> bytes:  # noqa: ANN401 - any decoded operation
    """16 bytes that tell two decoded operations apart (BLAKE2b, RFC 7693).

    Not by whose a new session is to be, nor by its trace: who asks once more may have another name.

    Raises `Refused` with Malformed for a value nested deeper than any operation is: how deep
    msgpack writes differs between its versions.
    """
    if _is_deeper(value, _DEPTH_MAX):
        raise Refused(Malformed("nested too deeply"))
    return hashlib.blake2b(_pack(_what_is_asked(value)), digest_size=16).digest()


def _what_is_asked(value: Any) -> Any:  # noqa: ANN401
    """A decoded operation without who asks."""
    if not isinstance(value, tuple) or not value:
        return value
    if value[0] == New.code:
        return value[:_ASKER_PLACE]
    if value[0] == Txn.code:
        return tuple([_all_that_is_asked(one) for one in value])
    return value


def _all_that_is_asked(values: Any) -> Any:  # noqa: ANN401
    return tuple(map(_what_is_asked, values)) if isinstance(values, tuple) else values


def _is_deeper(value: Any, depth: int) -> bool:  # noqa: ANN401
    if type(value) is not tuple:
        return False
    if depth == 0:
        return True
    for one in value:  # noqa: SIM110 - a generator costs more than all of it
        if type(one) is tuple and _is_deeper(one, depth - 1):
            return True
    return False
