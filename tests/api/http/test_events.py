"""Events, as they happen."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession

from api import history
from api.http import events as module
from api.security import new_token
from api.settings.build import OperationSettings
from api.statuses import ExitStatus
from state import encode
from state.operations import New
from tests.api.security.files import entry, swap
from tests.api.servers import HTTP, Running, cluster_of_three, server, until

EVENTS = "/v1/events"
WAIT_S = 20.0


@dataclass
class Frame:
    """What stands between two empty lines."""

    id: str | None
    event: str | None
    data: Any
    comments: int
    retry_ms: int | None


class Stream:
    """A reader, as the standard describes it (WHATWG HTML, 9.2.6)."""

    def __init__(self, response: ClientResponse) -> None:
        self.response = response
        self.last_id = ""

    async def frame(self) -> Frame | None:
        """The next one, if it is an event or not; None at the end."""
        found = Frame(None, None, None, 0, None)
        has_any = False
        while line := await asyncio.wait_for(self.response.content.readline(), WAIT_S):
            text = line.decode().removesuffix("\n")
            if not text:
                self.last_id = found.id or self.last_id
                return found
            has_any = True
            name, _, value = text.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "":
                    found.comments += 1
                case "id":
                    found.id = value
                case "event":
                    found.event = value
                case "data":
                    found.data = json.loads(value)
                case "retry":
                    found.retry_ms = int(value)
                case _:
                    raise AssertionError(f"a field {name!r}")
        assert not has_any, "it ends in the middle of a frame"
        return None

    async def next(self) -> Frame:
        """The next event."""
        while True:
            frame = await self.frame()
            assert frame is not None, "it has ended"
            if frame.event is not None:
                return frame

    async def take(self, count: int) -> list[Frame]:
        return [await self.next() for _ in range(count)]


@asynccontextmanager
async def following(
    client: ClientSession, last_id: str | None = None, **query: str
) -> AsyncIterator[Stream]:
    """A stream that has begun."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    async with client.get(EVENTS, params=query, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        stream = Stream(answer)
        first = await stream.frame()
        assert first is not None
        assert first.retry_ms == 1000
        yield stream


async def new(client: ClientSession, theme: int = 7, **query: str | int) -> str:
    query = {"repeat_after": 3600, **query}
    async with client.post(f"/v1/themes/{theme}/sessions", data=b"x", params=query) as answer:
        assert answer.status == 201, await answer.text()
        found: str = (await answer.json())["id"]
        return found


async def post(client: ClientSession, path: str, epoch: int | None = None, **query: Any) -> Any:
    headers = {} if epoch is None else {"Ritornello-Epoch": str(epoch)}
    async with client.post(path, params=query, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


def shown(frames: list[Frame]) -> list[tuple[str | None, str, int]]:
    return [(frame.event, frame.data["id"], frame.data["revision"]) for frame in frames]


async def test_a_life_is_told_event_by_event(client: ClientSession) -> None:
    async with following(client) as stream:
        session_id = await new(client, key="order-1", repeat_after=0)
        path = f"/v1/sessions/{session_id}"
        epoch = (await post(client, f"{path}/acquire"))["epoch"]
        await post(client, f"{path}/append", epoch)
        await post(client, f"{path}/replace", epoch)
        await post(client, f"{path}/store", epoch, repeat_after=3600)
        await post(client, f"{path}/store", repeat_after=0)
        epoch = (await post(client, f"{path}/acquire"))["epoch"]
        await post(client, f"{path}/park", epoch)
        await post(client, f"{path}/unpark")
        async with client.delete(path) as answer:
            assert answer.status == 200
        frames = await stream.take(13)
    assert [frame.event for frame in frames] == [
        *("created", "ready", "acquired", "appended", "replaced", "stored"),
        *("stored", "ready", "acquired", "parked", "stored", "ready", "removed"),
    ]
    for frame in frames:
        assert frame.data["id"] == session_id
        assert (frame.data["theme"], frame.data["key"]) == (7, "order-1")
        assert set(frame.data) == {"id", "theme", "key", "revision", "log_index"}
        assert frame.id is not None
        index, position = map(int, frame.id.split("."))
        assert frame.data["log_index"] == index
        assert position >= 0
    places = [history.Place.of(frame.id or "") for frame in frames]
    assert places == sorted(set(places), key=lambda place: place or history.Place(0))
    revisions = [frame.data["revision"] for frame in frames]
    assert revisions == sorted(revisions)


async def test_a_change_of_a_policy_is_told(client: ClientSession) -> None:
    async with following(client) as stream:
        async with client.patch("/v1/themes/7/policy", json={"lease_ms": 40_000}) as answer:
            assert answer.status == 200
        frame = await stream.next()
    assert frame.event == "policy_changed"
    del frame.data["log_index"]
    assert frame.data == {"id": None, "theme": 7, "key": None, "revision": None}


async def test_what_only_time_does_is_told(client: ClientSession) -> None:
    async with following(client, kind="ready") as stream:
        session_id = await new(client, repeat_after=1)
        assert shown([await stream.next()]) == [("ready", session_id, 1)]


async def test_it_begins_now(client: ClientSession) -> None:
    await new(client)
    async with following(client) as stream:
        later = await new(client)
        assert shown([await stream.next()]) == [("created", later, 1)]


async def test_whoever_was_cut_off_goes_on_where_it_was(client: ClientSession) -> None:
    async with following(client) as stream:
        made = [await new(client) for _ in range(6)]
        frames = await stream.take(6)
    for number, frame in enumerate(frames):
        async with following(client, frame.id) as stream:
            later = await stream.take(5 - number)
            assert [one.data["id"] for one in later] == made[number + 1 :]
            assert later == frames[number + 1 :]
    # Also whoever was cut off before anything happened.
    last = await new(client)
    async with following(client, stream.last_id) as stream:
        assert (await stream.next()).data["id"] == last


async def test_where_it_was_comes_before_where_it_began(client: ClientSession) -> None:
    """A browser asks again with the same address."""
    async with following(client) as stream:
        start = stream.last_id
        made = [await new(client) for _ in range(3)]
        frames = await stream.take(3)
    async with following(client, frames[1].id, **{"from": start}) as stream:
        assert (await stream.next()).data["id"] == made[2]
    async with following(client, "", **{"from": start}) as stream:
        assert [one.data["id"] for one in await stream.take(3)] == made


async def test_a_list_and_the_events_after_it_miss_nothing(client: ClientSession) -> None:
    first = await new(client)
    async with client.get("/v1/themes/7/sessions") as answer:
        index = answer.headers["Ritornello-Applied-Index"]
        assert [one["id"] for one in (await answer.json())["sessions"]] == [first]
    second = await new(client)
    async with following(client, **{"from": index}) as stream:
        assert (await stream.next()).data["id"] == second


async def test_events_of_one_batch_have_places_of_their_own(client: ClientSession) -> None:
    async with following(client) as stream:
        operations = [{"op": "new", "theme": 7, "repeat_after": 3600}] * 5
        async with client.post("/v1/txn", json={"operations": operations}) as answer:
            assert answer.status == 200, await answer.text()
        frames = await stream.take(5)
    assert len({frame.data["log_index"] for frame in frames}) == 1
    async with following(client, frames[2].id) as stream:
        assert await stream.take(2) == frames[3:]


async def test_themes_and_kinds_are_chosen(client: ClientSession) -> None:
    async with (
        following(client, theme="8") as eight,
        following(client, theme="7,9", kind="removed,created") as others,
        following(client, kind="ready") as ready,
    ):
        made = {theme: await new(client, theme, repeat_after=0) for theme in (7, 8, 9, 10)}
        for session_id in made.values():
            async with client.delete(f"/v1/sessions/{session_id}") as answer:
                assert answer.status == 200
        assert [one.event for one in await eight.take(3)] == ["created", "ready", "removed"]
        frames = await others.take(4)
        assert [(one.event, one.data["theme"]) for one in frames] == [
            *(("created", 7), ("created", 9), ("removed", 7), ("removed", 9)),
        ]
        assert [one.data["theme"] for one in await ready.take(4)] == [7, 8, 9, 10]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"from": "yesterday"}, "from is 'yesterday'"),
        ({"from": "-1"}, "an index of the log"),
        ({"theme": "x"}, "theme is 'x'"),
        ({"theme": ""}, "theme is ''"),
        ({"theme": "7,4294967296"}, "7,4294967296"),
        ({"theme": "0" * 12 + "9" * 20}, "theme is '000000000000999"),
        ({"theme": "7," + "0" * 5000}, "theme is '7,000000"),  # more than `int` reads
        ({"kind": "born"}, "created, appended, replaced"),
        ({"kind": ""}, "kind is ''"),
        ({"themes": "7"}, "no option 'themes'"),
    ],
)
async def test_senseless_questions_are_refused(
    client: ClientSession, query: dict[str, str], said: str
) -> None:
    async with client.get(EVENTS, params=query) as answer:
        assert answer.status == 400
        assert said in (await answer.json())["detail"]


async def test_a_place_that_nobody_gave_is_refused(client: ClientSession) -> None:
    async with client.get(EVENTS, headers={"Last-Event-ID": "abc"}) as answer:
        assert answer.status == 400
        assert "Last-Event-ID is 'abc'" in (await answer.json())["detail"]


async def test_whoever_asks_for_the_header_alone_is_not_kept(
    running: Running, client: ClientSession
) -> None:
    async with client.head(EVENTS) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
    assert not running.front.history.followers


# While nothing happens


async def test_silence_is_broken_by_comments_that_tell_how_far_it_is(tmp_path: Path) -> None:
    async with (
        server(tmp_path, http=replace(HTTP, ping_ms=100)) as running,
        ClientSession(running.url) as client,
        following(client, theme="8") as stream,
    ):
        start = stream.last_id
        for _ in range(3):
            await new(client)
        while stream.last_id == start:
            frame = await stream.frame()
            assert frame is not None
            assert (frame.event, frame.data, frame.comments) == (None, None, 1)
        # What was of no interest to it need not be known any more when it comes back.
        assert int(stream.last_id) > int(start)
        async with following(client, stream.last_id, theme="8") as again:
            session_id = await new(client, 8)
            assert (await again.next()).data["id"] == session_id


# Beginning anew


async def many(running: Running, count: int, key_bytes: int = 0) -> None:
    """Begin many sessions quickly."""
    left = count
    done = asyncio.Event()

    def answered(_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    for number in range(count):
        key = b"%0*d" % (key_bytes, number) if key_bytes else None
        running.front.gateway.submit(encode(New(7, key, repeat_after_ms=3_600_000)), answered)
        if number % 1000 == 0:
            await asyncio.sleep(0)
    await asyncio.wait_for(done.wait(), WAIT_S)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> OperationSettings:
    """A history of a few events."""
    monkeypatch.setattr(history, "EVENTS_MIN", 0)
    return OperationSettings(events_history=20)


async def test_what_is_too_old_is_answered_by_resync(
    tmp_path: Path, small: OperationSettings
) -> None:
    async with (
        server(tmp_path, operation=small) as running,
        ClientSession(running.url) as client,
    ):
        async with following(client) as stream:
            await new(client)
            old = (await stream.next()).id
        for _ in range(30):
            await new(client)
        async with following(client, old) as stream:
            frame = await stream.next()
            assert frame.event == "resync"
            assert frame.id == str(frame.data["log_index"])
            # The list that it asks for now has all that it is not told.
            async with client.get("/v1/themes/7/sessions") as answer:
                assert int(answer.headers["Ritornello-Applied-Index"]) >= int(frame.id)
                assert len((await answer.json())["sessions"]) == 31
            later = await new(client)
            assert (await stream.next()).data["id"] == later
        async with following(client, frame.id) as stream:
            assert (await stream.next()).data["id"] == later
        async with following(client, **{"from": "0"}) as stream:
            assert (await stream.next()).event == "resync"


async def test_a_place_in_the_future_is_of_another_cluster(client: ClientSession) -> None:
    async with following(client, "999999999.0") as stream:
        assert (await stream.next()).event == "resync"
        later = await new(client)
        assert (await stream.next()).data["id"] == later


async def test_a_state_that_is_replaced_is_answered_by_resync(
    running: Running, client: ClientSession
) -> None:
    async with following(client) as stream, following(client) as other:
        await new(client)
        await stream.next()
        await other.next()
        await until(lambda: running.front.gateway.applied_index == running.front.history.end[0])
        running.front.gateway.on_installed()
        later = await new(client)
        for one in (stream, other):
            # Both have seen everything, so that they need not look at anything anew.
            assert (await one.next()).data["id"] == later
    async with following(client, "1") as stream:
        assert (await stream.next()).event == "resync"


class Slow:
    """A reader that does not read, until it does."""

    def __init__(self, running: Running) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", running.port))
        self.socket.sendall(f"GET {EVENTS} HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode())
        self.socket.setblocking(False)  # noqa: FBT003 - its only argument

    async def read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 1 << 20)


async def test_a_slow_reader_gets_resync_and_has_no_queue(
    tmp_path: Path, small: OperationSettings
) -> None:
    async with server(tmp_path, operation=small) as running:
        slow = Slow(running)
        with closing(slow.socket):
            await until(lambda: running.front.history.followers)
            for _ in range(5):  # more than its connection holds
                await many(running, 5000, key_bytes=256)
                await asyncio.sleep(0.01)
            assert running.front.history.event_count <= 4096  # one batch at most
            text = b""
            while b"event: resync" not in text:
                text = text[-100:] + await asyncio.wait_for(slow.read(), WAIT_S)


async def test_whoever_does_not_read_at_all_is_cut_off(tmp_path: Path) -> None:
    http = replace(HTTP, request_timeout_ms=500)
    operation = OperationSettings(events_history=1_000_000)
    async with server(tmp_path, http=http, operation=operation) as running:
        slow = Slow(running)
        with closing(slow.socket):
            await until(lambda: running.front.history.followers)
            await many(running, 20_000, key_bytes=256)
            await until(lambda: not running.front.history.followers)


async def test_whoever_leaves_is_forgotten(running: Running, client: ClientSession) -> None:
    async with following(client), following(client):
        assert running.front.history.followers == 2
        assert len(running.front.connections) == 2
    await until(lambda: not running.front.history.followers)
    assert not running.front.connections


async def test_there_may_be_so_many(client: ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAMS_MAX", 1)
    async with following(client), client.get(EVENTS) as answer:
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) == 10
        assert (await answer.json())["code"] == "overloaded"


async def test_many_readers_hear_all_in_the_same_order(
    running: Running, client: ClientSession
) -> None:
    async def read(stream: Stream) -> list[str | None]:
        return [frame.id for frame in await stream.take(3000)]

    async with (
        following(client) as one,
        following(client) as two,
        following(client) as three,
    ):
        reading = asyncio.gather(read(one), read(two), read(three))
        for _ in range(3):
            await many(running, 1000)
        found = await asyncio.wait_for(reading, WAIT_S)
    assert len(set(found[0])) == 3000
    assert found[0] == found[1] == found[2]


# Who may hear what


async def test_a_token_hears_of_its_own_themes_only(tmp_path: Path) -> None:
    tokens = {"some": new_token(), "all": new_token()}
    text = entry(tokens["some"], "some", '["read"]', 'themes = ["8-9"]')
    text += entry(tokens["all"], "all", '["operate"]')
    async with server(tmp_path, tokens=text) as running, ClientSession(running.url) as nobody:
        of = {name: {"Authorization": f"Bearer {token}"} for name, token in tokens.items()}
        async with (
            ClientSession(running.url, headers=of["some"]) as some,
            ClientSession(running.url, headers=of["all"]) as client,
        ):
            async with following(some) as stream, following(client) as whole:
                for theme in (7, 8, 10, 9):
                    await new(client, theme)
                assert [one.data["theme"] for one in await stream.take(2)] == [8, 9]
                assert [one.data["theme"] for one in await whole.take(4)] == [7, 8, 10, 9]
            async with some.get(EVENTS, params={"theme": "8,7"}) as answer:
                assert answer.status == 403
        async with nobody.get(EVENTS) as answer:
            assert answer.status == 401


async def test_a_token_that_is_taken_away_hears_no_more(tmp_path: Path) -> None:
    token, other = new_token(), new_token()
    http = replace(HTTP, ping_ms=100)
    text = entry(token, "one", '["read"]')
    async with server(tmp_path, http=http, tokens=text) as running:
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            ClientSession(running.url, headers=headers) as client,
            following(client) as stream,
        ):
            swap(tmp_path / "tokens.toml", entry(other, "other", '["read"]'))
            running.server.reload()
            frame = await stream.next()
            assert frame.event == "problem"
            assert (frame.data["code"], frame.data["retryable"]) == ("unauthenticated", False)
            assert await stream.frame() is None
        assert not running.front.history.followers


# When the node stops


async def test_a_node_that_stops_says_so_at_once(tmp_path: Path) -> None:
    http = replace(HTTP, drain_ms=60_000)
    async with (
        server(tmp_path, http=http) as running,
        ClientSession(running.url) as client,
        following(client) as stream,
    ):
        session_id = await new(client)
        assert (await stream.next()).data["id"] == session_id
        leaving = asyncio.ensure_future(running.leave())
        frame = await stream.next()
        assert frame.event == "draining"
        assert frame.id is None
        assert await stream.frame() is None
        async with asyncio.timeout(WAIT_S):
            assert await leaving is ExitStatus.STOPPED


async def test_a_node_that_is_about_to_stop_begins_no_stream(
    running: Running, client: ClientSession
) -> None:
    running.front.health.is_draining = True
    async with client.get(EVENTS) as answer:
        assert answer.status == 503
        assert (await answer.json())["code"] == "draining"


# Several nodes


async def test_all_nodes_tell_the_same_and_one_may_go_on_at_any(tmp_path: Path) -> None:
    async with (
        cluster_of_three(tmp_path) as nodes,
        ClientSession(nodes[0].url) as first,
        ClientSession(nodes[1].url) as second,
        ClientSession(nodes[2].url) as third,
    ):
        clients = [first, second, third]
        async with following(first) as one, following(second) as two, following(third) as three:
            made = [await new(clients[number % 3]) for number in range(9)]
            told = [await stream.take(9) for stream in (one, two, three)]
        assert [frame.data["id"] for frame in told[0]] == made
        assert told[0] == told[1] == told[2]
        seen: list[str] = []
        place = None
        await new(clients[0])
        for number in range(9):
            async with following(clients[number % 3], place or told[0][0].id) as stream:
                frame = await stream.next()
                place = frame.id
                seen.append(frame.data["id"])
        assert seen[:8] == made[1:]
