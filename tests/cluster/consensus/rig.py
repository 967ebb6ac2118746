"""One member on surroundings that a test moves by hand."""

from collections.abc import Callable
from random import Random
from typing import Any

from cluster.consensus.engine import Role
from cluster.consensus.guards import ALL_GUARDS, Guards
from cluster.consensus.log import Log, Recovered
from cluster.consensus.member import ConsensusSettings, Member
from cluster.consensus.messages import Append, Appended, Message, Vote, decode, encode
from cluster.storage.errors import StorageError
from cluster.storage.records import Record
from tests.simulation.world import VirtualHost, World

Then = Callable[[StorageError | None], None]

# A batch as far as consensus looks at it: bytes that the library carries unseen.
BATCH = b"\x96 a batch "


def batch(number: int) -> bytes:
    return BATCH + str(number).encode()


class Rig:
    """A member of three, its disk and its network; `others` are played by the test."""

    def __init__(
        self,
        recovered: Recovered | None = None,
        *,
        guards: Guards = ALL_GUARDS,
        settings: ConsensusSettings | None = None,
        others: tuple[str, ...] = ("b", "c"),
    ) -> None:
        self.world = World(1)
        self.host = VirtualHost(self.world)
        self.sent: list[tuple[str, Message]] = []
        self.writes: list[tuple[list[Record], Then]] = []
        self.messages: list[tuple[str, Message]] = []
        self.behind: list[str] = []
        self.failure: Exception | None = None
        self.committed = 0
        self.log = Log(recovered or Recovered())
        self.member = Member(
            "a",
            others,
            self.log,
            host=self.host,
            random=Random(1),
            network=self,
            write=lambda records, then: self.writes.append((records, then)),
            observer=self,
            settings=settings or ConsensusSettings(),
            guards=guards,
        )
        self.member.start()

    # Its network

    def send(self, peer: str, payload: bytes) -> bool:
        self.sent.append((peer, decode(payload)))
        return True

    def is_connected(self, _peer: str) -> bool:
        return True

    # Its observer

    def on_committed(self) -> None:
        self.committed = self.member.committed_index

    def on_turn_taken(self) -> None:
        pass

    def on_leader(self) -> None:
        pass

    def on_behind(self, peer: str) -> None:
        self.behind.append(peer)

    def on_message(self, peer: str, message: Message) -> None:
        self.messages.append((peer, message))

    def on_failure(self, error: Exception) -> None:
        self.failure = error

    # What a test does

    def run(self, seconds: float = 0.0) -> None:
        until_s = self.world.now_s + seconds
        while self.world.step(until_s):
            pass

    def deliver(self, peer: str, message: Message) -> None:
        self.member.receive(peer, encode(message))
        self.run()

    def sync(self) -> None:
        """Let the disk come up with everything that was written so far."""
        while self.writes:
            _, then = self.writes.pop(0)
            then(None)
            self.run()

    def take(self, kind: type[Message], peer: str | None = None) -> list[Any]:
        """What was sent of a kind since the last call; everything else is forgotten."""
        taken = [one for to, one in self.sent if isinstance(one, kind) and peer in {None, to}]
        self.sent.clear()
        return taken

    def lead(self) -> None:
        """Win an election."""
        for peer in self.member.others:
            self.member.connected(peer, 1)
        self.member.elections.stand()
        self.sync()
        self.deliver(self.member.others[0], Vote(self.member.term))
        assert self.member.engine.role is Role.LEADER

    def follow(
        self,
        term: int,
        previous: tuple[int, int],
        *commands: tuple[int, bytes],
        commit: int = 0,
        leader: str = "b",
    ) -> None:
        """Get entries (term, command) from a leader."""
        self.deliver(leader, Append(term, previous[0], previous[1], commit, commands))

    def acknowledged(self, leader: str = "b") -> int | None:
        """The highest index that a leader was told to be on disk here, since the last call."""
        return max((one.match_index for one in self.take(Appended, leader)), default=None)

    @property
    def entries(self) -> list[tuple[int, int, bytes]]:
        """The log as (index, term, command), without its base."""
        log = self.log
        return [
            (index, log.entry_at(index)[2], log.entry_at(index)[0])
            for index in range(log.base_index + 1, log.last_index + 1)
        ]
