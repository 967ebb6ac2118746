"""What goes over HTTP: lists, events, themes, the cluster. Each call has one deadline in all.

A read, and what is as good when it is done twice, is tried at one node after the other; one that
is silent for too long is left. What is not sent again is waited for.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec

from ritornello import limits
from ritornello.core.nodes import Nodes
from ritornello.errors import (
    DeadlineExceeded,
    NotConnected,
    Outcome,
    ProtocolError,
    RequestError,
    RitornelloError,
    doubted,
    request_error,
    unsayable,
)
from ritornello.limits import Options
from ritornello.models import Event

T = TypeVar("T")

_MSGPACK = "application/msgpack"
_OK = 200
_ERROR = 400
_PASSING = frozenset({429, 502, 503, 504})  # statuses
_PAGE_EVENTS = 1000
_SILENCE_S = 60.0  # of an event stream: the server says something more often


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked over HTTP."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    fields: Mapping[str, Any] | None = None
    is_once: bool = False  # it is not sent again when the answer was lost


class Rest:
    """Asks nodes over HTTP."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        nodes: Nodes,
        options: Options,
        *,
        token: Callable[[], Awaitable[str | None]],
        chance: random.Random,
    ) -> None:
        self._http = http
        self._nodes = nodes
        self._options = options
        self._token = token
        self._chance = chance
        self._patient = aiohttp.ClientTimeout(total=None, sock_connect=options.connect_s)
        self._bounded = aiohttp.ClientTimeout(
            total=None, sock_connect=options.connect_s, sock_read=options.silence_s
        )

    async def call(self, ask: Ask, kind: type[T], timeout_s: float) -> T:
        """Ask, of one node after the other until one answers. Raises `RitornelloError`."""
        error: RitornelloError | None = None
        failures = 0
        may_be_done = False
        url = self._nodes.first
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    url = self._nodes.first
                    before, may_be_done = may_be_done, True
                    try:
                        return _decoded(await self._once(url, ask), kind, ask)
                    except RitornelloError as found:
                        error = found
                        if found.retryable:
                            self._nodes.avoid(url)
                        may_be_done = before or found.outcome is Outcome.UNKNOWN
                        if not self._may_try_again(ask, found):
                            if before and ask.method != "GET":
                                doubted(found)
                            raise
                    await asyncio.sleep(self._pause_s(error, failures))
                    failures += 1
        except TimeoutError:
            self._nodes.avoid(url)  # by the next call
            detail = "no answer in time" if error is None else f"no answer in time; {error.detail}"
            is_doubtful = may_be_done and ask.method != "GET"
            outcome = Outcome.UNKNOWN if is_doubtful else Outcome.NOT_APPLIED
            raise DeadlineExceeded(detail, outcome=outcome) from error

    def _may_try_again(self, ask: Ask, error: RitornelloError) -> bool:
        if not self._options.retries or not error.retryable:
            return False
        return error.outcome is Outcome.NOT_APPLIED or not ask.is_once

    def _pause_s(self, error: RitornelloError | None, failures: int) -> float:
        options = self._options
        bound_s = min(options.backoff_min_s * 2 ** min(failures, 32), options.backoff_max_s)
        after_s = error.retry_after_s if isinstance(error, RequestError) else None
        return self._chance.uniform(0, bound_s) + (after_s or 0)

    async def _headers(self, accept: str) -> dict[str, str]:
        headers = {"Accept": accept}
        token = await self._token()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    async def _once(self, url: str, ask: Ask) -> bytes:
        headers = await self._headers(_MSGPACK)
        body: bytes | None = None
        if ask.fields is not None:
            try:
                body = msgspec.msgpack.encode(ask.fields)
            except (OverflowError, TypeError, UnicodeEncodeError) as error:
                raise unsayable(error) from error
            headers["Content-Type"] = _MSGPACK
        is_bounded = self._options.retries and not ask.is_once
        try:
            async with self._http.request(
                ask.method,
                url + ask.path,
                params=ask.query,
                data=body,
                headers=headers,
                timeout=self._bounded if is_bounded else self._patient,
            ) as response:
                found = await response.read()
                if response.status < _ERROR:
                    return found
                raise _refusal(url, response, found)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotConnected(f"{url}: {error}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            outcome = Outcome.NOT_APPLIED if ask.method == "GET" else Outcome.UNKNOWN
            detail = f"{url}: {_why(error)}"
            raise NotConnected(detail, outcome=outcome) from error

    async def leader(self, near: str = "") -> str | None:
        """The address of the node that leads; None if no node that answers is it.

        A node that is `near` is asked before all others.
        """
        ask = Ask("GET", "/v1/cluster")

        async def node_and_leader(url: str) -> tuple[str, str, str | None]:
            found = _decoded(await self._once(url, ask), _Leading, ask)
            return url, found.node, found.leader

        if near:
            with contextlib.suppress(RitornelloError):
                _, node, leader = await node_and_leader(near)
                if node == leader:
                    return near
        tasks = [asyncio.ensure_future(node_and_leader(url)) for url in self._nodes.urls]
        try:
            for done in asyncio.as_completed(tasks, timeout=self._options.connect_s):
                try:
                    url, node, leader = await done
                except RitornelloError:
                    continue
                if node == leader:
                    return url
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                task.cancel()
        return None

    async def follow(self, query: Mapping[str, str], place: str | None) -> "EventStream":
        """Open a stream of events after a place, or from now on. Raises `RitornelloError`."""
        stream = EventStream(self, query, place)
        timeout_s = self._options.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await stream.open(timeout_s)
        except TimeoutError as error:
            self._nodes.avoid(stream.url)
            raise DeadlineExceeded("no answer in time") from error
        return stream


class _Leading(msgspec.Struct):
    node: str
    leader: str | None


class _EventData(msgspec.Struct):
    log_index: int = 0
    theme: int | None = None
    id: str | None = None
    key: str | None = None
    revision: int | None = None


class EventStream:
    """Events as they happen (WHATWG HTML, 9.2), from one node after the other."""

    def __init__(self, rest: Rest, query: Mapping[str, str], place: str | None) -> None:
        self._rest = rest
        self._query = query
        self.place = place
        self.url = ""  # of the node that is asked, or was last
        self._response: aiohttp.ClientResponse | None = None
        self._buffer = b""
        self._begun_s = 0.0  # when there was an answer
        self._failures = 0  # connections in a row that ended soon

    async def open(self, within_s: float | None = None) -> None:
        """Connect to some node, within a time or for ever.

        Raises `RitornelloError` when it refuses for good, or the time is over.
        """
        rest = self._rest
        end_s = None if within_s is None else time.monotonic() + within_s
        failures = 0
        while True:
            url = self.url = rest._nodes.first  # noqa: SLF001 - of one module
            try:
                self._response = await self._ask(url)
            except RitornelloError as error:
                if not rest._options.retries or not error.retryable:  # noqa: SLF001
                    raise
                rest._nodes.avoid(url)  # noqa: SLF001
                pause_s = rest._pause_s(error, failures)  # noqa: SLF001
                if end_s is not None and time.monotonic() + pause_s >= end_s:
                    raise
                await asyncio.sleep(pause_s)
                failures += 1
            else:
                self._buffer = b""
                self._begun_s = time.monotonic()
                return

    async def _ask(self, url: str) -> aiohttp.ClientResponse:
        rest = self._rest
        headers = await rest._headers("text/event-stream")  # noqa: SLF001
        if self.place is not None:
            headers["Last-Event-ID"] = self.place
        options = rest._options  # noqa: SLF001
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=options.connect_s, sock_read=_SILENCE_S
        )
        try:
            async with asyncio.timeout(options.silence_s if options.retries else None):
                response = await rest._http.get(  # noqa: SLF001
                    f"{url}/v1/events", params=self._query, headers=headers, timeout=timeout
                )
                if response.status != _OK:
                    raise _refusal(url, response, await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise NotConnected(f"{url}: {_why(error)}") from error
        return response

    async def read(self) -> list[Event]:
        """The next events; waits for the first. Goes on at another node when one is lost."""
        while True:
            response = self._response
            if response is None:
                await self.open()
                continue
            try:
                data = await response.content.readany()
            except (aiohttp.ClientError, OSError, TimeoutError):
                data = b""
            if not data:
                await self._lost()
                continue
            *whole, self._buffer = (self._buffer + data).split(b"\n\n")
            events = [event for part in whole if (event := self._event(part)) is not None]
            if events:
                return events

    async def _lost(self) -> None:
        """Let go of a connection that has ended, with a pause unless it had lasted."""
        rest = self._rest
        self.close()
        rest._nodes.avoid(self.url)  # noqa: SLF001
        if time.monotonic() - self._begun_s >= limits.STEADY_S:
            self._failures = 0
            return
        await asyncio.sleep(rest._pause_s(None, self._failures))  # noqa: SLF001
        self._failures += 1

    def _event(self, part: bytes) -> Event | None:
        kind, data = "", b""
        for line in part.split(b"\n"):
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            match name:
                case b"id":
                    self.place = value.decode()
                case b"event":
                    kind = value.decode()
                case b"data":
                    data = value
                case _:
                    pass
        if not kind or not data or kind == "draining":
            return None
        try:
            found = msgspec.json.decode(data, type=_EventData)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"an event cannot be read: {error}") from error
        return Event(
            kind=kind,
            place=self.place or "",
            log_index=found.log_index,
            theme=found.theme,
            id=found.id,
            key=found.key,
            revision=found.revision,
        )

    def close(self) -> None:
        """Let go of the connection."""
        response, self._response = self._response, None
        if response is not None:
            response.close()


def _decoded(found: bytes, kind: type[T], ask: Ask) -> T:
    try:
        return msgspec.msgpack.decode(found, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        outcome = Outcome.NOT_APPLIED if ask.method == "GET" else Outcome.UNKNOWN
        raise ProtocolError(f"an answer cannot be read: {error}", outcome=outcome) from error


def _refusal(url: str, response: aiohttp.ClientResponse, body: bytes) -> RitornelloError:
    """The error of an answer that is none of success."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = {}
    if "code" not in fields:
        detail = f"{url} has answered with status {response.status}, and not said why"
        # A balancer's, perhaps, whose nodes are being changed.
        is_passing = response.status in _PASSING
        fields = {"code": "error", "outcome": "unknown", "retryable": is_passing, "detail": detail}
    return request_error(fields)


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__
