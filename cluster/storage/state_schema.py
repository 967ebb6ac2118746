"""The tables of `state.db`, format version 4, and how items become their rows.

The columns of a record are its fields, by the names that `state.FIELDS` gives them. What is no
plain value is JSON where somebody may want to read it (policies, histories, limits), and msgpack
where results are kept. Chunks have a table of their own, so that an append writes one row.

Why not ...

* ... STRICT tables? SQLite before 3.37 could not open the file. What is read is checked by
  `state.Loader` anyway, which trusts nothing.
* ... more indexes? Nothing is looked up in here but by primary key; each would be written as well.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import crc32c
import msgpack

from state import codec
from state.policy import POLICY_RANGES
from state.records import (
    ANSWERS,
    CONSUMER,
    META,
    RECEIPT,
    SESSION,
    THEME,
    WINDOW,
    Identity,
)

FORMAT_VERSION = 4  # also in `user_version`; to be raised whenever LAYOUT_VERSION is
APPLICATION_ID = 0x52746E6C  # "Rtnl", where `file` and SQLite look for whose file it is
PAGE_BYTES = 16_384

SCHEMA: dict[str, str] = {
    # One row: what the file stands for. `seal` is over the other columns (see `seal_of`): the
    # digest of the state does not say whose it is, nor where in the log.
    "cluster": """CREATE TABLE cluster (
    cluster_id TEXT NOT NULL,
    format_version INTEGER NOT NULL,
    applied_index INTEGER NOT NULL,
    applied_term INTEGER NOT NULL,
    digest INTEGER NOT NULL,
    seal INTEGER NOT NULL
)""",
    # One row: what is in the state and in no record.
    "meta": """CREATE TABLE meta (
    version INTEGER NOT NULL,
    applied_index INTEGER NOT NULL,
    term INTEGER NOT NULL,
    now_ms INTEGER NOT NULL,
    horizon TEXT NOT NULL,
    last_session_id INTEGER NOT NULL,
    key_epoch INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    limits TEXT NOT NULL
)""",
    "themes": """CREATE TABLE themes (
    theme_id INTEGER PRIMARY KEY,
    policy TEXT NOT NULL,
    paused INTEGER NOT NULL,
    served INTEGER NOT NULL
)""",
    "consumers": """CREATE TABLE consumers (
    consumer_id BLOB PRIMARY KEY,
    seen_ms INTEGER NOT NULL
) WITHOUT ROWID""",
    "windows": """CREATE TABLE windows (
    proposer TEXT PRIMARY KEY,
    incarnation INTEGER NOT NULL,
    floor INTEGER NOT NULL
) WITHOUT ROWID""",
    "answers": """CREATE TABLE answers (
    proposer TEXT,
    sequence INTEGER,
    results BLOB NOT NULL,
    failure BLOB,
    PRIMARY KEY (proposer, sequence)
) WITHOUT ROWID""",
    "receipts": """CREATE TABLE receipts (
    key BLOB PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    result BLOB,
    unused_id INTEGER NOT NULL
) WITHOUT ROWID""",
    "sessions": """CREATE TABLE sessions (
    session_id INTEGER PRIMARY KEY,
    theme_id INTEGER NOT NULL,
    key BLOB,
    phase INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    touched_ms INTEGER NOT NULL,
    lease_ms INTEGER NOT NULL,
    progress_ms INTEGER NOT NULL,
    consumer_id BLOB,
    trace BLOB NOT NULL,
    history TEXT NOT NULL,
    chunk_count INTEGER NOT NULL
)""",
    "chunks": """CREATE TABLE chunks (
    session_id INTEGER,
    position INTEGER,
    data BLOB NOT NULL,
    PRIMARY KEY (session_id, position)
) WITHOUT ROWID""",
}

# SQLite's integers are signed, ids are not: those of groups from 32,768 on are negative in here.
_SIGNED_END = 2**63
_ID_END = 2**64

Row = tuple[Any, ...]


def signed(session_id: int) -> int:
    """An id as SQLite keeps it."""
    return session_id if session_id < _SIGNED_END else session_id - _ID_END


def unsigned(stored_id: int) -> int:
    """The reverse of `signed`."""
    return stored_id if stored_id >= 0 else stored_id + _ID_END


def seal_of(row: Row) -> int:
    """The checksum over what the row of `cluster` says before it."""
    return crc32c.crc32c(repr(row).encode())


class Table(NamedTuple):
    """Where the records of a kind are."""

    kind: int
    name: str
    key: tuple[str, ...]
    row_of: Callable[[Row], Row]
    """Fields to columns."""
    fields_of: Callable[[Row], Row]
    """Columns to fields. May raise anything if the row is damaged."""

    def identity(self, fields: Row) -> Identity:
        """What `state.Item` calls a record with these fields."""
        match self.key:
            case ():
                return 0
            case (_,):
                one: Identity = fields[0]
                return one
            case _:
                return fields[0], fields[1]

    def key_of(self, identity: Identity) -> Row:
        """The primary key of a record."""
        if self.kind == SESSION and isinstance(identity, int):
            return (signed(identity),)
        return identity if isinstance(identity, tuple) else (identity,)


def _as_it_is(row: Row) -> Row:
    return row


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _packed(value: object) -> bytes | None:
    return None if value is None else msgpack.packb(value)


def _unpacked(data: bytes | None) -> Any:  # noqa: ANN401 - whatever was packed
    return None if data is None else codec.decode(data)


def _meta_row(fields: Row) -> Row:
    version, applied_index, term, now_ms, horizon, *counters, limits = fields
    horizon, limits = _json(horizon), _json(dict(limits))
    return (version, applied_index, term, now_ms, horizon, *counters, limits)


def _meta_fields(row: Row) -> Row:
    version, applied_index, term, now_ms, horizon, *counters, limits = row
    horizon, limits = tuple(json.loads(horizon)), tuple(json.loads(limits).items())
    return (version, applied_index, term, now_ms, horizon, *counters, limits)


def _theme_row(fields: Row) -> Row:
    theme_id, policy, paused, served = fields
    return (theme_id, _json(dict(zip(POLICY_RANGES, policy, strict=True))), int(paused), served)


def _theme_fields(row: Row) -> Row:
    theme_id, policy, paused, served = row
    settings = json.loads(policy)
    if list(settings) != list(POLICY_RANGES):
        raise ValueError(f"the policy of theme {theme_id} has other settings")
    if paused not in {0, 1}:
        raise ValueError(f"theme {theme_id} is neither paused nor not")
    return (theme_id, tuple(settings.values()), bool(paused), served)


def _answers_row(fields: Row) -> Row:
    proposer, sequence, results, failure = fields
    return (proposer, sequence, results, _packed(failure))


def _answers_fields(row: Row) -> Row:
    proposer, sequence, results, failure = row
    return (proposer, sequence, results, _unpacked(failure))


def _receipt_row(fields: Row) -> Row:
    key, fingerprint, expires_ms, result, unused_id = fields
    return (key, fingerprint, expires_ms, _packed(result), signed(unused_id))


def _receipt_fields(row: Row) -> Row:
    key, fingerprint, expires_ms, result, unused_id = row
    return (key, fingerprint, expires_ms, _unpacked(result), unsigned(unused_id))


def _session_row(fields: Row) -> Row:
    session_id, *others, history, chunk_count = fields
    return (signed(session_id), *others, _json(history) if history else "[]", chunk_count)


def _session_fields(row: Row) -> Row:
    stored_id, *others, history, chunk_count = row
    entries = () if history == "[]" else tuple(map(tuple, json.loads(history)))
    return (unsigned(stored_id), *others, entries, chunk_count)


# In the order in which `state.Loader` wants them.
TABLES = (
    Table(META, "meta", (), _meta_row, _meta_fields),
    Table(THEME, "themes", ("theme_id",), _theme_row, _theme_fields),
    Table(CONSUMER, "consumers", ("consumer_id",), _as_it_is, _as_it_is),
    Table(WINDOW, "windows", ("proposer",), _as_it_is, _as_it_is),
    Table(ANSWERS, "answers", ("proposer", "sequence"), _answers_row, _answers_fields),
    Table(RECEIPT, "receipts", ("key",), _receipt_row, _receipt_fields),
    Table(SESSION, "sessions", ("session_id",), _session_row, _session_fields),
)
TABLE_BY_KIND = {table.kind: table for table in TABLES}
