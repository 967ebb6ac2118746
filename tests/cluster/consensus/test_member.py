"""The guard, one message at a time. The defects are those of ENGINE.md's numbers, in comments."""

from dataclasses import replace

import pytest

from cluster.consensus.engine import Role, library_clock
from cluster.consensus.guards import ALL_GUARDS
from cluster.consensus.log import NO_OP, Recovered
from cluster.consensus.member import ConsensusSettings, DivergedError
from cluster.consensus.messages import (
    Append,
    Appended,
    Conflict,
    Declined,
    MalformedMessageError,
    PreVote,
    PreVoteRequest,
    Term,
    TimeoutNow,
    Vote,
    VoteRequest,
    encode,
)
from cluster.storage.errors import StorageError
from cluster.storage.records import Entry
from tests.cluster.consensus.rig import Rig, batch


def recovered(*terms: int, commit: int = 1, base: tuple[int, int] = (1, 0)) -> Recovered:
    """A log with entries of these terms after its base."""
    entries = [(batch(index), index, term) for index, term in enumerate(terms, base[0] + 1)]
    return Recovered(
        base[0],
        base[1],
        entries,
        term=max(terms, default=0),
        voted_for=None,
        commit_index=commit,
    )


# 1: a resent prefix


def test_a_resent_prefix_cuts_nothing() -> None:
    rig = Rig()
    rig.follow(1, (1, 0), (1, batch(2)), (1, batch(3)), (1, batch(4)))
    rig.sync()
    rig.follow(1, (1, 0), (1, batch(2)))
    assert [index for index, _, _ in rig.entries] == [2, 3, 4]


def test_without_its_guard_a_resent_prefix_cuts_what_follows() -> None:
    rig = Rig(guards=replace(ALL_GUARDS, matching_entries_stay=False))
    rig.follow(1, (1, 0), (1, batch(2)), (1, batch(3)), (1, batch(4)))
    rig.sync()
    rig.follow(1, (1, 0), (1, batch(2)))
    assert [index for index, _, _ in rig.entries] == [2]


def test_only_a_conflicting_suffix_is_cut() -> None:
    rig = Rig(recovered(1, 1, 1, 1))
    rig.follow(2, (1, 0), (1, batch(2)), (1, batch(3)), (2, b"\x96 another"))
    assert [(index, term) for index, term, _ in rig.entries] == [(2, 1), (3, 1), (4, 2)]


def test_a_heartbeat_cuts_nothing() -> None:
    rig = Rig(recovered(1, 1, 1))
    rig.follow(1, (2, 1))
    assert len(rig.entries) == 3


@pytest.mark.parametrize("first", [2, 3])
def test_a_leader_that_contradicts_what_is_committed_stops_the_node(first: int) -> None:
    rig = Rig(recovered(1, 1, 1, commit=3))
    rig.follow(2, (first - 1, 1 if first > 2 else 0), (2, b"\x96 another"))
    assert isinstance(rig.failure, DivergedError)
    assert len(rig.entries) == 3


def test_a_leader_that_contradicts_the_entry_before_stops_the_node() -> None:
    rig = Rig(recovered(1, 1, commit=3))
    rig.follow(3, (3, 2))
    assert isinstance(rig.failure, DivergedError)


def test_entries_that_a_checkpoint_holds_are_not_taken_again() -> None:
    rig = Rig(recovered(2, base=(10, 2), commit=10))
    rig.follow(2, (8, 1), (1, batch(9)), (2, batch(10)), (2, batch(11)), (2, batch(12)))
    assert [index for index, _, _ in rig.entries] == [11, 12]
    rig.follow(2, (3, 1), (1, batch(4)))
    rig.sync()
    assert rig.acknowledged() == 12


def test_a_leader_that_contradicts_a_checkpoint_stops_the_node() -> None:
    rig = Rig(recovered(2, base=(10, 2), commit=10))
    rig.follow(3, (8, 1), (1, batch(9)), (3, batch(10)), (3, batch(11)))
    assert isinstance(rig.failure, DivergedError)


def test_a_leader_whose_log_ends_below_a_checkpoint_is_not_told_that_it_has_more() -> None:
    rig = Rig(recovered(base=(10, 2), commit=10))
    rig.follow(3, (3, 1), (1, batch(4)))
    rig.sync()
    assert rig.acknowledged() == 4
    rig.follow(3, (4, 1))
    assert rig.take(Appended) == []
    rig.follow(3, (4, 1), *[(3, batch(index)) for index in range(5, 12)])
    assert isinstance(rig.failure, DivergedError)


def test_a_vote_that_took_long_does_not_make_the_voter_deaf() -> None:
    rig = Rig(settings=ConsensusSettings(disk_timeout_ms=60_000))
    rig.run(5)
    rig.deliver("b", VoteRequest(1, 1, 0))
    rig.run(20)
    rig.sync()  # only now has the disk the vote
    assert len(rig.take(Vote)) == 1
    rig.run(0.9)
    rig.follow(1, (1, 0))
    rig.take(PreVoteRequest)
    rig.run(2.5)
    assert rig.take(PreVoteRequest), "its leader is silent"


# 15: catching up


def test_a_gap_is_answered_with_what_is_certain() -> None:
    rig = Rig(recovered(1, 1, 1, commit=3))
    rig.follow(4, (9, 4), (4, batch(10)))
    assert rig.take(Conflict) == [Conflict(4, 9, 4)]
    assert rig.member.leader == "b"


def test_another_entry_before_is_answered_with_what_is_certain() -> None:
    rig = Rig(recovered(1, 1, 2, 2, commit=2))
    rig.follow(4, (4, 3))
    assert rig.take(Conflict) == [Conflict(4, 4, 3)]
    assert len(rig.entries) == 4


# 3: what is promised is on disk


def test_entries_are_acknowledged_when_they_are_on_disk() -> None:
    rig = Rig()
    rig.follow(1, (1, 0), (1, batch(2)))
    assert rig.take(Appended) == []
    rig.sync()
    assert rig.acknowledged() == 2


def test_a_heartbeat_is_answered_at_once_with_what_is_on_disk() -> None:
    rig = Rig(recovered(1, 1))
    rig.follow(1, (3, 1), (1, batch(4)))
    assert rig.acknowledged() == 3
    rig.follow(1, (4, 1))
    assert rig.acknowledged() is None, "a bare commit index needs no answer"
    rig.run(0.1)
    rig.follow(1, (4, 1))
    assert rig.acknowledged() == 3


def test_nothing_is_acknowledged_in_a_term_that_is_not_on_disk() -> None:
    rig = Rig(recovered(1, 1))
    rig.follow(5, (3, 1))
    assert rig.take(Appended) == []
    rig.sync()
    assert rig.acknowledged() == 3


def test_a_cut_takes_back_what_was_on_disk() -> None:
    rig = Rig(recovered(1, 1, 1))
    rig.follow(2, (2, 1), (2, b"\x96 another"))
    rig.sent.clear()
    rig.follow(2, (3, 2))
    assert rig.take(Appended) == [], "the term is not on disk"
    rig.writes.pop(0)[1](None)  # the term, and with it the cut and the entry
    rig.run()
    assert rig.acknowledged() == 3


def test_a_vote_leaves_when_it_is_on_disk() -> None:
    rig = Rig()
    rig.deliver("b", VoteRequest(1, 1, 0))
    assert rig.take(Vote) == []
    rig.sync()
    assert rig.take(Vote, "b") == [Vote(1)]


def test_a_vote_that_is_late_is_not_sent_in_another_term() -> None:
    rig = Rig()
    rig.deliver("b", VoteRequest(1, 1, 0))
    rig.deliver("c", VoteRequest(2, 1, 0))
    rig.sync()
    assert rig.take(Vote) == [Vote(2)]


def test_a_candidate_asks_when_its_own_vote_is_on_disk() -> None:
    rig = Rig()
    rig.member.elections.stand()
    rig.run()
    assert rig.take(VoteRequest) == []
    rig.sync()
    assert rig.take(VoteRequest) == [VoteRequest(1, 1, 0)] * 2


def test_one_vote_a_term() -> None:
    rig = Rig(Recovered(term=3, voted_for="c"))
    rig.deliver("b", VoteRequest(3, 1, 0))
    rig.sync()
    assert rig.take(Vote) == []


def test_a_defect_in_what_listens_ends_the_member(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()

    def fail(_peer: str, _message: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(rig, "on_message", fail)
    rig.member.receive("b", encode(Declined(1, 0, 0)))
    assert isinstance(rig.failure, RuntimeError)


def test_a_failing_disk_ends_the_member() -> None:
    rig = Rig()
    rig.follow(1, (1, 0), (1, batch(2)))
    rig.writes.pop(0)[1](StorageError("no"))
    rig.run()
    assert isinstance(rig.failure, StorageError)
    rig.sent.clear()
    rig.follow(1, (2, 1), (1, batch(3)))
    assert rig.sent == []


# A leader


def test_entries_leave_before_the_disk_has_them() -> None:
    rig = Rig()
    rig.lead()
    rig.sync()
    rig.deliver("b", Appended(1, 2))
    rig.sent.clear()
    rig.member.propose(batch(3))
    rig.run()
    assert rig.writes, "it is on its way to the disk"
    (append,) = rig.take(Append, "b")
    assert append.entries == ((1, batch(3)),)


def test_a_leader_counts_its_own_copy_when_it_is_on_disk() -> None:
    rig = Rig()
    rig.lead()
    rig.deliver("b", Appended(1, 2))
    assert rig.committed == 0
    rig.sync()
    assert rig.committed == 2


def test_without_its_guard_a_leader_counts_what_it_may_lose() -> None:
    rig = Rig(guards=replace(ALL_GUARDS, own_copy_waits_for_disk=False))
    rig.lead()
    rig.deliver("b", Appended(1, 2))
    assert rig.committed == 2


def test_an_ack_of_another_term_counts_for_nothing() -> None:  # 2
    rig = Rig(Recovered(term=4))
    rig.lead()
    rig.sync()
    rig.deliver("b", Appended(3, 2))
    assert rig.committed == 0
    rig.deliver("b", Appended(5, 2))
    assert rig.committed == 2


def test_an_ack_beyond_the_log_counts_for_nothing() -> None:
    rig = Rig()
    rig.lead()
    rig.sync()
    rig.deliver("b", Appended(1, 3))
    assert rig.committed == 0
    assert rig.member.counters.malformed == 1


def test_an_ack_of_a_higher_term_ends_a_leadership() -> None:
    rig = Rig()
    rig.lead()
    rig.deliver("b", Appended(7, 1))
    assert rig.member.engine.role is Role.FOLLOWER
    assert rig.member.term == 7


def test_a_vote_counts_once() -> None:  # 7
    rig = Rig(others=("b", "c", "d", "e"))
    rig.member.elections.stand()
    rig.sync()
    for _ in range(3):
        rig.deliver("b", Vote(1))
    assert not rig.member.is_leader
    rig.deliver("c", Vote(1))
    assert rig.member.is_leader


def test_without_its_guard_a_member_that_votes_twice_makes_a_leader() -> None:
    guards = replace(ALL_GUARDS, one_vote_a_member=False)
    rig = Rig(others=("b", "c", "d", "e"), guards=guards)
    rig.member.elections.stand()
    rig.sync()
    rig.deliver("b", Vote(1))
    rig.deliver("b", Vote(1))
    assert rig.member.is_leader


def test_without_its_guard_an_ack_of_another_leadership_commits() -> None:
    rig = Rig(Recovered(term=4), guards=replace(ALL_GUARDS, acks_name_their_term=False))
    rig.lead()
    rig.sync()
    rig.deliver("b", Appended(3, 2))
    assert rig.committed == 2


def test_what_is_proposed_to_a_follower_is_not_taken() -> None:
    rig = Rig()
    assert not rig.member.propose(batch(2))
    rig.lead()
    assert rig.member.propose(batch(3))


def test_what_a_leader_had_no_time_to_append_is_dropped_with_its_role() -> None:
    rig = Rig()
    rig.lead()
    rig.sync()
    rig.member.propose(batch(3))
    rig.member.receive("b", encode(Term(9)))
    rig.run()
    rig.lead()
    assert batch(3) not in [command for _, _, command in rig.entries]


def test_a_large_entry_goes_in_one_message() -> None:  # 5
    rig = Rig()
    rig.lead()
    rig.sync()
    rig.deliver("b", Appended(1, 2))
    rig.sent.clear()
    large = batch(3) + bytes(3_000_000)
    rig.member.propose(large)
    rig.run()
    (append,) = rig.take(Append, "b")
    assert append.entries == ((1, large),)


def test_acks_send_nothing_again() -> None:  # 1b
    rig = Rig()
    rig.lead()
    rig.sync()
    rig.deliver("b", Appended(1, 2))
    rig.sent.clear()
    for number in range(3, 6):
        rig.member.propose(batch(number))
        rig.run()
    rig.sync()
    rig.deliver("b", Appended(1, 3))
    rig.deliver("b", Appended(1, 4))
    sent = [entry for append in rig.take(Append, "b") for entry in append.entries]
    assert sent == [(1, batch(3)), (1, batch(4)), (1, batch(5))]


def test_a_follower_is_probed_before_it_is_trusted() -> None:
    rig = Rig(recovered(1, 1, 1, 1))
    rig.lead()
    rig.sync()
    (probe,) = rig.take(Append, "b")
    assert (probe.previous_index, probe.entries) == (5, ((2, NO_OP),))
    rig.deliver("b", Conflict(2, 5, 3))
    assert rig.take(Append, "b")[0].previous_index == 2
    rig.deliver("b", Conflict(2, 5, 2))
    assert rig.take(Append, "b") == [], "an answer to the first probe"


def test_a_follower_whose_entries_are_gone_is_behind() -> None:
    rig = Rig(recovered(3, base=(100, 3), commit=100))
    rig.lead()
    rig.sync()
    rig.deliver("b", Conflict(4, 101, 7))
    rig.deliver("b", Conflict(4, 100, 7))
    assert rig.behind == ["b"]


def test_a_follower_whose_commit_index_is_behind_the_log_is_asked_for_its_base() -> None:
    rig = Rig(recovered(3, 3, 3, base=(100, 3), commit=100))
    rig.lead()
    rig.sync()
    rig.sent.clear()
    rig.deliver("b", Conflict(4, 103, 100))
    probe, heartbeat = rig.take(Append, "b")
    assert (probe.previous_index, len(probe.entries)) == (100, 4)
    assert (heartbeat.previous_index, heartbeat.entries) == (104, ())
    assert rig.behind == []
    rig.deliver("b", Appended(4, 104))
    progress = rig.member.replication.progress["b"]
    assert (progress.match_index, progress.is_probing, progress.in_flight_bytes) == (104, False, 0)


def test_a_follower_that_lacks_the_base_is_behind_after_one_more_probe() -> None:
    rig = Rig(recovered(3, 3, 3, base=(100, 3), commit=100))
    rig.lead()
    rig.sync()
    rig.deliver("b", Conflict(4, 103, 7))
    rig.sent.clear()
    rig.deliver("b", Conflict(4, 104, 7))  # to a heartbeat, before the probe was there
    assert rig.behind == []
    rig.sent.clear()
    rig.deliver("b", Conflict(4, 100, 7))
    assert rig.behind == ["b"]
    assert [append.entries for append in rig.take(Append, "b")] == [()]
    rig.deliver("b", Conflict(4, 100, 7))
    rig.run(1)
    assert rig.behind == ["b"], "said once"


def test_an_old_conflict_at_what_the_base_became_meanwhile_is_no_reason_for_a_snapshot() -> None:
    rig = Rig(recovered(3, 3, 3, base=(100, 3), commit=100))
    rig.lead()
    rig.sync()
    rig.deliver("c", Appended(4, 104))
    rig.deliver("b", Conflict(4, 103, 102))
    assert rig.take(Append, "b")[-2].previous_index == 101
    rig.member.rebase(104, 4)  # the probe has all that the checkpoint stands for now
    rig.deliver("b", Conflict(4, 104, 102))  # to a heartbeat before the probe
    assert rig.behind == []
    rig.deliver("b", Appended(4, 104))
    assert rig.member.replication.progress["b"].next_index == 105
    assert rig.behind == []


def test_a_follower_that_comes_back_to_a_log_at_rest_is_asked_before_it_is_behind() -> None:
    rig = Rig()
    rig.lead()
    rig.sync()
    for peer in ("b", "c"):
        rig.deliver(peer, Appended(1, 2))
    rig.member.rebase(2, 1)
    assert rig.log.last_index == rig.log.base_index
    for incarnation, answer in ((2, Appended(1, 2)), (3, Conflict(1, 2, 1))):
        rig.member.disconnected("b")
        rig.member.connected("b", incarnation)
        rig.sent.clear()
        rig.run(0.15)
        assert {append.previous_index for append in rig.take(Append, "b")} == {2}
        assert rig.behind == []
        rig.deliver("b", answer)
    assert rig.behind == ["b"]


# 11: the commit index


def test_a_commit_index_beyond_what_matches_commits_nothing_else() -> None:
    rig = Rig(recovered(1, 1, 1, 1))
    rig.follow(2, (2, 1), commit=5)
    rig.sync()
    assert rig.member.committed_index == 2


def test_a_follower_commits_what_its_own_disk_holds() -> None:
    rig = Rig()
    rig.follow(1, (1, 0), (1, batch(2)), commit=2)
    assert rig.member.committed_index == 1
    rig.sync()
    assert rig.member.committed_index == 2


# 6, 24, 26: elections


def test_a_node_that_hears_a_leader_denies_a_pre_vote() -> None:
    rig = Rig()
    rig.follow(1, (1, 0))
    rig.deliver("c", PreVoteRequest(1, 1, 0, 1))
    assert rig.take(PreVote) == []


def test_a_node_that_hears_nobody_grants_a_pre_vote_and_stays_in_its_term() -> None:
    rig = Rig()
    rig.deliver("c", PreVoteRequest(0, 1, 0, 7))
    assert rig.take(PreVote) == [PreVote(0, 7)]
    assert rig.member.term == 0


def test_a_log_that_lacks_entries_gets_no_pre_vote() -> None:
    rig = Rig(recovered(1, 2))
    rig.deliver("c", PreVoteRequest(2, 9, 1, 7))
    assert rig.take(PreVote) == []


def test_a_majority_of_pre_votes_begins_an_election() -> None:
    rig = Rig()
    rig.run(1.1)
    request = rig.take(PreVoteRequest, "b")[-1]
    assert rig.member.term == 0
    rig.deliver("b", PreVote(0, request.number - 1))
    assert rig.member.term == 0, "an answer to an earlier question"
    rig.deliver("b", PreVote(0, request.number))
    assert rig.member.term == 1


def test_an_old_term_is_told_the_new_one() -> None:  # 24
    rig = Rig(Recovered(term=5))
    rig.follow(3, (1, 0), (3, batch(2)))
    rig.deliver("b", VoteRequest(4, 9, 4))
    rig.deliver("b", PreVoteRequest(4, 9, 4, 1))
    assert rig.take(Term, "b") == [Term(5)] * 3
    assert rig.entries == []


def test_a_leader_without_a_majority_steps_down() -> None:
    rig = Rig()
    with library_clock(lambda: rig.world.now_s):
        rig.lead()
        rig.sync()
        rig.deliver("b", Appended(1, 2))
        rig.run(0.9)
        assert rig.member.is_leader
        rig.run(0.5)
        assert not rig.member.is_leader


def test_a_leader_that_slept_hears_its_followers_first() -> None:
    rig = Rig()
    with library_clock(lambda: rig.world.now_s):
        rig.lead()
        rig.sync()
        rig.deliver("b", Appended(1, 2))
        rig.host.pause(30)
        rig.run(30.01)
        assert rig.member.is_leader
        rig.run(1.5)
        assert not rig.member.is_leader


def test_leadership_goes_to_a_follower_that_has_everything() -> None:  # 26
    rig = Rig()
    rig.lead()
    rig.sync()
    assert not rig.member.hand_over("b")
    rig.deliver("b", Appended(1, 2))
    rig.sent.clear()
    assert rig.member.hand_over("b")
    assert rig.take(TimeoutNow, "b") == [TimeoutNow(1)]


def test_timeout_now_begins_an_election_although_the_leader_lives() -> None:
    rig = Rig()
    rig.follow(1, (1, 0))
    rig.deliver("c", TimeoutNow(1))
    assert rig.member.term == 1, "not from the leader"
    rig.deliver("b", TimeoutNow(1))
    assert rig.member.term == 2


def test_a_single_node_leads_and_commits_what_is_on_its_disk() -> None:
    rig = Rig(others=())
    rig.run()
    assert rig.member.is_leader
    assert rig.committed == 0
    rig.sync()
    assert rig.committed == 2
    rig.member.propose(batch(3))
    rig.run()
    assert rig.committed == 2
    rig.sync()
    assert rig.committed == 3


# Nonsense


@pytest.mark.parametrize(
    "command", [b"", b"\x00anything", b"\x01more", b"\x02members", b"\x03version", b"\x0f"]
)
def test_entries_that_the_library_would_unpickle_are_refused(command: bytes) -> None:
    rig = Rig()
    with pytest.raises(MalformedMessageError):
        rig.follow(1, (1, 0), (1, command))
    assert rig.entries == []
    assert rig.member.counters.malformed == 1


def test_a_second_leader_of_a_term_is_ignored() -> None:
    rig = Rig()
    rig.lead()
    rig.sync()
    rig.follow(1, (1, 0), (1, batch(2)))
    assert rig.member.is_leader
    assert [command for _, _, command in rig.entries] == [NO_OP]


def test_what_is_written_is_what_is_in_the_log() -> None:
    rig = Rig()
    rig.follow(1, (1, 0), (1, batch(2)), (1, batch(3)))
    written = [record for records, _ in rig.writes for record in records]
    assert Entry(2, 1, batch(2)) in written
    assert Entry(3, 1, batch(3)) in written
