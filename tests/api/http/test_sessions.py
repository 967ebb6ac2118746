"""A session's whole life over HTTP."""

import asyncio
import base64
from typing import Any

import pytest

from api.steps import Step
from tests.api.http.client import Client
from tests.api.servers import Running, until

BYTES = {"Accept": "application/octet-stream"}


async def test_a_session_lives_from_new_to_remove(caller: Client) -> None:
    created = await caller.post("/v1/themes/7/sessions", b"one")
    assert created.status == 201
    session = f"/v1/sessions/{created.json['id']}"
    assert created.headers["Location"] == session
    assert created.headers["Ritornello-Epoch"] == "1"
    assert created.headers["ETag"] == '"1"'
    appended = await caller.post(f"{session}/append", b", two", epoch=1)
    assert (appended.status, appended.json) == (200, {"revision": 2})
    assert appended.headers["ETag"] == '"2"'
    read = await caller.get(session)
    assert read.json["phase"] == "active"
    assert [base64.b64decode(one) for one in read.json["chunks"]] == [b"one", b", two"]
    assert (await caller.get(session, headers=BYTES)).body == b"one, two"
    replaced = await caller.post(f"{session}/replace", b"three", epoch=1)
    assert replaced.status == 200
    assert (await caller.get(session, headers=BYTES)).body == b"three"
    touched = await caller.post(f"{session}/touch", epoch=1)
    assert touched.json == {"revision": 3}
    removed = await caller.delete(session, epoch=1)
    assert removed.json == {"revision": 3}  # the last that it had
    assert (await caller.get(session)).problem == (404, "session_not_found")


async def test_a_stored_session_comes_back_with_a_new_epoch(caller: Client) -> None:
    session_id = await caller.stored(data=b"work")
    for epoch in (1, 2):
        acquired = await caller.post("/v1/acquire?themes=7&wait=5")
        (found,) = acquired.json["sessions"]
        assert (found["id"], found["epoch"], found["attempts"]) == (session_id, epoch, epoch)
        stored = await caller.post(
            f"/v1/sessions/{session_id}/store",
            json={"repeat_after": 0, "cause": "failed", "reason": "no luck"},
            epoch=epoch,
        )
        assert stored.status == 200
        assert not stored.json["parked"]
    (history,) = (await caller.get(f"/v1/sessions/{session_id}")).json["history"]
    assert (history["cause"], history["reason"], history["times"]) == ("failed", "no luck", 2)


async def test_a_producer_changes_what_nobody_works_on(caller: Client) -> None:
    session = f"/v1/sessions/{await caller.stored(data=b'a')}"
    assert (await caller.post(f"{session}/append", b"b")).status == 200
    later = await caller.post(f"{session}/store?repeat_after=3600")
    assert later.status == 200
    assert (await caller.post("/v1/acquire?themes=7")).status == 204
    taken = await caller.post(f"{session}/acquire")
    assert taken.json["epoch"] == 1
    assert taken.headers["Ritornello-Epoch"] == "1"
    assert (await caller.post(f"{session}/append", b"c")).problem == (409, "wrong_phase")


async def test_a_parked_session_waits_for_somebody(caller: Client) -> None:
    session = f"/v1/sessions/{(await caller.new())['id']}"
    parked = await caller.post(f"{session}/park?reason=broken", epoch=1)
    assert parked.status == 200
    assert (await caller.get(session)).json["phase"] == "parked"
    assert (await caller.post(f"{session}/touch", epoch=1)).problem == (409, "lease_lost")
    unparked = await caller.post(f"{session}/unpark")
    assert unparked.status == 200
    assert (await caller.post("/v1/acquire?themes=7&wait=5")).json["sessions"][0]["attempts"] == 1


async def test_who_shows_an_old_epoch_is_told_the_newest(caller: Client) -> None:
    session = f"/v1/sessions/{await caller.stored()}"
    await caller.post(f"{session}/acquire")
    await caller.post(f"{session}/store?repeat_after=0", epoch=1)
    await caller.post(f"{session}/acquire")
    for verb in ("append", "replace", "store", "touch", "park"):
        refused = await caller.post(f"{session}/{verb}", epoch=1)
        assert refused.problem == (409, "lease_lost"), verb
        assert (refused.json["epoch"], refused.json["current_epoch"]) == (1, 2)
    assert (await caller.delete(session, epoch=1)).problem == (409, "lease_lost")
    assert (await caller.delete(session, epoch=2)).status == 200


@pytest.mark.parametrize("verb", ["append", "replace", "store", "touch", "park", "unpark"])
async def test_no_verb_finds_what_is_not_there(caller: Client, verb: str) -> None:
    for path in ("/v1/sessions/ff", "/v1/sessions/no-id", "/v1/themes/7/keys/none"):
        answer = await caller.post(f"{path}/{verb}", epoch=1)
        assert answer.problem == (404, "session_not_found"), path


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_nobody_finds_what_is_not_there(caller: Client, method: str) -> None:
    for path in ("/v1/sessions/ff", "/v1/sessions/00ff", "/v1/sessions/", "/v1/themes/7/keys/no"):
        assert (await caller.ask(method, path)).problem == (404, "session_not_found"), path


# Keys


async def test_a_held_key_does_as_the_request_says(caller: Client) -> None:
    first = await caller.stored(data=b"1", key="k")
    path = "/v1/themes/7/sessions?key=k"
    refused = await caller.post(path, b"2")
    assert refused.problem == (409, "key_conflict")
    assert refused.json["holder"] == first
    existing = await caller.post(f"{path}&on_conflict=return_existing", b"2")
    assert (existing.status, existing.json["id"], existing.json["created"]) == (200, first, False)
    forward = await caller.post(f"{path}&on_conflict=bring_forward", b"2")
    assert (forward.status, forward.json["id"]) == (200, first)
    assert (await caller.get("/v1/themes/7/keys/k", headers=BYTES)).body == b"12"


async def test_every_verb_takes_a_key(caller: Client) -> None:
    await caller.stored(data=b"a", key="k")
    session = "/v1/themes/7/keys/k"
    assert (await caller.post(f"{session}/acquire")).json["key"] == "k"
    for verb in ("append", "replace", "touch"):
        assert (await caller.post(f"{session}/{verb}", epoch=1)).status == 200
    assert (await caller.post(f"{session}/store?repeat_after=0", epoch=1)).status == 200
    assert (await caller.post(f"{session}/acquire")).status == 200
    assert (await caller.post(f"{session}/park", epoch=2)).status == 200
    assert (await caller.post(f"{session}/unpark")).status == 200
    assert (await caller.delete(session)).status == 200


# Waiting


async def test_a_long_poll_ends_when_a_session_becomes_due(caller: Client) -> None:
    waiting = asyncio.ensure_future(caller.post("/v1/acquire?themes=7&themes=8&wait=20"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    session_id = await caller.stored(theme=8)
    answer = await waiting
    assert answer.json["sessions"][0]["id"] == session_id


async def test_who_asks_for_too_much_is_told_before_anything_is_due(caller: Client) -> None:
    for query in ("themes=7&count=2000", "themes=" + ",".join(map(str, range(300)))):
        for wait in ("", "&wait=20"):
            refused = await caller.post(f"/v1/acquire?{query}{wait}")
            assert refused.problem == (422, "limit_exceeded"), (query[:40], wait)


async def test_a_long_poll_ends_empty_when_its_time_is_over(caller: Client) -> None:
    answer = await caller.post("/v1/acquire", json={"themes": [7], "wait": 0.05})
    assert (answer.status, answer.body) == (204, b"")


async def test_several_sessions_come_at_once(caller: Client) -> None:
    expected = {await caller.stored() for _ in range(5)}
    answer = await caller.post("/v1/acquire?themes=7&count=9&wait=5")
    assert {one["id"] for one in answer.json["sessions"]} == expected


async def test_a_paused_theme_hands_nothing_out(caller: Client) -> None:
    await caller.stored()
    paused = await caller.post("/v1/themes/7/pause")
    assert paused.json["paused"]
    assert (await caller.post("/v1/acquire?themes=7")).status == 204
    waiting = asyncio.ensure_future(caller.post("/v1/acquire?themes=7&wait=20"))
    resumed = await caller.post("/v1/themes/7/resume")
    assert not resumed.json["paused"]
    assert (await waiting).status == 200


# Transactions


async def test_a_transaction_is_all_or_nothing(caller: Client) -> None:
    first = await caller.new(theme=7)
    operations = [
        {"op": "remove", "id": first["id"], "epoch": 1},
        {"op": "new", "theme": 8, "key": "next", "text": "stage 2", "repeat_after": 0},
    ]
    held = await caller.stored(theme=8, key="next")
    refused = await caller.post("/v1/txn", json={"operations": operations})
    assert refused.problem == (409, "txn_aborted")
    assert refused.json["position"] == 1
    assert refused.json["cause"]["holder"] == held
    assert (await caller.get(f"/v1/sessions/{first['id']}")).status == 200
    await caller.delete(f"/v1/sessions/{held}")
    done = await caller.post("/v1/txn", msgpack={"operations": operations})
    assert done.status == 200
    removed, created = done.json["results"]
    assert removed == {"revision": 1}
    assert created["created"]
    assert (await caller.get(f"/v1/sessions/{first['id']}")).status == 404


async def test_a_transaction_says_which_of_its_operations_makes_no_sense(caller: Client) -> None:
    for operations in (
        [],
        [{"op": "acquire", "themes": [7]}],
        [{"op": "remove"}],
        [{"op": "remove", "id": "1", "theme": 7}],
        [{"op": "new", "theme": 7, "seq": 3}],
        [{"op": "new", "theme": 7, "text": "a", "data": "YQ=="}],
    ):
        answer = await caller.post("/v1/txn", json={"operations": operations})
        assert answer.problem == (400, "bad_request"), operations
    assert (await caller.post("/v1/txn?operations=1")).problem == (400, "bad_request")
    assert (await caller.post("/v1/txn", b"bytes")).problem == (415, "unsupported_media")


class Stuck:
    """What has its turn, and does not end."""

    def arrive(self) -> None: ...


async def test_a_transaction_waits_for_its_turn_at_each_of_its_sessions(
    running: Running, caller: Client
) -> None:
    session_id = (await caller.post("/v1/themes/7/sessions", b"a")).json["id"]
    operator = running.front.operators.operate(int(session_id, 16), 1)
    assert operator is not None
    stuck: Any = Stuck()
    operator.ask(Step(b"", lambda _: None, is_verdict=False, is_ending=False, together=stuck))
    append = {"op": "append", "id": session_id, "epoch": 1, "text": "b"}
    late = await caller.post(
        "/v1/txn", json={"operations": [append]}, headers={"Ritornello-Timeout": "0.1"}
    )
    assert late.problem == (504, "timed_out")
    assert late.json["outcome"] == "not_applied"
    transacting = asyncio.ensure_future(caller.post("/v1/txn", json={"operations": [append]}))
    await until(lambda: operator.depth == 2)
    operator.done_with(stuck)
    operator.go_on()
    assert (await transacting).status == 200
    read = await caller.get(f"/v1/sessions/{session_id}", headers=BYTES)
    assert read.body == b"ab", "one had its turn at last, and the other not"
