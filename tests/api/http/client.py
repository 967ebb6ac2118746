"""A client for tests: every answer that it gets is held against the OpenAPI document."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import ClientSession, TCPConnector
from multidict import CIMultiDict
from yarl import URL

from tests.api.http import contract
from tests.api.servers import Running


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def msgpack(self) -> Any:
        return msgspec.msgpack.decode(self.body)

    @property
    def problem(self) -> tuple[int, str]:
        """Status and code of what was refused."""
        return self.status, self.json["code"]


class Client:
    """One caller of one server."""

    def __init__(self, session: ClientSession, url: str, headers: Mapping[str, str]) -> None:
        self._session = session
        self._url = url
        self._headers = headers

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        json: Any = None,
        msgpack: Any = None,
        headers: Mapping[str, str] | None = None,
        epoch: int | None = None,
    ) -> Answer:
        """Send a path as it is written here."""
        given: CIMultiDict[str] = CIMultiDict(self._headers)
        given.update(headers or {})
        if epoch is not None:
            given["Ritornello-Epoch"] = str(epoch)
        if json is not None:
            body, given["Content-Type"] = msgspec.json.encode(json), "application/json"
        if msgpack is not None:
            body, given["Content-Type"] = msgspec.msgpack.encode(msgpack), "application/msgpack"
        url = URL(self._url + path, encoded=True)
        data = (
            None if body is None else io.BytesIO(body)
        )  # bytes make aiohttp warn if there are many
        if body is not None:
            given.setdefault("Content-Type", "application/octet-stream")
        async with self._session.request(method, url, data=data, headers=given) as response:
            answer = Answer(response.status, response.headers, await response.read())
        contract.check(method, path, answer.status, answer.headers, answer.body)
        return answer

    async def get(self, path: str, **given: Any) -> Answer:
        return await self.ask("GET", path, **given)

    async def post(self, path: str, body: bytes | None = None, **given: Any) -> Answer:
        return await self.ask("POST", path, body, **given)

    async def delete(self, path: str, **given: Any) -> Answer:
        return await self.ask("DELETE", path, **given)

    async def patch(self, path: str, **given: Any) -> Answer:
        return await self.ask("PATCH", path, **given)

    # What many tests begin with

    async def new(self, theme: int = 7, data: bytes = b"", query: str = "") -> Any:
        """Begin a session."""
        answer = await self.post(f"/v1/themes/{theme}/sessions{query}", data)
        assert answer.status == 201, answer
        return answer.json

    async def stored(self, theme: int = 7, data: bytes = b"", key: str = "") -> str:
        """Begin a session that is due at once, and answer its id."""
        query = f"?repeat_after=0&key={key}" if key else "?repeat_after=0"
        session_id: str = (await self.new(theme, data, query))["id"]
        return session_id


@asynccontextmanager
async def client(
    running: Running, *, token: str | None = None, headers: Mapping[str, str] | None = None
) -> AsyncIterator[Client]:
    """A caller, with its own connections."""
    given = dict(headers or {})
    if token is not None:
        given["Authorization"] = f"Bearer {token}"
    ssl = running.client_ssl or False
    async with ClientSession(connector=TCPConnector(ssl=ssl, limit=0)) as session:
        yield Client(session, running.url, given)
