"""A session that is held, for programs without an event loop."""

from types import TracebackType
from typing import Self

from ritornello import fields as say
from ritornello.core.frames import Message
from ritornello.core.requests import Request
from ritornello.errors import RitornelloError
from ritornello.fields import Data, Seconds, StoreCause
from ritornello.held import HeldSession
from ritornello.models import Stored
from ritornello.sync.front import ask


class Session(HeldSession):
    """A session that is yours, until a verdict: `remove`, `store` or `park`.

    As a context manager it always ends. Left without a verdict it is stored, with a warning. An
    error stores it with the cause `failed` and the error's type as reason; never with its text,
    which may hold data. KeyboardInterrupt and SystemExit store it with the cause `shutdown`, and no
    attempt is counted. A thread cannot be interrupted when the lease is lost: the next operation
    raises `LeaseLost`, or the end of the context; `is_lost` tells at once.

    Every operation takes a `timeout` in seconds for all that is tried, and raises
    `RitornelloError`.
    """

    def append(self, data: Data, *, timeout: Seconds | None = None) -> int:
        """Add a chunk; renews the lease. Answers the new revision."""
        return self._change("append", say.data_of(data), timeout)

    def replace(self, data: Data, *, timeout: Seconds | None = None) -> int:
        """Put one chunk in place of all; renews the lease. Answers the new revision."""
        return self._change("replace", say.data_of(data), timeout)

    def touch(self, *, timeout: Seconds | None = None) -> None:
        """Say that there is progress; renews the lease."""
        self._ask(self._touching(timeout))

    def remove(self, *, timeout: Seconds | None = None) -> None:
        """Verdict: the work is done, and the session gone."""
        self._end(self._removing(timeout))

    def store(
        self,
        after: Seconds | None = None,
        *,
        cause: StoreCause = "requested",
        reason: str = "",
        timeout: Seconds | None = None,
    ) -> Stored:
        """Verdict: it comes back `after` so many seconds; without that as its theme's policy says.

        `cause` is `requested`, `failed` or `shutdown`; that and the reason stay in its history.
        """
        message = self._end(self._storing(after, cause, reason, timeout))
        due_ms, parked = message.due_ms, message.parked
        return Stored(id=self.id, revision=message.revision, due_ms=due_ms, parked=parked)

    def park(self, reason: str = "", *, timeout: Seconds | None = None) -> None:
        """Verdict: set aside, with its data, until somebody unparks or removes it."""
        self._end(self._parking(reason, timeout))

    def _change(self, op: str, chunk: bytes, timeout: Seconds | None) -> int:
        message = self._ask(self._changing(op, chunk, timeout))
        self._took(op, chunk)
        return message.revision

    def _end(self, request: Request) -> Message:
        """Give a verdict. It is pursued even if nobody waits for it any more."""
        was, self._has_verdict = self._has_verdict, True
        try:
            return self._ask(request)
        except RitornelloError:
            self._has_verdict = was or self._held.has_verdict
            raise

    def _ask(self, request: Request) -> Message:
        try:
            return ask(self._core, request, self._held.home)
        except RitornelloError as error:
            self._note(request, error)
            raise

    # As a context

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._has_verdict:
            if not self._held.is_over:
                self._core.leave(self._held)  # it may be refused yet
            return
        if self._held.is_gone:
            if error is None:
                raise self._held.over()
            return
        try:
            self._end(self._leaving(error))
        except RitornelloError as failure:
            if error is None:
                raise
            error.add_note(f"the session {self.id} is not known to be stored: {failure}")
        if error is None:
            self._warn()
