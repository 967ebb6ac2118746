"""How threads ask the core's thread, and are answered."""

import threading
from concurrent.futures import Future
from typing import TypeVar

from ritornello.core.core import Core
from ritornello.core.frames import Message
from ritornello.core.requests import Home, Request
from ritornello.errors import RitornelloError

T = TypeVar("T")

# CPython notices no interrupt that comes as a wait for a lock begins, until that wait is over.
LOOK_S = 0.5


class _Answer:
    """Where one thread waits for one answer."""

    __slots__ = ("_lock", "found", "is_left")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.found: Message | RitornelloError | None = None
        self.is_left = False  # by whoever waited

    def put(self, found: Message | RitornelloError) -> None:
        self.found = found
        self._lock.release()

    def wait(self) -> None:
        if not self._lock.acquire(timeout=LOOK_S):
            is_main = threading.current_thread() is threading.main_thread()
            while not self._lock.acquire(timeout=LOOK_S if is_main else -1):
                pass


def ask(core: Core, request: Request, home: Home | None = None) -> Message:
    """Have a request done, and wait for it. Raises `RitornelloError`."""
    answer = _Answer()
    request.done = answer.put
    try:
        core.ask(request, home)
        answer.wait()
    except BaseException:
        core.cancel(request, home)
        core.give_back_all(request)
        raise
    found = answer.found
    if isinstance(found, Message):
        return found
    if found is None:
        raise RuntimeError("an answer came that is none")
    raise found


def wait(future: Future[T]) -> T:
    """Wait for what the core's thread does; if that is interrupted, it is done no more."""
    try:
        while True:
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                if future.done():  # it is the future's own, or that is done just now
                    return future.result()
    except BaseException:
        future.cancel()
        raise
