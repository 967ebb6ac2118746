"""Writes the pages of `docs/` that are made from tables in the code: `make docs`.

The test of this module fails when a page is not what the code says.
"""

from pathlib import Path

from api.settings import settings_page
from docs.reference import reference_page
from state import TRANSITIONS, Phase
from state.transitions import Transition

DOCS = Path(__file__).parent

_HEAD = """\
# The life of a session

Made by `make docs` from the table in `state/transitions.py`, which is also what the state machine
acts on. A pair of phase and operation that has no row here is refused as `wrong_phase` and changes
nothing; an operator whose epoch is not the newest gets `lease_lost` in any phase.

*ready* is a stored session whose due time has come. *Operators* show their epoch, *producers* show
none, and the *cluster* is the clock and the reaper. A `Release` stores what a consumer holds that
is gone: for each of its sessions it is the `Store` of that one's operator.
"""


def name(phase: Phase) -> str:
    """A phase as users know it."""
    return phase.name.lower()


def diagram(rows: tuple[Transition, ...]) -> str:
    """The phases and the operations that lead from one to another, as a Mermaid state diagram."""
    edges: dict[tuple[Phase, Phase], list[str]] = {}
    for row in rows:
        acts = edges.setdefault((row.source, row.target), [])
        if row.act not in acts:
            acts.append(row.act)
    lines = ["```mermaid", "stateDiagram-v2"]
    for (source, target), acts in edges.items():
        ends = ["[*]" if phase is Phase.NOTHING else name(phase) for phase in (source, target)]
        lines.append(f"    {ends[0]} --> {ends[1]}: {', '.join(acts)}")
    lines.append("```")
    return "\n".join(lines)


def table(rows: tuple[Transition, ...]) -> str:
    """All rows as a Markdown table."""
    lines = ["| From | Operation | By | To | When |", "| --- | --- | --- | --- | --- |"]
    lines.extend(
        f"| {name(row.source)} | {row.act} | {row.actor} | {name(row.target)} | {row.when} |"
        for row in rows
    )
    return "\n".join(lines)


def transitions_page() -> str:
    """The page about the life of a session."""
    return f"{_HEAD}\n{diagram(TRANSITIONS)}\n\n{table(TRANSITIONS)}\n"


PAGES = {
    "transitions.md": transitions_page,
    "settings.md": settings_page,
    "python/reference.md": reference_page,
}

if __name__ == "__main__":
    for name_of_page, make in PAGES.items():
        (DOCS / name_of_page).write_text(make(), encoding="utf-8")
