"""Clients that remember what they were told, and look whether it was true."""

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from state import Acquired, Applied, Created, Failure, OnConflict, Phase, Result, encode
from state.events import EventKind
from state.operations import (
    Acquire,
    Append,
    Heartbeat,
    New,
    Operation,
    Remove,
    SetPolicy,
    Store,
)
from tests.simulation.checks import ViolationError
from tests.simulation.node import SimNode

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

LEDGERS, WORK = 1, 2
LEASE_MS = 2_000
HEARTBEAT_S = 0.4
TIMEOUT_S = 4.0


class Client:
    """One that keeps asking some node for something."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.random = cluster.world.random
        self.is_active = True

    def node(self) -> SimNode | None:
        """A node that is up."""
        up = [node for node in self.cluster.nodes.values() if node.is_up]
        return self.random.choice(up) if up else None

    def ask(
        self, node: SimNode, operation: Operation, then: Any, *, is_ending: bool = False
    ) -> None:
        """Have a node do something; `then` may never be called, if the node dies."""
        replica, host = node.replica, node.host
        if replica is None or host is None:
            return
        self.cluster.asked += 1
        answered = self.guarded(then)
        host.run(
            lambda: replica.queue.submit(
                encode(operation), answered, TIMEOUT_S, is_ending=is_ending
            )
        )

    def guarded(self, then: Callable[[Result], object]) -> Callable[[Result], None]:
        """What `then` finds wrong ends the simulation: a node would only log it."""

        def answered(result: Result) -> None:
            try:
                then(result)
            except Exception as error:  # noqa: BLE001 - told in `Cluster.run`
                self.cluster.wrong = self.cluster.wrong or error

        return answered

    def later(self, delay_s: float, action: Any, *arguments: Any) -> None:
        self.cluster.world.at(delay_s, self._if_active, action, arguments)

    def _if_active(self, action: Any, arguments: tuple[Any, ...]) -> None:
        if self.is_active:
            action(*arguments)


class Writer(Client):
    """Appends numbers to a session of its own, several at once, and never twice."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        super().__init__(cluster, name)
        self.key = name.encode()
        self.next = 0
        self.acknowledged: list[int] = []
        self.sent_by: dict[int, tuple[str, int]] = {}  # number -> node and incarnation
        self.refused: set[int] = set()
        self.later(0.5, self.begin)

    def begin(self) -> None:
        node = self.node()
        if node is not None:
            self.ask(
                node,
                New(
                    LEDGERS,
                    self.key,
                    repeat_after_ms=10**9,
                    on_conflict=OnConflict.RETURN_EXISTING,
                ),
                self.begun,
            )
        self.later(TIMEOUT_S, self.retry)

    def retry(self) -> None:
        if not self.next:
            self.begin()

    def begun(self, result: Result) -> None:
        if isinstance(result, Created) and not self.next:
            self.next = 1
            self.later(0, self.write)

    def write(self) -> None:
        node = self.node()
        if node is not None:
            for _ in range(self.random.choice((1, 1, 2, 5, 20))):
                number, self.next = self.next, self.next + 1
                self.sent_by[number] = (node.name, node.incarnation)
                data = number.to_bytes(4, "big") + bytes(self.random.choice((10, 60, 300)))
                self.ask(
                    node,
                    Append((LEDGERS, self.key), None, data),
                    lambda result, number=number: self.written(number, result),
                )
        self.later(self.random.expovariate(6), self.write)

    def written(self, number: int, result: Result) -> None:
        if isinstance(result, Failure):
            if result.code not in {"timed_out", "stopping", "overloaded"}:
                raise ViolationError(f"{self.name}: number {number} got {result}")
            if result.outcome == "not_applied":
                self.refused.add(number)
        else:
            self.acknowledged.append(number)
            self.cluster.acknowledged += 1

    def check(self, node: SimNode) -> None:
        """Look at what a node has, when all is over."""
        assert node.replica is not None
        session = node.replica.machine.session((LEDGERS, self.key))
        found = [] if session is None else [_number(chunk) for chunk in session.chunks]
        missing = set(self.acknowledged) - set(found)
        if missing:
            raise ViolationError(f"{self.name}: acknowledged and lost: {sorted(missing)}")
        if len(set(found)) != len(found):
            twice = sorted({number for number in found if found.count(number) > 1})
            raise ViolationError(f"{self.name}: applied twice: {twice}")
        if self.refused & set(found):
            wrong = sorted(self.refused & set(found))
            raise ViolationError(f"{self.name}: not_applied, yet applied: {wrong}")
        by_node: dict[tuple[str, int], list[int]] = defaultdict(list)
        for number in found:
            by_node[self.sent_by[number]].append(number)
        for sender, numbers in by_node.items():
            if numbers != sorted(numbers):
                raise ViolationError(f"{self.name}: out of order by {sender}: {numbers}")

    def read(self, node: SimNode) -> None:
        """Read what was acknowledged by now, at any node."""
        if not self.acknowledged or node.replica is None or node.host is None:
            return
        number, replica = self.acknowledged[-1], node.replica

        def look(result: Result) -> None:
            if isinstance(result, Failure):
                return
            self.cluster.reads += 1
            session = replica.machine.session((LEDGERS, self.key))
            chunks = [] if session is None else session.chunks
            if number not in map(_number, chunks):
                raise ViolationError(f"{self.name}: {node.name} read without number {number}")

        node.host.run(replica.queue.read, self.guarded(look), TIMEOUT_S)


def _number(chunk: bytes) -> int:
    return int.from_bytes(chunk[:4], "big")


class Worker(Client):
    """Acquires sessions, works on them, ends or forgets them."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        super().__init__(cluster, name)
        self.home: SimNode | None = None
        self.home_incarnation = 0
        self.consumer = b""
        self.held: dict[int, int] = {}  # id -> epoch
        self.known_s: dict[int, float] = {}  # id -> when it was last known to be held
        self.later(1.0, self.settle)

    def settle(self) -> None:
        """Begin a life at some node."""
        node = self.node()
        if node is None or node.replica is None:
            self.later(0.3, self.settle)
            return
        self.home, self.home_incarnation = node, node.incarnation
        self.consumer = node.replica.consumer(self.name.encode())
        self.held, self.known_s = {}, {}
        self.cluster.owners[self.consumer] = self
        self.work(self.consumer)
        self.beat(self.consumer)

    @property
    def is_at_home(self) -> bool:
        home = self.home
        return home is not None and home.is_up and home.incarnation == self.home_incarnation

    def was_disturbed(self, session_id: int) -> bool:
        """Whether it may not have been able to show that it lives, since it last used a session."""
        home = self.home
        if home is None or not self.is_at_home or not self.is_active:
            return True
        return self.known_s[session_id] < self.cluster.disturbed_until_s.get(home.name, 0.0)

    def work(self, life: bytes) -> None:
        if life != self.consumer:
            return
        if not self.is_at_home:
            self.settle()
            return
        assert self.home is not None
        choice = self.random.random()
        if choice < 0.3:
            data = self.random.randbytes(8)
            self.ask(self.home, New(WORK, None, data, repeat_after_ms=0), self.created)
        elif choice < 0.6:
            count = self.random.choice((1, 3))
            self.ask(
                self.home,
                Acquire((WORK,), count, life),
                lambda result: self.acquired(life, result),
            )
        elif self.held:
            session_id = self.random.choice(sorted(self.held))
            epoch = self.held[session_id]
            if choice < 0.8:
                operation: Operation = Append(session_id, epoch, b"work")
            else:
                del self.held[session_id]
                if choice < 0.9:
                    operation = Store(session_id, epoch, repeat_after_ms=300)
                else:
                    operation = Remove(session_id, epoch)
                    self.cluster.removals.add(session_id)
            self.ask(
                self.home,
                operation,
                lambda result: self.answered(session_id, epoch, result),
                is_ending=choice >= 0.8,
            )
        if self.random.random() < 0.01:
            self.later(1.0, self.settle)  # vanishes without a word
            self.consumer = b""
            return
        self.later(self.random.expovariate(8), self.work, life)

    def beat(self, life: bytes) -> None:
        if life == self.consumer and self.is_at_home and self.home is not None:
            self.ask(self.home, Heartbeat(life), lambda _: None, is_ending=True)
            self.later(HEARTBEAT_S, self.beat, life)

    def created(self, result: Result) -> None:
        if isinstance(result, Created):
            self.cluster.created.add(result.session_id)

    def acquired(self, life: bytes, result: Result) -> None:
        if not isinstance(result, tuple):
            return
        for one in result:
            assert isinstance(one, Acquired)
            owner = self.cluster.epochs.setdefault((one.session_id, one.epoch), life)
            if owner != life:
                raise ViolationError(
                    f"epoch {one.epoch} of session {one.session_id} has two owners"
                )
            if life == self.consumer:
                self.held[one.session_id] = one.epoch
                self.known_s[one.session_id] = self.cluster.world.now_s

    def answered(self, session_id: int, epoch: int, result: Result) -> None:
        if isinstance(result, Failure):
            if result.code in {"lease_lost", "session_not_found"}:
                if self.held.get(session_id) == epoch:
                    del self.held[session_id]
                    if self.cluster.plan.keeps_leases and not self.was_disturbed(session_id):
                        raise ViolationError(f"{self.name} lived, and lost {session_id}: {result}")
            elif result.code not in {"timed_out", "stopping", "overloaded"}:
                raise ViolationError(f"{self.name}: {result.code}: {result}")
        elif self.held.get(session_id) == epoch:
            self.known_s[session_id] = self.cluster.world.now_s


def policies() -> list[Operation]:
    """What clients need to be set before they begin."""
    return [SetPolicy(WORK, (("lease_ms", LEASE_MS), ("repeat_ms", 200)))]


def is_active(node: SimNode) -> list[int]:
    """Sessions that a node believes are being worked on."""
    assert node.replica is not None
    machine = node.replica.machine
    return [one.session_id for one in machine.sessions() if one.phase is Phase.ACTIVE]


def stored_by_reaper(applied: Applied) -> list[int]:
    """Sessions that a batch stored."""
    return [event.session_id for event in applied.events() if event.kind is EventKind.STORED]
