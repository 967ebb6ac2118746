"""Clusters by name, in a file of the user's: where they are, and with which token.

    current = "local"

    [contexts.local]
    urls = ["http://127.0.0.1:7601"]

    [contexts.production]
    urls = ["https://a.example:7601", "https://b.example:7601"]
    token_file = "~/.ritornello-token"
    ca_file = "/etc/ssl/ours.pem"

A token itself never stands in it.
"""

import os
import ssl
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkstemp

from ritornello.client import DEFAULT_URL

CONFIG_VARIABLE = "RITORNELLO_CONTEXTS"


class ContextError(Exception):
    """The file, or a context in it, is not as it should be."""


@dataclass(frozen=True, slots=True)
class Context:
    """A cluster."""

    urls: tuple[str, ...] = (DEFAULT_URL,)
    token_file: str | None = None
    ca_file: str | None = None  # whom to trust, if not whom the machine does

    def token(self) -> str | None:
        """The token, read anew. Raises `ContextError`."""
        if self.token_file is None:
            return None
        try:
            said = Path(self.token_file).expanduser().read_bytes()
        except (OSError, RuntimeError) as error:  # RuntimeError: it has no home directory
            raise ContextError(f"{self.token_file}: {_why(error)}") from error
        return checked_token(said.decode(errors="replace").strip(), self.token_file)

    def tls(self) -> ssl.SSLContext | None:
        """How nodes are checked; None: as the machine has it. Raises `ContextError`."""
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=Path(self.ca_file).expanduser())
        except (OSError, RuntimeError) as error:  # ssl.SSLError is one
            raise ContextError(f"{self.ca_file}: {_why(error)}") from error


def _why(error: OSError | RuntimeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@dataclass(slots=True)
class Contexts:
    """All that are known."""

    path: Path
    current: str | None = None
    known: dict[str, Context] = field(default_factory=dict)

    def get(self, name: str | None) -> Context:
        """One of them, or the current one, or that of this machine. Raises `ContextError`."""
        wanted = self.current if name is None else name
        if wanted is None:
            return Context()
        found = self.known.get(wanted)
        if found is None:
            names = ", ".join(sorted(self.known)) or "none"
            raise ContextError(f"there is no context {wanted!r} in {self.path}; known: {names}")
        return found

    def save(self) -> None:
        """Write the file, for its owner alone. Raises `ContextError`."""
        lines = [] if self.current is None else [f"current = {_quoted(self.current)}", ""]
        for name, context in sorted(self.known.items()):
            urls = ", ".join(map(_quoted, context.urls))
            lines += [f"[contexts.{_quoted(name)}]", f"urls = [{urls}]"]
            for key, path in (("token_file", context.token_file), ("ca_file", context.ca_file)):
                if path is not None:
                    lines.append(f"{key} = {_quoted(path)}")
            lines.append("")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = self.path.resolve()  # where it is a link, that stays one
            number, new = mkstemp(prefix=f"{file.name}.", dir=file.parent)  # for its owner alone
            try:
                with os.fdopen(number, "w", encoding="utf-8") as stream:
                    stream.write("\n".join(lines))
                Path(new).replace(file)
            except BaseException:
                Path(new).unlink()
                raise
        except OSError as error:
            raise ContextError(f"{self.path}: {error.strerror}") from error


def checked_token(text: str, place: str) -> str:
    """A token as it may be sent. Raises `ContextError`, which does not show it."""
    if not text:
        raise ContextError(f"{place} holds no token; it is empty")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ContextError(f"{place} holds no token; that is one line of ASCII without spaces")
    return text


def default_path() -> Path:
    """Where the file is."""
    given = os.environ.get(CONFIG_VARIABLE)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "ritornello" / "contexts.toml"


def load(path: Path) -> Contexts:
    """Read the file; a missing one has no contexts. Raises `ContextError`."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Contexts(path)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ContextError(f"{path}: {error}") from error
    known: dict[str, Context] = {}
    tables = found.get("contexts", {})
    if not isinstance(tables, dict):
        raise ContextError(f"{path}: `contexts` is a table of tables")
    for name, table in tables.items():
        urls = table.get("urls") if isinstance(table, dict) else None
        if not isinstance(urls, list) or not all(isinstance(one, str) for one in urls):
            raise ContextError(f"{path}: the context {name!r} has a list of texts, `urls`")
        files = {key: table.get(key) for key in ("token_file", "ca_file")}
        for key, file in files.items():
            if file is not None and not isinstance(file, str):
                raise ContextError(f"{path}: `{key}` of the context {name!r} is a text")
        known[name] = Context(tuple(urls), **files)
    current = found.get("current")
    if current is not None and not isinstance(current, str):
        raise ContextError(f"{path}: `current` is the name of a context")
    return Contexts(path, current, known)


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    shown = (one if one.isprintable() else f"\\U{ord(one):08x}" for one in escaped)
    return f'"{"".join(shown)}"'
