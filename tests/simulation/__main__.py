# ruff: noqa: T201 - a program of its own: it prints its result
"""Run many seeds, or one:

python -m tests.simulation --seeds 10000            # new random seeds, all cores
python -m tests.simulation --seed 4711              # replay one
python -m tests.simulation --without pre_vote --seeds 2000 --first 0
"""

import argparse
import logging
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import fields
from random import SystemRandom

from cluster.consensus.guards import Guards
from tests.simulation.checks import ViolationError
from tests.simulation.cluster import Outcome, simulate

SEED_MAX = 2**40
CHUNK = 20


def guards_without(name: str | None) -> Guards:
    """All guards but one."""
    return Guards(**{name: False}) if name else Guards()


def run_some(seeds: list[int], without: str | None) -> tuple[list[Outcome], list[tuple[int, str]]]:
    """Outcomes, and the seeds that failed with what they said."""
    outcomes, failures = [], []
    for seed in seeds:
        try:
            outcomes.append(simulate(seed, guards=guards_without(without)))
        except ViolationError as error:
            failures.append((seed, str(error)))
    return outcomes, failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (default 100)")
    parser.add_argument("--first", type=int, help="count up from here instead of random seeds")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--failures", type=int, default=5, help="stop after so many")
    parser.add_argument(
        "--without", choices=[one.name for one in fields(Guards)], help="take a guard away"
    )
    arguments = parser.parse_args()
    if arguments.seed is not None:
        print(simulate(arguments.seed, guards=guards_without(arguments.without)))
        return 0
    logging.disable()  # so many nodes have too much to say
    if arguments.first is None:
        draw = SystemRandom()
        seeds = [draw.randrange(SEED_MAX) for _ in range(arguments.seeds)]
    else:
        seeds = list(range(arguments.first, arguments.first + arguments.seeds))
    return _run_all(seeds, arguments)


def _run_all(seeds: list[int], arguments: argparse.Namespace) -> int:
    begin_s = time.monotonic()
    totals: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    size = min(CHUNK, 2 * arguments.failures)  # what is begun is ended: few, if few are wanted
    chunks = [seeds[start : start + size] for start in range(0, len(seeds), size)]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        running = [pool.submit(run_some, chunk, arguments.without) for chunk in chunks]
        for done in as_completed(running):
            outcomes, failed = done.result()
            for outcome in outcomes:
                _add(totals, outcome)
            for seed, text in failed:
                failures.append((seed, text))
                print(f"\nFAILED seed {seed}: {text[:1000]}", flush=True)
            count = totals["seeds"] + len(failures)
            rate = count / (time.monotonic() - begin_s)
            progress = f"{count}/{len(seeds)} seeds, {rate:.1f}/s, {len(failures)} failed"
            print(f"\r{progress}", end="", flush=True)
            if len(failures) >= arguments.failures:
                for one in running:
                    one.cancel()
                break
    print()
    for name, number in sorted(totals.items()):
        print(f"  {name:<20} {number:>12,}")
    print(f"{totals['seeds']} passed, {len(failures)} failed")
    return 1 if failures else 0


def _add(totals: Counter[str], outcome: Outcome) -> None:
    totals["seeds"] += 1
    for one in fields(outcome):
        value = getattr(outcome, one.name)
        if one.name == "faults":
            for fault, number in value.items():
                totals[f"fault {fault}"] += number
        elif one.name not in {"seed", "settled_s"}:
            totals[one.name] += int(value)


if __name__ == "__main__":
    sys.exit(main())
