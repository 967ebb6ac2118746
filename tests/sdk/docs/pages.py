"""Pages of the documentation as sections and blocks, and how blocks are run.

The conventions are at the top of `test_pages.py`.
"""

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "python"

_ANYTHING = "…"
_MARK = "--- next ---"
_SHELL_S = 60.0
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^## (.*)$", re.MULTILINE)
_FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code on a page."""

    place: str  # the page and the line, for people
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that this is, if it is one."""
        found = _FILE.match(self.text)
        return found[1] if self.language == "python" and found else None


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading of the second level."""

    title: str
    blocks: tuple[Block, ...]


def sections(path: Path) -> list[Section]:
    """The sections of a page; what stands before the first heading is one without a title."""
    text = path.read_text(encoding="utf-8")
    titles = [(0, ""), *((one.start(), one[1]) for one in _TITLE.finditer(text))]
    found: dict[str, list[Block]] = {title: [] for _, title in titles}
    assert len(found) == len(titles), f"two sections of {path.name} have the same title"
    for one in _BLOCK.finditer(text):
        line = text.count("\n", 0, one.start()) + 2
        title = max((start, title) for start, title in titles if start <= one.start())[1]
        found[title].append(Block(f"{path.name}:{line}", line, one[1], one[2]))
    return [Section(title, tuple(blocks)) for title, blocks in found.items()]


def is_as_shown(shown: str, found: str) -> bool:
    """Whether an output is the one that is shown, where `…` is anything."""
    pattern = ".*?".join(map(re.escape, shown.strip("\n").split(_ANYTHING)))
    return re.fullmatch(pattern, found.strip("\n"), re.DOTALL) is not None


# Python


async def run(blocks: Iterable[Block], names: dict[str, object], changes: dict[str, str]) -> None:
    """Run blocks one after the other, with names in common, and compare what they print.

    `changes` are made in their text before: addresses, for instance.
    """
    printed, place = "", ""
    for block in blocks:
        if block.language == "text":
            shown = _changed(block.text, changes)
            assert is_as_shown(shown, printed), f"{block.place}: printed was\n{printed}"
            printed = ""
            continue
        if block.language == "toml":
            continue
        assert not printed, f"{place}: this is printed, and not shown:\n{printed}"
        place, text = block.place, _changed(block.text, changes)
        if block.language == "console":
            await asyncio.to_thread(run_shell, [block], changes)
        elif block.file is not None:
            Path(block.file).write_text(text, encoding="utf-8")  # noqa: ASYNC240 - a small one
        elif block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                await _execute(_compiled(block, text), names)
            printed = output.getvalue()
        else:
            raise AssertionError(f"{block.place}: nothing runs {block.language!r}")
    assert not printed, f"{place}: this is printed, and not shown:\n{printed}"


def _compiled(block: Block, text: str) -> CodeType:
    """With the line numbers of the page, so that errors name them."""
    filled = "\n" * (block.line - 1) + text
    code: CodeType = compile(
        filled, block.place.partition(":")[0], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    )
    return code


async def _execute(code: CodeType, names: dict[str, object]) -> None:
    found = eval(code, names)  # noqa: S307 - our own text
    if code.co_flags & inspect.CO_COROUTINE:
        assert isinstance(found, Awaitable)
        await found


def _changed(text: str, changes: dict[str, str]) -> str:
    for before, after in changes.items():
        text = text.replace(before, after)
    return text


# Shells


def steps(block: Block) -> list[tuple[str, str]]:
    """The commands of a transcript, each with the output that is shown."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        found.append((command, output))
    return found


def run_shell(blocks: Iterable[Block], changes: dict[str, str]) -> None:
    """Run all commands of some blocks in one shell; in the current directory.

    Files that stand between them are written when it is their turn.
    """
    lines = ["trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT"]
    wanted: list[tuple[Block, str, str]] = []
    for block in blocks:
        if block.file is not None:
            text = _changed(block.text, changes)
            lines.append(f"cat > {block.file} << 'END OF FILE'\n{text}END OF FILE")
            continue
        for command, output in steps(block):
            lines += [_changed(command, changes), f"echo; echo '{_MARK}'"]
            wanted.append((block, command, output))
    bash = shutil.which("bash")
    assert bash is not None, "this test needs bash"
    scripts = sysconfig.get_path("scripts")
    shell = subprocess.Popen(  # noqa: S603 - our own text
        [bash, "-u", "-c", "\n".join(lines)],
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with shell:
        try:
            shown, errors = shell.communicate(timeout=_SHELL_S)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            shown, errors = shell.communicate()  # what there is of it
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # servers too, that were not stopped
    outputs = shown.split(_MARK)
    for (block, command, output), found in zip(wanted, outputs, strict=False):
        assert is_as_shown(output, found), f"{block.place}: $ {command}\n{found}\n{errors}"
    assert len(outputs) == len(wanted) + 1, f"it ends early, or hangs:\n{errors}"
