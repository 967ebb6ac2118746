"""Where the command begins. What it needs is not installed with the client itself."""

import sys


def main() -> None:
    """Run the command `ritornello`."""
    try:
        from ritornello.cli.main import ritornello  # noqa: PLC0415 - it may not be there
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.stderr.write("The command needs more than the client: pip install 'ritornello[cli]'\n")
        sys.exit(2)
    ritornello(prog_name="ritornello")
