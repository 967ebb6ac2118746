"""Lists of sessions over HTTP."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession

from api import listing
from api.security import new_token
from tests.api.security.files import entry
from tests.api.servers import Running, cluster_of_three, server

LIST = "/v1/themes/7/sessions"


async def new(client: ClientSession, theme: int = 7, **query: str | float) -> str:
    query = {"repeat_after": 3600, **query}
    async with client.post(
        f"/v1/themes/{theme}/sessions", data=b"some data", params=query
    ) as answer:
        assert answer.status == 201, await answer.text()
        found: str = (await answer.json())["id"]
        return found


async def get(client: ClientSession, **query: str | int) -> dict[str, Any]:
    async with client.get(LIST, params=query) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


async def pages(client: ClientSession, **query: str | int) -> list[list[dict[str, Any]]]:
    found = []
    while True:
        page = await get(client, **query)
        found.append(page["sessions"])
        if page["cursor"] is None:
            return found
        query["cursor"] = page["cursor"]


async def ids(client: ClientSession, **query: str | int) -> list[str]:
    return [one["id"] for page in await pages(client, **query) for one in page]


async def refused(client: ClientSession, **query: str) -> str:
    async with client.get(LIST, params=query) as answer:
        assert answer.status == 400
        assert answer.content_type == "application/problem+json"
        problem = await answer.json()
        assert (problem["code"], problem["outcome"]) == ("bad_request", "not_applied")
        detail: str = problem["detail"]
        return detail


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_have_all_sessions_of_the_theme_in_order(
    client: ClientSession, limit: int
) -> None:
    made = [await new(client) for _ in range(7)]
    await new(client, theme=8)
    found = await pages(client, limit=limit)
    assert [one["id"] for page in found for one in page] == made
    assert all(len(page) <= limit for page in found)
    assert len(found) == -(-7 // limit)


async def test_an_unknown_theme_has_an_empty_list(client: ClientSession) -> None:
    assert await get(client) == {"sessions": [], "cursor": None}


async def test_sessions_are_shown_without_their_data(client: ClientSession) -> None:
    made = await new(client, key="order/1", priority=5)
    (shown,) = (await get(client))["sessions"]
    assert "chunks" not in shown
    assert (shown["id"], shown["theme"], shown["key"]) == (made, 7, "order/1")
    assert (shown["phase"], shown["priority"], shown["size_bytes"]) == ("stored", 5, 9)
    async with client.get(f"/v1/sessions/{made}") as answer:
        whole = await answer.json()
    del whole["chunks"]
    assert shown == whole


async def test_a_list_can_be_had_as_msgpack(client: ClientSession) -> None:
    made = await new(client)
    async with client.get(LIST, headers={"Accept": "application/msgpack"}) as answer:
        assert answer.content_type == "application/msgpack"
        found = msgspec.msgpack.decode(await answer.read())
    assert [one["id"] for one in found["sessions"]] == [made]


async def test_phases_are_told_apart(client: ClientSession) -> None:
    stored = await new(client)
    ready = await new(client, repeat_after=0)
    parked = await new(client, repeat_after=0, key="parked")
    active = await new(client, repeat_after=0, key="active")
    for key in ("parked", "active"):
        async with client.post(f"/v1/themes/7/keys/{key}/acquire") as answer:
            epoch = (await answer.json())["epoch"]
        if key == "parked":
            headers = {"Ritornello-Epoch": str(epoch)}
            async with client.post("/v1/themes/7/keys/parked/park", headers=headers) as answer:
                assert answer.status == 200, await answer.text()
    expected = {"stored": stored, "ready": ready, "active": active, "parked": parked}
    for phase, session_id in expected.items():
        assert await ids(client, phase=phase) == [session_id]
        assert await ids(client, phase=phase, key_prefix="nobody") == []


async def test_keys_are_found_by_how_they_begin(client: ClientSession) -> None:
    keys = ["order-1", "order-2", "\u00f6rder", "invoice-1"]
    made = {key: await new(client, key=key) for key in keys}
    await new(client)
    assert await ids(client, key_prefix="order-") == [made["order-1"], made["order-2"]]
    assert await ids(client, key_prefix="order-2") == [made["order-2"]]
    assert await ids(client, key_prefix="\u00f6") == [made["\u00f6rder"]]
    assert await ids(client, key_prefix="rder") == []
    assert len(await ids(client, key_prefix="")) == 5


async def test_what_stays_is_seen_once_while_others_come_and_go(client: ClientSession) -> None:
    random = Random(1)
    stays, goes = [], []
    for _ in range(30):
        stays.append(await new(client))
        goes.append(await new(client))
    random.shuffle(goes)
    found: list[str] = []
    query: dict[str, Any] = {"limit": 7, "cursor": ""}
    while query["cursor"] is not None:
        page = await get(client, **{name: value for name, value in query.items() if value})
        found += [one["id"] for one in page["sessions"]]
        query["cursor"] = page["cursor"]
        for _ in range(3 if goes else 0):
            async with client.delete(f"/v1/sessions/{goes.pop()}") as answer:
                assert answer.status == 200
        await new(client)
    assert len(found) == len(set(found))
    assert set(stays) <= set(found)


async def test_who_looks_for_what_is_rare_gets_short_pages(
    client: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "TURN_IDS", 4)
    monkeypatch.setattr(listing, "PAGE_IDS", 8)
    made = [await new(client, key=f"{number // 15}-{number}") for number in range(30)]
    found = await pages(client, key_prefix="1-")
    assert [one["id"] for page in found for one in page] == made[15:]
    assert found[0] == []
    assert len(found) == 4
    # Of a phase that nobody is in there is nothing to look for.
    assert await pages(client, phase="parked") == [[]]


async def test_a_page_has_a_bounded_number_of_bytes(
    client: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "PAGE_BYTES", 1500)
    made = [await new(client, key="k" * 200 + str(number)) for number in range(9)]
    found = await pages(client)
    assert [one["id"] for page in found for one in page] == made
    assert [len(page) for page in found] == [3, 3, 3]


async def test_the_node_does_other_work_while_it_looks(
    running: Running, client: ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "TURN_IDS", 2)
    for _ in range(20):
        await new(client)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    page = await listing.page(
        running.front.gateway, listing.Query(theme=7, limit=100, key_prefix=b"none")
    )
    counting.cancel()
    assert page.sessions == []
    assert page.after is None
    assert turns >= 10


async def test_the_index_of_a_page_says_from_where_events_are_missing(
    running: Running, client: ClientSession
) -> None:
    await new(client)
    async with client.get(LIST) as answer:
        index = int(answer.headers["Ritornello-Applied-Index"])
    assert 0 < index <= running.front.gateway.applied_index


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"limit": "0"}, "limit is '0'"),
        ({"limit": "1001"}, "from 1 to 1000"),
        ({"limit": "ten"}, "limit is 'ten'"),
        ({"phase": "asleep"}, "one of stored, ready, active, parked"),
        ({"phase": ""}, "one of stored"),
        ({"cursor": ""}, "leave it out"),
        ({"cursor": "5"}, "leave it out"),
        ({"cursor": "\u00fc"}, "leave it out"),
        ({"cursor": "AgAAAAAAAAAD"}, "leave it out"),
        ({"cursor": "AQAAAAAAAAA"}, "leave it out"),
        ({"key_prefix": "x" * 4097}, "may have 4096"),
        ({"limits": "5"}, "no option 'limits'"),
        ({"consistency": "none"}, "linearizable"),
    ],
)
async def test_senseless_questions_are_refused(
    client: ClientSession, query: dict[str, str], said: str
) -> None:
    assert said in await refused(client, **query)


@pytest.mark.parametrize("after", [0, 1, 2**48 - 1, 2**64 - 1])
def test_a_cursor_is_read_as_it_was_written(after: int) -> None:
    assert listing.cursor_number(listing.cursor_text(after)) == after


async def test_a_token_lists_its_own_themes_only(tmp_path: Path) -> None:
    token = new_token()
    tokens = entry(token, "reader", '["read"]', 'themes = ["8-9"]')
    async with server(tmp_path, tokens=tokens) as running:
        headers = {"Authorization": f"Bearer {token}"}
        async with ClientSession(running.url, headers=headers) as client:
            async with client.get("/v1/themes/8/sessions") as answer:
                assert answer.status == 200
            async with client.get(LIST) as answer:
                assert answer.status == 403
                assert (await answer.json())["code"] == "forbidden"
        async with ClientSession(running.url) as client, client.get(LIST) as answer:
            assert answer.status == 401


async def test_any_node_answers_any_page(tmp_path: Path) -> None:
    async with (
        cluster_of_three(tmp_path) as nodes,
        ClientSession(nodes[0].url) as first,
        ClientSession(nodes[1].url) as second,
        ClientSession(nodes[2].url) as third,
    ):
        clients = [first, second, third]
        made = [await new(clients[number % 3]) for number in range(9)]
        found: list[str] = []
        cursors: list[Any] = [None]
        for number in range(5):
            query: dict[str, Any] = {"cursor": cursors[-1]} if cursors[-1] else {}
            page = await get(clients[number % 3], limit=2, **query)
            found += [one["id"] for one in page["sessions"]]
            cursors.append(page["cursor"])
        assert found == made
        assert cursors[-1] is None
        # Whoever is content with what a node has needs nobody else for it.
        for running in nodes[1:]:
            await running.leave()
        assert await ids(first, consistency="stale") == made
