"""What sessions have in common, with and without an event loop."""

import contextlib
import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import ClassVar

from ritornello import fields as say
from ritornello.core.core import Core
from ritornello.core.requests import Bounds, Held, Request, nobody
from ritornello.errors import RitornelloError
from ritornello.fields import Fields, Seconds, StoreCause
from ritornello.models import Cause, SessionView, Trace

_log = logging.getLogger("ritornello")


TOLD_TO_STOP = "whoever worked on it was told to stop"  # a reason


class NoVerdictWarning(UserWarning):
    """A session was left without a verdict, and so it was stored."""


class HeldSession:
    """A session that is held, and what is known of it."""

    # What ends a program, or a task, and is no failure of the work.
    _stops: ClassVar[tuple[type[BaseException], ...]] = (KeyboardInterrupt, SystemExit)
    _is_owner = False

    def __init__(self, core: Core, held: Held, view: SessionView) -> None:
        """Not for users: a `Client` or a `Worker` makes it."""
        self._core = core
        self._view = view
        self._chunks = list(view.chunks)
        self._has_verdict = False
        self._failures = held.failures  # of its operations, that the caller has been told of
        self._held = held
        held.owners += 1  # last: from here on it is given back when it is forgotten
        self._is_owner = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} theme={self.theme} epoch={self.epoch}>"

    # What is known of it

    @property
    def id(self) -> str:
        return self._held.id

    @property
    def theme(self) -> int:
        return self._view.theme

    @property
    def key(self) -> str | None:
        return self._view.key

    @property
    def epoch(self) -> int:
        """Goes up each time that the session becomes active; whoever shows it may change it."""
        return self._held.epoch

    @property
    def revision(self) -> int:
        """As it was last told."""
        return self._held.revision

    @property
    def attempts(self) -> int:
        """How often it has been active, this time included."""
        return self._view.attempts

    @property
    def priority(self) -> int:
        return self._view.priority

    @property
    def trace(self) -> Trace | None:
        """The trace context of whoever began it, if that is known."""
        return self._view.trace

    @property
    def history(self) -> tuple[Cause, ...]:
        """Why it stopped being active before, oldest first."""
        return self._view.history

    @property
    def chunks(self) -> Sequence[bytes]:
        """Its data, with what was appended meanwhile."""
        return tuple(self._chunks)

    @property
    def data(self) -> bytes:
        """All chunks, one after the other."""
        return b"".join(self._chunks)

    @property
    def lease_remaining(self) -> float:
        """For how many seconds it is certainly yours, if nothing is heard of the cluster any more.

        Counted from when the last sign of life was sent that was answered. 0 when it is over.
        """
        if self._held.is_gone:
            return 0.0
        return max(self._held.expires_s - self._core.now_s(), 0.0)

    @property
    def is_held(self) -> bool:
        """Whether it is still yours: no verdict has been given, and the lease was not lost."""
        return not (self._has_verdict or self._held.is_gone)

    @property
    def is_lost(self) -> bool:
        """Whether it was taken away: the lease has ended, say."""
        return self._held.loss is not None

    @property
    def is_overdue(self) -> bool:
        """Whether it was taken away because it took too long: see `bound`."""
        return self._held.loss is not None and self._held.loss.cause == "overdue"

    def bound(self, *, progress: Seconds | None = None, total: Seconds | None = None) -> None:
        """Have it taken from whoever works on it when that takes too long.

        `progress` bounds the time with no operation, `total` all the time from now on, in seconds.
        The session is stored then with the cause `failed`, and is lost; even if the program is
        stuck.
        """
        progress_s = None if progress is None else say.seconds_of(progress, "progress")
        total_s = None if total is None else say.seconds_of(total, "total")
        self._core.post(self._held.bound, Bounds(progress_s, total_s))

    @property
    def core_held(self) -> Held:
        """As the core knows it. Not for users."""
        return self._held

    # Requests

    def _deadline_s(self, timeout: Seconds | None) -> float:
        default_s = self._core.options.timeout_s
        timeout_s = default_s if timeout is None else say.seconds_of(timeout, "timeout")
        return self._core.now_s() + timeout_s

    def _request(
        self,
        fields: Fields,
        timeout: Seconds | None,
        *,
        changes: int = 0,
        is_verdict: bool = False,
    ) -> Request:
        return Request(
            {**fields, "id": self._held.id, "epoch": self._held.epoch},
            self._deadline_s(timeout),
            nobody,
            held=(self._held,),
            changes=changes,
            is_verdict=is_verdict,
            seen_failures=(self._failures,),
        )

    def _changing(self, op: str, chunk: bytes, timeout: Seconds | None) -> Request:
        # Empty data is no chunk, but a sign of life.
        return self._request({"op": op, "data": chunk}, timeout, changes=1 if chunk else 0)

    def _touching(self, timeout: Seconds | None) -> Request:
        return self._request({"op": "touch"}, timeout)

    def _removing(self, timeout: Seconds | None) -> Request:
        return self._request({"op": "remove"}, timeout, is_verdict=True)

    def _storing(
        self, after: Seconds | None, cause: StoreCause, reason: str, timeout: Seconds | None
    ) -> Request:
        fields = say.store({"op": "store"}, after, cause, reason)
        return self._request(fields, timeout, is_verdict=True)

    def _parking(self, reason: str, timeout: Seconds | None) -> Request:
        fields = {"op": "park", "reason": say.reason_of(reason)}
        return self._request(fields, timeout, is_verdict=True)

    def _leaving(self, error: BaseException | None, *, is_told: bool = True) -> Request:
        """The verdict of a session that was left without one.

        `is_told` says whether a cancellation came from whoever may say so.
        """
        cause: StoreCause
        if error is None:
            cause, reason = "failed", "it was left without a verdict"
        elif not is_told or not isinstance(error, self._stops):
            cause, reason = "failed", type(error).__qualname__
        else:
            cause, reason = "shutdown", TOLD_TO_STOP
        request = self._storing(None, cause, reason, self._core.options.close_s)
        request.seen_failures = ()  # whatever has failed, and whether that was seen
        request.is_unconditional = True
        return request

    def _warn(self) -> None:
        warnings.warn(
            f"session {self.id} was left without a verdict, and is stored",
            NoVerdictWarning,
            stacklevel=3,
        )

    def __del__(self) -> None:
        # Nobody can work on it any more, and heartbeats would keep it.
        if not self._is_owner:
            return  # it was never made
        held = self._held
        held.owners -= 1
        if held.owners or held.is_gone or not self._core.is_open:
            return
        if self._has_verdict or held.has_verdict:
            self._core.leave(held)  # it may be refused yet
            return
        self._core.give_back_unowned(held, "nobody works on it any more")
        with contextlib.suppress(Exception):  # where warnings are errors nobody could catch it
            warnings.warn(
                f"session {held.id} was forgotten without a verdict, and is stored",
                NoVerdictWarning,
                stacklevel=2,
                source=self,
            )

    # Answers

    def _took(self, op: str, chunk: bytes) -> None:
        """Keep up with a change that was done."""
        if op == "replace" and chunk:
            self._chunks = [chunk]
        elif chunk:
            self._chunks.append(chunk)

    def keep_up(self, operations: Iterable[Fields]) -> None:
        """Take note of a transaction that was done. Not for users."""
        for one in operations:
            if one.get("id") != self.id:
                continue
            if one["op"] in {"append", "replace"}:
                self._took(one["op"], one["data"])
            elif one["op"] in {"remove", "store", "park"}:
                self._has_verdict = True

    @property
    def seen_failures(self) -> int:
        """Of its operations, how many failures the caller has been told of. Not for users."""
        return self._failures

    def catch_up(self, request: Request) -> None:
        """Take note that the caller was told of one that failed. Not for users."""
        for held, number in zip(request.held, request.failure_numbers, strict=False):
            if held is self._held:
                self._failures = max(self._failures, number)

    def _note(self, request: Request, error: RitornelloError) -> None:
        """The caller is told of a failure now: what it asks from here on is not skipped."""
        self.catch_up(request)
        _log.debug("session %s: %s", self.id, error)
