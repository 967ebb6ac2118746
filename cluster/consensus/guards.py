"""Which guards stand. All of them, always: a test may take one away to show what it is for.

`docs/divergence.md` lists, for each, what goes wrong without it and a seed that shows it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guards:
    """Each True: the guard stands. The numbers are those of the defects of PySyncObj 0.3.17."""

    matching_entries_stay: bool = True  # 1: a resent prefix cuts nothing that matches
    acks_name_their_term: bool = True  # 2: an ack of another term is not counted
    promises_wait_for_disk: bool = True  # 3: acks and votes leave after the fsync
    own_copy_waits_for_disk: bool = True  # the leader counts its own copy once it is on disk
    one_vote_a_member: bool = True  # 7
    commit_stays_within_verified: bool = True  # 11: no commit index beyond what is known to match
    pre_vote: bool = True  # 6: nobody who would lose disturbs the term
    check_quorum: bool = True  # 6: a leader without a majority steps down
    old_terms_are_answered: bool = True  # 24: a leader of an old term learns that it is over
    retries_are_recognised: bool = True  # 17, 20: a batch that is sent again keeps its sequence
    batches_stay_in_order: bool = True  # a stream of forwarded batches ends at what was declined
    leases_get_grace: bool = True  # a new leader, or one that slept, does not reap at once
    reads_wait_for_barrier: bool = True  # 6: a read takes a place in the log


ALL_GUARDS = Guards()
