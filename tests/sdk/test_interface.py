"""The public interface is what `interface.txt` says, so that no change of it goes unnoticed.

To accept a change, run the tests with `--rewrite`, and read the diff: is it in the CHANGELOG, and
does it break programs that are there already?
"""

import difflib
import importlib
from pathlib import Path

import pytest

from docs.interface import MODULES, exported, listing, thing, things

LISTING = Path(__file__).parent / "interface.txt"


def test_the_interface_is_the_one_that_is_listed(pytestconfig: pytest.Config) -> None:
    found = listing()
    if pytestconfig.getoption("--rewrite"):
        LISTING.write_text(found, encoding="utf-8")
    listed = LISTING.read_text(encoding="utf-8")
    diff = difflib.unified_diff(
        listed.splitlines(), found.splitlines(), "interface.txt", "the code", lineterm="", n=1
    )
    if found != listed:
        pytest.fail(
            "the public interface has changed; to accept it: pytest --rewrite "
            "tests/sdk/test_interface.py\n" + "\n".join(diff),
            pytrace=False,
        )


@pytest.mark.parametrize("module", MODULES)
def test_what_was_read_is_what_is_imported(module: str) -> None:
    imported = importlib.import_module(module)
    for one in things(module):
        found = getattr(imported, one.name)
        for member in one.members:
            # Fields without a default are no attributes of their class.
            if member.shown[0].startswith(("def ", "async def ")):
                assert callable(getattr(found, member.name))


@pytest.mark.parametrize("module", MODULES)
def test_all_that_a_module_exports_is_explained(module: str) -> None:
    bare = [one.name for one in things(module) if not one.doc and one.name != "Verdict"]
    bare += [
        f"{one.name}.{member.name}"
        for one in things(module)
        for member in one.members
        if not member.doc and member.shown[0].startswith(("def ", "async def "))
    ]
    assert bare == []


@pytest.mark.parametrize("module", ["ritornello", "ritornello.sync"])
def test_exports_are_sorted_and_named_once(module: str) -> None:
    assert exported(module) == sorted(set(exported(module)))


@pytest.mark.parametrize("module", ["ritornello", "ritornello.sync"])
def test_what_a_class_leaves_open_is_filled_in_by_its_heir(module: str) -> None:
    worker = {one.name: one.shown for one in thing(module, "Worker").members}
    assert worker["middleware"] == ("def middleware(call: Middleware) -> Middleware",)
