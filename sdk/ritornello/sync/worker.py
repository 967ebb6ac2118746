"""Workers in threads: handlers that are given sessions as they become due.

    worker = ritornello.sync.Worker(client, concurrency=20)

    @worker.handler(7)
    def ship(session):
        session.append(label_for(session.data))
        return ritornello.Remove()

    worker.run()

As `ritornello.Worker`, with a thread for each session that is worked on. A thread cannot be
interrupted: when a session is lost, or given back as the worker has to end, its handler is told by
the next operation.
"""

import inspect
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import Any, Protocol, TypeVar, runtime_checkable

from ritornello import fields as say
from ritornello.core.requests import Held
from ritornello.errors import LeaseLost, RitornelloError
from ritornello.handlers import WorkerBase, WorkerOptions, needs_verdict
from ritornello.held import TOLD_TO_STOP
from ritornello.models import SessionView
from ritornello.sync.client import Client
from ritornello.sync.front import LOOK_S
from ritornello.sync.session import Session
from ritornello.verdicts import Park, Remove, Store, Verdict

_log = logging.getLogger("ritornello.worker")

Handle = Callable[[Session], Verdict | None]  # what handles a session
Middleware = Callable[[Session, Handle], Verdict | None]  # around a handler

H = TypeVar("H", bound=Handle)

_Given = tuple[Held, SessionView]


@runtime_checkable
class Handler(Protocol):
    """A handler as a class; `themes` are those that it is for."""

    @property
    def themes(self) -> Iterable[int]:
        """Whose sessions it works on."""

    def handle(self, session: Session) -> Verdict | None:
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
        self._given: queue.SimpleQueue[_Given | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_begun = False
        self._is_stopping = False
        # Wakes `run`. No event: a signal handler may come in the middle of another one's `set`.
        self._ending: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._busy: set[Held] = set()  # what handlers work on
        self._fatal: BaseException | None = None  # with which a handler wants the program to end

    # What it does

    def handler(self, *themes: int) -> Callable[[H], H]:
        """Have a function work on the sessions of themes."""
        found = say.themes_of(themes)

        def add(handle: H) -> H:
            is_async = inspect.iscoroutinefunction(handle)
            if is_async:
                raise TypeError("here a handler is no `async def`; ritornello.Worker has those")
            self._add(found, handle)
            return handle

        return add

    def add(self, handler: Handler) -> None:
        """Have an object work on the sessions of its `themes`."""
        if inspect.iscoroutinefunction(handler.handle):
            raise TypeError("here `handle` is no `async def`; ritornello.Worker has those")
        self._add(handler.themes, handler.handle)

    # Its life

    def run(self, *, handle_signals: bool = False) -> None:
        """Work until `stop` is called. Raises `RitornelloError`.

        `handle_signals` has SIGTERM and SIGINT stop it; for the main thread.
        """
        if self._is_begun:
            raise RuntimeError("a worker runs once")
        self._check()
        self._is_begun = True
        before: dict[int, Any] = {}
        for one in (signal.SIGTERM, signal.SIGINT) if handle_signals else ():
            before[one] = signal.signal(one, self._signalled)
        try:
            self._work()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._fatal is not None:
            raise self._fatal
        if self._error is not None:
            raise self._error

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no more sessions, and end when those that it has are done."""
        self._is_stopping = True
        self._ending.put(None)

    def _work(self) -> None:
        core = self._client.core
        intake = self._intake = core.intake(self._take, self._refused)
        threads = [
            threading.Thread(target=self._hand, name=f"ritornello-worker-{number}", daemon=True)
            for number in range(self._options.concurrency)
        ]
        for thread in threads:
            thread.start()
        try:
            intake.want(self._by_theme, self._options.concurrency)
            while not self._has_to_end():
                pass
        finally:  # each step also when it is interrupted once more in the one before
            self._is_stopping = True
            try:
                with suppress(RitornelloError):
                    intake.end().result()  # from here on nothing comes into the queue
            finally:
                try:
                    self._finish(threads)
                finally:
                    with suppress(RitornelloError):
                        intake.close(core.options.close_s).result()

    def _has_to_end(self) -> bool:
        """Wait a while for the end: a signal that comes as a wait begins is noticed after it."""
        try:
            self._ending.get(timeout=LOOK_S)
        except queue.Empty:
            return False
        return True

    def _finish(self, threads: list[threading.Thread]) -> None:
        """Let handlers finish, and give back what they have when their time is over."""
        begun_s = time.monotonic()
        end_s = begun_s + self._options.grace_s
        try:
            for _ in threads:
                self._given.put(None)
            for thread in threads:
                thread.join(max(end_s - time.monotonic(), 0))
        finally:
            self._give_back(begun_s)

    def _give_back(self, begun_s: float) -> None:
        with self._lock:
            left, self._busy = self._busy, set()
        for held in left:
            self._client.core.give_back(held, TOLD_TO_STOP)
        if left:
            _log.warning(
                "%d handlers are not done after %.1f s: their sessions are given back",
                len(left),
                time.monotonic() - begun_s,
            )

    def _take(self, held: Held, view: SessionView) -> None:
        """Take what was pushed; in the core's thread."""
        self._given.put((held, view))

    def _refused(self, error: RitornelloError) -> None:
        if not self._is_stopping:
            self._error = error
            self.stop()

    # Sessions

    def _hand(self) -> None:
        """Work on one session after the other."""
        while (given := self._given.get()) is not None:
            held, view = given
            handle = self._by_theme.get(view.theme)
            try:
                if self._is_stopping or handle is None:
                    self._client.core.give_back(held)
                else:
                    self._handle(held, view, handle)
            finally:
                if self._intake is not None:
                    with suppress(RitornelloError):
                        self._intake.free()

    def _handle(self, held: Held, view: SessionView, handle: Handle) -> None:
        session = Session(self._client.core, held, view)
        self._bound(session)
        with self._lock:
            self._busy.add(held)
        begun_s = time.monotonic()
        verdict: Verdict | None = None
        error: BaseException | None = None
        is_forgotten = is_told = False
        try:
            with session:
                verdict = self._wrapped(handle)(session)
                if held in self._busy:  # else it was given back, and whatever comes of it is late
                    give(session, verdict)
                is_forgotten = session.is_held
        except LeaseLost as loss:
            error = loss
        except Exception as failure:  # noqa: BLE001 - of any handler
            error = failure
        except (KeyboardInterrupt, SystemExit) as fatal:  # the worker ends with it
            error, is_told = fatal, True
            self._fatal = fatal
            self.stop()
        except BaseException as failure:  # noqa: BLE001 - of any handler
            error = failure
        with self._lock:
            if held not in self._busy:
                return
            self._busy.remove(held)
        duration_s = time.monotonic() - begun_s
        if self._note(
            session, duration_s, verdict, error, is_told=is_told, is_forgotten=is_forgotten
        ):
            self.stop()

    def _wrapped(self, handle: Handle) -> Handle:
        for middleware in reversed(self._middleware):
            handle = _around(middleware, handle)
        return handle


def _around(middleware: Middleware, handle: Handle) -> Handle:
    def call(session: Session) -> Verdict | None:
        return middleware(session, handle)

    return call


def give(session: Session, verdict: Verdict | None) -> None:
    """Give a session the verdict that a handler has answered."""
    if not needs_verdict(session, verdict):
        return
    match verdict:
        case Remove():
            session.remove()
        case Store(after, reason, cause):
            session.store(after, reason=reason, cause=cause)
        case Park(reason):
            session.park(reason)
        case other:
            raise TypeError(f"a handler answers a verdict, and not {type(other).__name__}")
