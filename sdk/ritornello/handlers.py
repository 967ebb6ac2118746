"""What workers have in common: which handler is for which theme, and when too much has failed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ritornello import limits
from ritornello.errors import RitornelloError
from ritornello.verdicts import Verdict

H = TypeVar("H")


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
            raise ValueError(f"concurrency is {self.concurrency}; it is at least 1")
        for name in ("handler_timeout_s", "progress_s", "failures_max"):
            found = getattr(self, name)
            if found is not None and not found > 0:
                raise ValueError(f"{name} is {found}; it is more than 0, or None")
        if self.grace_s < 0:
            raise ValueError(f"grace_s is {self.grace_s}; it is 0 or more")


@dataclass(frozen=True, slots=True)
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


class Handlers(Generic[H]):
    """The handlers of a worker, by theme."""

    def __init__(self) -> None:
        self._by_theme: dict[int, H] = {}

    def add(self, themes: Iterable[int], handler: H) -> None:
        """Have a handler for themes. Raises ValueError if there is one already."""
        for theme in themes:
            if theme in self._by_theme:
                raise ValueError(f"theme {theme} has a handler already")
            self._by_theme[theme] = handler

    def of(self, theme: int) -> H | None:
        return self._by_theme.get(theme)

    @property
    def themes(self) -> tuple[int, ...]:
        return tuple(self._by_theme)


class Failures:
    """Counts sessions that failed with no success between them."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._count = 0
        self.last: BaseException | None = None

    def note(self, error: BaseException | None) -> bool:
        """Take note of how a session ended. True if it is too much."""
        if error is None:
            self._count = 0
            return False
        self._count += 1
        self.last = error
        return self._most is not None and self._count >= self._most

    def error(self) -> TooManyFailures:
        """What is raised then."""
        name = type(self.last).__qualname__
        return TooManyFailures(f"{self._count} sessions in a row have failed, the last with {name}")
