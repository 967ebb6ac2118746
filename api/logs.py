"""How lines of the log look: one JSON object each, or coloured lines for people.

Lines come from `logging.getLogger(__name__)` (all of `cluster` does it so) and from
`structlog.get_logger(__name__)`, with values beside the message; both end here and look alike:

    {"time": "2026-01-02T03:04:05.678Z", "level": "info", "logger": "cluster.replica",
     "node": "node-1", "request_id": "4f1c...", "message": "node-1 leads in term 3"}

What is bound while something is being done is in each line about it: `with request("4f1c..."):`.
Of exceptions there are types, messages and places in the code, never the values of variables. That
no message has a secret, a key or a payload is up to who writes it.
"""

import json
import logging
import os
import sys
import time
from collections.abc import MutableMapping
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

import structlog
from structlog.dev import (
    Column,
    ConsoleRenderer,
    KeyValueColumnFormatter,
    LogLevelColumnFormatter,
    plain_traceback,
)
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor, WrappedLogger

Line = MutableMapping[str, Any]

_FIRST = ("time", "level", "logger", "node", "request_id", "message")
_FRAMES_MAX = 30
_LEVEL_CHARS = len("critical")

# ANSI. A node has one of the colours, by its name: several may share a terminal.
_RESET, _BRIGHT, _DIM = "\033[0m", "\033[1m", "\033[2m"
_LEVEL_COLOURS = {
    "debug": _DIM,
    "info": "\033[32m",
    "warning": "\033[33m",
    "error": "\033[31m",
    "critical": "\033[1;31m",
}
_NODE_COLOURS = ("\033[36m", "\033[35m", "\033[34m", "\033[33m", "\033[32m", "\033[96m", "\033[95m")

# A line for people must stay one, whatever stands in it, and give the terminal no commands.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}

# Not structlog's own context, though that is shown too: this one is set for each request.
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class request:  # noqa: N801 - reads as what it is: `with request(id):`
    """What is logged inside belongs to the request with this id, in all tasks begun there too."""

    __slots__ = ("_token", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._token: Token[str | None] | None = None

    def __enter__(self) -> Self:
        self._token = _request_id.set(self.request_id)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _request_id.reset(self._token)


def request_id() -> str | None:
    """The id of the request that is being worked on here."""
    return _request_id.get()


def configure(format: str, level: str, node_id: str, stream: TextIO | None = None) -> None:  # noqa: A002 - the setting's name
    """Log to `stream`, or standard error, from now on. `format` and `level` are the settings'.

    Called again, it replaces what it did before. Handlers of others are left alone.
    """
    stream = sys.stderr if stream is None else stream
    is_console = format == "console" or (format == "auto" and stream.isatty())
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *common,
            _add_request_id,
            _set_exc_info,
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _Handler(stream)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*common, structlog.stdlib.ExtraAdder(), _add_request_id],
            processors=[
                _Finish(node_id),
                *(_console(node_id, _has_colours(stream)) if is_console else _json()),
            ],
        )
    )
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)


class _Handler(logging.StreamHandler[TextIO]):
    """So that what `configure` did before is recognised."""


def _add_request_id(_logger: WrappedLogger, _method: str, line: Line) -> Line:
    found = _request_id.get()
    if found is not None:
        line.setdefault("request_id", found)
    return line


def _set_exc_info(_logger: WrappedLogger, method: str, line: Line) -> Line:
    """Let `exception(...)` of structlog mean what it means in the standard library."""
    if method == "exception":
        line.setdefault("exc_info", True)
    return line


class _Finish:
    """The names and the order that lines have, whoever wrote them."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id

    def __call__(self, _logger: WrappedLogger, _method: str, line: Line) -> Line:
        record: logging.LogRecord = line.pop("_record")
        line.pop("_from_structlog", None)
        line["time"] = record.created
        line["node"] = self._node_id
        line["message"] = str(line.pop("event", ""))
        ordered = {name: line.pop(name) for name in _FIRST if name in line}
        return {**ordered, **line}


def _json() -> list[Processor]:
    transformer = ExceptionDictTransformer(show_locals=False, max_frames=_FRAMES_MAX)
    return [
        _utc_time,
        structlog.processors.ExceptionRenderer(transformer),
        structlog.processors.JSONRenderer(serializer=_dumps),
    ]


def _utc_time(_logger: WrappedLogger, _method: str, line: Line) -> Line:
    moment = datetime.fromtimestamp(line["time"], UTC)
    line["time"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return line


def _dumps(line: Line, **_options: object) -> str:
    """One line of ASCII, whatever was bound: a line that is lost says less than an odd one."""
    try:
        return json.dumps(line, default=str, allow_nan=False)
    except (TypeError, ValueError):  # no key for JSON, no number, a circle
        return json.dumps({str(name): str(value) for name, value in line.items()})


def _console(node_id: str, has_colours: bool) -> list[Processor]:  # noqa: FBT001 - private
    def colour(code: str) -> str:
        return code if has_colours else ""

    reset = colour(_RESET)

    def column(style: str) -> KeyValueColumnFormatter:
        """A value without its name."""
        return KeyValueColumnFormatter(None, colour(style), reset, _on_one_line)

    node_colour = _NODE_COLOURS[sum(node_id.encode()) % len(_NODE_COLOURS)]
    levels = {name: colour(code) for name, code in _LEVEL_COLOURS.items()}
    columns = [
        Column("time", column(_DIM)),
        Column("level", LogLevelColumnFormatter(levels, reset, _LEVEL_CHARS)),
        Column("node", column(node_colour)),
        Column("message", column(_BRIGHT)),
        Column("logger", column(_DIM)),
        Column("", KeyValueColumnFormatter(colour(_DIM), "", reset, _on_one_line)),
    ]
    renderer = ConsoleRenderer(
        columns=columns, exception_formatter=plain_traceback, sort_keys=False
    )
    return [_local_time, structlog.processors.format_exc_info, _exception_text, renderer]


def _exception_text(_logger: WrappedLogger, _method: str, line: Line) -> Line:
    if isinstance(text := line.get("exception"), str):
        line["exception"] = "\n".join(map(_on_one_line, text.splitlines()))
    return line


def _local_time(_logger: WrappedLogger, _method: str, line: Line) -> Line:
    created_s = line["time"]
    milliseconds = int(created_s % 1 * 1000)
    line["time"] = f"{time.strftime('%H:%M:%S', time.localtime(created_s))}.{milliseconds:03}"
    return line


def _on_one_line(value: object) -> str:
    text = str(value).translate(_CONTROLS)
    return text.encode("utf-8", "backslashreplace").decode()  # of lone surrogates


def _has_colours(stream: TextIO) -> bool:
    """Whether colours are wanted, by the two variables that many programs look at."""
    if os.environ.get("NO_COLOR"):
        return False
    return stream.isatty() or bool(os.environ.get("FORCE_COLOR"))
