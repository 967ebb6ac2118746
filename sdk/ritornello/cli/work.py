"""A shell command for each session: its exit status decides the verdict."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from ritornello import Handled, Park, Remove, Session, Store, Verdict, Worker, WorkerOptions
from ritornello.cli import INTERRUPTED, output
from ritornello.cli.calling import FiniteRange, Given

_STORE_STATUS = os.EX_TEMPFAIL
_PARK_STATUS = 100  # sysexits.h ends at 78, and shells begin at 126
_SAID_BYTES = 1 << 20  # as much as a chunk may have
_KILL_AFTER_S = 3.0  # a command that was asked to end
_LAST_WORDS_S = 1.0  # for what it has begun, and is still there when it has ended
_LOOK_S = 0.1  # whether all of a group has ended: nobody tells
_STREAM_BYTES = 1 << 16


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
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="End after so many sessions; what runs then finishes too.",
)
@click.option(
    "--handler-timeout",
    "timeout_s",
    type=FiniteRange(min=0, min_open=True),
    help="Seconds for one session, before the command is ended and the session comes back.",
)
@click.option(
    "--grace",
    "grace_s",
    type=FiniteRange(min=0),
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
    SIGTERM, and SIGKILL after 3 s. Ctrl-C, or SIGTERM, or the terminal's end lets commands finish;
    a second one ends them, and their sessions come back at once. For each session it says one line:
    what became of it.

    It ends with status 5 if no node answers at first; after that it goes on at any node.

    \b
    Examples:
      ritornello work 7 -- ./deliver.sh --verbose
      ritornello work 7 --concurrency 8 --handler-timeout 60 -- sh -c 'curl -fd @- http://there'
    """
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {command[0]!r}")
    options = WorkerOptions(
        concurrency=min(concurrency, count or concurrency),
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
    # What fails is said below, in a line.
    logging.getLogger("ritornello.worker").setLevel(logging.CRITICAL)
    async with given.async_client() as client:
        await client.theme(theme)  # a worker goes on trying, whoever refuses it
        worker = Worker(client, options=options)
        done = 0
        unsaid: OSError | None = None

        @worker.handler(theme)
        async def handle(session: Session) -> Verdict:
            return await run(session, command)

        @worker.on_handled
        def note(handled: Handled) -> None:
            nonlocal done, unsaid
            done += 1
            try:
                _say(handled, is_json=given.is_json)
            except OSError as error:  # nobody reads any more, or the disk is full
                unsaid = error
            if done == count or unsaid is not None:
                worker.stop()

        running = asyncio.ensure_future(worker.run())
        is_asked = False

        def ask() -> None:
            nonlocal is_asked
            if is_asked:
                running.cancel()
                return
            is_asked = True
            worker.stop()
            with contextlib.suppress(OSError):  # the terminal may be gone
                sys.stderr.write("finishing; once more to end what runs\n")
                sys.stderr.flush()

        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if one is not signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(one, ask)
        try:
            await running
        except asyncio.CancelledError:
            return INTERRUPTED
    if unsaid is not None:
        raise unsaid
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
    beginning = asyncio.ensure_future(_begin(command, environment))
    try:
        begun = await asyncio.shield(beginning)
    except asyncio.CancelledError:
        # Cancelled itself, it might wait for ever for pipes that are not there yet (CPython 3.11).
        await asyncio.shield(_abandon(beginning))
        raise
    except (OSError, ValueError) as error:  # ValueError: a key with a zero byte in it
        why = error.strerror if isinstance(error, OSError) else error
        return Store(cause="failed", reason=f"{command[0]} cannot be run: {why}")
    try:
        said = await _talk(begun, session.data)
    except BaseException:  # cancelled: the session is lost, or it is time to end
        await _end(begun.process)
        raise
    finally:
        begun.transport.close()
    process = begun.process
    if len(said) > _SAID_BYTES:
        return Store(cause="failed", reason=f"{command[0]} said more than {_SAID_BYTES} bytes")
    if said:
        await session.append(said)
    return _verdict(command[0], process.returncode or 0)


async def _abandon(beginning: "asyncio.Future[_Run]") -> None:
    """End a command that has not quite begun."""
    await asyncio.wait((beginning,))
    if beginning.exception() is None:
        await _end(beginning.result().process)
        beginning.result().transport.close()


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


class _Ending(SubprocessStreamProtocol):
    """Knows when a command itself has ended, though what it has begun may hold its streams."""

    def __init__(self) -> None:
        super().__init__(limit=_STREAM_BYTES, loop=asyncio.get_running_loop())
        self.ended = asyncio.Event()

    def process_exited(self) -> None:
        """As asyncio calls it."""
        super().process_exited()
        self.ended.set()


@dataclass(frozen=True, slots=True)
class _Run:
    """A command that was begun."""

    process: Process
    transport: asyncio.SubprocessTransport
    ended: asyncio.Event


async def _begin(command: tuple[str, ...], environment: Mapping[str, str]) -> _Run:
    """Begin a command. Raises OSError, ValueError."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(
        _Ending,
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=None,
        env=environment,
        start_new_session=True,  # Ctrl-C is for this program, and all of it can be ended
    )
    return _Run(Process(transport, protocol, loop), transport, protocol.ended)


async def _talk(run: _Run, data: bytes) -> bytes:
    """Tell a command its data, and hear what it says, a little more than it may; to its end."""
    stdin, stdout = run.process.stdin, run.process.stdout
    assert stdin is not None  # noqa: S101 - both are pipes
    assert stdout is not None  # noqa: S101

    async def tell() -> None:
        with contextlib.suppress(ConnectionError):  # it need not listen
            stdin.write(data)
            await stdin.drain()
        stdin.close()

    heard = bytearray()

    async def hear() -> None:
        while piece := await stdout.read(_STREAM_BYTES):
            if len(heard) <= _SAID_BYTES:
                heard.extend(piece)

    telling, hearing = asyncio.ensure_future(tell()), asyncio.ensure_future(hear())
    try:
        await run.ended.wait()
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
            while _is_there(process.pid):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        _signal(process, signal.SIGKILL)
    except BaseException:  # it is to be quick
        _signal(process, signal.SIGKILL)
        raise


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _is_there(group: int) -> bool:
    """Whether any process of a group runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's by now
        return True
    # Those that have ended and wait for their parent count too, and in a container that parent may
    # never come. Where there is no /proc nothing better is known.
    stats = list(Path("/proc").glob("[0-9]*/stat"))
    for one in stats:
        try:
            state, _, its_group = one.read_bytes().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):  # it has just ended
            continue
        if int(its_group) == group and state not in {b"Z", b"X"}:
            return True
    return not stats
