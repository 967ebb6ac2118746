"""Where settings are said: a flag, before a variable, before the file, before the default.

All problems are collected. A setting with a problem keeps its default until they are reported, and
is listed in `faulty`, so that nothing is concluded from it.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from api.settings.errors import SettingsProblem
from api.settings.kinds import SenselessError, read_text, read_toml, show
from api.settings.table import GROUPS, SETTINGS, TABLE, VARIABLE_PREFIX, Setting, Value
from state.limits import MIB

CONFIG_VARIABLE = f"{VARIABLE_PREFIX}CONFIG"  # the file's path, like the flag --config
DEFAULT = "default"

_FILE_BYTES_MAX = MIB

# Of the command `ritornello`, which may be used in the same shell.
_CLIENT_VARIABLES = frozenset({"RITORNELLO_URL", "RITORNELLO_TOKEN", "RITORNELLO_CONTEXTS"})
# Kubernetes tells each container about the Services beside it, in variables that begin with the
# Service's name: of one that is called ritornello-http, RITORNELLO_HTTP_PORT_80_TCP_ADDR and more.
# No setting ends like one of them.
_SERVICE_VARIABLE = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)

_VARIABLES = {one.variable: one for one in TABLE}
_PARAMETERS = {one.parameter: one for one in TABLE}


@dataclass(frozen=True, slots=True)
class Found:
    """A value, and who has said it: "flag --http-bind", "file x.toml, line 7", "default"."""

    value: Value
    origin: str


@dataclass(frozen=True, slots=True)
class Reading:
    """The value of every setting by its full name, in the table's order, and what was wrong."""

    values: Mapping[str, Found]
    problems: tuple[SettingsProblem, ...] = ()
    faulty: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Draft:
    values: dict[str, Found] = field(
        default_factory=lambda: {one.full_name: Found(one.default, DEFAULT) for one in TABLE}
    )
    problems: list[SettingsProblem] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)

    def refuse(self, origin: str, message: str) -> None:
        self.problems.append(SettingsProblem(origin, message))

    def say(self, setting: Setting, origin: str, said: object, *, is_typed: bool) -> None:
        """Take a value. Who comes later has precedence, but does not excuse what is wrong."""
        try:
            # A flag for a boolean is one already.
            is_read = is_typed or not isinstance(said, str)
            value = read_toml(setting, said) if is_read else read_text(setting, str(said))
        except SenselessError as error:
            self.refuse(origin, f"{setting.full_name} {error}")
            self.faulty.add(setting.full_name)
        else:
            self.values[setting.full_name] = Found(value, origin)


def read_sources(
    flags: Mapping[str, str | bool | None],
    environment: Mapping[str, str],
    file: Path | None = None,
) -> Reading:
    """Put the sources together. `flags` has parameters, such as `http_bind`; None is not given."""
    draft = _Draft()
    if file is not None:
        _read_file(draft, file)
    _read_environment(draft, environment)
    for parameter, said in flags.items():
        if said is not None:
            setting = _PARAMETERS[parameter]
            draft.say(setting, f"flag {setting.flag}", said, is_typed=False)
    return Reading(draft.values, tuple(draft.problems), frozenset(draft.faulty))


def _read_environment(draft: _Draft, environment: Mapping[str, str]) -> None:
    for name, said in sorted(environment.items()):
        if not name.startswith(VARIABLE_PREFIX) or name == CONFIG_VARIABLE:
            continue
        if name in _CLIENT_VARIABLES:
            continue
        if (setting := _VARIABLES.get(name)) is not None:
            draft.say(setting, f"variable {name}", said, is_typed=False)
        elif not _SERVICE_VARIABLE.fullmatch(name):
            near = _nearest(name, [*_VARIABLES, CONFIG_VARIABLE])
            draft.refuse("environment", f"there is no variable {name}{near}")


def _read_file(draft: _Draft, path: Path) -> None:
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
        if len(content) > _FILE_BYTES_MAX:
            draft.refuse(f"file {path}", f"has more than {_FILE_BYTES_MAX} bytes; is it the file?")
            return
        text = content.decode()
        document = tomllib.loads(text)
    except OSError as error:
        draft.refuse(f"file {path}", f"cannot be read: {error.strerror or error}")
    except UnicodeDecodeError:
        draft.refuse(f"file {path}", "is no text in UTF-8, as TOML has to be")
    except tomllib.TOMLDecodeError as error:
        draft.refuse(f"file {path}", f"is no TOML: {error}")
    else:
        _read_document(draft, path, text, document)


def _read_document(draft: _Draft, path: Path, text: str, document: Mapping[str, object]) -> None:
    lines = _lines_of(text)

    def origin(*keys: str) -> str:
        line = lines.get(keys)
        return f"file {path}" + (f", line {line}" if line else "")

    for group, content in document.items():
        if group not in GROUPS and not isinstance(content, dict):
            said = f"{show(group)[1:-1]} stands outside of all groups"
            draft.refuse(origin("", group), f"{said}{_in_groups(group)}")
        elif group not in GROUPS:
            near = _nearest(group, GROUPS, "[{}]")
            draft.refuse(origin(group), f"there is no group [{show(group)[1:-1]}]{near}")
        elif not isinstance(content, dict):
            draft.refuse(origin("", group), f"{group} is a group; write [{group}] on its own line")
        else:
            for name, said in content.items():
                full_name = f"{group}.{name}"
                if (setting := SETTINGS.get(full_name)) is not None:
                    draft.say(setting, origin(group, name), said, is_typed=True)
                else:
                    shown = f"{group}.{show(name)[1:-1]}"
                    draft.refuse(
                        origin(group, name), f"there is no setting {shown}{_near(name, full_name)}"
                    )


def _near(name: str, full_name: str) -> str:
    """Where the name stands in another group; else what is written most alike."""
    return _in_groups(name) or _nearest(full_name, SETTINGS)


def _in_groups(name: str) -> str:
    return _question([one.full_name for one in TABLE if one.name == name])


def _nearest(name: str, known: Iterable[str], form: str = "{}") -> str:
    return _question([form.format(one) for one in difflib.get_close_matches(name, known, n=1)])


def _question(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


_HEADER_LINE = re.compile(r"\s*\[\s*(?P<group>[\w.-]+)\s*\]\s*(#.*)?")
_KEY_LINE = re.compile(r"\s*(?P<key>[\w.-]+)\s*=")


def _lines_of(text: str) -> dict[tuple[str, ...], int]:
    """In which line groups and settings are said, as far as a glance tells: it is only a hint."""
    lines: dict[tuple[str, ...], int] = {}
    group = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER_LINE.fullmatch(line):
            group = header["group"]
            lines.setdefault(tuple(group.split(".")), number)
        elif key := _KEY_LINE.match(line):
            path = f"{group}.{key['key']}" if group else key["key"]
            keys = tuple(path.split("."))[:2]
            lines.setdefault(keys if len(keys) > 1 else ("", *keys), number)
    return lines
