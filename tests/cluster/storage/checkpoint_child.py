"""Writes checkpoints until it is killed, and says of each when it is committed.

python -m tests.cluster.storage.checkpoint_child PATH
"""

import sys

from cluster.storage.state_file import StateFile
from tests.cluster.storage.state_files import CLUSTER, SMALL_CACHE_BYTES, Log, checkpoint


def main(path: str) -> None:
    file = StateFile.open(path, CLUSTER, cache_bytes=SMALL_CACHE_BYTES)
    if file is None:
        file = StateFile.create(path, CLUSTER, cache_bytes=SMALL_CACHE_BYTES)
        log = Log()
    else:
        log = Log(file.load_machine())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        index = log.step()
        checkpoint(file, log.machine, term=index % 7)
        sys.stdout.write(f"{index}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
