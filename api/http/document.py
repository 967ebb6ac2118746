"""The OpenAPI document over HTTP."""

from collections.abc import Callable, Sequence
from functools import cache

import msgspec
from aiohttp import web

from api.http.bodies import JSON
from api.http.calls import Call
from api.http.route import Handler, Route
from api.openapi import document


def shown_of(routes: Callable[[], Sequence[Route]]) -> Handler:
    """What shows the document of routes, of which it is one."""

    @cache
    def made() -> bytes:
        return msgspec.json.format(msgspec.json.encode(document(routes())), indent=2)

    async def show(call: Call) -> web.Response:
        """Read what this interface is, as an OpenAPI document."""
        call.options()
        headers = {"Content-Type": JSON, "Cache-Control": "no-cache"}
        return web.Response(body=made(), headers=headers)

    return show
