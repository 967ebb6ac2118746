"""A local cluster, as a value and as a command: real processes on this machine."""

import asyncio
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.commands.chaos import ChaosSettings, chaos, minority, plan
from api.dev import (
    HOST,
    PORTS_FILE,
    DevError,
    Lines,
    LocalCluster,
    PortInUseError,
    State,
    check_count,
)
from api.statuses import ExitStatus

ROOT = Path(__file__).parents[2]
SMALL = ("--journal-segment-bytes", "1048576", "--http-drain-ms", "500")
FAST_CHAOS = ChaosSettings(
    calm_min_s=0.0, calm_max_s=0.2, away_min_s=0.1, away_max_s=0.5, ready_timeout_s=30.0
)


def cluster_in(directory: Path, **how: object) -> LocalCluster:
    settings: dict[str, object] = {"http_port": 0, "arguments": SMALL, **how}
    return LocalCluster(directory, **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def ready(cluster: LocalCluster) -> AsyncIterator[LocalCluster]:
    async with cluster:
        await cluster.wait_until_ready()
        yield cluster


async def ask(url: str, data: bytes | None = None) -> dict[str, object]:
    """A request, with a few tries: leaders change in these tests."""
    deadline_s = time.monotonic() + 20
    while True:
        try:
            return await asyncio.to_thread(_ask, url, data)
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            await asyncio.sleep(0.1)


def _ask(url: str, data: bytes | None) -> dict[str, object]:
    request = Request(url, data, {"Content-Type": "text/plain"})  # noqa: S310 - http
    with urlopen(request, timeout=5) as response:  # noqa: S310
        found: dict[str, object] = json.load(response)
        return found


async def create(cluster: LocalCluster, key: str, node: int = 0) -> dict[str, object]:
    return await ask(f"{cluster.urls[node]}/v1/themes/7/sessions?key={key}&repeat_after=0", b"x")


async def until(holds: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


def is_there(pid: int) -> bool:
    """Whether there is such a process, which has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


# The value


async def test_three_nodes_serve_and_are_found_again(tmp_path: Path) -> None:
    async with ready(cluster_in(tmp_path)) as cluster:
        assert list(cluster.nodes) == ["node-1", "node-2", "node-3"]
        assert len(set(cluster.urls)) == 3
        urls = cluster.urls
        created = await create(cluster, "a")
        for url in urls:
            found = await ask(f"{url}/v1/sessions/{created['id']}")
            assert found["id"] == created["id"]
    assert [one.statuses for one in cluster.nodes.values()] == [[0], [0], [0]]
    # As many as before, at the same places, with what they had.
    async with ready(cluster_in(tmp_path)) as cluster:
        assert cluster.urls == urls
        assert (await ask(f"{urls[2]}/v1/sessions/{created['id']}"))["id"] == created["id"]


@pytest.mark.parametrize("nodes", [1, 5])
async def test_other_numbers(tmp_path: Path, nodes: int) -> None:
    async with ready(cluster_in(tmp_path, nodes=nodes)) as cluster:
        assert len(cluster.urls) == nodes
        await create(cluster, "a", nodes - 1)


@pytest.mark.parametrize("nodes", [-1, 0, 2, 10])
def test_numbers_that_make_no_sense(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(DevError, match="write"):
        LocalCluster(tmp_path / "new", nodes=nodes)
    assert not (tmp_path / "new").exists()
    with pytest.raises(DevError):
        check_count(nodes)


async def test_what_is_killed_stays_so_until_it_is_started(tmp_path: Path) -> None:
    async with ready(cluster_in(tmp_path)) as cluster:
        await create(cluster, "a")
        await cluster.kill("node-1")
        node = cluster.nodes["node-1"]
        assert (node.state, node.is_alive) == (State.KILLED, False)
        assert node.statuses == [-signal.SIGKILL]
        assert not await cluster.is_ready("node-1")
        await cluster.wait_until_ready()  # the others
        await create(cluster, "b", 1)
        await cluster.restart("node-1")
        await cluster.wait_until_ready("node-1")
        assert node.lives == 2
        found = await ask(f"{cluster.urls[0]}/v1/themes/7/keys/b")
        assert found["key"] == "b"


async def test_what_is_paused_does_nothing(tmp_path: Path) -> None:
    async with ready(cluster_in(tmp_path)) as cluster:
        cluster.pause("node-3")
        assert not await cluster.is_ready("node-3")
        await create(cluster, "a")
        cluster.resume("node-3")
        await cluster.wait_until_ready("node-3")
        assert (await ask(f"{cluster.urls[2]}/v1/themes/7/keys/a"))["key"] == "a"
        cluster.pause("node-2")
    # A paused one is stopped in order, too.
    assert cluster.nodes["node-2"].statuses == [0]


async def test_one_that_ends_by_itself_is_told_and_started_again(tmp_path: Path) -> None:
    told: list[str] = []
    cluster = cluster_in(tmp_path, on_line=lambda node, text: told.append(f"{node}: {text}"))
    async with ready(cluster):
        node = cluster.nodes["node-2"]
        assert node.process is not None
        os.kill(node.process.pid, signal.SIGKILL)
        await until(lambda: node.lives == 2)
        await cluster.wait_until_ready()
        assert node.process is not None
        os.kill(node.process.pid, signal.SIGTERM)
        await until(lambda: node.lives == 3)
        await cluster.wait_until_ready()
    assert node.statuses == [-signal.SIGKILL, 0, 0]
    pattern = r"dev: node-2 has ended by itself after [0-9.]+ s, {}; .* started again in {} s"
    assert any(re.fullmatch(pattern.format("by SIGKILL", "0.5"), line) for line in told)
    assert any(re.fullmatch(pattern.format("with status 0", "1.0"), line) for line in told)


async def test_one_that_waits_to_be_started_again_can_be_stopped(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path, nodes=1)
    async with ready(cluster):
        node = cluster.nodes["node-1"]
        assert node.process is not None
        os.kill(node.process.pid, signal.SIGKILL)
        await until(lambda: node.state is State.FAILED)
    assert (node.state, node.lives) == (State.STOPPED, 1)


async def test_a_disk_that_is_not_whole_is_hopeless(tmp_path: Path) -> None:
    told: list[str] = []
    async with ready(cluster_in(tmp_path, nodes=1)) as cluster:
        await create(cluster, "a")
    (tmp_path / "node-1" / "state.db").write_bytes(b"")
    cluster = cluster_in(tmp_path, on_line=lambda _, text: told.append(text))
    async with cluster:
        with pytest.raises(DevError, match="with status 3"):
            await cluster.wait_until_ready()
        node = await cluster.hopeless()
        assert (node.lives, node.hopeless) == (1, ExitStatus.DISK)
    assert any(f"recover --data-directory {tmp_path}/node-1" in text for text in told)


async def test_a_directory_that_is_not_free_yet_is_waited_for(tmp_path: Path) -> None:
    told: list[str] = []
    async with ready(cluster_in(tmp_path, nodes=1)):
        pass
    with (tmp_path / "node-1" / "journal" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster = cluster_in(tmp_path, on_line=lambda _, text: told.append(text))
        await cluster.start()
        node = cluster.nodes["node-1"]
        await until(lambda: ExitStatus.IN_USE in node.statuses)
    try:
        await cluster.wait_until_ready()
        assert node.hopeless is None
    finally:
        await cluster.stop()
    pattern = (
        r"node-1 has ended by itself after [0-9.]+ s, with status 7: another process has its data "
        r"directory, .*; it is started again in 0\.5 s"
    )
    assert any(re.fullmatch(pattern, line) for line in told), told


async def test_ports_that_are_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        cluster = LocalCluster(tmp_path, http_port=port - 1)
        with pytest.raises(PortInUseError, match=rf"port \d+ of {HOST} is in use, and node-"):
            await cluster.start()
    await cluster.stop()
    assert not any(one.process for one in cluster.nodes.values())


async def test_a_peers_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path)
    cluster.prepare()
    await cluster.stop()
    port = cluster.nodes["node-2"].peer_port
    with socket.socket() as taken:
        taken.bind((HOST, port))
        taken.listen()
        async with ready(cluster_in(tmp_path)) as again:
            assert again.nodes["node-2"].peer_port != port
            assert again.nodes["node-1"].peer_port == cluster.nodes["node-1"].peer_port


async def test_a_folder_has_one_cluster_of_one_size(tmp_path: Path) -> None:
    first = cluster_in(tmp_path)
    first.prepare()
    with pytest.raises(DevError, match=r"runs in .* already"):
        cluster_in(tmp_path).prepare()
    await first.stop()
    with pytest.raises(DevError, match="a cluster of 3 nodes, not of 5"):
        cluster_in(tmp_path, nodes=5).prepare()
    (tmp_path / PORTS_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(DevError, match="remove it"):
        cluster_in(tmp_path).prepare()


async def test_nodes_end_with_whoever_started_them(tmp_path: Path) -> None:
    """Even if that was killed, and could tell them nothing."""
    code = """
import asyncio, sys
from pathlib import Path
from api.dev import LocalCluster

async def main():
    cluster = LocalCluster(Path(sys.argv[1]), http_port=0, arguments=sys.argv[2:])
    async with cluster:
        await cluster.wait_until_ready()
        print(*(one.process.pid for one in cluster.nodes.values()), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, tmp_path, *SMALL, cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    pids = list(map(int, (await process.stdout.readline()).split()))
    assert len(pids) == 3
    assert all(map(is_there, pids))
    process.kill()
    await process.wait()
    await until(lambda: not any(map(is_there, pids)))


async def test_variables_of_settings_are_left_out(tmp_path: Path) -> None:
    environment = {**os.environ, "RITORNELLO_HTTP_BIND": "127.0.0.1:1", "RITORNELLO_NONSENSE": "1"}
    async with ready(cluster_in(tmp_path, nodes=1, environment=environment)):
        pass


async def test_what_does_not_stop_is_killed_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    cluster = cluster_in(tmp_path, nodes=1, on_line=lambda _, text: told.append(text))
    async with ready(cluster):
        node = cluster.nodes["node-1"]
        assert node.process is not None
        os.kill(node.process.pid, signal.SIGSTOP)  # and nobody knows
        await cluster.stop(timeout_s=0.3)
    assert node.statuses == [-signal.SIGKILL]
    assert "node-1 has NOT STOPPED within 0 s: it is KILLED" in told


async def test_a_stop_can_be_hurried(tmp_path: Path) -> None:
    cluster = cluster_in(tmp_path, nodes=1)
    async with ready(cluster):
        node = cluster.nodes["node-1"]
        assert node.process is not None
        os.kill(node.process.pid, signal.SIGSTOP)
        stopping = asyncio.ensure_future(cluster.stop(timeout_s=60))
        await asyncio.sleep(0)
        cluster.hurry()
        async with asyncio.timeout(10):
            await stopping
    assert node.statuses == [-signal.SIGKILL]


# Lines


@given(st.lists(st.binary(max_size=20)), st.integers(1, 40))
def test_lines_are_whole_however_they_come(pieces: list[bytes], max_bytes: int) -> None:
    lines = Lines(max_bytes)
    found = [line for piece in pieces for line in lines.feed(piece)]
    found += lines.rest()
    data = b"".join(pieces)
    cut = max((len(line) for line in data.split(b"\n")), default=0) > max_bytes
    if not cut:
        expected = data.split(b"\n")
        if not expected[-1]:
            expected.pop()
        assert found == [line.decode(errors="replace") for line in expected]
    assert max((len(line.encode()) for line in found), default=0) <= 3 * (max_bytes + 20)


# Chaos


@given(st.integers(), st.integers(3, 9))
def test_chaos_follows_from_its_seed_and_spares_a_majority(seed: int, count: int) -> None:
    names = [f"node-{number}" for number in range(1, count + 1)]
    settings = ChaosSettings()
    first, second = (plan(seed, names, settings) for _ in range(2))
    for _ in range(20):
        event = next(first)
        assert event == next(second)
        assert 1 <= len(set(event.victims)) == len(event.victims) <= minority(count)
        assert set(event.victims) <= set(names)
        assert settings.calm_min_s <= event.after_s <= settings.calm_max_s
        assert settings.away_min_s <= event.for_s <= settings.away_max_s


@pytest.mark.parametrize("count", [1, 2])
def test_chaos_needs_a_minority(count: int) -> None:
    with pytest.raises(DevError, match="three nodes"):
        next(plan(1, ["a", "b"][:count], ChaosSettings()))


async def test_work_goes_on_through_chaos(tmp_path: Path) -> None:
    told: list[str] = []
    async with ready(cluster_in(tmp_path)) as cluster:
        happening = asyncio.ensure_future(chaos(cluster, 5, told.append, FAST_CHAOS))
        for number in range(12):
            await create(cluster, f"key-{number}", number % 3)
            await asyncio.sleep(0.1)
        await until(lambda: len(told) >= 6)
        happening.cancel()
        await asyncio.wait([happening])
        for node in cluster.nodes.values():
            if node.state is not State.RUNNING:
                await cluster.restart(node.name)
        await cluster.wait_until_ready()
        for number in range(12):
            found = await ask(f"{cluster.urls[number % 3]}/v1/themes/7/keys/key-{number}")
            assert found["key"] == f"key-{number}"
    assert {"killed", "paused"} <= {line.split()[2] for line in told}


# The command


@asynccontextmanager
async def command(
    directory: Path, *words: str, **more: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`dev`, started from somewhere else as a module."""
    environment = {name: one for name, one in os.environ.items() if "COLOR" not in name}
    start = (sys.executable, "-m", "api.main", "dev", "--directory", str(directory))
    process = await asyncio.create_subprocess_exec(
        *start,
        *words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory.parent,
        env={**environment, "PYTHONPATH": str(ROOT), **more},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read_until(process: asyncio.subprocess.Process, pattern: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(30):
        while not lines or not re.search(pattern, lines[-1]):
            line = await process.stdout.readline()
            assert line, lines
            lines.append(line.decode().rstrip("\n"))
    return lines


async def rest_of(process: asyncio.subprocess.Process) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        lines = (await process.stdout.read()).decode().splitlines()
        await process.wait()
    return lines


async def test_the_command_says_how_to_reach_it_and_stops_in_order(tmp_path: Path) -> None:
    async with command(tmp_path / "dev", "--http-port", "0", "--", *SMALL) as process:
        lines = await read_until(process, r"ready after")
        assert lines[0] == f"dev   a cluster of 3 nodes in {tmp_path}/dev"
        urls = [found[0] for line in lines[1:4] if (found := re.search(r"http://\S+", line))]
        assert len(urls) == 3
        curls = [line.removeprefix("dev").strip() for line in lines if " curl " in line]
        assert len(curls) == 2
        answer = b""
        for line in curls:  # as they are
            curl = await asyncio.create_subprocess_shell(
                f"{line} --silent --show-error --fail", stdout=subprocess.PIPE
            )
            answer, _ = await curl.communicate()
            assert curl.returncode == 0, line
        assert [one["theme"] for one in json.loads(answer)["themes"]] == [7]
        process.send_signal(signal.SIGINT)
        last = await rest_of(process)
    assert process.returncode == 0
    assert last[-1] == "dev   stopped"
    assert not [line for line in [*lines, *last] if "\033" in line]
    for name in ("node-1", "node-2", "node-3"):
        # Each line that a node wrote is as it wrote it.
        begins = re.compile(rf"\d\d:\d\d:\d\d\.\d{{3}} \[(info|warning) *\] {name} ")
        assert [line for line in last if begins.match(line) and "has left" in line]
    known = re.compile(r"dev  |\d\d:\d\d:\d\d\.\d{3} \[\w+ *\] node-\d ")
    assert [line for line in [*lines, *last] if not known.match(line)] == []


async def test_nodes_have_colours_where_they_are_wanted(tmp_path: Path) -> None:
    words = ("--nodes", "1", "--http-port", "0", "--", *SMALL)
    async with command(tmp_path / "dev", *words, FORCE_COLOR="1") as process:
        lines = await read_until(process, r"ready after")
        process.send_signal(signal.SIGTERM)
        await rest_of(process)
    assert all("\033[" in line for line in lines)
    assert not [line for line in lines if line.startswith("node-1 |")]


async def test_a_second_ctrl_c_hurries(tmp_path: Path) -> None:
    words = ("--nodes", "1", "--http-port", "0", "--", *SMALL)
    async with command(tmp_path / "dev", *words) as process:
        await read_until(process, r"ready after")
        (child,) = children_of(process.pid)
        os.kill(child, signal.SIGSTOP)  # so that it does not stop
        process.send_signal(signal.SIGINT)
        await read_until(process, r"stopping all nodes")
        process.send_signal(signal.SIGINT)
        lines = await rest_of(process)
    assert process.returncode == 0
    assert any("in a hurry" in line for line in lines)
    assert any("node-1 has NOT STOPPED fast enough: it is KILLED" in line for line in lines)
    assert not is_there(child)


async def test_after_a_kill_it_waits_for_what_is_left(tmp_path: Path) -> None:
    words = ("--nodes", "1", "--http-port", "0", "--", *SMALL)
    async with command(tmp_path / "dev", *words) as first:
        await read_until(first, r"ready after")
        (child,) = children_of(first.pid)
        os.kill(child, signal.SIGSTOP)  # so that it takes its time
        first.kill()
        await first.wait()
    try:
        async with command(tmp_path / "dev", *words) as second:
            await read_until(second, r"another process has its data directory.* started again in")
            os.kill(child, signal.SIGCONT)
            await read_until(second, r"ready after")
            second.send_signal(signal.SIGINT)
            await rest_of(second)
    finally:
        if is_there(child):
            os.kill(child, signal.SIGKILL)
    assert second.returncode == 0
    assert not is_there(child)


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return list(map(int, text.split()))


async def test_the_command_s_chaos_prints_its_seed(tmp_path: Path) -> None:
    words = ("--http-port", "0", "--chaos", "--seed", "3", "--", *SMALL)
    async with command(tmp_path / "dev", *words) as process:
        lines = await read_until(process, r"ready after")
        assert any("chaos, seed 3: " in line for line in lines)
        process.send_signal(signal.SIGTERM)
        await rest_of(process)
    assert process.returncode == 0


async def test_chaos_without_recovery_is_told(tmp_path: Path) -> None:
    """With no time to become ready again, the first kill is one too many."""
    code = f"""
import functools, sys
from api.commands import chaos, dev

settings = chaos.ChaosSettings(0.0, 0.0, 0.0, 0.0, ready_timeout_s=0.0)
dev.let_happen = functools.partial(chaos.chaos, settings=settings)
dev.dev({["--directory", str(tmp_path / "dev"), "--http-port", "0", "--chaos", "--", *SMALL]!r})
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
    )
    lines = await rest_of(process)
    assert process.returncode == ExitStatus.UNEXPECTED
    assert re.match(
        r"error: the cluster does not get well again: not ready within 0 s: node-\d", lines[-1]
    )
    assert "dev   stopped" in lines


async def test_settings_that_are_wrong_end_the_command(tmp_path: Path) -> None:
    words = ("--nodes", "1", "--http-port", "0", "--", "--http-ping-ms", "1")
    async with command(tmp_path / "dev", *words) as process:
        lines = await rest_of(process)
    assert process.returncode == ExitStatus.SETTINGS
    assert any(line.startswith("node-1 | error: flag --http-ping-ms: ") for line in lines)
    assert any("its settings are wrong" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--nodes", "2"), ExitStatus.SETTINGS, "two nodes are no safer than one"),
        (("--nodes", "1", "--chaos"), ExitStatus.SETTINGS, "write --nodes 3"),
        (("--seed", "1"), ExitStatus.SETTINGS, "--seed belongs to --chaos"),
        (("--http-port", "70000"), ExitStatus.SETTINGS, "70000"),
    ],
)
async def test_what_the_command_refuses(
    tmp_path: Path, words: tuple[str, ...], status: int, says: str
) -> None:
    async with command(tmp_path / "dev", *words) as process:
        lines = await rest_of(process)
    assert process.returncode == status
    assert says in " ".join(lines)


async def test_the_command_names_the_port_that_is_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with command(tmp_path / "dev", "--http-port", str(port)) as process:
            lines = await rest_of(process)
    assert process.returncode == ExitStatus.LISTEN
    (line,) = lines
    assert f"port {port} of {HOST} is in use, and node-1 would listen there" in line
    assert "--http-port" in line
