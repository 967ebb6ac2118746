"""Reads a file that may hold anything, and believes none of it.

The tables must be exactly those of this release, so there are no triggers and no views of a
stranger; SQLite checks its pages; the seal covers what the file says of itself; rows become items,
which `state.Loader` checks one by one, and in the end their digest.
"""

import contextlib
import errno
import gc
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from urllib.parse import quote

from cluster.storage.errors import (
    DamagedError,
    DiskError,
    LockedError,
    OtherVersionError,
    StorageError,
    WrongIdentityError,
)
from cluster.storage.state_schema import (
    APPLICATION_ID,
    FORMAT_VERSION,
    SCHEMA,
    TABLES,
    Row,
    Table,
    seal_of,
    unsigned,
)
from state import FIELDS, DamagedStateError, Item, Loader, StateMachine
from state.records import CHECK, SESSION

BUSY_TIMEOUT_S = 1.0  # somebody may have the file open for a moment

# A piece of what is loaded: enough that the work between pieces is nothing beside it.
PIECE_ITEMS = 256
PIECE_BYTES = 1 << 20

_PROBLEMS_MAX = 3  # that an integrity check names

_CLUSTER_COLUMNS = "cluster_id, format_version, applied_index, applied_term, digest, seal"


def connect(path: str, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(path)}?{mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,  # transactions are ours to begin
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def identify(connection: sqlite3.Connection, path: str, cluster_id: str) -> Row:
    """The row of `cluster`, if the file is a checkpoint of this cluster that can be read here."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise DamagedError(path, "it is a database, but not a checkpoint")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    stated = _stated_version(connection)
    is_older = 0 < version < FORMAT_VERSION and stated == version
    if is_older or (version > FORMAT_VERSION and stated != FORMAT_VERSION):
        raise OtherVersionError(path, version, FORMAT_VERSION)
    tables = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
    if version != FORMAT_VERSION or sorted(tables, key=repr) != sorted(SCHEMA.items(), key=repr):
        raise DamagedError(path, "its tables are not those of a checkpoint")
    rows = connection.execute(f"SELECT {_CLUSTER_COLUMNS} FROM cluster LIMIT 2").fetchall()  # noqa: S608
    if len(rows) != 1:
        raise DamagedError(path, "it does not say what it is a checkpoint of")
    row: Row = rows[0]
    if row[-1] != seal_of(row[:-1]):
        raise DamagedError(path, "what it says of itself does not fit its seal")
    if row[0] != cluster_id:
        raise WrongIdentityError(path, f"cluster {row[0]!r}", f"cluster {cluster_id!r}")
    return row


def _stated_version(connection: sqlite3.Connection) -> object:
    """What the file says once more about its version; None if this release cannot read it."""
    try:
        row = connection.execute("SELECT format_version FROM cluster").fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else row[0]


def check_pages(connection: sqlite3.Connection, path: str) -> None:
    found = connection.execute(f"PRAGMA integrity_check({_PROBLEMS_MAX})").fetchall()
    if found != [("ok",)]:
        raise DamagedError(path, "; ".join(str(problem) for (problem,) in found))


@contextlib.contextmanager
def sqlite_errors(path: str, operation: str) -> Iterator[None]:
    """Make what SQLite raises ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _storage_error(path, operation, error) from error
    except UnicodeDecodeError as error:
        # SQLite quotes damaged text in its message, and Python cannot make a message of that.
        raise DamagedError(path, f"its text is not UTF-8: {error}") from error


def _storage_error(path: str, operation: str, error: sqlite3.Error) -> StorageError:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    match None if code is None else code & 0xFF:  # above it are details
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return LockedError(path)
        case sqlite3.SQLITE_CANTOPEN if _is_withheld(path):
            number = errno.EACCES
        case sqlite3.SQLITE_FULL:
            number = errno.ENOSPC
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_NOLFS:
            number = errno.EIO
        case sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY if not os.access(path, os.W_OK):
            number = errno.EACCES
        case sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_MISMATCH:  # a defect of whoever wrote
            return StorageError(f"cannot {operation} {path}: {error}")
        case _:
            return DamagedError(path, str(error))
    return DiskError.of(path, operation, OSError(number, f"{os.strerror(number)} ({error})"))


def _is_withheld(path: str) -> bool:
    return os.access(path, os.F_OK) and not os.access(path, os.R_OK)


# Loading


def load_pieces(
    path: str, pieces: Generator[list[Item], None, None], between: Callable[[], None] | None
) -> StateMachine:
    loader = Loader()
    with _no_collection():
        try:
            for piece in pieces:
                loader.feed(piece)
                if between is not None:
                    between()
            return loader.finish()
        except DamagedStateError as error:
            raise DamagedError(path, str(error)) from error
        finally:
            pieces.close()  # an error that is kept would keep its cursors, and so the file's lock


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Let no collector look through millions of new objects again and again.

    Each time it would hold up all threads, for as long as a second. What was made it leaves alone
    for good.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def read_items(
    connection: sqlite3.Connection, path: str, digest: int, applied_index: int
) -> Generator[list[Item], None, None]:
    """All that is in the file as items, in pieces."""
    piece: list[Item] = []
    size_bytes = 0
    try:
        for item, item_bytes in _all_items(connection):
            piece.append(item)
            size_bytes += item_bytes
            if len(piece) >= PIECE_ITEMS or size_bytes >= PIECE_BYTES:
                yield piece
                piece = []
                size_bytes = 0
    except (MemoryError, sqlite3.Error):
        raise
    except Exception as error:
        # Rows may be anything, so anything may go wrong with them.
        raise DamagedError(path, f"a record cannot be read: {error}") from error
    piece.append(Item(CHECK, 0, (digest, applied_index)))
    yield piece


def _all_items(connection: sqlite3.Connection) -> Iterator[tuple[Item, int]]:
    """All items but CHECK, each with about how many bytes it has."""
    for table in TABLES:
        if table.kind == SESSION:
            yield from _sessions(connection, table)
            continue
        with _rows(connection, FIELDS[table.kind], table.name, table.key) as rows:
            for row in rows:
                fields = table.fields_of(row)
                # Results are the only long ones among these.
                size_bytes = sum(len(value) for value in row if isinstance(value, bytes))
                yield Item(table.kind, table.identity(fields), fields), size_bytes


def _sessions(connection: sqlite3.Connection, table: Table) -> Iterator[tuple[Item, int]]:
    """Sessions with their chunks: two tables in the same order, read side by side."""
    names = ("session_id", "position", "data")
    none: Row = (None, None, None)
    with (
        _rows(connection, FIELDS[SESSION], table.name, table.key) as rows,
        _rows(connection, names, "chunks", names[:2]) as chunk_rows,
    ):
        for row in rows:
            stored_id = row[0]
            chunks = []
            size_bytes = 0
            for expected in range(row[-1]):
                chunk_id, position, data = next(chunk_rows, none)
                if chunk_id != stored_id or position != expected:
                    raise ValueError(f"chunk {expected} of session {stored_id} is missing")
                chunks.append(data)
                size_bytes += len(data)
            fields = table.fields_of(row)
            yield Item(SESSION, unsigned(stored_id), fields, 0, tuple(chunks)), size_bytes
        left_over = next(chunk_rows, None)
        if left_over is not None:
            raise ValueError(f"chunk {left_over[1]} of session {left_over[0]} is of no session")


def _rows(
    connection: sqlite3.Connection, columns: Sequence[str], table: str, key: Sequence[str]
) -> "contextlib.closing[sqlite3.Cursor]":
    order = f" ORDER BY {', '.join(key)}" if key else ""
    sql = f"SELECT {', '.join(columns)} FROM {table}{order}"  # noqa: S608 - names of ours
    return contextlib.closing(connection.execute(sql))
