"""How much a cluster does, with this client as the load."""

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import click
import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ritornello import Client
from ritornello.cli import output
from ritornello.cli.calling import FiniteRange, Given
from ritornello.core.thread import new_loop
from ritornello.limits import Preference

_PERCENT = 100
_SESSIONS_MAX = 100_000
_SIZE_BYTES_MAX = 16 << 20  # as a session may have, if it is not set otherwise


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured with so many sessions in flight."""

    sessions: int
    seconds: float
    operations: int
    operations_per_s: float
    p50_ms: float
    p99_ms: float
    client_cpu_us: float  # of this process, for an operation
    client_cpu_share: float  # of one processor


@dataclass(slots=True)
class _Counts:
    latencies_s: list[float]


@click.command()
@click.option(
    "--sessions",
    "counts",
    type=click.IntRange(min=1, max=_SESSIONS_MAX),
    multiple=True,
    help="In flight at a time; more than once for several runs.  [default: 1, 64, 1000]",
)
@click.option("--seconds", type=FiniteRange(min=0.1), default=5.0, show_default=True)
@click.option("--warm-up", "warm_up_s", type=FiniteRange(min=0), default=1.0, show_default=True)
@click.option("--theme", type=int, default=4_000_000_000, show_default=True)
@click.option(
    "--size",
    "size_bytes",
    type=click.IntRange(min=0, max=_SIZE_BYTES_MAX),
    default=256,
    show_default=True,
    help="Bytes of each chunk.",
)
@click.option(
    "--prefer",
    type=click.Choice(get_args(Preference)),
    default="any",
    show_default=True,
    help="Which node to ask.",
)
@click.pass_obj
def bench(
    given: Given,
    *,
    counts: tuple[int, ...],
    prefer: Preference,
    seconds: float,
    warm_up_s: float,
    theme: int,
    size_bytes: int,
) -> None:
    """Measure lives of sessions: new, append, append, remove, as fast as they are answered.

    Its sessions are removed as it goes. Stopped in the middle, it leaves none behind but those that
    are being worked on, which are stored when it leaves.

    \b
    Example:
      ritornello --url http://a:7601,http://b:7601 bench --sessions 64 --seconds 10
    """
    # Nothing here is garbage in circles; looking for it would take a third of the time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    # Lines are said as they become known: who stops it later still has those.
    found = (
        _measured(given, prefer, count, seconds, warm_up_s, theme, size_bytes)
        for count in counts or (1, 64, 1000)
    )
    if given.is_json:
        for one in found:
            output.say_json(one)
        return
    columns = ("sessions", "ops/s", "p50 ms", "p99 ms", "client us/op", "client CPU")
    rows = (
        (
            one.sessions,
            f"{one.operations_per_s:,.0f}",
            f"{one.p50_ms:.2f}",
            f"{one.p99_ms:.2f}",
            f"{one.client_cpu_us:.1f}",
            f"{one.client_cpu_share:.0%}",
        )
        for one in found
    )
    output.table(columns, rows)


def _measured(
    given: Given,
    prefer: Preference,
    count: int,
    seconds: float,
    warm_up_s: float,
    theme: int,
    size_bytes: int,
) -> Figures:
    bar = Progress(
        TextColumn(f"{count} sessions"),
        BarColumn(),
        TextColumn("{task.fields[rate]} ops/s"),
        TimeRemainingColumn(),
        console=output.errors,
        disable=not sys.stderr.isatty(),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=warm_up_s + seconds, rate="-")

        def tell(elapsed_s: float, rate: float) -> None:
            bar.update(task, completed=elapsed_s, rate=f"{rate:,.0f}")

        with asyncio.Runner(loop_factory=new_loop) as runner:
            try:
                return runner.run(
                    _run(given, prefer, count, seconds, warm_up_s, theme, bytes(size_bytes), tell)
                )
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None


async def _run(
    given: Given,
    prefer: Preference,
    count: int,
    seconds: float,
    warm_up_s: float,
    theme: int,
    chunk: bytes,
    tell: Callable[[float, float], None],
) -> Figures:
    # SIGTERM ends it as Ctrl-C does: the sessions that it has begun are removed.
    running = asyncio.current_task()
    if running is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    async with given.async_client(prefer) as client:
        await client.theme(theme)  # if no node answers, there is nothing to measure
        counts = _Counts([])
        is_over = False

        async def live() -> None:
            while not is_over:
                await _life(client, theme, chunk, counts)

        lives = [asyncio.ensure_future(live()) for _ in range(count)]
        try:
            begun_s = time.monotonic()
            await _wait(warm_up_s, counts, begun_s, tell, lives)
            counts.latencies_s.clear()
            measured_s, cpu_s = time.monotonic(), time.process_time()
            await _wait(seconds, counts, begun_s, tell, lives)
            lasted_s, cpu_s = time.monotonic() - measured_s, time.process_time() - cpu_s
            found = sorted(counts.latencies_s)
        finally:
            is_over = True
            await asyncio.gather(*lives, return_exceptions=True)
    return Figures(
        sessions=count,
        seconds=lasted_s,
        operations=len(found),
        operations_per_s=len(found) / lasted_s,
        p50_ms=_percentile(found, 50),
        p99_ms=_percentile(found, 99),
        client_cpu_us=1e6 * cpu_s / max(len(found), 1),
        client_cpu_share=cpu_s / lasted_s,
    )


async def _life(client: Client, theme: int, chunk: bytes, counts: _Counts) -> None:
    now, note = time.monotonic, counts.latencies_s.append
    begun_s = now()
    session = await client.new(theme, chunk)
    new_s = now()
    note(new_s - begun_s)
    await session.append(chunk)
    first_s = now()
    note(first_s - new_s)
    await session.append(chunk)
    second_s = now()
    note(second_s - first_s)
    await session.remove()
    note(now() - second_s)


async def _wait(
    seconds: float,
    counts: _Counts,
    begun_s: float,
    tell: Callable[[float, float], None],
    lives: Sequence["asyncio.Future[None]"],
) -> None:
    """Let some time pass, and say how it goes. Raises what a life has ended with."""
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        before, at_s = len(counts.latencies_s), time.monotonic()
        await asyncio.wait(lives, timeout=min(left_s, 0.2), return_when="FIRST_EXCEPTION")
        for one in lives:
            if one.done():
                one.result()
        passed_s = max(time.monotonic() - at_s, 1e-6)
        tell(time.monotonic() - begun_s, (len(counts.latencies_s) - before) / passed_s)


def _percentile(found: list[float], percent: int) -> float:
    if not found:
        return float("nan")
    return 1000 * found[min(len(found) * percent // _PERCENT, len(found) - 1)]
