"""`docs/operations.md` shows what works: its commands are executed as they are written."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import trustme

from api.commands.recover import Kind
from api.main import COMMANDS
from api.security import hash_token
from api.security.tokens_file import parse_tokens
from api.statuses import ExitStatus
from cluster import Address
from tests.api.commands.disks import run

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

_ANYTHING = "…"
_PORTS = ("7601", "7602", "7603")
_MARK = "--- next ---"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """The commands of all transcripts, each with the output that is shown."""
    found: list[tuple[str, str]] = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def pattern(output: str) -> str:
    return ".*?".join(map(re.escape, output.rstrip("\n").split(_ANYTHING)))


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has."""
    for first in range(15_000 + os.getpid() % 1000 * 4, 20_000, 4):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in sockets:
                one.close()
    raise AssertionError


def with_ports(command: str, first: int) -> str:
    """A command with other ports than those of the page, which two commands have by default."""
    command = command.replace(" serve ", f" serve --http-bind 127.0.0.1:{first} ")
    command = command.replace(" dev ", f" dev --http-port {first} ")
    for number, port in enumerate(_PORTS):
        command = command.replace(port, str(first + number))
    return command


@pytest.fixture
def installed() -> Path:
    """The command as it was installed for the Python that runs this."""
    found = shutil.which("ritornello-server", path=sysconfig.get_path("scripts"))
    assert found is not None, "ritornello-server is not installed: run `make venv`"
    return Path(found)


def environment() -> dict[str, str]:
    """Without settings of the server, and with this project as it is here."""
    others = {name: one for name, one in os.environ.items() if "RITORNELLO" not in name}
    return {**others, "PYTHONPATH": str(ROOT)}


def test_the_command_is_installed(installed: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        command = [str(installed), *words]
        return subprocess.run(  # noqa: S603 - our own command
            command, cwd=tmp_path, env=environment(), check=True, capture_output=True, text=True
        ).stdout

    shown = said("--help")
    assert shown.startswith("Usage: ritornello-server [OPTIONS] COMMAND [ARGS]...")
    assert re.findall(r"^  ([a-z-]+) {2,}\S", shown.split("Commands:")[1], re.MULTILINE) == list(
        COMMANDS
    )
    assert tomllib.loads(said("check-config", "--node-id", "node-7"))["node"]["id"] == "node-7"
    assert re.fullmatch(r"ritornello-server, version [0-9.]+\n", said("--version"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="it needs curl")
def test_the_commands_do_what_the_page_says(installed: Path, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    first = free_ports(3)
    lines = ["trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT"]
    for command, _ in steps():
        lines += [with_ports(command, first), f"echo; echo '{_MARK}'"]
    shell = subprocess.Popen(  # noqa: S603 - our own text
        [bash, "-u", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={**environment(), "PATH": f"{installed.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with shell:
        try:
            shown, errors = shell.communicate(timeout=110)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # servers too, that were not stopped
    outputs = shown.split(_MARK)
    assert len(outputs) == len(steps()) + 1, errors
    for (command, wanted), output in zip(steps(), outputs, strict=False):
        found = output.strip("\n")
        assert re.fullmatch(pattern(wanted), found, re.DOTALL), (command, output, errors)


def test_the_file_of_the_page_is_right(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    authority = trustme.CA()
    certificate = authority.issue_cert("ritornello.example.org")
    (tmp_path / "secret").write_text("0123456789abcdef", encoding="utf-8")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "tokens.toml").write_text(
        run("new-token", "--name", "operators", "--scope", "admin").stdout, encoding="utf-8"
    )
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    file = tmp_path / "ritornello.toml"
    file.write_text(text.replace("/etc/ritornello", str(tmp_path)), encoding="utf-8")
    result = run("check-config", "--config", file)
    assert result.exit_code == ExitStatus.STOPPED, result.stderr
    assert result.stderr == ""
    assert tomllib.loads(result.stdout)["node"]["peers"]["node-3"] == str(Address("10.0.0.3", 7600))


def test_the_command_for_a_token_makes_the_one_of_its_page() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ritornello-server (new-token .*) >> \S+$", page, re.MULTILINE)
    (file,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    result = run(*shlex.split(command))
    ((secret, made),) = parse_tokens("made", result.stdout.encode()).items()
    shown, *_ = parse_tokens("shown", file.encode()).values()
    assert (made.name, made.scope, made.themes) == (shown.name, shown.scope, shown.themes)
    assert hash_token(result.stderr.split()[-1]).encode() == b"sha256:" + secret.hex().encode()


def test_the_page_has_all_statuses() -> None:
    section = PAGE.split("## Exit statuses")[1].split("##")[0]
    assert re.findall(r"^\| ([0-9]+) \|", section, re.MULTILINE) == [
        str(int(one)) for one in ExitStatus
    ]


def test_the_page_has_all_that_recover_says() -> None:
    for kind in Kind:
        if kind is not Kind.WHOLE:
            assert str(kind) in PAGE
