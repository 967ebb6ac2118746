"""A view of the cluster that keeps up with it."""

import time

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ritornello import RitornelloError
from ritornello.cli import output
from ritornello.cli.calling import FiniteRange, with_client
from ritornello.cli.cluster import THEME_COLUMNS, theme_row
from ritornello.models import ClusterView, ThemeView
from ritornello.sync import Client


@click.command()
@click.option(
    "--every",
    "every_s",
    type=FiniteRange(min=0.05),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks.")
@with_client
def top(client: Client, *, every_s: float, count: int | None, is_json: bool) -> None:
    """Show the cluster and its themes, again and again, until Ctrl-C.

    \b
    Examples:
      ritornello top
      ritornello --json top --count 1
    """
    looks = 0
    rate = _Rate()
    if is_json or not output.is_terminal():
        while count is None or looks < count:
            cluster, themes = client.cluster(), client.themes()
            output.say_json({"cluster": cluster, "themes": themes})
            looks += 1
            if looks != count:
                time.sleep(every_s)
        return
    with Live(console=output.console, screen=count is None, auto_refresh=False) as live:
        while count is None or looks < count:
            try:
                live.update(_drawn(client.cluster(), client.themes(), rate), refresh=True)
            except RitornelloError as error:
                if not looks:  # it is not a passing trouble
                    raise
                live.update(Text(str(error), style="red"), refresh=True)
            looks += 1
            if looks != count:
                time.sleep(every_s)


class _Rate:
    """How fast the log grows."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def of(self, index: int) -> str:
        now_s = time.monotonic()
        last, self._last = self._last, (now_s, index)
        if last is None or now_s <= last[0]:
            return "-"
        return f"{(index - last[1]) / (now_s - last[0]):.0f}"


def _drawn(cluster: ClusterView, themes: list[ThemeView], rate: _Rate) -> Group:
    head = Text(
        f"{cluster.leader or 'nobody'} leads in term {cluster.term}   "
        f"{cluster.sessions} sessions   {rate.of(cluster.committed_index)} batches/s   "
        f"{cluster.waiting_operations} operations and {cluster.waiting_consumers} consumers wait "
        f"at {cluster.node}"
    )
    members = Text(
        "   ".join(
            f"{one.node}{'*' if one.is_leader else ''} {'up' if one.is_connected else 'DOWN'}"
            for one in cluster.members
        )
    )
    table = Table(*THEME_COLUMNS, box=None, header_style="bold", pad_edge=False)
    for one in sorted(themes, key=lambda one: (-one.ready - one.active, one.theme)):
        table.add_row(*("" if cell is None else str(cell) for cell in theme_row(one)))
    return Group(head, members, Text(), table)
