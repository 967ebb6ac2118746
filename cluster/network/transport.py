"""The way between the nodes of a cluster: opaque payloads, in order, from authenticated peers.

- There is one connection for each pair of nodes, for both directions. The node with the smaller id
  dials, and dials again whenever it is lost, with exponential backoff and full jitter; the name is
  resolved anew each time.
- A newer connection of an authenticated peer replaces the older one: it has come back before this
  node noticed that it was away. A hello of an earlier incarnation than one seen is refused, and
  told which that was: a node that lost its disk may have a clock that is behind.
- Payloads of one connection arrive in order and without holes. What was on its way when a
  connection ended is lost, or was delivered, and nobody knows which. Nothing that arrives on a
  connection that was replaced or closed is delivered.
- `on_disconnected` comes once for each `on_connected`, and before the next one. It comes a turn of
  the loop after the end, never from within `send`.
- Everything is bounded (`TransportSettings`). Whatever a stranger sends ends its connection, a
  counter and a line in the log, at most one every few seconds for each cause.
- How nodes know each other, and what is protected: `Security` and `cluster.network.tls`.

All of it runs on one loop, and none of it may be called from another thread.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import math
import random
import socket
import time
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from cluster.network.connection import Connection, Ending
from cluster.network.errors import (
    BindError,
    MalformedPayloadError,
    Reason,
    Refused,
    SecurityError,
    TransportSettingsError,
)
from cluster.network.handshake import Hello, Role
from cluster.network.settings import (
    Address,
    Counters,
    Identity,
    Security,
    TransportSettings,
    check_node_id,
)
from cluster.network.tls import TlsSource, is_for, names_of

_log = logging.getLogger(__name__)

_AddressInfo = tuple[Any, Any, int, str, Any]  # of getaddrinfo

_ACCEPT_PAUSE_S = 0.1  # when there are no descriptors: others may be closed meanwhile
_QUIET = frozenset({Ending.LOST, Ending.REPLACED})
# A host has no such addresses: not a reason to do without those that it has.
_ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class _Stranger(NamedTuple):
    """Who has connected and not proved who it is."""

    socket: socket.socket
    connection: Connection


class Listener(Protocol):
    """Who uses a transport. Called on its loop.

    None of these may raise, but for what is said below; if one does, that ends the connection.
    """

    def on_connected(self, peer: str, incarnation: int) -> None:
        """A peer can be sent to, and will be heard."""

    def on_disconnected(self, peer: str) -> None:
        """It cannot, any more; what was sent last may be lost."""

    def on_payload(self, peer: str, payload: memoryview) -> None:
        """A payload, in memory that is used again: copy what is to be kept.

        Raises `MalformedPayloadError` of what no peer should send.
        """


class Transport:
    """One node's connections to its peers. It can be started once."""

    def __init__(
        self,
        identity: Identity,
        bind: Address,
        peers: Mapping[str, Address],
        security: Security,
        listener: Listener,
        settings: TransportSettings | None = None,
    ) -> None:
        """Raise `TransportSettingsError` or `SecurityError` of what will not do."""
        for peer in peers:
            check_node_id(peer)
        if identity.node_id in peers:
            raise TransportSettingsError(f"{identity.node_id!a} is no peer of itself")
        _check_security(security, [bind, *peers.values()])
        self.identity = identity
        self.secret = security.secret
        self.settings = settings or TransportSettings()
        self.counters = Counters()
        self.addresses: list[Address] = []  # where it listens: what port 0 has become
        self.loop: asyncio.AbstractEventLoop  # from the start on
        self._bind = bind
        self._tls = TlsSource(security.tls, self.counters) if security.tls else None
        self._listener = listener
        self._links = {peer: _Link(peer, address) for peer, address in peers.items()}
        self._has_started = False
        self._is_stopping = False
        self._sockets: list[socket.socket] = []
        self._connections: set[Connection] = set()  # also those that are only being closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[None], Connection] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tick_s = self.settings.keepalive_ms / 1000
        self._silence_ticks = math.ceil(
            self.settings.silence_timeout_ms / self.settings.keepalive_ms
        )
        self._tick_due_s = 0.0
        self._was_late = False
        self._lines = _Lines(self.settings.log_interval_ms / 1000)

    # For its user

    async def start(self) -> None:
        """Listen, and begin to dial. Raises `BindError` or `TlsFilesError`, and is over then."""
        if self._has_started:
            raise RuntimeError("a transport is started once")
        self._has_started = True
        self.loop = asyncio.get_running_loop()
        try:
            if self._tls is not None:
                await self._tls.contexts()
                self._spawn(self._watch_tls_files(self._tls))
            self._sockets = await self._listen()
        except BaseException:
            await self.stop()
            raise
        if self._is_stopping:  # meanwhile
            for one in self._sockets:
                one.close()
            return
        for one in self._sockets:
            self.addresses.append(Address(*one.getsockname()[:2]))
            self._begin_to_accept(one)
        for link in self._links.values():
            if self._dials(link.peer):
                self._spawn(self._keep_dialing(link))
        self._tick_due_s = self.loop.time() + self._tick_s
        self._timer = self.loop.call_at(self._tick_due_s, self._tick)

    async def stop(self) -> None:
        """Send what was given to `send`, as far as it goes quickly, and end all connections."""
        if self._is_stopping or not self._has_started:
            return
        self._is_stopping = True
        if self._timer is not None:
            self._timer.cancel()
        for one in self._sockets:
            self.loop.remove_reader(one)
            one.close()
        await asyncio.sleep(0)  # a task that has never run could not close what it was given
        lookups = [link.lookup for link in self._links.values() if link.lookup is not None]
        tasks = [*self._tasks, *lookups]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in self._links.values():
            if link.connection is not None:
                link.connection.finish()
            self._settle(link)
        gone = [one.has_gone for one in self._connections]
        if gone:
            await asyncio.wait(gone, timeout=self.settings.close_timeout_ms / 1000)
        for connection in list(self._connections):
            if connection.transport is not None:
                connection.transport.abort()
        gone = [one.has_gone for one in self._connections]
        if gone:
            await asyncio.wait(gone, timeout=1)
        if self._tls is not None:
            self._tls.close()

    def send(self, peer: str, payload: bytes) -> bool:
        """Send a payload behind all before it. False: it does not go out.

        That is so when the peer is not connected, or when too much waits for it already, which ends
        the connection. True promises nothing, but that what follows will not arrive without it.
        Raises `PayloadSizeError`, and `KeyError` of whom was never a peer.
        """
        connection = self._links[peer].connection
        return connection is not None and connection.send(payload)

    def buffered_bytes(self, peer: str) -> int:
        """What was sent and has not left."""
        connection = self._links[peer].connection
        return 0 if connection is None else connection.buffered_bytes

    def is_connected(self, peer: str) -> bool:
        """Whether a peer can be sent to."""
        return self._links[peer].connection is not None

    # For connections

    def vet(self, connection: Connection, hello: Hello) -> None:
        node_id = hello.node_id
        link = self._links.get(node_id)
        if connection.dialed not in {None, node_id}:
            raise Refused(Reason.UNKNOWN_NODE, f"it is {node_id!a}, not {connection.dialed!a}")
        if link is None:
            raise Refused(Reason.UNKNOWN_NODE, f"{node_id!a} is not a peer")
        if connection.role is Role.ACCEPTOR and self._dials(node_id):
            raise Refused(Reason.DIRECTION, f"{node_id!a} waits to be dialed by this node")
        if self._tls is not None and connection.transport is not None:
            certificate = connection.transport.get_extra_info("peercert") or {}
            if not is_for(certificate, node_id, link.address.host):
                raise Refused(
                    Reason.CERTIFICATE,
                    f"{node_id!a} shows a certificate for {names_of(certificate)}",
                )
        if connection.role is Role.DIALER:
            # Once more after the proofs; but by then the other side takes what comes for payloads,
            # and would never learn why it is refused.
            self.admit(hello)

    def admit(self, hello: Hello) -> None:
        seen = self._links[hello.node_id].incarnation
        if hello.incarnation < seen:
            raise Refused(
                Reason.INCARNATION,
                f"{hello.node_id!a} in incarnation {hello.incarnation}, {seen} was here",
                seen,
            )

    def opened(self, connection: Connection) -> None:
        link = self._links[connection.peer]
        link.incarnation = connection.incarnation
        self.counters.connections += 1
        if link.connection is not None:
            link.connection.drop(Ending.REPLACED, "by a newer connection")
        self._settle(link)
        link.connection = link.announced = connection
        self._lines.log(
            logging.INFO,
            (connection.peer, "connected"),
            f"{connection.label}: connected, incarnation {connection.incarnation}",
        )
        try:
            self._listener.on_connected(link.peer, connection.incarnation)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends here
            self._listener_failed(link.peer, error)
            connection.drop(Ending.LISTENER)

    def received(self, connection: Connection, payload: memoryview) -> None:
        try:
            self._listener.on_payload(connection.peer, payload)
            # Whoever has kept it is told so, instead of finding other bytes there some day.
            payload.release()
        except MalformedPayloadError as error:
            connection.drop(Ending.MALFORMED, str(error))
        except Exception as error:  # noqa: BLE001 - see above
            self._listener_failed(connection.peer, error)
            connection.drop(Ending.LISTENER)

    def closed(self, connection: Connection, ending: Ending, detail: str) -> None:
        link = self._links.get(connection.peer)
        if link is None:
            self.counters.unauthenticated += 1
        elif link.connection is connection:
            link.connection = None
            self.loop.call_soon(self._settle, link)
        if ending is Ending.STOPPED:
            return
        what = ending.value if connection.refused is None else f"refused_{connection.refused}"
        if ending is not Ending.LISTENER:
            setattr(self.counters, what, getattr(self.counters, what) + 1)
        self._lines.log(
            logging.INFO if ending in _QUIET else logging.WARNING,
            (connection.peer or connection.dialed, what),
            f"{connection.label}: {what}: {detail}",
        )

    def _settle(self, link: "_Link") -> None:
        """Tell of the end of a connection, if that was not done."""
        if link.announced is None or not link.announced.is_closed:
            return
        link.announced = None
        try:
            self._listener.on_disconnected(link.peer)
        except Exception as error:  # noqa: BLE001 - see above
            self._listener_failed(link.peer, error)

    def _listener_failed(self, peer: str, error: Exception) -> None:
        self.counters.listener_errors += 1
        self._lines.log(
            logging.ERROR, (peer, "listener"), f"the listener failed, about {peer}", error
        )

    # Time

    def _tick(self) -> None:
        now_s = self.loop.time()
        # A peer is silent if nothing comes while this loop listens: time is counted in ticks, of
        # which a loop that stood still has none. The first one after that does not count either,
        # because what has arrived meanwhile may not have been read.
        is_late = now_s - self._tick_due_s > self._tick_s
        counts = not is_late or self._was_late
        if is_late and not self._was_late:
            self.counters.stalls += 1
        self._was_late = is_late
        self._tick_due_s = now_s + self._tick_s
        self._timer = self.loop.call_at(self._tick_due_s, self._tick)
        for link in self._links.values():
            if link.connection is not None:
                link.connection.tick(self._silence_ticks, counts=counts)

    def _spawn(self, work: Coroutine[Any, Any, None], stranger: _Stranger | None = None) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if stranger is not None:
            self._strangers[task] = stranger.connection
            task.add_done_callback(partial(self._welcomed, stranger))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.counters.internal_errors += 1
            _log.error("a task of the transport failed", exc_info=error)

    async def _watch_tls_files(self, tls: TlsSource) -> None:
        while True:
            await asyncio.sleep(self.settings.tls_check_ms / 1000)
            await tls.contexts()

    # Accepting

    async def _listen(self) -> list[socket.socket]:
        host, port = self._bind
        sockets: list[socket.socket] = []
        absent: OSError | None = None
        try:
            infos = await self.loop.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, kind, protocol, _, address in dict.fromkeys(infos):
                # All at the same port, if it was left to the first to choose one.
                chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
                try:
                    sockets.append(
                        _bound(family, kind, protocol, (address[0], chosen, *address[2:]))
                    )
                    sockets[-1].listen(self.settings.backlog_connections)
                except OSError as error:
                    if error.errno not in _ABSENT:
                        raise
                    absent = error
            if not sockets:
                raise absent or OSError(errno.EADDRNOTAVAIL, "no address")
        except (OSError, UnicodeError) as error:
            for one in sockets:
                one.close()
            raise BindError(host, port, error) from error
        return sockets

    def _begin_to_accept(self, listening: socket.socket) -> None:
        if not self._is_stopping:
            self.loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        # One at a time: if there are more the loop comes back, and does other things in between.
        try:
            one, address = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # it was there, and has gone
        except OSError as error:
            self.counters.accept_failures += 1
            self._lines.log(logging.ERROR, ("accept", error.errno), f"cannot accept: {error}")
            self.loop.remove_reader(listening)
            self.loop.call_later(_ACCEPT_PAUSE_S, self._begin_to_accept, listening)
            return
        self.counters.accepted += 1
        if len(self._strangers) >= self.settings.unauthenticated_connections:
            self._crowd_out()
        connection = self._connection(Role.ACCEPTOR, Address(*address[:2]))
        self._spawn(self._welcome(one, connection), _Stranger(one, connection))

    def _crowd_out(self) -> None:
        """End one of the strangers in favour of the next."""
        waiting = [one for one in self._strangers.items() if not one[1].is_open]
        if not waiting:
            return  # their tasks are about to end
        # Of the host that has most, which so ends its own; any of these, so that it helps nobody
        # to be faster than a node's handshake.
        hosts = Counter(stranger.address.host for _, stranger in waiting)
        most = max(hosts.values())
        crowd = [one for one in waiting if hosts[one[1].address.host] == most]
        task, stranger = random.choice(crowd)  # noqa: S311 - nothing tells how it has chosen
        del self._strangers[task]
        stranger.drop(Ending.CROWDED, "others came after it")
        task.cancel()

    async def _welcome(self, one: socket.socket, connection: Connection) -> None:
        with contextlib.suppress(OSError):  # was dealt with
            await self._shake_hands(one, connection, "")

    def _welcomed(self, stranger: _Stranger, task: asyncio.Task[None]) -> None:
        self._strangers.pop(task, None)
        one, connection = stranger
        if connection.transport is None and not connection.has_gone.done():
            connection.has_gone.set_result(None)  # it was crowded out before it began
            one.close()

    def _connection(self, role: Role, address: Address, dialed: str | None = None) -> Connection:
        connection = Connection(self, role, address, is_tls=self._tls is not None, dialed=dialed)
        self._connections.add(connection)
        connection.has_gone.add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    async def _shake_hands(self, one: socket.socket, connection: Connection, host: str) -> None:
        """Make a connection of a socket, and see it through the handshake. Raises `OSError`."""
        is_attached = False
        try:
            async with asyncio.timeout(self.settings.handshake_timeout_ms / 1000):
                await self._attach(one, connection, host)
                is_attached = True
                await asyncio.shield(connection.has_opened)
        except TimeoutError:
            connection.drop(Ending.TIMED_OUT, "the handshake took too long")
            raise
        except OSError as error:
            connection.drop(Ending.TLS if self._tls else Ending.LOST, str(error))
            raise
        except BaseException:
            if not connection.is_open:  # was this task's; an open one is the link's
                connection.drop(Ending.STOPPED)
            raise
        finally:
            if not is_attached and not connection.has_gone.done():
                # The loop has closed the socket; not every loop says so to the connection.
                connection.has_gone.set_result(None)

    async def _attach(self, one: socket.socket, connection: Connection, host: str) -> None:
        try:
            one.settimeout(0)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            contexts = await self._tls.contexts() if self._tls else None
        except BaseException:
            one.close()
            raise
        tls_close_s = max(0.01, self.settings.close_timeout_ms / 1000) if contexts else None
        if connection.role is Role.ACCEPTOR:
            await self.loop.connect_accepted_socket(
                lambda: connection,
                one,
                ssl=contexts.server if contexts else None,
                ssl_shutdown_timeout=tls_close_s,
            )
        else:
            await self.loop.create_connection(
                lambda: connection,
                sock=one,
                ssl=contexts.client if contexts else None,
                server_hostname=host if contexts else None,
                ssl_shutdown_timeout=tls_close_s,
            )

    # Dialing

    def _dials(self, peer: str) -> bool:
        return self.identity.node_id < peer

    async def _keep_dialing(self, link: "_Link") -> None:
        settings = self.settings
        failures = 0
        while True:
            try:
                lived_s = await self._dial(link)
            except OSError as error:
                self.counters.dial_failures += 1
                lived_s = 0.0
                self._lines.log(
                    logging.WARNING,
                    (link.peer, "dial"),
                    f"cannot reach {link.peer} at {link.address}: {error}",
                )
            except Exception as error:  # noqa: BLE001 - a defect must not cost a peer for ever
                self.counters.internal_errors += 1
                lived_s = 0.0
                self._lines.log(logging.ERROR, (link.peer, "defect"), "dialing failed", error)
            failures = 0 if lived_s * 1000 >= settings.steady_after_ms else failures + 1
            # Full jitter: nodes that have lost each other together do not come back together.
            bound_ms = settings.backoff_min_ms * 2.0 ** min(max(failures - 1, 0), 32)
            wait_ms = random.uniform(0, min(settings.backoff_max_ms, bound_ms))  # noqa: S311
            await asyncio.sleep(wait_ms / 1000)

    async def _dial(self, link: "_Link") -> float:
        """Connect to the first address that is the peer's; say how long it lasted, in seconds."""
        problem: OSError = OSError(errno.EADDRNOTAVAIL, "the name has no address")
        for family, kind, protocol, _, address in await self._resolve(link):
            self.counters.dials += 1
            try:
                one = await self._reach(family, kind, protocol, address)
                connection = self._connection(Role.DIALER, Address(*address[:2]), link.peer)
                await self._shake_hands(one, connection, link.address.host)
            except OSError as error:
                problem = error
                continue
            if not connection.has_opened.result():
                problem = OSError(errno.ECONNABORTED, "the handshake failed")
                continue
            began_s = self.loop.time()
            await asyncio.shield(connection.has_closed)
            return self.loop.time() - began_s
        raise problem

    async def _reach(
        self, family: int, kind: int, protocol: int, address: tuple[Any, ...]
    ) -> socket.socket:
        one = socket.socket(family, kind, protocol)
        try:
            one.settimeout(0)
            async with asyncio.timeout(self.settings.connect_timeout_ms / 1000):
                await self.loop.sock_connect(one, address)
        except BaseException:
            one.close()
            raise
        return one

    async def _resolve(self, link: "_Link") -> list[_AddressInfo]:
        # One look-up at a time: one that is given up still occupies a thread until the resolver has
        # lost patience, too. So one that is late serves the next attempt.
        if link.lookup is None:
            link.lookup = self.loop.create_task(
                self.loop.getaddrinfo(*link.address, type=socket.SOCK_STREAM)
            )
        timeout_s = self.settings.connect_timeout_ms / 1000
        done, _ = await asyncio.wait([link.lookup], timeout=timeout_s)
        if not done:
            raise OSError(errno.ETIMEDOUT, "its name is not resolved yet")
        lookup, link.lookup = link.lookup, None
        try:
            return lookup.result()[: self.settings.addresses]
        except UnicodeError as error:
            raise OSError(errno.EINVAL, "its name is none") from error


class _Link:
    """What is known of a peer."""

    __slots__ = ("address", "announced", "connection", "incarnation", "lookup", "peer")

    def __init__(self, peer: str, address: Address) -> None:
        self.peer = peer
        self.address = address
        self.incarnation = 0  # the highest that was seen
        self.connection: Connection | None = None  # the one that is open
        self.announced: Connection | None = None  # the one that the listener believes in
        self.lookup: asyncio.Task[list[_AddressInfo]] | None = None


class _Lines:
    """Lines of the log, at most one in a while for each cause."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        # cause -> when the next one may be written, and how many were not. Causes are few: known
        # peers, or none, and why their connections end.
        self._held: dict[tuple[object, ...], tuple[float, int]] = {}

    def log(
        self, level: int, cause: tuple[object, ...], text: str, error: Exception | None = None
    ) -> None:
        now_s = time.monotonic()
        next_s, held = self._held.get(cause, (0.0, 0))
        if now_s < next_s:
            self._held[cause] = (next_s, held + 1)
            return
        self._held[cause] = (now_s + self._interval_s, 0)
        more = f" ({held} more like it since the last line)" if held else ""
        _log.log(level, "%s%s", text, more, exc_info=error)


def _bound(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    """A socket that has the address."""
    one = socket.socket(family, kind, protocol)
    try:
        one.settimeout(0)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except BaseException:
        one.close()
        raise
    return one


def _check_security(security: Security, addresses: Iterable[Address]) -> None:
    if security.tls is not None or security.secret is not None or security.insecure:
        return
    for address in addresses:
        if not _is_loopback(address.host):
            raise SecurityError(
                f"{address} is not a loopback address, and there is neither TLS nor a secret: "
                "set one of them, or insecure if anybody may join the cluster and change its data"
            )


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
