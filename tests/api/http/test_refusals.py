"""Whatever goes wrong is told as a problem document."""

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from api.http import listening
from api.settings.build import HttpSettings
from tests.api.http import contract, raw
from tests.api.http.client import client
from tests.api.security.files import entry
from tests.api.servers import HTTP, READY_S, Running, cluster_of_three, server, until

HOST = b"Host: localhost\r\n"
POST = b"POST /v1/themes/7/sessions HTTP/1.1\r\n" + HOST

TOO_MUCH = [
    b"GET /livez HTTP/1.1\r\n" + HOST + b"A: " + b"x" * 9000 + b"\r\n\r\n",
    b"GET /livez?" + b"x" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /livez HTTP/1.1\r\n" + HOST + b"".join(b"A%d: 1\r\n" % n for n in range(99)) + b"\r\n",
]
NONSENSE = [
    b"nonsense\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /livez HTTP/1.1\r\n\r\n",
    b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    b"GET /livez HTTP/1.1\r\n" + HOST + b"A: \x00\r\n\r\n",
    b"GET /v1/themes/7/keys/\xc3\xa9 HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET http://[::1 HTTP/1.1\r\n" + HOST + b"\r\n",
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\naa",
    POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.mark.parametrize("request_", NONSENSE, ids=range(len(NONSENSE)))
async def test_what_is_no_http_is_told_so(
    running: Running, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw.connection(running) as (reader, writer):
        writer.write(request_)
        answer = await raw.answer(reader)
        assert answer.problem == (400, "bad_request")
        contract.check_problem("nonsense", 400, answer.headers, answer.body)
        assert await raw.is_closed(reader)
    # A stranger cannot fill the log.
    assert not [one for one in caplog.records if one.levelname in {"WARNING", "ERROR"}]


@pytest.mark.parametrize("request_", TOO_MUCH, ids=["line", "target", "lines"])
async def test_a_header_beyond_its_bound_is_told_so(running: Running, request_: bytes) -> None:
    async with raw.connection(running) as (reader, writer):
        writer.write(request_)
        answer = await raw.answer(reader)
        assert answer.problem == (431, "header_too_large")
        assert "8190" in answer.json["detail"]
        assert await raw.is_closed(reader)


async def test_no_refusal_repeats_a_secret(running: Running) -> None:
    for secret in (b"rit_" + b"x" * 9000, b"rit_secret\x00"):
        head = b"GET /livez HTTP/1.1\r\n" + HOST + b"Authorization: Bearer " + secret + b"\r\n\r\n"
        answer = await raw.ask(running, head)
        assert b"rit_" not in answer.body


async def test_a_defect_is_told_without_its_details(
    running: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect() -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(running.front.gateway, "status", defect)
    async with client(running) as caller:
        answer = await caller.get("/v1/cluster")
    assert answer.problem == (500, "internal")
    assert answer.json["outcome"] == "unknown"
    assert b"secret" not in answer.body
    assert "defect" in caplog.text


# Tokens


READER = "rit_" + "r" * 43
WORKER = "rit_" + "w" * 43
ADMIN = "rit_" + "a" * 43
TOKENS = "".join(
    (
        entry(READER, "reader", '["read"]'),
        entry(WORKER, "worker", '["operate"]', 'themes = ["7"]'),
        entry(ADMIN, "admin", '["admin"]'),
    )
)


async def test_who_has_no_token_is_asked_for_one(tmp_path: Path) -> None:
    async with server(tmp_path, tokens=TOKENS) as running, client(running) as caller:
        for path in ("/v1/cluster", "/v1/themes", "/v1/sessions/1", "/v1/operate"):
            answer = await caller.get(path)
            assert answer.problem == (401, "unauthenticated"), path
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="ritornello"'
        wrong = await caller.get("/v1/themes", headers={"Authorization": f"Bearer {READER[:-1]}x"})
        assert wrong.headers["WWW-Authenticate"].endswith('error="invalid_token"')
        for path in ("/livez", "/readyz", "/openapi.json"):
            assert (await caller.get(path)).status == 200, path
        assert (await caller.get("/nowhere")).problem == (404, "not_found")


async def test_a_scope_bounds_what_one_may_do(tmp_path: Path) -> None:
    async with server(tmp_path, tokens=TOKENS) as running:
        async with client(running, token=READER) as reader:
            assert (await reader.get("/v1/themes")).status == 200
            for path in ("/v1/themes/7/sessions", "/v1/acquire?themes=7", "/v1/sessions/1/append"):
                assert (await reader.post(path, b"")).problem == (403, "forbidden"), path
            assert (await reader.delete("/v1/sessions/1")).problem == (403, "forbidden")
            assert (await reader.post("/v1/consumers/a/heartbeat")).problem == (403, "forbidden")
        async with client(running, token=ADMIN) as admin:
            assert (await admin.post("/v1/themes/8/sessions", b"")).status == 201
            assert (await admin.post("/v1/themes/8/pause")).status == 200


async def test_a_token_for_some_themes_sees_no_others(tmp_path: Path) -> None:
    async with (
        server(tmp_path, tokens=TOKENS) as running,
        client(running, token=WORKER) as worker,
        client(running, token=ADMIN) as admin,
    ):
        mine, other = (await worker.new(7))["id"], (await admin.new(8))["id"]
        operations = [{"op": "remove", "id": other, "epoch": 1}]
        for answer in (
            await worker.post("/v1/themes/8/sessions"),
            await worker.post("/v1/acquire?themes=7,8"),
            await worker.get(f"/v1/sessions/{other}"),
            await worker.post(f"/v1/sessions/{other}/append", b"", epoch=1),
            await worker.post(f"/v1/sessions/{other}/acquire"),
            await worker.delete(f"/v1/sessions/{other}", epoch=1),
            await worker.post("/v1/txn", json={"operations": operations}),
            await worker.get("/v1/themes/8"),
            await worker.post("/v1/themes/7/pause"),
            await worker.post("/v1/cluster/transfer"),
            await worker.patch("/v1/cluster/limits", json={"themes": 1}),
        ):
            assert answer.problem == (403, "forbidden")
        page = (await worker.get("/v1/themes?limit=1")).json
        assert ([one["theme"] for one in page["themes"]], page["cursor"]) == ([7], None)
        assert (await worker.post(f"/v1/sessions/{mine}/append", b"", epoch=1)).status == 200
        assert (await worker.get(f"/v1/sessions/{mine}")).status == 200


async def test_an_id_that_is_guessed_before_it_is_given_gives_nothing_away(tmp_path: Path) -> None:
    async with (
        server(tmp_path, tokens=TOKENS) as running,
        client(running, token=WORKER) as worker,
        client(running, token=ADMIN) as admin,
    ):
        last = int(await admin.stored(theme=8), 16)
        statuses: Counter[int] = Counter()

        async def guess(method: str, path: str) -> None:
            while last < begun + 40:
                answer = await worker.ask(method, f"/v1/sessions/{last + 1:x}{path}")
                statuses[answer.status] += 1

        begun = last
        ways = (("GET", ""), ("DELETE", ""), ("POST", "/acquire"))
        thieves = [asyncio.ensure_future(guess(*way)) for way in ways for _ in range(2)]
        while last < begun + 40:
            last = int(await admin.stored(theme=8, data=b"secret"), 16)
        await asyncio.gather(*thieves)
        assert set(statuses) <= {403, 404}
        assert (await admin.get("/v1/themes/8")).json["ready"] == 41


# Bounds


async def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with (
        server(tmp_path, http=replace(HTTP, requests_per_second=5)) as running,
        client(running) as caller,
    ):
        answers = [await caller.get("/v1/cluster") for _ in range(10)]
        refused = [one for one in answers if one.status == 429]
        assert 1 <= len(refused) <= 5
        assert refused[0].problem == (429, "rate_limited")
        assert refused[0].json["retryable"]
        assert int(refused[0].headers["Retry-After"]) == 1
        assert (await caller.get("/livez")).status == 200  # never refused


@pytest.mark.parametrize(
    "http",
    [replace(HTTP, connections=2), replace(HTTP, connections_per_host=2)],
    ids=["in all", "of one host"],
)
async def test_one_connection_too_many_is_told_so(tmp_path: Path, http: HttpSettings) -> None:
    async with server(tmp_path, http=http) as running:
        async with raw.connection(running) as first, raw.connection(running) as second:
            for reader, writer in (first, second):
                writer.write(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
                assert (await raw.answer(reader)).status == 200
            async with raw.connection(running) as (reader, _):
                answer = await raw.answer(reader)
                assert answer.problem == (503, "too_many_connections")
                contract.check_problem("one too many", 503, answer.headers, answer.body)
                assert await raw.is_closed(reader)

        async def is_served() -> bool:
            async with raw.connection(running) as (reader, writer):
                writer.write(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
                return (await raw.answer(reader)).status == 200

        async def eventually() -> None:
            while not await is_served():
                pass

        await asyncio.wait_for(eventually(), READY_S)


async def test_who_shakes_no_hands_takes_a_place_and_not_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HANDSHAKE_S", 1.0)
    http = replace(HTTP, connections=2)
    async with server(tmp_path, http=http, authority=trustme.CA()) as running:
        async with raw.connection(running) as (first, _), raw.connection(running) as (second, _):
            await until(lambda: running.connections == 2)
            async with raw.connection(running) as (third, _):
                with contextlib.suppress(ConnectionResetError):
                    assert await raw.is_closed(third)
                assert running.connections == 2
            for reader in (first, second):
                with contextlib.suppress(ConnectionResetError):
                    assert await raw.is_closed(reader)
        await until(lambda: running.connections == 0)
        async with client(running) as caller:
            assert (await caller.get("/livez")).status == 200
            assert running.connections == 1


# A cluster that cannot answer


async def test_without_a_majority_requests_are_answered_in_their_time(tmp_path: Path) -> None:
    async with cluster_of_three(tmp_path) as nodes:
        await asyncio.gather(*(one.leave() for one in nodes[1:]))
        alone = nodes[0]
        await until(lambda: alone.front.gateway.leader is None)
        headers = {"Ritornello-Timeout": "0.3"}
        async with client(alone, headers=headers) as caller:
            for answer in (
                await caller.post("/v1/themes/7/sessions"),
                await caller.get("/v1/sessions/1"),
                await caller.post("/v1/sessions/1/acquire"),
                await caller.post("/v1/acquire?themes=7"),
                await caller.get("/v1/themes"),
            ):
                assert answer.problem == (504, "timed_out")
                assert answer.json["retryable"]
            operations = [{"op": "new", "theme": 7}]
            begun_s = time.monotonic()
            answer = await caller.post("/v1/txn", json={"operations": operations})
            assert answer.problem == (504, "timed_out")
            assert answer.json["outcome"] == "not_applied"
            longer = {"Ritornello-Timeout": "4"}  # than a node waits by itself, in these tests
            answer = await caller.post("/v1/txn", json={"operations": operations}, headers=longer)
            assert answer.problem == (504, "timed_out")
            assert time.monotonic() - begun_s > 4
            # Only waiting is no error: what may still be handed out is given back.
            assert (await caller.post("/v1/acquire?themes=7&wait=0.2")).status == 204
            assert (await caller.get("/v1/themes?consistency=stale")).status == 200
            assert (await caller.get("/v1/sessions/1?consistency=stale")).status == 404
            assert (await caller.get("/livez")).status == 200
            ready = await caller.get("/readyz")
            assert (ready.status, ready.json["status"]) == (503, "failing")
            assert "leader" in ready.json["checks"]


async def test_a_draining_node_hands_nothing_out(running: Running) -> None:
    async with client(running) as caller:
        session_id = await caller.stored()
        running.front.health.is_draining = True
        for path in ("/v1/acquire?themes=7&wait=9", f"/v1/sessions/{session_id}/acquire"):
            answer = await caller.post(path)
            assert answer.problem == (503, "draining")
            assert answer.headers["Connection"] == "close"
        assert "draining" in (await caller.get("/readyz")).json["checks"]
        assert (await caller.post(f"/v1/sessions/{session_id}/append", b"x")).status == 200


async def test_over_tls_it_is_the_same(tmp_path: Path) -> None:
    authority = trustme.CA()
    async with server(tmp_path, authority=authority) as running, client(running) as caller:
        assert (await caller.post("/v1/themes/7/sessions", b"x")).status == 201
        assert (await caller.get("/v1/sessions/1")).status == 200


async def test_a_plain_request_is_nothing_where_tls_is_wanted(
    tmp_path: Path,
) -> None:
    async with (
        server(tmp_path, authority=trustme.CA()) as running,
        raw.connection(running) as (reader, writer),
    ):
        writer.write(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await raw.is_closed(reader)
