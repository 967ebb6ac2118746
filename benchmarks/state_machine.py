"""Measures the state machine by itself: `make bench`, or with `--quick` for a taste.

One process, one core, no network and no disk. What is compared is measured in turn, round after
round, and the middle of the rounds is shown, because other programs share the machine. Each figure
stands beside its goal; a ratio tells more than the figure it was made from.
"""

import argparse
import gc
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

from state import Acquired, Applied, Created, Item, StateMachine, encode, encode_batch, load
from state.limits import GIB, LIMITS
from state.operations import (
    Acquire,
    Append,
    Heartbeat,
    New,
    Operation,
    Remove,
    SetLimits,
    Store,
    Tick,
)

BATCH_OPERATIONS = 256
DATA = b"d" * 256
FEW = 1000
START_MS = 1_000_000
YEAR_MS = 365 * 24 * 3600 * 1000

# What `cluster` will set after loading and after each checkpoint; see docs/design.md.
GC_THRESHOLDS = (5000, 5, 1000)


class Row(NamedTuple):
    """One line of the table."""

    name: str
    figure: str
    goal: str = ""
    met: bool | None = None


class Bench:
    """A machine, and the log that is fed to it."""

    def __init__(self) -> None:
        self.machine = StateMachine()
        self._index = 0
        self.longest_ms = 0.0  # of a batch
        self.apply([encode(SetLimits((("state_bytes", 16 * GIB),))), encode(Tick(START_MS))])

    def batch(self, operations: list[bytes]) -> bytes:
        """The bytes of the next batch."""
        self._index += 1
        return encode_batch("node-1", 1, self._index, 1, operations)

    def apply(self, operations: list[bytes]) -> Applied:
        """Encode and apply one batch."""
        batch = self.batch(operations)
        return self.machine.apply(self._index, batch)

    def run(self, operations: Iterable[Operation]) -> None:
        """Apply any number of operations in batches."""
        for batch in batches_of(operations):
            self.apply(batch)


def batches_of(operations: Iterable[Operation]) -> Iterator[list[bytes]]:
    """Operations, encoded, in lists of a batch's length."""
    batch: list[bytes] = []
    for operation in operations:
        batch.append(encode(operation))
        if len(batch) == BATCH_OPERATIONS:
            yield batch
            batch = []
    if batch:
        yield batch


def sleepers(count: int) -> Iterator[Operation]:
    """Stored sessions with a key, due at different times a long while from now."""
    return (
        New(1, b"key-%012d" % number, DATA, repeat_after_ms=YEAR_MS + number * 997 % YEAR_MS)
        for number in range(count)
    )


def filled(count: int) -> Bench:
    """A machine with `count` sleeping sessions."""
    bench = Bench()
    gc.disable()  # so that `longest_ms` is of the machine itself
    for number, batch in enumerate(batches_of(sleepers(count))):
        bench.longest_ms = max(bench.longest_ms, taken_ms(partial(bench.apply, batch)))
        if number % 400 == 0:
            progress(f"storing {count:,} sessions: {bench.machine.session_count:,}")
    gc.enable()
    return bench


def lifecycle(bench: Bench, batch_count: int) -> float:
    """Operations of lives (new, append, append, remove) applied in a second, bytes to results."""
    session_id = last_session_id(bench)
    batches = []
    for _ in range(batch_count):
        operations: list[Operation] = []
        for _ in range(BATCH_OPERATIONS // 4):
            session_id += 1
            operations += (
                New(7, None, DATA, consumer=b"consumer-1"),
                Append(session_id, 1, DATA),
                Append(session_id, 1, DATA),
                Remove(session_id, 1),
            )
        batches.append(bench.batch([encode(operation) for operation in operations]))
    first_index = bench.machine.applied_index + 1
    apply = bench.machine.apply
    results: tuple[Any, ...] = ()
    begin_s = time.perf_counter()
    for index, batch in enumerate(batches, first_index):
        results = apply(index, batch).results
    taken_s = time.perf_counter() - begin_s
    if results[-4:] != ((session_id, 1, 1, True), 2, 3, 3):
        raise RuntimeError(f"the lifecycle went wrong: {results[-4:]}")
    return batch_count * BATCH_OPERATIONS / taken_s


def last_session_id(bench: Bench) -> int:
    """The newest id that was given out."""
    (created,) = bench.apply([encode(New(7))]).results
    if not isinstance(created, Created):
        raise TypeError(f"New answered {created}")
    bench.apply([encode(Remove(created.session_id, created.epoch))])
    return created.session_id


def rss_bytes() -> int:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


class Pauses:
    """Times every garbage collection while it is entered."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.count = 0
        self._begin_s = 0.0

    def _on_collection(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._begin_s = time.perf_counter()
        else:
            self.count += 1
            self.longest_ms = max(self.longest_ms, (time.perf_counter() - self._begin_s) * 1000)

    def __enter__(self) -> Self:
        gc.callbacks.append(self._on_collection)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._on_collection)


def taken_ms(work: Callable[[], Any]) -> float:
    """How long `work` takes."""
    begin_s = time.perf_counter()
    work()
    return (time.perf_counter() - begin_s) * 1000


def memory_rows(count: int) -> tuple[list[Row], Bench]:
    """Overhead of a stored session, and a machine full of them."""
    gc.collect()
    before_bytes = rss_bytes()
    bench = filled(count)
    gc.collect()
    data_bytes = count * (len(DATA) + len(b"key-%012d" % 0))
    fresh = (rss_bytes() - before_bytes - data_bytes) / count
    bench.machine.digest()
    capture = bench.machine.capture_changes()
    while capture.next_piece():
        pass
    capture.commit()
    gc.collect()
    settled = (rss_bytes() - before_bytes - data_bytes) / count
    return [
        Row(
            f"overhead of a session at {count:,}, changes not yet captured",
            f"{fresh:,.0f} bytes",
        ),
        Row(
            f"overhead of a session at {count:,}, after digest and checkpoint",
            f"{settled:,.0f} bytes",
            "<= 700 bytes",
            settled <= 700,
        ),
        Row(f"longest batch on the way to {count:,}", f"{bench.longest_ms:.1f} ms"),
    ], bench


def speed_rows(few: Bench, many: Bench, rounds: int, batch_count: int) -> list[Row]:
    """The lifecycle with few and with many sessions stored."""
    rates: dict[int, list[float]] = {id(few): [], id(many): []}
    for number in range(rounds):
        progress(f"lifecycle, round {number + 1} of {rounds}")
        for bench in (few, many) if number % 2 else (many, few):
            rates[id(bench)].append(lifecycle(bench, batch_count))
    few_rate, many_rate = (statistics.median(rates[id(bench)]) for bench in (few, many))
    ratio = statistics.median(
        one / other for one, other in zip(rates[id(few)], rates[id(many)], strict=True)
    )
    return [
        Row(
            f"new, append, append, remove with {few.machine.session_count:,} stored",
            f"{few_rate:,.0f} operations/s",
            ">= 300,000",
            few_rate >= 300_000,
        ),
        Row(
            f"the same with {many.machine.session_count:,} stored",
            f"{many_rate:,.0f} operations/s",
            ">= 300,000",
            many_rate >= 300_000,
        ),
        Row("how much slower that is", f"{ratio:.2f} times", "<= 1.5", ratio <= 1.5),
    ]


def pause_rows(many: Bench, batch_count: int) -> list[Row]:
    """Garbage collections while the lifecycle runs, as Python comes and as we set it."""
    progress("garbage collection")
    gc.collect()
    with Pauses() as untuned:
        lifecycle(many, batch_count)
        keep_some(many, 100_000)
    defaults = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    with Pauses() as tuned:
        lifecycle(many, batch_count)
        keep_some(many, 100_000)
    gc.unfreeze()
    gc.set_threshold(*defaults)
    return [
        Row(
            f"longest collector pause at {many.machine.session_count:,}, Python's settings",
            f"{untuned.longest_ms:.1f} ms of {untuned.count}",
        ),
        Row(
            f"the same, frozen, thresholds {GC_THRESHOLDS}",
            f"{tuned.longest_ms:.1f} ms of {tuned.count}",
            "<= 20 ms",
            tuned.longest_ms <= 20,
        ),
    ]


def keep_some(bench: Bench, count: int) -> None:
    """Sessions that stay, as many as come between two checkpoints."""
    bench.run(New(9, None, DATA, repeat_after_ms=YEAR_MS) for _ in range(count))


def index_rows(few: Bench, many: Bench) -> list[Row]:
    """What must cost what it finds, and not what is stored."""
    progress("ticks and heartbeats")
    tick_ms = []
    for bench in (few, many):
        now_ms = bench.machine.now_ms
        ticks = [[encode(Tick(now_ms + 100 * number))] for number in range(1, 2001)]
        tick_ms.append(statistics.median(taken_ms(partial(bench.apply, tick)) for tick in ticks))
    holder = Bench()
    holder.run(New(3, None, b"", consumer=b"consumer-1") for _ in range(100_000))
    single = Bench()
    single.run([New(3, None, b"", consumer=b"consumer-1")])
    beat_ms = []
    for bench in (single, holder):
        beat = encode(Heartbeat(b"consumer-1"))
        beats = [[encode(Tick(START_MS + number)), beat] for number in range(2000)]
        beat_ms.append(statistics.median(taken_ms(partial(bench.apply, one)) for one in beats))
    return [
        Row(
            f"a Tick at {few.machine.session_count:,} and at {many.machine.session_count:,} stored",
            f"{tick_ms[0] * 1000:.0f} and {tick_ms[1] * 1000:.0f} us",
        ),
        Row(
            "a heartbeat that renews 1 and 100,000 leases",
            f"{beat_ms[0] * 1000:.0f} and {beat_ms[1] * 1000:.0f} us",
        ),
    ]


def repeat_rows(many: Bench, count: int) -> list[Row]:
    """Waking, handing out and storing again."""
    progress("waking, acquiring, storing")
    many.run(New(5, None, DATA, repeat_after_ms=1000) for _ in range(count))
    now_ms = many.machine.now_ms + 1000
    tick = [encode(Tick(now_ms))]
    pages = []
    while (due_ms := many.machine.next_due_ms) is not None and due_ms <= now_ms:
        pages.append(taken_ms(lambda: many.apply(tick)))
    page = LIMITS.tick_page
    grants: list[Acquired] = []

    def acquire() -> None:
        while found := many.apply([encode(Acquire((5,), 1024))]).results[0]:
            grants.extend(found)  # type: ignore[arg-type]

    acquire_ms = taken_ms(acquire)
    stores = list(
        batches_of(Store(grant.session_id, grant.epoch, 10 * YEAR_MS) for grant in grants)
    )
    store_ms = taken_ms(lambda: [many.apply(batch) for batch in stores])
    return [
        Row(f"a Tick that wakes {page:,}, longest of {len(pages)}", f"{max(pages):.1f} ms"),
        Row("acquired", f"{len(grants) / acquire_ms * 1000:,.0f} sessions/s"),
        Row("stored again", f"{len(grants) / store_ms * 1000:,.0f} operations/s"),
    ]


def checkpoint_rows(many: Bench, count: int) -> list[Row]:
    """The changes for a checkpoint, the digest, and the way back."""
    progress("checkpoints")
    machine = many.machine
    before = machine.capture_changes()
    while before.next_piece():
        pass
    before.commit()
    many.run(New(6, None, DATA, repeat_after_ms=YEAR_MS) for _ in range(count))
    changes = machine.capture_changes()
    pieces = []
    while True:
        begin_s = time.perf_counter()
        piece = changes.next_piece()
        pieces.append((time.perf_counter() - begin_s) * 1000)
        if not piece:
            break
    changes.commit()
    many.run(New(6, None, DATA, repeat_after_ms=YEAR_MS) for _ in range(256))
    digest_ms = taken_ms(machine.digest)
    progress("export")
    items: list[Item] = []
    whole = machine.capture_everything()
    export_ms = taken_ms(lambda: items.extend(chain.from_iterable(whole.pieces())))
    whole.commit()
    progress("import")
    loaded: list[StateMachine] = []
    import_ms = taken_ms(lambda: loaded.append(load(items)))
    if loaded[0].digest() != machine.digest():
        raise RuntimeError("the state came back different")
    return [
        Row(
            f"a checkpoint of {count:,} changes",
            f"{sum(pieces):,.0f} ms, longest piece {max(pieces):.1f} ms",
        ),
        Row("a digest after 256 changes", f"{digest_ms:.1f} ms"),
        Row("export", f"{len(items) / export_ms * 1000:,.0f} records/s"),
        Row("import, with all checks", f"{len(items) / import_ms * 1000:,.0f} records/s"),
    ]


def progress(text: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def show(rows: list[Row]) -> None:
    """Print the table."""
    progress("")
    names = max(len(row.name) for row in rows)
    figures = max(len(row.figure) for row in rows)
    for row in rows:
        verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
        goal = f"{row.goal}: {verdict}" if row.goal else ""
        print(f"{row.name:<{names}}  {row.figure:>{figures}}  {goal}".rstrip())


def main() -> int:
    """Measure, print, and answer 1 if a goal was not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--sessions", type=int, default=1_000_000, help="stored (1,000,000)")
    parser.add_argument("--rounds", type=int, default=9, help="of the lifecycle (9)")
    parser.add_argument("--batches", type=int, default=400, help="of 256 operations, a round (400)")
    parser.add_argument("--quick", action="store_true", help="50,000 sessions, 3 short rounds")
    options = parser.parse_args()
    if options.quick:
        options.sessions, options.rounds, options.batches = 50_000, 3, 100
    if min(options.sessions, options.rounds, options.batches) < 1:
        parser.error("sessions, rounds and batches are at least 1")
    print(
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, "
        f"batches of {BATCH_OPERATIONS} operations, {len(DATA)} bytes of data\n",
        flush=True,
    )
    # Memory first, while nothing else has been allocated and freed.
    memory, many = memory_rows(options.sessions)
    few = filled(min(FEW, options.sessions))
    rows = [
        *speed_rows(few, many, options.rounds, options.batches),
        *memory,
        *pause_rows(many, options.batches),
        *index_rows(few, many),
        *repeat_rows(many, min(100_000, options.sessions)),
        *checkpoint_rows(many, min(100_000, options.sessions)),
    ]
    if options.quick:
        rows = [row._replace(goal="", met=None) for row in rows]
        show(rows)
        print("\nA taste: the goals are for a million sessions, and shown without --quick.")
        return 0
    show(rows)
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
