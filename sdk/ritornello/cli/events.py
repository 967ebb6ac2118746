"""What happens, as it happens."""

import click

from ritornello.cli import output
from ritornello.cli.calling import with_client
from ritornello.sync import Client


@click.command()
@click.option("--theme", "themes", type=int, multiple=True, help="Only of these themes.")
@click.option("--kind", "kinds", multiple=True, help="Only of these kinds: created, removed, ...")
@click.option("--after", help="Go on after this place; 0 is as far back as the node remembers.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many.")
@with_client
def tail(
    client: Client,
    *,
    themes: tuple[int, ...],
    kinds: tuple[str, ...],
    after: str | None,
    count: int | None,
    is_json: bool,
) -> None:
    """Say what happens to sessions, until Ctrl-C.

    The first column is the place of each event: --after takes one, to go on where this ended. An
    event `resync` says that some are missing.

    \b
    Examples:
      ritornello tail --theme 7
      ritornello --json tail --kind parked --after 0
    """
    for number, event in enumerate(client.events(themes or None, kinds=kinds, after=after), 1):
        if is_json:
            output.say_json(event)
        else:
            output.row((event.place, event.kind, event.theme, event.id, event.key, event.revision))
        if number == count:
            return
