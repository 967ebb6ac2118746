"""Every block of Python in the page is run, as the page promises."""

import re
from pathlib import Path

import pytest

from tests.sdk.testing.projects import run

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[3] / "docs" / "python" / "testing.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_page_does_what_it_says(pytester: pytest.Pytester) -> None:
    for number, block in enumerate(BLOCKS):
        pytester.makepyfile(**{f"test_{number}": block})
    tests = sum(block.count("def test_") for block in BLOCKS)
    assert tests > 8
    run(pytester).assert_outcomes(passed=tests)
