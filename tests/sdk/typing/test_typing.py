"""What mypy, as strict as it is, makes of `usage.py` and `mistakes.txt`, outside of this project.

It sees the client as it is installed, so it needs `py.typed` to believe its types. In the mistakes
a comment `# expect: code, code` says which errors a line has; no line has others.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

HERE = Path(__file__).parent

_EXPECTED = re.compile(r"# expect: (.*)$")
_ERROR = re.compile(r"^program\.py:(\d+): error: (.*)  \[([a-z-]+)\]$", re.MULTILINE)

Check = Callable[[str], str]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """What mypy says of a program that stands alone."""
    folder = tmp_path_factory.mktemp("typing")

    def run(text: str) -> str:
        (folder / "program.py").write_text(text, encoding="utf-8")
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"]
        done = subprocess.run(  # noqa: S603 - our own text
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=110
        )
        assert done.returncode in {0, 1}, done.stdout + done.stderr
        return done.stdout

    return run


def expected(text: str) -> Counter[tuple[int, str]]:
    """By line and code."""
    return Counter(
        (number, code.strip())
        for number, line in enumerate(text.split("\n"), 1)
        for found in _EXPECTED.finditer(line)
        for code in found[1].split(",")
    )


def test_usage_is_right(check: Check) -> None:
    said = check((HERE / "usage.py").read_text(encoding="utf-8"))
    assert said.startswith("Success: no issues found"), said


def test_mistakes_are_found(check: Check) -> None:
    text = (HERE / "mistakes.txt").read_text(encoding="utf-8")
    said = check(text)
    wanted = expected(text)
    found = Counter((int(line), code) for line, _, code in _ERROR.findall(said))
    assert len(wanted) > 20
    assert found == wanted, f"too many: {found - wanted}; missing: {wanted - found}\n{said}"


@pytest.mark.parametrize("package", ["ritornello", "ritornello_pytest"])
def test_types_are_shipped(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()
