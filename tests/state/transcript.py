"""Runs scenario scripts, which read like a transcript of somebody talking to the state machine.

A script is prose with commands in between. A command begins with `> `; the lines below it, up to
the next blank line or command, are what it answers. A command that holds others (`txn`, `batch`)
has them below itself, indented:

    The last stage is done and the next begins, in one step.

    > txn
    >   remove s1 epoch=1
    >   new theme=8 data=hello
    done
      revision=1
      created s2 epoch=1 revision=1

Operations are written by their names and fields (`acquire-session s1 consumer=web`); a target is
`s1` or `7/key`; a field in milliseconds is written as a duration (`repeat_after=1m30s`); bytes are
text, `0xff00`, or `x*300KiB`. Each command is one batch, so it may say whose: `proposer=n2
incarnation=2 sequence=7 term=3`. Times are those since the start of the scenario.

    batch              several operations in one batch
    again              the last batch, byte for byte
    operation (…)      an operation as a Python literal, right or wrong
    envelope (…)       a batch as a Python literal, right or wrong
    raw 96 01 c0*9     a batch as hexadecimal bytes, some repeated
    advance 10s        a Tick that much later
    reap               what the reaper does: ask who is stale, and store them

    show s1            a session              events        of the last batch
    theme 7            counts, policy         awake         themes woken by the last batch
    queue 7            who is ready, in turn  changed       records the last batch changed
    stale              what reap would do     clock         time, term, index, next due time
    windows            results kept           limits        those that are not the default
    consumers          and when last seen     size          as state_bytes counts it
    receipts           idempotency keys       session-ids   of all sessions

    checkpoint         write what changed     checkpoint begin, checkpoint end: the same, but the
    restart            load that, replay      machine goes on in between
    export-import      go on with a copy      scenario      begin with an empty state again

What a scenario shows is what one machine answers. Beside it run two more with the same batches, and
all must agree: one is exported and loaded after each command, one is never looked at before the
end, because looking (at digests, at checkpoints) could hide what it should show.
"""

import ast
import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack

from state import (
    FIELDS,
    LIMITS,
    Applied,
    Capture,
    Cause,
    Item,
    Operation,
    Phase,
    Policy,
    StateMachine,
    encode,
    encode_batch,
    load,
)
from state.limits import LIMIT_RANGES
from state.operations import Store, Tick
from state.policy import POLICY_RANGES
from state.records import (
    ANSWERS,
    CHECK,
    CONSUMER,
    META,
    RECEIPT,
    SESSION,
    WINDOW,
    Identity,
)
from tests.state.disk import Disk
from tests.state.words import (
    START_MS,
    Arguments,
    Command,
    bytes_text,
    event_line,
    failure_text,
    operation,
    record_name,
    results_lines,
    session_lines,
    setting_words,
    since_start,
    to_duration_ms,
    to_int,
    to_target,
)

_RAW = re.compile(r"((?:[0-9a-f]{2})+)(?:\*(\d+))?")


class ScriptError(Exception):
    """A script says something that is not in the language."""


class DivergedError(Exception):
    """Machines that were given the same batches are not the same."""


# Scripts


@dataclass(frozen=True, slots=True)
class Step:
    """A command as it stands in the script, and the answer that is expected."""

    command: Command
    source: tuple[str, ...]
    expected: tuple[str, ...]


Part = str | Step  # a line of prose, or a step


def parse(text: str, name: str) -> list[Part]:
    """The parts of a script in order. Raises `ScriptError`."""
    if not text.endswith("\n"):
        raise ScriptError(f"{name}: the script does not end with a line's end")
    lines = text.removesuffix("\n").split("\n")
    parts: list[Part] = []
    at = 0
    while at < len(lines):
        if not lines[at].startswith(">"):
            parts.append(lines[at])
            at += 1
            continue
        start = at
        at += 1
        while at < len(lines) and lines[at].startswith(">  "):
            at += 1
        source = tuple(lines[start:at])
        answer = at
        while at < len(lines) and lines[at] and not lines[at].startswith(">"):
            at += 1
        command = _command(source, start + 1, name)
        parts.append(Step(command, source, tuple(lines[answer:at])))
    return parts


def _command(source: tuple[str, ...], line: int, name: str) -> Command:
    depths: list[int] = []
    for number, one in enumerate(source, line):
        if not one.startswith("> ") or not one[2:].strip() or one != one.rstrip():
            raise ScriptError(f"{name}:{number}: a command is '> ' and words")
        depths.append(len(one) - len(one[1:].lstrip()))
    if depths[0] != 2:
        raise ScriptError(f"{name}:{line}: the first command of a step is not indented")

    def take(at: int) -> tuple[Command, int]:
        children: list[Command] = []
        after = at + 1
        while after < len(source) and depths[after] > depths[at]:
            if depths[after] != depths[at] + 2:
                raise ScriptError(f"{name}:{line + after}: commands are indented by two")
            child, after = take(after)
            children.append(child)
        return Command(line + at, source[at][1:].strip(), tuple(children)), after

    command, _ = take(0)
    return command


def answers(parts: Iterable[Part], name: str) -> list[tuple[str, ...]]:
    """Run a script: what each of its parts answers, prose nothing. Raises `ScriptError`."""
    runner = Runner()
    found: list[tuple[str, ...]] = []
    line = 0
    try:
        for part in parts:
            if isinstance(part, str):
                found.append(())
                continue
            line = part.command.line
            found.append(tuple(runner.run(part.command)))
        runner.finish()
    except ValueError as error:
        raise ScriptError(f"{name}:{line}: {error}") from error
    except Exception as error:
        error.add_note(f"in {name}:{line}")
        raise
    return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """What running a script has shown."""

    anew: str
    """The script with the answers that it got in place of those that it expected."""
    differences: str
    """Where the two differ, to be read by people; empty if nowhere."""


def outcome(text: str, name: str) -> Outcome:
    """Run a script. Raises `ScriptError`."""
    parts = parse(text, name)
    lines: list[str] = []
    found: list[str] = []
    for part, answer in zip(parts, answers(parts, name), strict=True):
        if isinstance(part, str):
            lines.append(part)
            continue
        lines += [*part.source, *answer]
        if answer != part.expected:
            found += [f"{name}:{part.command.line}:", *part.source]
            compared = difflib.ndiff(part.expected, answer)
            # ndiff's hints (with "?") are of no use in lines as short as these.
            found += [line for line in compared if not line.startswith("?")]
            found.append("")
    return Outcome("\n".join(lines) + "\n", "\n".join(found))


def check(path: Path, *, rewrite: bool) -> str:
    """The differences of the script at `path`; `rewrite` has them in the file, and there are none.

    Without differences writing it anew must change nothing: raises ScriptError if it would.
    """
    text = path.read_text(encoding="utf-8")
    seen = outcome(text, path.name)
    if seen.differences and rewrite:
        path.write_text(seen.anew, encoding="utf-8")
        return ""
    if not seen.differences and seen.anew != text:
        raise ScriptError(f"{path.name} is not written as it is read")
    return seen.differences


# The machines


Records = dict[tuple[int, Identity], Item]


def _everything(machine: StateMachine) -> list[Item]:
    # One record a piece, so that what is read in pieces is so everywhere.
    return [item for piece in machine.capture_everything().pieces(1) for item in piece]


def _records(items: Iterable[Item]) -> Records:
    return {(item.kind, item.identity): item for item in items if item.kind != CHECK}


def _indexes(machine: StateMachine) -> dict[str, object]:
    """What is kept besides the records, and has to follow from them."""
    return {
        "now": machine.now_ms,
        "limits": machine.limits,
        "next due": machine.next_due_ms,
        "bytes": machine.size_bytes,
        "sessions": {one.session_id: (one.phase, one.size_bytes) for one in machine.sessions()},
        "themes": {
            theme.theme_id: (theme.counts, theme.size_bytes, theme.keys, list(theme.ready))
            for theme in machine.themes()
        },
    }


def _require_same(what: str, one: object, other: object) -> None:
    if one != other:
        raise DivergedError(f"{what} differ:\n  {one}\n  {other}")


@dataclass(frozen=True, slots=True)
class Sender:
    """Who proposes a batch."""

    proposer: str
    incarnation: int
    sequence: int
    term: int


class Runner:
    """Does the commands of one script."""

    def __init__(self) -> None:
        self._commands: dict[str, Callable[[Command], list[str]]] = {
            "advance": self._advance,
            "again": self._again,
            "awake": self._show_awake,
            "batch": self._batch,
            "changed": self._show_changed,
            "checkpoint": self._checkpoint,
            "clock": self._show_clock,
            "consumers": self._show_consumers,
            "envelope": self._envelope,
            "events": self._show_events,
            "export-import": self._export_import,
            "limits": self._show_limits,
            "operation": self._operation,
            "queue": self._show_queue,
            "raw": self._raw,
            "reap": self._reap,
            "receipts": self._show_receipts,
            "restart": self._restart,
            "scenario": self._scenario,
            "session-ids": self._show_session_ids,
            "show": self._show_session,
            "size": self._show_size,
            "stale": self._show_stale,
            "theme": self._show_theme,
            "windows": self._show_windows,
        }
        self._begin()

    def _begin(self) -> None:
        self._machine = StateMachine()
        self._rebuilt = StateMachine()
        self._unobserved = StateMachine()
        self._disk = Disk()
        self._capture: Capture | None = None  # a checkpoint that has begun
        self._digest_at_begin = 0
        self._log: list[tuple[bytes, Applied]] = []  # since the last checkpoint
        self._before: Records = {}
        self._after: Records = {}
        self._asked: list[Operation | None] = []
        self._newest: dict[str, tuple[int, int]] = {}  # incarnation and sequence by proposer
        # The incarnation that moves the clock to the start is superseded by the first command's.
        start = encode_batch("n1", 0, 1, 1, [encode(Tick(START_MS))])
        self._apply(start)

    def run(self, command: Command) -> list[str]:
        """Do a command; what it answers. Raises ValueError for what is no command."""
        run = self._commands.get(command.name)
        if run is not None:
            return run(command)
        arguments, sender = self._sender(command)
        asked = operation(command, None if command.name == "idempotent" else arguments)
        arguments.finish()
        return self._propose([asked], sender)

    def finish(self) -> None:
        """Compare the machine that nobody has looked at."""
        if self._capture is not None:
            raise ValueError("a checkpoint has begun and not ended")
        _require_same("digests", self._unobserved.digest(), self._machine.digest())
        _require_same("indexes", _indexes(self._unobserved), _indexes(self._machine))

    # Proposing

    def _sender(self, command: Command) -> tuple[Arguments, Sender]:
        """Who proposes, and the arguments that are left."""
        if command.name == "idempotent":
            # What is inside has arguments of its own: only this proposer says so.
            return Arguments(""), self._who(Arguments(""))
        arguments = Arguments(command.rest)
        return arguments, self._who(arguments)

    def _who(self, arguments: Arguments) -> Sender:
        proposer = arguments.get("proposer") or "n1"
        newest_incarnation, newest_sequence = self._newest.get(proposer, (1, 0))
        incarnation = int(arguments.get("incarnation") or newest_incarnation)
        if incarnation > newest_incarnation:
            newest_incarnation, newest_sequence = incarnation, 0
        sequence = int(arguments.get("sequence") or newest_sequence + 1)
        if incarnation == newest_incarnation:
            newest_sequence = max(newest_sequence, sequence)
        self._newest[proposer] = newest_incarnation, newest_sequence
        term = int(arguments.get("term") or self._machine.term)
        return Sender(proposer, incarnation, sequence, term)

    def _propose(self, asked: list[Operation], sender: Sender) -> list[str]:
        return self._send(list(asked), list(map(encode, asked)), sender)

    def _send(
        self, asked: list[Operation | None], operations: list[bytes], sender: Sender
    ) -> list[str]:
        self._asked = asked
        batch = encode_batch(
            sender.proposer, sender.incarnation, sender.sequence, sender.term, operations
        )
        return self._applied_lines(self._apply(batch))

    def _applied_lines(self, applied: Applied) -> list[str]:
        if applied.failure is not None:
            return [f"batch refused: {failure_text(applied.failure)}"]
        lines = results_lines(self._asked, applied.results) or ["no results"]
        return ["duplicate", *lines] if applied.duplicate else lines

    def _apply(self, batch: bytes) -> Applied:
        """Have all machines apply a batch, and compare them."""
        index = self._machine.applied_index + 1
        applied = self._machine.apply(index, batch)
        answer = replace(applied, awake=())
        rebuilt = self._rebuilt.apply(index, batch)
        unobserved = self._unobserved.apply(index, batch)
        for also in (rebuilt, unobserved, applied):
            _require_same("answers", replace(also, awake=()), answer)
            # One that was loaded has told nobody yet who is ready, so it may tell more.
            if not set(unobserved.awake) <= set(also.awake):
                raise DivergedError(f"awake are {also.awake}, and not all of {unobserved.awake}")
        self._log.append((batch, applied))
        self._before = self._after
        self._compare()
        return applied

    def _compare(self) -> None:
        items = _everything(self._rebuilt)
        self._after = _records(items)
        self._rebuilt = load(items)
        _require_same("digests", self._rebuilt.digest(), self._machine.digest())
        _require_same("indexes", _indexes(self._rebuilt), _indexes(self._machine))
        if self._capture is None:
            copy = load(_everything(self._machine))
            _require_same("digests", copy.digest(), self._machine.digest())
            _require_same("indexes", _indexes(copy), _indexes(self._machine))

    @property
    def _last(self) -> tuple[bytes, Applied]:
        if not self._log:
            raise ValueError("there was no batch since the last checkpoint")
        return self._log[-1]

    def _batch(self, command: Command) -> list[str]:
        arguments, sender = self._sender(command)
        arguments.finish()
        return self._propose(list(map(operation, command.children)), sender)

    def _again(self, command: Command) -> list[str]:
        _nothing_more(command)
        return self._applied_lines(self._apply(self._last[0]))

    def _operation(self, command: Command) -> list[str]:
        literal = ast.literal_eval(command.childless().rest)
        return self._send([None], [msgpack.packb(literal)], self._who(Arguments("")))

    def _envelope(self, command: Command) -> list[str]:
        literal = ast.literal_eval(command.childless().rest)
        self._asked = []
        return self._applied_lines(self._apply(msgpack.packb(literal)))

    def _raw(self, command: Command) -> list[str]:
        batch = b""
        for word in command.childless().rest.split():
            matched = _RAW.fullmatch(word)
            if matched is None:
                raise ValueError(f"{word} is not hexadecimal")
            batch += bytes.fromhex(matched[1]) * int(matched[2] or 1)
        self._asked = []
        return self._applied_lines(self._apply(batch))

    def _advance(self, command: Command) -> list[str]:
        arguments, sender = self._sender(command.childless())
        by_ms = to_duration_ms(arguments.next("duration"))
        arguments.finish()
        lines = self._propose([Tick(self._machine.now_ms + by_ms)], sender)
        woken = [f"s{event.session_id}" for event in self._last[1].events()]
        return [*lines, f"ready {' '.join(woken)}"] if woken else lines

    def _reap(self, command: Command) -> list[str]:
        arguments, sender = self._sender(command.childless())
        count = int(arguments.get("count") or 100)
        arguments.finish()
        found = self._machine.stale(count)
        if not found:
            return ["nothing is stale"]
        stores = [Store(session_id, epoch, cause=Cause.STALE) for session_id, epoch in found]
        return self._propose(list(stores), sender)

    # Going on with another machine

    def _scenario(self, command: Command) -> list[str]:
        _nothing_more(command)
        self.finish()
        self._begin()
        return ["an empty state"]

    def _export_import(self, command: Command) -> list[str]:
        _nothing_more(command)
        digest = self._machine.digest()
        items = _everything(self._machine)
        self._machine = load(items)
        _require_same("digests", self._machine.digest(), digest)
        # All is on disk before a machine goes on from there.
        self._disk = Disk()
        self._disk.write(items)
        self._log = []
        return [f"same digest, {len(items)} items"]

    def _checkpoint(self, command: Command) -> list[str]:
        arguments = Arguments(command.childless().rest)
        part = arguments.rest()
        arguments.finish()
        if part not in ([], ["begin"], ["end"]):
            raise ValueError("a checkpoint has a begin and an end")
        if part != ["end"]:
            if self._capture is not None:
                raise ValueError("a checkpoint has begun already")
            self._log = []
            self._digest_at_begin = self._machine.digest()
            self._capture = self._machine.capture_changes()
        if part == ["begin"]:
            return ["begun"]
        if self._capture is None:
            raise ValueError("no checkpoint has begun")
        items = [item for piece in self._capture.pieces(1) for item in piece]
        self._capture.commit()
        self._capture = None
        self._disk.write(items)
        _require_same("digests", self._load_disk().digest(), self._digest_at_begin)
        return [_checkpoint_line(item) for item in items[1:-1]] or ["nothing"]

    def _restart(self, command: Command) -> list[str]:
        _nothing_more(command)
        if self._capture is not None:
            raise ValueError("a checkpoint has begun and not ended")
        machine = self._load_disk()
        at = machine.applied_index
        for index, (batch, applied) in enumerate(self._log, at + 1):
            again = machine.apply(index, batch)
            _require_same("answers", replace(again, awake=()), replace(applied, awake=()))
        _require_same("digests", machine.digest(), self._machine.digest())
        self._machine = machine
        return [f"loaded index {at}, replayed {len(self._log)}"]

    def _load_disk(self) -> StateMachine:
        return load(self._disk) if (META, 0) in self._disk else StateMachine()

    # Looking

    def _show_session(self, command: Command) -> list[str]:
        session = self._machine.session(to_target(_only_word(command, "session")))
        return ["no such session"] if session is None else session_lines(session)

    def _show_session_ids(self, command: Command) -> list[str]:
        _nothing_more(command)
        ids = sorted(session.session_id for session in self._machine.sessions())
        return [" ".join(f"s{one}" for one in ids) or "no sessions"]

    def _show_theme(self, command: Command) -> list[str]:
        theme = self._machine.theme(to_int(_only_word(command, "theme")))
        if theme is None:
            return ["no such theme"]
        counts = [f"{phase.name.lower()}={theme.counts[phase]}" for phase in Phase if phase]
        words = [f"theme {theme.theme_id}", *counts, *(["paused"] if theme.paused else [])]
        policy = setting_words(POLICY_RANGES, theme.policy, Policy())
        return [" ".join(words), *([f"  policy {' '.join(policy)}"] if policy else [])]

    def _show_queue(self, command: Command) -> list[str]:
        theme = to_int(_only_word(command, "theme"))
        return [" ".join(f"s{one}" for one in self._machine.ready_ids(theme)) or "empty"]

    def _show_stale(self, command: Command) -> list[str]:
        arguments = Arguments(command.childless().rest)
        count = int(arguments.get("count") or 100)
        arguments.finish()
        found = self._machine.stale(count)
        return [f"s{one} epoch={epoch}" for one, epoch in found] or ["nothing is stale"]

    def _show_events(self, command: Command) -> list[str]:
        _nothing_more(command)
        return [event_line(event) for event in self._last[1].events()] or ["none"]

    def _show_awake(self, command: Command) -> list[str]:
        _nothing_more(command)
        return [" ".join(map(str, self._last[1].awake)) or "none"]

    def _show_changed(self, command: Command) -> list[str]:
        """Records that the last batch changed: `+` came, `-` went, `~` changed."""
        _nothing_more(command)
        lines: list[str] = []
        for place in sorted(self._before.keys() | self._after.keys(), key=_by_kind):
            before, after = self._before.get(place), self._after.get(place)
            if before is None and after is not None:
                lines.append(f"+ {record_name(after)}")
            elif after is None and before is not None:
                lines.append(f"- {record_name(before)}")
            elif before is not None and after is not None and before != after:
                lines += _change_lines(before, after)
        return lines or ["nothing"]

    def _show_clock(self, command: Command) -> list[str]:
        _nothing_more(command)
        machine = self._machine
        due_ms = machine.next_due_ms
        due = "never" if due_ms is None else since_start(due_ms)
        now = since_start(machine.now_ms)
        return [f"now={now} next_due={due} term={machine.term} index={machine.applied_index}"]

    def _show_windows(self, command: Command) -> list[str]:
        _nothing_more(command)
        lines: list[str] = []
        for proposer, incarnation, floor in self._fields_of(WINDOW):
            known = sorted(one[1] for one in self._fields_of(ANSWERS) if one[0] == proposer)
            numbers = " ".join(map(str, known)) or "nothing"
            lines.append(f"{proposer} incarnation={incarnation} floor={floor} has {numbers}")
        return lines or ["none"]

    def _show_consumers(self, command: Command) -> list[str]:
        _nothing_more(command)
        return [
            f"{bytes_text(consumer_id)} seen={since_start(seen_ms)}"
            for consumer_id, seen_ms in self._fields_of(CONSUMER)
        ] or ["none"]

    def _show_receipts(self, command: Command) -> list[str]:
        _nothing_more(command)
        return [
            f"{bytes_text(key)} expires={since_start(expires_ms)}"
            + (f" until s{unused_id} is used" if unused_id else "")
            for key, _, expires_ms, _, unused_id in self._fields_of(RECEIPT)
        ] or ["none"]

    def _fields_of(self, kind: int) -> list[tuple[Any, ...]]:
        items = sorted(self._after.items(), key=lambda pair: _by_kind(pair[0]))
        return [item.fields or () for _, item in items if item.kind == kind]

    def _show_limits(self, command: Command) -> list[str]:
        _nothing_more(command)
        words = setting_words(LIMIT_RANGES, self._machine.limits, LIMITS)
        return [" ".join(words) or "all are the default"]

    def _show_size(self, command: Command) -> list[str]:
        _nothing_more(command)
        themes = sorted(self._machine.themes(), key=lambda theme: theme.theme_id)
        return [
            f"{self._machine.session_count} sessions, {self._machine.size_bytes} bytes",
            *(f"  theme {theme.theme_id}: {theme.size_bytes} bytes" for theme in themes),
        ]


def _nothing_more(command: Command) -> None:
    Arguments(command.childless().rest).finish()


def _only_word(command: Command, what: str) -> str:
    arguments = Arguments(command.childless().rest)
    word = arguments.next(what)
    arguments.finish()
    return word


def _by_kind(place: tuple[int, Identity]) -> tuple[int, int, str]:
    kind, identity = place
    return (kind, identity, "") if isinstance(identity, int) else (kind, 0, str(identity))


def _change_lines(before: Item, after: Item) -> list[str]:
    if after.kind != META:
        return [f"~ {record_name(after)}"]
    pairs = zip(FIELDS[META], before.fields or (), after.fields or (), strict=True)
    # Where in the log the state is has no part in what it is.
    names = [name for name, old, new in pairs if old != new and name != "applied_index"]
    return [f"~ state {' '.join(names)}"] if names else []


def _checkpoint_line(item: Item) -> str:
    if item.fields is None:
        return f"delete {record_name(item)}"
    line = f"write {record_name(item)}"
    if item.kind != SESSION:
        return line
    chunk_count = dict(zip(FIELDS[SESSION], item.fields, strict=True))["chunk_count"]
    if not item.chunks:
        return f"{line}, none of its {chunk_count} chunks"
    return f"{line}, chunks from {item.first_chunk} of {chunk_count}"
