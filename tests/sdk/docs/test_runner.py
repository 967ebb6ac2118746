"""What runs the pages finds their mistakes."""

from pathlib import Path

import pytest

from tests.sdk.docs.pages import is_as_shown, run, run_shell, sections


def page(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    return path


async def run_page(tmp_path: Path, text: str) -> dict[str, object]:
    names: dict[str, object] = {}
    for section in sections(page(tmp_path, text)):
        await run(section.blocks, names, {"OLD": "new"})
    return names


def test_sections_and_their_blocks_are_found(tmp_path: Path) -> None:
    text = "# T\n```python\na\n```\n## One\n```text\nb\n```\n```\nc\n```\n## Two\n"
    before, one, two = sections(page(tmp_path, text))
    assert [block.text for block in before.blocks] == ["a\n"]
    assert (one.title, [block.language for block in one.blocks]) == ("One", ["text", ""])
    assert (two.title, two.blocks) == ("Two", ())


async def test_what_is_printed_is_what_is_shown(tmp_path: Path) -> None:
    text = "```python\nimport asyncio\n```\n```python\nawait asyncio.sleep(0)\nprint('OLD')\n```\n"
    await run_page(tmp_path, text + "```text\nnew\n```\n")
    with pytest.raises(AssertionError, match="printed was\nnew"):
        await run_page(tmp_path, text + "```text\nnewer\n```\n")
    with pytest.raises(AssertionError, match=r"page.md:5: .*not shown:\nnew"):
        await run_page(tmp_path, text)
    with pytest.raises(AssertionError, match="printed was"):
        await run_page(tmp_path, "```text\nnothing has printed that\n```\n")


async def test_an_error_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        await run_page(tmp_path, "# T\n\n```python\na = 1\na / 0\n```\n")
    last = raised.traceback[-1]
    assert (last.path, last.lineno) == ("page.md", 4)  # from 0


async def test_what_nothing_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing runs 'rust'"):
        await run_page(tmp_path, "```rust\nfn main() {}\n```\n")


def test_a_shell_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "```python\n# it.py\nprint('a', 'OLD')\n```\n```console\n$ python it.py\n{}\n```\n"
    (good,) = sections(page(tmp_path, text.format("a …")))
    run_shell(good.blocks, {"OLD": "new"})
    (bad,) = sections(page(tmp_path, text.format("a OLD")))
    with pytest.raises(AssertionError, match=r"page.md:6: \$ python it.py\na new"):
        run_shell(bad.blocks, {"OLD": "new"})
    (early,) = sections(page(tmp_path, "```console\n$ exit 3\n$ echo\n```\n"))
    with pytest.raises(AssertionError, match="it ends early"):
        run_shell(early.blocks, {})


def test_an_ellipsis_is_anything() -> None:
    assert is_as_shown("a … c\n", "a b b c")
    assert not is_as_shown("a … c\n", "a b b d")
