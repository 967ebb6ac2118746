"""`ritornello-server new-token`: a token, and what goes into the file of tokens for it."""

from datetime import datetime

import click

from api.security.errors import TokensError
from api.security.principals import Scope
from api.security.tokens import hash_token, new_token
from api.security.tokens_file import parse_tokens
from api.settings.kinds import to_toml

_SCOPES = [scope.name.lower() for scope in Scope]


@click.command("new-token")
@click.option("--name", required=True, help="Who uses it; logs say this name.")
@click.option(
    "--scope",
    type=click.Choice(_SCOPES),
    default="operate",
    show_default=True,
    help="What it may do; each includes those before it.",
)
@click.option(
    "--theme", "themes", multiple=True, help="A theme or a range, such as 1-99. Without: all."
)
@click.option(
    "--expires",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"]),
    help="In UTC, such as 2027-01-01T00:00:00Z. Without: never.",
)
def new_token_command(
    name: str, scope: str, themes: tuple[str, ...], expires: datetime | None
) -> None:
    """Make a token.

    Its entry for http.tokens_file goes to standard output, to be appended to the file; the token
    itself goes to standard error, this once, and stands nowhere.
    """
    token = new_token()
    lines = [
        "[[tokens]]",
        f"name = {to_toml(name)}",
        f'hash = "{hash_token(token)}"',
        f'scopes = ["{scope}"]',
    ]
    if themes:
        lines.append(f"themes = {to_toml(themes)}")
    if expires is not None:
        lines.append(f"expires = {expires:%Y-%m-%dT%H:%M:%SZ}")
    entry = "\n".join(lines) + "\n"
    try:
        parse_tokens("the entry", entry.encode())
    except TokensError as error:
        raise click.UsageError("; ".join(error.problems)) from error
    click.echo(entry)
    click.echo(f"The token, which is not shown again: {token}", err=True)
