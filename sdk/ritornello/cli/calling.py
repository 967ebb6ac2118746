"""What every command has: the cluster that is meant, a client of it, arguments that are checked."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from ritornello.cli import contexts, output
from ritornello.client import Client as AsyncClient
from ritornello.core.core import Token
from ritornello.limits import Options, Preference
from ritornello.sync import Client


@dataclass(slots=True)
class Given:
    """What was said before the command."""

    urls: tuple[str, ...]
    context: str | None
    token_file: str | None
    ca_file: str | None
    timeout_s: float
    is_json: bool
    path: Path

    def cluster(self) -> contexts.Context:
        """The cluster that is meant. Raises `ContextError`."""
        found = contexts.load(self.path).get(self.context)
        if self.urls:
            # A token is for the cluster that it was given for.
            found = replace(found, urls=self.urls) if self.context else contexts.Context(self.urls)
        if self.token_file is not None:
            found = replace(found, token_file=self.token_file)
        ca_file = self.ca_file
        if ca_file is None:
            ca_file = self._variable("RITORNELLO_CA_FILE", found.ca_file)
        return found if ca_file is None else replace(found, ca_file=ca_file)

    def token(self, cluster: contexts.Context) -> Token:
        """The token to show there. Raises `ContextError`."""
        said = None
        if self.token_file is None:
            said = self._variable("RITORNELLO_TOKEN", cluster.token_file)
        return cluster.token if said is None else contexts.checked_token(said, "RITORNELLO_TOKEN")

    def _variable(self, name: str, kept: str | None) -> str | None:
        """What a variable says, unless it is kept with the cluster that was named."""
        if self.context is not None and kept is not None:
            return None  # the variable may well be for another cluster
        return os.environ.get(name) or None

    def _ready(self, cluster: contexts.Context) -> Token:
        """The token, which can be had at least now. Raises `ContextError`."""
        token = self.token(cluster)
        if callable(token):
            token()
        return token

    def async_client(self, prefer: Preference = "any") -> AsyncClient:
        """The same, for programs with an event loop."""
        found = self.cluster()
        options = Options(timeout_s=self.timeout_s, prefer=prefer)
        token, tls = self._ready(found), found.tls()
        return AsyncClient(found.urls, token=token, tls=tls, options=options)

    def client(self) -> Client:
        """A client of the cluster that is meant. Raises `ContextError`, ValueError."""
        found = self.cluster()
        options = Options(timeout_s=self.timeout_s)
        return Client(found.urls, token=self._ready(found), tls=found.tls(), options=options)


def with_client(call: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its client, and whether it is to speak JSON."""

    @click.pass_obj
    def called(given: Given, /, **arguments: Any) -> Any:  # noqa: ANN401 - click's
        with given.client() as client:
            return call(client, is_json=given.is_json, **arguments)

    called.__doc__ = call.__doc__
    called.__name__ = call.__name__
    return called


def say_one(value: Any, *, is_json: bool) -> None:  # noqa: ANN401 - any model
    """Say one thing, field by field."""
    if is_json:
        output.say_json(value)
        return
    rows = ((name, getattr(value, name)) for name in value.__struct_fields__)
    output.table(("what", "is"), rows)


class FiniteRange(click.FloatRange):
    """A number within bounds; `nan` and `inf` are none, though Python takes them for some."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """As click calls it."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number", param, ctx)
        return found


def utf8(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Have an argument be text, and not any bytes that a shell may give. For `callback`."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise click.BadParameter("it is not UTF-8", ctx, param) from error
    return value
