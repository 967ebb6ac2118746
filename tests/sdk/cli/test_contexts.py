"""Clusters by name, and the tokens that are shown to them."""

import stat
from pathlib import Path

import pytest
import trustme

from api.security.tokens import new_token
from ritornello.cli import contexts
from tests.api.security.files import entry
from tests.api.servers import in_a_thread, server
from tests.sdk.cli.commands import Shell

NOWHERE = "http://127.0.0.1:1"


def test_clusters_have_names(shell: Shell) -> None:
    def alone(*words: str) -> list[list[str]]:
        found = shell(*words, url="")
        assert found.status == 0, found
        return found.rows

    assert alone("context", "list") == []
    alone("context", "set", "here", "--url", shell.url)
    alone("context", "set", "there", "--url", NOWHERE, "--url", "127.0.0.1:2")
    there = f"{NOWHERE},http://127.0.0.1:2"
    assert alone("context", "list") == [
        ["*", "here", shell.url, "-"],
        ["", "there", there, "-"],
    ]
    assert alone("status")
    assert shell("-c", "there", "--timeout", "0.3", "status", url="").status == 5
    alone("context", "use", "there")
    assert shell("--timeout", "0.3", "status", url="").status == 5
    assert shell("-c", "here", "status", url="").status == 0
    # What is said at the command goes before what is kept.
    assert shell("status").status == 0
    alone("context", "remove", "there")
    listed = shell("--json", "context", "list", url="").jsons
    assert listed == [{"name": "here", "urls": [shell.url], "is_current": False}]


def test_names_that_are_unknown(shell: Shell) -> None:
    shell("context", "set", "live", "--url", NOWHERE, url="")
    for words in (
        ("-c", "lvie", "status"),
        ("context", "use", "lvie"),
        ("context", "remove", "lvie"),
    ):
        said = shell(*words, url="")
        assert said.status == 2
        assert "there is no context 'lvie'" in said.errors
        assert "known: live" in said.errors
    said = shell("context", "set", "bad", "--url", "ftp://there", url="")
    assert (said.status, "no address of a node" in said.errors) == (2, True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("contexts = 1", "a table of tables"),
        ("[contexts.a]\nurls = 'x'", "a list of texts"),
        ("[contexts.a]\nurls = ['x']\ntoken_file = 1", "is a text"),
        ("[contexts.a]\nurls = ['x']\nca_file = 1", "`ca_file` of the context 'a' is a text"),
        ("current = 1", "the name of a context"),
        ("= nonsense", "contexts.toml"),
        ("current = 'gone'", "there is no context 'gone'"),
    ],
)
def test_a_file_that_is_not_in_order(shell: Shell, text: str, says: str) -> None:
    path = contexts.default_path()
    path.parent.mkdir()
    path.write_text(text)
    said = shell("status", url="")
    assert (said.status, said.out) == (2, "")
    assert says in said.errors


def test_names_and_paths_of_any_characters_are_kept(shell: Shell) -> None:
    name, path = 'a "b" \\ \N{SNOWMAN} \x07 \N{TAG SPACE}', "/some where/\\token"
    shell("context", "set", name, "--url", NOWHERE, "--token-file", path, url="")
    found = contexts.load(contexts.default_path())
    assert found.known == {name: contexts.Context((NOWHERE,), path)}
    assert found.current == name
    assert stat.S_IMODE(contexts.default_path().stat().st_mode) == 0o600


def test_the_file_is_for_its_owner_alone(shell: Shell, tmp_path: Path) -> None:
    """Whatever it was before; and a link to it stays one."""
    path, kept = contexts.default_path(), tmp_path / "kept.toml"
    path.parent.mkdir()
    kept.touch(mode=0o644)
    path.symlink_to(kept)
    assert shell("context", "set", "here", "--url", NOWHERE, url="").status == 0
    assert path.is_symlink()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert contexts.load(path).current == "here"
    assert list(path.parent.iterdir()) == [path]


def test_what_could_not_be_read_again_is_not_kept(shell: Shell) -> None:
    raw = b"\xff".decode(errors="surrogateescape")  # as Python has it from a shell
    assert shell("context", "set", "good", "--url", NOWHERE, url="").status == 0
    for words in ((raw,), ("bad", "--token-file", raw), ("bad", "--ca-file", raw)):
        said = shell("context", "set", *words, "--url", NOWHERE, url="")
        assert (said.status, "it is not UTF-8" in said.errors) == (2, True), said
    assert list(contexts.load(contexts.default_path()).known) == ["good"]


def test_a_cluster_that_is_named_is_meant_whatever_variables_say(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, file = new_token(), tmp_path / "token"
    file.write_text(token)
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("RITORNELLO_URL", NOWHERE)
    monkeypatch.setenv("RITORNELLO_TOKEN", "of-another-cluster")
    monkeypatch.setenv("RITORNELLO_CA_FILE", str(tmp_path / "none"))
    authority, trusted = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(trusted))
    tokens = entry(token, "all", '["admin"]')
    with in_a_thread(server(tmp_path / "node", tokens=tokens, authority=authority)) as node:
        files = ("--token-file", file, "--ca-file", trusted)
        shell("context", "set", "live", "--url", node.url, *files, url="")
        named = shell("-c", "live", "status", url="")
        assert named.status == 0, named
        # The current one gives way to them.
        assert str(tmp_path / "none") in shell("status", url="").errors
        # What it does not keep, they say; and what is said at the command goes before all.
        shell("context", "set", "bare", "--url", node.url, url="")
        monkeypatch.setenv("RITORNELLO_TOKEN", token)
        monkeypatch.setenv("RITORNELLO_CA_FILE", str(trusted))
        assert shell("-c", "bare", "status", url="").status == 0
        assert shell("-c", "live", "--timeout", "0.3", "status", url=NOWHERE).status == 5
        bench = shell("-c", "live", "--timeout", "0.3", "bench", "--seconds", "0.1", url=NOWHERE)
        assert (bench.status, bench.out) == (5, "")


def test_tokens(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = new_token()
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    (tmp_path / "node").mkdir()
    with in_a_thread(server(tmp_path / "node", tokens=entry(token, "all", '["admin"]'))) as node:
        assert shell("status", url=node.url).status == 6
        assert shell("--token-file", file, "status", url=node.url).status == 0
        missing = shell("--token-file", tmp_path / "none", "status", url=node.url)
        assert (missing.status, missing.out) == (2, "")
        assert str(tmp_path / "none") in missing.errors
        shell("context", "set", "live", "--url", node.url, "--token-file", file, url="")
        assert shell("status", url="").status == 0
        # A token is for the cluster that it was given for.
        assert shell("status", url=node.url).status == 6
        assert token not in contexts.default_path().read_text()
        for word in ("RITORNELLO_TOKEN",):
            monkeypatch.setenv(word, token)
        assert shell("status", url=node.url).status == 0
        file.write_text("nonsense")
        said = shell("--token-file", file, "status", url=node.url)
        assert said.status == 6
        assert token not in said.errors
        assert "nonsense" not in said.errors


def test_certificates_of_ones_own(shell: Shell, tmp_path: Path) -> None:
    authority, file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    (tmp_path / "node").mkdir()
    with in_a_thread(server(tmp_path / "node", authority=authority)) as node:
        assert node.url.startswith("https://")
        doubtful = shell("--timeout", "1", "status", url=node.url)
        assert doubtful.status == 5
        assert "CERTIFICATE_VERIFY_FAILED" in doubtful.errors
        assert shell("--ca-file", file, "status", url=node.url).status == 0
        assert shell("--ca-file", file, "new", "7", url=node.url).status == 0
        shell("context", "set", "live", "--url", node.url, "--ca-file", file, url="")
        assert shell("status", url="").status == 0
    for name, text in (("none", None), ("nonsense", "no certificate")):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        said = shell("--ca-file", path, "status")
        assert (said.status, said.out) == (2, "")
        assert str(path) in said.errors


@pytest.mark.parametrize("content", [b"", b"\n", b"a b", b"a\nb", b"\xff\xfe", "\u00e9".encode()])
def test_what_is_no_token_is_not_sent(
    shell: Shell, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    said = shell("--token-file", file, "status")
    assert (said.status, said.out) == (2, "")
    assert f"{file} holds no token" in said.errors
    if content.strip() and content.isascii():
        monkeypatch.setenv("RITORNELLO_TOKEN", content.decode())
        said = shell("status")
        assert (said.status, said.out) == (2, "")
        assert "RITORNELLO_TOKEN holds no token" in said.errors
        assert content.decode() not in said.errors


def test_files_are_the_same_from_anywhere(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shell("context", "set", "a", "--url", NOWHERE, "--token-file", "t", "--ca-file", "c", url="")
    shell("context", "set", "b", "--url", NOWHERE, "--token-file", "~/t", url="")
    known = contexts.load(contexts.default_path()).known
    assert (known["a"].token_file, known["a"].ca_file) == (f"{tmp_path}/t", f"{tmp_path}/c")
    assert (known["b"].token_file, known["b"].ca_file) == ("~/t", None)


def test_a_name_that_is_empty_is_not_the_current_one(shell: Shell) -> None:
    assert shell("context", "set", "here", "--url", shell.url, url="").status == 0
    assert shell("context", "set", "", "--url", shell.url, url="").status == 2
    said = shell("-c", "", "status", url="")
    assert (said.status, said.out) == (2, "")
    assert "there is no context ''" in said.errors
