"""Tables for people, lines for programs.

On a terminal a table is drawn; elsewhere each row is one line, with tabs between the columns and no
colours. With `--json` each thing is one line of JSON.
"""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

console = Console()
errors = Console(stderr=True)

_KIB = 1024
_PART_ROWS = 200  # of a long table that are drawn together


def is_terminal() -> bool:
    """Whether a person looks at what is said."""
    return sys.stdout.isatty()


def say(text: str) -> None:
    """Say one line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_json(value: object) -> None:
    """Say one thing as a line of JSON; data is Base64."""
    say(msgspec.json.encode(value).decode())


def row(cells: Sequence[object]) -> None:
    """Say one row as a line, as it becomes known."""
    say("\t".join(map(_plain, cells)))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Say rows. A long table is drawn in parts, and what has come is drawn if it is broken off."""
    if not is_terminal():
        for one in rows:
            row(one)
        return
    drawn = _empty(columns, title)
    try:
        for cells in rows:
            if drawn.row_count == _PART_ROWS:
                console.print(drawn)
                drawn = _empty(columns)
            # As `Text`: brackets in a key are no markup.
            drawn.add_row(*(Text(_plain(cell)) for cell in cells))
    except BaseException:
        if drawn.row_count:
            console.print(drawn)
        raise
    console.print(drawn)


def _empty(columns: Sequence[str], title: str = "") -> Table:
    drawn = Table(title=title or None, header_style="bold", box=None, pad_edge=False)
    for one in map(escape, columns):
        drawn.add_column(one, overflow="fold")  # a key that is cut short is of no use
    return drawn


def _plain(value: object) -> str:
    text = "-" if value is None else str(value)
    # What others have written must not drive this terminal, nor look like two columns.
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def moment(at_ms: int | None) -> str | None:
    """A point in time, in UTC (RFC 3339)."""
    if at_ms is None:
        return None
    found = datetime.fromtimestamp(at_ms / 1000, UTC)
    return found.isoformat(sep=" ", timespec="seconds").removesuffix("+00:00") + "Z"


def size(size_bytes: int) -> str:
    """How much data."""
    found = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if found < _KIB:
            return f"{found:.0f} {unit}" if unit == "B" else f"{found:.1f} {unit}"
        found /= _KIB
    return f"{found:.1f} TiB"


def text_of(data: bytes) -> str:
    """Data as it may be shown: text if it is some, and what cannot be shown replaced."""
    return _plain(data.decode(errors="replace").replace("\n", " "))
