"""How commands end that cannot do what they were asked to: a sentence, and the status for it."""

import contextlib
import sys
from collections.abc import Iterator

import click

from api.commands.disk import NothingThereError
from api.commands.rebirth import RestoreError
from api.commands.salvage import NothingLeftError
from api.statuses import ExitStatus, disk_status
from cluster import MisalignedError
from cluster.storage.errors import LockedError, StorageError


@contextlib.contextmanager
def refusals(so: str = "") -> Iterator[None]:
    """End the command if a disk will not do. `so` says what follows, where a file is to blame."""
    try:
        yield
    except LockedError as error:
        _end(
            f"the data directory {error.path} is in use by another process; if that is its node, "
            "stop it first",
            ExitStatus.IN_USE,
        )
    except (NothingThereError, RestoreError) as error:
        _end(str(error), ExitStatus.SETTINGS)
    except (NothingLeftError, StorageError, MisalignedError) as error:
        status = ExitStatus.DISK if isinstance(error, NothingLeftError) else disk_status(error)
        if status is ExitStatus.SETTINGS:
            _end(f"the data directory cannot be used: {error}", status)
        _end(f"{so}: {error}" if so else str(error), status)


def _end(why: str, status: ExitStatus) -> None:
    click.echo(f"error: {why}", err=True)
    sys.exit(status)
