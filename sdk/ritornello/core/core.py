"""The core of one client: its thread, and in it the connections and what goes over HTTP."""

import asyncio
import contextlib
import os
import random
import ssl
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp

from ritornello.core.link import Link
from ritornello.core.nodes import Nodes, node_urls
from ritornello.core.requests import Held, Home, Request
from ritornello.core.rest import Ask, EventStream, Rest
from ritornello.core.thread import CoreThread, aside
from ritornello.errors import ClientClosed, LeaseLost, NotConnected, Outcome, RitornelloError
from ritornello.limits import Options
from ritornello.models import SessionView

T = TypeVar("T")

Token = str | Callable[[], str | None] | None  # called for each connection

_START_S = 10.0


class _Forks:
    """How many forks there were down to this process: what tells it from its parent."""

    def __init__(self) -> None:
        self.count = 0
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.count += 1


_forks = _Forks()


class Intake:
    """A connection of its own over which sessions are pushed, to a worker."""

    def __init__(self, core: "Core", link: Link) -> None:
        self._core = core
        self._link = link

    @property
    def node(self) -> str:
        """The node that it is connected to, or was last, as that calls itself."""
        return self._link.conversation.node

    def want(self, themes: Iterable[int], hands: int) -> None:
        """Take sessions of these themes while some of so many hands are free; from any thread."""
        self._core.post(self._want, (tuple(themes), hands))

    def _want(self, wanted: tuple[tuple[int, ...], int]) -> None:
        self._link.conversation.want(*wanted)

    def end(self) -> "Future[None]":
        """Take no more sessions; when it is done, nobody is called any more."""

        async def end() -> None:
            self._link.conversation.take_no_more()

        return self._core.run(end())

    def free(self) -> None:
        """Take note that a hand is free again; from any thread."""
        self._core.post(self._free, None)

    def _free(self, _: None) -> None:
        self._link.conversation.free()

    def close(self, within_s: float) -> "Future[None]":
        """Have what was asked answered, and take leave."""
        return self._core.run(self._core.close_link(self._link, within_s))


class Core:
    """One client's thread, and what is in it. Whatever is public may be called by any thread."""

    def __init__(
        self,
        urls: str | Iterable[str],
        token: Token,
        options: Options,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Raises ValueError for addresses that are none."""
        self.options = options
        self._tls = tls
        self.urls = node_urls(urls)
        self._token = token
        self._chance = random.Random()  # noqa: S311 - only spreads
        self._thread = CoreThread("ritornello", self._let_go)
        self._forks = _forks.count
        self._is_open = False
        self._is_closed = False
        self._http: aiohttp.ClientSession | None = None
        self._links: list[Link] = []
        self._main: Link | None = None
        self._rest: Rest | None = None

    # Its life

    def open(self) -> None:
        """Start the thread. It connects when there is something to ask."""
        if self._is_open or self._is_closed:
            raise ClientClosed("a client is opened once")
        self._is_open = True
        self._forks = _forks.count
        self._thread.start()
        self._thread.run(self._begin()).result(_START_S)

    async def _begin(self) -> None:
        tls = True if self._tls is None else self._tls  # True: as the machine has it
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.options.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
        )
        self._rest = Rest(
            self._http, self._nodes(), self.options, token=self._token_now, chance=self._chance
        )
        self._main = self._new_link()

    def close(self) -> "Future[None]":
        """Have what was asked answered, within the option `close_s`; then let go of everything.

        `stop` is to be called when that is done.
        """
        self._is_closed = True
        return self._thread.run(self._end())

    async def _end(self) -> None:
        closing = (one.close(self.options.close_s) for one in list(self._links))
        await asyncio.gather(*closing, return_exceptions=True)
        if self._http is not None:
            await self._http.close()
            await asyncio.sleep(0)  # for its sockets to be let go

    def stop(self) -> None:
        """End the thread."""
        if self._forks == _forks.count:
            self._is_closed = True
            self._thread.stop()

    async def _let_go(self) -> None:
        """Tell whoever waits that it is over, however it came to that."""
        self._is_closed = True
        for link in self._links:
            link.let_go()
        if self._http is not None:
            await self._http.close()

    @property
    def is_open(self) -> bool:
        return self._is_open and not self._is_closed and self._forks == _forks.count

    def _nodes(self) -> Nodes:
        return Nodes(self.urls, self._chance)

    async def _token_now(self) -> str | None:
        """Raises `NotConnected` if there is none, for the moment."""
        if not callable(self._token):
            return self._token
        try:
            # Aside: it may read a file or ask somebody, and leases have to be renewed meanwhile.
            async with asyncio.timeout(self.options.connect_s):  # `wait_for` swallows a cancel
                return await aside(self._token)
        except Exception as error:
            detail = f"the token could not be had: {type(error).__name__}: {error}"
            raise NotConnected(detail) from error

    def _new_link(self) -> Link:
        if self._http is None or self._rest is None:
            raise ClientClosed("the client is not open")
        link = Link(
            self._http,
            self._nodes(),
            self.options,
            token=self._token_now,
            find_leader=self._rest.leader,
            chance=self._chance,
        )
        self._links.append(link)
        return link

    async def close_link(self, link: Link, within_s: float) -> None:
        """Close one connection; in the core's thread."""
        link.conversation.give_back_idle()
        try:
            await link.close(within_s)
        finally:  # until then it is closed with the client
            if link in self._links:
                self._links.remove(link)

    @property
    def node(self) -> str:
        """The node that the main connection goes to, or went last, as that calls itself."""
        return "" if self._main is None else self._main.conversation.node

    # Handing over

    def post(self, call: Callable[[Any], object], argument: Any) -> None:  # noqa: ANN401 - of any type
        """Have a call made in the core's thread. Raises `ClientClosed`."""
        if not self._is_open:
            raise ClientClosed("the client is not open: use it as a context manager")
        self._check_process()
        try:
            self._thread.mailbox.post(call, argument)
        except RuntimeError as error:
            raise ClientClosed("the client is closed") from error

    def run(
        self,
        coroutine: Any,  # noqa: ANN401 - of any type
        outcome: Outcome = Outcome.NOT_APPLIED,
    ) -> "Future[Any]":
        """Run a coroutine in the core's thread. Raises `ClientClosed`.

        `outcome` is that of its error if the client is closed meanwhile.
        """
        try:
            self._check_process()
            return self._thread.run(self._guarded(coroutine, outcome))
        except ClientClosed:
            coroutine.close()
            raise

    async def _guarded(self, coroutine: Any, outcome: Outcome) -> Any:  # noqa: ANN401
        try:
            return await coroutine
        except asyncio.CancelledError as error:
            if self._is_closed:  # it was not the caller who has ended it
                task = asyncio.current_task()
                if task is not None:  # or it was, just before: then nobody asks for the error
                    task.add_done_callback(asyncio.Task.exception)
                raise ClientClosed("the client was closed", outcome=outcome) from error
            raise

    def _check_process(self) -> None:
        """Raises `ClientClosed` in a child: threads, and so the client, stay with the parent."""
        if self._forks != _forks.count:
            raise ClientClosed("the client was opened in another process: open one after the fork")

    def now_s(self) -> float:
        """The clock of deadlines and leases, in any thread."""
        return time.monotonic()

    # Asking

    def ask(self, request: Request, home: Home | None = None) -> None:
        """Have a request done, where its session is held or over the main connection.

        Raises `ClientClosed`.
        """
        if self._is_closed:
            raise ClientClosed("the client is closed")
        self.post(self._ask if home is None else home.ask, request)

    def _ask(self, request: Request) -> None:
        main = self._main
        if main is None:
            request.tell_closed()
        else:
            main.start()
            main.conversation.ask(request)

    def cancel(self, request: Request, home: Home | None = None) -> None:
        """Forget who waits for a request."""
        with contextlib.suppress(ClientClosed):
            self.post(self._cancel if home is None else home.cancel, request)

    def _cancel(self, request: Request) -> None:
        if self._main is not None:
            self._main.conversation.cancel(request)

    def give_back(self, held: Held, reason: str = "") -> None:
        """Store a session that nobody wants, as if it had not been handed out."""
        with contextlib.suppress(ClientClosed):
            self.post(lambda one: one.home.give_back(one, reason), held)

    def give_back_unowned(self, held: Held, reason: str = "") -> None:
        """The same, unless somebody works on it, or is about to."""
        with contextlib.suppress(ClientClosed):
            self.post(lambda one: one.home.give_back_unowned(one, reason), held)

    def leave(self, held: Held) -> None:
        """Take note that nobody works on a session any more."""
        with contextlib.suppress(ClientClosed):
            self.post(held.home.leave, held)

    def give_back_all(self, request: Request) -> None:
        """Store what came with the answer to a request that nobody waits for any more."""

        def give(request: Request) -> None:
            for held in request.let_go():
                held.home.give_back_unowned(held)

        with contextlib.suppress(ClientClosed):
            self.post(give, request)

    def taken(self, request: Request) -> None:
        """Take note that the caller works on what came with the answer to a `resume`."""
        with contextlib.suppress(ClientClosed):
            self.post(Request.let_go, request)

    def watch(self, held: Held, on_lost: Callable[[LeaseLost], None]) -> None:
        """Have somebody told when a session is lost; in the core's thread."""
        self.post(held.watch, on_lost)

    def unwatch(self, held: Held, on_lost: Callable[[LeaseLost], None]) -> None:
        """Tell somebody no more."""
        with contextlib.suppress(ClientClosed):
            self.post(held.unwatch, on_lost)

    def rest(self, ask: Ask, kind: type[T], timeout_s: float) -> "Future[T]":
        """Ask over HTTP."""
        outcome = Outcome.NOT_APPLIED if ask.method == "GET" else Outcome.UNKNOWN
        return self.run(self._needed_rest().call(ask, kind, timeout_s), outcome)

    def follow(self, query: dict[str, str], place: str | None) -> "Future[EventStream]":
        """Open a stream of events."""
        return self.run(self._needed_rest().follow(query, place))

    def _needed_rest(self) -> Rest:
        if self._rest is None or self._is_closed:
            raise ClientClosed("the client is not open: use it as a context manager")
        return self._rest

    def intake(
        self,
        on_session: Callable[[Held, SessionView], None],
        on_refused: Callable[[RitornelloError], None],
    ) -> Intake:
        """Open a connection of its own for a worker; both are called in the core's thread."""

        async def begin() -> Intake:
            link = self._new_link()
            link.conversation.on_session = on_session
            link.conversation.on_credit_refused(on_refused)
            link.start()
            return Intake(self, link)

        if not self.is_open:
            raise ClientClosed("the client is not open: use it as a context manager")
        found: Intake = self.run(begin()).result(_START_S)
        return found
