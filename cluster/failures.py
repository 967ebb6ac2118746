"""What an operation answers when the cluster, and not the state machine, did not do it.

They join the tree of `state.errors`, so that a caller has one kind of answer to look at:

    Failure
    ├── ... of the state machine, see state.errors
    ├── Overloaded      overloaded       not_applied             retryable
    ├── TimedOut        timed_out        not_applied or unknown  retryable
    ├── Stopping        stopping         not_applied or unknown  retryable, at another node
    └── TooLarge        too_large        not_applied             no

`OperationError` carries any of them to where an exception reads better than a value.
"""

from dataclasses import dataclass
from typing import ClassVar

from state import Failure, Outcome


@dataclass(frozen=True, slots=True)
class Overloaded(Failure):
    """More waits for a batch than this node may hold. Try again after `retry_after_ms`."""

    code: ClassVar[str] = "overloaded"
    retry_after_ms: int

    @property
    def retryable(self) -> bool:
        return True

    def __str__(self) -> str:
        return f"too many operations wait; try again in {self.retry_after_ms} ms"


@dataclass(frozen=True, slots=True)
class Undecided(Failure):
    """Base of what ends a wait before the cluster has answered."""

    was_sent: bool  # then it may have been applied, or may still be

    @property
    def outcome(self) -> Outcome:  # type: ignore[override]  # of this answer, not of its class
        return Outcome.UNKNOWN if self.was_sent else Outcome.NOT_APPLIED

    @property
    def retryable(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class TimedOut(Undecided):
    """The deadline passed: before the operation was sent, or without an answer to it."""

    code: ClassVar[str] = "timed_out"
    waited_ms: int

    def __str__(self) -> str:
        return f"no answer within {self.waited_ms} ms; the operation's outcome is {self.outcome}"


@dataclass(frozen=True, slots=True)
class Stopping(Undecided):
    """This node is being stopped, or has failed; another one may serve."""

    code: ClassVar[str] = "stopping"
    reason: str

    def __str__(self) -> str:
        return f"this node stops: {self.reason}"


@dataclass(frozen=True, slots=True)
class TooLarge(Failure):
    """One operation has more bytes than a batch may have."""

    code: ClassVar[str] = "too_large"
    size_bytes: int
    bound: int

    def __str__(self) -> str:
        return f"the operation has {self.size_bytes} bytes, a batch {self.bound} at most"


class OperationError(Exception):
    """An operation was not done. `failure` says why, with its code, outcome and retryability."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}: {failure}")
        self.failure = failure


class ClusterError(Exception):
    """Base of what keeps a node from starting or going on."""


class SettingsError(ClusterError):
    """Settings that make no sense; the message says which and what to write."""


class MisalignedError(ClusterError):
    """The journal and the checkpoint on a disk do not belong together."""
