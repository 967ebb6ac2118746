"""The command `ritornello-server`, as a user types it."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from api import logs
from api.main import COMMANDS, effective, main
from api.settings import (
    GROUPS,
    TABLE,
    Found,
    ServerSettings,
    SettingsCommand,
    read_flags,
    read_sources,
    settings_options,
)
from api.settings.kinds import to_text
from api.statuses import ExitStatus
from cluster import Address
from tests.api.settings.test_kinds import values_of

ROOT = Path(__file__).parents[2]

Serve = Callable[[ServerSettings], int]


def run(*words: str, **environment: str) -> Result:
    return CliRunner(env={**dict.fromkeys(_ours()), **environment}).invoke(main, words)


def _ours() -> list[str]:
    return [name for name in os.environ if name.startswith("RITORNELLO_")]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """How logs were configured; those of this process are left alone."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(logs, "configure", lambda *how: calls.append(how))
    return calls


@pytest.fixture
def server(
    monkeypatch: pytest.MonkeyPatch, configured: list[tuple[str, ...]]
) -> Callable[[Serve], None]:
    """Puts another server in the place of the real one."""
    assert configured == []

    def put(serve: Serve) -> None:
        stand_in = ModuleType("api.server")
        stand_in.serve = serve  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "api.server", stand_in)

    return put


# The group


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.output


def test_the_version_is_the_distribution_s() -> None:
    assert run("--version").output == f"ritornello-server, version {version('ritornello-server')}\n"


def test_an_unknown_command_or_flag_is_a_usage_error() -> None:
    assert run("srve").exit_code == ExitStatus.SETTINGS
    result = run("check-config", "--http-bnd", "x")
    assert result.exit_code == ExitStatus.SETTINGS
    assert "--http-bind" in result.stderr


def test_statuses_never_change_their_meaning() -> None:
    assert {one.name: one.value for one in ExitStatus} == {
        "STOPPED": 0,
        "UNEXPECTED": 1,
        "SETTINGS": 2,
        "DISK": 3,
        "LISTEN": 4,
        "NODE_FAILED": 5,
        "BUDGET_SPENT": 6,
        "IN_USE": 7,
    }


def test_a_process_of_its_own_needs_no_server_to_check() -> None:
    """And loads nothing of what serving takes: it is quick."""
    code = (
        "import sys; from api.main import main; main(['check-config'], standalone_mode=False); "
        "sys.exit('aiohttp' in sys.modules)"
    )
    environment = {name: one for name, one in os.environ.items() if name not in _ours()}
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout)["http"]["bind"] == "127.0.0.1:7601"


# check-config


def test_check_config_shows_values_and_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "ritornello.toml"
    file.write_text("[http]\nping_ms = 1000\n", encoding="utf-8")
    result = run(
        "check-config", "--config", str(file), "--http-insecure", RITORNELLO_HTTP_DRAIN_MS="7"
    )
    assert result.exit_code == ExitStatus.STOPPED
    lines = {" ".join(line.split()) for line in result.stdout.splitlines()}
    assert f"ping_ms = 1000 # file {file}, line 2" in lines
    assert "drain_ms = 7 # variable RITORNELLO_HTTP_DRAIN_MS" in lines
    assert "insecure = true # flag --http-insecure" in lines
    assert "connections = 10000 # default" in lines
    assert tomllib.loads(result.stdout)["http"]["ping_ms"] == 1000


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "ritornello.toml"
    file.write_text("[http]\nping_ms = 1000\n", encoding="utf-8")
    assert "ping_ms = 1000" in run("check-config", RITORNELLO_CONFIG=str(file)).stdout
    assert run("check-config", RITORNELLO_CONFIG="").exit_code == ExitStatus.STOPPED


def test_a_flag_can_take_a_boolean_back() -> None:
    result = run("check-config", "--no-http-insecure", RITORNELLO_HTTP_INSECURE="true")
    assert "flag --http-insecure" in result.stdout
    assert tomllib.loads(result.stdout)["http"]["insecure"] is False


def test_check_config_says_all_that_is_wrong() -> None:
    result = run("check-config", "--http-bind", "x", "--http-ping-ms", "1", RITORNELLO_X="1")
    assert result.exit_code == ExitStatus.SETTINGS
    assert result.stdout == ""
    assert [line.split(": ")[:2] for line in result.stderr.splitlines()] == [
        ["error", "environment"],
        ["error", "flag --http-bind"],
        ["error", "flag --http-ping-ms"],
    ]


def test_check_config_warns(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef", encoding="utf-8")
    secret.chmod(0o644)
    result = run("check-config", "--node-cluster-secret-file", str(secret))
    assert result.exit_code == ExitStatus.STOPPED
    assert result.stderr.startswith("warning: node.cluster_secret_file is ")
    assert "0123456789abcdef" not in result.output
    assert f'cluster_secret_file = "{secret}"' in result.stdout


@given(st.data())
def test_what_check_config_prints_is_a_file_with_the_same_values(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(TABLE), unique=True, max_size=6))
    flags = {one.parameter: to_text(data.draw(values_of(one))) for one in chosen}
    reading = read_sources(flags, {})
    document = tomllib.loads(effective(reading))
    again = read_sources(
        {
            f"{group}_{name}": to_text_of(value)
            for group, content in document.items()
            for name, value in content.items()
        },
        {},
    )
    assert again.problems == ()
    assert {name: one.value for name, one in again.values.items()} == {
        name: one.value for name, one in reading.values.items()
    }


def to_text_of(value: object) -> str:
    """A value of TOML as a flag has it."""
    match value:
        case list():
            return ",".join(value)
        case dict():
            return ",".join(f"{name}={one}" for name, one in value.items())
        case bool():
            return str(value).lower()
        case _:
            return str(value)


# serve


def test_serve_hands_over_the_settings_and_ends_with_its_status(
    server: Callable[[Serve], None], configured: list[tuple[str, ...]]
) -> None:
    received = []

    def serve(settings: ServerSettings) -> int:
        received.append(settings)
        return ExitStatus.BUDGET_SPENT

    server(serve)
    words = ("serve", "--http-bind", "[::1]:0", "--operation-log-format", "json")
    assert run(*words).exit_code == ExitStatus.BUDGET_SPENT
    assert [one.http.bind for one in received] == [Address("::1", 0)]
    assert configured == [("json", "info", "node-1")]


def test_serve_does_not_begin_with_settings_that_are_wrong(server: Callable[[Serve], None]) -> None:
    def serve(_settings: ServerSettings) -> int:
        raise AssertionError

    server(serve)
    result = run("serve", "--http-bind", "0.0.0.0:80")
    assert result.exit_code == ExitStatus.SETTINGS
    assert result.stderr.startswith("error: flag --http-bind: http.bind is 0.0.0.0:80, ")


def test_serve_logs_what_is_insecure_and_what_is_unexpected(tmp_path: Path) -> None:
    """In a process of its own, with its own log."""
    code = """
import sys, types
stand_in = types.ModuleType("api.server")
def serve(settings):
    raise RuntimeError("a defect")
stand_in.serve = serve
sys.modules["api.server"] = stand_in
from api.main import main
main(["serve", "--http-bind", "0.0.0.0:0", "--http-insecure", "--node-id", "n"])
"""
    environment = {name: one for name, one in os.environ.items() if name not in _ours()}
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == ExitStatus.UNEXPECTED
    assert done.stdout == ""
    *insecure, defect = map(json.loads, done.stderr.splitlines())
    assert [line["level"] for line in insecure] == ["warning", "warning"]
    assert {line["node"] for line in insecure} == {"n"}
    assert defect["level"] == "critical"
    assert defect["exception"][0]["exc_value"] == "a defect"


def test_help_of_serve_has_every_setting_in_its_group() -> None:
    output = run("serve", "--help").output
    positions = [output.index(f"\n[{group}] ") for group in GROUPS]
    assert positions == sorted(positions)
    words = output.split()
    for setting in TABLE:
        assert setting.flag in words
        assert f"{setting.variable}]" in words
    assert "[default: 127.0.0.1:7601; RITORNELLO_HTTP_BIND]" in " ".join(words)


# For other commands


def test_a_command_may_take_some_groups_only() -> None:
    values: dict[str, Found] = {}

    @click.command(cls=SettingsCommand)
    @settings_options(["node"])
    def inspect(**given: str | None) -> None:
        values.update(read_flags(given, {"RITORNELLO_HTTP_PING_MS": "1000"}).values)

    result = CliRunner().invoke(inspect, ["--node-id", "n"])
    assert result.exit_code == 0, result.output
    assert values["node.id"].value == "n"
    assert values["http.ping_ms"].value == 1000
    output = CliRunner().invoke(inspect, ["--help"]).output
    assert "--node-id" in output
    assert "--http-bind" not in output
