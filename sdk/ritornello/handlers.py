"""What workers have in common: which handler is for which theme, and when too much has failed."""

import logging
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Generic, TypeVar

from ritornello import fields as say
from ritornello import limits
from ritornello.core.core import Intake
from ritornello.errors import RitornelloError
from ritornello.held import HeldSession, NoVerdictWarning
from ritornello.verdicts import Verdict

_log = logging.getLogger("ritornello.worker")

Handle = TypeVar("Handle")
Around = TypeVar("Around")


class TooManyFailures(RitornelloError):
    """So many sessions in a row have failed that the fault is the worker's, and it has stopped."""

    code = "too_many_failures"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker behaves. Times are in seconds."""

    concurrency: int = 10  # sessions at a time
    grace_s: float = 30.0  # to finish, when it is to stop; what is not finished then is cancelled
    handler_timeout_s: float | None = None  # for a session, in all
    progress_s: float | None = None  # without an operation, before it is taken from its handler
    failures_max: int | None = 100  # in a row without a success, before the worker stops

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= limits.COUNT_MAX:
            most = limits.COUNT_MAX
            raise ValueError(f"concurrency is {self.concurrency}; it is from 1 to {most}")
        for name in ("handler_timeout_s", "progress_s", "failures_max"):
            found = getattr(self, name)
            if found is not None and not 0 < found < inf:
                raise ValueError(f"{name} is {found}; it is more than 0, or None")
        if not 0 <= self.grace_s < inf:
            raise ValueError(f"grace_s is {self.grace_s}; it is 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """One session that was worked on: for metrics."""

    session_id: str
    theme: int
    epoch: int
    attempts: int
    duration_s: float
    verdict: Verdict | None  # as the handler answered it
    error: BaseException | None  # as it was raised
    is_lost: bool  # the session was taken away


Hook = Callable[[Handled], None]  # told of each session that was handled


class Failures:
    """Counts sessions that failed with no success between them."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._count = 0

    def succeeded(self) -> None:
        """Take note of a session that was given a verdict."""
        self._count = 0

    def failed(self, name: str) -> TooManyFailures | None:
        """Take note of a session that has failed, with what. The error, if it is too much."""
        self._count += 1
        if self._most is None or self._count < self._most:
            return None
        return TooManyFailures(f"{self._count} sessions in a row have failed, the last with {name}")


class WorkerBase(Generic[Handle, Around]):
    """A worker's handlers, and what is around them."""

    def __init__(self, concurrency: int | None, options: WorkerOptions | None) -> None:
        options = options or WorkerOptions()
        if concurrency is not None:
            options = replace(options, concurrency=concurrency)
        self._options = options
        self._by_theme: dict[int, Handle] = {}
        self._middleware: list[Around] = []
        self._hooks: list[Hook] = []
        self._failures = Failures(self._options.failures_max)
        self._counting = threading.Lock()
        self._error: RitornelloError | None = None
        self._intake: Intake | None = None

    def middleware(self, call: Around) -> Around:
        """Have something around all handlers; the first one that is added is the outermost."""
        self._middleware.append(call)
        return call

    def on_handled(self, call: Hook) -> Hook:
        """Have something told of each session that was worked on; it must not wait.

        Where handlers run in threads it is called in theirs, by several at a time.
        """
        self._hooks.append(call)
        return call

    @property
    def node(self) -> str:
        """The node that it is connected to, or was last; empty before that."""
        return "" if self._intake is None else self._intake.node

    def _add(self, themes: int | Iterable[int], handle: Handle) -> None:
        for theme in say.themes_of(themes):
            if theme in self._by_theme:
                raise ValueError(f"theme {theme} has a handler already")
            self._by_theme[theme] = handle

    def _check(self) -> None:
        if not self._by_theme:
            raise ValueError("a worker has at least one handler")

    def _bound(self, session: HeldSession) -> None:
        options = self._options
        if options.progress_s is not None or options.handler_timeout_s is not None:
            session.bound(progress=options.progress_s, total=options.handler_timeout_s)

    def _note(
        self,
        session: HeldSession,
        duration_s: float,
        verdict: Verdict | None,
        error: BaseException | None,
        *,
        is_told: bool = False,
        is_forgotten: bool = False,
    ) -> bool:
        """Tell of a session that was worked on. True if it is time to stop.

        `is_told` says that its handler was told to stop, `is_forgotten` that it gave no verdict.
        """
        is_lost = session.is_lost and not session.is_overdue
        handled = Handled(
            session_id=session.id,
            theme=session.theme,
            epoch=session.epoch,
            attempts=session.attempts,
            duration_s=duration_s,
            verdict=verdict,
            error=error,
            is_lost=is_lost,
        )
        is_failure = error is not None and not is_lost and not is_told
        if is_failure:
            _log.warning(
                "a handler has failed: session %s of theme %d, attempt %d",
                session.id,
                session.theme,
                session.attempts,
                exc_info=error,
            )
        too_many: TooManyFailures | None = None
        with self._counting:
            if is_failure or is_forgotten:
                name = "no verdict" if error is None else type(error).__qualname__
                too_many = self._failures.failed(name)
            elif error is None and not is_lost:
                self._failures.succeeded()
        if too_many is not None and self._error is None:
            self._error = too_many
        for hook in self._hooks:
            try:
                hook(handled)
            except Exception:  # noqa: BLE001 - of anybody
                _log.exception("a hook of the worker has failed")
        return too_many is not None


def needs_verdict(session: HeldSession, verdict: Verdict | None) -> bool:
    """Whether a session is still to be given the verdict that its handler has answered."""
    if session.is_held:
        return verdict is not None
    if verdict is not None and not session.is_lost:
        warnings.warn(
            f"a handler has answered {verdict} of a session that it had ended before",
            NoVerdictWarning,
            stacklevel=3,
        )
    return False
