"""Which route the path of a request leads to. Pure.

A path is split at its slashes before anything in it is decoded (RFC 3986, 2.2), so a key may have
any characters, slashes too, as long as they are percent-encoded. A template's parameter takes one
segment, the empty one too; beside a parameter no other segment may stand, so that no key can be
taken for a word of ours.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

T = TypeVar("T")


class UnreadablePathError(ValueError):
    """A segment is no UTF-8."""


class _Place(Generic[T]):
    """A segment, and what may follow it."""

    __slots__ = ("following", "name", "parameter", "value")

    def __init__(self, name: str = "") -> None:
        self.name = name  # of a parameter
        self.following: dict[str, _Place[T]] = {}
        self.parameter: _Place[T] | None = None
        self.value: T | None = None


class Paths(Generic[T]):
    """Templates such as `/v1/sessions/{id}`, and what stands behind each."""

    def __init__(self) -> None:
        self._root: _Place[T] = _Place()

    def add(self, template: str, value: T) -> T:
        """Add a template with its value; one that is there keeps the value that it has."""
        place = self._root
        for segment in template.split("/")[1:]:
            place = self._place(place, segment, template)
        if place.value is None:
            place.value = value
        return place.value

    def _place(self, place: _Place[T], segment: str, template: str) -> _Place[T]:
        if not segment.startswith("{"):
            if place.parameter is not None:
                raise ValueError(f"{template} has a word where another template has a parameter")
            return place.following.setdefault(segment, _Place())
        name = segment.strip("{}")
        if place.following or (place.parameter is not None and place.parameter.name != name):
            raise ValueError(f"{template} has a parameter where another template has a word")
        if place.parameter is None:
            place.parameter = _Place(name)
        return place.parameter

    def find(self, path: str) -> tuple[T, dict[str, str]] | None:
        """What stands behind a path, and its parameters. Raises `UnreadablePathError`."""
        place = self._root
        parameters: dict[str, str] = {}
        segments = iter(path.split("/"))
        next(segments)  # before the first slash there is nothing
        for segment in segments:
            if "%" in segment:
                segment = _decoded(segment)  # noqa: PLW2901 - the same, as it is meant
            parameter = place.parameter
            if parameter is not None:
                parameters[parameter.name] = segment
                place = parameter
            else:
                following = place.following.get(segment)
                if following is None:
                    return None
                place = following
        return None if place.value is None else (place.value, parameters)

    def __iter__(self) -> Iterator[T]:
        return _values(self._root)


def _values(place: _Place[T]) -> Iterator[T]:
    if place.value is not None:
        yield place.value
    for one in place.following.values():
        yield from _values(one)
    if place.parameter is not None:
        yield from _values(place.parameter)


def _decoded(segment: str) -> str:
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeError as error:
        raise UnreadablePathError("the path is no UTF-8") from error
