"""The cluster and its themes."""

import re
from typing import Any, get_type_hints

import click

from ritornello.cli import output
from ritornello.cli.calling import say_one, with_client
from ritornello.models import PolicyChanges, ThemeView
from ritornello.sync import Client


@click.command()
@with_client
def status(client: Client, *, is_json: bool) -> None:
    """Say who is in the cluster, who leads, and how it is.

    \b
    Examples:
      ritornello status
      ritornello --url http://a:7601,http://b:7601 --json status
    """
    found = client.cluster()
    if is_json:
        output.say_json(found)
        return
    output.say(
        f"{found.node} answers; {found.leader or 'nobody'} leads in term {found.term}; "
        f"{found.sessions} sessions, {found.waiting_operations} operations wait"
    )
    rows = [
        (
            one.node,
            "leader" if one.is_leader else "",
            "connected" if one.is_connected else "NOT CONNECTED",
        )
        for one in found.members
    ]
    output.table(("node", "role", f"as {found.node} sees it"), rows)


@click.group(invoke_without_command=True)
@click.pass_context
def themes(ctx: click.Context) -> None:
    """List the themes, or look at one, or change it.

    \b
    Examples:
      ritornello themes
      ritornello themes show 7
      ritornello themes policy 7 max_attempts=5
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_themes)


THEME_COLUMNS = ("theme", "ready", "active", "stored", "parked", "size", "oldest due", "")


def theme_row(one: ThemeView) -> tuple[object, ...]:
    """A theme as a row of a table."""
    return (
        one.theme,
        one.ready,
        one.active,
        one.stored,
        one.parked,
        output.size(one.size_bytes),
        output.moment(one.oldest_due_ms),
        "paused" if one.paused else "",
    )


@themes.command("list")
@with_client
def list_themes(client: Client, *, is_json: bool) -> None:
    """List the themes that have sessions, or a policy of their own.

    \b
    Example:
      ritornello --json themes list
    """
    found = client.themes()
    if is_json:
        for one in found:
            output.say_json(one)
    else:
        output.table(THEME_COLUMNS, map(theme_row, found))


@themes.command()
@click.argument("theme", type=int)
@with_client
def show(client: Client, *, theme: int, is_json: bool) -> None:
    """Say how many sessions of a theme are where, and what its policy is.

    \b
    Example:
      ritornello themes show 7
    """
    found = client.theme(theme)
    if is_json:
        output.say_json(found)
        return
    output.table(THEME_COLUMNS, [theme_row(found)])
    say_one(found.policy, is_json=False)


@themes.command()
@click.argument("theme", type=int)
@click.argument("settings", nargs=-1, required=True, metavar="NAME=VALUE...")
@with_client
def policy(client: Client, *, theme: int, settings: tuple[str, ...], is_json: bool) -> None:
    """Change settings of a theme's policy, such as max_attempts=5 or backoff=exponential.

    \b
    Example:
      ritornello themes policy 7 repeat_ms=5000 backoff=exponential max_attempts=10
    """
    changes: dict[str, Any] = {}
    for one in settings:
        name, value = _setting(one)
        if name in changes:
            raise click.UsageError(f"{name} is set twice")
        changes[name] = value
    say_one(client.set_policy(theme, **changes).policy, is_json=is_json)


def _setting(text: str) -> tuple[str, int | str]:
    """A setting of a policy, as a person says it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r} is no NAME=VALUE")
    kinds = get_type_hints(PolicyChanges)
    if name not in kinds:
        raise click.UsageError(f"there is no setting {name!r}; there are {', '.join(kinds)}")
    if kinds[name] is not int:
        return name, value
    # Anything longer is beyond what can be sent, and out of every range.
    if re.fullmatch(r"-?[0-9]{1,18}", value) is None:
        raise click.UsageError(f"{name} is a whole number of at most 18 digits, not {value!r}")
    return name, int(value)


@themes.command()
@click.argument("theme", type=int)
@with_client
def pause(client: Client, *, theme: int, is_json: bool) -> None:
    """Hand out no session of a theme, until it is resumed.

    \b
    Example:
      ritornello themes pause 7
    """
    _changed(client.pause_theme(theme), is_json=is_json)


@themes.command()
@click.argument("theme", type=int)
@with_client
def resume(client: Client, *, theme: int, is_json: bool) -> None:
    """Hand out sessions of a theme again.

    \b
    Example:
      ritornello themes resume 7
    """
    _changed(client.resume_theme(theme), is_json=is_json)


def _changed(found: ThemeView, *, is_json: bool) -> None:
    if is_json:
        output.say_json(found)
    else:
        output.table(THEME_COLUMNS, [theme_row(found)])


@click.command()
@click.argument("to", default="")
@with_client
def transfer(client: Client, *, to: str, is_json: bool) -> None:
    """Hand leadership over, to a member by its name or to the best placed one.

    \b
    Examples:
      ritornello transfer
      ritornello transfer node-2
    """
    found = client.transfer(to)
    if is_json:
        output.say_json(found)
    else:
        output.say(f"{found.leader or 'nobody that is known'} leads")
    if not found.transferred:
        raise SystemExit(1)
