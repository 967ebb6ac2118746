"""A virtual network: connections between pairs of nodes that deliver late, stall, and break.

What `cluster.network` promises holds here: in order, nothing from a connection that was replaced,
`on_disconnected` once for each `on_connected`. With `hostile`, messages are also repeated and
overtake each other, so that consensus is shown not to lean on the transport for its safety.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Protocol

from tests.simulation.world import World

SILENCE_S = 3.0


class End(Protocol):
    """One node as the network sees it."""

    name: str
    is_up: bool
    incarnation: int

    def on_connected(self, peer: str) -> None: ...
    def on_disconnected(self, peer: str) -> None: ...
    def on_payload(self, peer: str, payload: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Conditions:
    """How the network is, in seconds and probabilities."""

    delay_min_s: float = 0.0002
    delay_max_s: float = 0.002
    slow_part: float = 0.01  # of messages that take ten times as long
    hostile_part: float = 0.0  # of messages that are repeated, or come at another time


class Connection:
    """Between two ends, until it breaks."""

    def __init__(self, network: "VirtualNetwork", first: End, second: End) -> None:
        self._network = network
        self.ends = {first.name: first, second.name: second}
        self.is_open = True
        self._told: set[str] = set()  # who knows of it
        self._next_s = {first.name: 0.0, second.name: 0.0}  # by receiver: not before the last one
        self._held: dict[str, list[bytes]] = {first.name: [], second.name: []}
        self._held_since_s: dict[str, float | None] = {first.name: None, second.name: None}

    def send(self, sender: str, payload: bytes) -> None:
        receiver = next(name for name in self.ends if name != sender)
        if self._network.is_cut(sender, receiver):
            self.hold(receiver, payload)
        else:
            self._pass_on(sender, receiver, payload)

    def hold(self, receiver: str, payload: bytes) -> None:
        """Keep what does not get through: TCP sends it again, until somebody gives up."""
        if self._held_since_s[receiver] is None:
            self._held_since_s[receiver] = self._network.world.now_s
            self._network.world.at(SILENCE_S, self._give_up, receiver)
        self._held[receiver].append(payload)

    def healed(self, sender: str, receiver: str) -> None:
        self._held_since_s[receiver] = None
        held, self._held[receiver] = self._held[receiver], []
        for payload in held:
            self._pass_on(sender, receiver, payload)

    def _give_up(self, receiver: str) -> None:
        since_s = self._held_since_s[receiver]
        if since_s is not None and self._network.world.now_s - since_s >= SILENCE_S - 0.01:
            self._network.break_connection(self)

    def _pass_on(self, sender: str, receiver: str, payload: bytes) -> None:
        network, world = self._network, self._network.world
        when_s = world.now_s + network.delay_s()
        if network.is_hostile():
            world.at(
                network.delay_s() * world.random.choice((1, 10, 100, 1000)),
                self._deliver,
                sender,
                receiver,
                payload,
            )
            if world.random.random() < 0.5:
                return  # it only comes at another time
        when_s = self._next_s[receiver] = max(when_s, self._next_s[receiver] + 1e-7)
        world.at(when_s - world.now_s, self._deliver, sender, receiver, payload)

    def _deliver(self, sender: str, receiver: str, payload: bytes) -> None:
        end = self.ends[receiver]
        if receiver in self._told and end.is_up:
            self._network.delivered += 1
            end.on_payload(sender, payload)

    def tell_connected(self) -> None:
        """Tell both ends that the connection is there; of an older one, that it is not."""
        if not self.is_open:
            return
        for name, peer in permutations(sorted(self.ends)):
            previous = self._network.current.get((name, peer))
            if previous is not None:
                previous.tell_broken(name)
            if self.ends[name].is_up:
                self._network.current[name, peer] = self
                self._told.add(name)
                self.ends[name].on_connected(peer)

    def tell_broken(self, name: str) -> None:
        """Tell one end that it is not: nothing of it arrives there any more."""
        if name in self._told:
            self._told.discard(name)
            peer = next(one for one in self.ends if one != name)
            del self._network.current[name, peer]
            if self.ends[name].is_up:
                self.ends[name].on_disconnected(peer)

    def knows(self, name: str) -> bool:
        return name in self._told


class VirtualNetwork:
    """All connections, and what is wrong with them."""

    def __init__(self, world: World, conditions: Conditions) -> None:
        self.world = world
        self.conditions = conditions
        self.delivered = 0
        self._ends: dict[str, End] = {}
        self._connections: dict[frozenset[str], Connection] = {}
        self.current: dict[tuple[str, str], Connection] = {}  # what (end, peer) was told of
        self._cuts: set[tuple[str, str]] = set()  # (sender, receiver)

    def add(self, end: End) -> None:
        for name in self._ends:
            self._dial(frozenset((name, end.name)))
        self._ends[end.name] = end

    def delay_s(self) -> float:
        conditions, random = self.conditions, self.world.random
        delay_s = random.uniform(conditions.delay_min_s, conditions.delay_max_s)
        return delay_s * 10 if random.random() < conditions.slow_part else delay_s

    def is_hostile(self) -> bool:
        part = self.conditions.hostile_part
        return part > 0 and self.world.random.random() < part

    def reaches(self, first: str, second: str) -> bool:
        """Whether two ends are up, and nothing is cut between them."""
        return (
            self._ends[first].is_up
            and self._ends[second].is_up
            and not self.is_cut(first, second)
            and not self.is_cut(second, first)
        )

    @property
    def is_whole(self) -> bool:
        """Whether every end is connected to every other."""
        count = len(self._ends)
        return not self._cuts and len(self.current) == count * (count - 1)

    def incarnation(self, name: str) -> int:
        return self._ends[name].incarnation

    def is_cut(self, sender: str, receiver: str) -> bool:
        return (sender, receiver) in self._cuts

    def send(self, sender: str, receiver: str, payload: bytes) -> bool:
        connection = self._connections.get(frozenset((sender, receiver)))
        if connection is None or not connection.knows(sender):
            return False
        connection.send(sender, payload)
        return True

    def cut(self, sender: str, receiver: str) -> None:
        self._cuts.add((sender, receiver))

    def isolate(self, *names: str) -> None:
        """Cut some off from all the others, not from each other."""
        for name in names:
            for other in self._ends:
                if other not in names:
                    self.cut(name, other)
                    self.cut(other, name)

    def heal(self, but: tuple[str, str] | None = None) -> None:
        """Mend what is cut, but perhaps one direction, and pass on what was held."""
        cuts = self._cuts - {but}
        self._cuts -= cuts
        for sender, receiver in sorted(cuts):
            connection = self._connections.get(frozenset((sender, receiver)))
            if connection is not None:
                connection.healed(sender, receiver)

    def break_between(self, first: str, second: str) -> None:
        connection = self._connections.get(frozenset((first, second)))
        if connection is not None:
            self.break_connection(connection)

    def break_connection(self, connection: Connection) -> None:
        """End a connection; its ends hear of it one after the other, and then dial again."""
        if not connection.is_open:
            return
        connection.is_open = False
        pair = frozenset(connection.ends)
        self._connections.pop(pair, None)
        for name in sorted(connection.ends):
            self.world.at(self.delay_s(), connection.tell_broken, name)

    def down(self, name: str) -> None:
        """A node's process has ended: its connections are reset."""
        for pair, connection in list(self._connections.items()):
            if name in pair:
                self.break_connection(connection)

    def _dial(self, pair: frozenset[str]) -> None:
        """Connect again and again, whenever there is no connection."""
        self.world.at(self.world.random.uniform(0.02, 0.2), self._dial, pair)
        if pair in self._connections:
            return
        first, second = (self._ends.get(name) for name in sorted(pair))
        if first is None or second is None or not (first.is_up and second.is_up):
            return
        if self.is_cut(first.name, second.name) or self.is_cut(second.name, first.name):
            return
        connection = self._connections[pair] = Connection(self, first, second)
        self.world.at(self.delay_s(), connection.tell_connected)
