"""`docs/security.md` shows what works."""

import re
import subprocess
from pathlib import Path

from api.security import Scope, hash_token
from api.security.tokens_file import parse_tokens

PAGE = (Path(__file__).parents[3] / "docs" / "security.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_file_of_the_page_is_one() -> None:
    first, second = parse_tokens("docs/security.md", block("toml").encode()).values()
    assert (first.name, first.scope, str(first.themes)) == (
        "billing workers",
        Scope.OPERATE,
        "1-99, 200",
    )
    assert (second.scope, second.themes, second.expires_s) == (Scope.READ, None, float("inf"))


def test_the_commands_of_the_page_make_tokens() -> None:
    for _ in range(5):
        shell = subprocess.run(  # noqa: S603 - our own text
            ["/bin/sh", "-c", block("sh")], check=True, capture_output=True, text=True
        )
        token, digest = (line.split()[-1] for line in shell.stdout.splitlines())
        assert hash_token(token) == digest


def test_the_page_quotes_the_log() -> None:
    assert "`the tokens have changed, and the new ones are in use`" in PAGE
