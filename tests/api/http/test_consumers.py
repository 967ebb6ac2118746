"""Callers who give themselves a name, and what is done for those who leave."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from state import Created
from tests.api.http import raw
from tests.api.http.client import Client, client
from tests.api.servers import Running, cluster_of_three, until

NEW = "/v1/themes/7/sessions"
MINE = {"Ritornello-Consumer": "worker-1"}
HEARTBEAT = "/v1/consumers/worker-1/heartbeat"


async def test_one_heartbeat_counts_all_that_a_consumer_holds(caller: Client) -> None:
    found = (await caller.post(HEARTBEAT)).json
    assert found["held"] == 0
    assert abs(found["now_ms"] / 1000 - time.time()) < 60
    begun = await caller.post(NEW, b"a", headers=MINE)
    await caller.stored()
    assert (await caller.post("/v1/acquire?themes=7&wait=5", headers=MINE)).status == 200
    taken = await caller.stored()
    assert (await caller.post(f"/v1/sessions/{taken}/acquire", headers=MINE)).status == 200
    operations = [{"op": "new", "theme": 7}]
    assert (await caller.post("/v1/txn", json={"operations": operations}, headers=MINE)).json
    await caller.new()  # somebody else's
    assert (await caller.post(HEARTBEAT)).json["held"] == 4
    await caller.delete(begun.headers["Location"], epoch=1)
    assert (await caller.post(HEARTBEAT)).json["held"] == 3


async def test_a_heartbeat_keeps_sessions_at_any_node(tmp_path: Path) -> None:
    async with (
        cluster_of_three(tmp_path) as nodes,
        client(nodes[0]) as first,
        client(nodes[1]) as second,
    ):
        policy = {"lease_ms": 600, "repeat_ms": 0}
        assert (await first.patch("/v1/themes/7/policy", json=policy)).status == 200
        kept = (await first.post(NEW, b"", headers=MINE)).headers["Location"]
        lost = (await first.post(NEW, b"")).headers["Location"]
        for _ in range(100):
            assert (await second.post(HEARTBEAT)).json["held"] == 1
            if (await first.get(lost)).json["phase"] != "active":
                break
            await asyncio.sleep(0.05)
        assert (await first.get(lost)).json["history"][0]["cause"] == "stale"
        assert (await second.get(kept)).json["phase"] == "active"


async def test_a_touch_takes_a_session_over_into_ones_name(caller: Client) -> None:
    session = (await caller.post(NEW, b"a")).headers["Location"]
    assert (await caller.post(HEARTBEAT)).json["held"] == 0
    assert (await caller.post(f"{session}/touch", headers=MINE, epoch=1)).status == 200
    assert (await caller.post(HEARTBEAT)).json["held"] == 1


async def test_no_name_is_one_of_a_connection(running: Running, caller: Client) -> None:
    theirs = running.front.gateway.consumer(b"1").decode()
    for name in (theirs, "~/worker-1", "", "a b", "ü", "x" * 65, "a%0a"):
        answer = await caller.post(NEW, b"a", headers={"Ritornello-Consumer": name})
        assert answer.problem == (400, "bad_request"), name
    for name in ("a%2Fb", "%20", "x" * 65, "~"):
        answer = await caller.post(f"/v1/consumers/{name}/heartbeat")
        assert answer.problem == (400, "bad_request"), name


# Callers who leave


async def _leave_while_waiting(running: Running, request: bytes) -> None:
    """Send a request, and hang up as soon as it waits."""
    async with raw.connection(running) as (_, writer):
        writer.write(request)
        await until(lambda: len(running.front.waiters) == 1)
    await until(lambda: len(running.front.waiters) == 0)


async def test_who_hangs_up_does_not_wait_any_more(running: Running, caller: Client) -> None:
    request = b"POST /v1/acquire?themes=7&wait=50 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    await _leave_while_waiting(running, request)
    session_id = await caller.stored()
    answer = await caller.post("/v1/acquire?themes=7&wait=5")
    (found,) = answer.json["sessions"]
    assert (found["id"], found["epoch"], found["attempts"]) == (session_id, 1, 1)


REQUESTS = {
    "acquire": "POST /v1/acquire?themes=7 HTTP/1.1",
    "wait": "POST /v1/acquire?themes=7&wait=50 HTTP/1.1",
    "take": "POST /v1/sessions/1/acquire HTTP/1.1",
    "new": "POST /v1/themes/7/sessions HTTP/1.1",
    "txn": "POST /v1/txn HTTP/1.1",
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_what_nobody_was_told_of_is_given_back(
    running: Running, caller: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in {"acquire", "take", "wait"}:
        await caller.stored()
    gateway = running.front.gateway
    submit = gateway.submit
    held: list[tuple[object, ...]] = []

    def slow(encoded: bytes, callback: object, **given: object) -> None:
        """The cluster takes its time, until whoever asked has left."""
        held.append((encoded, callback, given))

    monkeypatch.setattr(gateway, "submit", slow)
    body = b'{"operations":[{"op":"new","theme":7}]}' if name == "txn" else b""
    head = f"{REQUESTS[name]}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with raw.connection(running) as (_, writer):
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: held)
        # It wins against the end of the connection, or loses: both have to do.
    monkeypatch.setattr(gateway, "submit", submit)
    await asyncio.sleep(0.05)
    for encoded, callback, given in held:
        submit(encoded, callback, **given)  # type: ignore[arg-type]

    async def view() -> dict[str, object]:
        found: dict[str, object] = (await caller.get("/v1/sessions/1")).json
        return found

    async with asyncio.timeout(20):
        while (await view()).get("phase") != "ready":  # noqa: ASYNC110 - it is asked over HTTP
            await asyncio.sleep(0.01)
    found = await view()
    assert (found["epoch"], found["attempts"]) == (1, 0)  # it has cost no attempt
    assert found["history"][0]["cause"] == "shutdown"  # type: ignore[index]


@pytest.mark.parametrize("name", ["acquire", "take", "new", "txn"])
async def test_what_is_handed_out_when_its_time_is_over_is_given_back(
    running: Running, caller: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller was told that nobody knows; its name's heartbeats would keep it for ever."""
    if name in {"acquire", "take"}:
        await caller.stored()
    replica = running.front.gateway._node.replica  # noqa: SLF001 - a slow disk, say
    path = REQUESTS[name].split()[1]
    given: Any = {"json": {"operations": [{"op": "new", "theme": 7}]}} if name == "txn" else {}
    with monkeypatch.context() as patch:
        patch.setattr(replica, "_apply", lambda *_, **__: None)
        headers = {**MINE, "Ritornello-Timeout": "0.2"}
        answer = await caller.post(path, headers=headers, **given)
        assert (answer.problem[0], answer.json["outcome"]) == (504, "unknown")
    async with asyncio.timeout(20):
        while (await caller.get("/v1/sessions/1")).json.get("phase") != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await caller.post(HEARTBEAT)).json["held"] == 0


async def test_what_is_handed_out_late_is_left_to_who_has_taken_it_over(
    running: Running, caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = running.front.gateway
    submit = gateway.submit
    late: list[Any] = []

    def slow(encoded: bytes, callback: Any, **given: Any) -> None:
        submit(encoded, callback, **{**given, "late": None})
        late.append(given["late"])

    replica = gateway._node.replica  # noqa: SLF001 - a slow disk, say
    with monkeypatch.context() as patch:
        patch.setattr(replica, "_apply", lambda *_, **__: None)
        patch.setattr(gateway, "submit", slow)
        headers = {**MINE, "Ritornello-Timeout": "0.2"}
        assert (await caller.post(NEW, b"a", headers=headers)).problem[0] == 504
    other = {"Ritornello-Consumer": "worker-2"}
    assert (await caller.post("/v1/sessions/1/touch", headers=other, epoch=1)).status == 200
    late[0](Created(1, 1, 1, created=True))  # now that node hears of it
    await asyncio.sleep(0.1)
    assert (await caller.get("/v1/sessions/1")).json["phase"] == "active"


async def test_a_verdict_that_is_refused_when_its_time_is_over_is_given_back(
    running: Running, caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await caller.post(NEW, b"a", headers=MINE)
    gateway = running.front.gateway
    submit = gateway.submit
    held: list[tuple[object, ...]] = []
    monkeypatch.setattr(gateway, "submit", lambda *a, **given: held.append((a, given)))
    headers = {"If-Match": '"9"', "Ritornello-Timeout": "0.1"}
    answer = await caller.delete("/v1/sessions/1", headers=headers, epoch=1)
    assert (answer.problem[0], answer.json["outcome"]) == (504, "unknown")
    monkeypatch.setattr(gateway, "submit", submit)
    for arguments, given in held:
        submit(*arguments, **given)  # type: ignore[arg-type, misc]
    async with asyncio.timeout(20):
        while (await caller.post(HEARTBEAT)).json["held"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    found = (await caller.get("/v1/sessions/1")).json
    assert found["history"][0]["reason"] == "its verdict was refused: revision_mismatch"


async def test_who_repeats_a_new_is_told_whether_it_holds_the_session_still(
    caller: Client,
) -> None:
    keyed = {**MINE, "Idempotency-Key": "k"}
    begun = (await caller.post(NEW, b"a", headers=keyed)).json
    assert (await caller.post(NEW, b"a", headers=keyed)).json == begun
    assert begun["lease_ms"] > 0
    other = {"Ritornello-Consumer": "worker-2"}
    path = f"/v1/sessions/{begun['id']}"
    assert (await caller.post(f"{path}/touch", headers=other, epoch=1)).status == 200
    assert (await caller.post(NEW, b"a", headers=keyed)).json["lease_ms"] == 0
    assert (await caller.post(f"{path}/touch", headers=MINE, epoch=1)).status == 200
    assert (await caller.post(NEW, b"a", headers=keyed)).json["lease_ms"] > 0
    await caller.post(f"{path}/store?repeat_after=0", epoch=1)
    assert (await caller.post(f"{path}/acquire", headers=MINE)).status == 200
    assert (await caller.post(NEW, b"a", headers=keyed)).json["lease_ms"] == 0


async def test_a_caller_with_an_idempotency_key_may_come_back_for_the_answer(
    running: Running, caller: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = running.front.gateway
    submit = gateway.submit
    held: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        gateway,
        "submit",
        lambda encoded, callback, **given: held.append((encoded, callback, given)),
    )
    head = b"POST /v1/themes/7/sessions HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k\r\n\r\n"
    async with raw.connection(running) as (_, writer):
        writer.write(head)
        await until(lambda: held)
    monkeypatch.setattr(gateway, "submit", submit)
    await asyncio.sleep(0.05)
    ((encoded, callback, given),) = held
    submit(encoded, callback, **given)  # type: ignore[arg-type]
    again = await caller.post(NEW, headers={"Idempotency-Key": "k"})
    assert (again.json["id"], again.json["epoch"], again.json["created"]) == ("1", 1, True)
    assert (await caller.post("/v1/sessions/1/append", b"x", epoch=1)).status == 200
