"""Makes a state out of what is left of a damaged disk, and says what is not in it.

A whole checkpoint and the entries that follow it; or all entries, if the journal goes back to the
first. On a checkpoint that is not whole the journal's entries are *not* applied: on another state
they would do other things, to other sessions even, since ids are counted.
"""

from dataclasses import dataclass, field
from pathlib import Path

from api.commands.disk import JOURNAL, STATE, read_checkpoint
from api.commands.rebirth import digest_of
from api.commands.salvage_journal import JournalScan, scan_journal
from api.commands.salvage_state import Rows, scan_checkpoint
from cluster.consensus.log import FIRST_INDEX, NO_OP
from cluster.storage.errors import DamagedError
from state import FIELDS, Item, Loader, StateMachine, layout
from state.errors import DamagedStateError
from state.records import CHECK, META

_CHANGED = (
    "all of the checkpoint can be read, but something in it is not what was written, and it cannot "
    "be told what"
)

UNKNOWN = "unknown"  # the cluster of a disk that does not say it any more


class NothingLeftError(Exception):
    """There is nothing that a node could begin with; the message says why."""


@dataclass(slots=True)
class Salvaged:
    """A state out of what is left, and what is not in it."""

    machine: StateMachine
    cluster_id: str
    index: int  # that the log had reached, as far as is known
    term: int  # the highest that is spoken of
    problems: list[str]  # what is wrong with the files
    lost: list[str] = field(default_factory=list)  # what of their content is not in the state
    parked: int = 0  # sessions that have lost some of their data


def salvage(directory: Path) -> Salvaged:
    """Read what can be read. Raises `NothingLeftError`, and `StorageError` of what is no damage."""
    scan = scan_journal(directory / JOURNAL)
    whole_log = scan.join(FIRST_INDEX, 0)
    cluster_id = UNKNOWN if scan.identity is None else scan.identity.cluster_id
    begun = Salvaged(StateMachine(), cluster_id, FIRST_INDEX, scan.term, scan.problems)
    path = directory / STATE
    if not path.exists():
        if not whole_log:
            raise NothingLeftError(_why_nothing(scan, directory))
        return _replayed(begun, scan, 0)
    try:
        found = read_checkpoint(path)
    except DamagedError as error:
        begun.problems.append(str(error))
        rows = scan_checkpoint(path)
        begun.cluster_id = rows.cluster_id or cluster_id
        goal = scan.last_index if rows.applied is None else rows.applied[0]
        if whole_log and whole_log[-1][0] >= goal:
            return _replayed(begun, scan, 0)
        return _of_rows(begun, scan, rows)
    begun.machine, begun.cluster_id = found.machine, found.cluster_id
    begun.index = found.summary.applied_index
    return _replayed(begun, scan, found.summary.applied_term)


def _why_nothing(scan: JournalScan, directory: Path) -> str:
    if not scan.frames:
        return f"{directory} has no checkpoint, and nothing of the journal can be read"
    return (
        f"{directory} has no checkpoint, and its journal does not go back to the first entry: "
        "without what came before, its entries say nothing"
    )


def _replayed(begun: Salvaged, scan: JournalScan, term: int) -> Salvaged:
    """Apply the entries that are certain to follow the one where the state is, of this term."""
    if not scan.frames:
        begun.lost.append(f"there is no journal: what came after entry {begun.index} is lost")
    for index, term_of, command in scan.join(begun.index, term):
        if command != NO_OP:
            try:
                begun.machine.apply(index, command)
            except Exception as error:
                raise NothingLeftError(f"entry {index} cannot be applied: {error!r}") from error
        begun.index, term = index, term_of
    if scan.last_index > begun.index:
        begun.lost.append(
            f"entries {begun.index + 1} to {scan.last_index} of the log are lost, or cannot be "
            "used without those before them"
        )
    begun.term = max(begun.term, term, begun.machine.term)
    return begun


def _of_rows(begun: Salvaged, scan: JournalScan, rows: Rows) -> Salvaged:
    """A state of the rows that are left."""
    if rows.meta is None or not (rows.sessions or rows.themes):
        raise NothingLeftError("nothing of the checkpoint can be read")
    items = [rows.meta, *rows.themes, *rows.receipts, *rows.sessions]
    digest = sum(map(digest_of, items)) & layout.DIGEST_MASK
    index = (rows.meta.fields or ())[FIELDS[META].index("applied_index")]
    loader = Loader()
    try:
        loader.feed([*items, Item(CHECK, 0, (digest, index))])
        begun.machine = machine = loader.finish()
    except DamagedStateError as error:  # each makes sense by itself, and together they do not
        raise NothingLeftError(f"what is left of the checkpoint makes no sense: {error}") from error
    begun.lost += rows.problems or [_CHANGED]
    if scan.last_index > index:
        begun.lost.append(
            f"entries {index + 1} to {scan.last_index} of the log are not used: on a state that is "
            "not whole they would do other things"
        )
    begun.parked = rows.parked
    begun.index = max(index, scan.last_index)
    begun.term = max(scan.term, machine.term, 0 if rows.applied is None else rows.applied[1])
    return begun
