"""The kinds of values: how each is read from text and from TOML, checked, and written again.

Text is what flags and variables have. TOML has types, and they are insisted on: `port = "7601"`
for a number is more likely a mistake than a wish. What is written by `to_toml` is read as the same
value.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from api.settings.addresses import parse_address
from api.settings.table import Kind, Setting, Value
from cluster import Address
from state.limits import DAY_MS, GIB, HOUR_MS, KIB, MIB, MINUTE_MS, SECOND_MS

_SHOWN_CHARS_MAX = 80
_INTEGER_CHARS_MAX = 30  # far above any range, far below what takes long to read

_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_UNITS: Mapping[str, tuple[tuple[str, int], ...]] = {
    "bytes": (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)),
    "ms": (("days", DAY_MS), ("hours", HOUR_MS), ("minutes", MINUTE_MS), ("seconds", SECOND_MS)),
}

_ADDRESS_SAYS = "write host:port, such as 127.0.0.1:7601 or [::1]:7601"
_PEERS_SAYS = "write id=host:port for each member, with commas between them"


class SenselessError(ValueError):
    """A value that a setting cannot have; the message goes on after the setting's name."""


def read_text(setting: Setting, text: str) -> Value:
    """The value of a flag or a variable. Raises `SenselessError`."""
    match setting.kind:
        case Kind.INTEGER:
            if len(text) > _INTEGER_CHARS_MAX or not _INTEGER.fullmatch(text):
                raise SenselessError(f"is {show(text)}; write {_whole_number(setting)}")
            return _checked_number(setting, int(text))
        case Kind.BOOLEAN:
            if (value := _WORDS.get(text.lower())) is None:
                raise SenselessError(f"is {show(text)}; write true or false")
            return value
        case Kind.TEXTS:
            return _checked_texts(setting, _split(text))
        case Kind.PEERS:
            return _checked_peers(map(_pair, _split(text)))
        case Kind.TEXT | Kind.CHOICE | Kind.PATH | Kind.ADDRESS:
            return _checked_text(setting, text)


def read_toml(setting: Setting, value: object) -> Value:
    """The value in a file. Raises `SenselessError`."""
    match setting.kind, value:
        case Kind.INTEGER, int() if not isinstance(value, bool):
            return _checked_number(setting, value)
        case Kind.BOOLEAN, bool():
            return value
        case (Kind.TEXTS, list()):
            if all(isinstance(one, str) for one in value):
                return _checked_texts(setting, value)
        case Kind.PEERS, dict():
            if all(isinstance(one, str) for one in value.values()):
                return _checked_peers(value.items())
        case (
            Kind.TEXT | Kind.CHOICE | Kind.PATH | Kind.ADDRESS | Kind.PEERS | Kind.TEXTS,
            str(),
        ):
            return read_text(setting, value)
        case _:
            pass
    raise SenselessError(f"is {show(value)}; write {_toml_says(setting)}")


def to_toml(value: Value) -> str:
    """A value as a file has it; an empty text for None, which no file can say otherwise."""
    match value:
        case None:
            return '""'
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case Address():
            return _quoted(str(value))
        case tuple():
            return f"[{', '.join(_quoted(str(one)) for one in value)}]"
        case Mapping():
            pairs = (f"{_key(name)} = {_quoted(str(one))}" for name, one in value.items())
            return f"{{ {', '.join(pairs)} }}" if value else "{}"
        case str() | Path():
            return _quoted(str(value))


def to_text(value: Value) -> str:
    """A value as a flag and a variable have it."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Address():
            return str(value)
        case tuple():
            return ",".join(map(str, value))
        case Mapping():
            return ",".join(f"{name}={address}" for name, address in value.items())
        case int() | str() | Path():
            return str(value)


def in_words(setting: Setting, value: int) -> str:
    """A number that may be easier to read with a larger unit: `1048576 (1 MiB)`."""
    for unit, size in _UNITS.get(setting.name.removesuffix("_max").rsplit("_", 1)[-1], ()):
        if value and value % size == 0:
            count = value // size
            return f"{value} ({count} {unit if count > 1 else unit.removesuffix('s')})"
    return str(value)


def show(value: object) -> str:
    """What was written, for a message: on one line, and not all of it if it is long."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else f"{text[:_SHOWN_CHARS_MAX]}..."


def _whole_number(setting: Setting) -> str:
    unit = {"bytes": " of bytes", "ms": " of milliseconds"}
    return f"a whole number{unit.get(setting.name.removesuffix('_max').rsplit('_', 1)[-1], '')}"


def _toml_says(setting: Setting) -> str:
    match setting.kind:
        case Kind.INTEGER:
            return f"{_whole_number(setting)}, without quotes"
        case Kind.BOOLEAN:
            return "true or false, without quotes"
        case Kind.TEXTS:
            return 'a list of texts, ["...", "..."]'
        case Kind.PEERS:
            return 'a table, { node-1 = "host:port", ... }, or a text, "node-1=host:port,..."'
        case Kind.TEXT | Kind.CHOICE | Kind.PATH | Kind.ADDRESS:
            return "a text, in quotes"


def _checked_number(setting: Setting, value: int) -> int:
    if setting.minimum is not None and value < setting.minimum:
        raise SenselessError(f"is {value}; write {in_words(setting, setting.minimum)} or more")
    if setting.maximum is not None and value > setting.maximum:
        raise SenselessError(f"is {value}; write {in_words(setting, setting.maximum)} or less")
    if value % setting.multiple_of:
        near = value - value % setting.multiple_of
        raise SenselessError(
            f"is {value}; write a multiple of {setting.multiple_of}, such as {near}"
        )
    return value


def _checked_text(setting: Setting, text: str) -> str | Path | Address | None:
    if not text and setting.default is None:
        return None  # so that a variable can take back what a file says
    if not text:
        raise SenselessError("is empty; write a value, or leave it out")
    match setting.kind:
        case Kind.CHOICE:
            if text not in setting.choices:
                raise SenselessError(f"is {show(text)}; write {_either(setting.choices)}")
            return text
        case Kind.PATH:
            if "\0" in text or not _is_unicode(text):
                raise SenselessError(f"is {show(text)}; write a path in UTF-8")
            return Path(text)
        case Kind.ADDRESS:
            if (address := parse_address(text)) is None:
                raise SenselessError(f"is {show(text)}; {_ADDRESS_SAYS}")
            return address
        case _:
            return _formed(setting, text)


def _is_unicode(text: str) -> bool:
    """Whether it can be written: what the system hands over may have bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _formed(setting: Setting, text: str) -> str:
    if setting.form is not None and not setting.form.fits(text):
        raise SenselessError(f"is {show(text)}; write {setting.form.says}")
    return text


def _checked_texts(setting: Setting, texts: Iterable[str]) -> tuple[str, ...]:
    # In order, and each once.
    return tuple(dict.fromkeys(_formed(setting, text) for text in texts))


def _checked_peers(pairs: Iterable[tuple[str, str]]) -> dict[str, Address]:
    peers: dict[str, Address] = {}
    for name, text in pairs:
        address = parse_address(text)
        if address is None:
            raise SenselessError(f"has {show(text)} for {show(name)}; {_ADDRESS_SAYS}")
        if not address.port:
            raise SenselessError(f"has {show(text)} for {show(name)}; write the port it listens at")
        if name in peers:
            raise SenselessError(f"has {show(name)} twice; give each member an id of its own")
        if address in peers.values():
            raise SenselessError(f"has {address} twice; give each member an address of its own")
        peers[name] = address
    return peers


def _pair(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not equals:
        raise SenselessError(f"has {show(text)}; {_PEERS_SAYS}")
    return name.strip(), address.strip()


def _split(text: str) -> list[str]:
    """The parts between commas; of an empty text none."""
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join((", ".join(choices[:-1]), choices[-1]))


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _quoted(name)


def _quoted(text: str) -> str:
    # TOML's basic strings have JSON's escapes; and one more character that has to be escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
