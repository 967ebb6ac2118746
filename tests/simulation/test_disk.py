"""The virtual disk forgets what it should, and nothing else."""

import errno
from random import Random

import pytest

from cluster.storage.errors import DiskError
from tests.simulation.disk import (
    SECTOR_BYTES,
    Crashed,
    Operation,
    VirtualDirectory,
    VirtualFile,
)


def durable(directory: VirtualDirectory, name: str = "file", size_bytes: int = 4096) -> VirtualFile:
    file = directory.create(name, size_bytes)
    directory.sync()
    return file


def fates(name: str = "file") -> list[tuple[VirtualDirectory, VirtualFile]]:
    """The same file on many disks."""
    directories = [VirtualDirectory(Random(luck)) for luck in range(200)]
    return [(directory, durable(directory, name)) for directory in directories]


def test_a_killed_process_leaves_all_that_it_wrote() -> None:
    directory = VirtualDirectory()
    file = directory.create("file", 4096)
    file.write(10, (b"one", b"two"))
    directory.kill()
    assert directory.open("file").read(9, 8) == b"\0onetwo\0"


def test_what_was_synced_survives() -> None:
    for directory, file in fates():
        file.write(0, (b"a" * 4096,))
        file.sync()
        file.write(512, (b"b" * 512,))
        directory.power_loss()
        data = directory.open("file").read(0, 4096)
        assert data[:512] == b"a" * 512
        assert data[1024:] == b"a" * 3072


def test_what_was_not_synced_survives_by_sectors_of_any_age() -> None:
    seen = set()
    for directory, file in fates():
        file.write(0, (b"a" * 1024,))
        file.write(0, (b"b" * 1024,))
        directory.power_loss()
        data = directory.open("file").read(0, 1024)
        sectors = [data[:SECTOR_BYTES], data[SECTOR_BYTES:]]
        assert all(len(set(sector)) == 1 for sector in sectors)
        seen.add("".join(chr(sector[0]) for sector in sectors))
    assert seen == {first + second for first in "\0ab" for second in "\0ab"}


def test_names_that_were_not_synced_survive_or_not() -> None:
    seen = set()
    for directory, _ in fates("old"):
        directory.create("created", 4096)
        directory.rename("old", "new")
        durable_before = directory.names()
        directory.power_loss()
        assert set(directory.names()) <= {*durable_before, "old"}
        assert len({"old", "new"} & set(directory.names())) == 1
        seen.add(tuple(directory.names()))
    assert seen == {("old",), ("created", "old"), ("created", "new"), ("new",)}


def test_a_replaced_file_is_the_old_or_the_new_one() -> None:
    seen = set()
    for directory, file in fates():
        file.write(0, (b"old",))
        file.sync()
        new = directory.create("new", 4096)
        new.write(0, (b"new",))
        new.sync()
        directory.rename("new", "file")
        directory.power_loss()
        seen.add(directory.open("file").read(0, 3))
    assert seen == {b"old", b"new"}


def test_a_removed_file_may_be_back() -> None:
    seen = set()
    for directory, _ in fates():
        directory.remove("file")
        directory.power_loss()
        seen.add(tuple(directory.names()))
    assert seen == {(), ("file",)}


def test_old_files_are_of_no_use_after_an_end() -> None:
    for end in (VirtualDirectory.kill, VirtualDirectory.power_loss):
        directory = VirtualDirectory()
        file = durable(directory)
        end(directory)
        for use in (file.sync, file.close, lambda: file.read(0, 1), lambda: file.write(0, (b"",))):  # noqa: B023
            with pytest.raises(Crashed):
                use()
        directory.open("file").sync()


def test_an_end_inside_an_operation() -> None:
    seen = set()
    for directory, file in fates():
        directory.crash_after(2)
        file.write(0, (b"one",))
        with pytest.raises(Crashed):
            file.write(0, (b"two",))
        with pytest.raises(Crashed):
            directory.names()
        directory.kill()
        seen.add(directory.open("file").read(0, 3))
    assert seen == {b"one", b"tne", b"twe", b"two"}


def test_a_failed_sync_is_not_made_good_by_a_later_one() -> None:
    seen = set()
    for directory, file in fates():
        file.write(0, (b"one",))
        directory.fail_next(Operation.SYNC, errno.EIO)
        with pytest.raises(DiskError) as failed:
            file.sync()
        assert failed.value.errno == errno.EIO
        file.sync()
        assert file.read(0, 3) == b"one"
        directory.power_loss()
        seen.add(directory.open("file").read(0, 3))
    assert seen == {b"one", b"\0\0\0"}


def test_writing_again_after_a_failed_sync_does() -> None:
    for directory, file in fates():
        file.write(0, (b"one",))
        directory.fail_next(Operation.SYNC, errno.EIO)
        with pytest.raises(DiskError):
            file.sync()
        file.write(0, (b"one",))
        file.sync()
        directory.power_loss()
        assert directory.open("file").read(0, 3) == b"one"


def test_faults_come_once_and_end_with_the_process() -> None:
    directory = VirtualDirectory()
    directory.fail_next(Operation.CREATE, errno.ENOSPC)
    with pytest.raises(DiskError):
        directory.create("file", 4096)
    directory.create("file", 4096)
    directory.fail_next(Operation.REMOVE, errno.EIO)
    directory.kill()
    directory.remove("file")


def test_using_it_wrongly_is_told() -> None:
    directory = VirtualDirectory()
    file = durable(directory)
    with pytest.raises(AssertionError, match="beyond the end"):
        file.write(4090, (b"1234567",))
    file.close()
    with pytest.raises(AssertionError, match="after it was closed"):
        file.sync()
    with pytest.raises(DiskError):
        directory.create("file", 1)
    with pytest.raises(DiskError):
        directory.open("missing")
