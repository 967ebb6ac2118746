"""Files that change while a server runs."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from api.security import FileError, FileWatch, Watched
from api.security.files import FILE_BYTES_MAX
from tests.api.security.files import swap, until


def words(*paths: Path) -> Watched[list[str]]:
    def load(contents: tuple[bytes, ...]) -> list[str]:
        if b"bad" in contents:
            raise FileError(str(paths[0]), "it is bad")
        return [content.decode() for content in contents]

    return Watched("words", paths, load, private=paths[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "words"
    swap(path, "one")
    return path


def test_a_change_is_seen_even_if_time_and_size_are_the_same(path: Path) -> None:
    watched = words(path)
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watched.look()
    assert watched.value == ["two"]
    assert not watched.look()
    assert watched.reloads == 1


def test_what_moves_from_one_file_to_the_next_is_a_change(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    swap(first, "ab")
    swap(second, "")
    watched = words(first, second)
    swap(first, "a")
    swap(second, "b")
    assert watched.look()
    assert watched.value == ["a", "b"]


def test_a_problem_is_told_once_and_gone_when_the_file_is_good(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = words(path)
    for content, problem in [("bad", "it is bad"), (None, "No such file"), ("bad", "it is bad")]:
        path.unlink()
        if content:
            swap(path, content)
        else:
            path.unlink(missing_ok=True)
        watched.look()
        watched.look()
        assert problem in watched.problem
        assert watched.value == ["one"]
        path.touch()
    assert watched.reload_failures == 3
    assert caplog.text.count("the old ones stay") == 3
    swap(path, "one")  # as it was: nothing to reload
    assert not watched.look()
    assert watched.problem == ""
    swap(path, "bad")
    watched.look()
    assert watched.reload_failures == 4
    swap(path, "two")
    assert watched.look()
    assert (watched.problem, watched.value) == ("", ["two"])


def test_what_was_refused_is_not_tried_again(path: Path) -> None:
    tries = 0

    def load(contents: tuple[bytes, ...]) -> bytes:
        nonlocal tries
        tries += 1
        if contents == (b"bad",):
            raise FileError("x", "bad")
        return contents[0]

    watched = Watched("words", (path,), load, private=path)
    swap(path, "bad")
    for _ in range(5):
        watched.look()
    assert tries == 2


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe", "large"])
def test_what_is_no_small_file_is_refused_and_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)  # nobody writes to it: who waited would wait for ever
        case "large":
            path.write_bytes(b"x" * (FILE_BYTES_MAX + 1))
        case _:
            pass
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileError, match=kind):
        words(path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_files


def test_a_link_is_followed_wherever_it_goes(tmp_path: Path) -> None:
    """As Kubernetes swaps secrets."""
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        swap(tmp_path / name / "words", name)
    link = tmp_path / "data"
    link.symlink_to("v1")
    watched = words(link / "words")
    (tmp_path / "new").symlink_to("v2")
    (tmp_path / "new").replace(link)
    assert watched.look()
    assert watched.value == ["v2"]


def test_who_lets_others_read_is_warned_once_for_each_time(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.chmod(0o640)
    words(path)
    assert not caplog.records
    path.chmod(0o604)
    watched = words(path)
    assert caplog.text.count("chmod o=") == 1
    path.write_text("two")
    watched.look()
    assert caplog.text.count("chmod o=") == 1
    swap(path, "three")
    watched.look()
    path.chmod(0o602)
    path.write_text("four")
    watched.look()
    assert caplog.text.count("chmod o=") == 2


async def test_a_watch_sees_changes_by_itself(path: Path) -> None:
    watched = words(path)
    watch = FileWatch(watched, check_ms=10)
    await watch.start()
    swap(path, "two")
    await until(lambda: watched.value == ["two"])
    swap(path, "bad")
    await until(lambda: watched.problem != "")
    swap(path, "three")
    await until(lambda: watched.value == ["three"])
    await watch.stop()
    await watch.stop()


async def test_a_watch_looks_when_it_is_told(tmp_path: Path, path: Path) -> None:
    other = tmp_path / "other"
    swap(other, "uno")
    first, second = words(path), words(other)
    watch = FileWatch(first, second, check_ms=3_600_000)
    await watch.start()
    swap(path, "two")
    swap(other, "due")
    await watch.look()
    assert (first.value, second.value) == (["two"], ["due"])
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, watch.reload)
    try:
        for content in ("three", "four"):
            swap(path, content)
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda content=content: first.value == [content])  # type: ignore[misc]
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
    await watch.stop()


async def test_a_watch_that_was_told_looks_once(path: Path) -> None:
    looks = 0

    class Counted(Watched[bytes]):
        def look(self) -> bool:
            nonlocal looks
            looks += 1
            return super().look()

    watch = FileWatch(
        Counted("words", (path,), lambda contents: contents[0], private=path), check_ms=3_600_000
    )
    await watch.start()
    watch.reload()
    await until(lambda: looks > 0)
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert looks == 1
    await watch.stop()


async def test_a_defect_does_not_end_a_watch(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def load(contents: tuple[bytes, ...]) -> int:
        return int(contents[0], 36) if b"?" not in contents[0] else 1 // 0

    watched = Watched("numbers", (path,), load, private=path)
    watch = FileWatch(watched, check_ms=10)
    await watch.start()
    swap(path, "?")
    await until(lambda: "ZeroDivisionError" in caplog.text)
    swap(path, "z")
    await until(lambda: watched.value == 35)
    await watch.stop()
