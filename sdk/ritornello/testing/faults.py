"""Faults on demand: what shall go wrong between clients and their servers.

    with server.faults.drop(of="remove") as fault:
        client.remove(id)          # it is done, its answer is lost, and it is sent again
    assert fault.happened == 1

A fault is about answers: what is lost before it arrives teaches a client nothing more. And it is
about what a test asks for: what a client asks for by itself (signs of life, what it holds when it
has connected again) is left alone, unless it is named.
"""

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

# What a client asks for by itself.
_OWN = frozenset({"heartbeat", "resume", "credit"})

_PUSHES = ("hello", "session", "lease_lost", "draining")
_KNOWN = frozenset(
    {
        *("new", "append", "replace", "remove", "store", "touch", "park", "unpark", "txn"),
        *("take", "acquire", "get", "resume", "credit", "heartbeat"),
        *("policy", "pause", "transfer", "limits"),  # over HTTP
        *_PUSHES,
    }
)

Kind = str  # of a fault: the name of the method that makes it

DROP, WITHHOLD, DUPLICATE, DELAY, REFUSE = "drop", "withhold", "duplicate", "delay", "refuse"


class Fault:
    """Something that goes wrong, so and so many times; in a `with` block until its end at most."""

    def __init__(
        self,
        faults: "Faults",
        kind: Kind,
        *,
        answers: int | None,
        of: str | Iterable[str] | None,
        seconds: float = 0.0,
    ) -> None:
        """Not for users: `Faults` makes them."""
        if answers is not None and answers < 1:
            raise ValueError(f"answers is {answers}; it is 1 or more")
        if not seconds >= 0:
            raise ValueError(f"seconds is {seconds}; it is not less than 0")
        self.kind = kind
        self.seconds = seconds
        self.happened = 0  # how many times
        self._faults = faults
        self._answers = answers  # None: as long as it stands
        self._of = None if of is None else frozenset((of,) if isinstance(of, str) else of)
        unknown = sorted((self._of or frozenset()) - _KNOWN)
        if unknown:
            known = ", ".join(sorted(_KNOWN))
            raise ValueError(f"of names {', '.join(unknown)}; there is {known}")

    def end(self) -> None:
        """Let it happen no more."""
        self._faults._end(self)  # noqa: SLF001 - they are one thing

    @property
    def is_over(self) -> bool:
        """Whether it has happened as often as it shall."""
        return self._answers is not None and self.happened >= self._answers

    def is_of(self, operation: str, *, is_push: bool) -> bool:
        """Whether it is about what is said of this operation, or pushed under this name.

        Not for users.
        """
        if self._of is not None:
            return operation in self._of
        return not is_push and operation not in _OWN

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.happened} times>"


class Faults:
    """What goes wrong now. May be asked for from any thread.

    `of` names operations, as docs/protocol.md does (`"append"`, or several), or pushes
    (`"session"`, `"lease_lost"`). Over HTTP an operation is named by what it does: the last part of
    its path, and `new`, `get`, `remove`. Without it, it is the next answers of any operation.
    """

    def __init__(self, cut: Callable[[], object]) -> None:
        """`cut` breaks all connections, from any thread. Not for users: a server has its own."""
        self._cut = cut
        self._lock = threading.Lock()
        self._standing: list[Fault] = []
        self._has_hung = False  # whether an answer was withheld, and its connection is there

    def drop(self, answers: int = 1, *, of: str | Iterable[str] | None = None) -> Fault:
        """Lose an answer, and the connection with it: the operation itself is done.

        What else was on its way over that connection is lost as well, as in life.
        """
        return self._begin(Fault(self, DROP, answers=answers, of=of))

    def withhold(self, answers: int = 1, *, of: str | Iterable[str] | None = None) -> Fault:
        """Lose an answer, and keep the connection: whoever asked waits until its time is over.

        That is a node that hangs. When the fault is ended the connections are broken, as they would
        be at last; so clients find out what became of it.
        """
        return self._begin(Fault(self, WITHHOLD, answers=answers, of=of))

    def duplicate(self, answers: int = 1, *, of: str | Iterable[str] | None = None) -> Fault:
        """Give an answer twice. Over HTTP that cannot be, and is not done; nor is it with pushes.

        Raises ValueError if `of` names a push.
        """
        fault = Fault(self, DUPLICATE, answers=answers, of=of)
        if any(fault.is_of(one, is_push=True) for one in _PUSHES):
            raise ValueError("a push comes once, however a connection breaks: name an operation")
        return self._begin(fault)

    def delay(
        self, seconds: float, answers: int | None = None, *, of: str | Iterable[str] | None = None
    ) -> Fault:
        """Have answers come later, and what comes behind them over the same connection.

        All of them, until it is ended; or the next `answers`.
        """
        return self._begin(Fault(self, DELAY, answers=answers, of=of, seconds=seconds))

    def refuse(self) -> Fault:
        """Break new connections off as they come, until it is ended. Those that there are stay."""
        return self._begin(Fault(self, REFUSE, answers=None, of=()))

    def cut(self) -> None:
        """Break off all connections that there are, now."""
        self._cut()

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._standing.clear()
            hung, self._has_hung = self._has_hung, False
        if hung:
            self._cut()

    def _begin(self, fault: Fault) -> Fault:
        with self._lock:
            self._standing.append(fault)
        return fault

    def _end(self, fault: Fault) -> None:
        with self._lock:
            if fault in self._standing:
                self._standing.remove(fault)
            hung = fault.kind == WITHHOLD and self._has_hung
            self._has_hung &= not hung
        if hung:
            self._cut()

    # For the proxy

    @property
    def is_any(self) -> bool:
        """Whether anything shall go wrong. Not for users."""
        return bool(self._standing)

    def refuses(self) -> bool:
        """Whether a connection that comes is broken off. Not for users."""
        with self._lock:
            for fault in self._standing:
                if fault.kind == REFUSE:
                    fault.happened += 1
                    return True
            return False

    def strike(self, operation: str, *, is_push: bool = False) -> list[Fault]:
        """What goes wrong with this answer, which counts for each of them. Not for users."""
        with self._lock:
            struck = [
                one
                for one in self._standing
                if one.kind != REFUSE and one.is_of(operation, is_push=is_push)
            ]
            for fault in struck:
                fault.happened += 1
                self._has_hung |= fault.kind == WITHHOLD
                if fault.is_over:
                    self._standing.remove(fault)
            return struck
