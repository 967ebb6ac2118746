"""The checkpoint: the whole state in one SQLite file, of which each commit writes what changed.

`StateFile` does nothing by itself and waits for the disk: `checkpoint.py` gives it a thread. What
it relies on, and why:

* A rollback journal, and not WAL. Once `commit` has returned, `state.db` alone is the checkpoint:
  nothing committed is ever beside it, to be forgotten by a copy or to be applied to another file.
  (WAL was measured: no faster for a first checkpoint, a third faster for a scattered one.)
* `synchronous=FULL` with `journal_mode=TRUNCATE`: a commit ends with an fsync of the file, then
  with one of the journal's new length. DELETE would leave its end to a directory that nobody
  syncs, and a power cut could undo what `commit` had promised.
* `locking_mode=EXCLUSIVE`: somebody who reads along with `sqlite3` gets "database is locked", and
  not a checkpoint that fails. To look inside while the node runs there is `copy`.
* All of it is for its owner alone, as it holds what clients stored. SQLite makes what it has beside
  a file with the rights of that file, so it is enough to see to those before SQLite opens it.
* A first checkpoint is written under another name and renamed when it is whole: a `state.db` that
  is there has been committed, and one that is empty is damage, never a new node.
* Many rows to a statement: SQLite lets go of the interpreter's lock for each statement, and a busy
  event loop gives it back after milliseconds.
"""

import contextlib
import errno
import hashlib
import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, Self

from cluster.storage.errors import ClosedError, DamagedError, DiskError, StorageError
from cluster.storage.state_reading import (
    check_pages,
    connect,
    identify,
    load_pieces,
    read_items,
    sqlite_errors,
)
from cluster.storage.state_schema import (
    APPLICATION_ID,
    FORMAT_VERSION,
    PAGE_BYTES,
    SCHEMA,
    TABLE_BY_KIND,
    Row,
    Table,
    seal_of,
    signed,
)
from state import FIELDS, Item, StateMachine
from state.records import CHECK, META, SESSION

_log = logging.getLogger(__name__)

CACHE_BYTES = 64 << 20  # of pages, while a transaction runs; dirty ones beyond it are written early
COPY_PAGES = 256  # in one step: 4 MiB
READ_BYTES = 1 << 20

# Sessions wait for each other and are written in the order of their ids, so that a page of the file
# that many of them are on is read, journaled and written once: twice as fast when the changes are
# scattered over a million sessions. So many of them, or so many bytes of chunks:
SORTED_SESSIONS = 32_768
SORTED_BYTES = 16 << 20

# Rows to a statement, and up to which size: SQLite copies what it is given.
_ROW_COUNTS = (64, 16, 4, 1)
_SMALL_BYTES = 64 << 10

_SIBLINGS = ("-journal", "-wal", "-shm")
_NEW = ".new"
_PART = ".part"

_OTHERS = 0o077  # the rights of all but the owner

_LEAST_ID = -(2**63)


class Summary(NamedTuple):
    """What a verified file is a checkpoint of."""

    applied_index: int
    applied_term: int
    digest: int
    session_count: int
    size_bytes: int


class StateFile:
    """`state.db`, open. For one thread at a time.

    After a `StorageError` of `begin`, `put` or `commit` call `rollback`, which finds out what is
    on disk: the last checkpoint, or, when the disk failed in the last moment of a commit, the new
    one. After a `DiskError` little is certain on that disk; a node that can do without stops.
    """

    def __init__(self, path: str, cluster_id: str, cache_bytes: int) -> None:
        """Use `open` or `create`."""
        self.path = path
        self.cluster_id = cluster_id
        self.applied_index = 0
        self.applied_term = 0
        self.digest = 0
        self._cache_bytes = cache_bytes
        self._file_path = path  # under which the connection knows it
        self._connection: sqlite3.Connection | None = None
        self._is_writing = False
        self._has_failed = False
        self._is_begun = False  # META was put in this transaction
        self._check: Item | None = None
        self._last_id = _LEAST_ID  # no session above it is in the file
        self._sessions: dict[int, Item] = {}  # put, and to be written; by id
        self._sessions_bytes = 0  # of their chunks

    @classmethod
    def open(cls, path: str, cluster_id: str, *, cache_bytes: int = CACHE_BYTES) -> Self | None:
        """The checkpoint at `path`; None if there is none.

        What a killed process left half done is rolled back. All pages are checked (SQLite's
        integrity check: 0.4 s for a million sessions), the tables, the version, whose file it is,
        and the seal; `load_machine` checks the records. Raises `StorageError`.
        """
        if not _is_there(path):
            return None
        file = cls(path, cluster_id, cache_bytes)
        file._connect()
        try:
            with file._guard("read") as connection:
                check_pages(connection, path)
        except BaseException:
            file.close()
            raise
        return file

    @classmethod
    def create(cls, path: str, cluster_id: str, *, cache_bytes: int = CACHE_BYTES) -> Self:
        """A checkpoint that will be at `path` from its first commit on. Raises `StorageError`."""
        if _is_there(path):
            error = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            raise DiskError.of(path, "create", error)
        file = cls(path, cluster_id, cache_bytes)
        file._make_new()
        return file

    @property
    def is_committed(self) -> bool:
        """Whether there is a checkpoint: not between `create` and the first commit."""
        return self._file_path == self.path

    @property
    def is_writing(self) -> bool:
        """Whether a transaction is open."""
        return self._is_writing

    def close(self) -> None:
        """Roll back what is not committed and let go of the file. Closing twice does nothing."""
        connection, self._connection = self._connection, None
        self._is_writing = False
        self._sessions = {}
        if connection is None:
            return
        try:
            with sqlite_errors(self._file_path, "close"):
                connection.close()
        finally:
            if not self.is_committed:
                _remove_all(self._file_path)

    # Reading

    def load(self) -> Generator[list[Item], None, None]:
        """The whole state as it was committed, in pieces, in the order that `Loader` wants.

        The file must not be written meanwhile. Raises `StorageError`.
        """
        if self._is_writing or not self.is_committed:
            raise RuntimeError("there is nothing to load while a checkpoint is being written")
        with self._guard("read") as connection:
            yield from read_items(connection, self.path, self.digest, self.applied_index)

    def load_machine(self, between: Callable[[], None] | None = None) -> StateMachine:
        """The state as it was committed, digest and all. Raises `StorageError`.

        `between` is called after each piece; what it raises ends the loading.
        """
        return load_pieces(self.path, self.load(), between)

    # Writing

    def begin(self) -> None:
        """Begin a checkpoint. Raises `StorageError`."""
        if self._is_writing:
            raise RuntimeError("the last checkpoint was not committed or rolled back")
        with self._guard("write") as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._is_writing = True
            self._is_begun = False
            self._check = None
            self._sessions = {}
            self._sessions_bytes = 0
            (last_id,) = connection.execute("SELECT max(session_id) FROM sessions").fetchone()
            self._last_id = _LEAST_ID if last_id is None else last_id

    def put(self, items: Sequence[Item]) -> None:
        """Write the next items of a capture, as `state.Item` says. Raises `StorageError`."""
        self._require_writing()
        with self._guard("write") as connection:
            for (kind, is_deletion), run in groupby(items, _kind_of):
                if is_deletion:
                    self._delete(connection, TABLE_BY_KIND[kind], [one.identity for one in run])
                elif kind == SESSION:
                    self._collect(connection, run)
                elif kind == CHECK:
                    (self._check,) = run
                else:
                    self._write(connection, TABLE_BY_KIND[kind], list(run))

    def commit(self, applied_index: int, applied_term: int) -> None:
        """Make what was put the checkpoint: all of it, durable when this returns.

        `applied_term` is the Raft term of the entry at `applied_index`, where the state is. Raises
        `StorageError`, and ValueError if what was put is not a whole capture of that index.
        """
        self._require_writing()
        check = self._check
        if check is None or check.fields is None or not self._is_begun:
            raise ValueError("the capture was not put as a whole, from META to CHECK")
        digest, index = check.fields
        if index != applied_index:
            raise ValueError(f"the capture is of index {index}, not of {applied_index}")
        row = (self.cluster_id, FORMAT_VERSION, applied_index, applied_term, digest)
        with self._guard("write") as connection:
            self._write_sessions(connection)
            connection.execute("DELETE FROM cluster")
            connection.execute(_insert("cluster", 6, 1), (*row, seal_of(row)))
            connection.execute("COMMIT")
            connection.execute("PRAGMA shrink_memory")  # the cache is of no use until the next one
        if not self.is_committed:
            self._rename()
        self._is_writing = False
        self.applied_index, self.applied_term, self.digest = applied_index, applied_term, digest

    def rollback(self) -> None:
        """Leave what was put since `begin`; if the disk failed, find out what there is.

        Without a transaction it does nothing. Raises `StorageError`; closed then.
        """
        if not self._is_writing and not self._has_failed:
            return
        self._is_writing = False
        self._sessions = {}
        if not self._has_failed:
            with self._guard("roll back") as connection:
                connection.execute("ROLLBACK")
            return
        # SQLite may have rolled back, or be unable to: a new connection does what a restart would.
        with contextlib.suppress(StorageError):  # it is the second error, and the file is read anew
            self.close()
        self._reopen()

    def replace(self, received_path: str) -> None:
        """Go on with a verified file in the place of this one (see `install`).

        Raises `StorageError`; this is the old checkpoint then, or closed.
        """
        self.close()
        try:
            install(received_path, self.path)
        finally:
            self._reopen()

    def copy(self, path: str) -> None:
        """Write a copy of the checkpoint to `path`, which is there when it is whole and durable.

        Raises `StorageError`, and RuntimeError while a checkpoint is being written.
        """
        if self._is_writing or not self.is_committed:
            raise RuntimeError("there is nothing to copy while a checkpoint is being written")
        part = path + _PART
        _remove_all(part)
        try:
            with self._guard("copy") as connection:
                _back_up(connection, part)
            _put_in_place(part, path)
        except BaseException:
            with contextlib.suppress(StorageError):  # the first error is the one that matters
                _remove_all(part)
            raise

    # How

    def _connect(self) -> None:
        """Open the file, take it for this process, and read what it says of itself."""
        self._has_failed = False
        path = self._file_path
        try:
            _make_private(path)
            with sqlite_errors(path, "open"):
                self._connection = connection = connect(path, "mode=rw")
                row = identify(connection, path, self.cluster_id)
                _, _, self.applied_index, self.applied_term, self.digest, _ = row
                self._prepare(connection)
        except BaseException:
            self.close()
            raise

    def _reopen(self) -> None:
        """Go on with what is on disk."""
        if _is_there(self.path):
            self._file_path = self.path
            self._connect()
        else:
            self._make_new()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        (mode,) = connection.execute("PRAGMA journal_mode = TRUNCATE").fetchone()
        if mode != "truncate":
            raise StorageError(f"{self.path} stays in journal mode {mode}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = {-(self._cache_bytes >> 10)}")
        connection.execute("BEGIN EXCLUSIVE")  # the lock is kept
        connection.execute("DELETE FROM cluster WHERE 0")  # finds out whether it can write
        connection.execute("COMMIT")

    def _make_new(self) -> None:
        """Begin an empty file under another name."""
        self._has_failed = False
        self._file_path = path = self.path + _NEW
        _remove_all(path)
        _create_private(path)
        try:
            with sqlite_errors(path, "create"):
                self._connection = connection = connect(path, "mode=rw")
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
                for sql in SCHEMA.values():
                    connection.execute(sql)
                self._prepare(connection)
        except BaseException:
            self.close()
            raise

    def _rename(self) -> None:
        """Give a file its name, when its first commit is in it."""
        with self._guard("close") as connection:
            self._connection = None
            connection.close()
            _put_in_place(self._file_path, self.path)
            self._file_path = self.path
            self._connect()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ClosedError(self.path)
        return self._connection

    def _require_writing(self) -> None:
        self._opened()
        if not self._is_writing:
            raise RuntimeError("no checkpoint was begun")

    @contextlib.contextmanager
    def _guard(self, operation: str) -> Iterator[sqlite3.Connection]:
        """Make errors of SQLite ours, and remember them for `rollback`."""
        connection = self._opened()
        try:
            with sqlite_errors(self._file_path, operation):
                yield connection
        except StorageError:
            self._has_failed = True
            raise

    def _write(self, connection: sqlite3.Connection, table: Table, items: list[Item]) -> None:
        rows = [table.row_of(one.fields) for one in items if one.fields is not None]
        if table.kind == META:
            connection.execute("DELETE FROM meta")
            self._is_begun = True
        _run(connection, _insert, (table.name, len(FIELDS[table.kind])), rows)

    def _collect(self, connection: sqlite3.Connection, items: Iterable[Item]) -> None:
        for item in items:
            session_id, chunks = item.identity, item.chunks
            if not isinstance(session_id, int) or item.fields is None:
                raise TypeError(f"{session_id!r} is not a session that is put")
            if item.first_chunk + len(chunks) != item.fields[-1]:
                raise ValueError(f"chunks of session {session_id} are missing")
            if session_id in self._sessions:
                self._write_sessions(connection)
            self._sessions[session_id] = item
            self._sessions_bytes += sum(map(len, chunks))
            if len(self._sessions) >= SORTED_SESSIONS or self._sessions_bytes >= SORTED_BYTES:
                self._write_sessions(connection)

    def _write_sessions(self, connection: sqlite3.Connection) -> None:
        waiting, self._sessions = self._sessions, {}
        self._sessions_bytes = 0
        ids = sorted(waiting, key=signed)
        for start in range(0, len(ids), _ROW_COUNTS[0]):
            # Taken out one by one: to free all at once would hold up the loop.
            items = [waiting.pop(session_id) for session_id in ids[start : start + _ROW_COUNTS[0]]]
            self._write_chunks(connection, items)
            self._write(connection, TABLE_BY_KIND[SESSION], items)

    def _write_chunks(self, connection: sqlite3.Connection, items: list[Item]) -> None:
        replaced: list[Row] = []
        small: list[Row] = []
        large: list[Row] = []
        for _, identity, _, first_chunk, chunks in items:
            (stored_id,) = TABLE_BY_KIND[SESSION].key_of(identity)
            # Ids are counted up, so most that are new need no look for chunks of old.
            if stored_id > self._last_id:
                self._last_id = stored_id
            else:
                replaced.append((stored_id, first_chunk))
            for position, data in enumerate(chunks, first_chunk):
                rows = small if len(data) <= _SMALL_BYTES else large
                rows.append((stored_id, position, data))
        _run(connection, _cut, (), replaced)
        _run(connection, _insert, ("chunks", 3), small)
        for row in large:
            connection.execute(_insert("chunks", 3, 1), row)

    def _delete(self, connection: sqlite3.Connection, table: Table, identities: list[Any]) -> None:
        keys = [table.key_of(identity) for identity in identities]
        if table.kind == SESSION:
            self._write_sessions(connection)
        _run(connection, _remove, (table.name, table.key), keys)
        if table.kind == SESSION:
            _run(connection, _remove, ("chunks", table.key), keys)


def verify(path: str, cluster_id: str) -> Summary:
    """Check all of a file that is not in use, a backup perhaps. Raises `StorageError`."""
    return receive(path, cluster_id)[1]


def receive(
    path: str, cluster_id: str, between: Callable[[], None] | None = None
) -> tuple[StateMachine, Summary]:
    """Check all of a file from elsewhere by loading it; it is not changed.

    Only the file itself counts, no journal beside it. Raises `StorageError`.
    """
    if not _is_there(path):
        raise DiskError.of(path, "open", FileNotFoundError(errno.ENOENT, "there is no such file"))
    try:
        with (
            sqlite_errors(path, "read"),
            contextlib.closing(connect(path, "mode=ro&immutable=1")) as connection,
        ):
            _, _, index, term, digest, _ = identify(connection, path, cluster_id)
            check_pages(connection, path)
            items = read_items(connection, path, digest, index)
            machine = load_pieces(path, items, between)
        size_bytes = Path(path).stat().st_size
    except OSError as error:
        raise DiskError.of(path, "read", error) from error
    return machine, Summary(index, term, digest, machine.session_count, size_bytes)


def install(received_path: str, path: str) -> None:
    """Put a verified file in the place of the checkpoint, which must be closed. Durable.

    Whenever this is cut short, `path` is the old checkpoint as it was committed, or the new one.
    Raises `StorageError`.
    """
    if _is_there(path):
        # A journal beside the old file would be applied to the new one: finish what it is for.
        # If it is damaged, they can only be thrown away together.
        with (
            contextlib.suppress(DamagedError),
            sqlite_errors(path, "replace"),
            contextlib.closing(connect(path, "mode=rw")) as connection,
        ):
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("COMMIT")
    _put_in_place(received_path, path)


def file_digest(path: str) -> bytes:
    """32 bytes by which a file is known again after a transfer. Raises `DiskError`.

    Not for a checkpoint that is open: closing a file gives up the locks that SQLite has on it.
    """
    digest = hashlib.blake2b(digest_size=32)
    try:
        with Path(path).open("rb", buffering=0) as file:
            while data := file.read(READ_BYTES):
                digest.update(data)
    except OSError as error:
        raise DiskError.of(path, "read", error) from error
    return digest.digest()


# SQL. Few texts, so that their statements stay prepared.


@cache
def _insert(table: str, column_count: int, row_count: int) -> str:
    row = f"({', '.join('?' * column_count)})"
    return f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * row_count)}"  # noqa: S608


@cache
def _remove(table: str, key: tuple[str, ...], row_count: int) -> str:
    row = f"({', '.join('?' * len(key))})"
    keys = f"({', '.join(key)}) IN (VALUES {', '.join([row] * row_count)})"
    return f"DELETE FROM {table} WHERE {keys}"  # noqa: S608


@cache
def _cut(row_count: int) -> str:
    return (
        f"WITH cut (session_id, first) AS (VALUES {', '.join(['(?, ?)'] * row_count)}) "  # noqa: S608
        "DELETE FROM chunks WHERE (session_id, position) IN ("
        "SELECT old.session_id, old.position FROM cut CROSS JOIN chunks AS old "
        "ON old.session_id = cut.session_id AND old.position >= cut.first)"
    )


def _run(
    connection: sqlite3.Connection,
    statement: Callable[..., str],
    arguments: tuple[Any, ...],
    rows: list[Row],
) -> None:
    """Execute a statement for all rows, many at a time."""
    start = 0
    for row_count in _ROW_COUNTS:
        while len(rows) - start >= row_count:
            values = list(chain.from_iterable(rows[start : start + row_count]))
            connection.execute(statement(*arguments, row_count), values)
            start += row_count


def _kind_of(item: Item) -> tuple[int, bool]:
    return item.kind, item.fields is None


# Files


def _is_there(path: str) -> bool:
    """Whether there is a file, which may not be empty. Raises `StorageError`."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise DiskError.of(path, "open", error) from error
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError(path, "it is not a file")
    if status.st_size == 0:
        raise DamagedError(path, "it is empty")
    return True


def _with_siblings(path: str) -> list[Path]:
    """A file, and what SQLite may have beside it."""
    return [Path(path + suffix) for suffix in ("", *_SIBLINGS)]


def _create_private(path: str) -> None:
    """Make an empty file that is for its owner alone, whatever the umask is."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise DiskError.of(path, "create", error) from error


def _make_private(path: str) -> None:
    """Leave a file, and what is beside it, to its owner alone; say so if that is impossible."""
    for one in _with_siblings(path):
        try:
            mode = stat.S_IMODE(one.stat().st_mode)
            if mode & _OTHERS:
                one.chmod(mode & ~_OTHERS)
        except FileNotFoundError:
            continue
        except OSError as error:  # it is another user's, or on a disk that knows no rights
            _log.warning("%s stays open to other users of this machine: %s", one, error.strerror)


def _put_in_place(source: str, path: str) -> None:
    """Rename a file, durably and with all that is in it, so that nothing beside belongs to it."""
    try:
        _sync(source)
        for sibling in _SIBLINGS:
            for name in (source + sibling, path + sibling):
                Path(name).unlink(missing_ok=True)
        # What is gone must stay gone before the name changes.
        directory = str(Path(path).parent)
        _sync(directory)
        Path(source).replace(path)
        _sync(directory)
    except OSError as error:
        raise DiskError.of(path, "replace", error) from error


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_all(path: str) -> None:
    """Remove a file that counts for nothing, and what is beside it."""
    try:
        for one in _with_siblings(path):
            one.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError.of(path, "remove", error) from error


def _back_up(connection: sqlite3.Connection, path: str) -> None:
    _create_private(path)
    with contextlib.closing(connect(path, "mode=rw")) as target:
        # No journal: what is not whole is thrown away.
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")
        connection.backup(target, pages=COPY_PAGES)
