"""Sessions: list, look, change."""

import os
import sys
from itertools import islice
from pathlib import Path

import click

from ritornello.cli import output
from ritornello.cli.calling import say_one, utf8, with_client
from ritornello.fields import OnConflict, Target
from ritornello.models import SessionView
from ritornello.sync import Client

_SHOWN_BYTES = 200  # of a chunk, in a table
_COLUMNS = ("id", "theme", "key", "phase", "attempts", "due", "size", "last cause")


@click.group()
def sessions() -> None:
    """Look at sessions, and change them. A session is an ID, or THEME/KEY.

    \b
    Examples:
      ritornello sessions list 7 --phase parked
      ritornello sessions show 7/order-1
    """


def target_of(text: str) -> Target:
    """A session as a person names it."""
    if not text:
        raise click.UsageError("name a session by its ID, or by THEME/KEY")
    theme, slash, key = text.partition("/")
    if not slash:
        return text
    if not (theme.isascii() and theme.isdigit()):
        raise click.UsageError(f"{text!r} is no THEME/KEY: a theme is a number, {theme!r} is none")
    return int(theme), key


def _row(one: SessionView) -> tuple[object, ...]:
    last = one.history[-1] if one.history else None
    why = None if last is None else f"{last.cause} {last.reason}".strip()
    return (
        one.id,
        one.theme,
        one.key,
        one.phase,
        one.attempts,
        output.moment(one.due_ms),
        output.size(one.size_bytes),
        why,
    )


@sessions.command("list")
@click.argument("theme", type=int)
@click.option("--phase", type=click.Choice(["stored", "ready", "active", "parked"]))
@click.option(
    "--key-prefix", callback=utf8, default="", help="Only those whose keys begin with this."
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@with_client
def list_sessions(
    client: Client,
    *,
    theme: int,
    phase: str | None,
    key_prefix: str,
    limit: int | None,
    is_json: bool,
) -> None:
    """List the sessions of a theme, without their data.

    \b
    Example:
      ritornello sessions list 7 --key-prefix order- --limit 20
    """
    found = islice(client.list(theme, phase=phase, key_prefix=key_prefix), limit)  # type: ignore[arg-type] # one of the choices
    if is_json:
        for one in found:
            output.say_json(one)
    else:
        output.table(_COLUMNS, map(_row, found))


@sessions.command()
@click.argument("session", callback=utf8)
@click.option("--data", "only_data", is_flag=True, help="Only its data, as it is.")
@with_client
def show(client: Client, *, session: str, only_data: bool, is_json: bool) -> None:
    """Look at a session, with its data and its history.

    \b
    Examples:
      ritornello sessions show 7/order-1
      ritornello sessions show 1a --data > order
    """
    found = client.get(target_of(session))
    if only_data:
        sys.stdout.buffer.write(found.data)
        sys.stdout.flush()
        return
    if is_json:
        output.say_json(found)
        return
    output.table(_COLUMNS, [_row(found)])
    if found.history:
        rows = [
            (output.moment(one.last_ms), one.cause, f"{one.times}x", one.reason.replace("\n", " "))
            for one in found.history
        ]
        output.table(("last", "cause", "times", "reason"), rows)
    if found.chunks:
        pieces = [
            (number, output.size(len(chunk)), output.text_of(chunk[:_SHOWN_BYTES]))
            for number, chunk in enumerate(found.chunks)
        ]
        output.table(("chunk", "size", "data"), pieces)


@sessions.command()
@click.argument("session", callback=utf8)
@click.option("--after", default=0.0, show_default=True, help="Seconds from now.")
@click.option("--reason", callback=utf8, default="", help="What its history is to say.")
@with_client
def store(client: Client, *, session: str, after: float, reason: str, is_json: bool) -> None:
    """Change when a session that nobody works on is due.

    \b
    Example:
      ritornello sessions store 7/order-1 --after 3600
    """
    say_one(client.store(target_of(session), after, reason=reason), is_json=is_json)


@sessions.command()
@click.argument("session", callback=utf8)
@click.option("--reason", callback=utf8, default="", help="What its history is to say.")
@with_client
def park(client: Client, *, session: str, reason: str, is_json: bool) -> None:
    """Set a session aside that nobody works on, until it is unparked.

    \b
    Example:
      ritornello sessions park 7/order-1 --reason "the address is wrong"
    """
    with client.take(target_of(session)) as held:
        held.park(reason)
    _said(held.id, "parked", is_json=is_json)


@sessions.command()
@click.argument("session", callback=utf8)
@with_client
def unpark(client: Client, *, session: str, is_json: bool) -> None:
    """Make a parked session due now, with no attempts counted.

    \b
    Example:
      ritornello sessions unpark 7/order-1
    """
    say_one(client.unpark(target_of(session)), is_json=is_json)


@sessions.command()
@click.argument("session", callback=utf8)
@with_client
def remove(client: Client, *, session: str, is_json: bool) -> None:
    """Remove a session that nobody works on, with its data.

    \b
    Example:
      ritornello sessions remove 7/order-1
    """
    target = target_of(session)
    client.remove(target)
    _said(session, "removed", is_json=is_json)


def _said(session: str, what: str, *, is_json: bool) -> None:
    if is_json:
        output.say_json({"session": session, "done": what})
    else:
        output.say(f"{session}\t{what}")


@click.command()
@click.argument("theme", type=int)
@click.option("--key", callback=utf8, help="No other session of the theme may have it.")
@click.option("--data", help="Its first chunk, as text.")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Its first chunk, from a file; - is standard input.",
)
@click.option("--after", default=0.0, show_default=True, help="Seconds until it is due.")
@click.option(
    "--priority", type=click.IntRange(0, 65_535), help="Lower ones first.  [default: 128]"
)
@click.option(
    "--on-conflict",
    type=click.Choice(["reject", "return_existing", "bring_forward"]),
    default="reject",
    show_default=True,
    help="What to do if the key is held.",
)
@with_client
def new(
    client: Client,
    *,
    theme: int,
    key: str | None,
    data: str | None,
    file: str | None,
    after: float,
    priority: int | None,
    on_conflict: OnConflict,
    is_json: bool,
) -> None:
    """Begin a session: it is stored, and due at once or later.

    \b
    Examples:
      ritornello new 7 --key order-1 --data 'ship it'
      ritornello new 7 --after 3600 --file order.json
      tar c orders | ritornello new 7 --file -
    """
    if data is not None and file is not None:
        raise click.UsageError("give --data or --file, not both")
    chunk = os.fsencode(data or "")  # whatever bytes the shell gave
    if file is not None:
        chunk = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    created = client.new(
        theme, chunk, key=key, after=after, priority=priority, on_conflict=on_conflict
    )
    if is_json:
        output.say_json(created)
    else:
        output.say(created.id if created.created else f"{created.id}\tit was there already")
