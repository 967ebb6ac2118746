"""The trace context of whoever began a session is kept for those who work on it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.http.client import Client, client
from tests.api.servers import server

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
KEEP = {"traceparent": PARENT, "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"}
VIEW = ("traceparent", "tracestate")


@pytest.fixture
async def caller(tmp_path: Path) -> AsyncIterator[Client]:
    async with server(tmp_path) as running, client(running) as found:
        yield found


async def kept(caller: Client, session: str) -> dict[str, str]:
    seen = (await caller.get(session)).json
    return {name: seen[name] for name in VIEW if name in seen}


async def test_a_session_keeps_the_trace_of_the_request_that_began_it(caller: Client) -> None:
    created = await caller.post("/v1/themes/7/sessions", b"a", headers=KEEP)
    session = created.headers["Location"]
    assert await kept(caller, session) == KEEP
    answer = await caller.post(f"{session}/store", epoch=1, json={"repeat_after": 0})
    assert answer.status == 200
    acquired = await caller.post(
        "/v1/acquire", json={"themes": [7]}, headers={"traceparent": OTHER}
    )
    (seen,) = acquired.json["sessions"]
    assert {name: seen[name] for name in VIEW} == KEEP


async def test_a_trace_may_stand_in_the_fields(caller: Client) -> None:
    fields = {"traceparent": OTHER}
    created = await caller.post("/v1/themes/7/sessions", json=fields, headers=KEEP)
    assert await kept(caller, created.headers["Location"]) == fields
    news = [{"op": "new", "theme": 7}, {"op": "new", "theme": 7, **fields}]
    done = await caller.post("/v1/txn", json={"operations": news}, headers=KEEP)
    first, second = (f"/v1/sessions/{one['id']}" for one in done.json["results"])
    assert await kept(caller, first) == KEEP
    assert await kept(caller, second) == fields


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "nothing", "tracestate": "a=b"},
        {"traceparent": PARENT + "-more"},
        {"traceparent": PARENT.upper()},
        {"tracestate": "a=b"},
    ],
)
async def test_a_header_that_is_no_trace_is_passed_over(
    caller: Client, headers: dict[str, str]
) -> None:
    created = await caller.post("/v1/themes/7/sessions", b"a", headers=headers)
    assert created.status == 201
    assert await kept(caller, created.headers["Location"]) == {}


async def test_a_state_that_is_too_long_is_left_out(caller: Client) -> None:
    headers = {"traceparent": PARENT, "tracestate": "a=" + "b" * 511}
    created = await caller.post("/v1/themes/7/sessions", b"a", headers=headers)
    assert await kept(caller, created.headers["Location"]) == {"traceparent": PARENT}


async def test_a_field_that_is_no_trace_is_refused(caller: Client) -> None:
    for fields in ({"traceparent": "nothing"}, {"traceparent": PARENT, "tracestate": "\n"}):
        answer = await caller.post("/v1/themes/7/sessions", json=fields)
        assert answer.problem == (400, "bad_request")


async def test_a_request_with_the_same_key_may_have_another_trace(caller: Client) -> None:
    path, key = "/v1/themes/7/sessions", {"Idempotency-Key": "once"}
    first = await caller.post(path, b"a", headers={**key, "traceparent": PARENT})
    again = await caller.post(path, b"a", headers={**key, "traceparent": OTHER})
    assert (first.status, first.json) == (again.status, again.json)
    assert await kept(caller, first.headers["Location"]) == {"traceparent": PARENT}
