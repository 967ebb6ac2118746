"""Who says what, who goes before whom, and what is unknown."""

from collections.abc import Callable
from pathlib import Path

import pytest

from api.settings import SETTINGS, TABLE, Found
from cluster import Address
from tests.api.settings.reading import problem, problems, read

Write = Callable[[str], Path]


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(write: Write) -> None:
    file = write('[http]\nbind = "127.0.0.1:1"\nping_ms = 1000\ndrain_ms = 1\n')
    environment = {"RITORNELLO_HTTP_BIND": "127.0.0.1:2", "RITORNELLO_HTTP_PING_MS": "2000"}
    values = read({"http_bind": "127.0.0.1:3"}, environment, file).values
    assert values["http.bind"] == Found(Address("127.0.0.1", 3), "flag --http-bind")
    assert values["http.ping_ms"] == Found(2000, "variable RITORNELLO_HTTP_PING_MS")
    assert values["http.drain_ms"] == Found(1, f"file {file}, line 4")
    assert values["http.connections"] == Found(SETTINGS["http.connections"].default, "default")
    assert list(values) == [one.full_name for one in TABLE]


def test_an_empty_variable_takes_back_what_the_file_says(write: Write) -> None:
    file = write('[http]\ntokens_file = "tokens.toml"\n[node]\npeers = "a=b:1"')
    environment = {"RITORNELLO_HTTP_TOKENS_FILE": "", "RITORNELLO_NODE_PEERS": ""}
    values = read(environment=environment, file=file).values
    assert values["http.tokens_file"].value is None
    assert values["node.peers"].value == {}


@pytest.mark.parametrize(
    "text",
    [
        '[node.peers]\na = "[::1]:1"\nb = "b:2"\n',
        '[node]\npeers = { a = "[::1]:1", b = "b:2" }\n',
        '[node]\npeers = "a=[::1]:1,b=b:2"\n',
        'node.peers = "a = [::1]:1, b = b:2"\n',
        'node = { peers.a = "[::1]:1", peers.b = "b:2" }\n',
    ],
)
def test_peers_can_be_written_in_many_ways(write: Write, text: str) -> None:
    found = read(file=write(text)).values["node.peers"].value
    assert found == {"a": Address("::1", 1), "b": Address("b", 2)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[http]\nbnd = 1\n", "line 2: there is no setting http.bnd; did you mean http.bind?"),
        ("[htp]\nx = 1\n", "line 1: there is no group [htp]; did you mean [http]?"),
        ("[qqqq]\n", "line 1: there is no group [qqqq]"),
        ("[http]\nqqqqqqqqqqqq = 1\n", "line 2: there is no setting http.qqqqqqqqqqqq"),
        (
            '[node]\ntokens_file = "t"\n',
            "line 2: there is no setting node.tokens_file; did you mean http.tokens_file?",
        ),
        (
            'bind = "a:1"\n',
            "line 1: bind stands outside of all groups; did you mean node.bind or http.bind?",
        ),
        ("\nhttp = 1\n", "line 2: http is a group; write [http] on its own line"),
        ("[[http]]\n", "http is a group; write [http] on its own line"),
        (
            '[http]\n# bind\n\nbind = "a"  # here\n',
            "line 4: http.bind is 'a'; write host:port, such as 127.0.0.1:7601 or [::1]:7601",
        ),
        (
            "[http.bind]\nx = 1\n",
            "line 1: http.bind is {'x': 1}; write a text, in quotes",
        ),
        ("http = {ping_ms = 1}", "http.ping_ms is 1; write 100 or more"),
        ("http.ping_ms = 1", "line 1: http.ping_ms is 1; write 100 or more"),
        ("[http]\nbind =\n", "is no TOML: Invalid value (at line 2, column 7)"),
        ("[http]\nping_ms=1000\nping_ms=1000\n", "is no TOML: Cannot overwrite a value"),
        ('[http]\n"a\\nb" = 1\n', "there is no setting http.a\\nb"),
    ],
)
def test_what_is_wrong_in_a_file_is_shown_where_it_is(write: Write, text: str, says: str) -> None:
    said = problem(read(file=write(text)))
    assert said.removeprefix("file ritornello.toml").lstrip(",: ").startswith(says)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert problem(read(file=missing)) == (
        "file missing.toml: cannot be read: No such file or directory"
    )
    assert problem(read(file=tmp_path)).endswith("cannot be read: Is a directory")
    strange = tmp_path / "latin.toml"
    strange.write_bytes(b'[node]\nid = "\xe9"\n')
    assert problem(read(file=strange)) == "file latin.toml: is no text in UTF-8, as TOML has to be"
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (1 << 21))
    assert "has more than 1048576 bytes" in problem(read(file=huge))


def test_an_unknown_variable_is_refused_and_its_value_not_shown() -> None:
    environment = {"RITORNELLO_NODE_CLUSTER_SECRET": "hush hush hush hush", "PATH": "/bin"}
    assert problem(read(environment=environment)) == (
        "environment: there is no variable RITORNELLO_NODE_CLUSTER_SECRET; "
        "did you mean RITORNELLO_NODE_CLUSTER_SECRET_FILE?"
    )


def test_variables_of_the_command_in_the_same_shell_are_no_mistake() -> None:
    names = ("RITORNELLO_URL", "RITORNELLO_TOKEN", "RITORNELLO_CONTEXTS")
    assert not read(environment=dict.fromkeys(names, "x")).problems


def test_variables_of_kubernetes_are_no_mistake() -> None:
    """A Service called `ritornello` or `ritornello-http` puts them into every container."""
    names = [
        f"RITORNELLO{infix}_{rest}"
        for infix in ("", "_HTTP")
        for rest in (
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT",
            "PORT_7601_TCP",
            "PORT_7601_TCP_PROTO",
            "PORT_7601_TCP_PORT",
            "PORT_7601_TCP_ADDR",
        )
    ]
    assert read(environment=dict.fromkeys(names, "tcp://10.0.0.1:7601")).problems == ()
    assert problem(read(environment={"RITORNELLO_SUPPORT": "1"})).startswith("environment: there")
    # No setting may look like one of them: it would be passed over when it is misspelled.
    environment = dict.fromkeys((one.variable for one in TABLE), "\0")
    assert len(read(environment=environment).faulty) > len(TABLE) / 2


def test_all_problems_are_told_at_once(write: Write) -> None:
    file = write('[http]\nbnd = 1\nping_ms = 1\n[node]\nid = "a b"\n')
    environment = {"RITORNELLO_HTTP_CONNECTIONS": "many", "RITORNELLO_HTTP_CONECTIONS": "1"}
    flags = {"http_bind": "0.0.0.0:1", "node_peers": "a=b:1", "consensus_heartbeat_ms": "400"}
    said = problems(read(flags, environment, file))
    assert [one.split("; ")[0] for one in said] == [
        "file ritornello.toml, line 2: there is no setting http.bnd",
        "file ritornello.toml, line 3: http.ping_ms is 1",
        "file ritornello.toml, line 5: node.id is 'a b'",
        "environment: there is no variable RITORNELLO_HTTP_CONECTIONS",
        "variable RITORNELLO_HTTP_CONNECTIONS: http.connections is 'many'",
        (
            "flag --consensus-heartbeat-ms: consensus.election_timeout_min_ms is 500, below 3 "
            "times consensus.heartbeat_ms"
        ),
        (
            "flag --consensus-heartbeat-ms: consensus.quorum_timeout_ms is 1000, below 3 "
            "times consensus.heartbeat_ms"
        ),
        (
            "flag --node-peers: node.insecure is false, but b:1 is not a loopback address, and "
            "peers talk without TLS and without a secret"
        ),
        (
            "flag --http-bind: http.bind is 0.0.0.0:1, which is not a loopback address, and not "
            "safe without tokens (http.tokens_file) and TLS (http.tls_certificate_file, "
            "http.tls_key_file)"
        ),
    ]


def test_what_is_overridden_has_to_make_sense_all_the_same(write: Write) -> None:
    reading = read({"http_ping_ms": "5000"}, file=write("[http]\nping_ms = 1\n"))
    assert problem(reading).startswith("file ritornello.toml, line 2: http.ping_ms is 1")
