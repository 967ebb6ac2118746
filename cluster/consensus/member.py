"""One member of the cluster: what goes in, what goes out, and what must be on disk before it does.

A `Member` is moved by three things: a message (`receive`), the disk (a write became durable), and
time. It does nothing by itself and knows no sockets, files or threads. After whatever moved it, it
takes its *turn*: the engine ticks, entries leave for the followers, and after them the records
leave for the disk, so that the leader's fsync and the way to the followers overlap. Promises (acks,
votes, results) leave when the disk has what they speak of.

The guard against the library's handling of `append_entries` (ENGINE 1, 2, 10, 11) is `_follow`: the
library never sees an entry that the log holds already, and never a commit index beyond what is
known to be the leader's.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from cluster.consensus.elections import Elections
from cluster.consensus.engine import Engine, Role, check_command
from cluster.consensus.guards import ALL_GUARDS, Guards
from cluster.consensus.host import Host, Network, Timer, Write
from cluster.consensus.log import Log
from cluster.consensus.messages import (
    Append,
    Appended,
    Conflict,
    MalformedMessageError,
    Message,
    PreVote,
    PreVoteRequest,
    Term,
    TimeoutNow,
    Vote,
    VoteRequest,
    decode,
    encode,
)
from cluster.consensus.replication import Replication
from cluster.storage.errors import StorageError

_log = logging.getLogger(__name__)

MIB = 1 << 20


class DivergedError(Exception):
    """A leader contradicts what is committed here: nothing may be served any more."""


@dataclass(frozen=True, slots=True)
class ConsensusSettings:
    """Times and sizes of consensus."""

    heartbeat_ms: int = 100  # a tenth of the shortest election timeout or less
    # Above the longest pause of a loaded node, a collector's or a growing table's (0.3 s).
    election_timeout_min_ms: int = 500
    election_timeout_max_ms: int = 1000
    quorum_timeout_ms: int = 1000  # how long a leader believes in itself without a majority
    # How long it does if its own disk has something to write and answers nothing. Far above what a
    # busy disk takes: another leader's may be as slow.
    disk_timeout_ms: int = 3000
    message_bytes: int = MIB  # entries of one message, if more than one
    window_bytes: int = 16 * MIB  # entries on their way to one follower


class Observer(Protocol):
    """Who is told what became of it. None of these may raise."""

    def on_committed(self) -> None:
        """More is committed, see `committed_index`; what is proposed now leaves at once."""

    def on_turn_taken(self) -> None:
        """What was to be sent is on its way: there is time to apply what is committed."""

    def on_leader(self) -> None:
        """The role, the term or the known leader has changed."""

    def on_behind(self, peer: str) -> None:
        """A follower needs what is not in the log any more: a snapshot."""

    def on_message(self, peer: str, message: Message) -> None:
        """A message that is not about consensus."""

    def on_failure(self, error: Exception) -> None:
        """This node can go on no more."""


@dataclass(slots=True)
class Counters:
    """What happened so far."""

    malformed: int = 0
    stale: int = 0  # messages of an older term, or to a role that is over
    turns: int = 0


class Member:
    """Keeps one node's log in agreement with the others'."""

    def __init__(
        self,
        node_id: str,
        others: Sequence[str],
        log: Log,
        *,
        host: Host,
        random: Random,
        network: Network,
        write: Write,
        observer: Observer,
        settings: ConsensusSettings,
        guards: Guards = ALL_GUARDS,
    ) -> None:
        self.node_id = node_id
        self.others = tuple(sorted(others))
        self.log = log
        self.counters = Counters()
        self._host = host
        self._network = network
        self._write = write
        self._observer = observer
        self._guards = guards
        self._heartbeat_s = settings.heartbeat_ms / 1000
        quorum_timeout_s = settings.quorum_timeout_ms / 1000
        self._sleep_s = quorum_timeout_s / 2  # not having ticked for longer is having slept
        self.engine = Engine(
            node_id,
            self.others,
            log,
            quorum_timeout_s=quorum_timeout_s if guards.check_quorum else 1e9,
            send_vote_request=self._send_vote_request,
            send_vote=self._send_vote,
        )
        self.elections = Elections(
            node_id,
            self.others,
            self.engine,
            log,
            host,
            random,
            timeout_s=(
                settings.election_timeout_min_ms / 1000,
                settings.election_timeout_max_ms / 1000,
            ),
            guards=guards,
            send=self.send,
            after_election=self.turn,
            may_promise=lambda: not self.disk_hangs,
        )
        self.replication = Replication(
            log,
            self.others,
            host,
            network,
            message_bytes=settings.message_bytes,
            window_bytes=settings.window_bytes,
            on_behind=observer.on_behind,
        )
        # invariant: <= log.durable_index, so a checkpoint of what was applied never outruns the log
        self.committed_index = min(self.engine.commit_index, log.durable_index)
        # What the leader has said to be committed, which may be far ahead of this node.
        self.heard_index = 0
        self._disk_timeout_s = settings.disk_timeout_ms / 1000
        self._disk_answered_s = 0.0  # or was given something when it had nothing to do
        self._stopped = False
        self._turn_is_due = False
        self._commit_turn_is_due = False
        self._is_in_turn = False
        self._has_proposals = False
        self._needs_tick = True  # whether a leader's tick would do something
        self._ticked_s = host.time()
        self._beat_s = 0.0  # when the next heartbeat was armed
        self._is_excused = False
        self._known: tuple[Role, int, str | None] = (Role.FOLLOWER, self.engine.term, None)
        self._heartbeat_timer: Timer | None = None
        # Promises: (mark, term, peer, message).
        self._outbox: deque[tuple[int, int, str, Message]] = deque()
        # What this follower has verified of its leader's log: (leader, term, index).
        self._verified: tuple[str, int, int] | None = None
        self._acked_index = 0
        self._acked_s = float("-inf")
        self._credited: dict[str, int] = {}  # of this term, as a leader
        self._incarnations: dict[str, int] = {}
        self._handlers: dict[type[Message], Callable[..., None]] = {
            Append: self._follow,
            Appended: self._appended,
            Conflict: self._conflict,
            VoteRequest: self._vote_request,
            Vote: self._vote,
            PreVoteRequest: self.elections.asked,
            PreVote: self.elections.agreed,
            TimeoutNow: self._timeout_now,
            Term: self._old_term,
        }

    # What is known

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads."""
        return self.engine.role is Role.LEADER and not self._stopped

    @property
    def term(self) -> int:
        return self.engine.term

    @property
    def leader(self) -> str | None:
        """The leader of the current term, if it is known; it may be this node."""
        return self.engine.leader

    @property
    def disk_hangs(self) -> bool:
        """Whether the disk has something to write and has answered nothing for long."""
        waited_s = self._host.time() - self._disk_answered_s
        return self.log.awaits_disk and waited_s >= self._disk_timeout_s

    # What moves it

    def start(self) -> None:
        """Begin to take part."""
        self.elections.start()

    def stop(self) -> None:
        """Take part no more: nothing moves it after this."""
        self._stopped = True
        self.elections.stop()
        if self._heartbeat_timer is not None:
            self._heartbeat_timer.cancel()

    def connected(self, peer: str, incarnation: int) -> None:
        """Talk to a peer, in the life that it says it lives."""
        is_new = self._incarnations.get(peer, 0) != incarnation
        self._incarnations[peer] = incarnation
        # Its disk may be another than that of which something was known.
        self.replication.connected(peer, is_new=is_new)

    def disconnected(self, peer: str) -> None:
        self.replication.disconnected(peer)

    def receive(self, peer: str, payload: bytes | memoryview) -> None:
        """Take a message. Raises `MalformedMessageError`, having done nothing."""
        if self._stopped:
            return
        try:
            message = decode(payload)
            if isinstance(message, Append):
                _check_commands(message)
        except MalformedMessageError:
            self.counters.malformed += 1
            raise
        handler = self._handlers.get(type(message))
        try:
            if handler is None:
                self._observer.on_message(peer, message)
                return
            handler(peer, message)
            self._tell_leader()
        except MalformedMessageError:
            self.counters.malformed += 1
            raise
        except Exception as error:  # noqa: BLE001 - see `turn`
            self._fail(error)
        self._need_turn()

    def propose(self, command: bytes) -> bool:
        """Let the next turn append an entry, a batch. False if this node does not lead."""
        if self.engine.role is not Role.LEADER:
            return False
        self.engine.propose(command)
        self._has_proposals = self._needs_tick = True
        if not self._is_in_turn:
            self._need_turn()
        return True

    def hurry(self) -> None:
        """Take the turn now, if something was proposed."""
        if self._has_proposals and not self._is_in_turn:
            self.turn()

    def rebase(self, index: int, term: int) -> None:
        """Let the checkpoint on disk stand for the log up to `index`.

        Beyond what is committed here, it is a leader's snapshot, which the state was loaded from.
        """
        log = self.log
        if index <= log.base_index:
            return
        if index <= self.engine.commit_index and log.term_at(index) != term:
            raise DivergedError(
                f"entry {index} is committed in term {log.term_at(index)}, "
                f"but the checkpoint has it in term {term}"
            )
        log.rebase(index, term)
        self.committed_index = max(self.committed_index, index)
        leader = self.engine.leader
        if leader is not None and leader != self.node_id:
            # As if by a heartbeat, the engine learns that this much is committed.
            self.engine.append(
                leader, self.engine.term, (log.last_index, log.last_term), (), self.committed_index
            )
        self._need_turn()

    def hand_over(self, peer: str) -> bool:
        """Let a follower stand for election now. False if it lacks entries, or does not hear."""
        progress = self.replication.progress[peer]
        if not self.is_leader or not progress.is_connected:
            return False
        if progress.match_index != self.log.last_index:
            return False
        return self.send(peer, TimeoutNow(self.term))

    def send(self, peer: str, message: Message) -> bool:
        """Send what promises nothing."""
        return self._network.send(peer, encode(message))

    # Its turn

    def need_turn(self) -> None:
        """Have a turn taken soon."""
        self._need_turn()

    def _need_turn(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            self._host.call_soon(self.turn)

    def turn(self) -> None:
        """Do what is to be done now."""
        self._turn_is_due = False
        if self._stopped:
            return
        self.counters.turns += 1
        self._is_in_turn = True
        try:
            if self.engine.role is Role.LEADER and self._needs_tick:
                self._tick()
            self._tell_leader()
            has_more = self._advance()
            if has_more:
                self._observer.on_committed()
            if self.engine.role is Role.LEADER:
                if self._has_proposals:
                    self._tick()
                self.replication.pump(self.engine.commit_index)
            if self.log.has_records:
                if not self.log.awaits_disk:
                    self._disk_answered_s = self._host.time()
                self._write(self.log.take_records(), self._written)
            self._release()
            if has_more:
                self._observer.on_turn_taken()
            if (
                self.engine.role is Role.LEADER
                and not self._commit_turn_is_due
                and self.replication.has_commit_to_tell
            ):
                # After what is due now: entries may have carried it by then.
                self._commit_turn_is_due = True
                self._host.call_soon(self._commit_turn)
        except Exception as error:  # noqa: BLE001 - nothing is certain after it, so nothing goes on
            self._fail(error)
        finally:
            self._is_in_turn = False

    def _commit_turn(self) -> None:
        self._commit_turn_is_due = False
        if self._stopped:
            return
        try:
            self.replication.tell_commit()
        except Exception as error:  # noqa: BLE001 - see `turn`
            self._fail(error)

    def _tick(self) -> None:
        if self._has_slept and not self._is_excused:
            self._is_excused = True
            for peer in self.others:
                self._credit(peer)
        self._ticked_s = self._host.time()
        self._needs_tick = self._has_proposals = False
        self.engine.tick()

    @property
    def _has_slept(self) -> bool:
        """Whether this leader slept itself: what was said meanwhile is still to be read."""
        return self._host.time() - self._ticked_s > self._sleep_s

    def _tell_leader(self) -> None:
        known = (self.engine.role, self.engine.term, self.engine.leader)
        if known == self._known:
            return
        was_leading = self._known[0] is Role.LEADER and self._known[1] == known[1]
        self._known = known
        if self.engine.role is Role.LEADER and not was_leading:
            self._credited.clear()
            self.replication.lead(self.engine.term, self.engine.commit_index)
            self._ticked_s = self._host.time()
            if self.others and self._heartbeat_timer is None:
                self._arm_heartbeat()
        elif self.engine.role is not Role.LEADER:
            self.replication.end()
            self.engine.tick()  # drops what was proposed and not appended
        self._observer.on_leader()

    def _advance(self) -> bool:
        """Move the committed index as far as this node's own disk goes, and say if it moved."""
        index = self.engine.commit_index
        if self._guards.own_copy_waits_for_disk:
            index = min(index, self.log.durable_index)
        if index <= self.committed_index:
            return False
        self.committed_index = index
        return True

    def _arm_heartbeat(self) -> None:
        self._beat_s = self._host.time()
        self._heartbeat_timer = self._host.call_later(self._heartbeat_s, self._beat)

    def _beat(self) -> None:
        self._heartbeat_timer = None
        if self._stopped:
            return
        self._needs_tick = True
        if self._host.time() - self._beat_s <= self._sleep_s:
            self._is_excused = False  # one that sleeps from beat to beat is excused once only
        if self.is_leader and self.others and self.disk_hangs and not self._has_slept:
            # Nothing commits without its own copy, and its followers would never know.
            _log.warning("%s leads no more: its disk does not answer", self.node_id)
            self.engine.resign()
        self.turn()  # also the check of the quorum
        if not self.is_leader:
            return
        try:
            self.replication.heartbeat(self.engine.commit_index, self._heartbeat_s / 2)
        except Exception as error:  # noqa: BLE001 - see `turn`
            self._fail(error)
            return
        self._arm_heartbeat()

    # The disk

    def _written(self, error: StorageError | None) -> None:
        if self._stopped:
            return
        if error is not None:
            self._fail(error)
            return
        self._disk_answered_s = self._host.time()
        self.log.written()
        if self.engine.role is Role.LEADER:
            if not self.others:
                self._needs_tick = True  # nobody will acknowledge: this copy is the majority
            for peer in self.others:
                if self.replication.progress[peer].match_index > self._credited.get(peer, 0):
                    self._credit(peer)
        self.turn()

    def _release(self) -> None:
        """Send the promises that the disk has come up with."""
        durable_mark = self.log.durable_mark
        if not self._guards.promises_wait_for_disk:
            durable_mark = self.log.mark
        outbox = self._outbox
        while outbox and outbox[0][0] <= durable_mark:
            _, term, peer, message = outbox.popleft()
            if term == self.engine.term:
                self.send(peer, message)
                self.elections.promised()
        self._acknowledge(is_due=False)

    def _acknowledge(self, *, is_due: bool) -> None:
        """Tell the leader how far this disk holds its log: if that is news, or if it is due."""
        if self._verified is None:
            return
        leader, term, index = self._verified
        if term != self.engine.term:
            self._verified = None
            return
        if self._guards.promises_wait_for_disk:
            if self.log.durable_mark < self.log.term_mark:
                return  # the term itself is not on disk
            index = min(index, self.log.durable_index)
        if index > self._acked_index or is_due:
            self._acked_index = index
            self._acked_s = self._host.time()
            self.send(leader, Appended(term, index))

    def _send_vote_request(self, peer: str, term: int, last_index: int, last_term: int) -> None:
        self._outbox.append((self.log.mark, term, peer, VoteRequest(term, last_index, last_term)))

    def _send_vote(self, peer: str, term: int) -> None:
        self._outbox.append((self.log.mark, term, peer, Vote(term)))
        self.elections.voted()

    def _fail(self, error: Exception) -> None:
        self.stop()
        self._observer.on_failure(error)

    # Messages, to a follower

    def _is_old(self, peer: str, term: int) -> bool:
        """Whether a message is of a term that is over; its sender is told."""
        if term >= self.engine.term:
            return False
        self.counters.stale += 1
        if self._guards.old_terms_are_answered:
            self.send(peer, Term(self.engine.term))
        return True

    def _follow(self, leader: str, message: Append) -> None:
        engine, log = self.engine, self.log
        if self._is_old(leader, message.term):
            return
        if message.term == engine.term and engine.role is Role.LEADER:
            self.counters.stale += 1  # there is one leader a term; whoever this is, it is not
            return
        engine.observe_term(message.term)
        self.elections.heard()
        self.heard_index = message.commit_index
        previous_index, previous_term = message.previous_index, message.previous_term
        entries = message.entries
        verified_index = previous_index + len(entries)
        if previous_index < log.base_index:
            # What is below cannot be compared any more, so no more of it is believed than was said.
            below = log.base_index - previous_index
            if below <= len(entries) and entries[below - 1][0] != log.base_term:
                raise DivergedError(
                    f"entry {log.base_index} is in a checkpoint in term {log.base_term}, "
                    f"but {leader} has it in term {entries[below - 1][0]}"
                )
            entries = entries[below:]
            previous_index, previous_term = log.base_index, log.base_term
        if log.term_at(previous_index) != previous_term:
            if previous_index <= self._floor:
                raise DivergedError(
                    f"entry {previous_index} is committed in term {log.term_at(previous_index)}, "
                    f"but {leader} has it in term {previous_term}"
                )
            engine.append(leader, message.term, (log.last_index, log.last_term), (), 0)
            self.send(leader, Conflict(message.term, previous_index, self._floor + 1))
            return
        new_from = 0
        if self._guards.matching_entries_stay:
            while new_from < len(entries) and (
                log.term_at(previous_index + 1 + new_from) == entries[new_from][0]
            ):
                new_from += 1
        commit_index = message.commit_index
        if self._guards.commit_stays_within_verified:
            commit_index = min(commit_index, verified_index)
        if new_from == len(entries) and self._guards.matching_entries_stay:
            previous = (log.last_index, log.last_term)
            engine.append(leader, message.term, previous, (), commit_index)
        else:
            first_index = previous_index + 1 + new_from
            if first_index <= self._floor and self._guards.matching_entries_stay:
                raise DivergedError(f"{leader} has another entry {first_index}, which is committed")
            previous = (first_index - 1, log.term_at(first_index - 1) or 0)
            new = [
                (command, index, term)
                for index, (term, command) in enumerate(entries[new_from:], first_index)
            ]
            engine.append(leader, message.term, previous, new, commit_index)
        if self._verified is None or self._verified[:2] != (leader, message.term):
            self._acked_index = 0
            self._acked_s = float("-inf")
            self._verified = (leader, message.term, verified_index)
        else:
            verified_index = max(verified_index, self._verified[2])
            self._verified = (leader, message.term, verified_index)
        # A sign of life, however slow the disk is; entries are acknowledged soon, as a rule.
        patience_s = self._heartbeat_s * (2 if entries else 0.5)
        if self._host.time() - self._acked_s >= patience_s:
            self._acknowledge(is_due=True)

    @property
    def _floor(self) -> int:
        """Up to here the log is committed, and will never change."""
        return max(self.engine.commit_index, self.log.base_index)

    def _timeout_now(self, leader: str, message: TimeoutNow) -> None:
        if message.term == self.engine.term and leader == self.engine.leader:
            self.elections.stand()

    # Messages, to a leader

    def _appended(self, follower: str, message: Appended) -> None:
        if message.term > self.engine.term:
            self.engine.observe_term(message.term)
            return
        if self.engine.role is not Role.LEADER or (
            message.term != self.engine.term and self._guards.acks_name_their_term
        ):
            self.counters.stale += 1
            return
        if message.match_index > self.log.last_index:
            self.counters.malformed += 1
            return
        self.replication.acknowledged(follower, message.match_index)
        self._credit(follower)

    def _credit(self, follower: str) -> None:
        """Let the engine count a follower's copies, but none that this node's own disk lacks."""
        match_index = self.replication.progress[follower].match_index
        if self._guards.own_copy_waits_for_disk:
            match_index = min(match_index, self.log.durable_index)
        self._credited[follower] = match_index
        self.engine.credit(follower, match_index)
        if match_index > self.engine.commit_index:
            self._needs_tick = True

    def _conflict(self, follower: str, message: Conflict) -> None:
        if message.term > self.engine.term:
            self.engine.observe_term(message.term)
        elif message.term == self.engine.term and self.engine.role is Role.LEADER:
            self._credit(follower)  # a sign of life
            self.replication.conflicted(follower, message.previous_index, message.next_index)
        else:
            self.counters.stale += 1

    # Messages, to anybody

    def _vote_request(self, candidate: str, message: VoteRequest) -> None:
        if self._is_old(candidate, message.term):
            return
        self.engine.receive_vote_request(
            candidate, message.term, message.last_index, message.last_term
        )

    def _vote(self, voter: str, message: Vote) -> None:
        if message.term == self.engine.term and self.elections.is_first_vote(voter, message.term):
            self.engine.receive_vote(voter, message.term)

    def _old_term(self, _peer: str, message: Term) -> None:
        self.engine.observe_term(message.term)


def _check_commands(message: Append) -> None:
    for _, command in message.entries:
        if not check_command(command):
            raise MalformedMessageError("an entry is nothing that a leader proposes")
