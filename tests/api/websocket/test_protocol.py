"""docs/protocol.md is true: its examples are replayed, its tables are complete."""

import asyncio
import base64
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from api import requests as ask
from api.answers import CauseView, SessionView
from api.websocket import connection
from api.websocket.frames import JSON, Push
from cluster import failures
from state import Failure
from state.errors import FAILURES
from tests.api.servers import HTTP, Running, cluster_of_three
from tests.api.websocket.clients import PROTOCOLS, Client, connect

PAGE = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")
ANYTHING = "…"
WAIT_S = 10.0
BYTES = frozenset({"data", "chunks"})  # members that are bytes in msgpack


def lines() -> Iterator[str]:
    for block in re.findall(r"^```transcript\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()


def parse(text: str) -> Any:
    """JSON with `…` in place of values, and of further members."""
    text = re.sub(r"([{,])\s*…\s*(?=[,}])", rf'\1"{ANYTHING}":"{ANYTHING}"', text)
    text = re.sub(r"([:\[,])\s*…\s*(?=[,}\]])", rf'\1"{ANYTHING}"', text)
    return msgspec.json.decode(text)


class Transcript:
    """The examples, from the first to the last, over connections as they are told of."""

    def __init__(self, nodes: list[Running], protocol: str, stack: AsyncExitStack) -> None:
        self.nodes = nodes
        self.protocol = protocol
        self.stack = stack
        self.names: dict[str, Any] = {}
        self.pending: list[Any] = []
        self.ws: Client | None = None

    async def replay(self, line: str) -> None:
        mark, _, rest = line.partition(" ")
        match mark:
            case "=":
                await self.event(rest)
            case ">":
                await self.socket.send(self.outgoing(parse(rest)))
            case "<":
                expected = parse(rest)
                for one in expected if isinstance(expected, list) else [expected]:
                    await self.expect(one)
            case _:
                raise AssertionError(line)

    @property
    def socket(self) -> Client:
        assert self.ws is not None
        return self.ws

    async def event(self, what: str) -> None:
        match what:
            case "a new connection" | "a new connection, to a node that stays":
                node = self.nodes[0] if what.endswith("connection") else self.nodes[1]
                if what.endswith("stays"):
                    self.nodes = [self.nodes[1], self.nodes[0]]
                assert self.pending == []
                self.ws = await self.stack.enter_async_context(connect(node, self.protocol))
                self.pending = [self.ws.hello]
            case "the connection breaks":
                self.socket.vanish()
            case "the node is asked to stop":
                self.stopping = asyncio.ensure_future(self.nodes[0].leave())
            case "the server closes with 1001":
                assert (await self.socket.closed()).code == 1001
                await self.stopping
            case _:
                raise AssertionError(what)

    async def expect(self, expected: Any) -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                for place, one in enumerate(self.pending):
                    names = dict(self.names)
                    if matches(expected, plain(one), names):
                        self.names = names
                        del self.pending[place]
                        return
                try:
                    await self.socket.read()
                except Exception as error:
                    raise AssertionError(f"{expected} is not in {self.pending}") from error
                self.pending += [*self.socket.answers.values(), *self.socket.pushes]
                self.socket.answers.clear()
                self.socket.pushes.clear()

    def outgoing(self, value: Any, member: str = "") -> Any:
        match value:
            case dict():
                return {name: self.outgoing(one, name) for name, one in value.items()}
            case list():
                return [self.outgoing(one, member) for one in value]
            case str() if value.startswith("<"):
                return self.names[value]
            case str() if member in BYTES and self.protocol != JSON:
                return base64.b64decode(value)
            case _:
                return value


def plain(value: Any) -> Any:
    """As it would be in JSON."""
    match value:
        case dict():
            return {name: plain(one) for name, one in value.items()}
        case list():
            return [plain(one) for one in value]
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return value


def matches(expected: Any, found: Any, names: dict[str, Any]) -> bool:
    match expected:
        case "…":
            return True
        case str() if expected.startswith("<"):
            return bool(names.setdefault(expected, found) == found)
        case dict():
            wanted = {name: one for name, one in expected.items() if name != ANYTHING}
            if not isinstance(found, dict) or not wanted.keys() <= found.keys():
                return False
            if ANYTHING not in expected and wanted.keys() != found.keys():
                return False
            return all(matches(one, found[name], names) for name, one in wanted.items())
        case list():
            return (
                isinstance(found, list)
                and len(found) == len(expected)
                and all(matches(*pair, names) for pair in zip(expected, found, strict=True))
            )
        case _:
            return bool(expected == found)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_examples_are_what_happens(tmp_path: Path, protocol: str) -> None:
    script = list(lines())
    assert len(script) > 60
    http = replace(HTTP, drain_ms=1500)  # for what is asked while it drains
    async with cluster_of_three(tmp_path, http=http) as nodes, AsyncExitStack() as stack:
        nodes.sort(key=lambda one: one.node_id)
        transcript = Transcript(list(nodes), protocol, stack)
        for line in script:
            await transcript.replay(line)
        assert transcript.pending == []


# Completeness


def section(title: str) -> str:
    _, _, rest = PAGE.partition(f"\n{title}\n")
    assert rest, title
    level = title.partition(" ")[0]
    return re.split(rf"^{level} ", rest, flags=re.MULTILINE)[0]


def columns(text: str, column: int = 0) -> set[str]:
    """What stands in code in a column of the tables."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[column])}


def members(kind: Any) -> set[str]:
    return {one.name for one in msgspec.structs.fields(kind)}


OPERATIONS = {one.__struct_config__.tag: one for one in get_args(ask.WebSocketRequest)}


def test_every_request_has_a_section_and_every_member_is_told_of() -> None:
    told = set(re.findall(r"^### (.*)$", PAGE, re.MULTILINE))
    assert {name for title in told for name in title.split(", ")} == OPERATIONS.keys()
    for title in told:
        text = section(f"### {title}")
        shared = {
            "seq",
            "idempotency_key",
            "remember_for",
            "id",
            "theme",
            "key",
            "epoch",
            "if_revision",
        }
        for name in title.split(", "):
            wanted = members(OPERATIONS[name]) - shared
            assert all(f"`{one}`" in text for one in wanted), (name, wanted)


def test_every_push_is_told_of_with_its_members() -> None:
    text = section("## Pushes")
    pushes = {msgspec.structs.fields(one)[0].default: one for one in get_args(Push)}
    assert columns(text) - {"push"} == pushes.keys()
    for name, push in pushes.items():
        place = section("## Connecting") if name == "hello" else text
        assert all(f"`{one}`" in place for one in members(push) - {"push"}), name


def test_every_code_of_an_error_is_told_of() -> None:
    own = {"bad_request", "forbidden", "skipped", "draining", "internal"}
    codes = own | {one.code for one in FAILURES}
    codes |= {
        one.code
        for one in vars(failures).values()
        if isinstance(one, type) and issubclass(one, Failure) and hasattr(one, "code")
    }
    # Of what only a leader, the reaper, or an operation that is not here can be told.
    codes -= {"stale_term", "not_stale", "out_of_range"}
    assert columns(section("## Errors")) >= codes


def test_every_closing_code_is_told_of() -> None:
    text = section("## Closing codes")
    told = set(map(int, re.findall(r"^\| (\d{4})", text, re.MULTILINE)))
    assert told == {1000, 1002, 1009} | {int(one) for one in connection._CAUSES}  # noqa: SLF001


def test_every_member_of_a_session_is_told_of() -> None:
    text = section("## Values")
    for kind in (SessionView, CauseView):
        assert all(f"`{one}`" in text for one in members(kind))
