"""What a crash may leave of the journal and the checkpoint, and what it may not."""

import pytest

from cluster.consensus.log import Recovered
from cluster.consensus.messages import Installed, Offer
from cluster.failures import MisalignedError
from cluster.recovery import align, check_presence
from cluster.storage.records import Base, Vote
from tests.cluster.test_snapshots import Side


def journal(base: tuple[int, int], *terms: int, commit: int | None = None) -> Recovered:
    entries = [(b"\x96", index, term) for index, term in enumerate(terms, base[0] + 1)]
    committed = base[0] if commit is None else commit
    return Recovered(*base, entries, max((base[1], *terms)), None, committed)


def test_a_new_node_has_neither() -> None:
    assert align(Recovered(), None) == (Recovered(), ())


def test_no_checkpoint_yet() -> None:
    found = journal((1, 0), 1, 1)
    assert align(found, None) == (found, ())


@pytest.mark.parametrize("index", [5, 6, 7])
def test_a_checkpoint_within_the_journal(index: int) -> None:
    found = journal((5, 2), 2, 3)
    aligned, records = align(found, (index, {5: 2, 6: 2, 7: 3}[index]))
    # What was applied was committed, whether the journal had been told or not.
    assert (aligned, records) == (found._replace(commit_index=index), ())


def test_a_commit_index_beyond_the_checkpoint_stays() -> None:
    found = journal((5, 2), 2, 3, commit=7)
    assert align(found, (6, 2)) == (found, ())


def test_a_snapshot_of_less_than_the_checkpoint_holds_is_not_taken() -> None:
    # Idle, a commit index waits for company, so a crash leaves the journal's behind.
    aligned, _ = align(journal((1, 0), *[1] * 10, commit=5), (10, 1))
    follower = Side(aligned)
    follower.follow(1, (1, 0), commit=1)
    follower.sent.clear()
    follower.deliver("b", Offer(1, 7, 8, 1, 100, bytes(32)))
    assert follower.sent == [("b", Installed(1, 7, 10))]


def test_a_snapshot_ahead_of_the_journal_that_had_not_been_told() -> None:
    aligned, records = align(journal((5, 2), 2, 3), (20, 4))
    assert (aligned.base_index, aligned.base_term, aligned.entries) == (20, 4, ())
    assert (aligned.commit_index, aligned.term) == (20, 4)
    assert records == [Vote(4, None), Base(20, 4)]


def test_a_vote_in_an_older_term_than_the_snapshots_is_forgotten() -> None:
    found = journal((5, 2), 2, 3)._replace(voted_for="b")
    aligned, records = align(found, (20, 4))
    assert (aligned.term, aligned.voted_for) == (4, None)
    assert records == [Vote(4, None), Base(20, 4)]
    aligned, records = align(found._replace(term=7), (20, 4))
    assert (aligned.term, aligned.voted_for) == (7, "b")
    assert records == [Base(20, 4)]


def test_a_snapshot_over_a_tail_that_was_never_committed() -> None:
    aligned, records = align(journal((5, 2), 2, 2, 2), (7, 3))
    assert (aligned.base_index, aligned.entries) == (7, ())
    assert records == [Vote(3, None), Base(7, 3)]


def test_a_missing_checkpoint_is_refused() -> None:
    with pytest.raises(MisalignedError, match=r"after entry 5, and the checkpoint .* missing"):
        align(journal((5, 2), 2), None)


def test_an_old_checkpoint_is_refused() -> None:
    with pytest.raises(MisalignedError, match="ends with entry 3, but the journal begins after 5"):
        align(journal((5, 2), 2), (3, 1))


def test_another_history_is_refused() -> None:
    with pytest.raises(MisalignedError, match="entry 5 in term 3, the journal in 2"):
        align(journal((5, 2), 2), (5, 3))


def test_another_history_of_what_is_committed_is_refused() -> None:
    with pytest.raises(MisalignedError, match="entry 8 in term 4, the journal in 3"):
        align(journal((5, 2), 3, 3, 3, 3, 3, commit=10), (8, 4))


def test_a_checkpoint_without_its_journal_is_refused() -> None:
    with pytest.raises(MisalignedError, match="the journal that belongs to it is missing"):
        check_presence(has_journal=False, has_checkpoint=True)


def test_a_new_node_and_a_young_one_are_not_refused() -> None:
    check_presence(has_journal=False, has_checkpoint=False)
    check_presence(has_journal=True, has_checkpoint=False)
    check_presence(has_journal=True, has_checkpoint=True)
