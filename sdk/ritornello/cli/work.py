"""A shell command for each session: its exit status decides the verdict."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process

import click
import msgspec

from ritornello import Handled, Park, Remove, Session, Store, Verdict, Worker, WorkerOptions
from ritornello.cli import output
from ritornello.cli.calling import Given

INTERRUPTED = 130

_STORE_STATUS = os.EX_TEMPFAIL
_PARK_STATUS = 100  # sysexits.h ends at 78, and shells begin at 126
_SAID_BYTES = 1 << 20  # as much as a chunk may have
_KILL_AFTER_S = 3.0  # a command that was asked to end
_LAST_WORDS_S = 1.0  # for what it has begun, and is still there when it has ended


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a session."""

    id: str
    theme: int
    epoch: int
    attempts: int
    became: str  # removed, stored, parked, failed, lost, given back
    seconds: float
    reason: str


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("theme", type=int)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Sessions at a time.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many sessions.")
@click.option(
    "--handler-timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for one session, before the command is ended and the session comes back.",
)
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="Seconds for commands to finish, when it is to end.",
)
@click.pass_obj
def work(
    given: Given,
    *,
    theme: int,
    command: tuple[str, ...],
    concurrency: int,
    count: int | None,
    timeout_s: float | None,
    grace_s: float,
) -> int:
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

    When the session is lost, or the time is over, the command and all that it has begun get
    SIGTERM, and SIGKILL after 3 s. Ctrl-C, or SIGTERM, lets commands finish; a second one ends
    them, and their sessions come back at once. For each session it says one line: what became of
    it.

    \b
    Examples:
      ritornello work 7 -- ./deliver.sh --verbose
      ritornello work 7 --concurrency 8 --handler-timeout 60 -- sh -c 'curl -fd @- http://there'
    """
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {command[0]!r}")
    options = WorkerOptions(
        concurrency=concurrency,
        grace_s=grace_s,
        handler_timeout_s=timeout_s,
        failures_max=None,
    )
    return asyncio.run(_work(given, theme, command, options, count))


async def _work(
    given: Given,
    theme: int,
    command: tuple[str, ...],
    options: WorkerOptions,
    count: int | None,
) -> int:
    """Work until it is to end; the exit status."""
    loop = asyncio.get_running_loop()
    async with given.async_client() as client:
        worker = Worker(client, options=options)
        done = 0

        @worker.handler(theme)
        async def handle(session: Session) -> Verdict:
            return await run(session, command)

        @worker.on_handled
        def note(handled: Handled) -> None:
            nonlocal done
            done += 1
            _say(handled, is_json=given.is_json)
            if done == count:
                worker.stop()

        running = asyncio.ensure_future(worker.run())
        is_asked = False

        def ask() -> None:
            nonlocal is_asked
            if is_asked:
                running.cancel()
                return
            is_asked = True
            sys.stderr.write("finishing; once more to end what runs\n")
            worker.stop()

        for one in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(one, ask)
        try:
            await running
        except asyncio.CancelledError:
            return INTERRUPTED
    return 0


def _say(handled: Handled, *, is_json: bool) -> None:
    became, reason = _became(handled)
    done = Done(
        id=handled.session_id,
        theme=handled.theme,
        epoch=handled.epoch,
        attempts=handled.attempts,
        became=became,
        seconds=round(handled.duration_s, 3),
        reason=reason,
    )
    if is_json:
        output.say_json(done)
    else:
        output.row((done.id, done.attempts, done.became, f"{done.seconds:.3f}", done.reason))


def _became(handled: Handled) -> tuple[str, str]:
    """What became of a session, and why."""
    if handled.is_lost:
        return "lost", str(handled.error or "")
    match handled.error, handled.verdict:
        case asyncio.CancelledError(), _:
            return "given back", ""
        case None, Remove():
            return "removed", ""
        case None, Park(reason):
            return "parked", reason
        case None, Store(_, reason, cause):
            return ("failed" if cause == "failed" else "stored"), reason
        case error, _:
            return "failed", str(error)


async def run(session: Session, command: tuple[str, ...]) -> Verdict:
    """Run a command for a session; its verdict."""
    environment = os.environ | {
        "RITORNELLO_SESSION": session.id,
        "RITORNELLO_THEME": str(session.theme),
        "RITORNELLO_KEY": session.key or "",
        "RITORNELLO_EPOCH": str(session.epoch),
        "RITORNELLO_ATTEMPTS": str(session.attempts),
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this program, and all of it can be ended
        )
    except OSError as error:
        return Store(cause="failed", reason=f"{command[0]} cannot be run: {error.strerror}")
    try:
        said = await _talk(process, session.data)
    except BaseException:  # cancelled: the session is lost, or it is time to end
        await _end(process)
        raise
    if len(said) > _SAID_BYTES:
        return Store(cause="failed", reason=f"{command[0]} said more than {_SAID_BYTES} bytes")
    if said:
        await session.append(said)
    return _verdict(command[0], process.returncode or 0)


def _verdict(name: str, status: int) -> Verdict:
    match status:
        case 0:
            return Remove()
        case status if status == _STORE_STATUS:
            return Store(reason=f"{name} asks to be called again")
        case status if status == _PARK_STATUS:
            return Park(f"{name} asks for it")
        case status if status < 0:
            return Store(cause="failed", reason=f"{name} was ended by signal {-status}")
        case status:
            return Store(cause="failed", reason=f"{name} ended with {status}")


async def _talk(process: Process, data: bytes) -> bytes:
    """Tell a command its data, and hear what it says, a little more than it may; to its end."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None  # noqa: S101 - both are pipes
    assert stdout is not None  # noqa: S101

    async def tell() -> None:
        with contextlib.suppress(ConnectionError):  # it need not listen
            stdin.write(data)
            await stdin.drain()
        stdin.close()

    heard = bytearray()

    async def hear() -> None:
        while piece := await stdout.read(1 << 16):
            if len(heard) <= _SAID_BYTES:
                heard.extend(piece)

    telling, hearing = asyncio.ensure_future(tell()), asyncio.ensure_future(hear())
    try:
        await process.wait()
        await asyncio.wait((hearing,), timeout=_LAST_WORDS_S)
    finally:
        telling.cancel()
        hearing.cancel()
    return bytes(heard)


async def _end(process: Process) -> None:
    """End a command, and all that it has begun."""
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(_KILL_AFTER_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        _signal(process, signal.SIGKILL)


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
