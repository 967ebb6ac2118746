"""Serves a node's requests: from a request to its route, and from errors to problems."""

import asyncio
import itertools
import logging
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage

from api import logs
from api.frontend import FrontEnd
from api.http import bodies
from api.http.answering import Answer, HttpRequest
from api.http.calls import REQUEST_ID, TIMEOUT, Call, timeout_of
from api.http.listening import Listener
from api.http.origins import Origins
from api.http.paths import Paths, UnreadablePathError
from api.http.protocol import Server
from api.http.route import Route
from api.http.routes import ROUTES
from api.problems import INTERNAL, PROBLEM_TYPE, Problem, Refusal, bad_request, refusal
from api.security import ANYBODY, Principal, Rates, address_key
from api.settings.build import HttpSettings

_log = logging.getLogger(__name__)

_LEFT = 499  # in metrics and traces: whoever asked had left; as other servers have it
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Meter(Protocol):
    """Who counts requests."""

    def observe(self, route: int, status: int, seconds: float) -> None:
        """A request was answered; its route by its place in the table, -1 if it has none."""


class Tracer(Protocol):
    """Who makes spans of requests."""

    def answered(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        headers: Mapping[str, str],
        request_id: str,
    ) -> None:
        """A request was answered; its route as the table has it."""


class Methods(dict[str, tuple[int, Route]]):
    """The routes of one path by their methods, with their places in the table."""

    @property
    def allowed(self) -> str:
        """The value of `Allow`."""
        head = ["HEAD"] if "GET" in self else []
        return ", ".join(sorted([*self, *head, "OPTIONS"]))


class MethodNotAllowed(Refusal):
    """A path has other methods."""

    def __init__(self, allowed: str) -> None:
        detail = f"this path has {allowed}"
        super().__init__(
            Problem(405, "method_not_allowed", "not_applied", retryable=False, detail=detail)
        )
        self.headers = {"Allow": allowed}


class Http:
    """Serves one node's requests."""

    def __init__(
        self,
        front: FrontEnd,
        *,
        routes: Sequence[Route] = ROUTES,
        meter: Meter | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._front = front
        self._routes = routes
        self._meter = meter
        self._tracer = tracer
        self._server: Server | None = None
        self._in_progress = 0  # requests for which one needs a scope
        self._asked_s = float("-inf")  # when the last of them came
        self._ids = map("{:x}".format, itertools.count(time.time_ns() // 1000))
        self._origins = Origins(front.settings)
        per_second = front.settings.requests_per_second
        self._rates = Rates(per_second) if per_second else None
        self._timeout_max_ms = front.settings.request_timeout_ms
        self._timeout_ms = min(front.gateway.timeout_ms, self._timeout_max_ms)
        self._paths: Paths[Methods] = Paths()
        for position, route in enumerate(routes):
            self._paths.add(route.path, Methods())[route.method] = (position, route)

    def listener(self, context: ssl.SSLContext | None = None) -> Listener:
        """What listens, with TLS if it is given a context. There is one."""
        settings = self._front.settings
        loop = asyncio.get_running_loop()
        request = partial(_request, loop, settings)
        self._server = Server(self._serve, settings, self._ids.__next__, request_factory=request)
        return Listener(self._server, context)

    @property
    def connections(self) -> int:
        """How many are open, those of WebSockets among them."""
        return 0 if self._server is None else self._server.count

    @property
    def quiet_s(self) -> float:
        """How long nobody has asked for anything, but whether it is healthy.

        Connections of consumers and of readers of events are no requests; they are told to leave.
        """
        is_busy = self._in_progress > len(self._front.connections)
        return 0.0 if is_busy else time.monotonic() - self._asked_s

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, with all that is around each of them."""
        if not isinstance(request, HttpRequest):
            raise TypeError("a request was not made by this server")
        headers = request.headers
        request_id = headers.get("X-Request-Id")
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = next(self._ids)
        request.added = {REQUEST_ID: request_id}
        if self._origins.has_cors:
            request.added |= self._origins.cors(headers)
        begin_s = time.perf_counter()
        position = -1
        response: web.StreamResponse
        with logs.request(request_id):
            try:
                self._origins.check(headers)
                methods, parameters, query = self._find(request)
                found = methods.get("GET" if request.method == "HEAD" else request.method)
                if found is None:
                    response = self._other_method(request, methods)
                else:
                    position, route = found
                    response = await self._call(request, route, parameters, query)
            except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it is
                response = self._failed(error, request, request_id)
            except asyncio.CancelledError:
                self._tell(request, position, _LEFT, time.perf_counter() - begin_s, request_id)
                raise
        if self._meter is not None or self._tracer is not None:
            lasted_s = time.perf_counter() - begin_s
            self._tell(request, position, response.status, lasted_s, request_id)
        if self._front.health.is_draining and not response.prepared:
            response.force_close()
        return response

    def _tell(
        self, request: HttpRequest, position: int, status: int, lasted_s: float, request_id: str
    ) -> None:
        """Let it be counted and traced."""
        if self._meter is not None:
            self._meter.observe(position, status, lasted_s)
        if self._tracer is not None and position >= 0:
            path = self._routes[position].path
            self._tracer.answered(
                request.method, path, status, lasted_s, request.headers, request_id
            )

    def _find(self, request: HttpRequest) -> tuple[Methods, dict[str, str], str]:
        """The routes of the path, its parameters, and the query. Raises `Refusal`."""
        target = request.raw_path
        if not target.startswith("/"):  # the form for proxies (RFC 9112, 3.2.2), and `*`
            target = str(request.rel_url)
        path, _, query = target.partition("?")
        try:
            found = self._paths.find(path)
        except UnreadablePathError as error:
            raise bad_request(str(error)) from error
        if found is None:
            raise refusal(404, "not_found", "there is no such route; see /openapi.json")
        return *found, query

    async def _call(
        self, request: HttpRequest, route: Route, parameters: dict[str, str], query: str
    ) -> web.StreamResponse:
        principal = ANYBODY
        if route.scope is not None:
            principal = self._principal(request)
            principal.require(route.scope)
        accept = request.headers.get("Accept")
        media = route.gives[0] if accept is None else bodies.wanted(accept, route.gives)
        given_s = request.headers.get(TIMEOUT)
        timeout_ms = self._timeout_ms if given_s is None else timeout_of(given_s)
        timeout_ms = min(timeout_ms, self._timeout_max_ms)
        call = Call(self._front, request, principal, parameters, query, media, timeout_ms)
        if route.scope is None:
            return await route.handler(call)
        self._in_progress += 1
        self._asked_s = time.monotonic()
        try:
            return await route.handler(call)
        finally:
            self._in_progress -= 1

    def _other_method(self, request: HttpRequest, methods: Methods) -> web.Response:
        """Answer OPTIONS; refuse what a path does not have."""
        if request.method != "OPTIONS":
            raise MethodNotAllowed(methods.allowed)
        headers = {"Allow": methods.allowed}
        headers |= self._origins.preflight(request.headers, methods.allowed)
        return web.Response(status=204, headers=headers)

    def _principal(self, request: HttpRequest) -> Principal:
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

    def _failed(
        self, error: Exception, request: HttpRequest, request_id: str
    ) -> web.StreamResponse:
        """The answer to a request that was not done.

        Raises ConnectionError if nobody can be told any more; that ends the connection.
        """
        if request.writer.output_size > 0:
            if not isinstance(error, Refusal | ConnectionError):
                _log.error("an answer has broken off by a defect", exc_info=error)
            raise ConnectionResetError("an answer has begun already") from error
        headers = {"Content-Type": PROBLEM_TYPE}
        match error:
            case Refusal():
                problem = error.problem
                headers.update(error.headers)
            case TimeoutError():
                detail = "no answer in time; what was asked may still be done"
                problem = Problem(504, "timed_out", "unknown", retryable=True, detail=detail)
            case ConnectionError():
                raise error  # nobody is there to be told
            case _:
                _log.error("a request has failed by a defect", exc_info=error)
                problem = INTERNAL
        self._front.metrics.refusals.count(problem.code)
        if problem.retry_after_ms is not None:
            headers["Retry-After"] = str(-(-problem.retry_after_ms // 1000))
        response = Answer(body=problem.document(request_id), status=problem.status, headers=headers)
        if not request.content.is_eof():
            response.force_close()  # nobody will read the rest of the body
        return response


def _request(
    loop: asyncio.AbstractEventLoop,
    settings: HttpSettings,
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> HttpRequest:
    """As aiohttp makes a request, of our kind."""
    request = HttpRequest(
        message, payload, protocol, writer, task, loop, client_max_size=settings.request_bytes
    )
    request.timeout_s = settings.request_timeout_ms / 1000
    return request
