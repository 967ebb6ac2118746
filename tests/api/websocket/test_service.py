"""Every request and push over a real connection, to a cluster of one."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from aiohttp import ClientSession

from api import requests as ask
from api.security.tokens import new_token
from api.websocket.frames import FRAME_REQUESTS_MAX, JSON
from cluster.failures import TimedOut
from state import Failure, Operation, Phase, encode
from state.operations import Heartbeat, SetLimits, SetPolicy, Touch
from tests.api.security.files import entry
from tests.api.servers import HTTP, Running, server, until, with_tokens
from tests.api.websocket.clients import PROTOCOLS, Client, connect

THEME, OTHER = 7, 8
HEARTBEAT = Heartbeat.code
HELD = frozenset({"code", "outcome", "retryable", "detail"})


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    async with server(tmp_path) as running:
        yield running


@pytest.fixture
async def ws(node: Running) -> AsyncIterator[Client]:
    async with connect(node) as client:
        yield client


def phase(node: Running, session_id: str) -> Phase | None:
    session = node.front.gateway._machine.session(int(session_id, 16))  # noqa: SLF001 - as it is
    return None if session is None else session.phase


async def do(node: Running, operation: Operation) -> None:
    done: asyncio.Future[Any] = asyncio.Future()
    node.front.gateway.submit(encode(operation), done.set_result)
    assert not isinstance(await done, Failure)


# Beginning


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_hello_tells_where_it_is_and_what_may_be_sent(node: Running, protocol: str) -> None:
    async with connect(node, protocol) as ws:
        assert ws.socket.protocol == protocol
        settings = node.front.settings
        assert ws.hello == {
            "push": "hello",
            "node": "node-1",
            "consumer": ws.hello["consumer"],
            "frame_bytes": settings.websocket_frame_bytes,
            "frame_requests": FRAME_REQUESTS_MAX,
            "requests_in_flight": settings.websocket_requests_in_flight,
            "unread_bytes": settings.websocket_send_buffer_bytes,
        }


# Requests


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_whole_life(node: Running, protocol: str) -> None:
    data: Any = "c2hpcCBpdA==" if protocol == JSON else b"ship it"
    async with connect(node, protocol) as ws:
        created = await ws.ask("new", theme=THEME, key="order-1", data=data)
        session_id = created["id"]
        assert created == {
            "seq": 1,
            "id": session_id,
            "epoch": 1,
            "revision": 1,
            "created": True,
            "lease_ms": 30_000,
        }
        held = {"id": session_id, "epoch": 1}
        assert await ws.ask("append", **held, text="; packed") == {"seq": 2, "revision": 2}
        assert await ws.ask("replace", **held, text="shipped") == {"seq": 3, "revision": 3}
        assert await ws.ask("touch", **held) == {"seq": 4, "revision": 3}
        beaten = await ws.ask("heartbeat")
        assert (beaten["held"], abs(beaten["now_ms"] / 1000 - time.time()) < 60) == (1, True)
        stored = await ws.ask("store", **held, repeat_after=60, cause="failed", reason="shut")
        assert (stored["revision"], stored["parked"]) == (4, False)
        answer = await ws.ask("take", theme=THEME, key="order-1")
        session = answer["session"]
        assert (session["epoch"], session["attempts"], session["phase"]) == (2, 2, "active")
        assert session["history"][0]["cause"] == "failed"
        assert session["chunks"] == (["c2hpcHBlZA=="] if protocol == JSON else [b"shipped"])
        held["epoch"] = 2
        assert await ws.ask("park", **held, reason="why") == {"seq": 8, "revision": 6}
        unparked = await ws.ask("unpark", id=session_id)
        assert unparked["revision"] == 7
        (again,) = (await ws.ask("acquire", themes=[THEME]))["sessions"]
        assert (again["id"], again["epoch"], again["attempts"]) == (session_id, 3, 1)
        assert await ws.ask("remove", id=session_id, epoch=3) == {"seq": 11, "revision": 8}
        assert (await ws.error("get", id=session_id))["code"] == "session_not_found"
    assert len(node.front.operators) == 0


async def test_errors_tell_what_happened_and_what_may_be_done(ws: Client) -> None:
    created = await ws.ask("new", theme=THEME, key="k")
    error = await ws.error("new", theme=THEME, key="k")
    assert error == {
        "code": "key_conflict",
        "outcome": "not_applied",
        "retryable": False,
        "detail": "the key is held by a session that is active",
        "holder": created["id"],
        "phase": "active",
    }
    error = await ws.error("append", id=created["id"], epoch=7, text="x")
    assert (error["code"], error["current_epoch"]) == ("lease_lost", 1)
    error = await ws.error("append", id=created["id"], epoch=1, text="x", if_revision=9)
    assert (error["code"], error["current"]) == ("revision_mismatch", 1)
    error = await ws.error("txn", operations=[{"op": "remove", "id": created["id"], "epoch": 9}])
    assert (error["code"], error["position"]) == ("txn_aborted", 0)
    assert error["cause"]["code"] == "lease_lost"


NONSENSE: list[tuple[str, dict[str, Any]]] = [
    ("fly", {}),
    ("new", {}),
    ("new", {"theme": 1, "colour": "red"}),
    ("new", {"theme": 1, "text": "a", "data": "YQ=="}),
    ("append", {"text": "x"}),
    ("append", {"id": "1", "theme": 1, "key": "k"}),
    ("append", {"id": "0x"}),
    ("store", {"id": "1", "repeat_after": -1}),
    ("touch", {"id": "1"}),
    ("acquire", {"themes": []}),
    ("acquire", {"themes": [1], "idempotency_key": "k"}),
    ("get", {"id": "1", "consistency": "maybe"}),
    ("get", {"id": "1", "idempotency_key": "k"}),
    ("heartbeat", {"idempotency_key": "k"}),
    ("credit", {"themes": [1], "idempotency_key": "k"}),
    ("resume", {"sessions": [{"id": "1", "epoch": 1}], "idempotency_key": "k"}),
    ("resume", {"sessions": [{"id": "1"}]}),
    ("txn", {"operations": [{"op": "get", "id": "1"}]}),
    ("txn", {"operations": [{"op": "new", "theme": 1, "seq": 1}]}),
]


async def test_what_makes_no_sense_is_refused_and_the_connection_goes_on(ws: Client) -> None:
    for op, fields in NONSENSE:
        error = await ws.error(op, **fields)
        assert error.pop("detail")
        assert error == {"code": "bad_request", "outcome": "not_applied", "retryable": False}, op
        assert (await ws.ask("heartbeat"))["held"] == 0


async def test_requests_of_one_session_keep_their_order_and_stop_at_a_failure(ws: Client) -> None:
    created = await ws.ask("new", theme=THEME, key="k")
    held = {"id": created["id"], "epoch": 1}
    by_key = {"theme": THEME, "key": "k", "epoch": 1}
    answers = await ws.ask_all(
        ws.request("append", **held, text="1"),
        ws.request("append", **by_key, text="2"),
        ws.request("txn", operations=[{"op": "append", **held, "text": "3"}]),
        ws.request("append", **held, text="4"),
        ws.request("append", **held, text="5", if_revision=1),
        ws.request("remove", **held),
    )
    assert [one.get("revision") for one in answers] == [2, 3, None, 5, None, None]
    assert answers[4]["error"]["code"] == "revision_mismatch"
    assert answers[5]["error"]["code"] == "skipped"
    session = (await ws.ask("get", id=created["id"]))["session"]
    assert session["chunks"] == ["MQ==", "Mg==", "Mw==", "NA=="]


async def test_many_requests_in_one_frame_are_all_answered(node: Running, ws: Client) -> None:
    count = FRAME_REQUESTS_MAX
    requests = [ws.request("new", theme=THEME, repeat_after=0) for _ in range(count)]
    answers = await ws.ask_all(*requests)
    assert len({one["id"] for one in answers}) == count
    assert node.front.websockets.requests[ask.New] == count


async def test_nonsense_is_answered_one_by_one_among_what_makes_sense(ws: Client) -> None:
    requests = [ws.request("fly" if n % 2 else "heartbeat") for n in range(FRAME_REQUESTS_MAX)]
    answers = await ws.ask_all(*requests)
    assert ["error" in one for one in answers] == [False, True] * (FRAME_REQUESTS_MAX // 2)


async def test_own_verdicts_are_no_losses_however_they_are_given(ws: Client) -> None:
    ids = [(await ws.ask("new", theme=THEME, key=f"k{n}"))["id"] for n in range(4)]
    await ws.ask("remove", id=ids[0], epoch=1)
    await ws.ask("remove", theme=THEME, key="k1", epoch=1)
    await ws.ask(
        "txn",
        operations=[
            {"op": "remove", "id": ids[2], "epoch": 1},
            {"op": "store", "theme": THEME, "key": "k3", "epoch": 1},
        ],
    )
    assert (await ws.ask("heartbeat"))["held"] == 0
    await ws.idle()
    assert ws.pushes == []


async def test_what_a_transaction_gives_is_the_consumers(node: Running, ws: Client) -> None:
    stored = await ws.ask("new", theme=THEME, repeat_after=60)
    done = await ws.ask(
        "txn", operations=[{"op": "new", "theme": OTHER}, {"op": "take", "id": stored["id"]}]
    )
    created, taken = done["results"]
    assert (created["epoch"], taken["epoch"]) == (1, 1)
    assert {one.session_id for one in node.front.operators} == {
        int(created["id"], 16),
        int(taken["id"], 16),
    }
    assert (await ws.ask("heartbeat"))["held"] == 2


# Touching


async def made_by_a_worker(node: Running, key: str) -> dict[str, Any]:
    """A session that somebody operates over HTTP, who is not heard of again."""
    async with (
        ClientSession(node.url) as client,
        client.post(f"/v1/themes/{THEME}/sessions?key={key}", data=b"x") as response,
    ):
        created: dict[str, Any] = await response.json()
    assert created["epoch"] == 1
    return created


@pytest.fixture
async def short_leases(node: Running) -> None:
    await do(node, SetPolicy(THEME, (("lease_ms", 500),)))


@pytest.fixture
async def worker(node: Running, short_leases: None) -> dict[str, Any]:  # noqa: ARG001
    """A session that a worker operates, with a short lease."""
    return await made_by_a_worker(node, "work")


NEXT = {"op": "new", "theme": OTHER}
WAYS_TO_TOUCH = list(
    itertools.product(
        (None, [], [NEXT], [{"op": "append", "text": "y"}]),  # alone, or with others
        ("id", "key"),
        (False, True),  # with an idempotency key
    )
)


async def test_what_is_touched_is_the_consumers_from_then_on(
    node: Running,
    short_leases: None,  # noqa: ARG001
) -> None:
    """Each way has a session and a connection of its own; they wait side by side."""

    async def touched(
        ws: Client,
        worker: dict[str, Any],
        others: list[dict[str, Any]] | None,
        named: str,
        idempotency: dict[str, str],
    ) -> None:
        names = {"id": worker["id"]} if named == "id" else {"theme": THEME, "key": worker["key"]}
        touch = {"op": "touch", "epoch": 1, **names}
        if others is None:
            answer = await ws.ask(**touch, **idempotency)
        else:
            more = [one if one["op"] == "new" else {**touch, **one} for one in others]
            answer = await ws.ask("txn", operations=[touch, *more], **idempotency)
        assert "error" not in answer

    async def stays(
        ws: Client, worker: dict[str, Any], others: list[dict[str, Any]] | None
    ) -> None:
        await ws.idle(2)  # several leases, and a heartbeat's answer as often
        assert phase(node, worker["id"]) is Phase.ACTIVE
        assert (await ws.ask("heartbeat"))["held"] == 1 + (others == [NEXT])
        appended = await ws.ask("append", id=worker["id"], epoch=1, text="z")
        assert "error" not in appended
        assert ws.pushes == []

    async def noted(way: object, done: Awaitable[None]) -> None:
        try:
            await done
        except BaseException as error:
            error.add_note(f"touched so: {way}")
            raise

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for number, (others, named, is_idempotent) in enumerate(WAYS_TO_TOUCH):
            way = (others, named, is_idempotent)
            ws = await stack.enter_async_context(connect(node))
            worker = await made_by_a_worker(node, f"work-{number}")
            worker["key"] = f"work-{number}"
            idempotency = {"idempotency_key": f"a-{number}"} if is_idempotent else {}
            await noted(way, touched(ws, worker, others, named, idempotency))
            group.create_task(noted(way, stays(ws, worker, others)))


async def test_what_is_touched_while_the_node_is_about_to_stop_stays_where_it_is(
    node: Running, ws: Client, worker: dict[str, Any]
) -> None:
    own = await ws.ask("new", theme=OTHER)
    for one in node.front.connections:
        one.drain(1000)
    touches = [{"op": "touch", "id": one["id"], "epoch": 1} for one in (own, worker)]
    await ws.ask("txn", operations=touches)
    await ws.ask("txn", operations=touches, idempotency_key="a")
    for touch in touches:
        assert "error" not in await ws.ask(**touch)
    assert (await ws.ask("heartbeat"))["held"] == 1


async def test_a_touch_that_fails_gives_nothing(ws: Client, worker: dict[str, Any]) -> None:
    error = await ws.error("touch", id=worker["id"], epoch=9)
    assert error["code"] == "lease_lost"
    gone = {"op": "remove", "id": "999", "epoch": 1}
    touch = {"op": "touch", "id": worker["id"], "epoch": 1}
    error = await ws.error("txn", operations=[touch, gone])
    assert error["code"] == "txn_aborted"
    assert (await ws.ask("heartbeat"))["held"] == 0


async def test_reading(ws: Client) -> None:
    created = await ws.ask("new", theme=THEME, key="k", text="x")
    by_key = await ws.ask("get", theme=THEME, key="k")
    stale = await ws.ask("get", id=created["id"], consistency="stale")
    assert by_key["session"] == stale["session"]
    assert by_key["session"]["chunks"] == ["eA=="]


# Idempotency keys


async def test_a_key_makes_a_request_the_same_over_another_connection(node: Running) -> None:
    async with connect(node) as first, connect(node) as second:
        request = {"theme": THEME, "text": "x", "idempotency_key": "a"}
        created = await first.ask("new", **request)
        again = await second.ask("new", **request)
        assert {**again, "seq": 0} == {**created, "seq": 0}
        # It is the second one's now, and the first one hears so.
        lost = await first.push("lease_lost")
        assert lost == {"push": "lease_lost", "id": created["id"], "epoch": 1, "cause": "resumed"}
        assert (await first.ask("heartbeat"))["held"] == 0
        assert (await second.ask("heartbeat"))["held"] == 1
        verdict = {"id": created["id"], "epoch": 1, "idempotency_key": "b"}
        removed = await second.ask("remove", **verdict)
        assert (await first.ask("remove", **verdict))["revision"] == removed["revision"]
        assert (await first.ask("new", **request))["id"] == created["id"]
        error = await first.error("new", theme=OTHER, text="x", idempotency_key="a")
        assert error["code"] == "idempotency_mismatch"


async def test_a_new_session_under_a_key_is_its_consumers_at_once(
    node: Running, ws: Client
) -> None:
    submitted = count_of(node)
    created = await ws.ask("new", theme=THEME, idempotency_key="a")
    assert submitted() == 1
    (operator,) = node.front.operators
    assert (operator.session_id, operator.consumer is None) == (int(created["id"], 16), False)
    again = await ws.ask("new", theme=THEME, idempotency_key="a")
    assert again["id"] == created["id"]
    assert (submitted(), ws.pushes) == (2, [])


def count_of(node: Running) -> Callable[[], int]:
    """Counts operations from now on."""
    gateway, count = node.front.gateway, 0
    submit = gateway.submit

    def counted(*arguments: Any, **named: Any) -> None:
        nonlocal count
        count += 1
        submit(*arguments, **named)

    gateway.submit = counted
    return lambda: count


@pytest.mark.parametrize("is_same", [False, True])
async def test_what_was_done_once_under_a_key_ends_nothing_else(
    node: Running, ws: Client, *, is_same: bool
) -> None:
    """An answer that is known is about the session that had the key then, in the same epoch."""
    keyed = {"theme": THEME, "key": "k"}
    async with connect(node) as other:
        await ws.ask("new", **keyed)
        remove = {**keyed, "epoch": 1, "idempotency_key": "once"}
        removed = await ws.ask("remove", **remove)
        holder = ws if is_same else other
        created = await holder.ask("new", **keyed)
        assert await ws.ask("remove", **remove) == {**removed, "seq": ANY}
        assert (await holder.ask("heartbeat"))["held"] == 1
        operator = node.front.operators.find(int(created["id"], 16))
        assert operator is not None
        assert operator.consumer is not None
        assert (operator.has_ended, holder.pushes) == (False, [])


def failing_claims(node: Running, consumer: str, which: int, patch: Any) -> None:
    """Have one of a consumer's claims fail for a moment, and be tried again 0.3 s later."""
    gateway, operators, count = node.front.gateway, node.front.operators, 0
    submit = gateway.submit

    def unreliable(encoded: bytes, callback: Callable[[Any], object], **given: Any) -> None:
        nonlocal count
        if encoded[1] == Touch.code and consumer.encode() in encoded:
            count += 1
            if count == which:
                callback(TimedOut(was_sent=False, waited_ms=1))
                return
        submit(encoded, callback, **given)

    def again(attempt: int, then: Callable[..., object], *arguments: object) -> None:
        operators.call_later(0.3, then, attempt, *arguments)

    patch.setattr(gateway, "submit", unreliable)
    patch.setattr(operators, "again", again)


@pytest.mark.parametrize("code", [1000, 4000])
async def test_a_claim_that_is_tried_again_takes_nothing_from_who_came_later(
    node: Running, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    request = {"theme": THEME, "idempotency_key": "a"}
    async with connect(node) as before:
        created = await before.ask("new", **request)
        await before.socket.close(code=4000)
    async with connect(node) as first:
        await first.ask("heartbeat")
        failing_claims(node, first.hello["consumer"], 1, monkeypatch)
        await first.send(first.request("new", **request))
        await until(lambda: len(node.front.connections) == 1)
        await asyncio.sleep(0.05)
        await first.socket.close(code=code)
        async with connect(node) as second:
            assert (await second.ask("new", **request))["lease_ms"] > 0
            await asyncio.sleep(0.5)
            assert (await second.ask("heartbeat"))["held"] == 1
            assert second.pushes == []
            assert phase(node, created["id"]) is Phase.ACTIVE


async def test_a_claim_that_is_tried_again_takes_nothing_from_who_resumed_meanwhile(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"theme": THEME, "idempotency_key": "a"}
    async with connect(node) as before:
        created = await before.ask("new", **request)
        await before.socket.close(code=4000)
    async with connect(node) as first, connect(node) as second:
        await first.ask("heartbeat")
        failing_claims(node, first.hello["consumer"], 1, monkeypatch)
        asked = first.request("new", **request)
        await first.send(asked)
        await asyncio.sleep(0.05)
        held = {"id": created["id"], "epoch": 1}
        (resumed,) = (await second.ask("resume", sessions=[held]))["sessions"]
        assert "error" not in resumed
        assert (await first.answer(asked["seq"]))["lease_ms"] == 0
        assert (await second.ask("heartbeat"))["held"] == 1
        assert second.pushes == []


async def test_what_is_lost_before_the_answer_that_gives_it_is_told_behind_that(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {"op": "new", "theme": THEME}
    request = {"operations": [new, new], "idempotency_key": "a"}
    async with connect(node) as first, connect(node) as second:
        failing_claims(node, first.hello["consumer"], 2, monkeypatch)
        asked = first.request("txn", **request)
        await first.send(asked)
        await asyncio.sleep(0.1)
        again = await second.ask("txn", **request)
        assert all(one["lease_ms"] for one in again["results"])
        assert first.pushes == []
        while asked["seq"] not in first.answers:
            assert first.pushes == []
            await first.read()
        answer = await first.answer(asked["seq"])
        assert [one["lease_ms"] for one in answer["results"]] == [0, 0]
        lost = {(await first.push("lease_lost"))["id"] for _ in range(2)}
        assert lost == {one["id"] for one in answer["results"]}
        assert (await first.ask("heartbeat"))["held"] == 0
        assert (await second.ask("heartbeat"))["held"] == 2
        assert (first.pushes, second.pushes) == ([], [])


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[tuple[Running, str]]:
    """A node, and a token for one theme: of unknown sessions the theme has to be read first."""
    text = new_token()
    tokens = entry(text, "worker", '["operate"]', f"themes = [{THEME}]")
    async with server(tmp_path, tokens=tokens) as node:
        yield node, text


async def test_what_is_lost_before_the_answer_that_resumes_it_is_told_in_that(
    limited: tuple[Running, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, text = limited
    async with (
        connect(node, token=text) as before,
        connect(node, token=text) as first,
        connect(node, token=text) as second,
    ):
        created = await before.ask("new", theme=THEME)
        gone = await before.ask("new", theme=THEME)
        await before.ask("remove", id=gone["id"], epoch=1)
        gateway = node.front.gateway
        read, waiting = gateway.read, []
        monkeypatch.setattr(gateway, "read", lambda *a, **given: waiting.append((a, given)))
        held, unknown = ({"id": one["id"], "epoch": 1} for one in (created, gone))
        asked = first.request("resume", sessions=[held, unknown])
        await first.send(asked)
        await until(lambda: waiting)
        monkeypatch.setattr(gateway, "read", read)
        await before.push("lease_lost")
        (resumed,) = (await second.ask("resume", sessions=[held]))["sessions"]
        assert "error" not in resumed
        for arguments, given in waiting:
            read(*arguments, **given)
        answer = await first.answer(asked["seq"])
        codes = [one["error"]["code"] for one in answer["sessions"]]
        assert codes == ["lease_lost", "session_not_found"]
        assert (await second.ask("heartbeat"))["held"] == 1
        assert (first.pushes, second.pushes) == ([], [])


async def test_what_is_taken_back_before_the_answer_that_gives_it_is_no_loss(
    node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(node) as first, connect(node) as second:
        created = await first.ask("new", theme=THEME)
        other = await second.ask("new", theme=THEME)
        held = {"id": created["id"], "epoch": 1}
        touches = [{"op": "touch", **held}, {"op": "touch", "id": other["id"], "epoch": 1}]
        failing_claims(node, first.hello["consumer"], 2, monkeypatch)
        asked = first.request("txn", operations=touches, idempotency_key="a")
        await first.send(asked)  # the second claim is tried again in a while
        await asyncio.sleep(0.1)
        assert "error" not in (await second.ask("resume", sessions=[held]))["sessions"][0]
        assert "error" not in (await first.ask("resume", sessions=[held]))["sessions"][0]
        await first.answer(asked["seq"])
        assert (await first.ask("append", **held, text="x"))["revision"] == 2
        assert first.pushes == []
        assert (await first.ask("heartbeat"))["held"] == 2


async def test_what_was_held_before_and_is_lost_while_it_is_resumed_is_told(
    limited: tuple[Running, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, text = limited
    async with (
        connect(node, token=text) as first,
        connect(node, token=text) as second,
    ):
        created = await first.ask("new", theme=THEME)
        gateway = node.front.gateway
        read, waiting, submit = gateway.read, [], gateway.submit

        def unreliable(encoded: bytes, callback: Callable[[Any], object], **given: Any) -> None:
            if encoded[1] == Touch.code:
                callback(TimedOut(was_sent=False, waited_ms=1))
            else:
                submit(encoded, callback, **given)

        monkeypatch.setattr(gateway, "read", lambda *a, **given: waiting.append((a, given)))
        monkeypatch.setattr(gateway, "submit", unreliable)
        held, unknown = ({"id": one, "epoch": 1} for one in (created["id"], "ff"))
        asked = first.request("resume", sessions=[held, unknown])
        await first.send(asked)
        await until(lambda: waiting)
        monkeypatch.setattr(gateway, "read", read)
        monkeypatch.setattr(gateway, "submit", submit)
        await second.ask("remove", **held)
        for arguments, given in waiting:
            read(*arguments, **given)
        answer = await first.answer(asked["seq"])
        assert answer["sessions"][0]["error"]["code"] == "timed_out"
        assert (await first.push("lease_lost"))["id"] == created["id"]


async def test_who_touches_what_ends_in_the_same_batch_is_told(node: Running) -> None:
    async with connect(node) as first, connect(node) as second, connect(node) as third:
        created = await first.ask("new", theme=THEME, repeat_after=100)
        connections: Any = node.front.connections
        services = {one.name: one._service for one in connections}  # noqa: SLF001
        one, two, three = (services[ws.hello["consumer"]] for ws in (first, second, third))
        # In one turn, before the node knows of the epoch: so no operator puts them in a row.
        one.handle(ask.Take(seq=91, id=created["id"]))
        two.handle(ask.Touch(seq=92, id=created["id"], epoch=1))
        three.handle(ask.Remove(seq=93, id=created["id"], epoch=1))
        assert "error" not in await second.answer(92)
        assert "error" not in await third.answer(93)
        assert (await second.push("lease_lost"))["cause"] == "removed"


async def test_a_first_request_that_comes_late_takes_nothing(node: Running) -> None:
    async with connect(node) as first, connect(node) as second:
        request = {"theme": THEME, "idempotency_key": "a"}
        created = await second.ask("new", **request)
        late = await first.ask("new", **request, until_used=True)
        assert (late["id"], late["lease_ms"]) == (created["id"], 0)
        assert (await second.ask("heartbeat"))["held"] == 1
        assert (await first.ask("heartbeat"))["held"] == 0
        assert second.pushes == []


async def test_a_key_may_be_forgotten_when_the_session_is_used(node: Running) -> None:
    async with connect(node) as first, connect(node) as second:
        request = {"theme": THEME, "idempotency_key": "a"}
        created = await first.ask("new", **request, until_used=True)
        again = await second.ask("new", **request)
        assert again["id"] == created["id"]
        await second.ask("append", id=created["id"], epoch=1, text="x")
        assert (await first.ask("new", **request))["id"] == created["id"]
        request["idempotency_key"] = "b"
        created = await first.ask("new", **request, until_used=True)
        await first.ask("append", id=created["id"], epoch=1, text="x")
        assert (await first.ask("new", **request))["id"] != created["id"]
        error = await first.error("new", theme=THEME, until_used=True)
        assert error["code"] == "bad_request"
        new = {"op": "new", "theme": THEME, "until_used": True}
        error = await first.error("txn", operations=[new], idempotency_key="c")
        assert error["code"] == "bad_request"


async def test_taking_twice_with_a_key_is_taking_once(node: Running) -> None:
    async with connect(node) as first, connect(node) as second:
        stored = await first.ask("new", theme=THEME, repeat_after=60)
        request = {"id": stored["id"], "idempotency_key": "a"}
        taken = await first.ask("take", **request)
        again = await second.ask("take", **request)
        assert again["session"]["epoch"] == taken["session"]["epoch"] == 1
        assert (await second.ask("heartbeat"))["held"] == 1
        await second.ask("store", id=stored["id"], epoch=1, repeat_after=0)
        await second.ask("acquire", themes=[THEME])
        error = await first.error("take", **request)
        assert (error["code"], error["epoch"], error["current_epoch"]) == ("lease_lost", 1, 2)


# Waiting, pushing


async def test_acquiring_waits_and_answers_nothing_when_nothing_comes(ws: Client) -> None:
    assert (await ws.ask("acquire", themes=[THEME]))["sessions"] == []
    assert (await ws.ask("acquire", themes=[THEME], wait=0.05))["sessions"] == []
    waiting = ws.request("acquire", themes=[THEME, OTHER], count=2, wait=10)
    await ws.send(waiting)
    stored = await ws.ask("new", theme=OTHER, repeat_after=0)
    (session,) = (await ws.answer(waiting["seq"]))["sessions"]
    assert (session["id"], session["epoch"]) == (stored["id"], 1)


async def test_credit_lets_sessions_be_pushed_and_no_more_than_that(ws: Client) -> None:
    for _ in range(5):
        await ws.ask("new", theme=THEME, repeat_after=0)
    await ws.ask("credit", themes=[THEME], count=2)
    first = [await ws.push("session") for _ in range(2)]
    await ws.idle()
    assert ws.pushes == []
    await ws.ask("credit", themes=[THEME], count=1)
    await ws.push("session")
    await ws.ask("credit", themes=[THEME], count=10)
    for _ in range(2):
        await ws.push("session")
    stored = await ws.ask("new", theme=THEME, repeat_after=0)
    assert (await ws.push("session"))["session"]["id"] == stored["id"]
    assert (await ws.ask("heartbeat"))["held"] == 6
    assert first[0]["session"]["epoch"] == 1


async def test_credit_that_could_never_be_served_is_refused_or_served_in_parts(
    node: Running, ws: Client
) -> None:
    error = await ws.error("credit", themes=list(range(257)), count=1)
    assert (error["code"], error["limit"]) == ("limit_exceeded", "acquire_themes")
    one_theme = await ws.ask("credit", themes=[OTHER] * 257, count=1)
    assert "error" not in one_theme
    await do(node, SetLimits((("acquire_count", 2),)))
    await ws.ask("credit", themes=[THEME], count=5)
    for _ in range(5):
        await ws.ask("new", theme=THEME, repeat_after=0)
    for _ in range(5):
        await ws.push("session")


async def test_credit_for_other_themes_begins_anew_and_none_ends_it(ws: Client) -> None:
    await ws.ask("credit", themes=[THEME], count=5)
    await ws.ask("credit", themes=[OTHER], count=1)
    await ws.ask("new", theme=THEME, repeat_after=0)
    other = await ws.ask("new", theme=OTHER, repeat_after=0)
    assert (await ws.push("session"))["session"]["id"] == other["id"]
    await ws.ask("credit", themes=[OTHER], count=5)
    await ws.ask("credit", themes=[], count=5)
    await ws.ask("new", theme=OTHER, repeat_after=0)
    await ws.idle()
    assert ws.pushes == []


# Losing


async def test_a_session_that_ends_for_another_reason_is_told_at_once(node: Running) -> None:
    async with connect(node) as ws, connect(node) as other:
        created = await ws.ask("new", theme=THEME)
        await other.ask("resume", sessions=[{"id": created["id"], "epoch": 1}])
        lost = await ws.push("lease_lost")
        assert (lost["id"], lost["cause"]) == (created["id"], "resumed")


async def test_a_session_without_progress_is_lost_in_spite_of_heartbeats(
    node: Running, ws: Client
) -> None:
    await do(node, SetPolicy(THEME, (("lease_ms", 400), ("progress_ms", 500))))
    created = await ws.ask("new", theme=THEME)
    lost = await ws.push("lease_lost")
    assert (lost["id"], lost["epoch"], lost["cause"]) == (created["id"], 1, "stale")
    error = await ws.error("append", id=created["id"], epoch=1, text="late")
    assert error["code"] == "lease_lost"


async def test_heartbeats_keep_a_session_for_many_leases(node: Running, ws: Client) -> None:
    await do(node, SetPolicy(THEME, (("lease_ms", 400),)))
    created = await ws.ask("new", theme=THEME)
    await ws.idle(2)  # it answers pings, and does nothing else
    assert (await ws.ask("append", id=created["id"], epoch=1, text="x"))["revision"] == 2
    assert ws.pushes == []


# Who may what


async def test_scopes_and_themes_hold_for_every_request(tmp_path: Path) -> None:
    reader, worker, all_themes = new_token(), new_token(), new_token()
    tokens = entry(reader, "reader", '["read"]') + entry(
        worker, "worker", '["operate"]', f"themes = [{THEME}]"
    )
    tokens += entry(all_themes, "all", '["operate"]')
    async with (
        server(tmp_path, tokens=tokens) as node,
        connect(node, token=reader) as reading,
        connect(node, token=worker) as working,
        connect(node, token=all_themes) as anything,
    ):
        own = await working.ask("new", theme=THEME)
        foreign = await anything.ask("new", theme=OTHER)
        assert (await reading.ask("get", id=own["id"]))["session"]["id"] == own["id"]
        for op, fields in (
            ("new", {"theme": THEME}),
            ("append", {"id": own["id"], "epoch": 1, "text": "x"}),
            ("acquire", {"themes": [THEME]}),
            ("take", {"id": own["id"]}),
            ("credit", {"themes": [THEME]}),
            ("touch", {"id": own["id"], "epoch": 1}),
            ("resume", {"sessions": [{"id": own["id"], "epoch": 1}]}),
            ("txn", {"operations": [{"op": "new", "theme": THEME}]}),
            ("heartbeat", {}),
        ):
            assert (await reading.error(op, **fields))["code"] == "forbidden", op
        target = {"id": foreign["id"], "epoch": 1}
        for op, fields in (
            ("new", {"theme": OTHER}),
            ("append", {**target, "text": "x"}),
            ("remove", target),
            ("touch", target),
            ("get", {"id": foreign["id"]}),
            ("acquire", {"themes": [THEME, OTHER]}),
            ("credit", {"themes": [OTHER]}),
            ("take", {"theme": OTHER, "key": "k"}),
            ("txn", {"operations": [{"op": "new", "theme": THEME}, {"op": "remove", **target}]}),
        ):
            assert (await working.error(op, **fields))["code"] == "forbidden", op
        (resumed,) = (await working.ask("resume", sessions=[target]))["sessions"]
        assert resumed["error"]["code"] == "session_not_found"
        assert (await working.ask("append", id=own["id"], epoch=1, text="x"))["revision"] == 2
        assert (await working.error("append", id="999", epoch=1))["code"] == "session_not_found"


async def test_what_shows_an_epoch_is_never_done_to_the_next_session_of_the_key(ws: Client) -> None:
    first = await ws.ask("new", theme=THEME, key="k")
    held = {"theme": THEME, "key": "k"}
    await ws.ask("remove", **held, epoch=first["epoch"])
    second = await ws.ask("new", theme=THEME, key="k")
    late = await ws.ask("remove", **held, epoch=first["epoch"])
    assert late["error"]["code"] == "lease_lost"
    assert (await ws.ask("append", **held, epoch=second["epoch"], text="a"))["revision"] == 2


def losses(ws: Client) -> list[dict[str, Any]]:
    return [one for one in ws.pushes if one["push"] == "lease_lost"]


NAMINGS = ["id", "key", "id, key", "key, id"]


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("how", ["take", "touch"])
async def test_what_a_transaction_gives_or_touches_and_ends_is_not_told_to_be_lost(
    node: Running, ws: Client, how: str, naming: str
) -> None:
    is_held = how == "touch"
    created = await ws.ask("new", theme=THEME, key="k", **({} if is_held else {"repeat_after": 0}))
    names = {"id": {"id": created["id"]}, "key": {"theme": THEME, "key": "k"}}
    first, *_, last = (names[one] for one in naming.split(", ") * 2)
    shown = {"epoch": 1} if is_held else {}
    operations = [{"op": how, **first, **shown}, {"op": "remove", **last, "epoch": 1}]
    done = await ws.ask("txn", operations=operations)
    assert "error" not in done
    assert (await ws.ask("heartbeat"))["held"] == 0
    assert not losses(ws)
    assert node.front.operators.lost == 0


async def test_what_a_transaction_begins_and_ends_is_not_told_to_be_lost(ws: Client) -> None:
    name = {"theme": THEME, "key": "k"}
    operations = [{"op": "new", **name}, {"op": "remove", **name, "epoch": 1}]
    assert "error" not in await ws.ask("txn", operations=operations)
    assert (await ws.ask("heartbeat"))["held"] == 0
    assert not losses(ws)


@pytest.mark.parametrize("naming", NAMINGS)
async def test_a_transaction_may_end_a_session_and_begin_the_next_of_its_key(
    node: Running, ws: Client, naming: str
) -> None:
    created = await ws.ask("new", theme=THEME, key="k")
    name = {"theme": THEME, "key": "k"}
    names = {"id": {"id": created["id"]}, "key": name}
    first, *_, last = (names[one] for one in naming.split(", ") * 2)
    operations = [
        {"op": "touch", **first, "epoch": 1},
        {"op": "remove", **last, "epoch": 1},
        {"op": "new", **name},
    ]
    done = await ws.ask("txn", operations=operations)
    begun = done["results"][-1]
    assert not losses(ws)
    # It is directed here, so that its loss is told.
    headers = {"Ritornello-Epoch": str(begun["epoch"]), "Ritornello-Consumer": "somebody"}
    url = f"{node.url}/v1/sessions/{begun['id']}/touch"
    async with ClientSession() as http, http.post(url, headers=headers) as answer:
        assert answer.status == 200
    async with asyncio.timeout(2):
        assert (await ws.push("lease_lost"))["id"] == begun["id"]


async def test_a_transaction_may_go_on_with_the_session_that_it_begins(
    node: Running, ws: Client
) -> None:
    created = await ws.ask("new", theme=THEME, key="k")
    name = {"theme": THEME, "key": "k"}
    operations = [
        {"op": "touch", **name, "epoch": 1},
        {"op": "remove", "id": created["id"], "epoch": 1},
        {"op": "new", **name},
        {"op": "append", **name, "epoch": 2, "text": "x"},
    ]
    assert "error" not in await ws.ask("txn", operations=operations)
    assert (await ws.ask("heartbeat"))["held"] == 1
    assert not losses(ws)
    assert node.front.operators.lost == 0


async def test_no_session_is_lost_in_an_epoch_that_it_never_had(ws: Client) -> None:
    """All in one frame, by which the key is another session's before the first answer."""
    created = await ws.ask("new", theme=THEME, key="k")
    name = {"theme": THEME, "key": "k"}
    operations = [{"op": "remove", "id": created["id"], "epoch": 1}, {"op": "new", **name}]
    asked = (
        ws.request("txn", operations=operations),
        ws.request("touch", **name, epoch=2),
        ws.request("remove", **name, epoch=2),
    )
    answers = await ws.ask_all(*asked)
    assert not [one for one in answers if "error" in one]
    begun = answers[0]["results"][1]
    await ws.ask("heartbeat")
    assert {(one["id"], one["epoch"]) for one in losses(ws)} <= {(begun["id"], 2)}


async def test_a_session_that_goes_to_another_as_it_is_given_is_told_to_be_lost_once(
    node: Running, ws: Client
) -> None:
    stored = await ws.ask("new", theme=THEME, repeat_after=0)
    shown = {"id": stored["id"], "epoch": 1}
    async with connect(node) as other:
        operations = [{"op": "take", "id": stored["id"]}, {"op": "touch", **shown}]
        given, touched = await asyncio.gather(
            ws.ask("txn", operations=operations), other.ask("touch", **shown)
        )
        assert "error" not in given
        assert "error" not in touched
        await ws.ask("heartbeat")
        assert [one["id"] for one in losses(ws)] == [stored["id"]]
        assert not losses(other)
        assert node.front.operators.lost == 1


@pytest.mark.parametrize("is_transaction", [False, True])
async def test_whoever_holds_a_session_that_is_touched_over_http_is_told_at_once(
    node: Running, ws: Client, *, is_transaction: bool
) -> None:
    held = await ws.ask("new", theme=THEME)
    headers = {"Ritornello-Consumer": "somebody"}
    path, body = f"sessions/{held['id']}/touch", dict[str, Any](epoch=1)
    if is_transaction:
        path, body = "txn", {"operations": [{"op": "touch", "id": held["id"], "epoch": 1}]}
    url = f"{node.url}/v1/{path}"
    async with ClientSession(headers=headers) as http, http.post(url, json=body) as answer:
        assert answer.status == 200
    async with asyncio.timeout(2):  # a heartbeat would find out much later
        lost = await ws.push("lease_lost")
    assert (lost["id"], lost["cause"]) == (held["id"], "resumed")


async def test_who_cannot_be_told_the_theme_of_what_it_resumes_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = new_token()
    text = entry(token, "some", '["operate"]', f"themes = [{THEME}]")

    def late(callback: Callable[[Any], object], *, timeout_ms: int | None = None) -> None:
        callback(TimedOut(was_sent=False, waited_ms=timeout_ms or 1))

    async with server(tmp_path, tokens=text) as node, connect(node, token=token) as ws:
        created = await ws.ask("new", theme=THEME)
        monkeypatch.setattr(node.front.gateway, "theme_of", lambda _: None)  # it lags behind
        monkeypatch.setattr(node.front.gateway, "read", late)
        held = {"id": created["id"], "epoch": 1}
        (resumed,) = (await ws.ask("resume", sessions=[held]))["sessions"]
        assert resumed["error"]["code"] == "timed_out"
        assert resumed["error"]["retryable"] is True


async def test_a_token_that_is_taken_away_ends_the_connection(tmp_path: Path) -> None:
    token, other = new_token(), new_token()
    http = replace(HTTP, ping_ms=100)
    async with server(tmp_path, http=http, tokens=entry(token)) as node:
        async with connect(node, token=token) as ws:
            created = await ws.ask("new", theme=THEME)
            with_tokens(http, tmp_path, entry(other))
            node.server.reload()
            closed = await ws.closed()
            assert (closed.code, "token" in closed.reason) == (3000, True)
        await until(lambda: not node.front.connections)
        # It may come back with another token, within its lease.
        assert phase(node, created["id"]) is Phase.ACTIVE
        async with connect(node, token=other) as ws:
            held = {"id": created["id"], "epoch": 1}
            (resumed,) = (await ws.ask("resume", sessions=[held]))["sessions"]
            assert resumed == {**held, "revision": 1, "lease_ms": 30_000}


async def test_a_token_that_may_less_than_before_may_less_at_once(tmp_path: Path) -> None:
    token = new_token()
    http = replace(HTTP, ping_ms=100)
    async with (
        server(tmp_path, http=http, tokens=entry(token)) as node,
        connect(node, token=token) as ws,
    ):
        await ws.ask("credit", themes=[OTHER], count=5)
        with_tokens(http, tmp_path, entry(token, "worker", '["operate"]', "themes = [7]"))
        node.server.reload()
        answer: dict[str, Any] = {}
        for _ in range(100):
            answer = await ws.ask("new", theme=OTHER, repeat_after=60)
            if "error" in answer:
                break
            await asyncio.sleep(0.02)
        assert answer["error"]["code"] == "forbidden"
        await until(lambda: len(node.front.waiters) == 0)


async def test_a_key_is_remembered_for_as_long_as_the_request_says(ws: Client) -> None:
    request = {"theme": THEME, "repeat_after": 0, "idempotency_key": "a"}
    first = await ws.ask("new", **request, remember_for=0.05)
    again = {first["id"]}
    deadline = time.monotonic() + 10
    while len(again) == 1 and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        again.add((await ws.ask("new", **request))["id"])  # for a day, from now on
    assert len(again) == 2
    assert (await ws.ask("new", **request))["id"] in again - {first["id"]}
    for nonsense in (0, -1, 7 * 86_400 + 1, "long"):
        error = await ws.error("new", **request, remember_for=nonsense)
        assert error["code"] == "bad_request"
