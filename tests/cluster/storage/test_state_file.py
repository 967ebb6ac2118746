"""The checkpoint is the state at its last commit, all of it; anything else is refused by name."""

import errno
import gc
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.storage import state_file
from cluster.storage.errors import (
    ClosedError,
    DamagedError,
    DiskError,
    DiskFullError,
    LockedError,
    OtherVersionError,
    StorageError,
    WrongIdentityError,
)
from cluster.storage.state_file import (
    StateFile,
    Summary,
    file_digest,
    install,
    verify,
)
from cluster.storage.state_schema import FORMAT_VERSION, PAGE_BYTES
from state import Capture, Item
from state.operations import Append, New, Replace, SetPolicy
from state.policy import POLICY_RANGES
from state.records import SESSION, THEME
from tests.cluster.storage.state_files import (
    CLUSTER,
    SIBLINGS,
    Log,
    checkpoint,
    created,
    listing,
    listing_of,
    opened,
    put,
    scratch,
    torn_copy,
)
from tests.state.driver import Driver
from tests.state.workload import Workload, whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def names(directory: Path) -> set[str]:
    return {one.name for one in directory.iterdir()}


# Round trips

ROUNDS = st.lists(
    st.tuples(
        st.integers(0, 25),  # batches before it
        st.sampled_from((1, 300, 5_000, 1 << 20)),  # size of a piece
        st.booleans(),  # whether batches go on meanwhile
        st.sampled_from(("commit", "commit", "rollback", "reopen", "error")),
    ),
    min_size=1,
    max_size=5,
)


@given(seed=st.integers(0, 2**32 - 1), rounds=ROUNDS)
def test_checkpoints_of_changes_are_the_whole_state(
    seed: int, rounds: list[tuple[int, int, bool, str]]
) -> None:
    workload = Workload(seed)
    machine = workload.machine
    with scratch() as directory:
        path = Path(directory) / "state.db"
        file = created(path)
        expected: list[str] | None = None
        for batches, piece_bytes, is_busy, end in [*rounds, (5, 1 << 20, False, "commit")]:
            workload.take(batches)
            now, digest = listing(whole(machine)), machine.digest()
            index = machine.applied_index
            capture = machine.capture_changes()
            put(file, capture, piece_bytes, workload.step if is_busy else None)
            if end == "commit":
                file.commit(index, 7)
                capture.commit()
                expected = now
                assert (file.applied_index, file.applied_term, file.digest) == (index, 7, digest)
            else:
                capture.abandon()
                file = left(file, end, path)
            if expected is None:
                assert not path.exists()
                continue
            assert listing_of(file) == expected
        file.close()
        file = opened(path)
        assert listing_of(file) == expected
        loaded = file.load_machine()
        assert loaded.digest() == file.digest
        assert listing(whole(loaded)) == expected
        file.copy(str(path) + ".copy")
        summary = verify(str(path) + ".copy", CLUSTER)
        assert summary[:4] == (loaded.applied_index, 7, loaded.digest(), loaded.session_count)
        file.close()


def left(file: StateFile, end: str, path: Path) -> StateFile:
    """A checkpoint that was begun and comes to nothing."""
    if end == "rollback":
        file.rollback()
        return file
    if end == "error":
        with pytest.raises(StorageError, match="NOT NULL"):
            file.put([Item(THEME, 1, (1, tuple(POLICY_RANGES), False, None))])
        file.rollback()
        return file
    file.close()
    return opened(path) if path.exists() else created(path)


def test_a_loaded_state_writes_its_changes_to_the_same_file(path: Path) -> None:
    log = Log()
    for _ in range(4):
        log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
    for _ in range(4):
        with closing(opened(path)) as file:
            log = Log(file.load_machine())
            log.step()
            checkpoint(file, log.machine)
            assert listing_of(file) == listing(whole(log.machine))


def test_an_appended_chunk_leaves_those_before_it_alone(path: Path) -> None:
    driver = Driver()
    (new,) = driver.results(New(1, data=b"a"))
    with closing(created(path)) as file:
        checkpoint(file, driver.machine)
        driver.apply(Append(new.session_id, 1, b"b"), Append(new.session_id, 1, b"c"))
        capture = driver.machine.capture_changes()
        file.begin()
        written: list[Item] = []
        for piece in capture.pieces():
            file.put(piece)
            written += [one for one in piece if one.kind == SESSION]
        assert [(one.first_chunk, one.chunks) for one in written] == [(1, (b"b", b"c"))]
        file.commit(driver.machine.applied_index, 1)
        capture.commit()
        assert file.load_machine().session(new.session_id).chunks == [b"a", b"b", b"c"]  # type: ignore[union-attr]
        driver.apply(Replace(new.session_id, 1, b"d"))
        checkpoint(file, driver.machine)
        assert file.load_machine().session(new.session_id).chunks == [b"d"]  # type: ignore[union-attr]


def test_what_is_put_last_counts(path: Path) -> None:
    driver = Driver()
    (new,) = driver.results(New(1, data=b"a"))
    driver.apply(Append(new.session_id, 1, b"b"))
    machine = driver.machine
    with closing(created(path)) as file:
        first = machine.capture_changes()
        put(file, first)
        first.commit()
        driver.apply(Replace(new.session_id, 1, b"c"))
        second = machine.capture_changes()
        file.put([item for piece in second.pieces() for item in piece])
        second.commit()
        file.commit(machine.applied_index, 1)
        assert listing_of(file) == listing(whole(machine))

        everything = [item for piece in machine.capture_everything().pieces() for item in piece]
        file.begin()
        file.put(everything)
        file.put([Item(SESSION, new.session_id, None)])
        file.commit(machine.applied_index, 1)
        left_over = [item for item in everything if item.kind != SESSION]
        assert listing_of(file) == listing(left_over)


def test_many_sessions_are_written_in_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "SORTED_SESSIONS", 7)
    log = Log()
    with closing(created(path)) as file:
        for _ in range(3):
            log.step()
            checkpoint(file, log.machine)
        monkeypatch.setattr(state_file, "SORTED_BYTES", 1000)
        for _ in range(3):
            log.step()
            checkpoint(file, log.machine)
        assert listing_of(file) == listing(whole(log.machine))


def test_large_chunks_come_back(path: Path) -> None:
    driver = Driver()
    chunks = [os.urandom(1 << 20), os.urandom((64 << 10) + 1), os.urandom(64 << 10)]
    (new,) = driver.results(New(1, data=chunks[0]))
    driver.apply(*(Append(new.session_id, 1, chunk) for chunk in chunks[1:]))
    with closing(created(path)) as file:
        checkpoint(file, driver.machine)
        session = file.load_machine().session(new.session_id)
        assert session is not None
        assert session.chunks == chunks


# Before and between


def test_a_new_node_has_none(path: Path) -> None:
    assert StateFile.open(str(path), CLUSTER) is None


def test_there_is_none_before_the_first_commit(path: Path) -> None:
    log = Log()
    log.step()
    with closing(created(path)) as file:
        put(file, log.machine.capture_changes())
        assert not file.is_committed
        assert not path.exists()
        with pytest.raises(RuntimeError):
            file.copy(str(path) + ".copy")
        with pytest.raises(RuntimeError):
            list(file.load())
    assert names(path.parent) == set()
    assert StateFile.open(str(path), CLUSTER) is None


def test_what_is_left_of_a_first_checkpoint_is_of_no_use(path: Path) -> None:
    path.with_name("state.db.new").write_bytes(b"half")
    path.with_name("state.db.new-journal").write_bytes(b"half")
    path.with_name("state.db-wal").write_bytes(b"of a file that somebody has removed")
    assert StateFile.open(str(path), CLUSTER) is None
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
        assert listing_of(file) == listing(whole(log.machine))
    assert names(path.parent) <= {"state.db", "state.db-journal"}


def test_create_never_takes_the_place_of_a_checkpoint(path: Path) -> None:
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
    with pytest.raises(DiskError, match="exists"):
        created(path)
    with closing(opened(path)) as file:
        assert file.applied_index == 1


def test_it_is_used_in_order(path: Path) -> None:
    log = Log()
    log.step()
    items = [one for piece in log.machine.capture_everything().pieces() for one in piece]
    with closing(created(path)) as file:
        with pytest.raises(RuntimeError, match="begun"):
            file.put(items)
        with pytest.raises(RuntimeError, match="begun"):
            file.commit(1, 1)
        file.rollback()  # of nothing
        file.begin()
        with pytest.raises(RuntimeError, match="not committed"):
            file.begin()
        file.put(items[:-1])
        with pytest.raises(ValueError, match="as a whole"):
            file.commit(1, 1)
        file.put(items[-1:])
        with pytest.raises(ValueError, match="index 1, not of 2"):
            file.commit(2, 1)
        file.rollback()
        file.begin()
        file.put(items[1:])
        with pytest.raises(ValueError, match="as a whole"):
            file.commit(1, 1)
        file.rollback()
        file.begin()
        file.put(items)
        file.commit(1, 1)
        assert listing_of(file) == listing(items)
    file.close()
    with pytest.raises(ClosedError):
        file.begin()
    with pytest.raises(ClosedError):
        file.put(items)
    with pytest.raises(ClosedError):
        list(file.load())


def test_a_session_without_all_its_chunks_is_not_written(path: Path) -> None:
    driver = Driver()
    driver.apply(New(1, data=b"a"))
    items = [one for piece in driver.machine.capture_everything().pieces() for one in piece]
    with closing(created(path)) as file:
        file.begin()
        with pytest.raises(ValueError, match="chunks of session 1 are missing"):
            file.put([one._replace(chunks=()) for one in items if one.kind == SESSION])


def test_deleting_what_is_not_there_does_nothing(path: Path) -> None:
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
        before = listing_of(file)
        items = [one for piece in log.machine.capture_everything().pieces() for one in piece]
        gone: list[tuple[int, Any]] = [
            (1, 999),
            (2, b"none"),
            (3, "none"),
            (4, ("none", 1)),
            (5, b"none"),
            (6, 2**40),
        ]
        file.begin()
        file.put([items[0], *(Item(kind, name, None) for kind, name in gone), items[-1]])
        file.commit(1, 1)
        assert listing_of(file) == before


def test_another_process_is_told_that_it_is_in_use(path: Path) -> None:
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
        script = f"""
from cluster.storage.errors import LockedError
from cluster.storage.state_file import StateFile, install
for use in (
    lambda: StateFile.open({str(path)!r}, {CLUSTER!r}),
    lambda: install("nothing", {str(path)!r}),
):
    try:
        use()
    except LockedError:
        print("locked")
"""
        told = subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert told.stdout == "locked\nlocked\n"
    opened(path).close()


# Who may read it


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


@pytest.mark.usefixtures("usual_umask")
def test_all_that_is_written_is_for_its_owner_alone(path: Path) -> None:
    log = Log(operations=600)
    found: dict[str, int] = {}

    def look() -> None:
        found.update(modes(path.parent))

    with closing(created(path)) as file:
        for _ in range(2):
            index = log.step()
            capture = log.machine.capture_changes()
            put(file, capture, 1 << 16, look)
            file.commit(index, 1)
            capture.commit()
            look()
        file.copy(str(path) + ".copy")
        look()
    names_of_new = {"state.db.new", "state.db.new-journal"}
    assert found.keys() == {"state.db", "state.db-journal", "state.db.copy"} | names_of_new
    assert set(found.values()) == {0o600}


@pytest.mark.usefixtures("usual_umask")
def test_one_that_others_can_read_is_narrowed_when_it_is_opened(path: Path) -> None:
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
    path.with_name("state.db-journal").touch()
    for name in modes(path.parent):
        path.with_name(name).chmod(0o664)
    verify(str(path), CLUSTER)  # only looks
    assert modes(path.parent) == {"state.db": 0o664, "state.db-journal": 0o664}
    with closing(opened(path)) as file:
        assert modes(path.parent) == {"state.db": 0o600, "state.db-journal": 0o600}
        log.step()
        checkpoint(file, log.machine)
    assert set(modes(path.parent).values()) == {0o600}


def test_one_that_cannot_be_narrowed_is_told_of(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
    path.chmod(0o644)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with closing(opened(path)) as file:
        assert listing_of(file) == listing(whole(log.machine))
    assert caplog.messages == [
        f"{path} stays open to other users of this machine: Operation not permitted"
    ]


def test_one_that_may_not_be_read_is_no_fault_of_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite says that it cannot open the file, whatever the reason is."""
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)

    def cannot_open(*_: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr(state_file, "connect", cannot_open)
    for may_read, number in ((True, errno.EIO), (False, errno.EACCES)):
        # A test's user may be one that is never refused.
        monkeypatch.setattr(os, "access", lambda _, mode, may=may_read: mode == os.F_OK or may)
        for use in (StateFile.open, verify):
            with pytest.raises(DiskError) as told:
                use(str(path), CLUSTER)
            assert told.value.errno == number


# Whose it is, and which version


def test_another_clusters_file_is_refused(path: Path) -> None:
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
    for use in (StateFile.open, verify):
        with pytest.raises(WrongIdentityError, match="cluster-2"):
            use(str(path), "cluster-2")


def test_the_file_of_another_release_is_refused(path: Path) -> None:
    log = Log()
    log.step()
    with closing(created(path)) as file:
        checkpoint(file, log.machine)
    newer = FORMAT_VERSION + 1
    state = (
        f"PRAGMA user_version = {newer}",
        "UPDATE cluster SET format_version = format_version + 1",
    )
    change(path, *state)
    with pytest.raises(OtherVersionError) as told:
        opened(path)
    assert (told.value.path, told.value.version, told.value.supported) == (
        str(path),
        newer,
        FORMAT_VERSION,
    )
    change(path, "PRAGMA user_version = 1", "UPDATE cluster SET format_version = 1")
    with pytest.raises(OtherVersionError, match=f"version 1, .* only {FORMAT_VERSION}"):
        opened(path)
    change(path, f"PRAGMA user_version = {newer}")
    change(path, "DROP TABLE cluster")  # it may look like anything
    for use in (StateFile.open, verify):
        with pytest.raises(OtherVersionError):
            use(str(path), CLUSTER)


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for sql in statements:
            connection.execute(sql)


# Damage


@cache
def sample() -> tuple[bytes, tuple[object, ...]]:
    """A checkpoint with something in each table, and what it says."""
    workload = Workload(11)
    with scratch() as directory:
        path = Path(directory) / "state.db"
        with closing(created(path)) as file:
            while not all(one in "".join(listing(whole(workload.machine))) for one in KINDS):
                workload.take(20)
                checkpoint(file, workload.machine, term=5)
            said = (file.applied_index, 5, *listing(whole(workload.machine)))
        return path.read_bytes(), said


KINDS = [f"Item(kind={kind}," for kind in range(8)]


def said_by(path: Path) -> tuple[object, ...]:
    with closing(opened(path)) as file:
        loaded = file.load_machine()
        assert loaded.applied_index == file.applied_index
        return (file.applied_index, file.applied_term, *listing(whole(loaded)))


def check_refused_or_equal(path: Path, data: bytes) -> bool:
    """Whether damaged bytes are refused; else they must say what they did before."""
    good, said = sample()
    # Damage of both the version and what it could be compared with is not to be told from a file
    # of a later release.
    looks_newer = data[60:64] != good[60:64] and data[:60] + data[64:] != good[:60] + good[64:]
    path.write_bytes(data)
    try:
        assert said_by(path) == said
    except DamagedError as error:
        assert error.path == str(path)  # noqa: PT017 - both ends are right
        refused = True
    except OtherVersionError:
        assert looks_newer
        refused = True
    else:
        refused = False
    path.write_bytes(data)
    try:
        summary = verify(str(path), CLUSTER)
    except (DamagedError, OtherVersionError):
        assert refused
    else:
        assert summary[:2] == said[:2]
    return refused


@given(
    flips=st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, 255)), min_size=1, max_size=4)
)
@example(flips=[(14_931, 128)])  # SQLite's message quotes it, and Python cannot read that
def test_flipped_bits_are_found_or_harmless(flips: list[tuple[int, int]]) -> None:
    good, _ = sample()
    bad = bytearray(good)
    for place, bits in flips:
        bad[place % len(good)] ^= bits
    with scratch() as directory:
        check_refused_or_equal(Path(directory) / "state.db", bytes(bad))


@pytest.mark.parametrize("bits", [1, 2, 0x80, 0xFF])
def test_no_byte_of_the_header_misleads(path: Path, bits: int) -> None:
    good, _ = sample()
    refused = 0
    for place in range(108):
        bad = bytearray(good)
        bad[place] ^= bits
        refused += check_refused_or_equal(path, bytes(bad))
        for sibling in SIBLINGS:
            path.with_name(path.name + sibling).unlink(missing_ok=True)
    assert refused > 40


@pytest.mark.parametrize("bits", [4, 0x80])
def test_no_byte_of_a_record_misleads(path: Path, bits: int) -> None:
    # The texts and numbers of all tables, not only the empty room between them.
    good, _ = sample()
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(good)
        roots = connection.execute("SELECT rootpage FROM sqlite_master").fetchall()
    refused = 0
    for root in (1, *(root for (root,) in roots)):
        start, end = (root - 1) * PAGE_BYTES, root * PAGE_BYTES
        header = 100 if root == 1 else start
        # Cells are at the end of a page.
        cells = start + int.from_bytes(good[header + 5 : header + 7], "big")
        for place in (*range(header, header + 8), *range(cells, end, max(1, (end - cells) // 50))):
            bad = bytearray(good)
            bad[place] ^= bits
            refused += check_refused_or_equal(path, bytes(bad))
    assert refused > 200


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE cluster SET applied_term = 6",
        "UPDATE cluster SET applied_index = applied_index + 1",
        "UPDATE cluster SET digest = digest + 1",
        "UPDATE cluster SET cluster_id = 'cluster-2'",
        "UPDATE cluster SET format_version = format_version + 1",
        "UPDATE cluster SET seal = 'x'",
        "DELETE FROM cluster",
        "INSERT INTO cluster SELECT * FROM cluster",
        "DELETE FROM meta",
        "INSERT INTO meta SELECT * FROM meta",
        "UPDATE meta SET applied_index = applied_index - 1",
        "UPDATE meta SET limits = '[]'",
        "UPDATE meta SET limits = '[[[['",
        "UPDATE meta SET version = version + 1",
        "UPDATE themes SET policy = replace(policy, 'lease_ms', 'lease_mz')",
        "UPDATE themes SET policy = '{}'",
        "UPDATE themes SET paused = 2",
        "DELETE FROM themes",
        "UPDATE sessions SET history = 'x'",
        "UPDATE sessions SET chunk_count = -1",
        "UPDATE sessions SET chunk_count = 'x'",
        "UPDATE sessions SET chunk_count = chunk_count + 1",
        "UPDATE sessions SET phase = 77",
        "UPDATE sessions SET epoch = 1.5",
        "UPDATE sessions SET key = 'text' WHERE key IS NOT NULL",
        "DELETE FROM sessions WHERE session_id = (SELECT max(session_id) FROM sessions)",
        "DELETE FROM sessions WHERE session_id = (SELECT min(session_id) FROM sessions)",
        "DELETE FROM chunks WHERE position = 0",
        "UPDATE chunks SET data = 'text'",
        "UPDATE chunks SET data = 7",
        "UPDATE chunks SET position = position + 10",
        "INSERT INTO chunks VALUES (-5, 0, x'00')",
        "INSERT INTO chunks VALUES (99999999, 0, x'00')",
        "UPDATE answers SET results = x'c1'",
        "DROP TABLE answers",
        "UPDATE windows SET proposer = x'00ff' WHERE proposer = 'node-1'",
        "UPDATE windows SET proposer = CAST(x'ff' AS TEXT) WHERE proposer = 'node-1'",
        "UPDATE receipts SET result = x'93'",
        "UPDATE consumers SET seen_ms = -1",
        "DELETE FROM receipts",
        "CREATE TABLE more (one INTEGER)",
        "CREATE INDEX more ON sessions (theme_id)",
        "CREATE VIEW more AS SELECT * FROM sessions",
        "CREATE TRIGGER more AFTER INSERT ON sessions BEGIN DELETE FROM chunks; END",
        "ALTER TABLE sessions ADD COLUMN more INTEGER",
        "ALTER TABLE sessions RENAME COLUMN phase TO faze",
        "PRAGMA application_id = 7",
        "PRAGMA user_version = 0",
        f"PRAGMA user_version = {FORMAT_VERSION + 1}",
    ],
)
def test_rows_of_a_stranger_are_refused(path: Path, statement: str) -> None:
    good, said = sample()
    path.write_bytes(good)
    assert said_by(path) == said
    change(path, statement)
    assert check_refused_or_equal(path, path.read_bytes())


@given(length=st.integers(0, 2**32))
@example(length=0)
@example(length=1)
@example(length=99)
@example(length=100)
@example(length=16_384)
@example(length=2**32)
def test_a_file_cut_short_is_refused(length: int) -> None:
    good, _ = sample()
    with scratch() as directory:
        path = Path(directory) / "state.db"
        assert check_refused_or_equal(path, good[: length % len(good)])


@pytest.mark.parametrize(
    "data", [b"", b"x", b"SQLite format 3\0", b"text\n" * 10_000, bytes(1 << 16)], ids=len
)
def test_what_is_no_database_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for use in (StateFile.open, verify):
        with pytest.raises(DamagedError, match=r"state\.db" if data else "is empty"):
            use(str(path), CLUSTER)
    with pytest.raises((DiskError, DamagedError)):
        created(path)
    assert path.read_bytes() == data


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    change(path, "CREATE TABLE cluster (cluster_id TEXT)")
    before = path.read_bytes()
    with pytest.raises(DamagedError, match="not a checkpoint"):
        opened(path)
    assert path.read_bytes() == before


def test_a_directory_is_no_checkpoint(path: Path) -> None:
    path.mkdir()
    with pytest.raises(DamagedError, match="not a file"):
        StateFile.open(str(path), CLUSTER)


def test_verify_wants_a_file(path: Path) -> None:
    with pytest.raises(DiskError, match="no such file"):
        verify(str(path), CLUSTER)


# Failing disks


@contextmanager
def file_limit(size_bytes: int) -> Iterator[None]:
    """The operating system refuses to let a file grow beyond this (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def grown(driver: Driver, size_bytes: int) -> None:
    for _ in range(size_bytes >> 18):
        driver.apply(New(1, data=os.urandom(1 << 18)))


def put_and_commit(file: StateFile, capture: Capture, driver: Driver) -> None:
    put(file, capture)
    file.commit(driver.machine.applied_index, 1)


def test_a_write_that_fails_leaves_the_last_checkpoint(path: Path) -> None:
    driver = Driver()
    grown(driver, 1 << 20)
    with closing(created(path)) as file:
        checkpoint(file, driver.machine)
        before = listing_of(file)
        grown(driver, 4 << 20)
        for _ in range(3):
            capture = driver.machine.capture_changes()
            with file_limit(2 << 20), pytest.raises(DiskError) as told:
                put_and_commit(file, capture, driver)
            assert not isinstance(told.value, DamagedError)
            capture.abandon()
            file.rollback()
            assert listing_of(file) == before
        torn_copy(path, path.with_name("torn"))
        checkpoint(file, driver.machine)
        assert listing_of(file) == listing(whole(driver.machine))
    with closing(opened(path.with_name("torn"))) as file:
        assert listing_of(file) == before


def test_a_first_checkpoint_that_fails_leaves_none(path: Path) -> None:
    driver = Driver()
    grown(driver, 4 << 20)
    with closing(created(path)) as file:
        capture = driver.machine.capture_changes()
        with file_limit(1 << 20), pytest.raises(DiskError):
            put_and_commit(file, capture, driver)
        capture.abandon()
        file.rollback()
        assert not path.exists()
        checkpoint(file, driver.machine)
        assert listing_of(file) == listing(whole(driver.machine))


def test_a_full_file_is_a_full_disk(path: Path) -> None:
    driver = Driver()
    grown(driver, 1 << 20)
    with closing(created(path)) as file:
        checkpoint(file, driver.machine)
        before = listing_of(file)
        connection = file._connection  # noqa: SLF001 - SQLite's way to play a full disk
        assert connection is not None
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 10}")
        grown(driver, 4 << 20)
        capture = driver.machine.capture_changes()
        with pytest.raises(DiskFullError, match="No space left"):
            put_and_commit(file, capture, driver)
        capture.abandon()
        file.rollback()
        assert listing_of(file) == before
        checkpoint(file, driver.machine)  # on a new connection, without that bound
        assert listing_of(file) == listing(whole(driver.machine))


@pytest.mark.faults
def test_a_disk_without_room(tmp_path: Path) -> None:
    # A tmpfs of 3 MiB in a mount namespace of its own; needs root, or user namespaces.
    isolated = "unshare --mount" if os.geteuid() == 0 else "unshare --mount --user --map-root-user"
    mount = f"mount -t tmpfs -o size=3M tmpfs {tmp_path}"
    probe = shell(f"{isolated} sh -c '{mount}'")
    if probe.returncode:
        pytest.fail(f"NOT TESTED: no tmpfs can be mounted here: {probe.stderr.strip()}")
    child = f"exec {sys.executable} -m tests.cluster.storage.full_disk {tmp_path}"
    told = shell(f"{isolated} sh -c '{mount} && {child}'")
    assert (told.stdout, told.returncode) == ("full\nfull\nfull\nas before\n", 0), told.stderr


def shell(command: str) -> subprocess.CompletedProcess[str]:
    words = ["sh", "-c", command]
    return subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - ours


def test_a_file_that_may_not_be_written_is_not_called_damaged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, _ = sample()
    path.write_bytes(good)
    path.chmod(0o400)
    # Root may write anyway: let it be told what others are.
    connect = sqlite3.connect

    def read_only(database: str, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(database.replace("mode=rw", "mode=ro"), **options)
        return connection

    monkeypatch.setattr(sqlite3, "connect", read_only)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DiskError, match="Permission denied"):
        opened(path)


# Copies


def test_a_copy_is_the_checkpoint(path: Path) -> None:
    log = Log()
    with closing(created(path)) as file:
        for _ in range(5):
            log.step()
            checkpoint(file, log.machine, term=2)
        copy = path.with_name("copy")
        copy.write_bytes(b"an older one")
        file.copy(str(copy))
        log.step()
        before = listing_of(file)
        put(file, log.machine.capture_changes())
        with pytest.raises(RuntimeError, match="being written"):
            file.copy(str(copy))
        file.rollback()
        assert names(path.parent) <= {"copy", "state.db", "state.db-journal"}
        machine = file.load_machine()
        size_bytes = copy.stat().st_size
        count = machine.session_count
        assert verify(str(copy), CLUSTER) == Summary(5, 2, machine.digest(), count, size_bytes)
    with closing(opened(copy)) as file:
        assert listing_of(file) == before


def test_a_copy_that_fails_leaves_nothing(path: Path) -> None:
    driver = Driver()
    grown(driver, 4 << 20)
    with closing(created(path)) as file:
        checkpoint(file, driver.machine)
        with file_limit(2 << 20), pytest.raises(DiskError):
            file.copy(str(path) + ".copy")
        assert names(path.parent) <= {"state.db", "state.db-journal"}
        file.copy(str(path) + ".copy")
        assert listing_of(file) == listing(whole(driver.machine))
    assert verify(str(path) + ".copy", CLUSTER).session_count == driver.machine.session_count


def test_verify_changes_nothing(path: Path) -> None:
    good, _ = sample()
    path.write_bytes(good)
    path.with_name("state.db-journal").write_bytes(b"\xd9\xd5\x05\xf9 of something else")
    verify(str(path), CLUSTER)
    assert path.read_bytes() == good
    assert path.with_name("state.db-journal").exists()


def test_a_digest_of_the_bytes(path: Path) -> None:
    data = os.urandom((1 << 20) + 5)
    path.write_bytes(data)
    assert file_digest(str(path)) == blake2b(data, digest_size=32).digest()
    with pytest.raises(DiskError):
        file_digest(str(path) + ".none")


# Installing


@cache
def two_checkpoints() -> tuple[dict[str, bytes], bytes, list[str], list[str]]:
    """An old one in the middle of a commit, a new one, and what they say."""
    with scratch() as directory:
        path = Path(directory) / "state.db"
        log = Log()
        with closing(created(path)) as file:
            for _ in range(3):
                log.step()
            checkpoint(file, log.machine)
            old = listing_of(file)
            for _ in range(20):
                log.step()
            capture = log.machine.capture_changes()
            put(file, capture)
            connection = file._connection  # noqa: SLF001 - stops in the middle of `commit`
            assert connection is not None
            file._write_sessions(connection)  # noqa: SLF001
            files = {
                suffix: path.with_name(path.name + suffix).read_bytes()
                for suffix in ("", *SIBLINGS)
                if path.with_name(path.name + suffix).exists()
            }
            capture.abandon()
            file.rollback()
            checkpoint(file, log.machine)
            new = listing_of(file)
            file.copy(str(path) + ".copy")
        return files, path.with_name("state.db.copy").read_bytes(), old, new


def lay_out(directory: Path, *, journal: bool = True) -> Path:
    files, received, _, _ = two_checkpoints()
    path = directory / "state.db"
    for suffix, data in files.items():
        if journal or not suffix:
            path.with_name(path.name + suffix).write_bytes(data)
    (directory / "received").write_bytes(received)
    return path


def test_the_journal_of_the_old_one_matters(tmp_path: Path) -> None:
    # Else the tests below would show nothing.
    files, _, old, _ = two_checkpoints()
    assert len(files["-journal"]) > 100_000
    path = lay_out(tmp_path, journal=False)
    with pytest.raises(DamagedError), closing(opened(path)) as file:
        file.load_machine()
    path = lay_out(tmp_path)
    with closing(opened(path)) as file:
        assert listing_of(file) == old
    path = lay_out(tmp_path)
    shutil.copyfile(tmp_path / "received", path)  # without `install`
    with pytest.raises(DamagedError), closing(opened(path)) as file:
        assert file.load_machine() is None


def test_what_was_beside_the_old_one_is_not_applied_to_the_new(tmp_path: Path) -> None:
    *_, new = two_checkpoints()
    path = lay_out(tmp_path)
    install(str(tmp_path / "received"), str(path))
    assert names(tmp_path) == {"state.db"}
    with closing(opened(path)) as file:
        assert listing_of(file) == new


def test_a_write_ahead_log_beside_the_old_one_is_not_applied_to_the_new(tmp_path: Path) -> None:
    *_, new = two_checkpoints()
    path = lay_out(tmp_path)
    opened(path).close()
    # Somebody has changed its mode, and was killed.
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("DELETE FROM sessions")
        torn_copy(path, tmp_path / "torn.db")
    control = tmp_path / "control.db"
    shutil.copyfile(tmp_path / "received", control)
    shutil.copyfile(tmp_path / "torn.db-wal", tmp_path / "control.db-wal")
    with pytest.raises(DamagedError), closing(opened(control)) as file:
        file.load_machine()
    install(str(tmp_path / "received"), str(tmp_path / "torn.db"))
    assert not (tmp_path / "torn.db-wal").exists()
    with closing(opened(tmp_path / "torn.db")) as file:
        assert listing_of(file) == new


class Cut(BaseException):
    """The power goes."""


def test_wherever_an_install_is_cut_short_it_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, old, new = two_checkpoints()
    outcomes = []
    for last in range(100):
        directory = tmp_path / str(last)
        directory.mkdir()
        path = lay_out(directory)
        left = last

        def counted(act: Callable[..., Any]) -> Callable[..., Any]:
            def step(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                if not left:
                    raise Cut
                left -= 1
                return act(*arguments, **options)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(os.fsync))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            patch.setattr(Path, "replace", counted(Path.replace))
            try:
                install(str(directory / "received"), str(path))
            except Cut:
                pass
            else:
                break
        with closing(opened(path)) as file:
            outcomes.append(listing_of(file))
            assert file.load_machine().digest() == file.digest
    # Old until the rename, new after it.
    turn = outcomes.index(new)
    assert outcomes == [old] * turn + [new] * (len(outcomes) - turn)
    assert 0 < turn < len(outcomes)


def test_a_checkpoint_is_installed_where_there_was_none(tmp_path: Path) -> None:
    *_, new = two_checkpoints()
    path = lay_out(tmp_path)
    path.unlink()  # and the journal stays
    install(str(tmp_path / "received"), str(path))
    with closing(opened(path)) as file:
        assert listing_of(file) == new


def test_a_checkpoint_is_installed_in_place_of_a_damaged_one(tmp_path: Path) -> None:
    *_, new = two_checkpoints()
    path = lay_out(tmp_path)
    path.write_bytes(b"ruins" * 1000)
    install(str(tmp_path / "received"), str(path))
    with closing(opened(path)) as file:
        assert listing_of(file) == new


def test_an_open_file_is_replaced(tmp_path: Path) -> None:
    _, _, old, new = two_checkpoints()
    path = lay_out(tmp_path)
    log = Log()
    log.step()
    with closing(opened(path)) as file:
        put(file, log.machine.capture_everything())
        with pytest.raises(DiskError):
            file.replace(str(tmp_path / "nothing"))
        assert listing_of(file) == old
        put(file, log.machine.capture_everything())
        file.replace(str(tmp_path / "received"))
        assert listing_of(file) == new
        assert file.applied_index == 23
        machine = file.load_machine()
        Log(machine).step()
        checkpoint(file, machine)
        assert listing_of(file) == listing(whole(machine))


def test_a_new_file_is_replaced(tmp_path: Path) -> None:
    *_, new = two_checkpoints()
    lay_out(tmp_path)
    with closing(created(tmp_path / "other.db")) as file:
        with pytest.raises(DiskError):
            file.replace(str(tmp_path / "nothing"))
        assert not file.is_committed
        file.replace(str(tmp_path / "received"))
        assert listing_of(file) == new
    assert not list(tmp_path.glob("other.db.new*"))


def test_policies_and_pauses_are_kept(path: Path) -> None:
    driver = Driver()
    driver.apply(SetPolicy(7, (("max_active", 3), ("lease_ms", 500))))
    with closing(created(path)) as file:
        checkpoint(file, driver.machine)
        theme = file.load_machine().theme(7)
        assert theme is not None
        assert (theme.policy.max_active, theme.policy.lease_ms) == (3, 500)


def test_loading_can_be_cut_short(path: Path) -> None:
    good, _ = sample()
    path.write_bytes(good)

    def stop() -> None:
        raise ClosedError(str(path))

    file = opened(path)
    with pytest.raises(ClosedError) as kept:
        file.load_machine(stop)
    file.close()
    opened(path).close()  # the error, which is kept, keeps no lock
    assert isinstance(kept.value, StorageError)


def test_nothing_is_collected_while_a_state_is_loaded(path: Path) -> None:
    good, _ = sample()
    path.write_bytes(good)
    seen: list[bool] = []
    assert gc.isenabled()
    with closing(opened(path)) as file:
        file.load_machine(lambda: seen.append(gc.isenabled()))
    assert set(seen) == {False}
    assert gc.isenabled()


def test_a_locked_file_says_so(path: Path) -> None:
    good, _ = sample()
    path.write_bytes(good)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LockedError):
            opened(path)


def test_every_way_to_open_it_is_as_durable(tmp_path: Path) -> None:
    # Only a power cut would show the difference.
    path = lay_out(tmp_path)
    pragmas = ("journal_mode", "synchronous", "locking_mode", "trusted_schema", "cell_size_check")

    def settings(file: StateFile) -> list[object]:
        connection = file._connection  # noqa: SLF001 - these are of a connection, not of a file
        assert connection is not None
        return [connection.execute(f"PRAGMA {one}").fetchone()[0] for one in pragmas]

    expected = ["truncate", 2, "exclusive", 0, 1]
    log = Log()
    log.step()
    with closing(created(tmp_path / "other.db")) as file:
        assert settings(file) == expected
        checkpoint(file, log.machine)
        assert settings(file) == expected
        file.begin()
        left(file, "error", path)
        assert settings(file) == expected
        file.replace(str(tmp_path / "received"))
        assert settings(file) == expected
    with closing(opened(path)) as file:
        assert settings(file) == expected
