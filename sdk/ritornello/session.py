"""A session that is held, for programs with an event loop."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from ritornello import fields as say
from ritornello.core.frames import Message
from ritornello.core.requests import Held, Request
from ritornello.errors import LeaseLost, RitornelloError
from ritornello.fields import Data, Seconds, StoreCause
from ritornello.front import Front
from ritornello.held import HeldSession
from ritornello.models import SessionView, Stored

S = TypeVar("S", bound="Session | None")


class Session(HeldSession):
    """A session that is yours, until a verdict: `remove`, `store` or `park`.

    As a context manager it always ends. Left without a verdict it is stored, with a warning. An
    error stores it with the cause `failed` and the error's type as reason; never with its text,
    which may hold data. When the task is cancelled it is stored with the cause `shutdown`, and no
    attempt is counted. When the lease is lost, the body is cancelled at once, and `LeaseLost`
    raised.

    Every operation takes a `timeout` in seconds for all that is tried, and raises
    `RitornelloError`.
    """

    _stops: ClassVar[tuple[type[BaseException], ...]] = (
        asyncio.CancelledError,
        GeneratorExit,
        KeyboardInterrupt,
        SystemExit,
    )

    def __init__(self, front: Front, held: Held, view: SessionView) -> None:
        """Not for users: a `Client` or a `Worker` makes it."""
        super().__init__(front.core, held, view)
        self._front = front
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0  # how often the task was to be cancelled when the body began
        self._was_cancelled = False  # because the session is lost
        self._watching: Callable[[LeaseLost], None] | None = None

    async def append(self, data: Data, *, timeout: Seconds | None = None) -> int:  # noqa: ASYNC109 - of all that is tried
        """Add a chunk; renews the lease. Answers the new revision."""
        return await self._change("append", say.data_of(data), timeout)

    async def replace(self, data: Data, *, timeout: Seconds | None = None) -> int:  # noqa: ASYNC109
        """Put one chunk in place of all; renews the lease. Answers the new revision."""
        return await self._change("replace", say.data_of(data), timeout)

    async def touch(self, *, timeout: Seconds | None = None) -> None:  # noqa: ASYNC109
        """Say that there is progress; renews the lease."""
        await self._ask(self._touching(timeout))

    async def remove(self, *, timeout: Seconds | None = None) -> None:  # noqa: ASYNC109
        """Verdict: the work is done, and the session gone."""
        await self._end(self._removing(timeout))

    async def store(
        self,
        after: Seconds | None = None,
        *,
        cause: StoreCause = "requested",
        reason: str = "",
        timeout: Seconds | None = None,  # noqa: ASYNC109
    ) -> Stored:
        """Verdict: it comes back `after` so many seconds; without that as its theme's policy says.

        `cause` is `requested`, `failed` or `shutdown`; that and the reason stay in its history.
        """
        message = await self._end(self._storing(after, cause, reason, timeout))
        due_ms, parked = message.due_ms, message.parked
        return Stored(id=self.id, revision=message.revision, due_ms=due_ms, parked=parked)

    async def park(self, reason: str = "", *, timeout: Seconds | None = None) -> None:  # noqa: ASYNC109
        """Verdict: set aside, with its data, until somebody unparks or removes it."""
        await self._end(self._parking(reason, timeout))

    async def _change(self, op: str, chunk: bytes, timeout: Seconds | None) -> int:  # noqa: ASYNC109
        message = await self._ask(self._changing(op, chunk, timeout))
        self._took(op, chunk)
        return message.revision

    async def _end(self, request: Request) -> Message:
        """Give a verdict. It is pursued even if nobody waits for it any more."""
        was, self._has_verdict = self._has_verdict, True
        try:
            return await self._ask(request)
        except RitornelloError as error:
            self._has_verdict = was or self._held.has_verdict
            loss = self._held.loss
            if loss is not None and not isinstance(error, LeaseLost):
                self._lost(loss)  # it was lost before this failure was told
            raise

    async def _ask(self, request: Request) -> Message:
        try:
            return await self._front.ask(request, self._held.home)
        except RitornelloError as error:
            self._note(request, error)
            raise

    # As a context

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None or self._task is not None:
            raise RuntimeError("a session is entered in a task, and by one at a time")
        self._task = task
        self._cancelling = task.cancelling()
        self._was_cancelled = False
        self._watching = self._front.watch(self._held, self._lost)
        return self

    def _lost(self, _loss: LeaseLost) -> None:
        if self._task is not None and not self._has_verdict and not self._was_cancelled:
            self._was_cancelled = True
            self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if self._watching is not None and not self._held.is_over:
            self._core.unwatch(self._held, self._watching)
        if self._was_cancelled and task is not None and await self._take_back(task, error):
            return  # somebody else has cancelled the task as well
        if self._was_cancelled and isinstance(error, asyncio.CancelledError):
            raise self._held.over() from None  # also if that came as it gave another verdict
        if self._has_verdict:
            if not self._held.is_over:
                self._core.leave(self._held)  # it may be refused yet
            return
        if self._held.is_gone:
            if error is None:
                raise self._held.over() from None
            return
        # Only what was asked of this task tells it to stop; another cancellation is a failure.
        is_told = not isinstance(error, asyncio.CancelledError) or (
            task is not None and task.cancelling() > self._cancelling
        )
        try:
            await self._end(self._leaving(error, is_told=is_told))
        except RitornelloError as failure:
            if error is None:
                raise
            error.add_note(f"the session {self.id} is not known to be stored: {failure}")
        if error is None:
            self._warn()

    async def _take_back(self, task: asyncio.Task[Any], error: BaseException | None) -> bool:
        """Undo the cancellation that came with the loss. True if there was another one."""
        if not isinstance(error, asyncio.CancelledError):
            try:
                await asyncio.sleep(0)  # it may not have arrived yet, and would do so elsewhere
            except asyncio.CancelledError:
                if task.uncancel() > self._cancelling:
                    raise
                return False
        return task.uncancel() > self._cancelling


class Opening(Generic[S]):
    """A session to come: wait for it (`await`), or work on it (`async with`)."""

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, S]]) -> None:
        """Not for users: a `Client` makes it."""
        self._begin = begin
        self._session: S | None = None

    def __await__(self) -> Generator[Any, None, S]:
        return self._begin().__await__()

    async def __aenter__(self) -> S:
        session = await self._begin()
        if session is not None:
            await session.__aenter__()
        self._session = session
        return session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.__aexit__(kind, error, trace)
