"""For the same reason, all commands end with the same status, and change nothing."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from api.commands.disk import read_checkpoint
from api.statuses import ExitStatus, disk_status
from cluster import MisalignedError, Node
from cluster.storage.errors import DamagedError, DiskError, LockedError, StorageError
from tests.api.commands.disks import alone, contents, grow, names, run

Words = Callable[[Path, Path], tuple[str | Path, ...]]

# What each would do with a directory, given another one with a whole node.
COMMANDS: dict[str, Words] = {
    "backup": lambda one, _: (
        *("backup", "--data-directory", one),
        *("--output", one.with_name("backup.db")),
    ),
    "recover": lambda one, _: ("recover", "--data-directory", one),
    "recover to": lambda one, whole: ("recover", "--data-directory", whole, "--salvage", one),
    "restore": lambda one, whole: (
        *("restore", "--data-directory", one),
        *("--from", whole / "state.db"),
    ),
}
each_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
async def whole(tmp_path: Path) -> Path:
    await grow(tmp_path / "whole")
    return tmp_path / "whole"


@each_command
async def test_of_a_running_node(tmp_path: Path, whole: Path, command: str) -> None:
    running = tmp_path / "running"
    async with Node(alone(running)) as node:
        await node.wait_until_ready()
        result = await asyncio.to_thread(run, *COMMANDS[command](running, whole))
    assert result.exit_code == ExitStatus.IN_USE
    assert f"the data directory {running} is in use by another process" in result.stderr
    assert "stop it first" in result.stderr
    assert result.stdout == ""
    assert names(tmp_path) == ["running", "whole"]


@each_command
def test_of_a_file(tmp_path: Path, whole: Path, command: str) -> None:
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    result = run(*COMMANDS[command](tmp_path / "file", whole))
    assert result.exit_code == ExitStatus.SETTINGS
    assert "the data directory cannot be used: " in result.stderr
    assert f"{tmp_path}/file" in result.stderr
    assert "Not a directory" in result.stderr
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


@each_command
async def test_of_another_user(
    tmp_path: Path, whole: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may have all rights, so the operating system's part is played."""
    theirs = tmp_path / "theirs"
    await grow(theirs)
    before = contents(theirs)
    for name in ("open", "listdir", "stat"):
        monkeypatch.setattr(os, name, withheld(theirs, getattr(os, name)))
    result = await asyncio.to_thread(run, *COMMANDS[command](theirs, whole))
    monkeypatch.undo()
    assert result.exit_code == ExitStatus.SETTINGS, result.output
    assert "the data directory cannot be used: " in result.stderr
    assert "Permission denied" in result.stderr
    assert contents(theirs) == before
    assert names(tmp_path) == ["theirs", "whole"]


def withheld(directory: Path, function: Callable[..., object]) -> Callable[..., object]:
    """A function of `os` that refuses what is in a directory."""

    def refuse(path: object, *more: object, **others: object) -> object:
        if isinstance(path, str | Path) and directory in (Path(path), *Path(path).parents):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return function(path, *more, **others)

    return refuse


@pytest.mark.parametrize("command", ["backup", "recover"])
@pytest.mark.parametrize("name", ["empty", "gone"])
def test_of_nothing(tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / "empty").mkdir()
    result = run(*COMMANDS[command](tmp_path / name, tmp_path))
    assert result.exit_code == ExitStatus.SETTINGS
    assert f"there is no node in {tmp_path / name}" in result.stderr
    assert "volume is mounted" in result.stderr
    assert names(tmp_path) == ["empty"]


@pytest.mark.parametrize("command", ["restore", "recover to"])
def test_what_stays_of_a_stopped_node_is_not_in_use(
    tmp_path: Path, whole: Path, command: str
) -> None:
    other = tmp_path / "other"
    asyncio.run(grow(other))
    result = run(*COMMANDS[command](other, whole))
    assert result.exit_code == ExitStatus.SETTINGS
    assert "is not empty (it has journal, state.db" in result.stderr
    assert read_checkpoint(other / "state.db").machine.session_count == 12


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LockedError("data"), ExitStatus.IN_USE),
        (DamagedError("data", "it is empty"), ExitStatus.DISK),
        (MisalignedError("the checkpoint is missing"), ExitStatus.DISK),
        *(
            (DiskError.of("data", "open", OSError(number, os.strerror(number))), status)
            for status, numbers in {
                ExitStatus.SETTINGS: (
                    *(errno.EACCES, errno.EPERM, errno.EROFS),
                    *(errno.ENOENT, errno.ENOTDIR),
                ),
                ExitStatus.DISK: (errno.EIO, errno.ENOSPC, errno.ELOOP),
            }.items()
            for number in numbers
        ),
    ],
    ids=str,
)
def test_the_status_of_an_error(error: StorageError | MisalignedError, status: ExitStatus) -> None:
    assert disk_status(error) is status
