"""What happens to the nodes: steps decided by a seed, one after the other, under load.

A seed is a schedule: which faults, who, after how long. When a disk or a process is quick or slow
is not in it, so the same seed meets a defect again often, not always; what was done is told with
each failure.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.crash.clients import Load
from tests.crash.processes import Cluster, Server

# A rollback journal of SQLite that has more than a header: a checkpoint was being written.
HOT_BYTES = 512
MANY_STEPS = 100


class Kind(StrEnum):
    """A fault, from its beginning to when all nodes have been started again."""

    KILL = "kill"  # one, down for a moment
    KILL_TWO = "kill two"
    KILL_ALL = "kill all"
    KILL_AGAIN = "kill again"  # ... and again while it starts
    LAG = "lag"  # a follower is down until it needs a snapshot, and is killed while it gets one
    LAG_LEADER = "lag, leader"  # ... the leader is killed while it sends one
    PAUSE = "pause"
    PAUSE_KILL = "pause, kill"  # killed while it stands still
    EMPTY = "empty"  # a node loses its disk while the other two are well


_WEIGHTS = {
    Kind.KILL: 6,
    Kind.KILL_TWO: 3,
    Kind.KILL_ALL: 3,
    Kind.KILL_AGAIN: 4,
    Kind.LAG: 2,
    Kind.LAG_LEADER: 2,
    Kind.PAUSE: 2,
    Kind.PAUSE_KILL: 1,
    Kind.EMPTY: 2,
}


class Step(NamedTuple):
    """One fault. Times in seconds."""

    kind: Kind
    who: str
    waits: bool  # whether the cluster gets to work again before
    before_s: float
    down_s: float
    again_s: tuple[float, ...]  # from each start to the next kill
    loop: str


def schedule(seed: int, count: int) -> list[Step]:
    """The steps that a seed stands for: each kind once, if there is room, and more by chance."""
    random = Random(seed)
    kinds = list(Kind)
    kinds += random.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=max(count - len(kinds), 0))
    random.shuffle(kinds)
    return [_step(random, kind) for kind in kinds[:count]]


def _step(random: Random, kind: Kind) -> Step:
    lags = kind in {Kind.LAG, Kind.LAG_LEADER}
    return Step(
        kind,
        "follower" if lags else random.choice(("any", "leader", "leader")),
        lags or random.random() < 0.7,
        random.uniform(0.0, 0.5),
        random.uniform(0.8, 1.2) if lags else random.choice((0.0, random.uniform(0.0, 1.0))),
        tuple(random.uniform(0.0, 0.8) for _ in range(random.choice((1, 1, 2, 3)))),
        random.choice(("uvloop", "uvloop", "asyncio")),
    )


@dataclass(slots=True)
class Outcome:
    """What a run came to, for whoever wants to know that it was enough."""

    seed: int
    kills: int = 0
    lives: int = 0
    acknowledged: int = 0
    attempts: int = 0
    reads: int = 0
    leader_changes: int = 0
    took_s: float = 0.0
    steps: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)  # what was going on when nodes were killed

    def __str__(self) -> str:
        steps = ", ".join(f"{name}: {count}" for name, count in sorted(self.steps.items()))
        hits = ", ".join(f"{name}: {count}" for name, count in sorted(self.hits.items()))
        return (
            f"seed {self.seed}: {self.kills} kills, {self.lives} lives, "
            f"{self.acknowledged} operations acknowledged, {self.attempts} numbers sent, "
            f"{self.reads} reads, {self.leader_changes} leader changes, {self.took_s:.0f} s\n"
            f"  steps {steps}\n  killed during {hits}"
        )


class Nemesis:
    """Goes through a schedule."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._random = Random(seed + 1)  # of who it meets
        self._kills = 0
        self.outcome = Outcome(seed)

    async def run(self, steps: Sequence[Step]) -> None:
        for number, step in enumerate(steps):
            try:
                if step.waits:
                    await self._cluster.progress()
                await asyncio.sleep(step.before_s)
                await self._do(step)
                self._cluster.look()
            except Exception as error:
                error.add_note(f"step {number}: {step}")
                raise
            self.outcome.steps[step.kind] += 1
        await self._cluster.progress()

    async def _do(self, step: Step) -> None:
        cluster = self._cluster
        victim = cluster.victim(self._random, step.who)
        others = [server for server in cluster if server is not victim]
        match step.kind:
            case Kind.KILL:
                await self._restart(step, victim)
            case Kind.KILL_TWO:
                await self._restart(step, victim, self._random.choice(others))
            case Kind.KILL_ALL:
                await self._restart(step, *cluster)
            case Kind.KILL_AGAIN:
                await self._restart(step, victim)
                await self._again(step, victim)
            case Kind.LAG:
                await self._lag(step, victim)
                await self._again(step, victim)
            case Kind.LAG_LEADER:
                await self._lag(step, victim)
                await victim.started()
                await asyncio.sleep(step.again_s[0] / 2)
                await self._restart(step, cluster.leader)
            case Kind.PAUSE | Kind.PAUSE_KILL:
                victim.pause()
                await asyncio.sleep(0.3 + step.down_s)
                if step.kind is Kind.PAUSE_KILL:
                    await self._restart(step, victim)
                else:
                    victim.resume()
            case Kind.EMPTY:
                await self._empty(step, victim, others)

    async def _restart(self, step: Step, *victims: Server) -> None:
        for victim in victims:
            self._kill(victim)
        await asyncio.sleep(step.down_s)
        for victim in victims:
            await victim.start(step.loop)

    async def _again(self, step: Step, victim: Server) -> None:
        """Kill a node that has just begun to start."""
        for after_s in step.again_s:
            await asyncio.sleep(after_s)
            self._kill(victim)
            await victim.start(step.loop)

    async def _lag(self, step: Step, victim: Server) -> None:
        """Leave a node behind until the others' logs do not reach back to it."""
        self._kill(victim)
        await self._cluster.progress(300)
        await asyncio.sleep(step.down_s)  # for a checkpoint, after which the log is cut
        await victim.start(step.loop)

    async def _empty(self, step: Step, victim: Server, others: Sequence[Server]) -> None:
        """Take a node's disk away, and let it come back.

        A cluster bears one fault at a time: the other two have to hold all that is acknowledged
        before, and nobody else may die until the node has it all again.
        """
        for server in others:
            await server.started()
        self._kill(victim)
        await victim.ended()
        for server in others:
            await self._cluster.applied(server)
        victim.empty()
        await victim.start(step.loop)
        for after_s in step.again_s:
            await asyncio.sleep(after_s)
            self._kill(victim)
            await victim.start(step.loop)
        await victim.started()
        await self._cluster.applied(victim)

    def _kill(self, victim: Server) -> None:
        if not victim.is_running:
            return
        was_started = victim.is_up
        victim.kill()
        self._look_at(victim.directory, was_started=was_started)

    def _look_at(self, directory: Path, *, was_started: bool) -> None:
        """See from its files what a node was doing when it was killed."""
        hits = self.outcome.hits
        hits["running" if was_started else "start"] += 1
        try:
            names = {path.name: path for path in directory.iterdir()}
            journal = {path.name for path in (directory / "journal").iterdir()}
            hot = names.get("state.db-journal")
            if hot is not None and hot.stat().st_size > HOT_BYTES:
                hits["checkpoint"] += 1
        except FileNotFoundError:
            return  # it is on its way to being there, or not
        if any(name.startswith("state.db.new") for name in names):
            hits["first checkpoint"] += 1
        if any(name.startswith("state.db.arrival") for name in names):
            hits["snapshot's arrival"] += 1
        if any(name.startswith("state.db.copy") for name in names):
            hits["snapshot's copy"] += 1
        if any(name.startswith("preparing-") for name in journal):
            hits["segment being made"] += 1


async def run_seed(seed: int, directory: Path, count: int) -> Outcome:
    """One run: faults under load, then the checks. Raises `ViolationError`, with the seed."""
    begin_s = time.monotonic()
    steps = schedule(seed, count)
    try:
        async with Cluster(directory) as cluster:
            await cluster.start()
            nemesis = Nemesis(cluster, seed)
            async with Load(cluster, seed):
                await nemesis.run(steps)
            await cluster.check()
            statuses = await cluster.stop()
            cluster.look()
            assert not any(statuses), f"the nodes stopped with {statuses}"
            # All that was said is on the disks, not only in the processes.
            await cluster.check()
            outcome = nemesis.outcome
            outcome.kills = sum(server.kills for server in cluster)
            outcome.lives = sum(server.lives for server in cluster)
            outcome.acknowledged = cluster.history.acknowledged
            outcome.attempts = len(cluster.history.attempts)
            outcome.reads = cluster.history.reads
            outcome.leader_changes = cluster.leader_changes
            outcome.took_s = time.monotonic() - begin_s
            return outcome
    except Exception as error:
        error.add_note(f"again: python -m tests.crash --seed {seed} --steps {count}")
        error.add_note(f"the logs of its nodes are in {directory}")
        raise
