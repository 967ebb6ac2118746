"""Where a WebSocket begins."""

import asyncio

from aiohttp import WSCloseCode, web

from api.http.calls import Call
from api.problems import Problem, Refusal, bad_request, refusal
from api.security import Scope
from api.websocket.connection import Connection
from api.websocket.frames import CODECS

_CLOSE_S = 5.0


class UpgradeRequired(Refusal):
    """Something else than a WebSocket was asked for."""

    def __init__(self) -> None:
        detail = "this is a WebSocket (RFC 6455): send Upgrade: websocket"
        super().__init__(
            Problem(426, "upgrade_required", "not_applied", retryable=False, detail=detail)
        )
        self.headers = {"Upgrade": "websocket"}


async def operate(call: Call) -> web.StreamResponse:
    """Operate sessions over a WebSocket; docs/protocol.md has the rest."""
    front = call.front
    front.check(call.principal, Scope.READ)
    call.options()
    if front.health.is_draining:
        raise refusal(503, "draining", "the node is about to stop", retryable=True)
    socket = web.WebSocketResponse(
        protocols=tuple(CODECS),
        autoping=False,
        max_msg_size=front.settings.websocket_frame_bytes,
        compress=False,
        timeout=_CLOSE_S,
    )
    headers = call.request.headers
    if headers.get("Upgrade", "").strip().lower() != "websocket":
        raise UpgradeRequired
    if not socket.can_prepare(call.request):
        raise bad_request("this is no WebSocket as RFC 6455 has it (section 4.1)")
    wanted = headers.get("Sec-WebSocket-Protocol", "")
    if not {one.strip() for one in wanted.split(",")} & CODECS.keys():
        raise bad_request(f"ask for a subprotocol: {', '.join(CODECS)}")
    await socket.prepare(call.request)
    codec = CODECS[socket.ws_protocol or ""]
    connection = Connection(front, call.request, socket, codec, call.principal)
    front.connections.add(connection)
    try:
        await connection.run()
    finally:
        front.connections.discard(connection)
        if not socket.closed:
            await asyncio.wait_for(socket.close(code=WSCloseCode.OK), _CLOSE_S)
    return socket
