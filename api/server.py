"""One node with its front end as a process: start, serve, leave.

It leaves because it is asked to (SIGTERM, SIGINT), because its node cannot go on, or because its
error budget is spent; the exit status tells which. However it comes to that, the way out is the
same, and bounded:

1. say so: `/readyz` fails, who waits for sessions is told that there are none, consumers are told
   that the node is draining, so that they resume elsewhere;
2. give them `drain_ms` for it, and go on serving requests while some still come; then store what
   those hold who are still here, with the cause `shutdown`, which gives the attempt back;
3. listen no more, answer what is on its way, hand over leadership, write a last checkpoint, flush;
4. end what connections are left.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from typing import Any

import uvloop

from api.budget import ErrorBudget
from api.frontend import FrontEnd
from api.gateway import Gateway
from api.health import Health
from api.http.app import Http
from api.http.listening import Listener
from api.http.routes import ROUTES
from api.security import Authenticator, FileWatch, NoTokens, ServerTls, Tokens, Watched
from api.settings.build import ServerSettings
from api.statuses import ExitStatus, disk_status
from api.tracing import Tracing
from cluster import MisalignedError
from cluster.network.errors import NetworkError
from cluster.storage.errors import StorageError

_log = logging.getLogger(__name__)

_POLL_S = 0.02
# Signals that are nearer together are one: a parent that dies with several threads sends several.
_AGAIN_S = 0.5
_CANNOT_START = {
    ExitStatus.IN_USE: "the data directory is not free",
    ExitStatus.SETTINGS: "the data directory cannot be used",
    ExitStatus.DISK: "the disk does not hold a whole node",
}
_ALONE_S = 1.0  # without a majority
_QUIET_S = 1.0  # without a request: nobody, and no balancer, seems to count on this node any more
_SAID_TIMEOUT_S = 3.0  # for what was said before it came to that
_RELEASE_TIMEOUT_S = 3.0


def serve(settings: ServerSettings) -> int:
    """Serve until asked to leave; answers the exit status."""
    return uvloop.run(_serve(settings))


async def _serve(settings: ServerSettings) -> ExitStatus:
    server = Server(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.leave, ExitStatus.STOPPED, number.name)
    loop.add_signal_handler(signal.SIGHUP, server.reload)
    try:
        await server.start()
    except (StorageError, MisalignedError) as error:
        status = disk_status(error)
        _log.critical("%s: %s", _CANNOT_START[status], error)
        return status
    except (NetworkError, OSError) as error:
        _log.critical("it cannot listen: %s", error)
        return ExitStatus.LISTEN
    return await server.run()


class Server:
    """A node and its front end. Made and used on one loop; it is started once."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.gateway = Gateway(settings.node)
        self._leaving: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self._leaving_s = 0.0  # since when
        self._reached_s = 0.0  # when a majority was last connected, while it leaves
        self._is_hurried = asyncio.Event()
        self._http: Http | None = None
        self._listener: Listener | None = None
        self._watch: FileWatch | None = None
        self._front: FrontEnd | None = None

    @property
    def front(self) -> FrontEnd:
        """What requests are served with. Raises RuntimeError before the start."""
        if self._front is None:
            raise RuntimeError("the server is not started")
        return self._front

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        return [] if self._listener is None else self._listener.addresses

    async def start(self) -> None:
        """Recover, take part, listen. Leaves nothing open if it raises."""
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise

    async def _start(self) -> None:
        http, operation = self.settings.http, self.settings.operation
        loop = asyncio.get_running_loop()
        watched: list[Watched[Any]] = []
        tokens: Authenticator = NoTokens()
        tls: ServerTls | None = None
        if http.tokens_file is not None:
            tokens = found = await loop.run_in_executor(None, Tokens, http.tokens_file)
            watched.append(found.files)
        if http.tls_certificate_file is not None and http.tls_key_file is not None:
            files = http.tls_certificate_file, http.tls_key_file
            tls = await loop.run_in_executor(None, ServerTls, *files)
            watched.append(tls.files)
        if watched:
            self._watch = FileWatch(*watched)
            await self._watch.start()
        await self.gateway.start()
        if self._leaving.done():
            return  # it was told to leave in the meantime, and has nobody to serve
        budget = ErrorBudget(
            failures=operation.error_budget_failures,
            window_s=operation.error_budget_ms / 1000,
            time=time.monotonic,
            is_node_ready=lambda: self.gateway.is_ready,
            on_spent=lambda: self.leave(ExitStatus.BUDGET_SPENT, "its error budget is spent"),
        )
        self._front = FrontEnd(
            self.gateway,
            self.settings.node.node_id,
            http,
            budget=budget,
            health=Health(self.gateway, lag_max=operation.ready_lag_entries),
            tokens=tokens,
            events_max=operation.events_history,
        )
        metrics = self._front.metrics
        if isinstance(tokens, Tokens):
            metrics.files["tokens"] = tokens.files
        if tls is not None:
            metrics.files["tls"] = tls.files
        if operation.tracing == "otlp":
            endpoint, node_id = operation.tracing_endpoint, self.settings.node.node_id
            self._front.tracing = Tracing.to_otlp(endpoint, node_id)
        meter = metrics.count_routes((route.method, route.path) for route in ROUTES)
        self._http = serving = Http(self._front, meter=meter, tracer=self._front.tracing)
        metrics.connection_count = lambda: serving.connections
        metrics.loop_lag.start()
        self._listener = serving.listener(None if tls is None else tls.context)
        await self._listener.start(http.bind.host, http.bind.port)
        for host, port in self.addresses:
            scheme = "http" if tls is None else "https"
            written = f"[{host}]" if ":" in host else host
            _log.info("%s serves %s://%s:%d", self.settings.node.node_id, scheme, written, port)

    def reload(self) -> None:
        """Look at tokens and certificates now."""
        if self._watch is not None:
            self._watch.reload()

    def leave(self, status: ExitStatus, why: str) -> None:
        """Begin to leave; asked again, leave faster."""
        if not self._leaving.done():
            _log.info("%s leaves: %s", self.settings.node.node_id, why)
            self._leaving.set_result(status)
            self._leaving_s = time.monotonic()
        elif time.monotonic() - self._leaving_s > _AGAIN_S:
            self._is_hurried.set()

    async def run(self) -> ExitStatus:
        """Serve until it has left."""
        failing = asyncio.ensure_future(self._leave_when_it_fails())
        status = await self._leaving
        try:
            if self._front is not None:
                await self._drain(is_able=status is not ExitStatus.NODE_FAILED)
        finally:
            await self._close()
        if failing.done() and status is ExitStatus.STOPPED:
            status = ExitStatus.NODE_FAILED  # on the way out
        failing.cancel()
        _log.info("%s has left", self.settings.node.node_id)
        return status

    async def _leave_when_it_fails(self) -> None:
        error = await self.gateway.failure()
        self.leave(ExitStatus.NODE_FAILED, f"its node cannot go on: {error}")

    async def _drain(self, *, is_able: bool) -> None:
        front, drain_ms = self.front, self.settings.http.drain_ms
        front.health.is_draining = True
        front.waiters.stop()
        connections = list(front.connections)
        for one in connections:
            one.drain(drain_ms)
        if is_able:
            await self._until(lambda: not front.connections and self._is_quiet, drain_ms / 1000)
        for one in list(front.connections):
            one.shut_down()
        self._reached_s = time.monotonic()
        if not is_able:
            return
        await self._until(self._is_released, _SAID_TIMEOUT_S)
        front.operators.hurry()
        await self._until(self._is_released, _RELEASE_TIMEOUT_S)

    def _is_released(self) -> bool:
        """Whether what must be stored is, or cannot be: whoever stops last has nobody to wait for.

        It counts as alone when it has been so for a while.
        """
        now_s = time.monotonic()
        if self.gateway.reaches_majority:
            self._reached_s = now_s
        return not self.front.operators.releasing or now_s > self._reached_s + _ALONE_S

    @property
    def _is_quiet(self) -> bool:
        return self._http is None or self._http.quiet_s > _QUIET_S

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not holds() and time.monotonic() < deadline_s and not self._is_hurried.is_set():  # noqa: ASYNC110 - rare, and short
            await asyncio.sleep(_POLL_S)

    async def _close(self) -> None:
        if self._listener is not None:
            await self._listener.stop()
        await self.gateway.stop()  # after it all that was asked has its answer, which may leave yet
        if self._listener is not None:
            await self._listener.close()
        if self._front is not None:
            self._front.metrics.loop_lag.stop()
            if self._front.tracing is not None:
                await self._front.tracing.stop()
        if self._watch is not None:
            await self._watch.stop()
