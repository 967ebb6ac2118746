"""Numbers over HTTP, for Prometheus. What there is, is in `api.metrics`."""

from aiohttp import web

from api.http.calls import Call
from api.metrics import CONTENT_TYPE
from api.security import Scope


async def show(call: Call) -> web.Response:
    """Read all metrics of this node, as text for Prometheus."""
    await call.nothing()
    metrics = call.front.metrics
    if not metrics.is_open:
        # The route itself is for everybody, because this depends on where the server listens.
        header = call.request.headers.get("Authorization")
        principal = call.front.tokens.authenticate(header)
        principal.require(Scope.READ)
        principal.require_all_themes()
    return web.Response(body=await metrics.scrape(), headers={"Content-Type": CONTENT_TYPE})
