"""The table as a JSON schema, for the chart's values: groups of settings, as in the file.

Draft 7, which is what Helm reads. It accepts nothing that the server refuses by a value's kind,
range or form. Of hosts and paths it knows the letters at most: which of them can be, and what fits
together, is found by the server alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from api.settings.table import GROUPS, TABLE, Kind, Setting
from cluster import Address

_HOST = r"(\[[0-9A-Fa-f:.%a-z]+\]|[A-Za-z0-9._-]+)"
_PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"


def json_schema() -> dict[str, Any]:
    """The schema of an object with the groups of the table. Nothing is required."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Settings of ritornello-server",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            group: {
                "type": "object",
                "description": about,
                "additionalProperties": False,
                "properties": {one.name: _property(one) for one in TABLE if one.group == group},
            }
            for group, about in GROUPS.items()
        },
    }


def _property(setting: Setting) -> dict[str, Any]:
    found = {"description": setting.help, **_type(setting)}
    if setting.default is not None:
        found["default"] = _plain(setting.default)
    return found


def _type(setting: Setting) -> dict[str, Any]:
    match setting.kind:
        case Kind.INTEGER:
            found = {"type": "integer", "minimum": setting.minimum, "maximum": setting.maximum}
            if setting.multiple_of > 1:
                found["multipleOf"] = setting.multiple_of
            return found
        case Kind.BOOLEAN:
            return {"type": "boolean"}
        case Kind.CHOICE:
            return {"type": "string", "enum": list(setting.choices)}
        case Kind.TEXT:
            return {"type": "string", **_pattern(setting)}
        case Kind.TEXTS:
            return {"type": "array", "items": {"type": "string", **_pattern(setting)}}
        case Kind.PATH:
            # Empty is none, where the default is none.
            return {"type": "string", **({} if setting.default is None else {"minLength": 1})}
        case Kind.ADDRESS:
            empty = "" if setting.default is not None else "^$|"
            return {"type": "string", "pattern": f"{empty}^{_HOST}:(0|{_PORT})$"}
        case Kind.PEERS:
            address = {"type": "string", "pattern": f"^{_HOST}:({_PORT})$"}
            return {"type": "object", "additionalProperties": address}


def _pattern(setting: Setting) -> dict[str, Any]:
    return {} if setting.form is None else {"pattern": f"^({setting.form.pattern})$"}


def _plain(value: object) -> object:
    """A value as JSON has it."""
    match value:
        case Address() | Path():
            return str(value)
        case tuple():
            return list(value)
        case Mapping():
            return {name: str(one) for name, one in value.items()}
        case _:
            return value
