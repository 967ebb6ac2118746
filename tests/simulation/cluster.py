"""A whole virtual cluster with clients and faults, all of it decided by one seed.

outcome = simulate(seed)            # raises ViolationError, with the seed in its text
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from cluster.checkpoints import CheckpointSettings
from cluster.consensus.engine import library_clock
from cluster.consensus.guards import ALL_GUARDS, Guards
from cluster.consensus.member import ConsensusSettings
from cluster.queues import QueueSettings
from cluster.replica import ReplicaSettings
from cluster.storage.records import Record
from state import Applied, Result, encode
from tests.simulation.checks import Checks, ViolationError
from tests.simulation.clients import Worker, Writer, is_active, policies
from tests.simulation.network import Conditions, VirtualNetwork
from tests.simulation.node import DiskSpeed, SimNode
from tests.simulation.world import World

SETTLE_S = 60.0  # of virtual time, after the last fault, for everything to come back
STEPS_MAX = 3_000_000
WATCH_S = 0.25
LONELY_S = 4.5  # silence until a connection is given up, and the quorum's timeout
DISTURBED_S = 5.0  # after a node's sleep, until its workers' leases are safe again

LAN = Conditions()
WAN = Conditions(delay_min_s=0.02, delay_max_s=0.08, slow_part=0.005)
HOSTILE = Conditions(delay_max_s=0.004, slow_part=0.05, hostile_part=0.05)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed does."""

    node_count: int = 3
    conditions: Conditions = LAN
    fault_s: float = 10.0  # how long faults go on
    fault_every_s: float = 1.0
    faults: tuple[str, ...] = (
        "kill",
        "kill_leader",
        "power",
        "power_all",
        "isolate",
        "isolate_leader",
        "one_way",
        "break",
        "heal",
        "pause",
        "pause_leader",
        "hang",
        "hang_leader",
        "transfer",
    )
    isolation_s: tuple[float, float] = (0.5, 5)
    keeps_leases: bool = False  # whether workers that live must keep what they hold
    keeps_leader: bool = False  # whether nothing may unseat the first leader
    writers: int = 2
    workers: int = 3
    disk: tuple[float, float, float] = (0.0005, 0.05, 0.02)
    settings: ReplicaSettings = field(default_factory=ReplicaSettings)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened, for whoever wants to know that it was enough."""

    seed: int
    settled_s: float  # how long it took to come back
    steps: int
    virtual_s: float
    terms: int
    batches: int
    asked: int
    acknowledged: int
    reads: int
    acquired: int
    lives: int
    checkpoints: int
    installs: int
    faults: dict[str, int]


# What a random mixture of faults hardly ever leads to, by the last digit of a seed to the base 16.
_SLEEPING = Plan(fault_every_s=3, faults=("pause_leader",), keeps_leases=True, workers=6)
_CUT_OFF = Plan(fault_every_s=3, faults=("isolate_follower",), keeps_leader=True)
SPECIAL = {
    6: _SLEEPING,
    7: _CUT_OFF,
    14: _SLEEPING,
    15: replace(_CUT_OFF, node_count=5),
    # Nobody hears the leader for longer than it may believe in itself.
    11: Plan(fault_every_s=9, faults=("isolate_leader",), isolation_s=(5, 8)),
    # What a follower said of a leader's first term comes in its second.
    5: Plan(node_count=5, fault_every_s=4, faults=("come_back",), writers=1, workers=1),
    # Disks that take their time, and no power, again and again.
    12: Plan(fault_every_s=0.5, faults=("power_all", "power"), disk=(0.02, 0.4, 0.3)),
    # Leaders come and go, and messages of theirs come late, twice, and not in order.
    13: Plan(
        node_count=5,
        conditions=replace(HOSTILE, hostile_part=0.3),
        fault_every_s=0.3,
        faults=("kill_leader", "isolate_leader", "pause_leader", "transfer", "heal"),
    ),
}


def plan_of(seed: int) -> Plan:
    """The plan that a seed stands for."""
    random = World(seed).random
    conditions = random.choice((LAN, LAN, WAN, HOSTILE))
    settings = ReplicaSettings(
        consensus=ConsensusSettings(
            message_bytes=random.choice((300, 2_000, 100_000)),
            window_bytes=random.choice((1_000, 10_000, 1_000_000)),
        ),
        queue=QueueSettings(
            pipeline_from_operations=random.choice((1, 4, 512)),
            batch_operations=random.choice((3, 20, 1024)),
            resend_after_ms=random.choice((1_500, 3_000)),
        ),
        checkpoint=CheckpointSettings(
            interval_ms=random.choice((300, 1_000, 5_000)),
            log_bytes=random.choice((2_000, 50_000)),
            log_bytes_max=random.choice((20_000, 200_000)),
            piece_bytes=random.choice((300, 5_000)),
            chunk_bytes=random.choice((200, 5_000)),
            transfer_timeout_ms=5_000,
        ),
        lease_grace_ms=1_000,
        lease_grace_max_ms=4_000,
        uncommitted_bytes=random.choice((3_000, 1 << 20)),
    )
    special = SPECIAL.get(seed % 16)
    if special is not None:
        return replace(special, settings=replace(settings, lease_grace_ms=1_500))
    return Plan(
        node_count=random.choice((3, 3, 5)),
        conditions=conditions,
        fault_s=random.uniform(4, 10),
        fault_every_s=random.choice((0.2, 0.6, 1.5)),
        disk=random.choice(((0.0005, 0.05, 0.02), (0.005, 0.5, 0.05), (0.0002, 0.001, 0.01))),
        settings=settings,
    )


class Cluster:
    """Nodes, clients, and who harms them."""

    def __init__(self, seed: int, plan: Plan, guards: Guards) -> None:
        self.seed = seed
        self.plan = plan
        self.world = World(seed)
        self.network = VirtualNetwork(self.world, plan.conditions)
        names = [f"node-{number}" for number in range(plan.node_count)]
        self.checks = Checks(names)
        self.nodes: dict[str, SimNode] = {}
        for name in names:
            node = SimNode(
                name,
                [other for other in names if other != name],
                self.world,
                self.network,
                self,
                settings=plan.settings,
                guards=guards,
                speed=DiskSpeed(*plan.disk),
                skew_ms=self.world.random.choice((0, 0, -3_000, 3_000)),
            )
            self.nodes[name] = node
            self.network.add(node)
        self.faults: dict[str, int] = {}
        self.owners: dict[bytes, Worker] = {}
        self.epochs: dict[tuple[int, int], bytes] = {}
        self.created: set[int] = set()
        self.removals: set[int] = set()
        self.asked = 0
        self.acknowledged = 0
        self.reads = 0
        self.checkpoints = 0
        self.installs = 0
        self.writers = [Writer(self, f"writer-{number}") for number in range(plan.writers)]
        self.workers = [Worker(self, f"worker-{number}") for number in range(plan.workers)]
        self.is_faulty = True
        self.may_fail: set[str] = set()  # nodes that a script harms from inside
        self.failed: dict[str, Exception] = {}
        self.wrong: Exception | None = None  # what a client found
        self.settled_s = 0.0
        self.disturbed_until_s: dict[str, float] = {}
        self._lonely_since_s: dict[str, float] = {}
        self.world.at(WATCH_S, self.watch)

    # What nodes tell

    def on_started(self, node: SimNode) -> None:
        self.checks.started(node)

    def on_written(self, node: SimNode, records: Sequence[Record]) -> None:
        self.checks.disks.wrote(node.name, records)

    def on_applied(self, node: SimNode, applied: Applied) -> None:
        self.checks.applied(node, applied)

    def on_leader(self, node: SimNode) -> None:
        pass

    def on_failure(self, node: SimNode, error: Exception) -> None:
        if node.name in self.may_fail:
            self.failed[node.name] = error
            self.world.at(0.0, self.kill, node)  # its process ends, and is started again
            return
        raise ViolationError(f"{node.name} gave up: {error!r}") from error

    def watch(self) -> None:
        """Look now and then at what takes time to go wrong."""
        self.world.at(WATCH_S, self.watch)
        now_s = self.world.now_s
        for node in self.nodes.values():
            reached = sum(self.network.reaches(node.name, other) for other in node.others)
            leads = node.replica is not None and node.replica.member.is_leader
            paused = node.host is not None and node.host.is_paused
            # What comes late from a hostile network is a sign of life too.
            hears_the_past = self.network.conditions.hostile_part > 0
            if not leads or paused or hears_the_past or reached >= len(self.nodes) // 2:
                self._lonely_since_s.pop(node.name, None)
            elif now_s - self._lonely_since_s.setdefault(node.name, now_s) > LONELY_S:
                raise ViolationError(f"{node.name} leads, and reaches no majority")
        if self.plan.keeps_leader and len(self.checks.leaders) > 1:
            raise ViolationError(f"a leader was unseated for nothing: {self.checks.leaders}")

    # Running

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until_s = self.world.now_s + seconds
        nodes = self.nodes.values()
        while self.world.step(until_s):
            self.checks.step(nodes)
            if self.wrong is not None:
                raise self.wrong
            if self.world.steps > STEPS_MAX:
                raise ViolationError("it never comes to rest")

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()

    def prepare(self) -> None:
        """Wait for a first leader, and set what clients rely on."""
        answers: list[Result] = []
        node = next(iter(self.nodes.values()))
        assert node.replica is not None
        for operation in policies():
            node.replica.queue.submit(encode(operation), answers.append, SETTLE_S)
        while len(answers) < len(policies()):
            self.run(0.1)
        if answers != [None] * len(answers):
            raise ViolationError(f"nothing can be set: {answers}")

    def leader(self) -> SimNode | None:
        """The node of the highest term that believes it leads."""
        leading = [
            node
            for node in self.nodes.values()
            if node.replica is not None and node.replica.member.is_leader
        ]
        return max(leading, key=lambda node: node.replica.member.term, default=None)  # type: ignore[union-attr]

    def up(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.is_up]

    def any_up(self) -> SimNode | None:
        up = self.up()
        return self.world.random.choice(up) if up else None

    # Harm

    def harm(self) -> None:
        """Do some harm, and come back."""
        if not self.is_faulty:
            return
        self.do(self.world.random.choice(self.plan.faults))
        self.world.at(self.world.random.expovariate(1 / self.plan.fault_every_s), self.harm)

    def do(self, fault: str) -> None:
        """Do one harm by its name."""
        self.faults[fault] = self.faults.get(fault, 0) + 1
        random = self.world.random
        leader = self.leader()
        if fault.endswith("_leader"):
            node = leader
        elif fault.endswith("_follower"):
            if not self.network.is_whole:
                return  # two at a time may be a majority
            node = random.choice([one for one in self.up() if one is not leader])
        else:
            node = self.any_up()
        if node is None:
            return
        other = random.choice([one for one in self.nodes if one != node.name])
        match fault:
            case "kill" | "kill_leader":
                self.kill(node)
            case "power":
                self.kill(node, SimNode.lose_power)
            case "power_all":
                for one in self.up():
                    self.kill(one, SimNode.lose_power)
            case "isolate" | "isolate_leader" | "isolate_follower":
                self.network.isolate(node.name)
                self.world.at(random.uniform(*self.plan.isolation_s), self.network.heal)
            case "come_back":
                if leader is not None and self.network.is_whole:
                    self.play(self.come_back(leader))
            case "one_way":
                self.network.cut(node.name, other)
                self.world.at(random.uniform(0.5, 5), self.network.heal)
            case "break":
                self.network.break_between(node.name, other)
            case "heal":
                self.network.heal()
            case "pause" | "pause_leader":
                pause_s = random.uniform(0.1, 4)
                node.pause(pause_s)
                until_s = self.world.now_s + pause_s + DISTURBED_S
                before_s = self.disturbed_until_s.get(node.name, 0.0)  # it may sleep already
                self.disturbed_until_s[node.name] = max(before_s, until_s)
            case "hang" | "hang_leader":
                node.hang(random.uniform(0.1, 6))
            case "transfer":
                self.transfer()
            case _:
                raise ValueError(fault)

    def kill(self, node: SimNode, how: Callable[[SimNode], None] = SimNode.kill) -> None:
        """End a node's life, and begin the next one soon."""
        if not node.is_up:
            return
        self.count(node)
        how(node)
        self.world.at(self.world.random.uniform(0.05, 3), self.revive, node)

    def count(self, node: SimNode) -> None:
        if node.replica is not None:
            self.checkpoints += node.replica.checkpoints.written
            self.installs += node.replica.snapshots.installs

    def revive(self, node: SimNode) -> None:
        if not node.is_up:
            node.start()

    def play(self, script: Iterator[float]) -> None:
        """Let a script go on, which says for how many seconds it waits."""
        wait_s = next(script, None)
        if wait_s is not None:
            self.world.at(wait_s, self.play, script)

    def come_back(self, first: SimNode) -> Iterator[float]:
        """Have a leader lose its office and part of its log, and win again.

        All the time a follower's answers to it are held up, so that what was said of the first term
        comes in the third, when the leader has one other follower of four.
        """
        random, network = self.world.random, self.network
        follower = random.choice(first.others)
        late = (follower, first.name)
        network.isolate(first.name, follower)
        yield random.uniform(0.05, 0.3)
        network.cut(*late)
        second = yield from self._next_leader(first)
        network.heal(but=late)
        yield random.uniform(0.001, 0.005)
        network.isolate(second.name, follower)
        third = yield from self._next_leader(second)
        if third is first:
            yield random.choice((0, 0.001, 0.01))
            rest = [one for one in first.others if one not in {second.name, follower}]
            network.isolate(random.choice(rest), second.name, follower)
            yield random.uniform(0.01, 0.3)
        network.heal()

    def _next_leader(self, before: SimNode) -> Generator[float, None, SimNode]:
        for _ in range(4000):
            leader = self.leader()
            if leader is not None and leader is not before:
                return leader
            yield 0.0005
        return before

    def transfer(self) -> None:
        """Have the leader hand over, as `Node` does it."""
        node = self.leader()
        if node is None or node.replica is None or node.host is None:
            return
        node.host.run(node.replica.transfer, 1.0, lambda _: None)

    # Peace

    def settle(self) -> None:
        """End all harm, and wait until everything has come back."""
        self.is_faulty = False
        self.network.conditions = replace(self.network.conditions, hostile_part=0.0)
        self.network.heal()
        for node in self.nodes.values():
            self.revive(node)
        for client in (*self.writers, *self.workers):
            client.is_active = False
        ends_s = self.world.now_s + SETTLE_S
        while not self.has_settled():
            if self.world.now_s >= ends_s:
                raise ViolationError(f"it does not come back: {self.describe()}")
            self.run(0.5)
        self.settled_s = self.world.now_s + SETTLE_S - ends_s

    def has_settled(self) -> bool:
        """Whether all nodes agree, nobody waits, and nothing is left to be brought back."""
        replicas = [node.replica for node in self.nodes.values()]
        leader = self.leader()
        if leader is None or leader.replica is None or not leader.replica.is_leader:
            return False
        index = leader.replica.member.log.last_index
        for node, replica in zip(self.nodes.values(), replicas, strict=True):
            if replica is None or replica.applied_index != index or not replica.queue.is_empty:
                return False
            if not replica.is_ready or is_active(node):
                return False
        return True

    def describe(self) -> str:
        """Where every node is."""
        lines = []
        for node in self.nodes.values():
            replica = node.replica
            if replica is None:
                lines.append(f"{node.name} is down")
                continue
            member = replica.member
            lines.append(
                f"{node.name}: {member.engine.role.name} of {member.leader} term {member.term} "
                f"base {member.log.base_index} durable {member.log.durable_index} "
                f"last {member.log.last_index} committed {member.committed_index} "
                f"applied {replica.applied_index} ready {replica.is_ready} "
                f"waiting {replica.queue.depth} "
                f"confirm {len(replica.queue._confirm)} active {len(is_active(node))}"  # noqa: SLF001
            )
        return "; ".join(lines)

    def check(self) -> None:
        """Look whether everything that was promised is there."""
        digests = {
            node.replica.machine.digest()
            for node in self.nodes.values()
            if node.replica is not None
        }
        if len(digests) != 1:
            raise ViolationError(f"states differ in the end: {digests}")
        node = next(iter(self.nodes.values()))
        assert node.replica is not None
        for writer in self.writers:
            writer.check(node)
        there = {session.session_id for session in node.replica.machine.sessions()}
        forgotten = self.created - there - self.removals
        if forgotten:
            raise ViolationError(f"forgotten: {sorted(forgotten)}")

    def outcome(self) -> Outcome:
        for node in self.nodes.values():
            self.count(node)
        return Outcome(
            self.seed,
            self.settled_s,
            self.world.steps,
            self.world.now_s - 1000,
            max(self.checks.leaders, default=0),
            self.checks.batches,
            self.asked,
            self.acknowledged,
            self.reads,
            len(self.epochs),
            sum(node.lives for node in self.nodes.values()),
            self.checkpoints,
            self.installs,
            self.faults,
        )


def simulate(
    seed: int,
    plan: Plan | None = None,
    guards: Guards = ALL_GUARDS,
    script: Callable[[Cluster], None] | None = None,
) -> Outcome:
    """Run a seed from its beginning to a peaceful end. Raises `ViolationError`."""
    plan = plan or plan_of(seed)
    cluster = Cluster(seed, plan, guards)
    with library_clock(lambda: cluster.world.now_s):
        try:
            cluster.start()
            (script or _random_script)(cluster)
            cluster.settle()
            cluster.check()
        except Exception as error:
            raise ViolationError(f"seed {seed}: {error}") from error
    return cluster.outcome()


def _random_script(cluster: Cluster) -> None:
    cluster.prepare()
    cluster.world.at(0.5, cluster.harm)

    def read() -> None:
        if cluster.is_faulty:
            node = cluster.any_up()
            if node is not None:
                cluster.world.random.choice(cluster.writers).read(node)
            cluster.world.at(0.3, read)

    cluster.world.at(1.0, read)
    cluster.run(0.5 + cluster.plan.fault_s)
