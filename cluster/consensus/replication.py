"""A leader's sending: how far each follower's copy is known to go, and what to send it next.

Ours and not the library's, which pulls its position back with each acknowledgement, cuts large
entries into pieces that it cannot put together again, and copies the rest of the log for each
message (ENGINE 1b, 5, 15, 23). The states are those of etcd's raft: a follower is *probed* until it
is known where its log agrees with ours, then entries are *pipelined* without waiting, within a
window; one whose next entry is no longer in the log needs a *snapshot*.
"""

from collections import deque
from collections.abc import Callable, Iterable

from cluster.consensus.host import Host, Network
from cluster.consensus.log import Log, LogEntry
from cluster.consensus.messages import Append, encode


class Progress:
    """What is known of one follower's log."""

    __slots__ = (
        "commit_told",
        "in_flight",
        "in_flight_bytes",
        "is_connected",
        "is_probing",
        "match_index",
        "needs_snapshot",
        "next_index",
        "probed_index",
        "sent_s",
    )

    def __init__(self, next_index: int, *, is_connected: bool) -> None:
        self.is_connected = is_connected
        self.begin(next_index)

    def begin(self, next_index: int) -> None:
        """Know nothing of its log: a new term, whose first guess is `next_index`."""
        self.match_index = 0  # its disk holds our log up to here; 0: not known yet
        self.next_index = next_index  # invariant: > match_index
        self.sent_s = float("-inf")
        self.restart()

    def restart(self) -> None:
        """Begin again from what is certain."""
        if self.match_index:
            self.next_index = self.match_index + 1
        self.is_probing = True
        self.needs_snapshot = False
        self.probed_index = 0  # before the entries of the probe on its way
        self.commit_told = 0
        self.in_flight: deque[tuple[int, int]] = deque()  # last index and bytes of each message
        self.in_flight_bytes = 0


class Replication:
    """Keeps the followers' logs equal to the leader's."""

    def __init__(
        self,
        log: Log,
        peers: Iterable[str],
        host: Host,
        network: Network,
        *,
        message_bytes: int,
        window_bytes: int,
        on_behind: Callable[[str], None],
    ) -> None:
        """`on_behind` is called for a follower whose next entry is not in the log any more."""
        self._log = log
        self._host = host
        self._network = network
        self._message_bytes = message_bytes
        self._window_bytes = window_bytes
        self._on_behind = on_behind
        self.progress = {peer: Progress(1, is_connected=False) for peer in peers}
        self._term = 0
        self._commit_index = 0
        self._is_leading = False
        self._encoded: tuple[tuple[int, int, int, int], bytes] = ((0, 0, 0, 0), b"")

    @property
    def reaches_majority(self) -> bool:
        """Whether enough members are connected to commit something."""
        connected = sum(one.is_connected for one in self.progress.values())
        return 2 * (1 + connected) > 1 + len(self.progress)

    def lead(self, term: int, commit_index: int) -> None:
        """Begin a term as its leader."""
        self._is_leading = True
        self._term = term
        self._commit_index = commit_index
        for progress in self.progress.values():
            self._begin(progress)  # the new leader's first entry is the first probe

    def end(self) -> None:
        """Lead no more."""
        self._is_leading = False

    def connected(self, peer: str, *, is_new: bool) -> None:
        """Begin to send. Of one that has a new life, nothing is known."""
        progress = self.progress[peer]
        progress.is_connected = True
        if is_new:
            self._begin(progress)
        else:
            progress.restart()
        if self._is_leading:
            self._pump(peer, progress)

    def disconnected(self, peer: str) -> None:
        progress = self.progress[peer]
        progress.is_connected = False
        progress.restart()

    def acknowledged(self, peer: str, match_index: int) -> None:
        """Take note that a follower's disk holds our log up to `match_index`."""
        progress = self.progress[peer]
        progress.match_index = max(progress.match_index, match_index)
        if progress.next_index <= progress.match_index:
            progress.next_index = progress.match_index + 1
        if progress.needs_snapshot and progress.match_index >= self._log.base_index:
            progress.needs_snapshot = False
        progress.is_probing = False
        in_flight = progress.in_flight
        while in_flight and in_flight[0][0] <= match_index:
            progress.in_flight_bytes -= in_flight.popleft()[1]

    def conflicted(self, peer: str, previous_index: int, next_index: int) -> None:
        """Take note that a follower does not hold the entry before what it was sent."""
        progress = self.progress[peer]
        if progress.needs_snapshot or previous_index <= progress.match_index:
            return
        asked = (progress.next_index - 1, progress.probed_index)
        if progress.is_probing and previous_index not in asked:
            return  # an answer to what was sent before the last restart
        base_index = self._log.base_index
        # Else it is about a time before the probe, which may have brought what was lacking.
        is_latest = previous_index == progress.probed_index or not progress.in_flight
        lacks_base = previous_index <= base_index and is_latest
        progress.restart()
        progress.next_index = max(progress.match_index + 1, min(next_index, previous_index))
        if not lacks_base:
            # It names what it knows to be committed, and may well hold more: so before a snapshot
            # is made for it, it is asked for the base. A conflict there leaves no doubt.
            progress.next_index = max(progress.next_index, base_index + 1)
        self._pump(peer, progress)
        self._heartbeat(peer, progress)

    def pump(self, commit_index: int) -> None:
        """Send what there is to send."""
        if not self._is_leading:
            return
        self._commit_index = commit_index
        for peer, progress in self.progress.items():
            if progress.is_connected:
                self._pump(peer, progress)

    @property
    def has_commit_to_tell(self) -> bool:
        """Whether a follower that can be reached does not know the commit index."""
        return any(
            progress.is_connected and progress.commit_told < self._commit_index
            for progress in self.progress.values()
        )

    def heartbeat(self, commit_index: int, quiet_s: float) -> None:
        """Send a sign of life to whom nothing was sent for `quiet_s`."""
        self._commit_index = commit_index
        before_s = self._host.time() - quiet_s
        for peer, progress in self.progress.items():
            if progress.is_connected and progress.sent_s <= before_s:
                self._heartbeat(peer, progress)

    def tell_commit(self) -> None:
        """Tell the commit index to those whom no entries have carried it to."""
        if not self._is_leading:
            return
        for peer, progress in self.progress.items():
            if progress.is_connected and progress.commit_told < self._commit_index:
                self._heartbeat(peer, progress)

    def _begin(self, progress: Progress) -> None:
        """Know nothing of a follower. In a log at rest, it is asked for the base by a heartbeat."""
        progress.begin(max(self._log.last_index, self._log.base_index + 1))

    def _pump(self, peer: str, progress: Progress) -> None:
        log = self._log
        while progress.next_index <= log.last_index and not progress.needs_snapshot:
            if progress.next_index <= log.base_index:
                progress.needs_snapshot = True
                self._on_behind(peer)
                return
            if progress.in_flight and (
                progress.is_probing or progress.in_flight_bytes >= self._window_bytes
            ):
                return
            entries = log.run_from(progress.next_index, self._message_bytes)
            payload = self._encode(progress.next_index - 1, entries)
            progress.probed_index = progress.next_index - 1
            progress.next_index = entries[-1][1] + 1
            progress.in_flight.append((entries[-1][1], len(payload)))
            progress.in_flight_bytes += len(payload)
            self._send(peer, progress, payload)

    def _heartbeat(self, peer: str, progress: Progress) -> None:
        """Send no entries, but the commit index, and the question whether the logs agree."""
        log = self._log
        previous_index = max(progress.next_index - 1, log.base_index)
        self._send(peer, progress, self._encode(previous_index, []))

    def _encode(self, previous_index: int, entries: list[LogEntry]) -> bytes:
        """The bytes of a message; followers that need the same share them."""
        last_index = entries[-1][1] if entries else previous_index
        key = (self._term, previous_index, last_index, self._commit_index)
        if self._encoded[0] != key:
            previous_term = self._log.term_at(previous_index)
            if previous_term is None:
                raise ValueError(f"the entry at {previous_index} is not in the log")
            content = tuple([(entry[2], entry[0]) for entry in entries])
            message = Append(self._term, previous_index, previous_term, self._commit_index, content)
            self._encoded = (key, encode(message))
        return self._encoded[1]

    def _send(self, peer: str, progress: Progress, payload: bytes) -> None:
        progress.sent_s = self._host.time()
        progress.commit_told = self._commit_index
        self._network.send(peer, payload)
