"""Traces, for OpenTelemetry: a span for each request, sent by OTLP over HTTP. Off by default.

Nothing of OpenTelemetry is imported before it is asked for, and it is an extra of the package:
`pip install 'ritornello-server[otel]'`. A request becomes a span when it has been answered, with
the time at which it began: so nothing has to be carried along, and tracing that is off costs one
comparison. A client's `traceparent` (W3C Trace Context) is the parent; over a WebSocket that of the
request which opened it.

Spans say which route, which operation, what came of it. No path as it was sent (it may have keys),
no session, no token, no data.

How many are kept is decided as OpenTelemetry has it: as the parent says, and all where there is
none, unless OTEL_TRACES_SAMPLER in the environment says otherwise.

Why not its own instrumentation of aiohttp: it knows the client side, and the server's as middleware
of an application, which there is none of here. Why not its automatic one: it changes classes of
others while they are imported, and nobody can say what a request costs then.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Mapping
from importlib import metadata, util
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

EXTRA = "ritornello-server[otel]"
EXPORT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 3.0

_PACKAGES = (
    "opentelemetry.trace",
    "opentelemetry.sdk.trace",
    "opentelemetry.exporter.otlp.proto.http",
)
_PARENT = ("traceparent", "tracestate")
_SERVER_ERROR = 500


class TracingUnavailableError(Exception):
    """Traces are asked for, and the packages that make them are not installed."""


def says_of_tracing(tracing: str) -> str | None:
    """What is wrong with this value of `operation.tracing`, if something is."""
    if tracing == "off" or all(map(_is_installed, _PACKAGES)):
        return None
    return (
        f"is {tracing!r}, which takes packages that are not installed; install them with "
        f"pip install '{EXTRA}', or set it to 'off'"
    )


def _is_installed(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the packages around it
        return False


class Tracing:
    """Makes spans of requests that were answered."""

    def __init__(self, node_id: str, processor: "SpanProcessor") -> None:
        """`processor` gets the spans. Raises ImportError without OpenTelemetry."""
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - only if it is wanted
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
            TraceContextTextMapPropagator,
        )

        version = _version()
        resource = Resource.create(
            {
                "service.name": "ritornello",
                "service.version": version,
                "service.instance.id": node_id,
            }
        )
        # It is shut down here, and not whenever the interpreter ends: that could take long.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ritornello", version)
        self._extract = TraceContextTextMapPropagator().extract
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    @classmethod
    def to_otlp(cls, endpoint: str, node_id: str) -> Self:
        """Send spans to an address, in a thread. Raises `TracingUnavailableError`."""
        problem = says_of_tracing("otlp")
        if problem is not None:
            raise TracingUnavailableError(f"operation.tracing {problem}")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        exporter = OTLPSpanExporter(endpoint, timeout=EXPORT_TIMEOUT_S)
        return cls(node_id, BatchSpanProcessor(exporter))

    def answered(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        headers: Mapping[str, str],
        request_id: str,
    ) -> None:
        """Tell of a request over HTTP. `route` is a path of the table, never one that was sent."""
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "ritornello.request_id": request_id,
        }
        is_failed = status >= _SERVER_ERROR
        if is_failed:
            attributes["error.type"] = str(status)
        end_ns = time.time_ns()
        begin_ns = end_ns - round(seconds * 1e9)
        name, parent = f"{method} {route}", self._parent(headers)
        self._span(name, parent, begin_ns, end_ns, attributes, is_failed=is_failed)

    def connection(self, headers: Mapping[str, str]) -> "ConnectionTrace":
        """For the requests over one WebSocket; `headers` are of the request that opened it."""
        return ConnectionTrace(self, self._parent(headers))

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Send what there is, as far as that goes in time."""
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(done.set)

        # Of its own: those of the loop would be waited for when the process ends.
        threading.Thread(target=shut_down, name="tracing", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await done.wait()

    def _parent(self, headers: Mapping[str, str]) -> "Context":
        """Who is behind a request, as far as it says so in a way that makes sense."""
        return self._extract({name: headers[name] for name in _PARENT if name in headers})

    def _span(
        self,
        name: str,
        parent: "Context",
        begin_ns: int,
        end_ns: int,
        attributes: Mapping[str, Any],
        *,
        is_failed: bool,
    ) -> None:
        span = self._tracer.start_span(
            name, parent, kind=self._kind, attributes=attributes, start_time=begin_ns
        )
        if is_failed:
            span.set_status(self._failed)
        span.end(end_ns)


class ConnectionTrace:
    """The requests of one connection."""

    def __init__(self, tracing: Tracing, parent: "Context") -> None:
        self._tracing = tracing
        self._parent = parent
        self._begun: dict[int, tuple[type, int]] = {}  # by seq; as many as may be unanswered

    def asked(self, kind: type, seq: int) -> None:
        """Take note of a request. One of the same number that is not answered is forgotten."""
        self._begun[seq] = kind, time.time_ns()

    def answered(self, seq: int, code: str | None = None) -> None:
        """Tell of a request that was answered, with a problem's code if it was not done."""
        begun = self._begun.pop(seq, None)
        if begun is None:
            return
        kind, begin_ns = begun
        # What makes no sense has no name.
        op = str(getattr(getattr(kind, "__struct_config__", None), "tag", "other"))
        attributes = {"ritornello.op": op}
        if code is not None:
            attributes["error.type"] = code
        self._tracing._span(  # noqa: SLF001 - its other half
            f"websocket {op}",
            self._parent,
            begin_ns,
            time.time_ns(),
            attributes,
            is_failed=code == "internal",
        )


def _version() -> str:
    try:
        return metadata.version("ritornello-server")
    except metadata.PackageNotFoundError:
        return "unknown"
