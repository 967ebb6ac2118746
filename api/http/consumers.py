"""Consumers over HTTP: one sign of life for all that a caller holds.

A caller gives itself a name, unlike all others', and shows it in `Ritornello-Consumer` when it
begins or acquires sessions. From then on one heartbeat renews them all, at any node.
"""

from aiohttp import web

from api.answers import HeldAnswer
from api.http.calls import Call, consumer_name
from api.security import Scope
from state import encode
from state.operations import Heartbeat


async def heartbeat(call: Call) -> web.Response:
    """Give a sign of life for all sessions of a consumer; answers how many it holds."""
    name = consumer_name(call.parameters["name"])
    call.front.check(call.principal, Scope.OPERATE)
    await call.nothing()
    held = await call.submit(encode(Heartbeat(name)), is_ending=True)
    return call.answer(HeldAnswer(held=held, now_ms=call.front.gateway.now_ms))
