"""OpenTelemetry: spans for the work on sessions, linked to what caused it.

    client = ritornello.Client(urls, options=ritornello.Options(trace=otel.current))
    worker = ritornello.Worker(client)
    worker.middleware(otel.traced)        # of ritornello.sync: otel.traced_sync

A session keeps the trace context in which it was begun (W3C Trace Context). Each time that it is
worked on is a span of a trace of its own, with a link to that: so all its attempts are found from
what caused them, however long it lasts. The current context inside of a handler is that span, so
what it calls, and the sessions that it begins, belong to it.

Spans are named and have attributes as OpenTelemetry's conventions for messaging say. They have no
data, and of an error only its type, since its text may hold data.

It takes the extra `ritornello[otel]`. How spans are sampled and where they are sent is the
program's to say, as always with OpenTelemetry.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ritornello.held import HeldSession
from ritornello.models import Trace
from ritornello.session import Session
from ritornello.sync.session import Session as SyncSession
from ritornello.verdicts import Verdict

_propagator = TraceContextTextMapPropagator()


def current() -> Trace | None:
    """The current trace context, for `Options.trace`; None outside of a span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    traceparent = carrier.get("traceparent")
    if traceparent is None:
        return None
    return Trace(traceparent, carrier.get("tracestate", ""))


async def traced(
    session: Session, handle: Callable[[Session], Awaitable[Verdict | None]]
) -> Verdict | None:
    """Middleware of a `ritornello.Worker`: a span around the handler."""
    with _span(session) as span:
        return _ended(span, await handle(session))


def traced_sync(
    session: SyncSession, handle: Callable[[SyncSession], Verdict | None]
) -> Verdict | None:
    """Middleware of a `ritornello.sync.Worker`: a span around the handler."""
    with _span(session) as span:
        return _ended(span, handle(session))


@contextmanager
def _span(session: HeldSession) -> Iterator[trace.Span]:
    attributes: dict[str, str | int] = {
        "messaging.system": "ritornello",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": str(session.theme),
        "messaging.message.id": session.id,
        "ritornello.epoch": session.epoch,
        "ritornello.attempts": session.attempts,
    }
    with trace.get_tracer("ritornello").start_as_current_span(
        f"process {session.theme}",
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
        links=_links(session.trace),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            if isinstance(error, Exception):
                span.set_status(trace.StatusCode.ERROR)
            raise


def _links(found: Trace | None) -> list[trace.Link]:
    if found is None:
        return []
    carrier = {"traceparent": found.traceparent, "tracestate": found.tracestate}
    context = trace.get_current_span(_propagator.extract(carrier, Context())).get_span_context()
    return [trace.Link(context)] if context.is_valid else []


def _ended(span: trace.Span, verdict: Verdict | None) -> Verdict | None:
    if verdict is not None:
        span.set_attribute("ritornello.verdict", type(verdict).__name__.lower())
    return verdict
