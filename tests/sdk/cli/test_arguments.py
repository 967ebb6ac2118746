"""Arguments that make no sense are refused before anything is asked, with what to say instead."""

import pytest

from ritornello.sync import Client
from tests.sdk.cli.commands import Shell


@pytest.mark.parametrize("value", ["", ",", " "])
def test_an_address_that_is_empty_is_not_this_machine(shell: Shell, value: str) -> None:
    """As in a script whose variable is not set: another cluster would be worse than none."""
    said = shell("--url", value, "status", url="")
    assert (said.status, said.out) == (2, "")
    assert "http://127.0.0.1:7601" in said.errors


@pytest.mark.parametrize(
    "value",
    ["nonsense://", "http://nonsense:", "http://a:99999", "http://a:0", "a..b", "a" * 70],
)
def test_an_address_that_is_none_is_told(shell: Shell, value: str) -> None:
    said = shell("--url", value, "status", url="")
    assert (said.status, said.out) == (2, "")
    assert "is no address of a node" in said.errors


def test_a_token_file_of_nobody_is_told(shell: Shell) -> None:
    said = shell("--token-file", "~nobody-by-this-name/token", "status")
    assert (said.status, said.out) == (2, "")
    assert "~nobody-by-this-name/token" in said.errors


@pytest.mark.parametrize(
    "words",
    [
        ("--timeout", "nan", "status"),
        ("--timeout", "inf", "status"),
        ("top", "--every", "nan"),
        ("bench", "--seconds", "nan"),
        ("bench", "--warm-up", "inf"),
        ("work", "7", "--grace", "nan", "--", "true"),
        ("work", "7", "--handler-timeout", "inf", "--", "true"),
    ],
    ids=" ".join,
)
def test_times_are_finite(shell: Shell, words: tuple[str, ...]) -> None:
    said = shell(*words)
    assert (said.status, said.out) == (2, "")
    assert "is no finite number" in said.errors


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("lease_mz=1", "there is no setting 'lease_mz'; there are repeat_ms, backoff"),
        ("=5", "there is no setting ''"),
        # These would be arguments of the call itself.
        ("theme=5", "there is no setting 'theme'"),
        ("timeout=5", "there is no setting 'timeout'"),
        ("self=5", "there is no setting 'self'"),
        ("max_attempts=", "max_attempts is a whole number"),
        ("max_attempts=--5", "max_attempts is a whole number"),
        ("max_attempts=\N{SUPERSCRIPT TWO}", "max_attempts is a whole number"),
        ("max_attempts=\N{ARABIC-INDIC DIGIT THREE}", "max_attempts is a whole number"),
        ("max_attempts=99999999999999999999999", "max_attempts is a whole number"),
    ],
)
def test_settings_of_a_policy(
    shell: Shell, client: Client, theme: int, setting: str, says: str
) -> None:
    before = client.theme(theme).policy
    said = shell("themes", "policy", theme, setting)
    assert (said.status, said.out) == (2, ""), said
    assert says in said.errors
    assert client.theme(theme).policy == before


def test_a_setting_is_said_once(shell: Shell, theme: int) -> None:
    said = shell("themes", "policy", theme, "max_attempts=5", "max_attempts=6")
    assert (said.status, "max_attempts is set twice" in said.errors) == (2, True)


def test_the_cluster_refuses_what_is_out_of_range(shell: Shell, theme: int) -> None:
    said = shell("themes", "policy", theme, "max_attempts=-1")
    assert (said.status, said.out) == (2, "")
    assert "max_attempts is between 0 and" in said.errors


def test_data_may_be_any_bytes_but_names_are_text(shell: Shell, client: Client, theme: int) -> None:
    raw = b"\xff\xfe".decode(errors="surrogateescape")  # as Python has it from a shell
    ((session_id,),) = shell.good("new", theme, "--data", raw).rows
    assert client.get(session_id).data == b"\xff\xfe"
    for words in (
        ("new", theme, "--key", raw),
        ("sessions", "show", f"{theme}/{raw}"),
        ("sessions", "list", theme, "--key-prefix", raw),
        ("sessions", "park", session_id, "--reason", raw),
    ):
        said = shell(*words)
        assert (said.status, said.out) == (2, ""), said
        assert "it is not UTF-8" in said.errors


def test_a_theme_is_a_number(shell: Shell) -> None:
    for name in ("seven/k", "/k", "\N{SUPERSCRIPT TWO}/k"):
        said = shell("sessions", "show", name)
        assert (said.status, said.out) == (2, ""), said
        assert "is no THEME/KEY: a theme is a number" in said.errors


def test_options_of_all_commands_stand_before_them(shell: Shell) -> None:
    for words in (("status", "--json"), ("sessions", "list", "7", "--timeout", "3")):
        said = shell(*words)
        assert (said.status, said.out) == (2, ""), said
        (option,) = (one for one in words if one.startswith("--"))
        assert f"{option} stands before the command: ritornello {option}" in said.errors
    assert "No such option" in shell("status", "--jason").errors


def test_a_session_has_a_name(shell: Shell) -> None:
    said = shell("sessions", "remove", "")
    assert (said.status, "by its ID, or by THEME/KEY" in said.errors) == (2, True)


@pytest.mark.parametrize("words", [("--size", "99999999999999"), ("--sessions", "1000000")])
def test_the_benchmark_is_bounded(shell: Shell, words: tuple[str, str]) -> None:
    said = shell("bench", *words)
    assert (said.status, "is not in the range" in said.errors) == (2, True)
