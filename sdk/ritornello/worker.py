"""Workers: handlers that are given sessions as they become due.

    worker = ritornello.Worker(client, concurrency=20)

    @worker.handler(7)
    async def ship(session):
        await session.append(await label_for(session.data))
        return ritornello.Remove()

    await worker.run()

A handler answers a verdict. If it raises, the session is stored with the cause `failed`, and comes
back as its theme's policy says. A session that is lost cancels its handler at once; nobody else is
told, since somebody else works on it.
"""

import asyncio
import inspect
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Protocol, TypeVar, runtime_checkable

from ritornello import fields as say
from ritornello.client import Client
from ritornello.core.requests import Held
from ritornello.core.thread import Mailbox
from ritornello.errors import LeaseLost, RitornelloError
from ritornello.handlers import WorkerBase, WorkerOptions, needs_verdict
from ritornello.models import SessionView
from ritornello.session import Session
from ritornello.verdicts import Park, Remove, Store, Verdict

_log = logging.getLogger("ritornello.worker")

Handle = Callable[[Session], Awaitable[Verdict | None]]  # what handles a session
Middleware = Callable[[Session, Handle], Awaitable[Verdict | None]]  # around a handler

H = TypeVar("H", bound=Handle)


@runtime_checkable
class Handler(Protocol):
    """A handler as a class; `themes` are those that it is for."""

    @property
    def themes(self) -> Iterable[int]:
        """Whose sessions it works on."""

    async def handle(self, session: Session) -> Verdict | None:
        """Work on a session."""


class Worker(WorkerBase[Handle, Middleware]):
    """Works on sessions as they become due, several at a time, over a connection of its own."""

    def __init__(
        self,
        client: Client,
        *,
        concurrency: int | None = None,
        options: WorkerOptions | None = None,
    ) -> None:
        super().__init__(concurrency, options)
        self._client = client
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Event | None = None
        self._is_stopped = False

    # What it does

    def handler(self, *themes: int) -> Callable[[H], H]:
        """Have a function work on the sessions of themes."""
        found = say.themes_of(themes)

        def add(handle: H) -> H:
            is_async = inspect.iscoroutinefunction(handle)
            if not is_async:
                raise TypeError("a handler is an `async def`; ritornello.sync has others")
            self._add(found, handle)
            return handle

        return add

    def add(self, handler: Handler) -> None:
        """Have an object work on the sessions of its `themes`."""
        if not inspect.iscoroutinefunction(handler.handle):
            raise TypeError("`handle` is an `async def`; ritornello.sync has others")
        self._add(handler.themes, handler.handle)

    # Its life

    async def run(self, *, handle_signals: bool = False) -> None:
        """Work until `stop` is called, or the task is cancelled. Raises `RitornelloError`.

        `handle_signals` has SIGTERM and SIGINT stop it.
        """
        if self._stopping is not None:
            raise RuntimeError("a worker runs once")
        self._check()
        self._stopping = asyncio.Event()
        if self._is_stopped:
            self._stopping.set()
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT) if handle_signals else ()
        for one in signals:
            loop.add_signal_handler(one, self.stop)
        try:
            await self._work(loop)
        finally:
            for one in signals:
                loop.remove_signal_handler(one)
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Take no more sessions, and end when those that it has are done."""
        self._is_stopped = True
        if self._stopping is not None:
            self._stopping.set()

    async def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        mailbox = Mailbox(loop)
        core = self._client.core

        def given(held: Held, view: SessionView) -> None:
            mailbox.post(self._begin, (held, view))

        def refused(error: RitornelloError) -> None:
            with suppress(RuntimeError):  # the loop may be gone
                mailbox.post(self._refused, error)

        stopping = self._stopping
        assert stopping is not None  # noqa: S101 - for mypy
        intake = self._intake = core.intake(given, refused)
        try:
            intake.want(self._by_theme, self._options.concurrency)
            await stopping.wait()
        finally:
            stopping.set()
            with suppress(RitornelloError):
                intake.end()  # what comes before that is done is given back here
            try:
                await self._finish()
            finally:  # also when it is cancelled once more
                with suppress(RitornelloError):
                    await asyncio.shield(asyncio.wrap_future(intake.close(core.options.close_s)))

    async def _finish(self) -> None:
        """Let handlers finish, and cancel them when their time is over."""
        grace_s = self._options.grace_s
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=grace_s)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self._client.core.options.close_s)

    def _refused(self, error: RitornelloError) -> None:
        if self._stopping is not None and not self._stopping.is_set():
            self._error = error
            self.stop()

    # Sessions

    def _begin(self, given: tuple[Held, SessionView]) -> None:
        held, view = given
        is_over = self._stopping is None or self._stopping.is_set()
        handle = self._by_theme.get(view.theme)
        if is_over or handle is None:
            self._client.core.give_back(held)
            self._free()
            return
        session = Session(self._client.front, held, view)
        self._bound(session)
        task = asyncio.get_running_loop().create_task(
            self._handle(session, handle), name=f"ritornello-session-{session.id}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free()

    def _free(self) -> None:
        if self._intake is not None:
            with suppress(RitornelloError):
                self._intake.free()

    async def _handle(self, session: Session, handle: Handle) -> None:
        begun_s = time.monotonic()
        verdict: Verdict | None = None
        error: BaseException | None = None
        is_forgotten = False
        try:
            async with session:
                verdict = await self._wrapped(handle)(session)
                await give(session, verdict)
                is_forgotten = session.is_held
        except LeaseLost as loss:
            error = loss
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as failure:  # noqa: BLE001 - of any handler
            error = failure
        task = asyncio.current_task()
        is_told = isinstance(error, asyncio.CancelledError) and (
            task is not None and task.cancelling() > 0
        )
        duration_s = time.monotonic() - begun_s
        if self._note(
            session, duration_s, verdict, error, is_told=is_told, is_forgotten=is_forgotten
        ):
            self.stop()
        if is_told and error is not None:
            raise error

    def _wrapped(self, handle: Handle) -> Handle:
        for middleware in reversed(self._middleware):
            handle = _around(middleware, handle)
        return handle


def _around(middleware: Middleware, handle: Handle) -> Handle:
    async def call(session: Session) -> Verdict | None:
        return await middleware(session, handle)

    return call


async def give(session: Session, verdict: Verdict | None) -> None:
    """Give a session the verdict that a handler has answered."""
    if not needs_verdict(session, verdict):
        return
    match verdict:
        case Remove():
            await session.remove()
        case Store(after, reason, cause):
            await session.store(after, reason=reason, cause=cause)
        case Park(reason):
            await session.park(reason)
        case other:
            raise TypeError(f"a handler answers a verdict, and not {type(other).__name__}")
