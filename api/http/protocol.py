"""Connections: how many there may be, and what is answered to what is no HTTP.

aiohttp's own parts, with their ways to say no replaced by ours: every refusal is a problem
document, none is a line in the log that a stranger can write at will.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, LineTooLong

from api.http.calls import REQUEST_ID
from api.problems import PROBLEM_TYPE, Problem
from api.security import address_key
from api.settings.build import HttpSettings

_LINGER_S = 2.0  # for the rest of a body that nobody wants
_HEADERS_MAX = 64

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
NextId = Callable[[], str]


class Server(web.Server):
    """Makes a protocol for each connection, and counts them."""

    def __init__(
        self,
        handler: Handler,
        settings: HttpSettings,
        next_id: NextId,
        request_factory: Callable[..., web.BaseRequest],
    ) -> None:
        super().__init__(
            handler,
            request_factory=request_factory,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=settings.idle_timeout_ms / 1000,
            lingering_time=_LINGER_S,
            max_field_size=settings.header_bytes,
            max_headers=_HEADERS_MAX,
            max_line_size=settings.header_bytes,
        )
        self.settings = settings
        self.next_id = next_id
        self.count = 0
        self._by_host: dict[str, int] = {}

    def __call__(self, host: str | None = None) -> "Protocol":
        """For a new connection; with a host if it is counted already."""
        return Protocol(self, host, loop=self._loop, **self._kwargs)

    def admit(self, host: str) -> Problem | None:
        """Count a connection; answers why it may not stay."""
        self.count += 1
        of_host = self._by_host.get(host, 0) + 1
        self._by_host[host] = of_host
        settings = self.settings
        if self.count > settings.connections:
            return _too_many(f"this server has {settings.connections} connections already")
        if settings.connections_per_host and of_host > settings.connections_per_host:
            return _too_many(f"{host} has {settings.connections_per_host} connections already")
        return None

    def release(self, host: str) -> None:
        """Take note that a connection is gone."""
        self.count -= 1
        left = self._by_host[host] - 1
        if left:
            self._by_host[host] = left
        else:
            del self._by_host[host]


def host_of(transport: asyncio.BaseTransport) -> str:
    """Whose connections are counted together."""
    peer = transport.get_extra_info("peername")
    return address_key(peer[0] if isinstance(peer, tuple) else "")


def _too_many(detail: str) -> Problem:
    return Problem(
        503,
        "too_many_connections",
        "not_applied",
        retryable=True,
        detail=detail,
        retry_after_ms=1000,
    )


class Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ("_host", "_server")

    def __init__(
        self,
        server: Server,
        host: str | None,
        *,
        loop: asyncio.AbstractEventLoop,
        **given: Any,  # noqa: ANN401 - aiohttp's
    ) -> None:
        super().__init__(server, loop=loop, **given)
        self._server = server
        self._host = host  # by which it is counted; None before that, and after

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._host is not None:
            return
        self._host = host_of(transport)
        problem = self._server.admit(self._host)
        if problem is not None:
            # No check for `asyncio.Transport`: uvloop's are none.
            cast("asyncio.Transport", transport).write(_raw(problem, self._server.next_id()))
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.let_go()
        super().connection_lost(exc)

    def let_go(self) -> None:
        """Count it no more."""
        if self._host is not None:
            self._server.release(self._host)
            self._host = None

    def log_exception(self, *args: Any, **kw: Any) -> None:  # noqa: ANN401 - as aiohttp has it
        """Log a defect, and not what a stranger has sent or left unsent."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError | ConnectionError):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP. The connection ends: where a next request begins is unknown."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        if isinstance(exc, LineTooLong) or "Too many headers" in str(message):
            bound = f"{self._server.settings.header_bytes} bytes a line, {_HEADERS_MAX} lines"
            problem = _refused(431, "header_too_large", f"the header is larger than {bound}")
        elif isinstance(exc, ContentEncodingError):
            problem = _refused(415, "unsupported_media", "the body's coding is not known here")
        elif status == 500:  # noqa: PLR2004 - of a handler that has raised: ours never do
            self.log_exception("a request has failed by a defect", exc_info=exc)
            detail = "the server has made a mistake; its log says more"
            problem = Problem(500, "internal", "unknown", retryable=False, detail=detail)
        else:
            # Not what follows: it shows what was sent, which may be a secret.
            first = str(message or "").strip().partition("\n")[0]
            detail = f"this is no HTTP: {first[:200]!a}"
            if "Invalid char in url" in first:
                detail = "percent-encode what is no ASCII in the path and in the query"
            problem = _refused(400, "bad_request", detail)
        request_id = self._server.next_id()
        response = web.Response(
            body=problem.document(request_id),
            status=problem.status,
            headers={"Content-Type": PROBLEM_TYPE, REQUEST_ID: request_id},
        )
        response.force_close()
        return response


def _refused(status: int, code: str, detail: str) -> Problem:
    return Problem(status, code, "not_applied", retryable=False, detail=detail)


def _raw(problem: Problem, request_id: str) -> bytes:
    """A whole answer, for who will not be heard."""
    body = problem.document(request_id)
    head = (
        f"HTTP/1.1 {problem.status} Service Unavailable\r\nContent-Type: {PROBLEM_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: 1\r\n{REQUEST_ID}: {request_id}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
