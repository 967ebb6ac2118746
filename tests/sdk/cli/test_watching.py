"""What goes on for a while: events, the live view, the benchmark; pipes, terminals, Ctrl-C."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from string import ascii_uppercase

import pytest

from ritornello.sync import Client
from tests.sdk.cli.commands import LONG_S, Shell


def test_events(shell: Shell, client: Client, theme: int) -> None:
    with client.new(theme, key="k") as session:
        session.remove()
    said = shell.good("tail", "--theme", theme, "--after", "0", "--count", "2")
    assert [(row[1], row[2], row[4]) for row in said.rows] == [
        ("created", str(theme), "k"),
        ("removed", str(theme), "k"),
    ]
    place = said.rows[0][0]
    rest = shell.good("--json", "tail", "--theme", theme, "--after", place, "--count", "1").json
    assert (rest["kind"], rest["id"]) == ("removed", session.id)
    only = shell.good("tail", "--theme", theme, "--kind", "removed", "--after", "0", "--count", "1")
    assert only.rows[0][1] == "removed"
    assert shell("tail", "--kind", "nonsense").status == 2


def test_events_come_as_they_happen(shell: Shell, client: Client, theme: int) -> None:
    with shell.begin("tail", "--theme", theme, "--after", "0") as process:
        assert process.stdout is not None
        for number in range(3):
            client.new(theme, key=f"k{number}", after=60)
            line = process.stdout.readline()
            while "created" not in line:
                line = process.stdout.readline()
            assert f"k{number}" in line
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=LONG_S)
        assert (process.returncode, errors.strip()) == (130, ""), out


def test_who_reads_no_more_ends_it(shell: Shell, client: Client, theme: int) -> None:
    for number in range(30):
        client.new(theme, b"x" * 100, key=f"{number}", after=60)
    for words in (("sessions", "list", theme), ("--json", "sessions", "list", theme)):
        with shell.begin(*words) as process:
            head = subprocess.run(
                ["/usr/bin/env", "head", "-1"],
                stdin=process.stdout,
                capture_output=True,
                timeout=LONG_S,
                check=True,
            )
            assert process.stdout is not None
            process.stdout.close()
            assert process.wait(LONG_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""
            assert head.stdout.count(b"\n") == 1


def test_a_person_sees_tables_and_a_script_lines(shell: Shell, theme: int) -> None:
    shell.good("new", theme, "--key", "order-1", "--data", "ship it")
    seen = shell.at_terminal("sessions", "list", theme)
    assert seen.status == 0
    assert "attempts" in seen.out
    assert "\x1b[" in seen.out
    assert "order-1" in seen.out
    shown = shell.at_terminal("sessions", "show", f"{theme}/order-1")
    assert "chunk" in shown.out
    assert "\t" not in shown.out + shell.at_terminal("themes", "show", theme).out
    told = shell.good("sessions", "list", theme).out
    assert "attempts" not in told
    assert "\x1b" not in told


def test_what_is_long_is_not_cut_short(
    shell: Shell, theme: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ascii_uppercase * 3
    shell.good("new", theme, "--key", key)
    monkeypatch.setenv("COLUMNS", "70")
    seen = shell.at_terminal("sessions", "list", theme)
    assert "\N{HORIZONTAL ELLIPSIS}" not in seen.out
    assert "".join(word for word in seen.out.split() if word in key and word != "B") == key


def test_the_live_view(shell: Shell, theme: int) -> None:
    shell.good("new", theme)
    seen = shell.at_terminal("top", "--count", "2", "--every", "0.05")
    assert seen.status == 0, seen
    assert f"{theme}" in seen.out
    assert "leads in term" in seen.out
    found = shell.good("top", "--count", "2", "--every", "0.05").jsons
    assert [one["cluster"]["is_ready"] for one in found] == [True, True]
    assert theme in [one["theme"] for one in found[0]["themes"]]
    assert shell("top", "--every", "0").status == 2


def test_the_benchmark(shell: Shell, theme: int) -> None:
    words = ("bench", "--theme", theme, "--seconds", "0.3", "--warm-up", "0.1")
    one, other = shell.good("--json", *words, "--sessions", 1, "--sessions", 20).jsons
    assert (one["sessions"], other["sessions"]) == (1, 20)
    for found in (one, other):
        assert found["operations"] > 10
        assert 0 < found["p50_ms"] <= found["p99_ms"]
        assert found["operations_per_s"] > 0
        assert found["client_cpu_us"] > 0
        assert found["client_cpu_share"] > 0
    (row,) = shell.good(*words, "--sessions", 3).rows
    assert row[0] == "3"
    seen = shell.at_terminal(*words, "--sessions", 3)
    assert (seen.status, "ops/s" in seen.out) == (0, True)
    # Neither on a pipe nor in a file is anything but the figures.
    with shell.begin("--json", *words, "--sessions", 3) as process:
        out, errors = process.communicate(timeout=LONG_S)
        assert (process.returncode, errors, out.count("\n")) == (0, "", 1)
    assert shell.good("sessions", "list", theme).out == ""


@contextlib.contextmanager
def ignoring(numbers: list[signal.Signals]) -> Iterator[None]:
    """Have what is begun ignore signals."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# What a script begins with `&` ignores SIGINT: shells see to that.
@pytest.mark.parametrize(
    ("number", "ignored"), [(signal.SIGINT, []), (signal.SIGTERM, [signal.SIGINT])]
)
def test_the_benchmark_that_is_ended_leaves_nothing(
    shell: Shell,
    client: Client,
    theme: int,
    number: signal.Signals,
    ignored: list[signal.Signals],
) -> None:
    words = ("bench", "--theme", theme, "--sessions", "5", "--seconds", "60")
    with ignoring(ignored), shell.begin(*words) as process:
        end_s = time.monotonic() + LONG_S
        while not client.theme(theme).active:
            assert time.monotonic() < end_s
        process.send_signal(number)
        _, errors = process.communicate(timeout=LONG_S)
        assert (process.returncode, errors.strip()) == (130, "")
    assert list(client.list(theme)) == []
