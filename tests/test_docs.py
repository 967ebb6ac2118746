"""The generated pages of `docs/` say what the code says."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_of_transitions_is_made_from_the_table() -> None:
    generate = runpy.run_path(str(DOCS / "generate.py"))
    page = generate["page"]()
    assert (DOCS / "transitions.md").read_text(encoding="utf-8") == page, "run `make docs`"
