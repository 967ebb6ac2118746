"""`ritornello-server backup`: the state of a cluster in one file.

A backup is a checkpoint: an SQLite file that anybody can open. It comes from a node that runs, or
from the disk of one that is stopped. It has its name when it is whole, durable and checked, and not
before; one of that name that was there stays until then.
"""

import asyncio
import contextlib
import os
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import click

from api.commands.disk import cluster_of, held, read_node
from api.commands.rebirth import write_state
from api.commands.refusals import refusals
from api.commands.restore import moment, sessions
from api.statuses import ExitStatus
from cluster.storage.disk import sync_directory
from cluster.storage.state_file import receive
from state import StateMachine

SNAPSHOT = "/v1/cluster/snapshot"

# Between two pieces. A node makes a copy of its checkpoint before the first.
READ_TIMEOUT_S = 120.0
_CONNECT_TIMEOUT_S = 10.0
_PIECE_BYTES = 1 << 20
_PROBLEM_BYTES_MAX = 2_000
_MIB = 1 << 20
_PROGRESS_S = 0.2
_TOKEN_BYTES_MAX = 4096

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class BackupError(Exception):
    """There is no backup; the message says why."""


@click.command("backup")
@click.option("--url", metavar="URL", help="A node that runs, such as http://127.0.0.1:7601.")
@click.option(
    "--token-file",
    type=_FILE,
    metavar="FILE",
    help="A file with a token of scope admin for all themes; nothing else is in it.",
)
@click.option(
    "--authority-file",
    type=_FILE,
    metavar="FILE",
    help="A PEM file with the authority that has signed the node's certificate, if the system "
    "does not know it.",
)
@click.option(
    "--data-directory",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Instead of --url: the data directory of a node that is stopped.",
)
@click.option(
    "--uncommitted",
    is_flag=True,
    help="With --data-directory: also what the end of the journal has and is not known to be "
    "committed. Right for a cluster of one node, where it was acknowledged.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where the backup will be.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def backup(
    url: str | None,
    token_file: Path | None,
    authority_file: Path | None,
    directory: Path | None,
    uncommitted: bool,  # noqa: FBT001 - a flag
    output: Path,
    force: bool,  # noqa: FBT001
) -> None:
    """Write the state of a cluster into one file, an SQLite database.

    From any node that runs (--url), or from the disk of one that is stopped (--data-directory).
    All of it is checked before the file gets its name.
    """
    if (url is None) == (directory is None):
        raise click.UsageError("give --url of a node that runs, or --data-directory of a stopped")
    if directory is not None and (token_file or authority_file):
        raise click.UsageError("--token-file and --authority-file belong to --url")
    if url is not None and uncommitted:
        raise click.UsageError("--uncommitted belongs to --data-directory")
    if url is not None:
        _check_url(url, has_authority=authority_file is not None)
    if not (os.access(output.parent, os.W_OK | os.X_OK) and output.parent.is_dir()):
        raise click.UsageError(f"no file can be made in {output.parent}; write another --output")
    if output.exists() and not force:
        raise click.UsageError(f"{output} is there already; write another name, or --force")
    try:
        with refusals():
            if url is not None:
                machine, index = download(url, output, token_file, authority_file)
            else:
                machine, index = copy(directory or Path(), output, has_all=uncommitted)
    except (BackupError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(ExitStatus.UNEXPECTED)
    cluster_id = cluster_of(output)
    size = f"{output.stat().st_size / _MIB:.1f} MiB"
    what = f"{sessions(machine.session_count)} of cluster {cluster_id}"
    click.echo(f"{output}: {what} as of entry {index}, {moment(machine.now_ms)}, {size}")


# From a node that runs


def download(
    url: str, output: Path, token_file: Path | None, authority_file: Path | None
) -> tuple[StateMachine, int]:
    """Have a node make a copy, and keep it. Raises `BackupError`, `StorageError`, OSError."""
    headers = {} if token_file is None else {"Authorization": f"Bearer {_token(token_file)}"}
    with temporary(output) as part:
        asyncio.run(_download(url, headers, authority_file, part))
        _sync(part)
        machine, summary = receive(os.fspath(part), cluster_of(part))
        _place(part, output)
    return machine, summary.applied_index


def _check_url(url: str, *, has_authority: bool) -> None:
    """Raises `click.UsageError`."""
    if "://" not in url:
        raise click.UsageError(f"--url {url} has no scheme; write http://{url} or https://{url}")
    try:
        parts = urlsplit(url)
        is_node = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_node = False
    if not is_node:
        raise click.UsageError(f"--url {url} is no node; write one such as http://127.0.0.1:7601")
    if has_authority and not url.lower().startswith("https:"):
        raise click.UsageError(f"--authority-file is for https, and --url is {url}")


def _token(path: Path) -> str:
    """Raises OSError and `click.UsageError`."""
    with path.open("rb") as file:
        content = file.read(_TOKEN_BYTES_MAX)
    try:
        token = content.decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--token-file {path} holds no token") from error
    if not token or not token.isprintable() or " " in token:
        raise click.UsageError(f"--token-file {path} has to hold a token and nothing else")
    return token


def _context(authority_file: Path | None) -> ssl.SSLContext:
    """Raises OSError and `click.UsageError`."""
    try:
        return ssl.create_default_context(cafile=authority_file)
    except ssl.SSLError as error:
        raise click.UsageError(
            f"--authority-file {authority_file} has no certificate in PEM: {error.reason}"
        ) from error


def _reason(error: OSError) -> str:
    """Why there is no connection. asyncio puts more about addresses into it than helps."""
    number = error.errno or 0
    if number <= 0 or isinstance(error, ssl.SSLError):  # numbers of their own
        return error.strerror or str(error)
    return os.strerror(number)


async def _download(
    url: str, headers: dict[str, str], authority_file: Path | None, part: Path
) -> None:
    import aiohttp  # noqa: PLC0415 - no other command needs it

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
    )
    context = _context(authority_file)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.get(
                url.rstrip("/") + SNAPSHOT,
                headers=headers,
                ssl=context,
                allow_redirects=False,  # a token is for the node that it was given for
            ) as response,
        ):
            if response.status != 200:  # noqa: PLR2004 - OK
                said = await response.content.read(_PROBLEM_BYTES_MAX)
                text = said.decode(errors="replace").strip()
                raise BackupError(f"{url} answers {response.status} {response.reason}: {text}")
            with (
                part.open("wb") as file,
                _Progress(response.content_length) as progress,
            ):
                async for piece in response.content.iter_chunked(_PIECE_BYTES):
                    file.write(piece)
                    progress.add(len(piece))
    except aiohttp.ClientConnectorCertificateError as error:
        raise BackupError(f"{url} is not trusted: {error.certificate_error}") from error
    except aiohttp.ClientConnectorError as error:
        raise BackupError(f"{url} cannot be reached: {_reason(error.os_error)}") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise BackupError(f"{url} gives no backup: {str(error) or type(error).__name__}") from error
    except ValueError as error:  # what aiohttp says of some URLs
        raise BackupError(f"{url!a} is no address of a node: {error}") from error


class _Progress:
    """How far it is, on a terminal; elsewhere nothing."""

    def __init__(self, size_bytes: int | None) -> None:
        self._size_bytes = size_bytes
        self._done_bytes = 0
        self._is_shown = sys.stderr.isatty()
        self._shown_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            self._show()
            click.echo(err=True)

    def add(self, size_bytes: int) -> None:
        """So many more."""
        self._done_bytes += size_bytes
        if self._is_shown and time.monotonic() - self._shown_s >= _PROGRESS_S:
            self._show()

    def _show(self) -> None:
        self._shown_s = time.monotonic()
        done = f"{self._done_bytes / _MIB:.1f}"
        if self._size_bytes:
            share = f"{100 * self._done_bytes / self._size_bytes:.0f} %"
            done += f" of {self._size_bytes / _MIB:.1f} MiB, {share}"
        else:
            done += " MiB"
        click.echo(f"\r{done}  ", err=True, nl=False)


# From a disk


def copy(directory: Path, output: Path, *, has_all: bool) -> tuple[StateMachine, int]:
    """Write what a stopped node has. Raises `StorageError`, `MisalignedError` and others."""
    with held(directory):
        found = read_node(directory)
        to_index = found.last_index if has_all else found.log.commit_index
        term = found.replay(to_index)
        index = found.machine.applied_index
        if not index:
            raise BackupError(f"nothing was ever done on {directory}: there is nothing to keep")
        if found.uncommitted and not has_all:
            click.echo(
                f"warning: the last {found.uncommitted} entries of the journal are left out, as "
                "they are not known to be committed. If this is a cluster of one node, they were "
                "acknowledged: take the backup again, with --uncommitted",
                err=True,
            )
        with temporary(output) as part:
            capture = found.machine.capture_everything()
            items = (item for piece in capture.pieces() for item in piece)
            machine = write_state(part, found.identity.cluster_id, items, index, term)
            _place(part, output)
    return machine, index


# Files


@contextlib.contextmanager
def temporary(output: Path) -> Iterator[Path]:
    """A name beside the file that will be; what is there in the end goes."""
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    old_mask = os.umask(0o077)  # it has all that clients ever stored
    try:
        yield part
    finally:
        os.umask(old_mask)
        for one in output.parent.glob(f"{part.name}*"):
            with contextlib.suppress(OSError):
                one.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(part: Path, output: Path) -> None:
    part.replace(output)
    sync_directory(os.fspath(output.parent))
