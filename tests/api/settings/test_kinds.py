"""How values are read, and what is said of those that make no sense."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.settings import SETTINGS, TABLE, Kind, Setting
from api.settings.addresses import is_loopback, parse_address
from api.settings.kinds import SenselessError, in_words, read_text, read_toml, to_text, to_toml
from api.settings.table import Value
from cluster import Address

LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,8}[a-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join).filter(lambda name: name > ":")
HOSTS = st.one_of(NAMES, st.ip_addresses().map(str))
PORTS = st.integers(1, 65_535)
ADDRESSES = st.builds(Address, HOSTS, PORTS)
IDS = st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True)
PEERS = st.lists(
    st.tuples(IDS, ADDRESSES), max_size=5, unique_by=(lambda one: one[0], lambda one: one[1])
).map(dict)
PATHS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).map(
    Path
)


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    match setting.kind:
        case Kind.INTEGER:
            assert setting.minimum is not None
            assert setting.maximum is not None
            step = setting.multiple_of
            return st.integers(-(-setting.minimum // step), setting.maximum // step).map(
                lambda count: count * step
            )
        case Kind.BOOLEAN:
            return st.booleans()
        case Kind.CHOICE:
            return st.sampled_from(setting.choices)
        case Kind.ADDRESS:
            return ADDRESSES
        case Kind.PEERS:
            return PEERS
        case Kind.PATH:
            return PATHS if setting.default is not None else st.none() | PATHS
        case Kind.TEXT:
            assert setting.form is not None
            return st.from_regex(setting.form.pattern, fullmatch=True)
        case Kind.TEXTS:
            assert setting.form is not None
            one = st.from_regex(setting.form.pattern, fullmatch=True)
            return st.lists(one, unique=True, max_size=3).map(tuple)


SETTINGS_WITH_VALUES = st.sampled_from(TABLE).flatmap(
    lambda setting: st.tuples(st.just(setting), values_of(setting))
)


@given(SETTINGS_WITH_VALUES)
def test_what_is_written_is_read_again(pair: tuple[Setting, Value]) -> None:
    setting, value = pair
    written = tomllib.loads(f"one = {to_toml(value)}  # a comment")["one"]
    assert read_toml(setting, written) == value
    assert read_text(setting, to_text(value)) == value


@given(st.sampled_from(TABLE), st.text(max_size=40))
def test_whatever_is_written_is_a_value_or_a_sentence(setting: Setting, text: str) -> None:
    try:
        value = read_text(setting, text)
    except SenselessError as error:
        assert str(error).isascii()  # noqa: PT017 - either is right
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert read_text(setting, to_text(value)) == value


@given(
    st.sampled_from(TABLE),
    st.recursive(
        st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.dates()),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
        ),
        max_leaves=4,
    ),
)
def test_whatever_stands_in_a_file_is_a_value_or_a_sentence(setting: Setting, said: object) -> None:
    try:
        value = read_toml(setting, said)
    except SenselessError as error:
        assert "; " in str(error)  # noqa: PT017 - either is right
    else:
        assert read_text(setting, to_text(value)) == value


def refusal(name: str, text: str) -> str:
    with pytest.raises(SenselessError) as refused:
        read_text(SETTINGS[name], text)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("http.ping_ms", "15s", "is '15s'; write a whole number of milliseconds"),
        ("http.request_bytes", "20MiB", "is '20MiB'; write a whole number of bytes"),
        ("checkpoint.log_bytes_max", "1.5", "is '1.5'; write a whole number of bytes"),
        ("operation.events_history", "", "is ''; write a whole number"),
        ("http.ping_ms", "0", "is 0; write 100 or more"),
        ("http.ping_ms", "3600001", "is 3600001; write 3600000 (1 hour) or less"),
        ("http.ping_ms", "9" * 5000, f"is '{'9' * 79}...; write a whole number of milliseconds"),
        (
            "http.ping_ms",
            "\u0661\u0662",
            "is '\\u0661\\u0662'; write a whole number of milliseconds",
        ),
        (
            "journal.segment_bytes",
            "1048577",
            "is 1048577; write a multiple of 4096, such as 1048576",
        ),
        ("http.insecure", "maybe", "is 'maybe'; write true or false"),
        ("operation.log_format", "xml", "is 'xml'; write auto, console or json"),
        ("operation.log_format", "", "is empty; write a value, or leave it out"),
        ("node.data_directory", "", "is empty; write a value, or leave it out"),
        ("node.data_directory", "a\0b", "is 'a\\x00b'; write a path in UTF-8"),
        ("node.data_directory", "\udcff", "is '\\udcff'; write a path in UTF-8"),
        ("node.id", "a/b", "is 'a/b'; write 1 to 64 ASCII letters, digits, '.', '-' and '_'"),
        (
            "http.bind",
            "localhost",
            "is 'localhost'; write host:port, such as 127.0.0.1:7601 or [::1]:7601",
        ),
        (
            "http.cors_origins",
            "https://a.example,b.example",
            (
                "is 'b.example'; write an origin such as https://console.example.org, without a "
                "path, or * for all"
            ),
        ),
        (
            "operation.tracing_endpoint",
            "https://me:hush@a.example",
            (
                "is 'https://me:hush@a.example'; write an address such as "
                "http://127.0.0.1:4318/v1/traces, without a user, query or fragment"
            ),
        ),
        (
            "node.peers",
            "a",
            "has 'a'; write id=host:port for each member, with commas between them",
        ),
        (
            "node.peers",
            "a=b",
            "has 'b' for 'a'; write host:port, such as 127.0.0.1:7601 or [::1]:7601",
        ),
        ("node.peers", "a=b:0", "has 'b:0' for 'a'; write the port it listens at"),
        ("node.peers", "a=b:1,a=b:2", "has 'a' twice; give each member an id of its own"),
        ("node.peers", "a=b:1,c=b:1", "has b:1 twice; give each member an address of its own"),
    ],
)
def test_a_senseless_text_is_told_what_to_write(name: str, text: str, says: str) -> None:
    assert refusal(name, text) == says


@pytest.mark.parametrize(
    ("name", "said", "says"),
    [
        ("http.ping_ms", "5", "is '5'; write a whole number of milliseconds, without quotes"),
        ("http.ping_ms", True, "is True; write a whole number of milliseconds, without quotes"),
        ("http.ping_ms", 1.0, "is 1.0; write a whole number of milliseconds, without quotes"),
        ("http.insecure", 1, "is 1; write true or false, without quotes"),
        ("http.insecure", "true", "is 'true'; write true or false, without quotes"),
        ("http.bind", 7601, "is 7601; write a text, in quotes"),
        ("http.cors_origins", [1], 'is [1]; write a list of texts, ["...", "..."]'),
        (
            "node.peers",
            {"a": 1},
            (
                "is {'a': 1}; write a table, { node-1 = \"host:port\", ... }, or a text, "
                '"node-1=host:port,..."'
            ),
        ),
    ],
)
def test_types_of_the_file_are_insisted_on(name: str, said: object, says: str) -> None:
    with pytest.raises(SenselessError) as refused:
        read_toml(SETTINGS[name], said)
    assert str(refused.value) == says


@pytest.mark.parametrize("text", ["true", "TRUE", "yes", "on", "1"])
def test_a_boolean_has_some_words(text: str) -> None:
    assert read_text(SETTINGS["http.insecure"], text) is True


def test_an_empty_text_takes_a_path_back() -> None:
    assert read_text(SETTINGS["http.tokens_file"], "") is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:1", Address("localhost", 1)),
        ("node-1.nodes.svc.cluster.local.:7600", Address("node-1.nodes.svc.cluster.local.", 7600)),
        ("[::]:0", Address("::", 0)),
        ("[fe80::1%eth0]:65535", Address("fe80::1%eth0", 65_535)),
        ("0.0.0.0:80", Address("0.0.0.0", 80)),  # noqa: S104 - only parsed
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":1", "a:", "a", "a:65536", "a:-1", "a:1 ", "a b:1", "::1:1", "[a]:1", "[::1]", "[]:1",
        "http://a:1", "10.0.0.256:1", "10.0.0:1", "a:\u0661", "a..b:1", "-a:1", "[::g]:1", "a:1\n",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize(
    ("host", "is_inside"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example", False),  # noqa: S104
    ],
)  # fmt: skip
def test_loopback(host: str, is_inside: bool) -> None:
    assert is_loopback(Address(host, 1)) is is_inside


def test_numbers_in_words() -> None:
    assert in_words(SETTINGS["http.request_bytes"], 20 << 20) == "20971520 (20 MiB)"
    assert in_words(SETTINGS["http.drain_ms"], 60_000) == "60000 (1 minute)"
    assert in_words(SETTINGS["http.drain_ms"], 1_500) == "1500"
    assert in_words(SETTINGS["http.connections"], 1024) == "1024"
