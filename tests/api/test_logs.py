"""Lines for machines and for people: what they say, and what they never say."""

import io
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from api import logs

PLAIN = logging.getLogger("cluster.replica")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def logged(act: Callable[[], None], level: str = "info") -> list[dict[str, Any]]:
    stream = io.StringIO()
    logs.configure("json", level, "node-1", stream)
    act()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def shown(act: Callable[[], None], stream: io.StringIO | None = None) -> str:
    stream = io.StringIO() if stream is None else stream
    logs.configure("console", "info", "node-1", stream)
    act()
    return stream.getvalue()


def fail() -> None:
    passphrase = "hush"  # noqa: F841, S105 - a variable that no line may show
    try:
        os.environ["MISSING"]
    except KeyError as error:
        raise ValueError("cannot\ngo on\x1b[31m") from error


def fail_and_log() -> None:
    try:
        fail()
    except ValueError:
        PLAIN.exception("it failed")


# JSON


def test_a_line_of_the_standard_library_is_an_object() -> None:
    before = datetime.now(UTC)
    (line,) = logged(lambda: PLAIN.info("%s leads in term %d", "node-2", 3))
    time = line.pop("time")
    assert line == {
        "level": "info",
        "logger": "cluster.replica",
        "node": "node-1",
        "message": "node-2 leads in term 3",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert abs((datetime.fromisoformat(time) - before).total_seconds()) < 60


def test_a_line_of_structlog_looks_the_same_and_has_values() -> None:
    def act() -> None:
        structlog.get_logger("api.http").warning("%d of %s refused", 3, "them", status=429)
        PLAIN.warning("refused", extra={"status": 429})

    first, second = logged(act)
    assert list(first) == ["time", "level", "logger", "node", "message", "status"]
    assert first["message"] == "3 of them refused"
    assert first["logger"] == "api.http"
    assert first["status"] == second["status"] == 429


def test_levels_below_the_one_that_was_asked_for_are_left_out() -> None:
    def act() -> None:
        for logger in (PLAIN, structlog.get_logger("api.http")):
            logger.debug("no")
            logger.info("no")
            logger.warning("yes")

    assert [line["message"] for line in logged(act, "warning")] == ["yes", "yes"]


def test_what_is_bound_is_in_each_line() -> None:
    def act() -> None:
        with logs.request("outer"), structlog.contextvars.bound_contextvars(theme=7):
            PLAIN.info("1")
            with logs.request("inner"):
                structlog.get_logger("api").info("2")
                assert logs.request_id() == "inner"
            PLAIN.info("3")
        PLAIN.info("4")
        assert logs.request_id() is None

    lines = logged(act)
    assert [line.get("request_id") for line in lines] == ["outer", "inner", "outer", None]
    assert [line.get("theme") for line in lines] == [7, 7, 7, None]


def test_a_request_that_fails_leaves_nothing_bound() -> None:
    with pytest.raises(ValueError, match="cannot"), logs.request("one"):
        fail()
    assert logs.request_id() is None


def test_an_exception_is_told_without_its_variables() -> None:
    (line,) = logged(fail_and_log)
    raised, cause = line["exception"]
    assert raised["exc_type"] == "ValueError"
    assert raised["exc_value"] == "cannot\ngo on\x1b[31m"
    assert cause["exc_type"] == "KeyError"
    assert [frame["name"] for frame in raised["frames"]] == ["fail_and_log", "fail"]
    assert "hush" not in json.dumps(line)


def test_structlog_tells_exceptions_alike() -> None:
    def act() -> None:
        logger = structlog.get_logger("api")
        try:
            fail()
        except ValueError as error:
            logger.exception("one")
            logger.warning("two", exc_info=error)

    for line in logged(act):
        assert line["exception"][0]["exc_type"] == "ValueError"


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"\xff", "\ud800\u2028\n", {1: 2}, {(1, 2): 3}, object()]
)
def test_whatever_is_bound_is_one_line_of_json(value: object) -> None:
    def refuse(text: str) -> None:
        raise AssertionError(text)

    stream = io.StringIO()
    logs.configure("json", "info", "node-1", stream)
    structlog.get_logger("api").info("odd", value=value)
    text = stream.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    assert json.loads(text, parse_constant=refuse)["message"] == "odd"


def test_nobody_can_pretend_to_be_another_node() -> None:
    (line,) = logged(lambda: structlog.get_logger("api").info("x", node="node-2", time=0))
    assert line["node"] == "node-1"
    assert line["time"] > "2020"


def test_warnings_of_python_are_lines_too() -> None:
    def act() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)  # `catch_warnings` has put back the old ones
            logging.captureWarnings(capture=True)
            warnings.warn("beware", stacklevel=1)

    (line,) = logged(act)
    assert line["logger"] == "py.warnings"
    assert "beware" in line["message"]


# For people


def test_a_line_for_people() -> None:
    def act() -> None:
        with logs.request("4f1c"):
            PLAIN.warning("node-2 is silent", extra={"silent_ms": 3000})

    text = shown(act)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} \[warning +\] node-1 node-2 is silent cluster\.replica "
        r"request_id=4f1c silent_ms=3000\n",
        text,
    )


def test_an_exception_for_people() -> None:
    text = shown(fail_and_log)
    assert text.splitlines()[1] == "Traceback (most recent call last):"
    assert "KeyError: 'MISSING'" in text
    assert "ValueError: cannot\ngo on\\x1b[31m\n" in text
    assert "hush" not in text


def test_a_stranger_gives_the_terminal_no_commands_and_forges_no_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Those of pytest keep lines for a report, which cannot have all of these characters.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    evil = "a\n12:00:00.000 [error] node-1 \x1b[2J\x9b\ud800"

    def act() -> None:
        PLAIN.info("%s", evil)
        structlog.get_logger("api").info("x", name=evil)

    text = shown(act)
    assert text.count("\n") == 2
    assert not {"\x1b", "\x9b", "\ud800"} & set(text)


@pytest.mark.parametrize(
    ("stream", "variable", "has_colours"),
    [
        (Terminal, "", True),
        (Terminal, "NO_COLOR", False),
        (io.StringIO, "", False),
        (io.StringIO, "FORCE_COLOR", True),
    ],
)
def test_colours(
    stream: type[io.StringIO],
    variable: str,
    has_colours: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    text = shown(lambda: PLAIN.info("hello"), stream())
    assert ("\x1b[" in text) is has_colours
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).endswith("node-1 hello cluster.replica\n")


# Which of them


@pytest.mark.parametrize(("stream", "is_json"), [(Terminal, False), (io.StringIO, True)])
def test_auto_is_for_people_on_a_terminal(stream: type[io.StringIO], is_json: bool) -> None:
    sink = stream()
    logs.configure("auto", "info", "node-1", sink)
    PLAIN.info("hello")
    assert sink.getvalue().startswith("{") is is_json


def test_who_configures_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    first = io.StringIO()
    others = list(logging.getLogger().handlers)
    logs.configure("json", "info", "node-1", first)
    logs.configure("json", "info", "node-1")
    PLAIN.info("hello")
    assert first.getvalue() == ""
    assert json.loads(capsys.readouterr().err)["message"] == "hello"
    assert logging.getLogger().handlers[: len(others)] == others
