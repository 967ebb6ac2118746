"""Faults: what is lost, late or doubled, and what a client makes of it."""

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import RemoteDisconnected

import aiohttp
import pytest

import ritornello.sync
from ritornello import Options
from ritornello.errors import DeadlineExceeded, RitornelloError
from ritornello.testing import Fault, Faults, LocalServer

THEME = 7
JSON = "ritornello.json.v1"


# As rules


@pytest.fixture
def faults() -> Faults:
    return Faults(lambda: None)


def test_they_happen_as_often_as_they_shall(faults: Faults) -> None:
    fault = faults.drop(2)
    assert [len(faults.strike("append")) for _ in range(3)] == [1, 1, 0]
    assert (fault.happened, fault.is_over) == (2, True)
    assert not faults.is_any


def test_they_are_about_what_they_name(faults: Faults) -> None:
    with faults.delay(1, 9, of=("append", "session")) as fault:
        assert faults.strike("remove") == []
        assert faults.strike("append") == [fault]
        assert faults.strike("session", is_push=True) == [fault]
    assert faults.strike("append") == []


def test_a_push_comes_once(faults: Faults) -> None:
    with pytest.raises(ValueError, match="push"):
        faults.duplicate(of=("append", "session"))
    with faults.duplicate():
        assert faults.strike("session", is_push=True) == []


@pytest.mark.parametrize("operation", ["heartbeat", "resume", "credit"])
def test_what_a_client_asks_by_itself_is_left_alone_unless_named(
    faults: Faults, operation: str
) -> None:
    with faults.delay(1):
        assert faults.strike(operation) == []
        assert faults.strike("lease_lost", is_push=True) == []
    with faults.delay(1, of=operation) as fault:
        assert faults.strike(operation) == [fault]


def test_several_may_stand(faults: Faults) -> None:
    one, two = faults.delay(1), faults.drop()
    assert faults.strike("get") == [one, two]
    assert faults.strike("get") == [one]
    faults.clear()
    assert faults.strike("get") == []
    two.end()
    assert repr(one) == "<delay: 2 times>"


def test_hung_connections_break_at_the_end() -> None:
    cuts: list[int] = []
    faults = Faults(lambda: cuts.append(1))
    with faults.withhold():
        pass
    assert cuts == []  # nothing had happened
    with faults.withhold():
        faults.strike("get")
    assert cuts == [1]
    faults.withhold()
    faults.strike("get")
    faults.clear()
    assert cuts == [1, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda faults: faults.drop(0), "answers is 0; it is 1 or more"),
        (lambda faults: faults.delay(-1), "seconds is -1; it is not less than 0"),
        (lambda faults: faults.delay(float("nan")), "seconds is nan"),
    ],
)
def test_what_makes_no_sense_is_refused(
    faults: Faults, make: Callable[[Faults], Fault], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make(faults)


# On the way: the client


def test_a_dropped_answer_is_asked_for_again_and_done_once(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    with local_client.new(THEME, b"a") as session:
        for operation in ("append", "remove"):
            with local.faults.drop(of=operation) as fault:
                if operation == "append":
                    assert session.append(b"b") == 2
                else:
                    session.remove()
            assert fault.happened == 1
    assert list(local_client.list(THEME)) == []


def test_without_retries_a_dropped_answer_is_an_unknown_outcome(local: LocalServer) -> None:
    with (
        local.sync_client(Options(retries=False)) as client,
        local.sync_client() as other,
        local.faults.drop(of="new"),
    ):
        with pytest.raises(RitornelloError) as failed:
            client.new(THEME, key="k", after=0)
        assert failed.value.outcome == "unknown"
        assert other.get((THEME, "k")).phase in {"ready", "stored"}  # it was done


def test_a_dropped_long_poll_loses_no_session(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    local_client.new(THEME, b"x", after=0)
    with local.faults.drop(of="acquire") as fault:
        # It was handed out to a connection that is gone, and nobody knows of it ...
        assert local_client.acquire(THEME, wait=0.1) is None
    assert fault.happened == 1
    local.clock.advance(120)  # ... until its lease is over
    session = local_client.acquire(THEME, wait=5)
    assert session is not None
    assert session.epoch == 2
    session.remove()


def test_a_duplicated_answer_changes_nothing(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    with local.faults.duplicate(1000) as fault, local_client.new(THEME) as session:
        for number in range(20):
            assert session.append(b"x") == number + 2
        session.remove()
    assert fault.happened == 22


def test_a_delayed_answer_comes_later(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    with local_client.new(THEME) as session:
        session.append(b"quick")
        begin_s = time.monotonic()
        with local.faults.delay(0.2, of="append") as fault:
            session.append(b"slow")
        assert time.monotonic() - begin_s >= 0.2
        assert fault.happened == 1
        session.remove()


def test_delayed_answers_do_not_wait_for_each_other(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    local_client.theme(THEME)
    begin_s = time.monotonic()
    with local.faults.delay(0.2), ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda number: local_client.new(THEME, after=number), range(20)))
    assert 0.2 <= time.monotonic() - begin_s < 2


def test_a_withheld_answer_is_found_out_when_the_server_hangs_no_more(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    with local_client.new(THEME) as session:
        with local.faults.withhold(of="append"), pytest.raises(DeadlineExceeded) as failed:
            session.append(b"x", timeout=0.2)
        assert failed.value.outcome == "unknown"
        session.remove()


def test_connections_are_refused_until_the_fault_ends(
    local: LocalServer, local_client: ritornello.sync.Client
) -> None:
    local_client.new(THEME, after=0)
    with local.faults.refuse() as fault:
        local_client.new(THEME, after=0)  # its connection stays
        local.faults.cut()
        with pytest.raises(DeadlineExceeded):
            local_client.new(THEME, after=0, timeout=0.2)
    assert fault.happened > 0
    assert local_client.theme(THEME).ready in {2, 3}
    session = local_client.acquire(THEME)
    assert session is not None
    session.remove()


# On the way: whoever speaks the protocols


async def test_one_answer_of_a_frame_is_doubled_or_withheld(local: LocalServer) -> None:
    async with (
        aiohttp.ClientSession(local.url) as http,
        http.ws_connect("/v1/operate", protocols=(JSON,)) as ws,
    ):
        assert ws.protocol == JSON
        assert (await ws.receive_json())["push"] == "hello"

        async def answers(count: int) -> list[int]:
            requests = [{"op": "get", "seq": 1, "id": "1"}, {"op": "heartbeat", "seq": 2}]
            await ws.send_str(json.dumps(requests))
            found: list[int] = []
            while len(found) < count:
                frame = await ws.receive_json(timeout=5)
                found += [one["seq"] for one in (frame if isinstance(frame, list) else [frame])]
            return sorted(found)

        assert await answers(2) == [1, 2]
        with local.faults.duplicate():
            assert await answers(3) == [1, 1, 2]
        with local.faults.withhold():
            assert await answers(1) == [2]


async def test_pings_and_closing_codes_pass(local: LocalServer) -> None:
    async with aiohttp.ClientSession(local.url) as http:
        async with http.ws_connect("/v1/operate", protocols=(JSON,), autoping=False) as ws:
            await ws.receive_json()
            await ws.ping(b"there?")
            pong = await ws.receive(timeout=5)
            assert (pong.type, bytes(pong.data)) == (aiohttp.WSMsgType.PONG, b"there?")
            await ws.send_str("no JSON")
            closed = await ws.receive(timeout=5)
            assert closed.type is aiohttp.WSMsgType.CLOSE
            assert closed.data == aiohttp.WSCloseCode.INVALID_TEXT
            assert closed.extra
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect("/v1/operate", protocols=("other",))
        assert refused.value.status == 400


async def test_how_a_client_goes_is_seen_by_the_server(local: LocalServer) -> None:
    """Who takes its leave stores what it holds; who is cut off may come back for it."""
    phases: list[str] = []
    async with aiohttp.ClientSession(local.url) as http:
        for leaves in (True, False):
            ws = await http.ws_connect("/v1/operate", protocols=(JSON,))
            await ws.receive_json()
            await ws.send_json({"op": "new", "theme": THEME})
            held = (await ws.receive_json())["id"]
            if leaves:
                await ws.close()
                assert ws.close_code == 1000
            else:
                local.faults.cut()
            async with http.get(f"/v1/sessions/{held}") as answer:
                phases.append((await answer.json())["phase"])
    assert phases == ["stored", "active"]


def test_answers_over_http(local: LocalServer) -> None:
    url = f"{local.url}/v1/themes/{THEME}/sessions"

    def new() -> int:
        body = json.dumps({"text": "x", "repeat_after": 0}).encode()
        request = urllib.request.Request(  # noqa: S310 - http
            url, body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return int(answer.status)

    assert new() == 201
    with local.faults.drop(of="new") as fault, pytest.raises((RemoteDisconnected, OSError)):
        new()
    assert fault.happened == 1
    with local.faults.delay(0.2, of="get"):
        assert new() == 201
        begin_s = time.monotonic()
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            assert len(json.load(answer)["sessions"]) == 3  # the dropped one was done
        assert time.monotonic() - begin_s >= 0.2
    with local.faults.withhold(of="get"), ThreadPoolExecutor() as pool:
        asking = pool.submit(urllib.request.urlopen, url, timeout=0.2)
        with pytest.raises(TimeoutError):
            asking.result(5)


def test_events_pass_as_they_come(local_client: ritornello.sync.Client) -> None:
    seen = threading.Event()

    def follow() -> None:
        for event in local_client.events(THEME, after="1"):
            if event.kind == "created":
                seen.set()
                return

    with ThreadPoolExecutor() as pool:
        following = pool.submit(follow)
        local_client.new(THEME, after=0)
        assert seen.wait(5)
        following.result(5)


def test_a_fault_of_something_that_is_never_said_is_refused() -> None:
    with pytest.raises(ValueError, match="appendd"):
        Faults(lambda: None).drop(of=("append", "appendd"))
