"""What headers say, in requests and in answers."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.identifiers import session_text
from api.security import new_token
from tests.api.http import raw
from tests.api.http.client import Client, client
from tests.api.security.files import entry
from tests.api.servers import HTTP, Running, server

NEW = "/v1/themes/7/sessions"


# Revisions


async def test_if_match_lets_a_change_pass_that_knows_the_revision(caller: Client) -> None:
    created = await caller.post(NEW, b"a")
    session = created.headers["Location"]
    for etag in (created.headers["ETag"], "*", "3", ' "4" '):
        headers = {"If-Match": etag}
        changed = await caller.post(f"{session}/append", b"b", headers=headers, epoch=1)
        assert changed.status == 200, etag
    for verb in ("append", "replace", "store", "park"):
        refused = await caller.post(f"{session}/{verb}", headers={"If-Match": '"1"'}, epoch=1)
        assert refused.problem == (412, "revision_mismatch"), verb
        assert (refused.json["revision"], refused.json["current"]) == (1, 5)
    removed = await caller.delete(session, headers={"If-Match": '"1"'}, epoch=1)
    assert removed.problem == (412, "revision_mismatch")


@pytest.mark.parametrize("etag", ["x", "0", '"0"', '"1", "2"', 'W/"1"', "-1", '"', "9" * 30, "²"])
async def test_an_if_match_that_no_answer_had_is_refused(caller: Client, etag: str) -> None:
    session = (await caller.post(NEW, b"a")).headers["Location"]
    headers = {"If-Match": etag}
    answer = await caller.post(f"{session}/append", b"b", headers=headers, epoch=1)
    assert answer.problem == (400, "bad_request")
    assert "If-Match" in answer.json["detail"]


async def test_a_precondition_is_never_passed_over(caller: Client) -> None:
    session = (await caller.post(NEW, b"a")).headers["Location"]
    headers = {"If-Match": '"7"'}
    for path in (NEW, "/v1/acquire?themes=7", f"{session}/touch?epoch=1"):
        assert (await caller.post(path, headers=headers)).problem == (400, "bad_request"), path


async def test_who_knows_the_revision_is_told_so(caller: Client) -> None:
    session = (await caller.post(NEW, b"a")).headers["Location"]
    for known in ('"1"', 'W/"1"', '"5", "1"', "*"):
        answer = await caller.get(session, headers={"If-None-Match": known})
        assert (answer.status, answer.body) == (304, b""), known
        assert answer.headers["ETag"] == '"1"'
    for other in ('"2"', "", "nonsense", '"11"'):
        assert (await caller.get(session, headers={"If-None-Match": other})).status == 200, other


# Epochs


@pytest.mark.parametrize("epoch", ["0", "-1", "x", "1.0", "9" * 30, "0" * 25 + "1", ""])
async def test_an_epoch_that_is_none_is_refused(caller: Client, epoch: str) -> None:
    session = (await caller.post(NEW, b"a")).headers["Location"]
    headers = {"Ritornello-Epoch": epoch}
    answer = await caller.post(f"{session}/append", b"b", headers=headers)
    assert answer.problem == (400, "bad_request")
    assert "Ritornello-Epoch" in answer.json["detail"]


async def test_an_epoch_comes_by_header_query_or_body(caller: Client) -> None:
    session = (await caller.post(NEW, b"a")).headers["Location"]
    assert (await caller.post(f"{session}/append", b"b", epoch=1)).status == 200
    assert (await caller.post(f"{session}/append?epoch=1", b"c")).status == 200
    assert (await caller.post(f"{session}/append", json={"text": "d", "epoch": 1})).status == 200
    twice = await caller.post(f"{session}/append?epoch=1", b"e", epoch=1)
    assert twice.problem == (400, "bad_request")
    missing = await caller.post(f"{session}/touch")
    assert missing.problem == (400, "bad_request")
    assert "epoch" in missing.json["detail"]


# Once


async def test_a_request_with_the_same_key_is_done_once(caller: Client) -> None:
    headers = {"Idempotency-Key": "4711"}
    first = await caller.post(NEW, b"a", headers=headers)
    again = await caller.post(NEW, b"a", headers=headers)
    assert (first.status, first.json) == (again.status, again.json)
    other = await caller.post(NEW, b"b", headers=headers)
    assert other.problem == (422, "idempotency_mismatch")
    session = first.headers["Location"]
    headers = {"Idempotency-Key": "4712"}
    for _ in range(2):
        appended = await caller.post(f"{session}/append", b"b", headers=headers, epoch=1)
        assert appended.json == {"revision": 2}
    headers = {"Idempotency-Key": "4713"}
    for _ in range(2):
        assert (await caller.delete(session, headers=headers, epoch=1)).json == {"revision": 2}
    operations = [{"op": "new", "theme": 7}]
    headers = {"Idempotency-Key": "4714"}
    answers = [
        await caller.post("/v1/txn", json={"operations": operations}, headers=headers)
        for _ in range(2)
    ]
    assert answers[0].json == answers[1].json


async def test_an_idempotency_key_that_is_none_is_refused(caller: Client) -> None:
    for key in ("", "k" * 257):
        answer = await caller.post(NEW, b"a", headers={"Idempotency-Key": key})
        assert answer.problem == (400, "bad_request")
    await caller.stored()
    answer = await caller.post("/v1/acquire?themes=7", headers={"Idempotency-Key": "k"})
    assert answer.problem == (400, "bad_request")


# Time


@pytest.mark.parametrize("timeout_s", ["0", "-1", "x", "1e3", "0.0001", "inf", ""])
async def test_a_timeout_that_is_none_is_refused(caller: Client, timeout_s: str) -> None:
    answer = await caller.post(NEW, b"a", headers={"Ritornello-Timeout": timeout_s})
    assert answer.problem == (400, "bad_request")
    assert "Ritornello-Timeout" in answer.json["detail"]


async def test_a_timeout_is_bounded_and_not_needed(caller: Client) -> None:
    for timeout_s in ("2.5", "999999999"):
        answer = await caller.post(NEW, b"a", headers={"Ritornello-Timeout": timeout_s})
        assert answer.status == 201


async def test_a_timeout_bounds_what_is_read_to_check_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = new_token()
    text = entry(token, "some", '["read", "operate"]', 'themes = ["7"]')
    async with server(tmp_path, tokens=text) as running, client(running, token=token) as caller:
        gateway, waits = running.front.gateway, list[Any]()
        read = gateway.read

        def noted(callback: Any, *, timeout_ms: int | None = None) -> None:
            waits.append(timeout_ms)
            read(callback, timeout_ms=timeout_ms)

        monkeypatch.setattr(gateway, "read", noted)
        headers = {"Ritornello-Timeout": "0.25", "Ritornello-Epoch": "1"}
        answer = await caller.post(f"/v1/sessions/{session_text(9)}/append", b"a", headers=headers)
        assert answer.problem == (404, "session_not_found")
        assert waits == [250]


# Request ids


async def test_every_answer_has_an_id(caller: Client) -> None:
    given = {"X-Request-Id": "mine-1"}
    for path in ("/v1/cluster", "/nowhere", "/livez"):
        assert (await caller.get(path, headers=given)).headers["Ritornello-Request-Id"] == "mine-1"
    for strange in ("a b", "x" * 65, "ü", ""):
        answer = await caller.get("/livez", headers={"X-Request-Id": strange})
        assert answer.headers["Ritornello-Request-Id"] not in {strange, ""}
    ids = {(await caller.get("/livez")).headers["Ritornello-Request-Id"] for _ in range(5)}
    assert len(ids) == 5


# Methods


async def test_head_is_get_without_the_body(caller: Client) -> None:
    session = (await caller.post(NEW, b"a")).headers["Location"]
    for path in (session, "/v1/cluster", "/livez", "/v1/themes"):
        got, head = await caller.get(path), await caller.ask("HEAD", path)
        assert (head.status, head.body) == (got.status, b""), path
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
    assert (await caller.ask("HEAD", "/v1/sessions/ff")).status == 404


async def test_options_tells_the_methods(caller: Client) -> None:
    for path, allowed in (
        ("/v1/sessions/1", "DELETE, GET, HEAD, OPTIONS"),
        ("/v1/acquire", "OPTIONS, POST"),
        ("/v1/themes/7/policy", "OPTIONS, PATCH"),
    ):
        answer = await caller.ask("OPTIONS", path)
        assert (answer.status, answer.headers["Allow"]) == (204, allowed)
        refused = await caller.ask("PUT", path)
        assert refused.problem == (405, "method_not_allowed")
        assert refused.headers["Allow"] == allowed


async def test_what_has_no_route_is_not_found(caller: Client) -> None:
    for path in ("/", "/v1", "/v1/", "/v1/sessions", "/v1/themes/7/keys", "//livez", "/livez/"):
        assert (await caller.get(path)).problem == (404, "not_found"), path


# Bodies that wait to be asked for


async def test_a_body_is_asked_for_when_it_is_wanted(running: Running) -> None:
    head = b"POST /v1/themes/%s/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
    async with raw.connection(running) as (reader, writer):
        writer.write(head % b"7" + b"Expect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"data")
        assert (await raw.answer(reader)).status == 201
        # The connection goes on.
        writer.write(head % b"7" + b"\r\ndata")
        assert (await raw.answer(reader)).status == 201
    async with raw.connection(running) as (reader, writer):
        writer.write(head % b"none" + b"Expect: 100-continue\r\n\r\n")
        refused = await raw.answer(reader)
        assert refused.problem == (404, "not_found")
        assert refused.headers["Connection"] == "close"
    strange = await raw.ask(running, head % b"7" + b"Expect: a miracle\r\n\r\n")
    assert strange.problem == (417, "expectation_failed")


@pytest.mark.parametrize("length", [b"0" * 5000 + b"4", b"4 \t "])
async def test_a_length_is_read_however_it_is_written(running: Running, length: bytes) -> None:
    head = b"POST /v1/themes/7/sessions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    async with raw.connection(running) as (reader, writer):
        writer.write(head + b"Content-Length: %s\r\n\r\n" % length)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"data")
        assert (await raw.answer(reader)).status == 201


async def test_a_length_with_zeros_in_front_is_bounded_like_any(running: Running) -> None:
    head = b"POST /v1/themes/7/sessions HTTP/1.1\r\nHost: localhost\r\n"
    large = await raw.ask(running, head + b"Content-Length: %05000d\r\n\r\n" % (1 << 40))
    assert large.problem == (413, "too_large")


async def test_a_body_that_does_not_arrive_is_not_waited_for(tmp_path: Path) -> None:
    async with server(tmp_path, http=replace(HTTP, request_timeout_ms=200)) as running:
        request = (
            b"POST /v1/themes/7/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )
        async with raw.connection(running) as (reader, writer):
            writer.write(request + b"part")
            assert (await raw.answer(reader)).problem == (408, "request_timeout")
            assert await raw.is_closed(reader)


async def test_a_connection_without_a_request_is_closed(tmp_path: Path) -> None:
    async with server(tmp_path, http=replace(HTTP, idle_timeout_ms=200)) as running:
        async with raw.connection(running) as (reader, writer):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: local")
            assert await raw.is_closed(reader)
        async with raw.connection(running) as (reader, writer):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await raw.answer(reader)).status == 200
            assert await raw.is_closed(reader)


async def test_who_does_not_read_a_large_answer_is_left(tmp_path: Path) -> None:
    async with (
        server(tmp_path, http=replace(HTTP, request_timeout_ms=1000)) as running,
        client(running) as caller,
    ):
        session = (await caller.post(NEW)).headers["Location"]
        for _ in range(15):
            await caller.post(f"{session}/append", bytes(1024 * 1024), epoch=1)
        async with raw.connection(running) as (reader, writer):
            writer.write(f"GET {session} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            # The reader's buffer is small: it stops reading the socket at once.
            assert (await caller.get("/livez")).status == 200  # others are served meanwhile
            await asyncio.sleep(1.5)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            expected = int(head.partition("Content-Length: ")[2].partition("\r\n")[0])
            received = 0
            with suppress(ConnectionResetError):
                while data := await reader.read(2**20):
                    received += len(data)
            assert received < expected


# Clients of old


async def test_http_1_0_needs_no_host_and_ends_the_connection(running: Running) -> None:
    async with raw.connection(running) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
        assert (await raw.answer(reader)).status == 200
        assert await raw.is_closed(reader)


async def test_a_path_may_come_with_its_server(running: Running) -> None:
    request = b"GET http://localhost/v1/themes?limit=5 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert (await raw.ask(running, request)).json == {"themes": [], "cursor": None}


async def test_requests_may_follow_each_other_without_waiting(running: Running) -> None:
    one = b"POST /v1/themes/7/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\na"
    async with raw.connection(running) as (reader, writer):
        writer.write(one * 20)
        ids = [(await raw.answer(reader)).json["id"] for _ in range(20)]
    assert ids == [f"{number:x}" for number in range(1, 21)]
