"""The aiohttp application of a node: from a request to its route, and from errors to problems."""

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Awaitable, Callable

from aiohttp import WSCloseCode, web

from api import logs
from api.frontend import FrontEnd
from api.http.calls import REQUEST_ID, Call
from api.http.routes import ROUTES, Route
from api.problems import INTERNAL, PROBLEM_TYPE, Problem, Refusal, refusal
from api.security import (
    ANYBODY,
    Principal,
    Rates,
    Scope,
    Unauthenticated,
    address_key,
)
from api.websocket.connection import Connection
from api.websocket.frames import CODECS

_log = logging.getLogger(__name__)

OPERATE = "/v1/operate"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Http:
    """Serves one node's requests."""

    def __init__(self, front: FrontEnd) -> None:
        self._front = front
        self._ids = map("{:x}".format, itertools.count(time.time_ns() // 1000))
        per_second = front.settings.requests_per_second
        self._rates = Rates(per_second) if per_second else None

    def app(self) -> web.Application:
        """The application, for a runner."""
        settings = self._front.settings
        app = web.Application(
            middlewares=[self._unrouted],
            client_max_size=settings.request_bytes,
            logger=_log,
        )
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._serving(route))
        app.router.add_route("GET", OPERATE, self._operate)
        return app

    def _serving(self, route: Route) -> Serve:
        """A route's handler, with all that is around each request."""
        front, handler, is_open = self._front, route.handler, route.scope is None

        async def serve(request: web.Request) -> web.StreamResponse:
            request_id = self._id_of(request)
            with logs.request(request_id):
                try:
                    principal = ANYBODY if is_open else self._principal(request)
                    response = await handler(Call(front, request, principal))
                except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it is
                    response = self._failed(error, request_id)
            response.headers[REQUEST_ID] = request_id
            return response

        return serve

    @web.middleware
    async def _unrouted(self, request: web.Request, handler: Serve) -> web.StreamResponse:
        """Tell of what has no route as of anything else."""
        try:
            return await handler(request)
        except web.HTTPException as error:
            request_id = self._id_of(request)
            response = self._failed(error, request_id)
            response.headers[REQUEST_ID] = request_id
            return response

    def _id_of(self, request: web.Request) -> str:
        given = request.headers.get("X-Request-Id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return next(self._ids)

    def _principal(self, request: web.Request) -> Principal:
        """Who asks. Raises `Refusal` if nobody knows, or it asks too often."""
        principal = self._front.tokens.authenticate(request.headers.get("Authorization"))
        if self._rates is not None:
            key = principal.name if principal is not ANYBODY else address_key(request.remote or "")
            wait_s = self._rates.take(key, time.monotonic())
            if wait_s:
                raise refusal(
                    429,
                    "rate_limited",
                    f"more than {self._front.settings.requests_per_second} requests a second",
                    retryable=True,
                    retry_after_ms=round(wait_s * 1000) + 1,
                )
        return principal

    def _failed(self, error: Exception, request_id: str) -> web.Response:
        """The answer to a request that was not done."""
        headers: dict[str, str] = {}
        match error:
            case Refusal():
                problem = error.problem
                if isinstance(error, Unauthenticated):
                    headers["WWW-Authenticate"] = error.challenge
            case TimeoutError():
                detail = "no answer in time; what was asked may still be done"
                problem = Problem(504, "timed_out", "unknown", retryable=True, detail=detail)
            case web.HTTPException():
                problem = _of_http(error)
                if isinstance(error, web.HTTPMethodNotAllowed):
                    headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            case _:
                _log.error("a request has failed by a defect", exc_info=error)
                problem = INTERNAL
        if problem.retry_after_ms is not None:
            headers["Retry-After"] = str(-(-problem.retry_after_ms // 1000))
        return web.Response(
            body=problem.document(request_id),
            status=problem.status,
            headers=headers,
            content_type=PROBLEM_TYPE,
        )

    async def _operate(self, request: web.Request) -> web.StreamResponse:
        """Serve a WebSocket, from its first to its last frame."""
        front = self._front
        request_id = self._id_of(request)
        try:
            principal = self._principal(request)
            principal.require(Scope.READ)
            if front.health.is_draining:
                raise refusal(503, "draining", "the node is about to stop", retryable=True)
            socket = web.WebSocketResponse(
                protocols=tuple(CODECS),
                autoping=False,
                max_msg_size=front.settings.websocket_frame_bytes,
                compress=False,
                timeout=5.0,
            )
            if not socket.can_prepare(request):
                raise refusal(426, "upgrade_required", "this is a WebSocket: RFC 6455")
            wanted = request.headers.get("Sec-WebSocket-Protocol", "")
            if not {one.strip() for one in wanted.split(",")} & CODECS.keys():
                raise refusal(400, "bad_request", f"ask for a subprotocol: {', '.join(CODECS)}")
        except Refusal as error:
            response = self._failed(error, request_id)
            response.headers[REQUEST_ID] = request_id
            return response
        await socket.prepare(request)
        codec = CODECS[socket.ws_protocol or ""]
        connection = Connection(front, socket, codec, principal)
        front.connections.add(connection)
        try:
            with logs.request(request_id):
                await connection.run()
        finally:
            front.connections.discard(connection)
            if not socket.closed:
                await asyncio.wait_for(socket.close(code=WSCloseCode.OK), 5)
        return socket


_HTTP_CODES = {
    404: ("not_found", "there is no such route"),
    405: ("method_not_allowed", "this route has other methods"),
    413: ("too_large", "the body is larger than this server takes"),
}


def _of_http(error: web.HTTPException) -> Problem:
    """A problem of what aiohttp itself refuses."""
    code, detail = _HTTP_CODES.get(error.status, ("bad_request", error.reason or "refused"))
    return Problem(error.status, code, "not_applied", retryable=False, detail=detail)
