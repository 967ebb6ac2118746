"""Brings what two files say together when a node starts: the journal, and the checkpoint.

They are written one after the other, so a crash may leave either ahead. Whatever is not one of the
ways in which that can happen is damage, and refused: nothing acknowledged is ever dropped to make
them fit (ENGINE 12, 19).
"""

from collections.abc import Sequence

from cluster.consensus.log import FIRST_INDEX, Recovered
from cluster.failures import MisalignedError
from cluster.storage.records import Base, Record, Vote


def check_presence(*, has_journal: bool, has_checkpoint: bool) -> None:
    """To be asked before either is opened, for then it is made. Raises `MisalignedError`."""
    if has_checkpoint and not has_journal:
        raise MisalignedError(
            "there is a checkpoint, and the journal that belongs to it is missing: without it the "
            "node would have forgotten its votes and what it acknowledged last"
        )


def align(
    recovered: Recovered, checkpoint: tuple[int, int] | None
) -> tuple[Recovered, Sequence[Record]]:
    """The log to start with, and what to write to the journal before anything else.

    `checkpoint` is the index and the term that it stands for, None if there is none yet. Raises
    `MisalignedError`.
    """
    base_index, entries = recovered.base_index, recovered.entries
    last_index = entries[-1][1] if entries else base_index
    if checkpoint is None:
        if base_index > FIRST_INDEX:
            raise MisalignedError(
                f"the journal begins after entry {base_index}, and the checkpoint that holds what "
                "came before is missing"
            )
        return recovered, ()
    index, term = checkpoint
    if index < base_index:
        raise MisalignedError(
            f"the checkpoint ends with entry {index}, but the journal begins after {base_index}"
        )
    if index <= last_index:
        term_of_entry = (
            recovered.base_term if index == base_index else entries[index - base_index - 1][2]
        )
        if term_of_entry == term:
            # What a checkpoint holds is committed; the journal's commit index may lag behind. With
            # a lower one, a leader's older snapshot would look as if it were ahead.
            commit_index = max(recovered.commit_index, index)
            return recovered._replace(commit_index=commit_index), ()
        if index <= max(base_index, recovered.commit_index):
            raise MisalignedError(
                f"the checkpoint has entry {index} in term {term}, the journal in {term_of_entry}"
            )
    # A leader's snapshot was installed, and the journal had not been told: what it holds is older,
    # or was never committed.
    records: list[Record] = [Base(index, term)]
    if term > recovered.term:
        # As new to the disk as the base is: in the next life too, no older leader is obeyed.
        recovered = recovered._replace(term=term, voted_for=None)
        records.insert(0, Vote(term, None))
    aligned = recovered._replace(base_index=index, base_term=term, entries=(), commit_index=index)
    return aligned, records
