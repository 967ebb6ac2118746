"""Sessions from the command line: their whole life, and what may go wrong."""

import base64
from pathlib import Path

import pytest

from ritornello.sync import Client
from tests.api.servers import Running
from tests.sdk.cli.commands import Shell


def test_a_life(shell: Shell, theme: int) -> None:
    (row,) = shell.good("new", theme, "--key", "order-1", "--data", "ship it").rows
    (session_id,) = row
    target = f"{theme}/order-1"
    ((found, *_, size, why),) = shell.good("sessions", "list", theme).rows
    assert (found, size, why) == (session_id, "7 B", "-")
    shown = shell.good("sessions", "show", target)
    assert shown.rows[1] == ["0", "7 B", "ship it"]
    assert shell.good("sessions", "show", session_id, "--data").data == b"ship it"
    stored = shell.good("--json", "sessions", "store", target, "--after", "60", "--reason", "later")
    assert stored.json["parked"] is False
    assert shell.good("sessions", "park", target, "--reason", "no such street").rows == [
        [session_id, "parked"]
    ]
    ((*_, phase, _, _, _, why),) = shell.good("sessions", "list", theme, "--phase", "parked").rows
    assert (phase, why) == ("parked", "parked no such street")
    assert shell.good("sessions", "list", theme, "--phase", "ready").out == ""
    assert shell.good("--json", "sessions", "unpark", target).json["id"] == session_id
    assert shell.good("sessions", "remove", target).rows == [[target, "removed"]]
    assert shell.good("sessions", "list", theme).out == ""


def test_json_has_all_there_is(shell: Shell, theme: int) -> None:
    created = shell.good("--json", "new", theme, "--file", "-", stdin=b"\xff\x00").json
    assert created["created"] is True
    found = shell.good("--json", "sessions", "show", created["id"]).json
    assert [base64.b64decode(one) for one in found["chunks"]] == [b"\xff\x00"]
    (listed,) = shell.good("--json", "sessions", "list", theme).jsons
    assert listed["id"] == created["id"]
    assert shell.good("sessions", "show", created["id"], "--data").data == b"\xff\x00"


def test_data_comes_from_a_file(shell: Shell, client: Client, theme: int, tmp_path: Path) -> None:
    path = tmp_path / "order"
    path.write_bytes(b"from a file")
    (row,) = shell.good("new", theme, "--file", path, "--priority", "9", "--after", "60").rows
    view = client.get(row[0])
    assert (view.data, view.priority, view.phase) == (b"from a file", 9, "stored")


def test_a_key_that_is_held(shell: Shell, theme: int) -> None:
    (row,) = shell.good("new", theme, "--key", "k").rows
    held = shell("new", theme, "--key", "k")
    assert (held.status, held.out) == (4, "")
    assert "the key is held" in held.errors
    again = shell.good("new", theme, "--key", "k", "--on-conflict", "return_existing")
    assert again.rows == [[row[0], "it was there already"]]


def test_lists_may_be_narrowed(shell: Shell, theme: int) -> None:
    for number in range(5):
        shell.good("new", theme, "--key", f"{'ab'[number % 2]}{number}")
    assert len(shell.good("sessions", "list", theme, "--limit", 3).rows) == 3
    keys = [row[2] for row in shell.good("sessions", "list", theme, "--key-prefix", "a").rows]
    assert keys == ["a0", "a2", "a4"]


def test_what_others_wrote_does_not_drive_the_terminal(shell: Shell, theme: int) -> None:
    evil = "\x1b[31mred\ttab\r"
    shell.good("new", theme, "--key", evil, "--data", evil)
    for said in (
        shell.good("sessions", "list", theme),
        shell.good("sessions", "show", f"{theme}/{evil}"),
    ):
        assert "\x1b" not in said.out
        assert "\r" not in said.out
        assert all(len(row) in {3, 8} for row in said.rows)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("sessions", "show", "999999"), 3, "session_not_found"),
        (("sessions", "remove", "7/nothing"), 3, "session_not_found"),
        (("sessions", "list", "seven"), 2, "not a valid integer"),
        (("sessions", "list", "-1"), 2, "No such option"),
        (("new", "5000000000"), 2, "theme is 5000000000"),
        (("new", "7", "--after", "-1"), 2, "after is -1.0"),
        (("new", "7", "--data", "a", "--file", "-"), 2, "not both"),
        (("new", "7", "--key", "k" * 300), 2, "a key has 1 to 256 bytes"),
        (("new", "7", "--file", "/does/not/exist"), 2, "does not exist"),
        (("themes", "policy", "7", "lease_ms"), 2, "is no NAME=VALUE"),
        (("themes", "policy", "7", "lease_mz=1"), 2, "lease_mz"),
        (("transfer", "nobody"), 2, "nobody"),
        (("tail", "--after", "nonsense"), 2, "nonsense"),
        (("--timeout", "0", "status"), 2, "--timeout"),
        (("work", "7", "--", "no-such-command-anywhere"), 2, "there is no command"),
    ],
)
def test_what_goes_wrong_is_said_in_a_line(
    shell: Shell, words: tuple[str, ...], status: int, says: str
) -> None:
    said = shell(*words)
    assert (said.status, said.out) == (status, ""), said
    assert says in said.errors
    assert "Traceback" not in said.errors


def test_a_session_that_is_worked_on_is_left_alone(
    shell: Shell, client: Client, theme: int
) -> None:
    with client.new(theme, key="k") as session:
        for verb in ("store", "park", "remove", "unpark"):
            said = shell("sessions", verb, f"{theme}/k")
            assert (said.status, said.out) == (4, ""), said
        session.remove()


def test_nobody_there(shell: Shell) -> None:
    for words in (("status",), ("new", "7"), ("sessions", "list", "7"), ("tail",)):
        said = shell("--timeout", "1.5", *words, url="http://127.0.0.1:1")
        assert (said.status, said.out) == (5, ""), said
        assert "127.0.0.1:1" in said.errors


def test_themes(shell: Shell, theme: int) -> None:
    shell.good("new", theme, "--data", "abc")
    (row,) = shell.good("themes", "show", theme).rows[:1]
    assert row[:2] == [str(theme), "1"]
    policy = dict(shell.good("themes", "policy", theme, "max_attempts=5", "repeat_ms=10").rows)
    assert (policy["max_attempts"], policy["repeat_ms"]) == ("5", "10")
    backoff = shell.good("--json", "themes", "policy", theme, "backoff=exponential").json
    assert backoff["backoff"] == "exponential"
    assert shell.good("--json", "themes", "pause", theme).json["paused"] is True
    assert shell.good("themes", "show", theme).rows[0][-1] == "paused"
    assert shell.good("--json", "themes", "resume", theme).json["paused"] is False
    listed = [one["theme"] for one in shell.good("--json", "themes").jsons]
    assert theme in listed
    assert [int(row[0]) for row in shell.good("themes", "list").rows] == listed


def test_status_and_transfer(shell: Shell, node: Running) -> None:
    said = shell.good("status")
    assert said.rows[1] == [node.node_id, "leader", "connected"]
    assert shell.good("--json", "status").json["leader"] == node.node_id
    assert shell.good("transfer", node.node_id).out == f"{node.node_id} leads\n"
