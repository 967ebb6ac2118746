"""A state becomes the beginning of another cluster: what `restore` and `recover` write.

The new cluster has a past that others remember better than it does: after the moment of the backup
the old one went on, and its clients have ids, epochs, revisions and places in the log of that time.
None of them may mean something else now. So each of these counters goes on far beyond what the old
cluster can have reached:

* the *index* of the log: who reads events after one of the old cluster is told to `resync`;
* *session ids*: none of the old cluster's last sessions has the name of another one now;
* *epochs*: whoever still operates a session of the old cluster gets `lease_lost`, also if the key
  by which he calls it has another session now;
* *revisions*: an `If-Match` of the old cluster fails.

Nobody operates anything at first. Sessions that were active are stored, as in an orderly shutdown:
due now, the attempt given back. Consumers are forgotten with that.

What the cluster knows of *proposers* is forgotten, too. It is there to recognise a batch that comes
twice; no batch of the old cluster can come, as its nodes have another cluster's name; and without
it no member is refused because its clock is behind that of a node that had its name. Receipts of
idempotency keys stay: what they are of is in the state.

Time, policies, limits and terms stay as they are. All of it follows from the state alone, so two
members that are restored from the same backup are equal, and may start in any order.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from api.commands.disk import JOURNAL, STATE, held
from cluster.storage.disk import OsDirectory, make_directory, sync_directory
from cluster.storage.errors import DiskError
from cluster.storage.journal_files import JournalFiles, JournalSettings
from cluster.storage.records import Base, Identity, Vote
from cluster.storage.state_file import StateFile, receive
from state import FIELDS, Cause, Failure, Item, Phase, StateMachine, encode, encode_batch, layout
from state.limits import COUNTER_MAX, MIB, SEQUENCE_MAX
from state.operations import Store
from state.records import (
    ANSWERS,
    CHECK,
    CONSUMER,
    META,
    RECEIPT,
    SESSION,
    WINDOW,
    Receipt,
    Session,
    Theme,
)

# Eleven years of 3,000 batches a second, which is more than disks sync.
INDEX_STEP = 2**40
# A month of 25,000 new sessions a second. Ids have 48 bits to count: room for 4,000 restores.
SESSION_STEP = 2**36
# Of one session: a thousand a second, for fifty days.
EPOCH_STEP = REVISION_STEP = 2**32

REASON = "restored from a backup"

_STORES_A_BATCH = 256
_UNFINISHED = "journal.restoring"
_IGNORED_NAMES = frozenset(("lost+found",))  # what a fresh volume has

# Of a record its digest looks at the kind, and of a session at the chunks; the rest is in the item.
_THEME, _RECEIPT = Theme(0, 0), Receipt(b"", b"", 0, None)
_FORGOTTEN = frozenset((CONSUMER, WINDOW, ANSWERS))
_COUNTERS = {
    META: {"last_session_id": SESSION_STEP, "key_epoch": EPOCH_STEP},
    SESSION: {"epoch": EPOCH_STEP, "revision": REVISION_STEP},
}


class RestoreError(Exception):
    """No cluster can be made of it; the message says why."""


# The state


def release_all(machine: StateMachine, reason: str = REASON) -> int:
    """Store what is active, as in an orderly shutdown; answers how many sessions that were."""
    active = sorted(
        (one.session_id, one.epoch) for one in machine.sessions() if one.phase is Phase.ACTIVE
    )
    limits = machine.limits
    page, reason = min(_STORES_A_BATCH, limits.batch_operations), reason[: limits.reason_chars]
    proposer = _some_proposer(machine)
    for sequence, start in enumerate(range(0, len(active), page)):
        operations = [
            encode(Store(session_id, epoch, cause=Cause.SHUTDOWN, reason=reason))
            for session_id, epoch in active[start : start + page]
        ]
        # Of the last incarnation that there can be, so that none of its own is above it.
        batch = encode_batch(proposer, SEQUENCE_MAX, sequence, machine.term, operations)
        applied = machine.apply(machine.applied_index + 1, batch)
        failures = [one for one in applied.results if isinstance(one, Failure)]
        if (failure := applied.failure or next(iter(failures), None)) is not None:
            raise RestoreError(f"what was being worked on cannot be stored: {failure}")
    return len(active)


def _some_proposer(machine: StateMachine) -> str:
    """One that has a place already: there may be none left."""
    capture = machine.capture_everything()
    try:
        for item in (item for piece in capture.pieces() for item in piece):
            if item.kind > WINDOW:
                break
            if item.kind == WINDOW:
                return str(item.identity)
        return "restore"
    finally:
        if not capture.finished:
            capture.abandon()


def reborn(items: Iterable[Item], begin_index: int) -> Iterator[Item]:
    """The items of a state that nobody operates, as those of a new cluster whose log begins there.

    Raises `RestoreError`.
    """
    digest = 0
    for item in items:
        if item.kind in _FORGOTTEN or item.kind == CHECK:
            continue
        changed = _go_on(item, begin_index)
        digest += digest_of(changed)
        yield changed
    yield Item(CHECK, 0, (digest & layout.DIGEST_MASK, begin_index))


def _go_on(item: Item, begin_index: int) -> Item:
    """Let the counters of an item go on beyond those of the old cluster. Raises `RestoreError`."""
    steps = _COUNTERS.get(item.kind)
    if steps is None or item.fields is None:
        return item
    fields = dict(zip(FIELDS[item.kind], item.fields, strict=True))
    for name, step in steps.items():
        fields[name] += step
        if fields[name] > SEQUENCE_MAX:
            raise RestoreError(f"{name} is too high to go on beyond that of the old cluster")
    if item.kind == META:
        fields["applied_index"] = begin_index
        if fields["last_session_id"] > COUNTER_MAX:
            raise RestoreError("there are not enough session ids left to go on beyond the old ones")
    return item._replace(fields=tuple(fields.values()))


def digest_of(item: Item) -> int:
    """The part that an item has in the digest of a state."""
    fields = item.fields or ()
    match item.kind:
        case _ if item.kind == META:
            return layout.digest_of(item)
        case _ if item.kind == SESSION:
            chunks = list(item.chunks)
            return layout.digest(Session(0, _THEME, None, chunks, 0, 0, 0), fields)
        case _ if item.kind == RECEIPT:
            return layout.digest(_RECEIPT, fields)
        case _:
            return layout.digest(_THEME, fields)


def write_state(
    path: Path, cluster_id: str, items: Iterable[Item], index: int, term: int
) -> StateMachine:
    """Write a checkpoint, and load it again, which checks all of it. Raises `StorageError`."""
    file = StateFile.create(os.fspath(path), cluster_id)
    with contextlib.closing(file):
        file.begin()
        piece: list[Item] = []
        size_bytes = 0
        for item in items:
            piece.append(item)
            size_bytes += layout.item_bytes(item)
            if size_bytes >= MIB:
                file.put(piece)
                piece, size_bytes = [], 0
        file.put(piece)
        file.commit(index, term)
    return receive(os.fspath(path), cluster_id)[0]


# The directory


def check_empty(directory: Path) -> None:
    """Refuse a directory that has something in it.

    Raises `RestoreError`, `LockedError` if it has a node that runs, and `DiskError` if it cannot be
    told.
    """
    try:
        names = sorted({one.name for one in directory.iterdir()} - _IGNORED_NAMES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DiskError.of(os.fspath(directory), "list", error) from error
    if names:
        with contextlib.suppress(DiskError), held(directory):
            pass
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")  # noqa: PLR2004
        raise RestoreError(
            f"{directory} is not empty (it has {shown}); write another --data-directory, or move "
            "away what is in this one"
        )


def make_member(
    directory: Path, identity: Identity, machine: StateMachine, term: int, index: int
) -> StateMachine:
    """Make the disk of a new cluster's member, out of a state that nobody operates.

    `index` and `term` are where the state is in the old log, at least. Answers the state as it was
    made. Raises `StorageError` and `RestoreError`; nothing stays behind then. If the process is
    killed, a start refuses what is there: a journal that begins late, and no checkpoint.
    """
    check_empty(directory)
    was_there = directory.exists()
    make_directory(os.fspath(directory))
    try:
        begin_index = max(index, machine.applied_index) + INDEX_STEP
        unfinished = directory / _UNFINISHED
        _make_journal(unfinished, identity, begin_index, term)
        unfinished.rename(directory / JOURNAL)
        sync_directory(os.fspath(directory))
        capture = machine.capture_everything()
        items = (item for piece in capture.pieces() for item in piece)
        made = reborn(items, begin_index)
        state = write_state(directory / STATE, identity.cluster_id, made, begin_index, term)
        sync_directory(os.fspath(directory))
    except BaseException as error:
        _remove(directory, is_all=not was_there)
        if isinstance(error, OSError):
            raise DiskError.of(os.fspath(directory), "write", error) from error
        raise
    return state


def _make_journal(directory: Path, identity: Identity, index: int, term: int) -> None:
    """A journal in which nothing ever was, but a checkpoint from elsewhere."""
    make_directory(os.fspath(directory))
    with OsDirectory(os.fspath(directory)) as opened:
        settings = JournalSettings(segment_bytes=MIB)
        files, _ = JournalFiles.open(opened, identity, settings)
        with contextlib.closing(files):
            files.append([Vote(term, None), Base(index, term)])
            files.sync()


def _remove(directory: Path, *, is_all: bool) -> None:
    """Leave a directory as it was. The first error is the one that matters, so none is raised."""
    for name in (JOURNAL, _UNFINISHED):
        shutil.rmtree(directory / name, ignore_errors=True)
    for path in directory.glob(f"{STATE}*"):
        with contextlib.suppress(OSError):
            path.unlink()
    if is_all:
        with contextlib.suppress(OSError):
            directory.rmdir()
