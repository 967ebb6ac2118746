"""How records are written: the items of a checkpoint, and what a digest is made of.

An item is plain values, so that whoever stores it can lay it out in columns: `FIELDS` names them.
What an index can be made from again is not written. The layouts have one version, in META.
"""

import hashlib
from typing import Any, NamedTuple

from state import codec
from state.policy import POLICY_RANGES
from state.records import (
    ANSWERS,
    CHECK,
    CONSUMER,
    META,
    RECEIPT,
    SESSION,
    THEME,
    WINDOW,
    Answers,
    Consumer,
    Identity,
    Receipt,
    Record,
    Session,
    Theme,
    Window,
)
from state.results import pack_result
from state.transitions import READY, STORED

LAYOUT_VERSION = 4

DIGEST_MASK = 2**60 - 1  # two digits of a Python int: 32 bytes a record

FIELDS: dict[int, tuple[str, ...]] = {
    META: (
        "version",
        "applied_index",
        "term",
        "now_ms",
        "horizon",
        "last_session_id",
        "key_epoch",
        "turn",
        "limits",
    ),
    THEME: ("theme_id", "policy", "paused", "served"),
    CONSUMER: ("consumer_id", "seen_ms"),
    WINDOW: ("proposer", "incarnation", "floor"),
    ANSWERS: ("proposer", "sequence", "results", "failure"),
    RECEIPT: ("key", "fingerprint", "expires_ms", "result", "unused_id"),
    SESSION: (
        "session_id",
        "theme_id",
        "key",
        "phase",
        "priority",
        "epoch",
        "revision",
        "attempts",
        "created_ms",
        "updated_ms",
        "due_ms",
        "touched_ms",
        "lease_ms",
        "progress_ms",
        "consumer_id",
        "trace",
        "history",
        "chunk_count",
    ),
    CHECK: ("digest", "applied_index"),
}

_ITEM_BYTES = 200

# Up to this size hashing a session's chunks again is cheaper than keeping the hash of the first.
_HASH_AGAIN_BYTES = 4096


class Item(NamedTuple):
    """One record to put in place of the one with its identity, or to delete if it is there.

    `fields` is None to delete. `chunks` are a session's from `first_chunk` on, in place of all
    that were stored from there on; those before it are unchanged.
    """

    kind: int
    identity: Identity
    fields: tuple[Any, ...] | None
    first_chunk: int = 0
    chunks: tuple[bytes, ...] = ()


def meta(values: tuple[Any, ...]) -> Item:
    """The item of what is in the state and in no record."""
    return Item(META, 0, values)


def check(digest: int, header: Item) -> Item:
    """The last item of a capture, by which a reader knows that it has all of it."""
    _, applied_index, *_ = header.fields or ()
    return Item(CHECK, 0, (digest, applied_index))


def deletion(record: Record) -> Item:
    """The item that deletes a record."""
    return Item(record.kind, record.identity, None)


def item(record: Record, fields: tuple[Any, ...], first_chunk: int) -> Item:
    """The item that puts a record, whose `fields_of` are given."""
    if isinstance(record, Session):
        chunks = tuple(record.chunks[first_chunk:])
        return Item(SESSION, record.session_id, fields, first_chunk, chunks)
    return Item(record.kind, record.identity, fields)


def item_bytes(one: Item) -> int:
    """About how many bytes an item has."""
    size_bytes = _ITEM_BYTES + sum(map(len, one.chunks))
    if one.kind == ANSWERS and one.fields is not None:
        size_bytes += len(one.fields[2])
    return size_bytes


def fields_of(record: Record) -> tuple[Any, ...]:
    """The fields of a record in the order of `FIELDS`."""
    match record:
        case Session():
            return _session_fields(record)
        case Theme():
            policy = tuple([getattr(record.policy, name) for name in POLICY_RANGES])
            return (record.theme_id, policy, record.paused, record.served)
        case Consumer():
            return (record.consumer_id, record.seen_ms)
        case Window():
            return (record.proposer, record.incarnation, record.floor)
        case Answers():
            results = codec.encode_values(map(pack_result, record.results))
            return (record.proposer, record.sequence, results, pack_result(record.failure))
        case Receipt():
            result = pack_result(record.result)
            fields = (record.key, record.fingerprint, record.expires_ms, result)
            return (*fields, record.unused_id)
        case _:
            raise TypeError(f"{record!r} is not a record that is written")


def _session_fields(session: Session) -> tuple[Any, ...]:
    return (
        session.session_id,
        session.theme.theme_id,
        session.key,
        # Whether it is due follows from `due_ms` and the horizon.
        int(STORED if session.phase is READY else session.phase),
        session.priority,
        session.epoch,
        session.revision,
        session.attempts,
        session.created_ms,
        session.updated_ms,
        session.due_ms,
        session.touched_ms,
        session.lease_ms,
        session.progress_ms,
        None if session.consumer is None else session.consumer.consumer_id,
        session.trace,
        tuple(map(tuple, session.history)),
        len(session.chunks),
    )


def digest_of(one: Item) -> int:
    """The part of META in the state's digest: where in the log the state is has none."""
    version, _, *values = one.fields or ()
    return _hash(codec.encode_values((META, version, *values)))


def digest(record: Record, fields: tuple[Any, ...]) -> int:
    """A record's part of the state's digest, its `fields_of` given: to make them is half the cost.

    Of a session's chunks, hashes those that are new.
    """
    values = (record.kind, fields)
    if not isinstance(record, Session):
        return _hash(codec.encode_values(values))
    data_digest = record.data_digest
    for chunk in record.chunks[record.digested_chunks :]:
        data_digest = _hash(data_digest.to_bytes(8, "big") + chunk)
    if record.size_bytes > _HASH_AGAIN_BYTES:
        record.data_digest = data_digest
        record.digested_chunks = len(record.chunks)
    return _hash(codec.encode_values((*values, data_digest)))


def _hash(data: bytes) -> int:
    hashed = hashlib.blake2b(data, digest_size=8).digest()
    return int.from_bytes(hashed, "big") & DIGEST_MASK or 1  # 0 stands for: not made yet
