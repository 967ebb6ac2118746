"""The client, for programs without an event loop."""

import builtins
import contextlib
import ssl
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar, Unpack, overload

from ritornello import fields as say
from ritornello import rest
from ritornello.calls import (
    Calls,
    Operations,
    created_of,
    resumed,
    session_of,
    stored_of,
    view_of_new,
)
from ritornello.core.core import Core, Token
from ritornello.core.frames import Message
from ritornello.core.requests import Request
from ritornello.core.rest import Ask
from ritornello.errors import ClientClosed, RitornelloError
from ritornello.fields import Data, OnConflict, Seconds, Target
from ritornello.limits import Options
from ritornello.models import (
    ClusterView,
    Created,
    Event,
    Phase,
    PolicyChanges,
    SessionPage,
    SessionView,
    Stored,
    ThemePage,
    ThemeView,
    Trace,
    Transferred,
)
from ritornello.sync.front import ask, wait
from ritornello.sync.session import Session

T = TypeVar("T")
G = TypeVar("G")

DEFAULT_URL = "http://127.0.0.1:7601"


class Client:
    """A consumer of sessions, connected to whichever node there is.

    It connects when there is something to ask, and again when a connection is lost; what it holds
    goes on. Every call takes a `timeout` in seconds for all that is tried in it, and raises
    `RitornelloError`; for arguments that make no sense ValueError or TypeError.
    """

    def __init__(
        self,
        urls: str | Iterable[str] = DEFAULT_URL,
        *,
        token: Token = None,
        tls: ssl.SSLContext | None = None,
        options: Options | None = None,
    ) -> None:
        """`urls` are addresses of nodes: the more of them, the better one is replaced.

        `token` is a bearer token, or a function that answers the one to use now. With `tls` nodes
        are checked against other certificates than those that the machine trusts, or are shown one
        of the client's own.
        """
        self._core = Core(urls, token, options or Options(), tls)
        self._calls = Calls(self._core)

    def __enter__(self) -> Self:
        self._core.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Have what was asked answered, store what is held, and let go of the connection."""
        if not self._core.is_open:
            return
        try:
            self._core.close().result()
        finally:
            self._core.stop()

    # Sessions that are begun, or handed out

    @overload
    def new(
        self,
        theme: int,
        data: Data = b"",
        *,
        key: str | None = None,
        priority: int | None = None,
        after: None = None,
        trace: Trace | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> Session: ...

    @overload
    def new(
        self,
        theme: int,
        data: Data = b"",
        *,
        after: Seconds,
        key: str | None = None,
        priority: int | None = None,
        on_conflict: OnConflict = "reject",
        trace: Trace | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> Created: ...

    def new(
        self,
        theme: int,
        data: Data = b"",
        *,
        key: str | None = None,
        priority: int | None = None,
        after: Seconds | None = None,
        on_conflict: OnConflict = "reject",
        trace: Trace | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> Session | Created:
        """Begin a session: yours, or with `after` stored, due after so many seconds.

        `data` is its first chunk, if it is not empty. Sessions with a lower `priority` (0 to 65535,
        128 if nothing is said) are handed out first. `on_conflict` says what to do if a session of
        the theme holds the key: `reject` (`KeyConflict`), `return_existing`, or `bring_forward`:
        append the data to it, and make it due now. The session keeps the `trace`, or what
        `Options.trace` answers.

        Sent again with the same `idempotency_key`, within 24 hours, it is done once.
        """
        fields = self._calls.new(
            theme,
            data,
            key=key,
            priority=priority,
            after=after,
            on_conflict=on_conflict,
            trace=trace,
        )
        request = self._calls.once(fields, idempotency_key, timeout)
        if after is not None:
            return created_of(self._ask(request))

        def begun() -> Session:
            held, _ = request.given[0]
            return Session(self._core, held, view_of_new(held, fields))

        request.gives = True
        return self._given(request, begun)

    def _given(self, request: Request, make: Callable[[], G]) -> G:
        """Ask for sessions, and make something of them. What comes in vain is given back."""
        try:
            self._ask(request)
            return make()
        except BaseException:
            self._core.give_back_all(request)
            raise

    def acquire(
        self,
        themes: int | Iterable[int],
        *,
        wait: Seconds = 0,
        timeout: Seconds | None = None,
    ) -> Session | None:
        """Work on a session that is due. None if there is none within `wait` seconds."""
        found = self.acquire_many(themes, 1, wait=wait, timeout=timeout)
        return found[0] if found else None

    def acquire_many(
        self,
        themes: int | Iterable[int],
        count: int,
        *,
        wait: Seconds = 0,
        timeout: Seconds | None = None,
    ) -> list[Session]:
        """Up to `count` sessions that are due; none if there is none within `wait` seconds."""
        return self._acquired(self._calls.acquire(themes, count, wait, timeout))

    def _acquired(self, request: Request) -> list[Session]:
        def acquired() -> list[Session]:
            given = request.given
            return [Session(self._core, held, view) for held, view in given if view is not None]

        return self._given(request, acquired)

    def take(self, target: Target, *, timeout: Seconds | None = None) -> Session:
        """Work on one session, due or not, unless it is active or parked."""
        (session,) = self._acquired(self._calls.take(target, timeout))
        return session

    def resume(self, id: str, epoch: int, *, timeout: Seconds | None = None) -> Session:
        """Go on with a session that is yours by its epoch: one of an earlier process, say."""
        request = self._calls.resume(id, epoch, timeout)

        def read() -> Session:
            held = resumed(request)
            reading = self._calls.get(id, stale=False, timeout=timeout)
            reading.deadline_s = request.deadline_s
            session = Session(self._core, held, session_of(self._ask(reading)))
            self._core.taken(request)
            return session

        return self._given(request, read)

    # Sessions that nobody holds, or whoever may

    def get(
        self,
        target: Target,
        *,
        stale: bool = False,
        timeout: Seconds | None = None,
    ) -> SessionView:
        """Read a session. `stale` is quicker, and may not see what was just done."""
        return session_of(self._ask(self._calls.get(target, stale=stale, timeout=timeout)))

    def append(
        self,
        target: Target,
        data: Data,
        *,
        if_revision: int | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> int:
        """Add a chunk to a session that nobody holds. Answers the new revision."""
        fields = say.change("append", target, data, if_revision)
        return self._ask(self._calls.once(fields, idempotency_key, timeout)).revision

    def replace(
        self,
        target: Target,
        data: Data,
        *,
        if_revision: int | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> int:
        """Put one chunk in place of all, of a session that nobody holds."""
        fields = say.change("replace", target, data, if_revision)
        return self._ask(self._calls.once(fields, idempotency_key, timeout)).revision

    def remove(
        self,
        target: Target,
        *,
        if_revision: int | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        """Remove a session that nobody holds."""
        fields = say.named("remove", target, if_revision)
        self._ask(self._calls.once(fields, idempotency_key, timeout))

    def store(
        self,
        target: Target,
        after: Seconds = 0,
        *,
        reason: str = "",
        if_revision: int | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> Stored:
        """Change when a session that nobody holds is due."""
        fields = say.store(say.named("store", target, if_revision), after, "requested", reason)
        return stored_of(self._ask(self._calls.once(fields, idempotency_key, timeout)))

    def unpark(
        self,
        target: Target,
        *,
        if_revision: int | None = None,
        idempotency_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> Stored:
        """Make a parked session due now, with no attempts counted."""
        fields = say.named("unpark", target, if_revision)
        return stored_of(self._ask(self._calls.once(fields, idempotency_key, timeout)))

    def txn(self, *, idempotency_key: str | None = None, timeout: Seconds | None = None) -> "Txn":
        """Several operations, all done or none: what is said in the block, at its end."""
        return Txn(self, self._calls, idempotency_key, timeout)

    def list(
        self,
        theme: int,
        *,
        phase: Phase | None = None,
        key_prefix: str = "",
        stale: bool = False,
        timeout: Seconds | None = None,
    ) -> Iterator[SessionView]:
        """The sessions of a theme, without their data, in the order of their ids.

        Read page by page: each session that stays is seen once.
        """
        cursor: str | None = None
        while True:
            what = rest.sessions(theme, phase, key_prefix, cursor, stale=stale)
            page = self._rest(what, SessionPage, timeout)
            yield from page.sessions
            cursor = page.cursor
            if cursor is None:
                return

    # Themes

    def themes(self, *, timeout: Seconds | None = None) -> builtins.list[ThemeView]:
        """All themes that have sessions, or a policy of their own."""
        found: builtins.list[ThemeView] = []
        cursor: str | None = None
        while True:
            page = self._rest(rest.themes(cursor), ThemePage, timeout)
            found += page.themes
            cursor = page.cursor
            if cursor is None:
                return found

    def theme(self, theme: int, *, timeout: Seconds | None = None) -> ThemeView:
        """A theme: how many sessions are where, and its policy."""
        return self._rest(rest.theme(theme), ThemeView, timeout)

    def set_policy(
        self,
        theme: int,
        *,
        timeout: Seconds | None = None,
        **settings: Unpack[PolicyChanges],
    ) -> ThemeView:
        """Change some settings of a theme's policy, for all its sessions."""
        return self._rest(rest.policy(theme, settings), ThemeView, timeout)

    def pause_theme(self, theme: int, *, timeout: Seconds | None = None) -> ThemeView:
        """Hand out no session of a theme, until it is resumed."""
        return self._rest(rest.pause(theme), ThemeView, timeout)

    def resume_theme(self, theme: int, *, timeout: Seconds | None = None) -> ThemeView:
        """Hand out sessions of a theme again."""
        return self._rest(rest.go_on(theme), ThemeView, timeout)

    # The cluster

    def events(
        self,
        themes: int | Iterable[int] | None = None,
        *,
        kinds: Iterable[str] = (),
        after: str | None = None,
    ) -> Iterator[Event]:
        """What happens to sessions and themes, as it happens; without end.

        The first node has to answer within `Options.timeout_s`. After that it goes on at any node,
        however long that takes.

        `after` is the `place` of the last event that was seen, or an index of the log. An event of
        the kind `resync` says that some are missing: look at everything anew.
        """
        query = rest.events_query(themes, kinds)
        stream = wait(self._core.follow(query, after))
        try:
            while True:
                yield from wait(self._core.run(stream.read()))
        finally:
            with contextlib.suppress(ClientClosed):
                self._core.post(lambda _: stream.close(), None)

    def cluster(self, *, timeout: Seconds | None = None) -> ClusterView:
        """The cluster, as the node that answers sees it."""
        return self._rest(rest.CLUSTER, ClusterView, timeout)

    def transfer(self, to: str = "", *, timeout: Seconds | None = None) -> Transferred:
        """Hand leadership over, to a member by its name or to the best placed one."""
        return self._rest(rest.transfer(to), Transferred, timeout)

    # For all

    @property
    def node(self) -> str:
        """The node that it is connected to, or was last; empty before that."""
        return self._core.node

    @property
    def core(self) -> Core:
        """What the client stands on. Not for users."""
        return self._core

    def _ask(self, request: Request) -> Message:
        return ask(self._core, request)

    def _rest(self, what: Ask, kind: type[T], timeout: Seconds | None) -> T:
        return wait(self._core.rest(what, kind, self._calls.timeout_s(timeout)))


class Txn(Operations):
    """Operations that are done together, at the end of the block, if it ends without an error.

    Afterwards `results` has what each was answered, in order.
    """

    def __init__(
        self, client: Client, calls: Calls, key: str | None, timeout: Seconds | None
    ) -> None:
        """Not for users: `Client.txn` makes it."""
        super().__init__(calls)
        self._client = client
        self._key = key
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and not self._is_committed:
            self.commit()

    def commit(self) -> tuple[Created | Stored | int, ...]:
        """Do them all now. Raises `TxnAborted` if one fails, and then none is done."""
        self._commit_once()
        request = self._calls.txn(self._fields, self._sessions, self._key, self._timeout)
        try:
            ask(self._client.core, request, self.home)
        except RitornelloError as error:
            self.failed(request, error)
            raise
        return self.answered(request.results)
