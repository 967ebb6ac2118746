"""The pages that speak of code say what it does."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_generated_pages_are_what_the_code_says() -> None:
    generate = runpy.run_path(str(DOCS / "generate.py"))
    for name, make in generate["PAGES"].items():
        assert (DOCS / name).read_text(encoding="utf-8") == make(), "run `make docs`"


def test_the_example_of_the_readme_works() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own text
