"""The page of the documentation and the schema say what the table says."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.settings import (
    GROUPS,
    SETTINGS,
    TABLE,
    Kind,
    Setting,
    build,
    json_schema,
    settings_page,
)
from api.settings.kinds import SenselessError, read_toml
from cluster import Address
from tests.api.settings.reading import read
from tests.api.settings.test_kinds import SETTINGS_WITH_VALUES

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run `make docs`"


def test_the_page_has_every_setting_once() -> None:
    rows = re.findall(r"^\| `\w+`<br>`--([\w-]+)`<br>`(\w+)` \|", settings_page(), re.MULTILINE)
    assert rows == [(one.flag.removeprefix("--"), one.variable) for one in TABLE]


def test_rows_have_three_cells() -> None:
    for row in re.findall(r"^\| `\w+`<br>.*$", settings_page(), re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) == 4


def test_the_example_of_the_page_works(write: Callable[[str], Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(16)))
    secret.chmod(0o600)
    (example,) = re.findall(r"^```toml\n(.*?)^```", settings_page(), re.MULTILINE | re.DOTALL)
    example = example.replace("/etc/ritornello/secret", str(secret))
    settings = build(read(file=write(example.replace("/var/lib", str(tmp_path)))))
    assert settings.node.bind == Address("10.0.0.1", 7600)
    assert settings.http.cors_origins == ("https://console.example.org",)
    assert settings.warnings == ()


# The schema


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """As little of JSON schema as ours has; what is not known here fails."""
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
    for keyword, bound in schema.items():
        match keyword:
            case "type":
                is_right = isinstance(value, types[bound])
                is_right = is_right and (bound == "boolean" or not isinstance(value, bool))
            case "minimum":
                is_right = value >= bound
            case "maximum":
                is_right = value <= bound
            case "multipleOf":
                is_right = value % bound == 0
            case "enum":
                is_right = value in bound
            case "pattern":
                is_right = re.search(bound, value) is not None
            case "minLength":
                is_right = len(value) >= bound
            case "items":
                is_right = all(accepts(bound, one) for one in value)
            case "properties":
                is_right = all(accepts(bound[name], one) for name, one in value.items())
            case "additionalProperties" if bound is False:
                is_right = set(value) <= set(schema["properties"])
            case "additionalProperties":
                is_right = all(accepts(bound, one) for one in value.values())
            case "$schema" | "title" | "description" | "default":
                is_right = True
            case _:
                raise AssertionError(keyword)
        if not is_right:
            return False
    return True


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    match value:
        case None:
            return ""
        case Address() | Path():
            return str(value)
        case tuple():
            return list(value)
        case dict():
            return {name: str(one) for name, one in value.items()}
        case _:
            return value


def test_the_schema_has_all_and_its_defaults_pass() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert list(schema["properties"]) == list(GROUPS)
    defaults: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for setting in TABLE:
        found = schema["properties"][setting.group]["properties"][setting.name]
        assert found["description"] == setting.help
        defaults[setting.group][setting.name] = found.get("default", "")
    assert accepts(schema, defaults)
    assert not accepts(schema, {**defaults, "htp": {}})
    assert not accepts(schema, {**defaults, "http": {"bnd": ""}})


@given(SETTINGS_WITH_VALUES)
def test_the_schema_accepts_every_value(pair: tuple[Setting, Any]) -> None:
    setting, value = pair
    assert accepts(json_schema(), {setting.group: {setting.name: plain(value)}})


HOSTS = st.sampled_from(["localhost", "10.0.0.1", "node-1.nodes.svc.", "[::1]", "[fe80::1%eth0]"])
PORTS = st.one_of(
    st.integers(0, 99_999).map(str), st.integers(65_000, 66_000).map(str), st.from_regex("[0-9]*")
)


@given(HOSTS, PORTS)
@example("localhost", "0")
@example("localhost", "65535")
@example("localhost", "65536")
@example("localhost", "00080")
def test_the_schema_has_the_server_s_ports(host: str, port: str) -> None:
    for name, said in (("bind", f"{host}:{port}"), ("peers", {"a": f"{host}:{port}"})):
        is_accepted = accepts(json_schema(), {"node": {name: said}})
        try:
            read_toml(SETTINGS[f"node.{name}"], said)
        except SenselessError:
            assert not is_accepted
        else:
            assert is_accepted or port.startswith("0")


@pytest.mark.parametrize("setting", TABLE, ids=lambda one: one.full_name)
@given(
    said=st.one_of(
        st.booleans(),
        st.integers(),
        st.text(max_size=12),
        st.lists(st.text(max_size=12), max_size=2),
        st.dictionaries(st.text(max_size=5), st.text(max_size=12), max_size=2),
    )
)
def test_the_schema_refuses_what_is_of_another_kind(setting: Setting, said: Any) -> None:
    try:
        read_toml(setting, said)
    except SenselessError:
        # That addresses exist, and are given once, is beyond a schema; so are odd paths.
        if setting.kind not in {Kind.ADDRESS, Kind.PEERS, Kind.PATH} or not isinstance(
            said, (str, dict)
        ):
            assert not accepts(json_schema(), {setting.group: {setting.name: said}})
