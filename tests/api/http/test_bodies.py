"""What may be sent, in which form, and what comes back."""

import asyncio
import base64
import gzip
import zlib
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_from_bytes, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.api.http import raw
from tests.api.http.client import Client, client
from tests.api.servers import HTTP, Running, server

NEW = "/v1/themes/7/sessions"
BYTES = {"Accept": "application/octet-stream"}


async def data_of(caller: Client, answer: Any) -> bytes:
    found = await caller.get(f"/v1/sessions/{answer.json['id']}", headers=BYTES)
    assert found.headers["Content-Type"] == "application/octet-stream"
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    return found.body


async def test_data_comes_in_four_ways(caller: Client) -> None:
    for answer in (
        await caller.post(NEW, b"\x00\xff"),
        await caller.post(NEW, json={"data": base64.b64encode(b"\x00\xff").decode()}),
        await caller.post(NEW, msgpack={"data": b"\x00\xff"}),
        await caller.post(f"{NEW}?data=AP8%3D"),
    ):
        assert answer.status == 201
        assert await data_of(caller, answer) == b"\x00\xff"
    assert await data_of(caller, await caller.post(NEW, json={"text": "é"})) == "é".encode()


async def test_a_form_is_data_like_any_other_type(caller: Client) -> None:
    for media in ("application/x-www-form-urlencoded", "text/plain", "application/xml", "nonsense"):
        answer = await caller.post(NEW, b"a=b", headers={"Content-Type": media})
        assert await data_of(caller, answer) == b"a=b"


async def test_a_type_may_have_parameters_and_other_names(caller: Client) -> None:
    body = msgspec.json.encode({"text": "a"})
    for media in ("Application/JSON; charset=utf-8", "application/json;x=y"):
        answer = await caller.post(NEW, body, headers={"Content-Type": media})
        assert await data_of(caller, answer) == b"a"
    body = msgspec.msgpack.encode({"text": "a"})
    for media in ("application/x-msgpack", "application/vnd.msgpack"):
        answer = await caller.post(NEW, body, headers={"Content-Type": media})
        assert await data_of(caller, answer) == b"a"


async def test_all_fields_of_new_come_by_body_or_query(caller: Client) -> None:
    fields = {"key": "k", "priority": 3, "repeat_after": 90.5, "on_conflict": "return_existing"}
    first = await caller.post(NEW, json=fields)
    second = await caller.post(f"{NEW}?{urlencode(fields)}", b"data")
    assert (first.status, second.status) == (201, 200)
    view = (await caller.get("/v1/themes/7/keys/k")).json
    assert (view["priority"], view["phase"]) == (3, "stored")
    assert view["due_ms"] - view["created_ms"] == 90_500


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"unknown": 1}, "unknown"),
        ({"theme": 8}, "theme"),
        ({"seq": 1}, "seq"),
        ({"idempotency_key": "a"}, "idempotency_key"),
        ({"priority": 65_536}, "priority"),
        ({"priority": "1"}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"repeat_after": -1}, "repeat_after"),
        ({"repeat_after": 1e12}, "repeat_after"),
        ({"on_conflict": "overwrite"}, "on_conflict"),
        ({"key": ""}, "key"),
        ({"key": 5}, "key"),
        ({"data": "not base64"}, "data"),
        ({"data": "YQ==", "text": "a"}, "text"),
        ([], "array"),
    ],
)
async def test_a_refusal_names_the_field(caller: Client, fields: Any, named: str) -> None:
    packed = {**fields, "data": b"a"} if "text" in fields else fields
    for answer in (await caller.post(NEW, json=fields), await caller.post(NEW, msgpack=packed)):
        assert answer.problem == (400, "bad_request")
        assert named in answer.json["detail"]


async def test_what_is_no_json_is_refused(caller: Client) -> None:
    for body in (b"{", b"\xff", b'{"text":"\xff"}', b"[" * 5000, b'{"text":"\\ud800"}', b"nul"):
        answer = await caller.post(NEW, body, headers={"Content-Type": "application/json"})
        assert answer.problem == (400, "bad_request"), body
    for body in (b"\xc1", b"\x81", b"\x81\xa4text\xa1\xff", b"\x91" * 5000):
        answer = await caller.post(NEW, body, headers={"Content-Type": "application/msgpack"})
        assert answer.problem == (400, "bad_request"), body


async def test_fields_stand_in_one_place(caller: Client) -> None:
    both = await caller.post(f"{NEW}?priority=1", json={"text": "a"})
    assert both.problem == (400, "bad_request")
    twice = await caller.post(f"{NEW}?priority=1&priority=2", b"a")
    assert twice.problem == (400, "bad_request")
    assert "priority" in twice.json["detail"]
    data_twice = await caller.post(f"{NEW}?text=a", b"a")
    assert data_twice.problem == (400, "bad_request")
    many = "&".join(f"a{n}=1" for n in range(100))
    assert (await caller.post(f"{NEW}?{many}", b"a")).problem == (400, "bad_request")
    broken = await caller.post(f"{NEW}?key=%ff", b"a")
    assert broken.problem == (400, "bad_request")


async def test_where_data_has_no_place_it_is_refused(caller: Client) -> None:
    session = f"/v1/sessions/{(await caller.new())['id']}"
    for verb in ("store", "touch", "park", "unpark", "acquire"):
        answer = await caller.post(f"{session}/{verb}", b"data", epoch=1)
        assert answer.problem == (415, "unsupported_media"), verb
    assert (await caller.delete(session, body=b"data", epoch=1)).problem[0] == 415
    assert (await caller.post("/v1/acquire?themes=7", b"data")).problem[0] == 415
    assert (await caller.patch("/v1/themes/7/policy", body=b"data")).problem[0] == 415
    assert (await caller.post("/v1/themes/7/pause", b"data")).problem == (400, "bad_request")


async def test_unknown_options_are_refused(caller: Client) -> None:
    session = f"/v1/sessions/{(await caller.new())['id']}"
    for path in (
        session,
        "/v1/themes",
        "/v1/themes/7",
        "/v1/cluster",
        "/v1/cluster/limits",
        "/openapi.json",
    ):
        answer = await caller.get(f"{path}?consistensy=stale")
        assert answer.problem == (400, "bad_request"), path
        assert "consistensy" in answer.json["detail"]
    answer = await caller.get(f"{session}?consistency=eventual")
    assert answer.problem == (400, "bad_request")
    assert (await caller.post(f"{session}/touch?epoch=1&epohc=1")).problem == (400, "bad_request")


# What is answered


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json", "application/json"),
        ("application/msgpack", "application/msgpack"),
        ("application/x-msgpack", "application/msgpack"),
        ("application/octet-stream", "application/octet-stream"),
        ("text/plain", "application/octet-stream"),
        ("text/html, */*;q=0.8", "application/json"),
        ("application/json;q=0.1, application/msgpack", "application/msgpack"),
        ("application/json;q=0, */*;q=0.1", "application/msgpack"),
        ("application/octet-stream;q=0.5, */*;q=0.4", "application/octet-stream"),
    ],
)
async def test_accept_chooses(caller: Client, accept: str, expected: str) -> None:
    session_id = (await caller.new(data=b"data"))["id"]
    answer = await caller.get(f"/v1/sessions/{session_id}", headers={"Accept": accept})
    assert answer.headers["Content-Type"] == expected
    match expected:
        case "application/json":
            assert answer.json["chunks"] == ["ZGF0YQ=="]
        case "application/msgpack":
            assert answer.msgpack["chunks"] == [b"data"]
        case _:
            assert answer.body == b"data"


async def test_nothing_is_done_for_who_could_not_read_the_answer(caller: Client) -> None:
    wanted = {"Accept": "text/html"}
    assert (await caller.post(f"{NEW}?key=k", headers=wanted)).problem == (406, "not_acceptable")
    assert (await caller.get("/v1/themes/7/keys/k")).status == 404
    session_id = await caller.stored()
    several = await caller.post("/v1/acquire?themes=7&count=2", headers=BYTES)
    assert several.problem == (406, "not_acceptable")
    assert (await caller.get(f"/v1/sessions/{session_id}")).json["epoch"] == 0


async def test_one_acquired_session_can_be_had_as_bytes(caller: Client) -> None:
    session_id = await caller.stored(data=b"work")
    answer = await caller.post("/v1/acquire?themes=7&wait=5", headers=BYTES)
    assert answer.body == b"work"
    assert answer.headers["Ritornello-Session"] == session_id
    assert answer.headers["Ritornello-Epoch"] == "1"
    assert (await caller.post("/v1/acquire?themes=7", headers=BYTES)).status == 204


# Large, and compressed


async def test_bodies_come_compressed(caller: Client) -> None:
    data = b"again and again " * 1000
    for coding, body in (("gzip", gzip.compress(data)), ("deflate", zlib.compress(data))):
        answer = await caller.post(NEW, body, headers={"Content-Encoding": coding})
        assert await data_of(caller, answer) == data


async def test_a_coding_that_nobody_knows_is_no_data(caller: Client) -> None:
    for coding in ("br", "zstd", "aes128gcm", "gzip, gzip"):
        answer = await caller.post(NEW, b"data", headers={"Content-Encoding": coding})
        assert answer.status in {400, 415}, coding
        assert answer.problem in {(415, "unsupported_media"), (400, "bad_request")}


async def test_a_body_that_is_not_compressed_as_it_says_is_refused(
    running: Running, caller: Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await caller.post(NEW, b"no gzip at all", headers={"Content-Encoding": "gzip"})
    assert answer.problem == (400, "bad_request")
    async with raw.connection(running) as (reader, writer):
        # Nobody looks into the body of this one.
        writer.write(
            b"POST /nowhere HTTP/1.1\r\nHost: %s\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 13\r\n\r\nno gzip at al" % running.host.encode()
        )
        assert (await raw.answer(reader)).status == 404
        assert await raw.is_closed(reader)
    assert "Traceback" not in caplog.text, "a stranger cannot fill the log"


async def test_a_body_beyond_the_bound_is_refused_before_it_fills_the_memory(
    tmp_path: Path,
) -> None:
    http = replace(HTTP, request_bytes=2 * 1024 * 1024)
    async with server(tmp_path, http=http) as running, client(running) as caller:
        assert (await caller.post(NEW, bytes(3 * 1024 * 1024))).problem == (413, "too_large")
        bomb = gzip.compress(bytes(64 * 1024 * 1024))
        answer = await caller.post(NEW, bomb, headers={"Content-Encoding": "gzip"})
        assert answer.problem == (413, "too_large")
        # A chunk has a bound of its own, which all nodes share.
        answer = await caller.post(NEW, bytes(1024 * 1024 + 1))
        assert answer.problem == (422, "limit_exceeded")
        assert (answer.json["limit"], answer.json["bound"]) == ("chunk_bytes", 1024 * 1024)
        assert (await caller.post(NEW, bytes(1024 * 1024))).status == 201


async def test_a_large_session_is_read_in_one_piece(caller: Client) -> None:
    session = f"/v1/sessions/{(await caller.new())['id']}"
    chunk = bytes(range(256)) * 4096
    for _ in range(8):
        assert (await caller.post(f"{session}/append", chunk, epoch=1)).status == 200
    assert (await caller.get(session, headers=BYTES)).body == chunk * 8


# Whatever it is


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
KEYS = TEXT.filter(lambda key: len(key.encode()) <= 256 and key not in {".", ".."})


def test_any_key_and_any_data_come_back_as_they_were(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        running = runner.run(stack.enter_async_context(server(tmp_path)))
        caller = runner.run(stack.enter_async_context(client(running)))

        @given(KEYS, st.binary(max_size=300))
        def lives(key: str, data: bytes) -> None:
            runner.run(_live(caller, key, data))

        lives()
        runner.run(stack.aclose())


async def _live(caller: Client, key: str, data: bytes) -> None:
    session = f"/v1/themes/7/keys/{quote(key, safe='')}"
    created = await caller.post(f"{NEW}?{urlencode({'key': key})}", data)
    assert created.status == 201
    read = await caller.get(session)
    assert read.json["key"] == key
    assert (await caller.get(session, headers=BYTES)).body == data
    epoch = created.json["epoch"]
    appended = await caller.post(f"{session}/append", msgpack={"data": data, "epoch": epoch})
    assert appended.status == 200
    remove = {"op": "remove", "theme": 7, "key": key, "epoch": epoch}
    assert (await caller.post("/v1/txn", json={"operations": [remove]})).status == 200


@pytest.mark.parametrize("key", ["a/b", "a?b", "a#b", "%", "ключ", "a b", "append", "+", "\x00\n"])
async def test_a_key_in_a_path_may_have_any_characters(caller: Client, key: str) -> None:
    await caller.post(f"{NEW}?{urlencode({'key': key})}", b"data")
    answer = await caller.get(f"/v1/themes/7/keys/{quote(key, safe='')}", headers=BYTES)
    assert answer.body == b"data"


async def test_a_key_that_is_none_is_refused(caller: Client) -> None:
    for path in ("/v1/themes/7/keys/", "/v1/themes/7/keys//append"):
        method = "GET" if path.endswith("/") else "POST"
        answer = await caller.ask(method, path)
        assert answer.problem == (400, "bad_request"), path
        assert "key" in answer.json["detail"]
    broken = f"/v1/themes/7/keys/{quote_from_bytes(bytes([0xFF]))}"
    assert (await caller.get(broken)).problem == (400, "bad_request")
    long = await caller.post(f"{NEW}?key={'k' * 257}")
    assert long.problem == (422, "limit_exceeded")
    assert long.json["limit"] == "key_bytes"


@pytest.mark.parametrize("theme", ["x", "-1", "4294967296", "1" * 30, "0" * 12 + "9" * 20, "", "²"])
async def test_a_theme_that_is_none_is_not_found(caller: Client, theme: str) -> None:
    assert (await caller.post(f"/v1/themes/{quote(theme)}/sessions")).problem == (404, "not_found")
    assert (await caller.get(f"/v1/themes/{quote(theme)}")).problem == (404, "not_found")
