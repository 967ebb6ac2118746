"""Spans of requests, and that there is nothing of it while nobody wants any."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import util
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from api import requests as ask
from api.settings.build import OperationSettings
from api.tracing import Tracing, TracingUnavailableError, says_of_tracing
from api.websocket.frames import JSON, Unfit
from tests.api.servers import server

ROOT = Path(__file__).parents[2]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Bench:
    """Tracing whose spans stay here."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracing("node-1", SimpleSpanProcessor(self.exporter))

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def span(self) -> ReadableSpan:
        (found,) = self.spans
        return found

    def answered(self, status: int = 200, **headers: str) -> None:
        self.tracing.answered("POST", "/v1/sessions/{id}/append", status, 0.25, headers, "4f1c")


@pytest.fixture
def bench() -> Iterator[Bench]:
    found = Bench()
    yield found
    found.exporter.shutdown()


def parent_of(span: ReadableSpan) -> tuple[str, str] | None:
    if span.parent is None:
        return None
    return format_trace_id(span.parent.trace_id), format_span_id(span.parent.span_id)


# Over HTTP


def test_a_request_is_a_span(bench: Bench) -> None:
    before_ns = time.time_ns()
    bench.answered()
    span = bench.span
    assert span.name == "POST /v1/sessions/{id}/append"
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/sessions/{id}/append",
        "http.response.status_code": 200,
        "ritornello.request_id": "4f1c",
    }
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == 250_000_000
    assert before_ns <= span.end_time <= time.time_ns()
    resource = span.resource.attributes
    assert resource["service.name"] == "ritornello"
    assert resource["service.instance.id"] == "node-1"


def test_a_client_that_traces_is_the_parent(bench: Bench) -> None:
    bench.answered(traceparent=TRACEPARENT, tracestate="vendor=1")
    span = bench.span
    assert parent_of(span) == (TRACE, PARENT)
    assert span.context is not None
    assert format_trace_id(span.context.trace_id) == TRACE
    assert span.context.trace_state.get("vendor") == "1"


def test_what_a_client_does_not_keep_is_not_kept(bench: Bench) -> None:
    bench.answered(traceparent=f"00-{TRACE}-{PARENT}-00")
    assert bench.spans == ()


@pytest.mark.parametrize(
    "nonsense",
    ["", "x", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", f"{TRACEPARENT}\udce9" * 99],
    ids=["empty", "short", "zero", "version", "bytes"],
)
def test_a_parent_that_makes_no_sense_is_none(bench: Bench, nonsense: str) -> None:
    bench.answered(traceparent=nonsense, baggage="a=b")
    assert bench.span.parent is None


def test_only_what_the_server_did_wrong_is_an_error(bench: Bench) -> None:
    for status in (200, 409, 503):
        bench.answered(status)
    codes = [span.status.status_code for span in bench.spans]
    assert codes == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]
    assert [(span.attributes or {}).get("error.type") for span in bench.spans] == [
        None,
        None,
        "503",
    ]


# Over a WebSocket


def test_each_request_of_a_connection_is_a_span(bench: Bench) -> None:
    connection = bench.tracing.connection({"traceparent": TRACEPARENT})
    connection.asked(ask.New, 1)
    connection.asked(ask.Append, 2)
    connection.answered(2, "lease_lost")
    connection.answered(1)
    connection.answered(1)  # of nothing that was asked
    connection.answered(7)
    names = [(span.name, (span.attributes or {}).get("error.type")) for span in bench.spans]
    assert names == [("websocket append", "lease_lost"), ("websocket new", None)]
    assert {parent_of(span) for span in bench.spans} == {(TRACE, PARENT)}
    assert {span.status.status_code for span in bench.spans} == {StatusCode.UNSET}
    assert [dict(span.attributes or {}).get("ritornello.op") for span in bench.spans] == [
        "append",
        "new",
    ]


def test_what_makes_no_sense_has_no_name(bench: Bench) -> None:
    connection = bench.tracing.connection({})
    connection.asked(Unfit, 1)
    connection.answered(1, "bad_request")
    assert bench.span.name == "websocket other"


def test_a_defect_is_an_error(bench: Bench) -> None:
    connection = bench.tracing.connection({})
    connection.asked(ask.New, 1)
    connection.answered(1, "internal")
    assert bench.span.status.status_code is StatusCode.ERROR


def test_a_number_that_is_used_again_is_answered_once(bench: Bench) -> None:
    connection = bench.tracing.connection({})
    connection.asked(ask.New, 1)
    connection.asked(ask.Append, 1)
    connection.answered(1)
    connection.answered(1)
    assert bench.span.name == "websocket append"


# Of a server


async def test_a_server_makes_spans(tmp_path: Path, bench: Bench) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracing, "to_otlp", lambda *_: bench.tracing)
        operation = OperationSettings(tracing="otlp")
        async with (
            server(tmp_path, operation=operation) as running,
            ClientSession(running.url, headers={"traceparent": TRACEPARENT}) as client,
        ):
            async with client.post("/v1/themes/7/sessions?key=s3cret", data=b"s3cret") as response:
                request_id = response.headers["Ritornello-Request-Id"]
                assert response.status == 201
            async with client.ws_connect("/v1/operate", protocols=[JSON]) as socket:
                await socket.receive_str()
                await socket.send_str('{"op":"get","seq":1,"theme":7,"key":"s3cret"}')
                await socket.receive_str()
                await socket.send_str('{"op":"touch","seq":2,"id":"1fff","epoch":1}')
                await socket.receive_str()
    spans = {span.name: span for span in bench.spans}
    created = spans["POST /v1/themes/{theme}/sessions"]
    assert (created.attributes or {})["ritornello.request_id"] == request_id
    assert (spans["websocket touch"].attributes or {})["error.type"] == "session_not_found"
    assert "error.type" not in (spans["websocket get"].attributes or {})
    for name in ("POST /v1/themes/{theme}/sessions", "websocket get", "websocket touch"):
        assert parent_of(spans[name]) == (TRACE, PARENT)
    assert not any("s3cret" in span.to_json() for span in bench.spans)


# Where they go


@pytest.fixture
async def collector() -> AsyncIterator[tuple[str, list[bytes]]]:
    """What takes traces, and what it was sent."""
    bodies: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces", bodies
    await runner.cleanup()


async def test_spans_are_sent_before_the_node_has_left(
    collector: tuple[str, list[bytes]],
) -> None:
    url, bodies = collector
    traced = Tracing.to_otlp(url, "node-7")
    traced.answered("GET", "/readyz", 200, 0.001, {}, "4f1c")
    await traced.stop(20)
    (body,) = bodies
    assert b"GET /readyz" in body
    assert b"node-7" in body


async def test_who_does_not_take_them_keeps_nobody() -> None:
    class Stuck(InMemorySpanExporter):
        def shutdown(self) -> None:
            time.sleep(1)

    traced = Tracing("node-1", SimpleSpanProcessor(Stuck()))
    begin_s = time.monotonic()
    await traced.stop(0.1)
    assert time.monotonic() - begin_s < 0.9
    await asyncio.sleep(1.1)  # its thread ends before the loop does


# Off


def test_nothing_of_it_is_imported_while_it_is_off() -> None:
    code = (
        "import sys, api.server, api.tracing\n"
        "found = [name for name in sys.modules if name.split('.')[0] == 'opentelemetry']\n"
        "assert found == [], found\n"
        "assert api.tracing.says_of_tracing('off') is None\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)  # noqa: S603


def test_what_is_missing_is_told_with_the_name_of_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert says_of_tracing("otlp") is None

    def without(missing: str) -> Callable[[str], object]:
        find = util.find_spec

        def look(module: str) -> object:
            if module.startswith(missing):
                raise ModuleNotFoundError(missing)
            return find(module)

        return look

    monkeypatch.setattr(util, "find_spec", without("opentelemetry.exporter"))
    assert says_of_tracing("off") is None
    assert says_of_tracing("otlp") == (
        "is 'otlp', which takes packages that are not installed; install them with "
        "pip install 'ritornello-server[otel]', or set it to 'off'"
    )
    with pytest.raises(TracingUnavailableError, match=r"operation\.tracing is 'otlp', which takes"):
        Tracing.to_otlp("http://127.0.0.1:4318/v1/traces", "node-1")
