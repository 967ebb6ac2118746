"""The cluster over HTTP: any node serves any request."""

import asyncio
from pathlib import Path

from state.limits import LIMIT_RANGES
from tests.api.http.client import Client, client
from tests.api.servers import cluster_of_three, until

NEW = "/v1/themes/7/sessions"
LIMITS = "/v1/cluster/limits"


async def test_any_node_serves_any_request(tmp_path: Path) -> None:
    async with (
        cluster_of_three(tmp_path) as nodes,
        client(nodes[0]) as first,
        client(nodes[1]) as second,
        client(nodes[2]) as third,
    ):
        created = await first.post(f"{NEW}?key=k&repeat_after=0", b"a")
        waiting = asyncio.ensure_future(second.post("/v1/acquire?themes=7&wait=20"))
        (acquired,) = (await waiting).json["sessions"]
        assert acquired["id"] == created.json["id"]
        session = f"/v1/sessions/{acquired['id']}"
        # What was acquired at one node goes on at another, and is read at a third.
        assert (await third.post(f"{session}/append", b"b", epoch=1)).json == {"revision": 3}
        bytes_ = {"Accept": "application/octet-stream"}
        for one in (first, second, third):
            assert (await one.get(session, headers=bytes_)).body == b"ab"
        stored = await first.post("/v1/themes/7/keys/k/store?repeat_after=0", epoch=1)
        assert stored.status == 200
        again = await third.post(f"{session}/acquire")
        assert again.json["epoch"] == 2
        assert (await second.post(f"{session}/touch", epoch=1)).problem == (409, "lease_lost")
        key = {"Idempotency-Key": "1"}
        assert (await first.delete(session, epoch=2, headers=key)).status == 200
        assert (await second.delete(session, epoch=2, headers=key)).status == 200
        assert (await third.get(session)).status == 404


async def test_waiters_at_all_nodes_get_one_session_each(tmp_path: Path) -> None:
    async with cluster_of_three(tmp_path) as nodes:
        callers = [client(one) for one in nodes]
        opened = [await one.__aenter__() for one in callers]
        waiting = [
            asyncio.ensure_future(one.post("/v1/acquire?themes=7&wait=20"))
            for one in opened
            for _ in range(4)
        ]
        ids = {await opened[number % 3].stored() for number in range(12)}
        answers = await asyncio.gather(*waiting)
        assert {one.json["sessions"][0]["id"] for one in answers} == ids
        for one in callers:
            await one.__aexit__(None, None, None)


async def test_leadership_goes_where_it_is_sent(tmp_path: Path) -> None:
    async with cluster_of_three(tmp_path) as nodes:
        leader = next(one for one in nodes if one.front.gateway.status().is_leader)
        other = next(one for one in nodes if one is not leader)
        async with client(leader) as at_leader, client(other) as at_other:
            nobody = await at_leader.post("/v1/cluster/transfer", json={"to": "nobody"})
            assert nobody.status == 400
            there = await at_other.post("/v1/cluster/transfer", json={"to": leader.node_id})
            assert there.json == {"transferred": True, "leader": leader.node_id}
            done = await at_leader.post("/v1/cluster/transfer", json={"to": other.node_id})
            assert done.json["transferred"]
            await until(lambda: other.front.gateway.status().is_leader)
            status = (await at_leader.get("/v1/cluster")).json
            assert status["node"] == leader.node_id
            assert {one["node"] for one in status["members"]} == {one.node_id for one in nodes}
            await until(lambda: leader.front.gateway.leader == other.node_id)
            status = (await at_leader.get("/v1/cluster")).json
            assert [one["node"] for one in status["members"] if one["is_leader"]] == [other.node_id]
            somewhere = await at_other.post("/v1/cluster/transfer")
            assert somewhere.json["transferred"]
            await until(lambda: not other.front.gateway.status().is_leader)


async def test_any_node_may_be_asked_to_move_leadership(tmp_path: Path) -> None:
    async with cluster_of_three(tmp_path) as nodes:
        before = next(one for one in nodes if one.front.gateway.status().is_leader)
        asked, third = (one for one in nodes if one is not before)
        async with client(asked) as caller:
            done = await caller.post("/v1/cluster/transfer", json={"to": third.node_id})
            assert done.json == {"transferred": True, "leader": third.node_id}
            await until(lambda: third.front.gateway.status().is_leader)
            back = await caller.post("/v1/cluster/transfer", json={"to": asked.node_id})
            assert back.json["transferred"]
            await until(lambda: asked.front.gateway.status().is_leader)


async def test_a_node_alone_tells_of_itself(caller: Client) -> None:
    status = (await caller.get("/v1/cluster")).json
    assert (status["node"], status["leader"], status["is_ready"]) == ("node-1", "node-1", True)
    transfer = await caller.post("/v1/cluster/transfer")
    assert not transfer.json["transferred"]
    assert (await caller.post("/v1/cluster/transfer", json={"too": "x"})).status == 400
    assert (await caller.post("/v1/cluster/transfer", json={"to": 5})).status == 400


async def test_limits_are_read_and_changed(caller: Client) -> None:
    limits = (await caller.get(LIMITS)).json["limits"]
    assert limits == {name: one.default for name, one in LIMIT_RANGES.items()}
    changed = await caller.patch(LIMITS, json={"chunk_bytes": 10, "key_bytes": 3})
    assert changed.json["limits"] == {**limits, "chunk_bytes": 10, "key_bytes": 3}
    assert (await caller.post(NEW, bytes(11))).problem == (422, "limit_exceeded")
    assert (await caller.post(f"{NEW}?key=four", b"")).problem == (422, "limit_exceeded")
    assert (await caller.get(f"{LIMITS}?consistency=stale")).json == changed.json
    for changes, problem in (
        ({"chunk_bytes": 0}, (422, "out_of_range")),
        ({"chunk_bites": 1}, (400, "bad_request")),
        ({"chunk_bytes": 2**70}, (400, "bad_request")),
        ({}, (400, "bad_request")),
    ):
        assert (await caller.patch(LIMITS, json=changes)).problem == problem, changes


async def test_a_full_cluster_says_so_and_still_lets_sessions_end(caller: Client) -> None:
    session = (await caller.post(NEW, b"x")).headers["Location"]
    assert (await caller.patch(LIMITS, json={"themes": 1})).status == 200
    full = await caller.post("/v1/themes/8/sessions")
    assert full.problem == (507, "limit_exceeded")
    assert full.json["retryable"]
    assert (await caller.delete(session, epoch=1)).status == 200
