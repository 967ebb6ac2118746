"""A real node, from the replica down to the bytes of its journal, on virtual surroundings."""

from collections.abc import Sequence
from random import Random
from typing import Protocol

from cluster.consensus.guards import Guards
from cluster.consensus.log import Log, Recovered
from cluster.consensus.messages import MalformedMessageError
from cluster.recovery import align
from cluster.replica import Replica, ReplicaSettings
from cluster.storage.errors import StorageError
from cluster.storage.journal import JournalFiles, JournalSettings
from cluster.storage.records import Identity, Incarnation, Record
from state import Applied, StateMachine
from tests.simulation.disk import VirtualDirectory
from tests.simulation.network import VirtualNetwork
from tests.simulation.store import Platter, VirtualStore
from tests.simulation.world import VirtualHost, World

JOURNAL = JournalSettings(segment_bytes=16 * 1024)


class Watcher(Protocol):
    """Who looks at what nodes do."""

    def on_written(self, node: "SimNode", records: Sequence[Record]) -> None: ...
    def on_applied(self, node: "SimNode", applied: Applied) -> None: ...
    def on_leader(self, node: "SimNode") -> None: ...
    def on_started(self, node: "SimNode") -> None: ...
    def on_failure(self, node: "SimNode", error: Exception) -> None: ...


class DiskSpeed:
    """How long a fsync takes, in seconds."""

    def __init__(self, usual_s: float, slow_s: float, slow_part: float) -> None:
        self.usual_s = usual_s
        self.slow_s = slow_s
        self.slow_part = slow_part

    def draw(self, random: Random) -> float:
        if random.random() < self.slow_part:
            return random.uniform(self.usual_s, self.slow_s)
        return random.uniform(self.usual_s / 2, self.usual_s * 2)


class SimNode:
    """One node through all its lives."""

    def __init__(
        self,
        name: str,
        others: Sequence[str],
        world: World,
        network: VirtualNetwork,
        watcher: Watcher,
        *,
        settings: ReplicaSettings,
        guards: Guards,
        speed: DiskSpeed,
        skew_ms: int,
    ) -> None:
        self.name = name
        self.others = tuple(others)
        self.world = world
        self.network = network
        self.watcher = watcher
        self.settings = settings
        self.guards = guards
        self.speed = speed
        self.skew_ms = skew_ms
        self.directory = VirtualDirectory()
        self.platter = Platter()
        self.is_up = False
        self.lives = 0
        self.incarnation = 0
        self.replica: Replica | None = None
        self.host: VirtualHost | None = None
        self._journal: JournalFiles | None = None
        self._waiting: list[tuple[list[Record], object]] = []
        self._is_writing = False
        self._hangs_until_s = 0.0

    # Life and death

    def start(self) -> None:
        """Begin a life with what the disks hold."""
        assert not self.is_up
        identity = Identity("simulation", self.name)
        journal, found = JournalFiles.open(self.directory, identity, JOURNAL)
        recovered = Recovered(
            found.base_index,
            found.base_term,
            found.entries,
            found.term,
            found.voted_for,
            found.commit_index,
        )
        loaded = self.platter.load()
        machine, checkpoint = StateMachine(), None
        if loaded is not None:
            machine, index, term = loaded
            checkpoint = (index, term)
        recovered, records = align(recovered, checkpoint)
        self.host = host = VirtualHost(self.world)
        self.incarnation = max(found.incarnation + 1, host.wall_ms(self.skew_ms))
        journal.append([*records, Incarnation(self.incarnation)])
        journal.sync()
        self._journal = journal
        self._waiting = []
        self._is_writing = False
        self.lives += 1
        self.is_up = True
        self.replica = Replica(
            self.name,
            self.others,
            self.incarnation,
            Log(recovered),
            machine,
            host=host,
            random=Random(self.world.random.random()),
            wall_ms=lambda: host.wall_ms(self.skew_ms),
            network=self,
            write=self._write,
            store=VirtualStore(self.world, host, self.platter),
            listener=self,
            settings=self.settings,
            guards=self.guards,
        )
        self.watcher.on_started(self)
        self.replica.start()

    def kill(self) -> None:
        """End the process: what was written stays."""
        self._die()
        self.directory.kill()

    def lose_power(self) -> None:
        """End the machine: what was not synced may be lost."""
        self._die()
        self.directory.power_loss(self.world.random)

    def pause(self, pause_s: float) -> None:
        if self.host is not None and self.is_up:
            self.host.pause(pause_s)

    def hang(self, hang_s: float) -> None:
        """Let its disk answer nothing for so long; it outlives the process."""
        self._hangs_until_s = self.world.now_s + hang_s

    def _die(self) -> None:
        assert self.host is not None
        self.is_up = False
        self.host.die()
        self.replica = None
        self.network.down(self.name)

    # Its disk

    def _write(self, records: list[Record], then: object) -> None:
        self._waiting.append((records, then))
        if not self._is_writing:
            self._begin_write()

    def _begin_write(self) -> None:
        assert self.host is not None
        assert self._journal is not None
        waiting, self._waiting = self._waiting, []
        self._is_writing = True
        try:
            self._journal.append([record for records, _ in waiting for record in records])
        except StorageError as error:
            self.host.call_soon(self._answer, waiting, error)
            return
        takes_s = self.speed.draw(self.world.random)
        takes_s = max(takes_s, self._hangs_until_s - self.world.now_s)
        self.host.call_later(takes_s, self._sync, waiting)

    def _sync(self, waiting: list[tuple[list[Record], object]]) -> None:
        assert self._journal is not None
        error: StorageError | None = None
        try:
            self._journal.sync()
            self._journal.reclaim()
        except StorageError as failed:
            error = failed
        else:
            for records, _ in waiting:
                self.watcher.on_written(self, records)
        self._answer(waiting, error)

    def _answer(
        self, waiting: list[tuple[list[Record], object]], error: StorageError | None
    ) -> None:
        self._is_writing = False
        if self._waiting and error is None:
            self._begin_write()
        for _, then in waiting:
            then(error)  # type: ignore[operator]

    # Its network: as the replica's, and as an end

    def send(self, peer: str, payload: bytes) -> bool:
        return self.network.send(self.name, peer, payload)

    def is_connected(self, peer: str) -> bool:
        return (self.name, peer) in self.network.current

    def on_connected(self, peer: str) -> None:
        incarnation = self.network.incarnation(peer)
        self._run(lambda replica: replica.connected(peer, incarnation))

    def on_disconnected(self, peer: str) -> None:
        self._run(lambda replica: replica.disconnected(peer))

    def on_payload(self, peer: str, payload: bytes) -> None:
        self._run(lambda replica: self._receive(replica, peer, payload))

    def _receive(self, replica: Replica, peer: str, payload: bytes) -> None:
        try:
            replica.receive(peer, payload)
        except MalformedMessageError as error:
            raise AssertionError(f"{peer} sent {self.name} nonsense: {error}") from error

    def _run(self, action: object) -> None:
        replica, host = self.replica, self.host
        if replica is not None and host is not None:
            host.run(action, replica)  # type: ignore[arg-type]

    # What its replica tells

    def on_applied(self, applied: Applied) -> None:
        self.watcher.on_applied(self, applied)

    def on_leader(self, _leader: str | None) -> None:
        self.watcher.on_leader(self)

    def on_installed(self) -> None:
        pass

    def on_failure(self, error: Exception) -> None:
        self.watcher.on_failure(self, error)
