"""Traces that begin with who began a session, and are linked to by each attempt."""

import asyncio
import logging
import warnings
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import ritornello
import ritornello.sync
from ritornello import Client, Options, Remove, Session, Store, Trace, Verdict, Worker, otel
from tests.api.servers import Running

THEME, OTHER = 7, 8
PARENT = Trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "rojo=1")


class Spans:
    """What was told of spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def ended(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [one for one in self.ended if one.name == name]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    found = Spans()
    monkeypatch.setattr(trace, "get_tracer", found.provider.get_tracer)
    yield found
    found.provider.shutdown()


def attribute(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


async def test_a_session_keeps_its_trace_through_all_attempts(client: Client) -> None:
    session = await client.new(THEME, b"x", trace=PARENT)
    assert session.trace == PARENT
    await session.store(after=0)
    assert (await client.get(session.id)).trace == PARENT
    async with client.acquire(THEME, wait=5) as again:
        assert again is not None
        assert again.trace == PARENT
        await again.remove()
    async with client.txn() as txn:
        txn.new(THEME, b"y", trace=PARENT)
    (created,) = txn.results
    assert isinstance(created, ritornello.Created)
    assert (await client.get(created.id)).trace == PARENT
    assert (await client.new(THEME, after=60)).created
    async with client.new(OTHER) as without:
        assert without.trace is None
        await without.remove()


async def test_what_is_no_trace_is_said_at_once(client: Client) -> None:
    with pytest.raises(ValueError, match="traceparent"):
        await client.new(THEME, trace=Trace("nothing"))


async def test_each_attempt_is_a_span_with_a_link_to_what_caused_it(
    node: Running, spans: Spans
) -> None:
    async with Client(node.url, options=Options(trace=otel.current)) as client:
        with trace.get_tracer("test").start_as_current_span("order") as cause:
            await client.new(THEME, b"secret", after=0)
        await client.new(OTHER, after=0)  # outside of any span
        done = asyncio.Event()
        worker = Worker(client)
        worker.middleware(otel.traced)

        @worker.handler(THEME)
        async def first(session: Session) -> Verdict:
            if session.attempts < 3:
                return Store(after=0)
            await client.new(OTHER, after=0)
            return Remove()

        @worker.handler(OTHER)
        async def second(session: Session) -> Verdict:
            if session.trace is not None:
                done.set()
            return Remove()

        running = asyncio.ensure_future(worker.run())
        await asyncio.wait_for(done.wait(), 20)
        worker.stop()
        await running
    attempts = spans.named(f"process {THEME}")
    context = cause.get_span_context()
    assert [attribute(one, "ritornello.attempts") for one in attempts] == [1, 2, 3]
    verdicts = [attribute(one, "ritornello.verdict") for one in attempts]
    assert verdicts == ["store", "store", "remove"]
    for one in attempts:
        assert one.kind is trace.SpanKind.CONSUMER
        (link,) = one.links
        assert (link.context.trace_id, link.context.span_id) == (context.trace_id, context.span_id)
        assert one.context is not None
        assert one.context.trace_id != context.trace_id
        assert "secret" not in one.to_json()
    alone, caused = sorted(spans.named(f"process {OTHER}"), key=lambda one: len(one.links))
    assert alone.links == ()
    last = attempts[-1].context
    assert last is not None
    assert caused.links[0].context.span_id == last.span_id


async def test_a_span_tells_the_type_of_an_error_and_not_its_text(
    client: Client, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "ritornello")
    created = await client.new(THEME, after=0)
    worker = Worker(client)
    worker.middleware(otel.traced)

    @worker.handler(THEME)
    async def fail(_: Session) -> Verdict:
        worker.stop()
        raise KeyError("secret")

    await asyncio.wait_for(worker.run(), 20)
    (span,) = spans.ended
    assert span.status.status_code is trace.StatusCode.ERROR
    assert attribute(span, "error.type") == "KeyError"
    assert "secret" not in span.to_json()
    (cause,) = (await client.get(created.id)).history
    assert (cause.cause, cause.reason) == ("failed", "KeyError")


def test_workers_in_threads_have_spans_too(
    still_client: ritornello.sync.Client, spans: Spans
) -> None:
    still_client.new(THEME, b"x", after=0, trace=PARENT)
    worker = ritornello.sync.Worker(still_client, concurrency=1)
    worker.middleware(otel.traced_sync)
    seen: list[Trace | None] = []

    @worker.handler(THEME)
    def handle(_: ritornello.sync.Session) -> Verdict:
        seen.append(otel.current())
        worker.stop()
        return Remove()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worker.run()
    (span,) = spans.ended
    assert span.context is not None
    (found,) = seen
    assert found is not None
    assert found.traceparent.split("-")[2] == f"{span.context.span_id:016x}"
    assert span.links[0].context.trace_id == int(PARENT.traceparent.split("-")[1], 16)
    assert span.links[0].context.trace_state.get("rojo") == "1"
