"""Run on a disk of 3 MiB: what does not fit is refused, and what is there stays.

python -m tests.cluster.storage.full_disk DIRECTORY
"""

import os
import sys
from contextlib import closing
from pathlib import Path

from cluster.storage.errors import DiskFullError
from state.operations import New
from tests.cluster.storage.state_files import checkpoint, created, listing_of, opened, put
from tests.state.driver import Driver


def main(directory: Path) -> None:
    driver = Driver()
    driver.apply(New(1, data=os.urandom(1 << 19)))
    path = directory / "state.db"
    with closing(created(path)) as file:
        checkpoint(file, driver.machine)
        before = listing_of(file)
        for _ in range(8):
            driver.apply(New(1, data=os.urandom(1 << 19)))
        for _ in range(3):
            capture = driver.machine.capture_changes()
            try:
                put(file, capture)
                file.commit(driver.machine.applied_index, 1)
            except DiskFullError:
                sys.stdout.write("full\n")
            capture.abandon()
            file.rollback()
            if listing_of(file) != before:
                sys.stdout.write("other\n")
    with closing(opened(path)) as file:
        sys.stdout.write("as before\n" if listing_of(file) == before else "other\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
