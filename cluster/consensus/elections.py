"""When to stand for election: timers, pre-votes, and who has voted.

The library elects; this decides when it may (ENGINE 6, 7, 24, 26). A node that hears no leader asks
first whether a majority would vote for it (pre-vote, Ongaro's thesis, 9.6), so one that was cut off
comes back without disturbing anybody. Those who hear a leader say no.
"""

from collections.abc import Callable
from random import Random

from cluster.consensus.engine import Engine, Role
from cluster.consensus.guards import Guards
from cluster.consensus.host import Host, Timer
from cluster.consensus.log import Log
from cluster.consensus.messages import Message, PreVote, PreVoteRequest, Term

_SLOW_DISK_FACTOR = 5  # how much more patience than the usual a slow disk may cost


class Elections:
    """The patience of one node, and its standing for election."""

    def __init__(
        self,
        node_id: str,
        others: tuple[str, ...],
        engine: Engine,
        log: Log,
        host: Host,
        random: Random,
        *,
        timeout_s: tuple[float, float],
        guards: Guards,
        send: Callable[[str, Message], object],
        after_election: Callable[[], None],
        may_promise: Callable[[], bool],
    ) -> None:
        """`timeout_s` is the range of how long a leader may be silent.

        A node that may not promise, because its disk hangs, neither stands nor agrees.
        """
        self._node_id = node_id
        self._others = others
        self._engine = engine
        self._log = log
        self._host = host
        self._random = random
        self._timeout_min_s, self._timeout_max_s = timeout_s
        self._guards = guards
        self._send = send
        self._after_election = after_election
        self._may_promise = may_promise
        self._timer: Timer | None = None
        self._timer_s = 0.0  # when it is to ring
        self._deadline_s = 0.0
        self._patience_s = self._timeout_max_s
        self._heard_s = float("-inf")  # when a leader of the current term was heard last
        self._promised_s = 0.0  # when it last voted, perhaps for itself
        self._was_excused = False
        self._number = 0  # of the round of pre-votes
        self._agreeing: set[str] = set()
        self._voters: set[str] = set()
        self._voters_term = 0
        self.elections = 0  # begun by this node since it started

    @property
    def _majority(self) -> int:
        return (len(self._others) + 1) // 2 + 1

    def start(self) -> None:
        """Begin to wait for a leader; a node without others need not."""
        self._renew_patience()
        if self._others:
            self._arm()
        else:
            self.stand()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def heard(self) -> None:
        """Take note of a sign of life of the current term's leader."""
        self._was_excused = False
        self._heard_s = self._host.time()
        self._deadline_s = self._heard_s + self._patience_s

    def voted(self) -> None:
        """Give the candidate that was voted for its time."""
        self._renew_patience()
        self._promised_s = self._host.time()

    def promised(self) -> None:
        """Take note that the disk has a vote, which leaves now.

        About as much more time is given as that took: the others' disks may be as slow as this one.
        """
        self._renew_patience()
        took_s = self._host.time() - self._promised_s
        self._deadline_s += min(took_s, self._timeout_max_s * _SLOW_DISK_FACTOR)

    def stand(self) -> None:
        """Begin an election now."""
        self._number += 1  # answers to an earlier question count no more
        self._agreeing.clear()
        self._renew_patience()
        if not self._may_promise():
            return
        self.elections += 1
        self._promised_s = self._host.time()
        self._engine.elect()
        self._after_election()

    def asked(self, peer: str, message: PreVoteRequest) -> None:
        """Answer a pre-vote: yes, if an election would be won fairly, and there is no leader."""
        engine, log = self._engine, self._log
        if message.term < engine.term:
            if self._guards.old_terms_are_answered:
                self._send(peer, Term(engine.term))
            return
        if message.term > engine.term and not self._guards.old_terms_are_answered:
            return
        engine.observe_term(message.term)
        is_behind = (message.last_term, message.last_index) < (log.last_term, log.last_index)
        hears_leader = self._host.time() - self._heard_s < self._timeout_min_s
        is_free = engine.role is not Role.LEADER and not hears_leader and self._may_promise()
        if is_free and not is_behind:
            self._send(peer, PreVote(engine.term, message.number))

    def agreed(self, peer: str, message: PreVote) -> None:
        """Count a pre-vote; with a majority, begin an election."""
        if (
            message.number != self._number
            or message.term != self._engine.term
            or not self._agreeing
            or self._engine.role is Role.LEADER
        ):
            return
        self._agreeing.add(peer)
        if len(self._agreeing) >= self._majority:
            self.stand()

    def is_first_vote(self, peer: str, term: int) -> bool:
        """Whether a member's vote in this term has not been counted yet."""
        if not self._guards.one_vote_a_member:
            return True
        if term != self._voters_term:
            self._voters_term = term
            self._voters.clear()
        if peer in self._voters:
            return False
        self._voters.add(peer)
        return True

    def _renew_patience(self) -> None:
        self._patience_s = self._random.uniform(self._timeout_min_s, self._timeout_max_s)
        self._deadline_s = self._host.time() + self._patience_s

    def _arm(self) -> None:
        # Not longer than the usual, because the deadline may come nearer again.
        delay_s = min(max(self._deadline_s - self._host.time(), 0.0), self._timeout_max_s)
        self._timer_s = self._host.time() + delay_s
        self._timer = self._host.call_later(delay_s, self._ring)

    def _ring(self) -> None:
        now_s = self._host.time()
        if self._engine.role is Role.LEADER:
            self._renew_patience()
        elif now_s >= self._deadline_s:
            has_slept = now_s - self._timer_s > self._timeout_min_s / 4
            if has_slept and not self._was_excused:
                # What the leader said meanwhile is still to be read. One that sleeps all the time
                # has no other moment.
                self._was_excused = True
                self._renew_patience()
            else:
                self._was_excused = False
                self._ask()
        if self._timer is not None:
            self._arm()

    def _ask(self) -> None:
        self._renew_patience()
        is_on_disk = self._log.durable_mark >= self._log.term_mark
        if not (self._may_promise() and is_on_disk):
            return  # an election is under way, as far as this disk lets it
        if not self._guards.pre_vote:
            self.stand()
            return
        self._number += 1
        self._agreeing = {self._node_id}
        log = self._log
        for peer in self._others:
            message = PreVoteRequest(self._engine.term, log.last_index, log.last_term, self._number)
            self._send(peer, message)
