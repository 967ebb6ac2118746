"""What the server is started with, and where it is said.

table         all settings; everything else here follows from it
kinds         how values are read, checked and written
sources       flags, variables, the file, defaults: who says what
build         `ServerSettings` from the values, and whether they fit together
flags         the table as flags of a command
page, schema  the table as documentation, and as a JSON schema
errors        what is wrong, and what to write instead
"""

from api.settings.build import HttpSettings, OperationSettings, ServerSettings, build
from api.settings.errors import SettingsProblem, SettingsProblems
from api.settings.flags import SettingsCommand, read_flags, settings_options
from api.settings.page import settings_page
from api.settings.schema import json_schema
from api.settings.sources import Found, Reading, read_sources
from api.settings.table import GROUPS, SETTINGS, TABLE, Kind, Setting

__all__ = [
    "GROUPS",
    "SETTINGS",
    "TABLE",
    "Found",
    "HttpSettings",
    "Kind",
    "OperationSettings",
    "Reading",
    "ServerSettings",
    "Setting",
    "SettingsCommand",
    "SettingsProblem",
    "SettingsProblems",
    "build",
    "json_schema",
    "read_flags",
    "read_sources",
    "settings_options",
    "settings_page",
]
