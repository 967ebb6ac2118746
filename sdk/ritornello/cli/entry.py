"""Where the command begins. What it needs is not installed with the client itself."""

import os
import sys

from ritornello.cli import INTERRUPTED


def main() -> None:
    """Run the command `ritornello`."""
    _open_streams()
    try:
        from ritornello.cli.main import ritornello  # noqa: PLC0415 - it may not be there
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.stderr.write("The command needs more than the client: pip install 'ritornello[cli]'\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    ritornello(prog_name="ritornello")


def _open_streams() -> None:
    """Put nothing where a standard stream is closed: else a connection would take its number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - to the end
