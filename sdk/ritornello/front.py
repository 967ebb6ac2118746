"""How tasks of a loop ask the core's thread, and are answered."""

import asyncio
import contextlib
from collections.abc import Callable

from ritornello.core.core import Core
from ritornello.core.frames import Message
from ritornello.core.requests import Held, Home, Request
from ritornello.core.thread import Mailbox
from ritornello.errors import LeaseLost, RitornelloError

_Answer = tuple[asyncio.Future[Message], Request, Message | RitornelloError]


class Front:
    """The way between one loop and a core."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._loop = asyncio.get_running_loop()
        self._mailbox = Mailbox(self._loop)

    async def ask(self, request: Request, home: Home | None = None) -> Message:
        """Have a request done. Raises `RitornelloError`."""
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("a client is used in the event loop in which it was opened")
        future: asyncio.Future[Message] = self._loop.create_future()
        mailbox, settle = self._mailbox, self._settle

        def done(
            result: Message | RitornelloError, future: asyncio.Future[Message] = future
        ) -> None:
            try:  # noqa: SIM105 - for every request, and quicker
                mailbox.post(settle, (future, request, result))
            except RuntimeError:  # the loop is closed
                pass

        request.done = done
        del done
        self.core.ask(request, home)
        try:
            return await future
        except asyncio.CancelledError:
            self.core.cancel(request, home)
            self.core.give_back_all(request)  # the answer may have come in this very turn
            raise
        finally:
            del future  # else it, its error and this frame would hold each other

    def _settle(self, answer: _Answer) -> None:
        future, request, result = answer
        if future.done():  # whoever asked has left in the meantime
            self.core.give_back_all(request)
        elif isinstance(result, Message):
            future.set_result(result)
        else:
            future.set_exception(result)

    def watch(self, held: Held, call: Callable[[LeaseLost], None]) -> Callable[[LeaseLost], None]:
        """Have somebody told in this loop when a session is lost. Answers what ends that."""
        mailbox = self._mailbox

        def lost(loss: LeaseLost) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                mailbox.post(call, loss)

        self.core.watch(held, lost)
        return lost
