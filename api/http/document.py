"""The OpenAPI document over HTTP."""

from functools import cache

import msgspec
from aiohttp import web

from api.http.bodies import JSON
from api.http.calls import Call


async def show(call: Call) -> web.Response:
    """Read what this interface is, as an OpenAPI document."""
    call.options()
    headers = {"Content-Type": JSON, "Cache-Control": "no-cache"}
    return web.Response(body=_document(), headers=headers)


@cache
def _document() -> bytes:
    """Made once, when somebody wants it."""
    from api.http.routes import ROUTES  # noqa: PLC0415 - this handler is one of them
    from api.openapi import document  # noqa: PLC0415 - as above

    return msgspec.json.format(msgspec.json.encode(document(ROUTES)), indent=2)
