"""A server in memory, in a thread of its own, with a clock that can be moved."""

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ritornello.client import Client
from ritornello.core.thread import CoreThread
from ritornello.limits import Options
from ritornello.sync.client import Client as SyncClient
from ritornello.testing.faults import Faults
from ritornello.testing.found import load
from ritornello.testing.proxy import Proxy

T = TypeVar("T")

ADVANCE_MAX_S = 100 * 365 * 86_400.0
_NOT_STARTED = "the server is not started: use it as a context manager"
_TIMEOUT_S = 30.0  # for what takes a moment

# A test shall not wait long for a connection that it has broken itself.
_OPTIONS = Options(backoff_max_s=0.2)


class MemoryServer(Protocol):
    """What the server's distribution offers under the name `memory`; used on one loop."""

    @property
    def url(self) -> str: ...
    @property
    def now_ms(self) -> int: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def advance(self, seconds: float, *, heartbeats: bool = True) -> None: ...
    def freeze(self) -> None: ...
    def go_on(self) -> None: ...


class Clock:
    """The time of the cluster. It goes on as time does, but where it is moved or frozen.

    All of this may be called from any thread, in tests with an event loop, too: it takes a moment.
    """

    def __init__(
        self, server: MemoryServer, run: Callable[[Coroutine[Any, Any, Any]], Any]
    ) -> None:
        """Not for users: a server has its own."""
        self._server = server
        self._run = run

    @property
    def now_ms(self) -> int:
        """Milliseconds since 1970, as the cluster has it."""
        return self._server.now_ms

    def advance(self, seconds: float, *, heartbeats: bool = True) -> None:
        """Be so much later.

        Sessions fall due, leases end, what is kept for a time is forgotten. Consumers that are
        connected keep what they hold, as they would have shown signs of life; with `heartbeats`
        False they have not, and lose it. A session that is held over HTTP has no connection: it is
        lost when its lease is over. A theme's bound on time without progress counts in any case.

        When this returns, the server has done all that, and said it. A client's own thread hears of
        it a moment later; so wait for what you expect (an `acquire` with `wait`, an awaited task),
        and do not look at once whether it is there.
        """
        if not 0 <= seconds <= ADVANCE_MAX_S:
            raise ValueError(f"seconds is {seconds}; it is 0 to {ADVANCE_MAX_S:.0f} (100 years)")
        self._run(self._server.advance(seconds, heartbeats=heartbeats))

    def freeze(self) -> None:
        """Stand still but for `advance`, so that a test sees the very times that it expects."""
        self._run(_done(self._server.freeze))

    def go_on(self) -> None:
        """Go on by itself, from where it stands."""
        self._run(_done(self._server.go_on))


class LocalServer:
    """A server that keeps all in memory, with the front end and the rules of a real one.

        with LocalServer() as server:
            with server.sync_client() as client: ...

    Raises `ServerMissing` if the distribution `ritornello-server` is not installed.
    """

    def __init__(self) -> None:
        self._make: Callable[[], MemoryServer] = load("memory")
        self._thread: CoreThread | None = None
        self._server: MemoryServer | None = None
        self._proxy: Proxy | None = None
        self._clock: Clock | None = None
        self._is_stopped = False
        self.faults = Faults(self._cut)
        """What goes wrong between the server and its clients."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Serve, on a free port of this machine. Once."""
        if self._thread is not None:
            raise RuntimeError("a server is started once: make another one")
        self._thread = CoreThread("ritornello-testing")
        self._thread.start()
        try:
            self._run(self._start())
        except BaseException:
            self.stop()
            raise

    async def _start(self) -> None:
        self._server = server = self._make()
        await server.start()
        self._proxy = Proxy(server.url, self.faults)
        await self._proxy.start()
        self._clock = Clock(server, self._ask)

    def stop(self) -> None:
        """End it, with all that it had."""
        if self._thread is not None and not self._is_stopped:
            self._is_stopped = True
            try:
                self._run(self._stop())
            finally:
                self._thread.stop()

    async def _stop(self) -> None:
        if self._proxy is not None:
            await self._proxy.stop()
        if self._server is not None:
            await self._server.stop()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._thread is None:
            work.close()
            raise RuntimeError(_NOT_STARTED)
        return self._thread.run(work).result(_TIMEOUT_S)

    def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done while it serves. Raises RuntimeError if it does not any more."""
        if self._is_stopped:
            work.close()
            raise RuntimeError("the server is stopped")
        return self._run(work)

    def _cut(self) -> None:
        if self._proxy is not None and not self._is_stopped:
            self._run(self._proxy.cut())

    @property
    def url(self) -> str:
        """Where clients ask."""
        if self._proxy is None:
            raise RuntimeError(_NOT_STARTED)
        return self._proxy.url

    @property
    def clock(self) -> Clock:
        """The cluster's time."""
        if self._clock is None:
            raise RuntimeError(_NOT_STARTED)
        return self._clock

    def client(self, options: Options | None = None) -> Client:
        """A client of it, for programs with an event loop; to be used with `async with`."""
        return Client(self.url, options=options or _OPTIONS)

    def sync_client(self, options: Options | None = None) -> SyncClient:
        """A client of it, for programs without; to be used with `with`."""
        return SyncClient(self.url, options=options or _OPTIONS)


async def _done(call: Callable[[], object]) -> None:
    """Make a call in the server's own thread."""
    call()
