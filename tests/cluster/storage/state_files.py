"""What tests of the checkpoint share: captures written, contents listed, a log to build states."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from cluster.storage.state_file import StateFile
from state import Capture, Item, StateMachine, encode, encode_batch
from state.operations import Append, New, Operation, Remove, Replace, Store

CLUSTER = "cluster-1"
SMALL_CACHE_BYTES = 256 << 10  # so that SQLite writes before it commits
SIBLINGS = ("-journal", "-wal", "-shm")


def scratch() -> TemporaryDirectory[str]:
    """A directory in memory if there is such a place: for many short lives of files."""
    memory = Path("/dev/shm")  # noqa: S108 - the directory in it is our own
    return TemporaryDirectory(dir=memory if memory.is_dir() else None)


def put(
    file: StateFile,
    capture: Capture,
    piece_bytes: int = 1 << 20,
    between: Callable[[], object] | None = None,
) -> None:
    """Begin a checkpoint and put all of a capture."""
    file.begin()
    for piece in capture.pieces(piece_bytes):
        file.put(piece)
        if between is not None:
            between()


def checkpoint(file: StateFile, machine: StateMachine, term: int = 1) -> None:
    """Write what changed, and commit it."""
    index = machine.applied_index
    capture = machine.capture_changes()
    put(file, capture)
    file.commit(index, term)
    capture.commit()


def opened(path: str | Path, cache_bytes: int = SMALL_CACHE_BYTES) -> StateFile:
    """A checkpoint that is there."""
    file = StateFile.open(str(path), CLUSTER, cache_bytes=cache_bytes)
    assert file is not None
    return file


def created(path: str | Path, cache_bytes: int = SMALL_CACHE_BYTES) -> StateFile:
    return StateFile.create(str(path), CLUSTER, cache_bytes=cache_bytes)


def listing(items: Iterable[Item]) -> list[str]:
    """Items in one order, types told apart: 1 is not True, and bytes are not a str."""
    return sorted(map(repr, items))


def listing_of(file: StateFile) -> list[str]:
    return listing(item for piece in file.load() for item in piece)


def torn_copy(path: Path, target: Path) -> None:
    """What a power cut would leave now: the file, and what is beside it."""
    for suffix in ("", *SIBLINGS):
        source = path.with_name(path.name + suffix)
        if source.exists():
            shutil.copyfile(source, target.with_name(target.name + suffix))


class Log:
    """A machine whose batches follow from their index alone, so that any process can replay it."""

    def __init__(self, machine: StateMachine | None = None, *, operations: int = 60) -> None:
        self.machine = StateMachine() if machine is None else machine
        self._operations = operations

    def step(self) -> int:
        """Apply the next batch, and say its index."""
        index = self.machine.applied_index + 1
        random = Random(index)
        operations = [self._operation(random) for _ in range(self._operations)]
        encoded = [encode(one) for one in operations]
        applied = self.machine.apply(index, encode_batch("node", 1, index, 1, encoded))
        assert applied.failure is None
        return index

    def _operation(self, random: Random) -> Operation:
        target = random.randrange(1, 20 * self._operations)
        epoch = random.choice((1, None))
        match random.randrange(6):
            case 0 | 1:
                repeat_ms = random.choice((None, 1000))
                return New(random.randrange(5), None, random.randbytes(600), 7, repeat_ms)
            case 2:
                return Append(target, epoch, random.randbytes(900))
            case 3:
                return Replace(target, epoch, random.randbytes(50))
            case 4:
                return Remove(target, epoch)
            case _:
                return Store(target, epoch, 500, 0, "busy")
