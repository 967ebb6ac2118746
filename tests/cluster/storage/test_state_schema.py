"""The tables of `state.db`: pinned, named after the fields, and readable without Ritornello."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage.state_file import StateFile
from cluster.storage.state_schema import (
    APPLICATION_ID,
    FORMAT_VERSION,
    PAGE_BYTES,
    SCHEMA,
    TABLE_BY_KIND,
    TABLES,
    Row,
    signed,
    unsigned,
)
from state import FIELDS, LAYOUT_VERSION, Item, StateMachine
from state.errors import LimitExceeded
from state.layout import fields_of
from state.limits import LIMIT_RANGES
from state.operations import Append, New, SetPolicy, Store, Tick
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
)
from tests.cluster.storage.state_files import (
    CLUSTER,
    checkpoint,
    created,
    listing,
    listing_of,
)
from tests.state.driver import Driver

GOLDEN = Path(__file__).parent / "golden" / "state_schema_4.sql"

INT63 = 2**63 - 1


@pytest.fixture
def file(tmp_path: Path) -> Iterator[StateFile]:
    with closing(created(tmp_path / "state.db")) as file:
        yield file


def read(path: str | Path, sql: str) -> list[tuple[Any, ...]]:
    """What anybody would see."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def test_the_version_is_what_it_was(file: StateFile, tmp_path: Path, rewrite: bool) -> None:
    checkpoint(file, StateMachine())
    file.copy(str(tmp_path / "copy"))
    lines = [
        f"-- {pragma} {read(tmp_path / 'copy', f'PRAGMA {pragma}')[0][0]}"
        for pragma in ("application_id", "user_version", "page_size", "encoding", "journal_mode")
    ]
    lines += [sql + ";" for (sql,) in read(tmp_path / "copy", "SELECT sql FROM sqlite_master")]
    text = "\n\n".join(lines) + "\n"
    if rewrite:
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_a_new_layout_needs_a_new_format() -> None:
    # Whoever changes state/layout.py has to think of the files that are there already.
    assert (LAYOUT_VERSION, FORMAT_VERSION) == (4, 4)


def test_columns_are_the_fields_of_the_records(file: StateFile, tmp_path: Path) -> None:
    checkpoint(file, StateMachine())
    file.copy(str(tmp_path / "copy"))
    for table in TABLES:
        columns = read(tmp_path / "copy", f"PRAGMA table_info({table.name})")
        assert tuple(column[1] for column in columns) == FIELDS[table.kind]
        assert {column[1] for column in columns if column[5]} == set(table.key)
    assert {table.name for table in TABLES} | {"cluster", "chunks"} == set(SCHEMA)
    assert set(TABLE_BY_KIND) | {CHECK} == set(FIELDS)


def test_anybody_can_read_it(file: StateFile, tmp_path: Path) -> None:
    driver = Driver()
    driver.apply(Tick(1_700_000_000_000), SetPolicy(7, (("repeat_ms", 5_000),)))
    (new,) = driver.results(New(7, b"order-1", b"first"))
    driver.apply(Append(new.session_id, 1, b"second"))
    driver.apply(Store(new.session_id, 1, 60_000, 0, "na\u00efve \N{SNOWMAN}"))
    checkpoint(file, driver.machine, term=3)
    copy = tmp_path / "copy"
    file.copy(str(copy))
    assert read(copy, "PRAGMA page_size") == [(PAGE_BYTES,)]
    assert read(copy, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert read(
        copy, "SELECT cluster_id, format_version, applied_index, applied_term FROM cluster"
    ) == [(CLUSTER, FORMAT_VERSION, driver.machine.applied_index, 3)]
    assert read(copy, "SELECT theme_id, json_extract(policy, '$.repeat_ms') FROM themes") == [
        (7, 5_000)
    ]
    assert read(copy, "SELECT session_id, theme_id, key, due_ms, chunk_count FROM sessions") == [
        (new.session_id, 7, b"order-1", 1_700_000_060_000, 2)
    ]
    assert read(copy, "SELECT json_extract(history, '$[0][1]') FROM sessions") == [
        ("na\u00efve \N{SNOWMAN}",)
    ]
    assert read(copy, "SELECT session_id, position, data FROM chunks") == [
        (new.session_id, 0, b"first"),
        (new.session_id, 1, b"second"),
    ]
    ((limits,),) = read(copy, "SELECT limits FROM meta")
    assert set(json.loads(limits)) == set(LIMIT_RANGES)


def test_a_failure_keeps_its_numbers() -> None:
    # Whatever a stranger asked for is in the answer, up to 64 bits.
    failure = LimitExceeded("chunk_bytes", 2**64 - 1, 1)
    answers = fields_of(Answers("node", 1, (), failure))
    row = TABLE_BY_KIND[ANSWERS].row_of(answers)
    assert TABLE_BY_KIND[ANSWERS].fields_of(row) == answers


# Extremes


def meta(horizon: tuple[int, int] = (2**48 - 1, 2**64 - 1)) -> Item:
    limits = tuple((name, one.maximum) for name, one in LIMIT_RANGES.items())
    return Item(
        META, 0, (LAYOUT_VERSION, 9, INT63, 2**48 - 1, horizon, 2**48 - 1, INT63, INT63, limits)
    )


def session(
    session_id: int, chunks: tuple[bytes, ...] = (), history: tuple[Row, ...] = (), **fields: Any
) -> Item:
    values = {
        **dict.fromkeys(FIELDS[SESSION], INT63),
        "session_id": session_id,
        "key": None,
        "consumer_id": None,
        "history": history,
        "chunk_count": len(chunks),
        **fields,
    }
    return Item(SESSION, session_id, tuple(values.values()), 0, chunks)


def written(file: StateFile, *items: Item) -> list[str]:
    """What comes back of items."""
    file.begin()
    file.put([meta(), *items, Item(CHECK, 0, (2**60 - 1, 9))])
    file.commit(9, INT63)
    return listing_of(file)


def test_the_ends_of_all_ranges_come_back(file: StateFile) -> None:
    policy = tuple(one.maximum for one in POLICY_RANGES.values())
    history = ((1, "\0 \N{SNOWMAN} \"'\\ \U0001f600", INT63, 0, 2**48 - 1), (5, "", 1, 2, 3))
    items = [
        Item(THEME, 2**32 - 1, (2**32 - 1, policy, True, INT63)),
        Item(THEME, 0, (0, policy, False, 0)),
        Item(CONSUMER, b"\0\xff", (b"\0\xff", 0)),
        Item(CONSUMER, b"", (b"", 2**48 - 1)),
        Item(WINDOW, "n\0\N{SNOWMAN}", ("n\0\N{SNOWMAN}", INT63, -1)),
        Item(ANSWERS, ("n", 0), ("n", 0, b"\x90", None)),
        Item(ANSWERS, ("n", INT63), ("n", INT63, b"", (6, "x", 2**64 - 1, (1, -(2**63), b"")))),
        Item(RECEIPT, b"k", (b"k", b"\0" * 16, 2**49, None, 2**64 - 1)),
        Item(RECEIPT, b"", (b"", b"", 0, (4, 1, (5, (3, 1, 2, 3)), ()), 0)),
        session(1, (b"", b"\0", bytes(range(256)) * 300), history),
        session(2**48 - 1, key=b"", consumer_id=b"", due_ms=2**49),
        # The group is in the upper 16 bits.
        session(2**63 - 1, (b"a",)),
        session(2**63, (b"b", b"c"), key=b"k"),
        session(2**64 - 1, (b"d",)),
    ]
    check = Item(CHECK, 0, (2**60 - 1, 9))
    assert written(file, *items) == listing([meta(), *items, check])
    assert (file.applied_index, file.applied_term) == (9, INT63)


@given(session_id=st.integers(0, 2**64 - 1))
def test_ids_of_all_groups_fit(session_id: int) -> None:
    assert -(2**63) <= signed(session_id) < 2**63
    assert unsigned(signed(session_id)) == session_id


def test_all_ids_can_be_deleted_and_cut(file: StateFile) -> None:
    ids = [1, 2**63 - 1, 2**63, 2**64 - 1]
    written(file, *(session(one, (b"a", b"b", b"c")) for one in ids))
    written(file, *(session(one, (b"d",)) for one in ids))
    after = [meta(), *(session(one, (b"d",)) for one in ids), Item(CHECK, 0, (2**60 - 1, 9))]
    assert listing_of(file) == listing(after)
    left = written(file, *(Item(SESSION, one, None) for one in ids))
    assert left == listing([meta(), Item(CHECK, 0, (2**60 - 1, 9))])
