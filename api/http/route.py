"""What a row of the table of routes is."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from api import requests as ask
from api.http.bodies import STRUCTURED
from api.http.calls import Call
from api.security import Scope

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

NO_BODY = type(None)


@dataclass(frozen=True, slots=True)
class Option:
    """A field of the query."""

    name: str
    type: Any
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """One way in which a route answers well."""

    status: int
    body: Any = NO_BODY
    text: str = "Done."
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    scope: Scope | None  # that it takes; None: it is for everybody
    tag: str
    asks: type[ask.Request] | None = None  # fields of the body or of the query
    fields: Any = None  # of a body that is JSON or msgpack, and nothing else
    options: tuple[Option, ...] = ()
    headers: tuple[str, ...] = ()  # that it understands, beside those that all do
    replies: tuple[Reply, ...] = (Reply(200, Any),)
    problems: tuple[int, ...] = ()  # beside those of all routes
    gives: tuple[str, ...] = STRUCTURED  # the media types of an answer

    @property
    def name(self) -> str:
        """Its name in the OpenAPI document, and in metrics."""
        return f"{self.tag}_{self.handler.__name__}" + ("_by_key" if "{key}" in self.path else "")
