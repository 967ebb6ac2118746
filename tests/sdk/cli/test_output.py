"""Tables at a terminal: none waits for its last row, and none loses what has come."""

from collections.abc import Iterator
from io import StringIO

import pytest
from rich.console import Console

from ritornello.cli import output


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    found = StringIO()
    monkeypatch.setattr(output, "console", Console(file=found, width=80))
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    return found


def test_a_long_table_is_drawn_as_it_comes(drawn: StringIO) -> None:
    shown: list[int] = []

    def rows() -> Iterator[tuple[str, ...]]:
        for number in range(450):
            shown.append(drawn.getvalue().count("row "))
            yield (f"row {number}",)

    output.table(["name"], rows())
    assert shown == [0] * 201 + [200] * 200 + [400] * 49
    assert drawn.getvalue().count("name") == 3


def test_what_has_come_is_drawn_if_the_rest_does_not(drawn: StringIO) -> None:
    def rows() -> Iterator[tuple[str, ...]]:
        yield ("row 1",)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        output.table(["name"], rows())
    assert "row 1" in drawn.getvalue()


def test_a_table_of_nothing_has_its_headings(drawn: StringIO) -> None:
    output.table(["name"], [])
    assert drawn.getvalue().split() == ["name"]
