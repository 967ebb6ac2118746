"""The table itself: names, units, ranges, and where its numbers come from."""

from dataclasses import fields
from pathlib import Path

import pytest

from api.settings import (
    GROUPS,
    SETTINGS,
    TABLE,
    HttpSettings,
    Kind,
    OperationSettings,
    Setting,
    build,
    read_sources,
)
from api.settings.kinds import read_text, to_text
from api.settings.sources import CONFIG_VARIABLE
from cluster import NodeSettings
from state.limits import NODE_LIMIT_RANGES

EACH = pytest.mark.parametrize("setting", TABLE, ids=lambda one: one.full_name)


def test_no_name_is_given_twice() -> None:
    for names in (
        [one.full_name for one in TABLE],
        [one.parameter for one in TABLE],
        [one.flag for one in TABLE],
        [one.variable for one in TABLE] + [CONFIG_VARIABLE],
    ):
        assert len(names) == len(set(names))
    assert {one.group for one in TABLE} == set(GROUPS)


def test_the_three_forms_of_a_name() -> None:
    setting = SETTINGS["http.tls_key_file"]
    assert setting.flag == "--http-tls-key-file"
    assert setting.variable == "RITORNELLO_HTTP_TLS_KEY_FILE"


@EACH
def test_a_default_is_within_its_own_bounds(setting: Setting) -> None:
    assert read_text(setting, to_text(setting.default)) == setting.default


@EACH
def test_a_number_has_a_range_and_a_help_is_a_sentence(setting: Setting) -> None:
    assert setting.help[0].isupper()
    assert setting.help.endswith(".")
    assert (setting.kind is Kind.INTEGER) == (setting.minimum is not None)
    assert (setting.kind is Kind.INTEGER) == (setting.maximum is not None)
    assert (setting.kind is Kind.CHOICE) == bool(setting.choices)


@EACH
def test_a_secret_is_in_a_file(setting: Setting) -> None:
    words = ("secret", "token", "key", "password")
    if any(word in setting.name.split("_") for word in words):
        assert setting.kind is Kind.PATH
    if setting.holds_secret:
        assert setting.is_file
        assert setting.name.endswith("_file")


def test_who_says_nothing_gets_what_a_program_gets() -> None:
    settings = build(read_sources({}, {}))
    assert settings.node == NodeSettings(Path("data"))
    assert settings.http == HttpSettings()
    assert settings.operation == OperationSettings()
    assert settings.warnings == ()


@pytest.mark.parametrize("owner", [HttpSettings, OperationSettings])
def test_a_group_is_a_class(owner: type) -> None:
    group = owner.__name__.removesuffix("Settings").lower()
    rows = {one.name: one.default for one in TABLE if one.group == group}
    assert {one.name: one.default for one in fields(owner)} == rows


@pytest.mark.parametrize(
    ("full_name", "field"),
    [
        ("queue.intake_operations", "intake_operations"),
        ("queue.intake_bytes", "intake_bytes"),
        ("http.connections", "connections"),
        ("http.websocket_frame_bytes", "websocket_frame_bytes"),
    ],
)
def test_bounds_of_a_node_are_those_of_state(full_name: str, field: str) -> None:
    setting, allowed = SETTINGS[full_name], NODE_LIMIT_RANGES[field]
    bounds = (setting.default, setting.minimum, setting.maximum)
    assert bounds == (allowed.default, allowed.minimum, allowed.maximum)


# Of files, and of peers, test_build shows what becomes of them.
SIMPLE = [one for one in TABLE if not one.is_file and one.name not in {"peers", "bind"}]


@pytest.mark.parametrize("setting", SIMPLE, ids=lambda one: one.full_name)
def test_every_setting_arrives(setting: Setting, tmp_path: Path) -> None:
    """A value that is not the default makes settings that are not the default's."""
    if setting.kind is Kind.INTEGER and isinstance(setting.default, int):
        assert setting.maximum is not None
        value = str(min(setting.default + setting.multiple_of, setting.maximum))
    else:
        value = {
            "node.id": "other",
            "node.data_directory": str(tmp_path),
            "node.cluster_id": "other",
            "http.cors_origins": "*",
            "operation.tracing_endpoint": "http://localhost:1",
        }.get(setting.full_name, setting.choices[-1] if setting.choices else "true")
    settings = build(read_sources({setting.parameter: value}, {}))
    assert settings != build(read_sources({}, {}))
