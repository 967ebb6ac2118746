"""Runs `ritornello-server` as a part of another program: it ends when that does, however it ends.

    python -m api.commands.child serve ...

In order, if it can: whoever started it is gone, so the kernel sends SIGTERM in its name.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Be sent SIGTERM when `parent` ends. What it ended with before this is noticed, too."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


if __name__ == "__main__":
    end_with(int(sys.argv.pop(1)))
    from api.main import main

    main(prog_name="ritornello-server")
