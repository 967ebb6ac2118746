"""Themes over HTTP."""

from typing import Any

import msgspec
import pytest

from api.http.themes import PolicyView
from state.policy import POLICY_RANGES
from tests.api.http.client import Client

THEME = "/v1/themes/7"
POLICY = f"{THEME}/policy"


async def test_a_theme_nobody_knows_is_like_all_such(caller: Client) -> None:
    theme = (await caller.get(THEME)).json
    assert (theme["theme"], theme["paused"], theme["stored"]) == (7, False, 0)
    assert theme["policy"]["lease_ms"] == POLICY_RANGES["lease_ms"].default
    assert theme["policy"]["backoff"] == "fixed"
    assert (await caller.get("/v1/themes")).json == {"themes": [], "cursor": None}


async def test_it_counts_its_sessions(caller: Client) -> None:
    await caller.new(7, b"active")
    await caller.new(7, b"stored", "?repeat_after=60")
    parked = (await caller.new(7, b"parked"))["id"]
    await caller.post(f"/v1/sessions/{parked}/park", epoch=1)
    await caller.stored()
    await caller.post("/v1/acquire?themes=7&wait=5")
    theme = (await caller.get(THEME)).json
    assert [theme[name] for name in ("active", "stored", "ready", "parked")] == [2, 1, 0, 1]
    assert theme["size_bytes"] > 0
    assert theme["oldest_due_ms"] is None


async def test_a_policy_changes_by_name(caller: Client) -> None:
    changes = {"lease_ms": 5000, "backoff": "exponential", "max_attempts": 3}
    changed = await caller.patch(POLICY, json=changes)
    assert changed.status == 200
    assert changes.items() <= changed.json["policy"].items()
    again = await caller.patch(POLICY, msgpack={"max_attempts": 4})
    assert again.json["policy"]["lease_ms"] == 5000
    assert (await caller.get(THEME)).json["policy"]["max_attempts"] == 4
    session = (await caller.post(f"{THEME}/sessions", b"")).headers["Location"]
    assert (await caller.get(session)).json["lease_ms"] == 5000


@pytest.mark.parametrize(
    ("changes", "problem", "named"),
    [
        ({}, (400, "bad_request"), "lease_ms"),
        ({"leese_ms": 1}, (400, "bad_request"), "leese_ms"),
        ({"lease_ms": "1"}, (400, "bad_request"), "lease_ms"),
        ({"lease_ms": 1.5}, (400, "bad_request"), "lease_ms"),
        ({"lease_ms": None}, (400, "bad_request"), "lease_ms"),
        ({"lease_ms": 2**63}, (400, "bad_request"), "lease_ms"),
        ({"lease_ms": -(2**63) - 1}, (400, "bad_request"), "lease_ms"),
        ({"lease_ms": True}, (400, "bad_request"), "lease_ms"),
        ({"backoff": "linear"}, (400, "bad_request"), "backoff"),
        ({"backoff": 1}, (400, "bad_request"), "backoff"),
        ({"lease_ms": 1}, (422, "out_of_range"), "lease_ms"),
        ({"max_attempts": -1}, (422, "out_of_range"), "max_attempts"),
    ],
)
async def test_a_policy_that_cannot_be_is_refused(
    caller: Client, changes: Any, problem: tuple[int, str], named: str
) -> None:
    answer = await caller.patch(POLICY, json=changes)
    assert answer.problem == problem
    assert named in answer.json["detail"]
    if problem[0] == 422:
        assert answer.json["minimum"] == POLICY_RANGES[named].minimum


async def test_a_policy_needs_a_body_that_names_something(caller: Client) -> None:
    assert (await caller.patch(POLICY)).problem == (400, "bad_request")
    assert (await caller.patch(f"{POLICY}?lease_ms=1000")).problem == (400, "bad_request")


async def test_themes_come_in_pages(caller: Client) -> None:
    for theme in (5, 3, 9, 1):
        await caller.new(theme)
    first = (await caller.get("/v1/themes?limit=3")).json
    assert [one["theme"] for one in first["themes"]] == [1, 3, 5]
    second = (await caller.get(f"/v1/themes?limit=3&cursor={first['cursor']}")).json
    assert ([one["theme"] for one in second["themes"]], second["cursor"]) == ([9], None)
    for query in ("limit=0", "limit=1001", "limit=x", "cursor=x", "cursor=-1", f"limit={'1' * 30}"):
        assert (await caller.get(f"/v1/themes?{query}")).problem == (400, "bad_request"), query


def test_an_answer_has_all_that_a_policy_has() -> None:
    assert tuple(one.name for one in msgspec.structs.fields(PolicyView)) == tuple(POLICY_RANGES)
