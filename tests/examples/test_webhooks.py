"""The example does what its README says, with real processes."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from api.dev import LocalCluster
from examples.webhooks.events import Event, NoHistoryError, read_history
from examples.webhooks.producer import idempotency_key, session_key
from examples.webhooks.receiver import is_poisoned

ROOT = Path(__file__).parents[2]
EVENT = Event("run", "c", "k", 1, "", "", "")


def git(repository: Path, *arguments: str) -> None:
    command = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*command, *arguments], check=True, capture_output=True)  # noqa: S603 - our own words


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A history of 60 changes of 30 files, of which some are poisoned."""
    found = tmp_path / "history"
    found.mkdir()
    git(found, "init", "-q")
    for number in range(2):
        for customer in ("one", "two", "three"):
            for name in range(10):
                path = found / customer / f"file {name}"
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{number}", encoding="utf-8")
        git(found, "add", "-A")
        git(found, "commit", "-q", "-m", f"change {number}")
    return found


@contextlib.asynccontextmanager
async def example(folder: Path, *arguments: str) -> AsyncIterator[Process]:
    """The example in a process group of its own, with temporary files below `folder`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.webhooks", "--http-port", "0", *arguments),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=PIPE,
        stderr=STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(folder: Path, *arguments: str) -> tuple[int, str]:
    async with example(folder, *arguments) as process, asyncio.timeout(110):
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()


async def until(process: Process, pattern: str) -> str:
    """Read what it says until a line has the pattern; answers all of it."""
    assert process.stdout is not None
    output = ""
    async with asyncio.timeout(100):
        while not re.search(pattern, output):
            line = await process.stdout.readline()
            assert line, output
            output += line.decode()
    return output


def leftovers(folder: Path) -> list[Path]:
    """What it should have removed."""
    return list(folder.glob("ritornello-*"))


async def ended(process: Process) -> tuple[int, str]:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        output = (await process.stdout.read()).decode()
        return await process.wait(), output


def test_the_history_is_read_as_it_was_made(repository: Path) -> None:
    events = read_history(repository, 1000, "run")
    assert len(events) == 60
    assert [event.number for event in events if event.key == "one/file 3"] == [1, 2]
    assert {event.customer for event in events} == {"one", "two", "three"}
    assert [Event.of(event.line()) for event in events] == events
    assert any(is_poisoned(event.key) for event in events)


def test_what_has_no_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoHistoryError, match="no git history"):
        read_history(tmp_path, 10, "run")


def test_idempotency_keys_are_those_of_one_event() -> None:
    long = replace(EVENT, key="ü/" * 2000)
    others = [
        EVENT,
        replace(EVENT, number=2),
        replace(EVENT, run="other"),
        replace(EVENT, key="l"),
        long,
        replace(long, number=2),
        replace(long, key="x" + long.key),
    ]
    found = [idempotency_key(one) for one in others]
    assert len(set(found)) == len(others)
    assert all(key.isascii() and len(key) <= 256 for key in found)


def test_a_key_of_any_length_has_a_session() -> None:
    keys = ["k", "k" * 256, "k" * 257, "x" + "k" * 257, "ü" * 128, "ü" * 129, "xü" * 200]
    found = [session_key(key) for key in keys]
    assert found[:2] == keys[:2]
    assert len(set(found)) == len(keys)
    assert all(len(key.encode()) <= 256 for key in found)


async def test_everything_arrives(repository: Path, tmp_path: Path) -> None:
    pace = ("--per-second", "100", "--trouble", "0.4", "--once")
    status, output = await run(tmp_path, "--repository", str(repository), *pace)
    assert status == 0, output
    assert "60 of 60 events arrived at least once" in output
    assert "keys never go through, and are parked" in output
    assert "each key's events arrived in their order" in output
    assert "no session was worked on by two at once" in output
    assert not leftovers(tmp_path)


async def test_everything_arrives_while_nodes_are_killed(repository: Path, tmp_path: Path) -> None:
    pace = ("--per-second", "4", "--once", "--chaos", "--seed", "1")
    status, output = await run(tmp_path, "--repository", str(repository), *pace)
    assert status == 0, output
    assert re.search(r"chaos: node-\d.* (killed|paused) ", output), output
    assert "60 of 60 events arrived at least once" in output


async def test_a_cluster_that_knows_the_history_delivers_it_again(
    repository: Path, tmp_path: Path
) -> None:
    """One run is cut short, with events of many keys stored; the next has its own and those."""
    async with LocalCluster(tmp_path / "cluster", nodes=1, http_port=0) as cluster:
        await cluster.wait_until_ready()
        place = ("--repository", str(repository), "--urls", ",".join(cluster.urls))
        pace = ("--per-second", "200", "--trouble", "1")
        async with example(tmp_path, *place, *pace) as process:
            await until(process, "stored +[1-9]")
            os.killpg(process.pid, signal.SIGINT)
            status, output = await ended(process)
            assert status == 0, output
        for is_next in (True, False):
            status, output = await run(tmp_path, *place, "--trouble", "0", "--once")
            assert status == 0, output
            assert "60 of 60 events arrived at least once" in output
            assert ("an earlier run was cut short" in output) is is_next, output
            assert ("events that an earlier run had left" in output) is is_next, output


async def test_it_serves_until_ctrl_c(repository: Path, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group of processes, as a terminal sends it."""
    some = ("--events", "10", "--trouble", "0")
    async with example(tmp_path, *some, "--repository", str(repository)) as process:
        await until(process, "keeps serving")
        os.killpg(process.pid, signal.SIGINT)
        status, output = await ended(process)
        assert status == 0, output
        assert "Traceback" not in output
        assert not leftovers(tmp_path)


async def test_ctrl_c_ends_it_while_the_cluster_starts(repository: Path, tmp_path: Path) -> None:
    directory = tmp_path / "cluster"
    place = ("--directory", str(directory), "--repository", str(repository))
    async with example(tmp_path, *place) as process:
        while not (directory / "node-1").exists():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        began_s = asyncio.get_running_loop().time()
        os.killpg(process.pid, signal.SIGINT)
        status, output = await ended(process)
        assert status == 0, output
        assert "stopping" in output
        assert "nodes are ready" not in output
        assert asyncio.get_running_loop().time() - began_s < 15


async def test_a_second_ctrl_c_hurries(repository: Path, tmp_path: Path) -> None:
    """A node that sleeps would not stop in order for long."""
    some = ("--events", "10", "--trouble", "0")
    async with example(tmp_path, *some, "--repository", str(repository)) as process:
        await until(process, "keeps serving")
        stopped = [pid for pid in children(process.pid) if "serve" in command(pid)]
        assert len(stopped) == 3
        os.kill(stopped[0], signal.SIGSTOP)
        os.killpg(process.pid, signal.SIGINT)
        await until(process, "again hurries")
        began_s = asyncio.get_running_loop().time()
        os.killpg(process.pid, signal.SIGINT)
        status, output = await ended(process)
        assert status == 0, output
        assert "in a hurry" in output
        assert asyncio.get_running_loop().time() - began_s < 10


async def test_nothing_outlives_it(repository: Path, tmp_path: Path) -> None:
    pace = ("--per-second", "1", "--repository", str(repository))
    async with example(tmp_path, *pace) as process:
        await until(process, "stored +[1-9]")
        left = children(process.pid)
        modules = " ".join(map(command, left))
        assert len(left) == 6, modules
        assert "webhooks.receiver" in modules
        assert "webhooks.worker" in modules
        process.kill()
        async with asyncio.timeout(30):
            while any(map(is_alive, left)):  # noqa: ASYNC110 - nothing tells of grandchildren
                await asyncio.sleep(0.05)


async def test_a_port_that_is_taken_is_told(repository: Path, tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        place = ("--repository", str(repository), "--http-port", str(port))
        status, output = await run(tmp_path, *place)
    assert status == 1
    assert f"port {port} of 127.0.0.1 is in use" in output
    assert "--http-port N" in output


async def test_an_event_that_is_never_taken_ends_it(repository: Path, tmp_path: Path) -> None:
    """Not only the key that it belongs to: nobody would be told."""
    async with LocalCluster(tmp_path / "cluster", nodes=1, http_port=0) as cluster:
        await cluster.wait_until_ready()
        async with aiohttp.ClientSession(cluster.urls[0], raise_for_status=True) as http:
            await http.patch("/v1/cluster/limits", json={"key_bytes": 4})
        place = ("--repository", str(repository), "--urls", ",".join(cluster.urls))
        status, output = await run(tmp_path, *place, "--once")
    assert status == 1, output
    assert "was refused" in output


@pytest.mark.parametrize(
    ("given", "wanted"), [("", False), ("0", False), ("no", False), ("1", True), ("yes", True)]
)
def test_make_run_takes_chaos(given: str, wanted: bool) -> None:
    words = ["make", "--dry-run", "run", f"CHAOS={given}", "VENV=/", f"STAMP={ROOT}/README.md"]
    found = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603 - our own words
    assert ("--chaos" in found.stdout) is wanted


def children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(path.parent.name))
    return found


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked for its status does not."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False
