"""Clusters of real processes: they do what they are told, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ritornello.sync
from ritornello.testing import Cluster, NodeFailed

THEME = 7


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as found:
        yield found


@pytest.fixture
def client(cluster: Cluster) -> Iterator[ritornello.sync.Client]:
    with cluster.sync_client() as found:
        yield found


def processes(directory: Path) -> list[int]:
    """Those that have something to do with a directory."""
    found: list[int] = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(directory) in (one / "cmdline").read_bytes():
                found.append(int(one.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def do_and_check(client: ritornello.sync.Client, key: str) -> None:
    client.new(THEME, b"survive", key=key, after=0)
    with client.take((THEME, key)) as session:
        assert session.data == b"survive"
        session.remove()


@pytest.mark.parametrize("how", ["kill", "stop_node"])
def test_a_leader_ends_and_starts_again(
    cluster: Cluster, client: ritornello.sync.Client, how: str
) -> None:
    client.new(THEME, b"kept", key="kept", after=0)
    leader = cluster.leader()
    assert getattr(cluster, how)(leader) in {None, 0}
    with pytest.raises(NodeFailed, match="does not run: `restart` it"):
        cluster.kill(leader)
    assert cluster.leader() != leader
    do_and_check(client, "meanwhile")
    cluster.restart(leader)
    with ritornello.sync.Client(cluster.urls[leader]) as again:
        assert again.get((THEME, "kept")).data == b"kept"
    client.remove((THEME, "kept"))


def test_a_leader_stands_still_and_goes_on(
    cluster: Cluster, client: ritornello.sync.Client
) -> None:
    leader = cluster.leader()
    cluster.pause(leader)
    try:
        assert cluster.leader() != leader
        do_and_check(client, "paused")
    finally:
        cluster.go_on(leader)
    with ritornello.sync.Client(cluster.urls[leader]) as again:
        do_and_check(again, "again")


def test_faults_are_on_the_way_to_each_node(cluster: Cluster) -> None:
    for number, url in enumerate(cluster.urls):
        with ritornello.sync.Client(url) as client, cluster.faults.drop(of="new") as fault:
            client.new(THEME, key=f"{number}", after=0)
        assert fault.happened == 1
    with cluster.sync_client() as client:
        assert len(list(client.list(THEME))) == 3
        cluster.faults.cut()
        for session in list(client.list(THEME)):
            client.remove(session.id)


def test_a_node_that_does_not_come_up_tells_why(tmp_path: Path) -> None:
    with pytest.raises(NodeFailed, match="no-such-flag"):
        Cluster(1, directory=tmp_path, flags=("--no-such-flag",)).start()
    assert processes(tmp_path) == []


def test_it_ends_what_it_has_started(tmp_path: Path) -> None:
    with Cluster(1, directory=tmp_path) as one, one.sync_client() as client:
        client.new(THEME, after=0)
        assert len(processes(tmp_path)) == 1
        assert list(one.logs) == ["node-0"]
        assert one.logs["node-0"]
        one.pause(0)
    assert processes(tmp_path) == []
    one.stop()
    with pytest.raises(RuntimeError, match="make another one"):
        one.start()


def test_before_its_start_it_says_what_to_do(tmp_path: Path) -> None:
    one = Cluster(1, directory=tmp_path)
    assert one.urls == []
    with pytest.raises(RuntimeError, match="context manager"):
        one.faults.cut()
    one.stop()


def test_it_ends_with_the_process_that_has_started_it(tmp_path: Path) -> None:
    """However that ends."""
    says = (
        "import os, pathlib, ritornello.testing\n"
        f"ritornello.testing.Cluster(1, directory=pathlib.Path({str(tmp_path)!r})).start()\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", says], timeout=60, check=False)  # noqa: S603
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "node-0").is_dir()
    _until(lambda: not processes(tmp_path))


def _until(holds: Callable[[], object]) -> None:
    end_s = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.02)


@pytest.mark.parametrize("nodes", [-1, 0, 2])
def test_numbers_that_make_no_sense_are_refused(nodes: int) -> None:
    with pytest.raises(ValueError, match="two are no safer than one"):
        Cluster(nodes)
