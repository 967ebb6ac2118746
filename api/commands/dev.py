"""`ritornello-server dev`: a local cluster in one terminal."""

import asyncio
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from api.commands.chaos import chaos as let_happen
from api.commands.chaos import minority
from api.dev import (
    HTTP_PORT,
    HTTP_PORT_MAX,
    DevError,
    LocalCluster,
    NotReadyError,
    PortInUseError,
    check_count,
)
from api.statuses import ExitStatus

Say = Callable[[str], None]

_SEED_END = 2**32

# How a line of a node's log begins, coloured or not: with its time. Such a line names its node.
_LOG_LINE = re.compile(r"(?:\033\[[0-9;]*m)*\d\d:\d\d:\d\d\.\d{3}")

_BOLD, _RESET = "\033[1m", "\033[0m"


@click.command("dev", context_settings={"ignore_unknown_options": False})
@click.option("--nodes", type=int, help="How many: 1, or 3 and more.  [default: 3, or as before]")
@click.option(
    "--directory",
    default="ritornello-dev",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where all nodes keep their data; a cluster that is there goes on.",
)
@click.option(
    "--http-port",
    default=HTTP_PORT,
    show_default=True,
    type=click.IntRange(0, HTTP_PORT_MAX),
    help="The port of the first node's front end; the others have those after it. 0: any.",
)
@click.option("--chaos", is_flag=True, help="Kill or pause nodes now and then, a minority at most.")
@click.option("--seed", type=int, help="With --chaos: what happens follows from it.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- FLAGS OF SERVE...]")
def dev(
    nodes: int | None,
    directory: Path,
    http_port: int,
    chaos: bool,  # noqa: FBT001 - a flag
    seed: int | None,
    arguments: tuple[str, ...],
) -> None:
    """Run a cluster on this machine, all nodes in this terminal. For trying, not for keeping.

    Ctrl-C stops it in order, a second one in a hurry. What comes after -- are flags of `serve`, for
    every node; variables of settings are left out.
    """
    if seed is not None and not chaos:
        raise click.UsageError("--seed belongs to --chaos")
    if chaos and seed is None:
        seed = secrets.randbelow(_SEED_END)
    printer = Printer()
    cluster = None
    try:
        if nodes is not None:
            check_count(nodes)
        cluster = LocalCluster(
            directory,
            nodes=nodes,
            http_port=http_port,
            arguments=arguments,
            environment=printer.environment,
            on_line=printer.line,
        )
        status = asyncio.run(_run(cluster, seed, printer))
    except PortInUseError as error:
        click.echo(f"error: {error}; write another --http-port", err=True)
        sys.exit(ExitStatus.LISTEN)
    except NotReadyError as error:
        click.echo(f"error: the cluster does not get well again: {error}", err=True)
        sys.exit(ExitStatus.UNEXPECTED)
    except (DevError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(ExitStatus.SETTINGS)
    sys.exit(status)


async def _run(cluster: LocalCluster, seed: int | None, printer: "Printer") -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def asked() -> None:
        if not stopping.is_set():
            stopping.set()
        else:
            printer.say("in a hurry")
            cluster.hurry()

    cluster.prepare()
    if seed is not None and not minority(len(cluster.nodes)):
        raise DevError("--chaos takes a cluster that can do without a node; write --nodes 3")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, asked)
    for line in head(cluster, seed):
        printer.say(line)
    try:
        await cluster.start()
        tasks = {
            asyncio.ensure_future(stopping.wait()),
            asyncio.ensure_future(printer.gone.wait()),
            asyncio.ensure_future(cluster.hopeless()),
            asyncio.ensure_future(_attend(cluster, seed, printer.say)),
        }
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.wait(rest)
        if not stopping.is_set():
            stopping.set()  # so that a Ctrl-C from here on is a second one
    finally:
        printer.say("stopping all nodes; Ctrl-C again hurries them")
        await cluster.stop()
    printer.say("stopped")
    errors = [error for task in done if (error := task.exception()) is not None]
    for one in cluster.nodes.values():
        if one.hopeless is not None:  # this is why, whatever else came of it
            return one.hopeless
    if errors:
        raise errors[0]
    return ExitStatus.STOPPED


async def _attend(cluster: LocalCluster, seed: int | None, say: Say) -> None:
    """Say when it is ready, and see to the chaos. Ends only with an error."""
    begin_s = time.monotonic()
    while True:
        try:
            await cluster.wait_until_ready()
            break
        except DevError as error:
            say(f"{error}; waiting on")
    say(f"ready after {time.monotonic() - begin_s:.1f} s")
    if seed is not None:
        await let_happen(cluster, seed, say)
    await asyncio.Event().wait()


def head(cluster: LocalCluster, seed: int | None) -> list[str]:
    """The first lines: what this is, and how to reach it."""
    count = len(cluster.nodes)
    lines = [
        f"a cluster of {count} node{'s' if count > 1 else ''} in {cluster.directory}",
        *(f"  {node.name}  {node.url}" for node in cluster.nodes.values()),
        "begin a session, and see it:",
        f"  curl -d 'ship it' {cluster.urls[0]}/v1/themes/7/sessions",
        f"  curl {cluster.urls[-1]}/v1/themes",
    ]
    if seed is not None:
        lines.append(f"chaos, seed {seed}: nodes are killed and paused, {minority(count)} at most")
    lines.append("Ctrl-C stops it; started again, it goes on where it was")
    return lines


class Printer:
    """Writes lines of all nodes to one terminal, each as a whole."""

    def __init__(self) -> None:
        self._colours = _wants_colours()
        self._dev = f"{_BOLD}dev{_RESET}   " if self._colours else "dev   "
        self.gone = asyncio.Event()  # whoever read it

    @property
    def environment(self) -> dict[str, str]:
        """What nodes are started with, so that they do as their terminal would have them do."""
        others = {
            name: one for name, one in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}
        }
        return {**others, ("FORCE_COLOR" if self._colours else "NO_COLOR"): "1"}

    def line(self, node: str, text: str) -> None:
        """Write a line of a node's, or what the cluster itself has to say."""
        if node == "dev":
            self.say(text)
        elif _LOG_LINE.match(text):
            self._write(text)
        else:  # of a traceback, perhaps: it does not say whose it is
            self._write(f"{node} | {text}")

    def say(self, text: str) -> None:
        """Write a line of the command's own."""
        self._write(self._dev + text)

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            self.gone.set()


def _wants_colours() -> bool:
    if os.environ.get("NO_COLOR"):
        return False
    return sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))
