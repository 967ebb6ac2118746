"""The real disk does what the protocols say."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.storage import disk
from cluster.storage.disk import OsDirectory, make_directory
from cluster.storage.errors import ClosedError, DiskError, DiskFullError, LockedError

HOLD = """
import sys
from cluster.storage.disk import OsDirectory
directory = OsDirectory(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[OsDirectory]:
    with OsDirectory(str(tmp_path)) as opened:
        yield opened


def test_names(directory: OsDirectory) -> None:
    assert directory.names() == []
    for name in ("b", "a"):
        directory.create(name, 4096).close()
    assert directory.names() == ["a", "b"]
    directory.rename("a", "c")
    directory.rename("c", "b")
    directory.sync()
    assert directory.names() == ["b"]
    directory.remove("b")
    assert directory.names() == []


def test_a_new_file_has_its_room_and_is_all_zeros(directory: OsDirectory, tmp_path: Path) -> None:
    size_bytes = (9 << 20) + 4096  # beyond one piece and one sync
    file = directory.create("new", size_bytes)
    assert file.size_bytes == size_bytes
    assert not any(file.read(0, size_bytes))
    status = (tmp_path / "new").stat()
    assert status.st_size == size_bytes
    assert status.st_blocks * 512 >= size_bytes
    assert status.st_mode & 0o077 == 0
    file.close()


def test_writing_and_reading(directory: OsDirectory) -> None:
    file = directory.create("file", 8192)
    file.write(100, (b"one", bytearray(b"two"), memoryview(b"three"), b""))
    file.sync()
    assert file.read(99, 13) == b"\0onetwothree\0"
    assert file.read(8190, 100) == b"\0\0"
    assert file.read(9000, 10) == b""
    file.close()
    again = directory.open("file")
    assert again.size_bytes == 8192
    assert again.read(100, 3) == b"one"
    again.close()
    again.close()


def test_more_buffers_than_one_call_takes(directory: OsDirectory) -> None:
    buffers = [number.to_bytes(2, "little") for number in range(3000)]
    file = directory.create("file", 8192)
    file.write(7, buffers)
    assert file.read(7, 6000) == b"".join(buffers)
    file.close()


@pytest.mark.parametrize("most", [1, 2, 3, 5, 1000])
def test_short_writes_are_continued(
    directory: OsDirectory, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    pwritev = os.pwritev

    def short(descriptor: int, buffers: list[bytes], offset: int) -> int:
        return pwritev(descriptor, [b"".join(map(bytes, buffers))[:most]], offset)

    file = directory.create("file", 4096)
    monkeypatch.setattr(os, "pwritev", short)
    file.write(3, (b"ab", b"", b"cdef", b"", b"g"))
    assert file.read(2, 9) == b"\0abcdefg\0"
    file.close()


def test_a_write_of_nothing_that_was_something_is_an_error(
    directory: OsDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = directory.create("file", 4096)
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    file.write(0, (b"",))
    with pytest.raises(DiskError) as refused:
        file.write(0, (b"", b"x"))
    assert refused.value.errno == errno.EIO
    file.close()


def test_short_reads_are_continued(directory: OsDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread
    file = directory.create("file", 4096)
    file.write(0, (b"abcdefg",))
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 3), offset))
    assert file.read(1, 6) == b"bcdefg"
    file.close()


def test_one_process_at_a_time(directory: OsDirectory, tmp_path: Path) -> None:
    with pytest.raises(LockedError, match=str(tmp_path)):
        OsDirectory(str(tmp_path))
    directory.close()
    OsDirectory(str(tmp_path)).close()


def test_another_process_is_kept_out_until_this_one_ends(tmp_path: Path) -> None:
    root = Path(disk.__file__).parents[2]
    with subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError):
            OsDirectory(str(tmp_path))
        holder.kill()
    OsDirectory(str(tmp_path)).close()


def test_errors_name_the_file_and_keep_the_errno(directory: OsDirectory, tmp_path: Path) -> None:
    directory.create("there", 4096).close()
    with pytest.raises(DiskError, match=f"cannot create {tmp_path}/there: File exists") as exists:
        directory.create("there", 4096)
    assert exists.value.errno == errno.EEXIST
    assert exists.value.operation == "create"
    for operation in (directory.open, directory.remove):
        with pytest.raises(DiskError, match=f"{tmp_path}/missing") as missing:
            operation("missing")
        assert missing.value.errno == errno.ENOENT
    with pytest.raises(DiskError, match="rename to other"):
        directory.rename("missing", "other")
    with pytest.raises(DiskError, match="cannot open"):
        OsDirectory(str(tmp_path / "nowhere"))


def test_only_regular_files_are_opened(directory: OsDirectory, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/etc/hostname")
    for name in ("pipe", "link"):
        with pytest.raises(DiskError):
            directory.open(name)


def test_a_closed_file_is_of_no_use(directory: OsDirectory) -> None:
    file = directory.create("file", 4096)
    file.close()
    for use in (
        lambda: file.read(0, 1),
        lambda: file.write(0, (b"x",)),
        file.sync,
    ):
        with pytest.raises(ClosedError, match=file.path):
            use()


def test_a_full_disk_is_told_and_keeps_no_half_file(
    directory: OsDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DiskFullError, match="No space left"):
        directory.create("new", 4096)
    assert directory.names() == []


def test_gentle_work_can_be_ended(directory: OsDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = []
    fdatasync = os.fdatasync

    def sync(descriptor: int) -> None:
        pieces.append(descriptor)
        if len(pieces) == 2:
            directory.end_gentle_work()
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync)
    with pytest.raises(ClosedError):
        directory.create("new", 5 << 20, gently=True)
    assert len(pieces) == 2
    assert directory.names() == []
    directory.create("waited for", 5 << 20).close()


def test_a_directory_is_made_with_durable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, Path]] = []
    mkdir, fsync = Path.mkdir, os.fsync

    def make(self: Path, mode: int, *, exist_ok: bool) -> None:
        done.append(("made", self))
        mkdir(self, mode, exist_ok=exist_ok)

    def sync(descriptor: int) -> None:
        done.append(("synced", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(os, "fsync", sync)
    make_directory(str(tmp_path / "a" / "b"))
    expected = [
        ("made", tmp_path / "a"),
        ("synced", tmp_path),
        ("made", tmp_path / "a" / "b"),
        ("synced", tmp_path / "a"),
    ]
    assert done == expected
    make_directory(str(tmp_path / "a" / "b"))
    assert done == expected


def test_directories_that_are_made_are_for_their_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o750)
    before = os.umask(0o022)
    try:
        make_directory(str(tmp_path / "there" / "a" / "b"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"there": 0o750, "a": 0o700, "b": 0o700}


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match=f"cannot create {tmp_path}/file/a/b: Not a directory"):
        make_directory(str(tmp_path / "file" / "a" / "b"))
