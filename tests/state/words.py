"""The words of scenario scripts, and the values that they stand for (see `transcript`)."""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, replace
from enum import IntEnum
from typing import Any

from state import (
    Acquired,
    Backoff,
    Cause,
    Created,
    Done,
    Event,
    Failure,
    HistoryEntry,
    Item,
    OnConflict,
    Operation,
    Phase,
    Result,
    Session,
    Stored,
)
from state.errors import KeyConflict, NotStale, TxnAborted
from state.limits import DAY_MS, HOUR_MS, LIMIT_RANGES, MINUTE_MS, SECOND_MS, YEAR_MS
from state.operations import (
    OPERATIONS,
    Acquire,
    Barrier,
    ForgetProposer,
    Heartbeat,
    Idempotent,
    Pause,
    Release,
    Resume,
    SetLimits,
    SetPolicy,
    Target,
    Tick,
    Txn,
)
from state.policy import POLICY_RANGES
from state.records import ANSWERS, CONSUMER, META, RECEIPT, SESSION, THEME, WINDOW

# A scenario's zero. Not the machine's, so that a time can not be taken for a duration unnoticed.
START_MS = 1_700_000_000_000

_UNIT_MS = {
    "y": YEAR_MS,
    "d": DAY_MS,
    "h": HOUR_MS,
    "m": MINUTE_MS,
    "s": SECOND_MS,
    "ms": 1,
}
_UNIT_BYTES = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}
_DURATION = re.compile(r"(?:\d+(?:ms|[ydhms]))+")
_DURATION_PART = re.compile(r"(\d+)(ms|[ydhms])")
_REPEATED = re.compile(r"(.)\*(\d+)(KiB|MiB|)")
_NAMED = re.compile(r"([a-z_]+)=(.*)", re.DOTALL)
_LONG_BYTES = 40
_KIND_NAMES = {
    META: "state",
    THEME: "theme",
    CONSUMER: "consumer",
    WINDOW: "window",
    ANSWERS: "answers",
    RECEIPT: "receipt",
    SESSION: "session",
}


@dataclass(frozen=True, slots=True)
class Command:
    """One line of input, and those indented below it."""

    line: int
    text: str
    children: tuple["Command", ...] = ()

    @property
    def name(self) -> str:
        return self.text.split(maxsplit=1)[0]

    @property
    def rest(self) -> str:
        """All after the name, as it stands."""
        return self.text[len(self.name) :].strip()

    def childless(self) -> "Command":
        """Itself. Raises ValueError if it has children, for commands that hold no others."""
        if self.children:
            raise ValueError(f"{self.name} has no commands inside")
        return self


# Words to values. All raise ValueError for a word that is not of the language.


class Arguments:
    """The words after a command's name; each is asked for exactly once."""

    def __init__(self, text: str) -> None:
        self._plain: list[str] = []
        self._named: dict[str, str] = {}
        for word in shlex.split(text):
            named = _NAMED.fullmatch(word)
            if named is None:
                self._plain.append(word)
            elif named[1] in self._named:
                raise ValueError(f"{named[1]} is given twice")
            else:
                self._named[named[1]] = named[2]

    def next(self, what: str) -> str:
        """The next word that is not named."""
        if not self._plain:
            raise ValueError(f"{what} is missing")
        return self._plain.pop(0)

    def rest(self) -> list[str]:
        """All words that are not named."""
        words, self._plain = self._plain, []
        return words

    def get(self, name: str) -> str | None:
        """What is said to `name`, if anything."""
        return self._named.pop(name, None)

    def named(self) -> dict[str, str]:
        """All that is said by name."""
        words, self._named = self._named, {}
        return words

    def finish(self) -> None:
        """Raise ValueError if anything was not asked for."""
        unknown = [*self._plain, *(f"{name}=" for name in self._named)]
        if unknown:
            raise ValueError(f"unknown: {' '.join(unknown)}")


def to_duration_ms(word: str) -> int:
    if not _DURATION.fullmatch(word):
        raise ValueError(f"{word} is not a duration")
    return sum(int(count) * _UNIT_MS[unit] for count, unit in _DURATION_PART.findall(word))


def _to_bytes(word: str) -> bytes:
    if repeated := _REPEATED.fullmatch(word):
        return repeated[1].encode() * (int(repeated[2]) * _UNIT_BYTES[repeated[3]])
    if word.startswith("0x"):
        return bytes.fromhex(word[2:])
    return word.encode()


def _to_text(word: str) -> str:
    return _to_bytes(word).decode()


def to_int(word: str) -> int:
    return int(word)


def _to_size(word: str) -> int:
    number = word.removesuffix("KiB").removesuffix("MiB")
    return int(number) * _UNIT_BYTES[word[len(number) :]]


def to_target(word: str) -> Target:
    theme, slash, key = word.partition("/")
    if slash:
        return int(theme), _to_bytes(key)
    return _to_session_id(word)


def _to_session_id(word: str) -> int:
    if not re.fullmatch(r"s\d+", word):
        raise ValueError(f"{word} is not a session like s1")
    return int(word[1:])


def _to_member(kind: type[IntEnum]) -> Callable[[str], int]:
    def convert(word: str) -> int:
        for member in kind:
            if member.name.lower() == word:
                return member
        raise ValueError(f"{word} is not one of {', '.join(one.name.lower() for one in kind)}")

    return convert


_WORD_TO_FIELD: dict[str, Callable[[str], object]] = {
    "cause": _to_member(Cause),
    "consumer": _to_bytes,
    "count": to_int,
    "data": _to_bytes,
    "epoch": to_int,
    "expires_after_ms": to_duration_ms,
    "if_revision": to_int,
    "key": _to_bytes,
    "now_ms": lambda word: START_MS + to_duration_ms(word),
    "on_conflict": _to_member(OnConflict),
    "priority": to_int,
    "proposer": _to_text,
    "reason": _to_text,
    "repeat_after_ms": to_duration_ms,
    "target": to_target,
    "theme": to_int,
    "trace": _to_bytes,
    "until_used": to_int,
}
# The field that is written without its name.
_PLAIN_FIELD: dict[type[Operation], str] = {
    ForgetProposer: "proposer",
    Heartbeat: "consumer",
    Pause: "theme",
    Release: "consumer",
    Resume: "theme",
    SetPolicy: "theme",
    Tick: "now_ms",
}


def _command_name(kind: type[Operation]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower()


OPERATION_BY_NAME = {_command_name(kind): kind for kind in OPERATIONS}


def operation(command: Command, arguments: Arguments | None = None) -> Operation:
    """The operation that a command says. Raises ValueError if it is none."""
    kind = OPERATION_BY_NAME.get(command.name)
    if kind is None:
        raise ValueError(f"unknown command {command.name}")
    if kind is Idempotent:
        return _idempotent(command)
    given = Arguments(command.rest) if arguments is None else arguments
    made: Operation
    if kind is Txn:
        made = Txn(tuple(map(operation, command.children)))
    else:
        command.childless()
        if kind is Acquire:
            made = _acquire(given)
        elif kind is SetPolicy:
            made = SetPolicy(to_int(given.next("theme")), _settings(given, POLICY_RANGES))
        elif kind is SetLimits:
            made = SetLimits(_settings(given, LIMIT_RANGES))
        else:
            made = kind(**dict(_fields(kind, given)))
    if arguments is None:
        given.finish()
    return made


def _acquire(given: Arguments) -> Acquire:
    count, consumer = given.get("count"), given.get("consumer")
    return Acquire(
        tuple(map(to_int, given.rest())),
        1 if count is None else int(count),
        None if consumer is None else _to_bytes(consumer),
    )


def _fields(kind: type[Operation], given: Arguments) -> Iterator[tuple[str, object]]:
    for one in fields(kind):
        word = _word(kind, one, given)
        if word is not None:
            yield one.name, _WORD_TO_FIELD[one.name](word)
        elif one.name == "epoch":
            yield one.name, None  # a producer's
        elif one.default is MISSING:
            raise ValueError(f"{one.name} is missing")


def _word(kind: type[Operation], one: Field[Any], given: Arguments) -> str | None:
    if one.name in ("target", _PLAIN_FIELD.get(kind)):
        return given.next(one.name)
    return given.get(one.name.removesuffix("_ms"))


def _idempotent(command: Command) -> Idempotent:
    """`idempotent key=k expires_after=1h new theme=7`: what follows the options is inside."""
    options = re.match(r"(?:\s*[a-z_]+=\S+)*", command.rest)
    end = 0 if options is None else options.end()
    given = Arguments(command.rest[:end])
    inner = command.rest[end:].strip()
    if not inner:
        raise ValueError("the operation is missing")
    values = {
        one.name: _WORD_TO_FIELD[one.name](word)
        for one in fields(Idempotent)
        if (word := given.get(one.name.removesuffix("_ms"))) is not None
    }
    given.finish()
    missing = {"key", "expires_after_ms"} - set(values)
    if missing:
        raise ValueError(f"{' and '.join(sorted(missing))} are missing")
    made: Any = Idempotent
    answer: Idempotent = made(
        operation=operation(Command(command.line, inner, command.children)), **values
    )
    return answer


def _settings(given: Arguments, known: Iterable[str]) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for name, word in given.named().items():
        if f"{name}_ms" in known:
            found.append((f"{name}_ms", to_duration_ms(word)))
        elif name == "backoff":
            found.append((name, _to_member(Backoff)(word)))
        elif name in known:
            found.append((name, _to_size(word)))
        else:
            raise ValueError(f"there is no setting {name}")
    return tuple(found)


# Values to words


def duration(ms: int) -> str:
    """A duration as a script writes it, its zeros left out."""
    if ms < 0:
        return f"-{duration(-ms)}"
    words: list[str] = []
    for unit, unit_ms in _UNIT_MS.items():
        count, ms = divmod(ms, unit_ms)
        if count:
            words.append(f"{count}{unit}")
    return "".join(words) or "0s"


def since_start(ms: int) -> str:
    return duration(ms - START_MS)


def bytes_text(data: bytes) -> str:
    if len(data) > _LONG_BYTES and len(set(data)) == 1 and 0x20 < data[0] < 0x7F:
        return f"{chr(data[0])}*{len(data)}"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"0x{data.hex()}"
    return text if text.isprintable() else f"0x{data.hex()}"


def _quoted(data: bytes) -> str:
    text = bytes_text(data)
    return text if text.startswith("0x") or len(data) > _LONG_BYTES else f'"{text}"'


def failure_text(failure: Failure) -> str:
    marks = [failure.outcome.value]
    if failure.retryable:
        marks.append("retryable")
    if isinstance(failure, KeyConflict):
        marks.append(f"holder=s{failure.holder_id}")
    return f"{failure.code}: {_relative(failure)} ({', '.join(marks)})"


def _relative(failure: Failure) -> Failure:
    """The failure with times since the start."""
    if isinstance(failure, NotStale):
        return replace(failure, deadline_ms=failure.deadline_ms - START_MS)
    if isinstance(failure, TxnAborted):
        return replace(failure, cause=_relative(failure.cause))
    return failure


def result_lines(asked: Operation | None, result: Result) -> list[str]:
    """What is answered to `asked`; None for an operation that is only known as bytes."""
    if isinstance(asked, Idempotent):
        asked = asked.operation
    match result:
        case None:
            return ["ok"]
        case Failure():
            return [failure_text(result)]
        case Created(session_id, epoch, revision, created):
            how = "created" if created else "existing"
            shown = f" epoch={epoch}" if epoch else ""
            return [f"{how} s{session_id}{shown} revision={revision}"]
        case Stored(session_id, revision, due_ms, parked):
            if parked:
                return [f"parked s{session_id} revision={revision}"]
            return [f"stored s{session_id} revision={revision} due={since_start(due_ms)}"]
        case Acquired(session_id, epoch, revision):
            return [f"acquired s{session_id} epoch={epoch} revision={revision}"]
        case Done(results):
            inner = asked.operations if isinstance(asked, Txn) else ()
            return ["done", *(f"  {line}" for line in results_lines(inner, results))]
        case tuple():
            lines = [line for one in result for line in result_lines(None, one)]
            return lines or ["acquired nothing"]
        case int():
            return [_int_line(asked, result)]


def results_lines(asked: Iterable[Operation | None], results: tuple[Result, ...]) -> list[str]:
    """All answers of a batch or a transaction."""
    known = list(asked)
    if len(known) != len(results):
        known = [None] * len(results)
    pairs = zip(known, results, strict=True)
    return [line for one, result in pairs for line in result_lines(one, result)]


def _int_line(asked: Operation | None, result: int) -> str:
    match asked:
        case Tick():
            return f"now {since_start(result)}"
        case Heartbeat():
            return f"renewed {result}"
        case Release():
            return f"still holds {result}"
        case Barrier():
            return f"index {result}"
        case None:
            return f"answered {result}"
        case _:
            return f"revision={result}"


def event_line(event: Event) -> str:
    what = event.kind.name.lower()
    if not event.session_id:
        return f"{event.log_index}: {what} theme={event.theme}"
    key = "" if event.key is None else f" key={bytes_text(event.key)}"
    return (
        f"{event.log_index}: {what} s{event.session_id} theme={event.theme}{key}"
        f" revision={event.revision}"
    )


def session_lines(session: Session) -> list[str]:
    phase, theme = session.phase.name.lower(), session.theme.theme_id
    key = "" if session.key is None else f" key={bytes_text(session.key)}"
    times = {
        "created": session.created_ms,
        "updated": session.updated_ms,
        "due": session.due_ms,
        "touched": session.touched_ms,
    }
    trace = f" trace={bytes_text(session.trace)}" if session.trace else ""
    lines = [
        f"s{session.session_id} {phase} theme={theme}{key} priority={session.priority}{trace}",
        f"  epoch={session.epoch} revision={session.revision} attempts={session.attempts}",
        " ".join([" ", *(f"{name}={since_start(ms)}" for name, ms in times.items())]),
    ]
    if session.phase is Phase.ACTIVE:
        consumer = session.consumer
        by = "nobody" if consumer is None else bytes_text(consumer.consumer_id)
        progress = f" progress={duration(session.progress_ms)}" if session.progress_ms else ""
        lines.append(
            f"  lease={duration(session.lease_ms)}{progress} consumer={by}"
            f" until={since_start(session.deadline_ms)}"
        )
    elif session.consumer is not None or session.lease_ms or session.progress_ms:
        raise RuntimeError(f"s{session.session_id} is not active but has a lease")
    lines.append(" ".join(["  chunks", *map(_quoted, session.chunks)]))
    lines += [f"  history {_history_text(entry)}" for entry in session.history]
    return lines


def _history_text(entry: HistoryEntry) -> str:
    text = Cause(entry.cause).name.lower()
    if entry.reason:
        text += f" {_quoted(entry.reason.encode())}"
    if entry.times == 1:
        return f"{text} at {since_start(entry.last_ms)}"
    times = f"{since_start(entry.first_ms)} to {since_start(entry.last_ms)}"
    return f"{text} {entry.times} times, {times}"


def setting_words(names: Iterable[str], value: object, default: object) -> list[str]:
    """The settings of `value` that are not those of `default`."""
    words: list[str] = []
    for name in names:
        setting: int = getattr(value, name)
        if setting == getattr(default, name):
            continue
        if name.endswith("_ms"):
            words.append(f"{name.removesuffix('_ms')}={duration(setting)}")
        elif name == "backoff":
            words.append(f"{name}={Backoff(setting).name.lower()}")
        else:
            words.append(f"{name}={setting}")
    return words


def record_name(item: Item) -> str:
    identity = item.identity
    if isinstance(identity, tuple):
        identity = " ".join(map(str, identity))
    name = bytes_text(identity) if isinstance(identity, bytes) else str(identity)
    return f"{_KIND_NAMES[item.kind]} {'s' if item.kind == SESSION else ''}{name}"
