"""Makes the reference of the Python client from its docstrings: `docs/python/reference.md`."""

import re
import textwrap

from docs.interface import MODULES, Member, Thing, module_doc, things

_HEAD = (
    "# Reference of the Python client\n\n"
    "Made by `make docs` from the docstrings of `sdk/ritornello`; do not edit. "
    "The [tutorial](tutorial.md) is the place to begin, the [how-to](how-to.md) has recipes, "
    "[delivery](delivery.md) says what may be relied on.\n\n"
    "In declarations `# read` marks what is there to be read only. `self` is left out.\n"
)

_SEE = {"ritornello.testing": "[testing.md](testing.md) shows how to use it."}

_WIDTH = 88
_FIELD = re.compile(r"[\w.]+(: | = )")


def reference_page() -> str:
    """The whole page."""
    parts = [_HEAD, _contents()]
    for module in MODULES:
        parts.append(f"## {module}\n\n{module_doc(module)}\n")
        if module in _SEE:
            parts.append(f"{_SEE[module]}\n")
        parts += [_section(module, one) for one in things(module)]
    return "\n".join(parts)


def _contents() -> str:
    """Where to find what."""
    lines = ["| Module | What it has |", "| --- | --- |"]
    for module in MODULES:
        links = [f"[{one.name}](#{_anchor(module, one.name)})" for one in things(module)]
        lines.append(f"| [{module}](#{module.replace('.', '')}) | {', '.join(links)} |")
    return "\n".join(lines) + "\n"


def _title(module: str, name: str) -> str:
    return f"{module}.{name}"


def _anchor(module: str, name: str) -> str:
    """As a heading is named in links: small letters, no dots."""
    return _title(module, name).replace(".", "").lower()


def _section(module: str, found: Thing) -> str:
    """One class or function, with all that it has."""
    fields = [one for one in found.members if _FIELD.match(one.shown[0])]
    others = [one for one in found.members if one not in fields]
    parts = [f"### {_title(module, found.name)}\n", _code(found.shown)]
    if found.doc:
        parts.append(f"{found.doc}\n")
    if fields:
        parts.append(_code([_field(one) for one in fields]))
    for one in others:
        parts.append(_code(one.shown))
        if one.doc:
            parts.append(f"{one.doc}\n")
    return "\n".join(parts)


def _field(found: Member) -> str:
    """A field or a property, with what is said of it beside it, or above it if that is long."""
    (shown,) = found.shown
    doc = " ".join(found.doc.split())
    if not doc:
        return shown
    line = f"{shown}: {doc}" if shown.endswith("  # read") else f"{shown}  # {doc}"
    if len(line) <= _WIDTH:
        return line
    above = textwrap.wrap(doc, _WIDTH, initial_indent="# ", subsequent_indent="# ")
    return "\n".join([*above, shown])


def _code(shown: list[str] | tuple[str, ...]) -> str:
    return "\n".join(["```py", *shown, "```\n"])
