"""Reads the public interface of the Python client from its source: names, signatures, docstrings.

What is public is what the public modules export, and what a class of it inherits inside of the
package; but nothing whose name begins with `_`, or whose docstring says "Not for users". It is read
and not imported: so annotations and defaults are shown as they were written, whatever Python runs
this, and what stands beside a field as a comment is found, too.
"""

import ast
import io
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SDK = Path(__file__).parent.parent / "sdk"
MODULES = (
    "ritornello",
    "ritornello.sync",
    "ritornello.errors",
    "ritornello.otel",
    "ritornello.testing",
)

_WIDTH = 88
_HIDDEN = "Not for users"
# Methods that are written as something else.
_SPECIAL = {
    "__aenter__": "async with",
    "__enter__": "with",
    "__await__": "await",
    "__aiter__": "async for",
    "__iter__": "for",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Member:
    """Something that a class has: a method, a property, or a field."""

    name: str
    shown: tuple[str, ...]  # how it is declared; several times if it is overloaded
    doc: str


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that a module exports."""

    name: str
    shown: tuple[str, ...]
    doc: str
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A module as it was read."""

    name: str
    tree: ast.Module
    comments: dict[int, str]  # by line
    imports: dict[str, str]  # where a name comes from
    defined: dict[str, ast.stmt]


@cache
def source(module: str) -> Source:
    """Read a module of the client."""
    path = SDK.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa")
    }
    imports: dict[str, str] = {}
    defined: dict[str, ast.stmt] = {}
    for one in tree.body:
        match one:
            case ast.ImportFrom(module=str(where), names=names):
                imports |= {alias.asname or alias.name: where for alias in names}
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                defined[name] = one
            case ast.AsyncFunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                defined[name] = one
            case ast.Assign(targets=[ast.Name(id=name)]):
                defined[name] = one
            case _:
                pass
    return Source(module, tree, comments, imports, defined)


def module_doc(module: str) -> str:
    """What a module says of itself."""
    return ast.get_docstring(source(module).tree) or ""


def exported(module: str) -> list[str]:
    """The names that a module exports: `__all__`, or the public classes and functions that it has.

    They stand as `__all__` has them, or as they are defined.
    """
    found = source(module)
    listed = found.defined.get("__all__")
    if isinstance(listed, ast.Assign):
        return [str(one) for one in ast.literal_eval(listed.value)]
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return [
        name
        for name, one in found.defined.items()
        if isinstance(one, kinds) and not name.startswith("_") and _is_for_users(_doc(one))
    ]


def things(module: str) -> Iterator[Thing]:
    """What a module exports, in order."""
    for name in exported(module):
        yield thing(module, name)


def thing(module: str, name: str) -> Thing:
    """One thing that a module has, or has imported. Raises LookupError."""
    where, statement = _definition(module, name)
    match statement:
        case ast.ClassDef():
            return _class(where, statement)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return Thing(name, (_declared(where, statement),), _doc(statement))
        case ast.Assign() | ast.AnnAssign():
            return Thing(name, (_text(statement),), where.comments.get(statement.lineno, ""))
        case _:
            raise LookupError(f"{module}.{name} is neither a class, a function nor a value")


def _definition(module: str, name: str) -> tuple[Source, ast.stmt]:
    found = source(module)
    while name not in found.defined:
        if name not in found.imports:
            raise LookupError(f"{found.name} has no {name}")
        found = source(found.imports[name])
    return found, found.defined[name]


# Classes


def _class(where: Source, found: ast.ClassDef) -> Thing:
    members: dict[str, Member] = {}
    for place, one, filled in _lineage(where, found):
        # What is inherited comes after what the class has itself, which wins.
        for member in _members(place, _Filled(filled).visit(deepcopy(one))):
            members.setdefault(member.name, member)
    init = members.pop("__init__", Member("__init__", (), ""))
    doc = _doc(found)
    shown = [_headline(found)]
    if _is_for_users(init.doc):
        shown += init.shown
        doc = f"{doc}\n\n{init.doc}".strip()
    visible = [one for one in members.values() if _is_public(one.name) and _is_for_users(one.doc)]
    return Thing(found.name, tuple(shown), doc, tuple(visible))


def _lineage(
    where: Source, found: ast.ClassDef, filled: dict[str, ast.expr] | None = None
) -> Iterator[tuple[Source, ast.ClassDef, dict[str, ast.expr]]]:
    """A class and those that it inherits from, as far as they are of the client.

    With each stands what its heir has put in place of its type variables.
    """
    yield where, found, filled or {}
    for base in found.bases:
        name, given = _subscripted(base)
        if name in where.defined or where.imports.get(name, "").startswith("ritornello"):
            place, one = _definition(where.name, name)
            if isinstance(one, ast.ClassDef):
                yield from _lineage(place, one, dict(zip(_variables(one), given, strict=False)))


def _variables(found: ast.ClassDef) -> list[str]:
    """The type variables of a generic class, in order."""
    bases = dict(_subscripted(base) for base in found.bases)
    return [ast.unparse(one) for one in bases.get("Generic", [])]


def _subscripted(found: ast.expr) -> tuple[str, list[ast.expr]]:
    """Of `Base[A, B]` the name, and what is between the brackets."""
    match found:
        case ast.Subscript(value=value, slice=ast.Tuple(elts=given)):
            return ast.unparse(value), given
        case ast.Subscript(value=value, slice=given):
            return ast.unparse(value), [given]
        case _:
            return ast.unparse(found), []


class _Filled(ast.NodeTransformer):
    """Puts what it was given in place of names."""

    def __init__(self, names: dict[str, ast.expr]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._names.get(node.id, node)


def _headline(found: ast.ClassDef) -> str:
    words = [_text(base) for base in found.bases]
    words += [f"{one.arg}={_text(one.value)}" for one in found.keywords]
    head = f"class {found.name}({', '.join(words)})" if words else f"class {found.name}"
    head = textwrap.fill(head, _WIDTH, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join([*(f"@{_text(one)}" for one in found.decorator_list), head])


def _members(where: Source, found: ast.ClassDef) -> Iterator[Member]:
    overloads: dict[str, list[str]] = {}
    for one in found.body:
        match one:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                decorators = {_text(decorator) for decorator in one.decorator_list}
                if "overload" in decorators:
                    overloads.setdefault(one.name, []).append(_declared(where, one))
                elif "property" in decorators:
                    yield Member(
                        one.name, (f"{one.name}: {_type(one.returns)}  # read",), _doc(one)
                    )
                elif one.name in _SPECIAL:
                    shown = f"{_SPECIAL[one.name]} -> {_type(one.returns)}"
                    yield Member(one.name, (shown,), _doc(one))
                else:
                    declared = overloads.get(one.name) or [_declared(where, one)]
                    yield Member(one.name, tuple(declared), _doc(one))
                if one.name == "__init__":
                    yield from _attributes(where, one)
            case ast.AnnAssign(target=ast.Name(id=name), value=value):
                default = "" if value is None else f" = {_value(where, value)}"
                shown = f"{name}: {_type(one.annotation)}{default}"
                yield Member(name, (shown,), where.comments.get(one.lineno, ""))
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                shown = f"{name} = {_value(where, value)}"
                yield Member(name, (shown,), where.comments.get(one.lineno, ""))
            case _:
                pass


def _attributes(where: Source, init: Function) -> Iterator[Member]:
    """What a constructor sets and everybody may see: it has the type that is written there."""
    types = {one.arg: one.annotation for one in (*init.args.args, *init.args.kwonlyargs)}
    for one in init.body:
        match one:
            case ast.AnnAssign(target=ast.Attribute(attr=name), annotation=annotation):
                kind: ast.expr | None = annotation
            case ast.Assign(targets=[ast.Attribute(attr=name)], value=ast.Name(id=argument)):
                kind = types.get(argument)
            case ast.Assign(
                targets=[ast.Attribute(attr=name)], value=ast.Call(func=ast.Name(id=made))
            ):
                kind = ast.Name(id=made)
            case ast.Assign(
                targets=[ast.Attribute(attr=name)],
                value=ast.Constant(value=bool() | int() as first),
            ):
                kind = ast.Name(id=type(first).__name__)
            case _:
                continue
        if not name.startswith("_") and kind is not None:
            comment = where.comments.get(one.lineno, "")
            yield Member(name, (f"{name}: {_type(kind)}",), comment)


# Functions


def _declared(where: Source, found: Function) -> str:
    """A signature as it was written, without `self`."""
    arguments = _without_self(found.args)
    word = "async def" if isinstance(found, ast.AsyncFunctionDef) else "def"
    words = list(_words(where, arguments))
    return _wrapped(f"{word} {found.name}", words, f" -> {_type(found.returns)}")


def _without_self(found: ast.arguments) -> ast.arguments:
    first = [*found.posonlyargs, *found.args][:1]
    if not first or first[0].arg not in {"self", "cls"}:
        return found
    return ast.arguments(
        posonlyargs=found.posonlyargs[1:],
        args=found.args if found.posonlyargs else found.args[1:],
        vararg=found.vararg,
        kwonlyargs=found.kwonlyargs,
        kw_defaults=found.kw_defaults,
        kwarg=found.kwarg,
        defaults=found.defaults,
    )


def _words(where: Source, found: ast.arguments) -> Iterator[str]:
    """The arguments, one by one."""

    def word(one: ast.arg, default: ast.expr | None) -> str:
        declared = f"{one.arg}: {_type(one.annotation)}"
        return declared if default is None else f"{declared} = {_value(where, default)}"

    places = [*found.posonlyargs, *found.args]
    without = len(places) - len(found.defaults)
    for number, one in enumerate(places):
        yield word(one, found.defaults[number - without] if number >= without else None)
        if number + 1 == len(found.posonlyargs):
            yield "/"
    if found.vararg is not None:
        yield f"*{word(found.vararg, None)}"
    elif found.kwonlyargs:
        yield "*"
    for one, default in zip(found.kwonlyargs, found.kw_defaults, strict=True):
        yield word(one, default)
    if found.kwarg is not None:
        yield f"**{word(found.kwarg, None)}"


def _wrapped(head: str, words: Iterable[str], tail: str = "") -> str:
    words = list(words)
    line = f"{head}({', '.join(words)}){tail}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{head}(", *(f"    {one}," for one in words), f"){tail}"])


def _text(found: ast.AST) -> str:
    return ast.unparse(found).replace("'", '"')


def _type(found: ast.expr | None) -> str:
    """An annotation; one that is quoted without its quotes."""
    if found is None:
        return "Any"
    if isinstance(found, ast.Constant) and isinstance(found.value, str):
        return found.value
    return _text(found)


def _value(where: Source, found: ast.expr) -> str:
    """A default. Of a constant that has a name the value, which is what callers get."""
    if isinstance(found, ast.Name):
        named = where.defined.get(found.id)
        if isinstance(named, ast.Assign):
            return _text(named.value)
    return _text(found)


def _doc(found: Function | ast.ClassDef) -> str:
    return ast.get_docstring(found) or ""


def _is_public(name: str) -> bool:
    return not name.startswith("_") or name in _SPECIAL


def _is_for_users(doc: str) -> bool:
    return _HIDDEN not in doc


# As text


def listing() -> str:
    """The whole interface without its docstrings: whoever uses it would notice a change."""
    found: list[tuple[str, Thing]] = []
    for module in MODULES:
        exports = sorted(things(module), key=lambda one: one.name)
        found += [(module, one) for one in exports]
    lines: list[str] = []
    for module, one in found:
        lines += ["", f"{module}.{one.name}"]
        members = sorted(one.members, key=lambda member: member.name)
        for shown in (*one.shown, *(each for member in members for each in member.shown)):
            lines += [f"    {line}" for line in shown.split("\n")]
    return "\n".join(lines[1:]) + "\n"
