"""The scenarios of `scenarios/`, and tests of what runs them (`transcript`)."""

import re
from pathlib import Path

import pytest

from state import EventKind
from state.errors import FAILURE_BY_CODE
from state.limits import LIMIT_RANGES
from tests.state import transcript
from tests.state.transcript import ScriptError
from tests.state.words import OPERATION_BY_NAME, duration

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in SCENARIOS)

SCRIPT = """\
A session goes back to sleep.

> new theme=7 data=hello
created s1 epoch=1 revision=1
> store s1 epoch=1 repeat_after=1m
stored s1 revision=2 due=1m

It is gone in the end.

> batch
>   remove s1
>   remove s1
revision=2
session_not_found: no such session (not_applied)
"""


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_answers_what_it_says(path: Path, rewrite: bool) -> None:
    differences = transcript.check(path, rewrite=rewrite)
    assert not differences, f"\n{differences}(pytest --rewrite writes what it answers now)"


# Together the scenarios say something of everything.


@pytest.mark.parametrize("name", OPERATION_BY_NAME)
def test_each_operation_has_a_scenario(name: str) -> None:
    assert re.search(rf"^> (?: *|.* ){name}\b", TEXT, re.MULTILINE)


@pytest.mark.parametrize("code", FAILURE_BY_CODE)
def test_each_failure_has_a_scenario(code: str) -> None:
    assert re.search(rf"^ *(?:batch refused: )?{code}: ", TEXT, re.MULTILINE)


@pytest.mark.parametrize("limit", LIMIT_RANGES)
def test_each_limit_has_a_scenario(limit: str) -> None:
    if limit in NEVER_REFUSED:
        assert re.search(rf"^> set-limits.*\b{limit.removesuffix('_ms')}=", TEXT, re.MULTILINE)
    else:
        assert re.search(rf"limit_exceeded: -?\d+ is beyond the bound of {limit},", TEXT)


@pytest.mark.parametrize("kind", EventKind, ids=lambda kind: kind.name)
def test_each_event_has_a_scenario(kind: EventKind) -> None:
    assert re.search(rf"^\d+: {kind.name.lower()} ", TEXT, re.MULTILINE)


# Limits at which the machine does less or forgets, and refuses nothing.
NEVER_REFUSED = {
    "batch_acquired",
    "history_entries",
    "tick_page",
    "window_batches",
    "window_results",
}


# Tests of the interpreter


def test_a_right_script_has_no_differences() -> None:
    assert not transcript.outcome(SCRIPT, "script").differences


def test_a_wrong_answer_is_shown_with_its_place() -> None:
    wrong = SCRIPT.replace("due=1m\n", "due=2m\n")
    assert transcript.outcome(wrong, "script").differences == (
        "script:5:\n"
        "> store s1 epoch=1 repeat_after=1m\n"
        "- stored s1 revision=2 due=2m\n"
        "+ stored s1 revision=2 due=1m\n"
    )


@pytest.mark.parametrize("line", [line for line in SCRIPT.split("\n") if "revision" in line])
def test_a_missing_or_doubled_answer_is_a_difference(line: str) -> None:
    assert transcript.outcome(SCRIPT.replace(f"{line}\n", ""), "script").differences
    assert transcript.outcome(
        SCRIPT.replace(f"{line}\n", f"{line}\n{line}\n"), "script"
    ).differences


def test_check_fails_on_a_wrong_file_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    wrong = SCRIPT.replace("created s1", "created s2")
    path.write_text(wrong, encoding="utf-8")
    assert "wrong.txt:3:" in transcript.check(path, rewrite=False)
    assert path.read_text(encoding="utf-8") == wrong


def test_check_rewrites_a_wrong_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.txt"
    path.write_text(SCRIPT.replace("created s1", "created s2"), encoding="utf-8")
    assert not transcript.check(path, rewrite=True)
    assert path.read_text(encoding="utf-8") == SCRIPT


def test_check_leaves_a_right_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "right.txt"
    path.write_text(SCRIPT, encoding="utf-8")
    path.chmod(0o400)
    assert not transcript.check(path, rewrite=False)
    assert not transcript.check(path, rewrite=True)


def test_answers_are_written_where_there_were_none() -> None:
    lines = SCRIPT.split("\n")
    bare = [line for line in lines if not re.match(r"created|stored|revision|session_", line)]
    assert transcript.outcome("\n".join(bare), "script").anew == SCRIPT


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("dance", "unknown command dance"),
        ("new", "theme is missing"),
        ("new theme=7 colour=red", "unknown: colour="),
        ("new theme=7 now", "unknown: now"),
        ("new theme=7 theme=8", "theme is given twice"),
        ("new theme=7 repeat_after=60", "60 is not a duration"),
        ("new theme=7 on_conflict=win", "win is not one of reject, return_existing, bring_forward"),
        ("new theme=x", "invalid literal for int"),
        ("remove 1", "1 is not a session like s1"),
        ("append s1", "data is missing"),
        ("set-policy 7 colour=3", "there is no setting colour"),
        ("set-limits 7", "unknown: 7"),
        ("idempotent key=a new theme=7", "expires_after_ms are missing"),
        ("idempotent key=a expires_after=1h", "the operation is missing"),
        ("show", "session is missing"),
        ("show s1 s2", "unknown: s2"),
        ("events now", "unknown: now"),
        ("raw 9", "9 is not hexadecimal"),
        ("advance", "duration is missing"),
        ("checkpoint end", "no checkpoint has begun"),
        ("checkpoint middle", "a checkpoint has a begin and an end"),
        ("new theme=7\n>   new theme=8", "new has no commands inside"),
        ("txn\n>     remove s1", "commands are indented by two"),
        ("txn \n", "a command is '> ' and words"),
        ("", "a command is '> ' and words"),
    ],
)
def test_what_is_not_in_the_language_is_an_error_with_its_place(command: str, problem: str) -> None:
    with pytest.raises(ScriptError) as raised:
        transcript.outcome(f"Prose.\n\n> {command}\n", "script")
    assert re.match(rf"script:[34]: .*{re.escape(problem)}", str(raised.value))


def test_a_script_ends_with_a_line_end() -> None:
    with pytest.raises(ScriptError):
        transcript.parse("> clock", "script")


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (1500, "1s500ms"),
        (60_000, "1m"),
        (90_000, "1m30s"),
        (3_600_000, "1h"),
        (-5000, "-5s"),
        (366 * 86_400_000, "1y1d"),
    ],
)
def test_durations_are_written_without_zeros(ms: int, text: str) -> None:
    assert duration(ms) == text
