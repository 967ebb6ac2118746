"""A shell command for each session: its exit status decides the verdict."""

import os
import shutil
import subprocess

import click

from ritornello import Park, Remove, Store, Verdict, WorkerOptions
from ritornello.cli.calling import with_client
from ritornello.sync import Client, Session, Worker

_STORE_STATUS = os.EX_TEMPFAIL
_PARK_STATUS = 100  # sysexits.h ends at 78, and shells begin at 126


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("theme", type=int)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--concurrency", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--count", type=click.IntRange(min=1), help="End after so many sessions.")
@click.option(
    "--handler-timeout",
    "timeout_s",
    type=float,
    help="Seconds for one session, before it is killed.",
)
@with_client
def work(
    client: Client,
    *,
    theme: int,
    command: tuple[str, ...],
    concurrency: int,
    count: int | None,
    timeout_s: float | None,
    is_json: bool,  # noqa: ARG001 - it says nothing
) -> None:
    """Run COMMAND for each session of THEME that is due, until Ctrl-C.

    \b
    The session's data is its standard input. What it says on standard output is appended to the
    session, unless it is nothing. Its exit status decides:
      0      remove the session: it is done
      75     store it, to come back as its theme's policy says
      100    park it
      other  store it as failed
    Variables tell it more: RITORNELLO_SESSION, RITORNELLO_THEME, RITORNELLO_KEY,
    RITORNELLO_EPOCH, RITORNELLO_ATTEMPTS.

    Example:  ritornello work 7 -- ./deliver.sh --verbose
    """
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {command[0]!r}")
    options = WorkerOptions(concurrency=concurrency, handler_timeout_s=timeout_s, failures_max=None)
    worker = Worker(client, options=options)
    done = 0

    @worker.handler(theme)
    def handle(session: Session) -> Verdict:
        return run(session, command, timeout_s)

    @worker.on_handled
    def note(_: object) -> None:
        nonlocal done
        done += 1
        if done == count:
            worker.stop()

    worker.run(handle_signals=True)


def run(session: Session, command: tuple[str, ...], timeout_s: float | None) -> Verdict:
    """Run a command for a session; its verdict."""
    environment = os.environ | {
        "RITORNELLO_SESSION": session.id,
        "RITORNELLO_THEME": str(session.theme),
        "RITORNELLO_KEY": session.key or "",
        "RITORNELLO_EPOCH": str(session.epoch),
        "RITORNELLO_ATTEMPTS": str(session.attempts),
    }
    try:
        ended = subprocess.run(  # noqa: S603 - that is what it is for
            command,
            input=session.data,
            stdout=subprocess.PIPE,
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Store(cause="failed", reason=f"{command[0]} took longer than {timeout_s:g} s")
    if ended.stdout:
        session.append(ended.stdout)
    match ended.returncode:
        case 0:
            return Remove()
        case status if status == _STORE_STATUS:
            return Store(reason=f"{command[0]} asks to be called again")
        case status if status == _PARK_STATUS:
            return Park(f"{command[0]} asks for it")
        case status:
            return Store(cause="failed", reason=f"{command[0]} ended with {status}")
