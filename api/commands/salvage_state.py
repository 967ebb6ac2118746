"""Reads what is left of a damaged checkpoint.

SQLite has no checksums, only an integrity check of its own structure, and a checkpoint has a digest
over the whole state. If pages cannot be read, the sessions on others can; a session that has lost
some of its chunks is parked, for a person to look at. If all can be read and the digest is another,
some record is not what was written, and nobody can say which.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.commands.disk import settled
from api.commands.rebirth import SESSION_STEP
from cluster.storage.state_reading import connect
from cluster.storage.state_schema import TABLE_BY_KIND, Row, Table
from state import FIELDS, LAYOUT_VERSION, LIMITS, Cause, Item, Loader, Phase, layout
from state.errors import DamagedStateError
from state.limits import COUNTER_MAX, HOUR_MS, LIMIT_RANGES, SEQUENCE_MAX, TIME_MAX_MS
from state.policy import DEFAULT_POLICY, POLICY_RANGES
from state.records import META, RECEIPT, SESSION, THEME

# Probes for rows behind a page that cannot be read: bounds the time.
PROBES_MAX = 50_000

_ID_MAX = 2**63 - 1
_AHEAD_MS = 24 * HOUR_MS  # that a cluster's clock may be ahead of that of whoever looks

# Epochs, revisions and turns above this are damage: nobody counts so far.
_COUNTERS_MAX = SEQUENCE_MAX // 2
_COUNTERS = {META: ("key_epoch", "turn"), SESSION: ("epoch", "revision")}


@dataclass(slots=True)
class Rows:
    """What can be read of a damaged checkpoint, as items that are right each by itself."""

    cluster_id: str | None = None
    applied: tuple[int, int] | None = None  # index and term, if it says so
    meta: Item | None = None
    themes: list[Item] = field(default_factory=list)
    receipts: list[Item] = field(default_factory=list)
    sessions: list[Item] = field(default_factory=list)
    parked: int = 0  # that have lost chunks
    problems: list[str] = field(default_factory=list)


def scan_checkpoint(path: Path) -> Rows:
    """Read the rows that can be read. Raises `DiskError`."""
    rows = Rows()
    with settled(path) as file:
        try:
            connection = connect(os.fspath(file), "mode=ro&immutable=1")
        except sqlite3.Error as error:
            rows.problems.append(f"{path} is no database: {error}")
            return rows
        with contextlib.closing(connection):
            _Salvage(connection, rows).run()
    return rows


class _Salvage:
    """Reads one database."""

    def __init__(self, connection: sqlite3.Connection, rows: Rows) -> None:
        self._connection = connection
        self._rows = rows
        self._probes = 0

    def run(self) -> None:
        rows = self._rows
        for row in self._all("cluster", "cluster_id, applied_index, applied_term", "what it is of"):
            cluster_id, index, term = row
            if isinstance(cluster_id, str):
                rows.cluster_id = cluster_id
            if isinstance(index, int) and isinstance(term, int) and min(index, term) >= 0:
                rows.applied = (index, term)
        metas = self._items(TABLE_BY_KIND[META], "the clock and the counters")
        themes = self._items(TABLE_BY_KIND[THEME], "themes and their policies")
        receipts = self._items(TABLE_BY_KIND[RECEIPT], "idempotency keys")
        sessions = list(self._sessions())
        meta = self._sound_meta(metas)
        self._judge(meta or _widest(sessions), themes, receipts, sessions)
        rows.meta = meta or _that_follows(rows)

    # Rows

    def _all(self, table: str, columns: str, what: str) -> list[Row]:
        """All rows of a small table, as far as they can be read."""
        found: list[Row] = []
        sql = f"SELECT {columns} FROM {table}"  # noqa: S608 - names of ours
        try:
            with contextlib.closing(self._connection.execute(sql)) as cursor:
                found.extend(cursor)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._rows.problems.append(f"{what} cannot be read, or not to the end: {error}")
        return found

    def _items(self, table: Table, what: str) -> list[Item]:
        columns = ", ".join(FIELDS[table.kind])
        return [
            item
            for row in self._all(table.name, columns, what)
            if (item := self._item(table, row)) is not None
        ]

    def _item(self, table: Table, row: Row) -> Item | None:
        try:
            fields = table.fields_of(row)
            return Item(table.kind, table.identity(fields), fields)
        except Exception as error:  # noqa: BLE001 - rows may be anything
            self._rows.problems.append(f"a row of {table.name} makes no sense: {error}")
            return None

    def _sessions(self) -> Iterator[Item]:
        table = TABLE_BY_KIND[SESSION]
        columns = ", ".join(FIELDS[SESSION])
        sql = (
            f"SELECT {columns} FROM {table.name} "  # noqa: S608 - names of ours
            "WHERE session_id >= ? ORDER BY session_id"
        )
        for row in self._around_damage(sql):
            item = self._item(table, row)
            if item is None:
                continue
            chunks = self._chunks(row[0])
            if list(chunks) == list(range(row[-1])):
                yield item._replace(chunks=tuple(chunks.values()))
            else:
                yield self._with_lost(item, chunks)

    def _chunks(self, stored_id: int) -> dict[int, bytes]:
        """The chunks of a session by their positions."""
        found: dict[int, bytes] = {}
        sql = "SELECT position, data FROM chunks WHERE session_id = ? ORDER BY position"
        try:
            with contextlib.closing(self._connection.execute(sql, (stored_id,))) as cursor:
                found.update(one for one in cursor if isinstance(one[1], bytes))
        except (sqlite3.Error, UnicodeDecodeError):
            pass  # it is told of the session
        return found

    def _with_lost(self, item: Item, chunks: dict[int, bytes]) -> Item:
        """A session of which chunks are missing: parked, with those that are there."""
        fields = dict(zip(FIELDS[SESSION], item.fields or (), strict=True))
        lost = f"{len(chunks)} of {fields['chunk_count']} chunks are left"
        self._rows.problems.append(f"session {fields['session_id']:x}: {lost}; it is parked")
        self._rows.parked += 1
        fields |= {
            "phase": int(Phase.PARKED),
            "lease_ms": 0,
            "progress_ms": 0,
            "consumer_id": None,
            "history": (*fields["history"], _entry(fields, f"recovered: {lost}")),
            "chunk_count": len(chunks),
        }
        return item._replace(fields=tuple(fields.values()), chunks=tuple(chunks.values()))

    def _around_damage(self, sql: str) -> Iterator[Row]:
        """Rows by their ids, before and behind pages that cannot be read."""
        start: int | None = 0
        while start is not None:
            try:
                with contextlib.closing(self._connection.execute(sql, (start,))) as cursor:
                    for row in cursor:
                        yield row
                        start = row[0] + 1
            except (sqlite3.Error, UnicodeDecodeError):
                behind = self._behind(sql, start)
                until = "the end" if behind is None else f"{behind:x}"
                self._rows.problems.append(f"sessions from {start:x} to {until} cannot be read")
                start = behind
            else:
                return

    def _behind(self, sql: str, start: int) -> int | None:
        """Where rows can be read again: ever longer steps, then back to where it begins."""
        step = 1
        while not self._can_read(sql, start + step):
            step *= 2
            if start + step > _ID_MAX or self._probes > PROBES_MAX:
                return None
        bad, good = start + step // 2, start + step
        while good - bad > 1:
            middle = (bad + good) // 2
            if self._can_read(sql, middle):
                good = middle
            else:
                bad = middle
        return good

    def _can_read(self, sql: str, start: int) -> bool:
        self._probes += 1
        try:
            self._connection.execute(f"{sql} LIMIT 1", (start,)).fetchall()
        except (sqlite3.Error, UnicodeDecodeError):
            return False
        return True

    # What of it makes sense

    def _sound_meta(self, metas: list[Item]) -> Item | None:
        """What the checkpoint says of its clock and counters, if that makes sense."""
        for meta in metas:
            try:
                Loader().feed([meta])
            except DamagedStateError as error:
                self._rows.problems.append(f"the clock and the counters make no sense: {error}")
            else:
                if _has_room(meta):
                    return meta
                self._rows.problems.append("the counters make no sense")
        return None

    def _judge(
        self, meta: Item, themes: list[Item], receipts: list[Item], sessions: Iterable[Item]
    ) -> None:
        rows = self._rows
        rows.themes = [one for one in map(self._with_room, themes) if self._is_sound(meta, one)]
        rows.receipts = [one for one in receipts if self._is_sound(meta, one)]
        known = {one.identity: one for one in rows.themes}
        keys: set[tuple[int, bytes]] = set()
        for item in sessions:
            fields = dict(zip(FIELDS[SESSION], item.fields or (), strict=True))
            fields["consumer_id"] = None
            theme_id, key = fields["theme_id"], fields["key"]
            sound = item._replace(fields=tuple(fields.values()))
            theme = known.get(theme_id) or _default_theme(theme_id)
            if theme is None or not self._is_sound(meta, theme, sound):
                continue
            if not _has_room(sound):
                rows.problems.append(f"session {fields['session_id']:x}: its counters are damaged")
                continue
            if key is not None and (theme_id, key) in keys:
                rows.problems.append(
                    f"session {fields['session_id']:x}: its key is held by another"
                )
                continue
            if theme_id not in known:
                known[theme_id] = theme
                rows.themes.append(theme)
            if key is not None:
                keys.add((theme_id, key))
            rows.sessions.append(sound)

    def _with_room(self, theme: Item) -> Item:
        """A theme, as if it had never had a turn if that one makes no sense."""
        fields = dict(zip(FIELDS[THEME], theme.fields or (), strict=True))
        if isinstance(fields["served"], int) and 0 <= fields["served"] <= _COUNTERS_MAX:
            return theme
        self._rows.problems.append(
            f"theme {fields['theme_id']}: when it had its turn makes no sense"
        )
        return theme._replace(fields=tuple({**fields, "served": 0}.values()))

    def _is_sound(self, *items: Item) -> bool:
        """Whether a state could have these items, of which the last is in question."""
        try:
            Loader().feed(items)
        except DamagedStateError as error:
            self._rows.problems.append(f"it is left out: {error}")
            return False
        return True


def _entry(fields: dict[str, Any], reason: str) -> tuple[int, str, int, int, int]:
    at_ms = fields["updated_ms"]
    return (int(Cause.PARKED), reason, 1, at_ms, at_ms)


def _default_theme(theme_id: object) -> Item | None:
    if not isinstance(theme_id, int):
        return None
    policy = tuple(getattr(DEFAULT_POLICY, name) for name in POLICY_RANGES)
    return Item(THEME, theme_id, (theme_id, policy, False, 0))


def _meta(*, now_ms: int, last_session_id: int, key_epoch: int, turn: int) -> Item:
    values = {
        "version": LAYOUT_VERSION,
        "applied_index": 0,
        "term": 0,
        "now_ms": now_ms,
        "horizon": (0, 0),
        "last_session_id": last_session_id,
        "key_epoch": key_epoch,
        "turn": turn,
        "limits": tuple((name, getattr(LIMITS, name)) for name in LIMIT_RANGES),
    }
    return layout.meta(tuple(values[name] for name in FIELDS[META]))


def _widest(sessions: list[Item]) -> Item:
    """A clock and counters to which all that makes sense may have come.

    Times far ahead are damage, unless most are: then the cluster's clock was.
    """
    latest_ms = int(time.time() * 1000) + _AHEAD_MS
    place = FIELDS[SESSION].index("updated_ms")
    times = [one.fields[place] for one in sessions if one.fields]
    ahead = sum(isinstance(one, int) and one > latest_ms for one in times)
    return _meta(
        now_ms=TIME_MAX_MS if 2 * ahead > len(times) else latest_ms,
        last_session_id=COUNTER_MAX - SESSION_STEP,
        key_epoch=_COUNTERS_MAX,
        turn=_COUNTERS_MAX,
    )


def _that_follows(rows: Rows) -> Item:
    """A clock and counters that follow from the rest."""
    rows.problems.append("the clock and the counters are what follows from themes and sessions")
    return _meta(
        now_ms=max(map(_last_ms, rows.sessions), default=0),
        last_session_id=max(
            _highest(rows.sessions, "session_id"), _highest(rows.receipts, "unused_id")
        ),
        key_epoch=_highest(rows.sessions, "epoch"),
        turn=_highest(rows.themes, "served"),
    )


def _last_ms(session: Item) -> int:
    """The last time of which a session tells."""
    fields = dict(zip(FIELDS[SESSION], session.fields or (), strict=True))
    times: list[int] = [fields["created_ms"], fields["updated_ms"], fields["touched_ms"]]
    times += (last_ms for *_, last_ms in fields["history"])
    return max(times)


def _has_room(item: Item) -> bool:
    """Whether its counters can go on: those that are damaged may be at their very end."""
    fields = dict(zip(FIELDS[item.kind], item.fields or (), strict=True))
    return all(fields[name] <= _COUNTERS_MAX for name in _COUNTERS[item.kind])


def _highest(items: list[Item], name: str) -> int:
    """The highest value of a field."""
    columns = (dict(zip(FIELDS[item.kind], item.fields or (), strict=True)) for item in items)
    values: list[int] = [one[name] for one in columns]
    return max(values, default=0)
