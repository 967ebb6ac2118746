"""A shell command for each session."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from api.security.tokens import new_token
from ritornello.cli import work
from ritornello.models import SessionView
from ritornello.sync import Client
from tests.api.security.files import entry
from tests.api.servers import in_a_thread, server
from tests.sdk.cli.commands import LONG_S, Said, Shell

SH = ("--", "sh", "-c")


def until(holds: Callable[[], object]) -> None:
    end_s = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < end_s, "it takes too long"
        time.sleep(0.02)


def run(shell: Shell, theme: int, script: str, *options: object) -> Said:
    """Work on one session, in a process of its own: signals are for main threads."""
    with shell.begin("work", theme, "--count", 1, *options, *SH, script) as process:
        out, errors = process.communicate(timeout=LONG_S)
        assert process.returncode == 0, errors
        return Said(process.returncode, out, errors)


def test_the_status_decides(shell: Shell, client: Client, theme: int) -> None:
    client.set_policy(theme, repeat_ms=3_600_000, jitter_permille=0)
    verdicts = {
        "exit 0": ("removed", ""),
        "exit 75": ("stored", "sh asks to be called again"),
        "exit 100": ("parked", "sh asks for it"),
        "exit 3": ("failed", "sh ended with 3"),
        "kill -9 $$": ("failed", "sh was ended by signal 9"),
    }
    for script, (became, reason) in verdicts.items():
        created = client.new(theme, b"x", after=0)
        ((session_id, attempts, said, _, why),) = run(shell, theme, script).rows
        assert (session_id, attempts, said, why) == (created.id, "1", became, reason)
        if became == "removed":
            assert [one.id for one in client.list(theme)] == []
            continue
        view = client.get(created.id)
        (cause,) = view.history
        causes = {"stored": "requested", "parked": "parked", "failed": "failed"}
        assert (cause.cause, cause.reason) == (causes[became], reason)
        assert (view.phase == "parked") == (became == "parked")


def test_data_goes_in_and_what_is_said_is_kept(shell: Shell, client: Client, theme: int) -> None:
    created = client.new(theme, b"ship it\n", key="order-1", after=0)
    script = (
        "cat; echo $RITORNELLO_SESSION $RITORNELLO_THEME $RITORNELLO_KEY $RITORNELLO_EPOCH"
        " $RITORNELLO_ATTEMPTS; echo to people >&2; exit 100"
    )
    said = run(shell, theme, script)
    assert "to people" in said.errors
    found = client.get(created.id)
    text = f"ship it\n{created.id} {theme} order-1 {found.epoch} 1\n"
    assert found.chunks == (b"ship it\n", text.encode())


def test_a_command_need_not_listen(shell: Shell, client: Client, theme: int) -> None:
    client.new(theme, b"x" * 1_000_000, after=0)
    assert run(shell, theme, "exec <&-; exit 0").rows[0][2] == "removed"


def test_what_is_said_is_bounded(shell: Shell, client: Client, theme: int) -> None:
    client.new(theme, after=0)
    ((_, _, became, _, reason),) = run(shell, theme, "head -c 3000000 /dev/zero").rows
    assert (became, reason) == ("failed", "sh said more than 1048576 bytes")


def test_a_command_that_cannot_be_run(
    shell: Shell, client: Client, theme: int, tmp_path: Path
) -> None:
    client.new(theme, after=0)
    script = tmp_path / "script"
    script.write_text("#!/does/not/exist\n")
    script.chmod(0o700)
    with shell.begin("work", theme, "--count", 1, "--", script) as process:
        out, _ = process.communicate(timeout=LONG_S)
    assert "cannot be run: No such file or directory" in out


def test_what_becomes_of_each_is_said_in_json(shell: Shell, client: Client, theme: int) -> None:
    created = client.new(theme, after=0)
    with shell.begin("--json", "work", theme, "--count", 1, "--", "true") as process:
        out, _ = process.communicate(timeout=LONG_S)
    found = Said(0, out, "").json
    assert (found["id"], found["became"], found["epoch"]) == (created.id, "removed", 1)
    assert found["seconds"] > 0


def test_several_at_a_time(shell: Shell, client: Client, theme: int, tmp_path: Path) -> None:
    for _ in range(3):
        client.new(theme, after=0)
    # Each waits for the others.
    script = f"cd {tmp_path}; touch $$; until [ $(ls | wc -l) = 3 ]; do sleep 0.02; done"
    options = ("--concurrency", 3, "--count", 3)
    with shell.begin("work", theme, *options, *SH, script) as process:
        out, _ = process.communicate(timeout=LONG_S)
    assert [row[2] for row in Said(0, out, "").rows] == ["removed"] * 3


def test_no_more_are_taken_than_are_to_be_done(shell: Shell, client: Client, theme: int) -> None:
    for _ in range(4):
        client.new(theme, after=0)
    said = run(shell, theme, "sleep 0.1", "--concurrency", 4)
    assert [row[2] for row in said.rows] == ["removed"]
    assert [one.attempts for one in client.list(theme)] == [0, 0, 0]


def test_what_a_command_leaves_behind_is_not_waited_for(
    shell: Shell, client: Client, theme: int, tmp_path: Path
) -> None:
    client.new(theme, b"x" * 500_000, after=0)
    pid = tmp_path / "pid"
    ((*_, became, seconds, _),) = run(shell, theme, f"sleep 60 2>&- & echo $! > '{pid}'").rows
    try:
        assert became == "removed"
        assert float(seconds) < 20
        assert is_alive(pid.read_text().strip())
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_key_that_no_variable_can_hold(shell: Shell, client: Client, theme: int) -> None:
    created = client.new(theme, key="a\0b", after=0)
    said = run(shell, theme, "exit 0")
    assert said.rows[0][2:3] + said.rows[0][4:] == [
        "failed",
        "sh cannot be run: embedded null byte",
    ]
    assert "Traceback" not in said.errors
    assert client.get(created.id).history[0].cause == "failed"


def test_when_nobody_reads_it_takes_no_more(shell: Shell, client: Client, theme: int) -> None:
    for _ in range(5):
        client.new(theme, after=0)
    with shell.begin("work", theme, "--", "true") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(LONG_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert len(list(client.list(theme))) in {3, 4}  # one may have been on its way


def test_a_disk_that_is_full_ends_it(shell: Shell, client: Client, theme: int) -> None:
    client.new(theme, after=0)
    with (
        Path("/dev/full").open("w") as full,
        shell.begin("work", theme, "--", "true", stdout=full) as process,
    ):
        assert process.wait(LONG_S) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "ritornello: [Errno 28] No space left on device\n"


def test_if_nobody_answers_at_first_it_ends(shell: Shell) -> None:
    shell.url = "http://127.0.0.1:1"
    with shell.begin("--timeout", "0.3", "work", "7", "--", "true") as process:
        out, errors = process.communicate(timeout=LONG_S)
    assert (process.returncode, out) == (5, "")
    assert "no answer in time; http://127.0.0.1:1" in errors


def test_a_token_that_is_not_for_this(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = new_token()
    with in_a_thread(server(tmp_path, tokens=entry(token, "reader", '["read"]'))) as node:
        shell.url = node.url
        for told in ("nonsense", token):  # who may look may not work
            monkeypatch.setenv("RITORNELLO_TOKEN", told)
            with shell.begin("work", "7", "--", "true") as process:
                out, errors = process.communicate(timeout=LONG_S)
            assert (process.returncode, out) == (6, ""), errors
            assert errors.count("\n") == 1
            assert told not in errors


def test_a_token_for_work_on_one_theme_is_enough(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = new_token()
    tokens = entry(token, "worker", '["operate"]', "themes = [7]")
    monkeypatch.setenv("RITORNELLO_TOKEN", token)
    with in_a_thread(server(tmp_path, tokens=tokens)) as node:
        shell.url = node.url
        shell.good("new", 7)
        assert run(shell, 7, "exit 0").rows[0][2] == "removed"
        with shell.begin("work", 8, "--", "true") as process:
            assert process.wait(LONG_S) == 6


class Slow:
    """A command that tells that it runs, and goes on until it is ended, with a child of its own."""

    def __init__(self, directory: Path) -> None:
        self.pids = directory / "pids"
        self.go_on = directory / "go on"
        self.script = (
            f"sleep 1000 & echo $$ $! > '{self.pids}.new'; mv '{self.pids}.new' '{self.pids}';"
            f" until [ -e '{self.go_on}' ]; do sleep 0.02; done; kill $!; echo finished; exit 100"
        )

    @property
    def runs(self) -> bool:
        return any(map(is_alive, self.pids.read_text().split()))


def is_alive(pid: str) -> bool:
    try:
        with Path(f"/proc/{pid}/stat").open() as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_when_it_is_to_end_commands_finish(
    shell: Shell, client: Client, theme: int, slow: Slow, number: signal.Signals
) -> None:
    created, other = client.new(theme, after=0), client.new(theme, after=0)
    with shell.begin("work", theme, *SH, slow.script) as process:
        until(slow.pids.exists)
        process.send_signal(number)
        assert process.stderr is not None
        assert "finishing" in process.stderr.readline()
        slow.go_on.touch()
        out, _ = process.communicate(timeout=LONG_S)
        assert (process.returncode, len(Said(0, out, "").rows)) == (0, 1)
    assert client.get(created.id).chunks == (b"finished\n",)
    assert (client.get(other.id).attempts, client.get(other.id).phase) == (0, "ready")


def test_a_second_signal_ends_commands_and_counts_no_attempt(
    shell: Shell, client: Client, theme: int, slow: Slow
) -> None:
    created = client.new(theme, after=0)
    with shell.begin("work", theme, *SH, slow.script) as process:
        until(slow.pids.exists)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=LONG_S)
        assert process.returncode == 130
        assert Said(0, out, "").rows[0][2] == "given back"
    until(lambda: not slow.runs)
    view = client.get(created.id)
    assert (view.phase, view.attempts, view.history[0].cause) == ("ready", 0, "shutdown")


def test_a_command_that_takes_too_long_is_ended(
    shell: Shell, client: Client, theme: int, slow: Slow
) -> None:
    created = client.new(theme, after=0)
    said = run(shell, theme, slow.script, "--handler-timeout", "0.5")
    assert said.rows[0][2] == "failed", said
    assert said.errors == ""
    until(lambda: not slow.runs)
    assert client.get(created.id).history[0].cause == "failed"


def test_what_a_command_has_begun_has_its_time_too(
    shell: Shell, client: Client, theme: int, tmp_path: Path
) -> None:
    """The shell is gone at once; what it began tidies up first, and has no hold on its streams."""
    client.new(theme, after=0)
    script = tmp_path / "child"
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    script.write_text(
        f"trap 'sleep 0.3; touch {saved}; exit' TERM; touch {begun}; while :; do sleep 0.02; done\n"
    )
    run(shell, theme, f"sh {script} >/dev/null 2>&1 & wait", "--handler-timeout", "0.5")
    assert begun.exists()
    assert saved.exists()


def test_one_that_does_not_want_to_end_is_killed(
    shell: Shell, client: Client, theme: int, tmp_path: Path
) -> None:
    client.new(theme, after=0)
    pids = tmp_path / "pids"
    script = f"trap '' TERM; echo $$ > '{pids}'; while :; do sleep 0.05; done"
    run(shell, theme, script, "--handler-timeout", "0.3")
    until(lambda: not is_alive(pids.read_text().strip()))


def test_when_the_session_is_lost_the_command_is_ended(
    shell: Shell, client: Client, theme: int, slow: Slow
) -> None:
    client.set_policy(theme, lease_ms=1000, repeat_ms=0, jitter_permille=0)
    created = client.new(theme, after=0)
    with shell.begin("work", theme, "--count", 1, *SH, slow.script) as process:
        until(slow.pids.exists)
        process.send_signal(signal.SIGSTOP)  # a machine that stands still
        until(lambda: client.get(created.id).phase != "active")
        other = client.take(created.id)
        assert slow.runs
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=LONG_S)
        assert process.returncode == 0
        assert Said(0, out, "").rows[0][2] == "lost"
    until(lambda: not slow.runs)
    assert other.epoch == 2
    other.append(b"; by another")
    assert client.get(created.id).chunks == (b"; by another",)
    other.remove()


@pytest.mark.parametrize("turns", range(6))
async def test_a_command_is_ended_however_soon_it_is_to_end(turns: int) -> None:
    """Its own children hold its pipes, and those may not be connected yet."""
    view: Any = SimpleNamespace(id="1", theme=7, key="", epoch=1, attempts=1, data=b"")
    running = asyncio.ensure_future(work.run(view, (*SH[1:], "sleep 1000 & sleep 1000")))
    for _ in range(turns):
        await asyncio.sleep(0)
    time.sleep(0.1)  # noqa: ASYNC251 - the machine stands still
    running.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait((running,))
    assert running.cancelled()


def test_when_it_is_killed_the_session_comes_back(
    shell: Shell, client: Client, theme: int, slow: Slow
) -> None:
    client.set_policy(theme, lease_ms=1000, repeat_ms=0, jitter_permille=0)
    created = client.new(theme, b"x", after=0)
    with shell.begin("work", theme, *SH, slow.script) as process:
        until(slow.pids.exists)
        process.kill()
        process.wait(LONG_S)
    view: SessionView | None = None

    def is_back() -> bool:
        nonlocal view
        view = client.get(created.id)
        return view.phase == "ready"

    until(is_back)
    assert view is not None
    assert (view.attempts, view.history[0].cause) == (1, "stale")
    slow.go_on.touch()  # nobody is there to end it: it goes on, and nobody hears what it says
    assert run(shell, theme, "cat; exit 0").rows[0][2] == "removed"
    until(lambda: not slow.runs)
