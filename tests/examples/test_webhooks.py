"""The example does what its README says, with real processes."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.webhooks.events import Event, NoHistoryError, read_history
from examples.webhooks.receiver import is_poisoned
from examples.webhooks.report import judge

ROOT = Path(__file__).parents[2]


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


async def run(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.webhooks", "--http-port", "0", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 110)
    return process.returncode or 0, output.decode()


def test_the_history_is_read_as_it_was_made(repository: Path) -> None:
    events = read_history(repository, 1000)
    assert len(events) == 60
    assert [event.number for event in events if event.key == "one/file 3"] == [1, 2]
    assert {event.customer for event in events} == {"one", "two", "three"}
    assert [Event.of(event.line()) for event in events] == events
    assert any(is_poisoned(event.key) for event in events)


def test_what_has_no_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoHistoryError, match="no git history"):
        read_history(tmp_path, 10)


async def test_everything_arrives(repository: Path) -> None:
    pace = ("--per-second", "100", "--trouble", "0.4", "--once")
    status, output = await run("--repository", str(repository), *pace)
    assert status == 0, output
    assert "60 of 60 events arrived at least once" in output
    assert "keys never go through, and are parked" in output
    assert "each key's events arrived in their order" in output
    assert "no session was worked on by two at once" in output


async def test_everything_arrives_while_nodes_are_killed(repository: Path) -> None:
    pace = ("--per-second", "4", "--once", "--chaos", "--seed", "1")
    status, output = await run("--repository", str(repository), *pace)
    assert status == 0, output
    assert "chaos: " in output
    assert "60 of 60 events arrived at least once" in output


async def test_it_serves_until_it_is_told_to_stop(repository: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.webhooks", "--http-port", "0", "--events", "10"),
        *("--repository", str(repository)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(100):
        async for line in process.stdout:
            if b"keeps serving" in line:
                break
        process.send_signal(signal.SIGINT)
        await process.stdout.read()
        assert await process.wait() == 0


def taken(path: Path, *entries: tuple[int, str, str, str]) -> Path:
    """A journal of deliveries of key `k`: number, worker, session, epoch."""
    names = ("number", "Worker", "Session", "Epoch")
    lines = [json.dumps({"key": "k", **dict(zip(names, one, strict=True))}) for one in entries]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


EVENTS = [Event("c", "k", number, "", "", "") for number in (1, 2, 3)]


def test_the_report_finds_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    good = [(1, "a", "1", "1"), (2, "a", "1", "1"), (2, "b", "1", "2"), (3, "b", "1", "2")]
    report = judge(EVENTS, taken(path, *good))
    assert not report.problems
    assert (report.delivered, report.again) == (3, 1)
    assert "never arrived" in judge(EVENTS, taken(path, *good[:3])).problems[0]
    swapped = judge(EVENTS, taken(path, good[1], good[0], good[3]))
    assert "arrived as [2, 1, 3]" in swapped.problems[0]
    two = judge(EVENTS, taken(path, *good, (3, "a", "1", "2")))
    assert "both worked on session 1, epoch 2" in two.problems[0]
    old = judge(EVENTS, taken(path, *good, (3, "a", "1", "1")))
    assert "older operator" in old.problems[0]
