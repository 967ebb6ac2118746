"""The reference is what the docstrings say, has all that is public, and its links go somewhere."""

import re
from pathlib import Path

import pytest

from docs.interface import MODULES, thing, things
from docs.reference import reference_page
from tests.sdk.docs.pages import PAGES, ROOT

_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

PAGE = (PAGES / "reference.md").read_text(encoding="utf-8")


def test_it_is_up_to_date() -> None:
    assert reference_page() == PAGE, "run `make docs`"


@pytest.mark.parametrize("module", MODULES)
def test_it_has_all_that_is_public_and_what_is_said_of_it(module: str) -> None:
    for one in things(module):
        assert f"### {module}.{one.name}\n" in PAGE
        assert one.doc in PAGE
        for member in one.members:
            assert all(shown in PAGE for shown in member.shown)


def test_what_is_inherited_is_there_and_what_is_not_for_users_is_not() -> None:
    session = {one.name: one for one in thing("ritornello", "Session").members}
    assert {"append", "remove", "lease_remaining", "bound"} <= session.keys()
    assert not {"core_held", "keep_up", "catch_up"} & session.keys()
    client = {one.name: one for one in thing("ritornello", "Client").members}
    assert len(client["new"].shown) == 2  # with `after`, and without
    assert not {"core", "front"} & client.keys()
    error = {one.name: one.shown for one in thing("ritornello", "RitornelloError").members}
    assert error["outcome"] == ("outcome: Outcome",)


def test_defaults_are_shown_as_their_values() -> None:
    options = {one.name: one.shown for one in thing("ritornello", "Options").members}
    assert options["timeout_s"] == ("timeout_s: float = 30.0",)


def anchors(path: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub makes them."""
    text = _CODE.sub("", path.read_text(encoding="utf-8"))
    headings = (re.sub(r"[^\w\- ]", "", one.lower()) for one in _HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "path", [*PAGES.glob("*.md"), ROOT / "sdk" / "README.md"], ids=lambda path: path.name
)
def test_links_go_somewhere(path: Path) -> None:
    text = _CODE.sub("", path.read_text(encoding="utf-8"))
    for file, anchor in _LINK.findall(text):
        if "://" in file:
            continue
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), f"{path.name} leads to {file}"
        assert not anchor or anchor in anchors(target), f"{path.name} leads to {file}#{anchor}"
