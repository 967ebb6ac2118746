"""`ritornello-server recover`: what is wrong with a disk, and what can be done.

It asks what a start would ask, and says it in more words. The disk itself is never changed.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import click

from api.commands.disk import (
    JOURNAL,
    STATE,
    has_half_written,
    held,
    identity_of,
    parts,
    read_checkpoint,
    read_journal,
)
from api.commands.rebirth import RestoreError, check_empty, make_member, release_all
from api.commands.refusals import refusals
from api.commands.restore import identity_or_refuse, moment, sessions, start_text
from api.commands.salvage import salvage
from api.commands.salvage_journal import JournalScan, scan_journal
from api.settings.table import SETTINGS
from api.statuses import ExitStatus, disk_status
from cluster import MisalignedError
from cluster.consensus.log import Recovered
from cluster.recovery import align, check_presence
from cluster.storage.errors import (
    DamagedError,
    DiskError,
    OtherVersionError,
    StorageError,
    WrongIdentityError,
)
from cluster.storage.records import Identity

_SHOWN_MAX = 50  # lines of a kind


class Kind(StrEnum):
    """What a finding is."""

    WHOLE = "whole"
    EXPECTED = "expected"  # after a crash; a start deals with it
    DAMAGED_JOURNAL = "damaged journal"
    DAMAGED_CHECKPOINT = "damaged checkpoint"
    MISSING = "missing file"
    MISALIGNED = "files of different times"
    VERSION = "another version"
    IDENTITY = "another's disk"
    UNREADABLE = "unreadable"


# What each kind means for whoever has to decide.
MEANINGS = {
    Kind.DAMAGED_JOURNAL: "Bytes of the journal are not what was written, before its end; a power "
    "cut does not do this, a failing disk or a foreign hand does. What this node voted and "
    "acknowledged cannot be told any more.",
    Kind.DAMAGED_CHECKPOINT: "The file is there, and is not what was written. The journal alone "
    "does not go back to the beginning, so the state cannot be made anew from it.",
    Kind.MISSING: "A file is gone that no crash takes away. Without it the node would have "
    "forgotten what it acknowledged: starting with the rest could lose or undo what clients were "
    "told is done.",
    Kind.MISALIGNED: "The journal and the checkpoint are both readable, and not of one time: one "
    "of them was put there from a copy, perhaps. A node is copied as a whole and while it is "
    "stopped, or not at all.",
    Kind.VERSION: "Nothing is damaged. Start the release that wrote it; there is no way back to an "
    "older one but a backup of that time.",
    Kind.IDENTITY: "Nothing is damaged. A disk is mounted at the wrong node, or the settings "
    "node.id and node.cluster_id are not those that it was written with.",
    Kind.UNREADABLE: "The operating system could not read it, and says why above: as a rule, "
    "the disk fails.",
}

# Others have all that this disk had, or it holds nothing but what they have.
_REPLACEABLE = {
    Kind.DAMAGED_JOURNAL,
    Kind.DAMAGED_CHECKPOINT,
    Kind.MISSING,
    Kind.MISALIGNED,
    Kind.UNREADABLE,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found out."""

    kind: Kind
    text: str


@dataclass(slots=True)
class Report:
    """What there is on a disk."""

    directory: Path
    identity: Identity | None = None
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: Kind, text: str) -> None:
        self.findings.append(Finding(kind, text))

    @property
    def wrong(self) -> list[Kind]:
        """For what `serve` refuses the disk: nothing, if it would start."""
        kinds = [one.kind for one in self.findings]
        return [one for one in dict.fromkeys(kinds) if one not in {Kind.WHOLE, Kind.EXPECTED}]

    @property
    def is_whole(self) -> bool:
        return not self.wrong


def examine(directory: Path, cluster_id: str | None = None, node_id: str | None = None) -> Report:
    """Look at a disk. With ids, says whether it is the disk that it should be.

    Raises `NothingThereError`, `LockedError` if its node runs, and `DiskError` if whoever asks has
    not the right to look, or the path is that of a file.
    """
    report = Report(directory)
    try:
        with held(directory):
            _examine(report, cluster_id, node_id)
    except DiskError as error:
        report.add(_kind_of(error, Kind.UNREADABLE), str(error))
    return report


def _examine(report: Report, cluster_id: str | None, node_id: str | None) -> None:
    state_path, journal_path = report.directory / STATE, report.directory / JOURNAL
    has_journal, has_checkpoint = parts(report.directory)
    try:
        check_presence(has_journal=has_journal, has_checkpoint=has_checkpoint)
    except MisalignedError as error:
        report.add(Kind.MISSING, f"{journal_path}: {error}")
    checkpoint = _examine_checkpoint(report, state_path) if has_checkpoint else None
    recovered = _examine_journal(report, journal_path) if has_journal else None
    _examine_identity(report, checkpoint, cluster_id, node_id)
    if recovered is not None and (checkpoint is not None or not has_checkpoint):
        try:
            align(recovered, None if checkpoint is None else checkpoint.place)
        except MisalignedError as error:
            report.add(Kind.MISALIGNED if has_checkpoint else Kind.MISSING, str(error))


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    cluster_id: str
    place: tuple[int, int]


def _examine_checkpoint(report: Report, path: Path) -> _Checkpoint | None:
    try:
        if has_half_written(path):
            report.add(
                Kind.EXPECTED,
                "a checkpoint was being written when the node was killed; a start goes back to "
                "the one before it",
            )
        found = read_checkpoint(path)
    except StorageError as error:
        report.add(_kind_of(error, Kind.DAMAGED_CHECKPOINT), str(error))
        return None
    index, term = found.summary.applied_index, found.summary.applied_term
    what = f"{sessions(found.summary.session_count)} as of entry {index}"
    report.add(Kind.WHOLE, f"{path}: {what}, {moment(found.machine.now_ms)}")
    return _Checkpoint(found.cluster_id, (index, term))


def _examine_journal(report: Report, path: Path) -> Recovered | None:
    scan = JournalScan()
    try:
        scan = scan_journal(path)
        report.identity = scan.identity
        identity = identity_of(path) or scan.identity
        if identity is None:
            raise DamagedError(str(path), "nothing in it can be read")
        kept = read_journal(path, identity)
    except StorageError as error:
        kind = _kind_of(error, Kind.DAMAGED_JOURNAL)
        more = f"; {_readable(scan)}" if kind is Kind.DAMAGED_JOURNAL else ""
        report.add(kind, f"{error}{more}")
        return None
    last_index = kept.base_index + len(kept.entries)
    end = "closed in order" if scan.is_sealed and not scan.is_torn else "not closed in order"
    report.add(
        Kind.WHOLE,
        f"{path}: entries {kept.base_index + 1} to {last_index}, known to be committed up to "
        f"{kept.commit_index}; {end}"
        if kept.entries
        else f"{path}: no entries after {kept.base_index}; {end}",
    )
    if scan.is_torn:
        report.add(
            Kind.EXPECTED,
            "the last write to the journal was cut short, as by a kill or a power cut; nothing in "
            "it was acknowledged, and a start takes it away",
        )
    return Recovered(
        kept.base_index,
        kept.base_term,
        kept.entries,
        kept.term,
        kept.voted_for,
        kept.commit_index,
    )


def _examine_identity(
    report: Report, checkpoint: _Checkpoint | None, cluster_id: str | None, node_id: str | None
) -> None:
    identity = report.identity
    clusters = {} if checkpoint is None else {STATE: checkpoint.cluster_id}
    if identity is not None:
        clusters[JOURNAL] = identity.cluster_id
        if node_id is not None and identity.node_id != node_id:
            report.add(
                Kind.IDENTITY, f"the journal is that of node {identity.node_id}, not of {node_id}"
            )
    for name, found in clusters.items():
        if cluster_id is not None and found != cluster_id:
            report.add(Kind.IDENTITY, f"{name} is of cluster {found}, not of {cluster_id}")
    if len(set(clusters.values())) > 1:
        named = " and ".join(f"{name} of cluster {found}" for name, found in clusters.items())
        report.add(Kind.IDENTITY, f"they do not belong together: {named}")


def _kind_of(error: StorageError, damage: Kind) -> Kind:
    """What an error says of the disk. Raised again if it says nothing of the disk."""
    if disk_status(error) is not ExitStatus.DISK:
        raise error
    match error:
        case OtherVersionError():
            return Kind.VERSION
        case WrongIdentityError():
            return Kind.IDENTITY
        case DiskError():
            return Kind.UNREADABLE
        case _:
            return damage


# For people


def lines(report: Report) -> Iterator[str]:
    """A report as text."""
    directory = report.directory
    whose = "a node" if report.identity is None else str(report.identity)
    yield f"{directory}: {whose}"
    for one in report.findings:
        mark = {Kind.WHOLE: "ok      ", Kind.EXPECTED: "expected"}.get(one.kind, "WRONG   ")
        yield f"  {mark}  {one.text}"
    yield ""
    if report.is_whole:
        yield "This is the disk of a whole node: `ritornello-server serve` starts with it."
        yield ""
        yield "If it does not get ready, the other members are not there. If they are lost for"
        yield f"good, and with them their disks: {_salvage_line(directory)}"
        return
    for kind in report.wrong:
        yield f"{kind.capitalize()}. {MEANINGS[kind]}"
        yield ""
    yield "`ritornello-server serve` refuses this disk. Nothing on it was changed by looking."
    if not _REPLACEABLE.intersection(report.wrong):
        return
    yield ""
    yield "What can be done:"
    yield "(a) The other members are there, and a majority of all is without this one: what was"
    yield "    acknowledged is on their disks, nothing is lost. Make sure that /readyz of each of"
    yield "    them answers 200, then give this one an empty directory, and let it catch up:"
    yield f"      mv {directory} {directory}.damaged"
    yield "    and start it with the same settings. One member at a time: until it has caught up"
    yield "    (/readyz again), it is a failed member, and one more failure is one too many."
    yield "(b) There is a backup, and no majority any more: make a new cluster out of it:"
    yield "      ritornello-server restore --help"
    yield "(c) Nothing else is left: write what can still be read into a new directory:"
    yield f"      {_salvage_line(directory)}"
    yield "    It becomes the first member of a new cluster; what was lost is listed."


def _salvage_line(directory: Path) -> str:
    return f"ritornello-server recover --data-directory {directory} --salvage NEW_DIRECTORY"


def _readable(scan: JournalScan) -> str:
    """What of a damaged journal can be read."""
    ranges = [f"{one.entries[0][0]}-{one.entries[-1][0]}" for one in scan.fragments if one.entries]
    return f"{scan.frames} frames can be read, with the entries {', '.join(ranges) or '(none)'}"


@click.command("recover")
@click.option(
    "--data-directory",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The disk in question. It is never changed.",
)
@click.option("--node-id", metavar="TEXT", help="Whose disk it should be.")
@click.option("--cluster-id", metavar="TEXT", help="Of which cluster it should be.")
@click.option(
    "--salvage",
    "target",
    type=click.Path(path_type=Path),
    metavar="NEW_DIRECTORY",
    help="Write what can be read into a new directory: the first member of a new cluster.",
)
def recover(
    directory: Path, node_id: str | None, cluster_id: str | None, target: Path | None
) -> None:
    """Say what is wrong with the disk of a node that is stopped, and what can be done.

    Ends with 0 if a node would start with it, with 3 if it would not; with 2 if there is none, or
    it cannot be looked at, and with 7 if it is running. With --salvage these mean the same: 3 says
    that something was missing.
    """
    with refusals():
        report = examine(directory, cluster_id, node_id)
    status = ExitStatus.STOPPED if report.is_whole else ExitStatus.DISK
    if target is None:
        for line in lines(report):
            click.echo(line)
        sys.exit(status)
    with refusals("nothing was written"):
        _salvage(report, target)
    sys.exit(status)


def _salvage(report: Report, target: Path) -> None:
    directory = report.directory
    if target.resolve().is_relative_to(directory.resolve()):
        raise RestoreError(f"{target} is inside of {directory}, which is not to be changed")
    check_empty(target)
    with held(directory):
        found = salvage(directory)
    node_id = SETTINGS["node.id"].default if report.identity is None else report.identity.node_id
    identity = identity_or_refuse(found.cluster_id, None, str(node_id))
    at_index = found.machine.applied_index
    released = release_all(found.machine, "recovered from a disk")
    made = make_member(target, identity, found.machine, found.term, found.index)
    click.echo(
        f"{sessions(made.session_count)} of cluster {found.cluster_id} as of entry {at_index}, "
        f"{moment(made.now_ms)}"
    )
    if found.parked:
        click.echo(
            f"  {sessions(found.parked)} without all of its data: parked, for you to look at"
        )
    for mark, told in (("wrong", found.problems), ("lost", found.lost)):
        for one in told[:_SHOWN_MAX]:
            click.echo(f"  {mark}: {one}")
        if len(told) > _SHOWN_MAX:
            click.echo(f"  {mark}: ... and {len(told) - _SHOWN_MAX} more like these")
    if not found.lost:
        missing = "is known to be missing" if found.problems else "is missing"
        click.echo(f"  nothing of what was on that disk {missing}")
    click.echo(start_text(target, identity, released))
    click.echo(
        "for more members: before it starts, make a backup of it, and restore that for each\n"
        f"  ritornello-server backup --data-directory {target} --output FILE\n"
        "  ritornello-server restore --help"
    )
