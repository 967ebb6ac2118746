"""The client's own thread, with its event loop, and how callers hand things to it.

Handing something over wakes the loop once for all that is handed over until it looks, and the same
the other way: see `Mailbox`. So a thousand tasks that ask at the same moment cost one wake-up.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from ritornello.errors import ClientClosed

T = TypeVar("T")

_log = logging.getLogger("ritornello")

_STOP_S = 10.0
_LAST_TURNS_S = 0.02


class Mailbox:
    """Calls to be made in a loop, from whatever thread."""

    __slots__ = ("_calls", "_is_called", "_is_closed", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., object], Any]] = deque()
        self._is_called = False
        self._is_closed = False

    def post(self, call: Callable[[Any], object], argument: Any) -> None:  # noqa: ANN401 - of any type
        """Have a call made in the loop. Raises RuntimeError if the loop is closed."""
        one = (call, argument)
        self._calls.append(one)
        if self._is_closed:
            self._refuse(one)
        elif not self._is_called:
            self._is_called = True
            try:
                self._loop.call_soon_threadsafe(self._make)
            except RuntimeError:
                self._is_called = False
                self._refuse(one)
            except BaseException:  # an interrupt, too: what comes next has to call
                self._is_called = False
                raise

    def _refuse(self, one: tuple[Callable[..., object], Any]) -> None:
        with contextlib.suppress(ValueError):  # `close` has made it all the same
            self._calls.remove(one)
            raise RuntimeError("the loop is closed")

    def close(self) -> None:
        """Take no more, and make what was posted too late for the loop, which runs no more."""
        self._is_closed = True  # before it looks: what comes from here on is refused
        while self._calls:
            call, argument = self._calls.popleft()
            try:
                call(argument)
            except Exception:  # noqa: BLE001 - the others are made all the same
                _log.debug("a call came too late", exc_info=True)

    def _make(self) -> None:
        self._is_called = False  # before it looks: what comes from here on calls again
        calls = self._calls
        try:
            while calls:
                call, argument = calls.popleft()
                call(argument)
        finally:
            if calls:  # one of them has failed: the others are made all the same
                self._is_called = True
                self._loop.call_soon(self._make)


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where that is installed: it takes less for each frame."""
    try:
        import uvloop  # noqa: PLC0415 - it need not be there
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def aside(call: Callable[[], T]) -> T:
    """Make a call that may take long, in a thread that nobody waits for at the end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(found: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(found)  # type: ignore[arg-type] # what `call` has answered

    def run() -> None:
        found: T | None = None
        error: Exception | None = None
        try:
            found = call()
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is the caller's
            error = failure
        except BaseException as failure:  # noqa: BLE001 - which would end the loop as well
            error = RuntimeError(f"{type(failure).__name__}: {failure}")
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(settle, found, error)

    threading.Thread(target=run, name="ritornello-aside", daemon=True).start()
    return await future


class CoreThread:
    """A thread that runs an event loop until it is stopped, or the loop ends by itself."""

    def __init__(
        self, name: str, last: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> None:
        """`last` is run at the end, however it comes to that."""
        self.loop = new_loop()
        self.mailbox = Mailbox(self.loop)
        self._last = last
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_stopped = False
        # For what follows. A signal's handler may ask for something while its thread does.
        self._lock = threading.RLock()
        self._is_over = False
        self._waiting: dict[Future[Any], Coroutine[Any, Any, Any]] = {}

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        except BaseException:  # noqa: BLE001 - a defect, or an interrupt; it is only this thread's
            _log.exception("the client's thread has ended by itself, and the client with it")
        try:
            self._end_tasks()
        except BaseException:  # noqa: BLE001 - who waits is told all the same
            _log.exception("the client's thread could not end in good order")
        finally:
            with self._lock:
                self._is_over = True
            self.mailbox.close()
            self.loop.close()
            self._tell()

    def _end_tasks(self) -> None:
        """Let what still waits for something end, and be told so."""
        if self._last is not None:
            self.loop.run_until_complete(self._last())
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))
        # Connections that are being closed need some turns for that, those with TLS some more.
        self.loop.run_until_complete(asyncio.sleep(_LAST_TURNS_S))

    def _tell(self) -> None:
        """Tell those who came too late for the loop."""
        for future, coroutine in list(self._waiting.items()):
            with contextlib.suppress(RuntimeError, ValueError):
                coroutine.close()
            with contextlib.suppress(InvalidStateError):
                future.set_exception(ClientClosed("the client was closed"))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the loop. Raises `ClientClosed`."""
        with self._lock:
            if self._is_stopped or self._is_over:
                coroutine.close()
                raise ClientClosed("the client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
            self._waiting[future] = coroutine
        future.add_done_callback(self._waited)
        return future

    def _waited(self, future: Future[Any]) -> None:
        self._waiting.pop(future, None)

    def stop(self) -> None:
        """End the thread; from another one."""
        if not self._is_stopped:
            self._is_stopped = True
            with contextlib.suppress(RuntimeError):  # its loop has ended by itself, and is closed
                self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_STOP_S)
