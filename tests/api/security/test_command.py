"""`new-token`, as a shell uses it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from api.security import Scope, Tokens, Unauthenticated
from api.security.command import new_token_command
from tests.api.security.files import swap


def run(*arguments: str) -> tuple[str, str, int]:
    result = CliRunner().invoke(new_token_command, arguments)
    return result.stdout, result.stderr, result.exit_code


def test_what_it_prints_is_an_entry_and_a_token(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    first = run("--name", 'the "first" one\\', "--scope", "admin")
    second = run("--name", "b", "--theme", "1-9", "--theme", "20", "--expires", "2001-01-01")
    assert (first[2], second[2]) == (0, 0)
    swap(path, first[0] + second[0])
    tokens = Tokens(path)
    token, ended = first[1].split()[-1], second[1].split()[-1]
    assert token not in first[0]
    assert tokens.identify(token).name == 'the "first" one\\'
    assert tokens.identify(token).scope is Scope.ADMIN
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.identify(ended)
    limited = next(one for one in tokens.files.value.values() if one.name == "b")
    assert (str(limited.themes), limited.scope) == ("1-9, 20", Scope.OPERATE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--name", ""], "takes a name"),
        (["--name", "a", "--theme", "x"], "has a theme 'x'"),
        (["--name", "a", "--scope", "root"], "'root' is not one of"),
        (["--name", "a", "--expires", "soon"], "soon"),
        ([], "--name"),
    ],
)
def test_nothing_is_made_of_nonsense(arguments: list[str], says: str) -> None:
    output, errors, status = run(*arguments)
    assert (output, status) == ("", 2)
    assert says in errors
    assert "rit_" not in errors
