# ruff: noqa: T201 - a program of its own: it prints its result
"""Run many seeds, or one:

python -m tests.crash --runs 20 --steps 40          # new random seeds
python -m tests.crash --seed 4711 --steps 24        # the schedule of one
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from random import SystemRandom

from tests.crash.nemesis import run_seed

SEED_MAX = 2**32


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="how many seeds (default 1)")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--steps", type=int, default=24, help="faults of one run (default 24)")
    parser.add_argument("--directory", type=Path, help="on the disk that is to be tried")
    arguments = parser.parse_args()
    draw = SystemRandom()
    seeds = [draw.randrange(SEED_MAX) for _ in range(arguments.runs)]
    if arguments.seed is not None:
        seeds = [arguments.seed]
    failed = 0
    for seed in seeds:
        directory = Path(tempfile.mkdtemp(prefix="crash-", dir=arguments.directory))
        try:
            print(asyncio.run(run_seed(seed, directory, arguments.steps)), flush=True)
        except Exception:  # noqa: BLE001 - told, and the others go on
            failed += 1
            print(f"FAILED seed {seed}\n{traceback.format_exc()}", flush=True)
        else:
            shutil.rmtree(directory)
    print(f"{len(seeds) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
