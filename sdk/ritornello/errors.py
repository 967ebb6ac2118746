"""What can go wrong, as one tree. All of it is a `RitornelloError`.

    RitornelloError
        RequestError            the cluster has refused a request
            BadRequest              it makes no sense
            Unauthenticated         the token is not known, or has expired
            Forbidden               the token is not for this
            SessionNotFound         no session has this id, or holds this key
            LeaseLost               the session is not yours any more
            WrongPhase              not possible in the session's phase
            RevisionMismatch        the session has changed
            KeyConflict             another session holds the key
            IdempotencyMismatch     the key was used for another request
            TxnAborted              one operation of a transaction has failed
            Skipped                 an operation before it, on the same session, has failed
            LimitExceeded           a bound of the session, its theme or the cluster
            Overloaded              too much waits
            Unavailable             the node stops, or made a mistake
        DeadlineExceeded        no answer in time
        NotConnected            no node can be reached, or the connection was lost
        ClientClosed            the client was closed
        ProtocolError           what came is not what the protocol says

Each has `code`, stable and for programs; `outcome`, whether the request was done; and `retryable`,
whether the same request may succeed later with nothing changed. The client has tried again by
itself, within the call's deadline, before it raises what is retryable.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

E = TypeVar("E", bound="RitornelloError")

_BY_CODE: dict[str, type["RequestError"]] = {}


class Outcome(StrEnum):
    """Whether a request that failed was done."""

    NOT_APPLIED = "not_applied"  # it was not, and will not be
    UNKNOWN = "unknown"  # it may have been, or may yet be


class RitornelloError(Exception):
    """Base of all errors of this package."""

    code: str = "error"

    def __init__(
        self,
        detail: str,
        *,
        outcome: Outcome = Outcome.NOT_APPLIED,
        retryable: bool = False,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.outcome = outcome
        self.retryable = retryable

    def __str__(self) -> str:
        doubt = "" if self.outcome is Outcome.NOT_APPLIED else " (it may have been done)"
        return f"{self.code}: {self.detail}{doubt}"


class RequestError(RitornelloError):
    """The cluster has refused a request. `fields` is all that it said."""

    def __init_subclass__(cls, *, codes: tuple[str, ...] = ()) -> None:
        super().__init_subclass__()
        _BY_CODE.update(dict.fromkeys(codes, cls))

    def __init__(self, fields: Mapping[str, Any]) -> None:
        unknown = fields.get("outcome") != Outcome.NOT_APPLIED
        super().__init__(
            str(fields.get("detail", "")),
            outcome=Outcome.UNKNOWN if unknown else Outcome.NOT_APPLIED,
            retryable=fields.get("retryable") is True,
        )
        self.code = str(fields.get("code", "error"))
        self.fields = dict(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.fields,)

    @property
    def retry_after_s(self) -> float | None:
        """When the cluster asks to be tried again, if it says so."""
        after_ms = self.fields.get("retry_after_ms")
        return after_ms / 1000 if isinstance(after_ms, int | float) else None

    @property
    def request_id(self) -> str | None:
        """As the server's log names the request; over HTTP only."""
        found = self.fields.get("request_id")
        return found if isinstance(found, str) else None

    def _int(self, name: str) -> int | None:
        found = self.fields.get(name)
        return found if isinstance(found, int) else None

    def _text(self, name: str) -> str | None:
        found = self.fields.get(name)
        return found if isinstance(found, str) else None


class BadRequest(
    RequestError,
    codes=(
        "bad_request",
        "malformed",
        "out_of_range",
        "too_large",
        "not_found",
        "method_not_allowed",
        "not_acceptable",
        "unsupported_media",
        "unsupported_version",
        "unknown_operation",
        "header_too_large",
        "expectation_failed",
        "upgrade_required",
    ),
):
    """The request makes no sense; `detail` says what to send."""


class Unauthenticated(RequestError, codes=("unauthenticated",)):
    """The token is missing or not known, or has expired."""


class Forbidden(RequestError, codes=("forbidden",)):
    """The token is not for this."""


class SessionNotFound(RequestError, codes=("session_not_found",)):
    """No session has this id, or holds this key."""


class LeaseLost(RequestError, codes=("lease_lost",)):
    """The session is not yours any more: its lease ended, or somebody ended it.

    With the outcome `unknown` it may be over by your own verdict, whose answer was lost.
    """

    @property
    def session_id(self) -> str | None:
        return self._text("id")

    @property
    def epoch(self) -> int | None:
        """The one that was shown."""
        return self._int("epoch")

    @property
    def current_epoch(self) -> int | None:
        """The newest one, if it is known."""
        return self._int("current_epoch")

    @property
    def cause(self) -> str | None:
        """Why, if that is known: a cause of the session's history, `removed` or `resumed`."""
        return self._text("cause")


class WrongPhase(RequestError, codes=("wrong_phase",)):
    """Not possible while the session is in this phase."""

    @property
    def phase(self) -> str | None:
        return self._text("phase")


class RevisionMismatch(RequestError, codes=("revision_mismatch",)):
    """The session has changed: its revision is `current`."""

    @property
    def current(self) -> int | None:
        return self._int("current")


class KeyConflict(RequestError, codes=("key_conflict",)):
    """Another session of the theme holds the key: the one whose id is `holder`."""

    @property
    def holder(self) -> str | None:
        return self._text("holder")

    @property
    def phase(self) -> str | None:
        """Of the holder."""
        return self._text("phase")


class IdempotencyMismatch(RequestError, codes=("idempotency_mismatch",)):
    """The idempotency key was used for another request."""


class TxnAborted(RequestError, codes=("txn_aborted",)):
    """One operation of a transaction has failed, so none was done."""

    @property
    def position(self) -> int | None:
        """Which one, from 0."""
        return self._int("position")

    @property
    def cause(self) -> RequestError | None:
        """Its error."""
        found = self.fields.get("cause")
        return request_error(found) if isinstance(found, Mapping) else None


class Skipped(RequestError, codes=("skipped",)):
    """An operation before it, on the same session, has failed; so this one was not done."""


class LimitExceeded(RequestError, codes=("limit_exceeded",)):
    """A bound of a chunk, a session, a theme, or the whole cluster."""

    @property
    def limit(self) -> str | None:
        """Its name."""
        return self._text("limit")

    @property
    def bound(self) -> int | None:
        return self._int("bound")

    @property
    def value(self) -> int | None:
        """What was asked for."""
        return self._int("value")


class Overloaded(RequestError, codes=("overloaded", "rate_limited", "too_many_connections")):
    """Too much waits at the node."""


class Unavailable(
    RequestError,
    codes=(
        "draining",
        "stopping",
        "timed_out",
        "request_timeout",
        "internal",
        "copy_failed",
        "sequence_expired",
        "incarnation_superseded",
        "stale_term",
    ),
):
    """The node stops, is not part of a majority, or has made a mistake."""


class DeadlineExceeded(RitornelloError, TimeoutError):
    """No answer in the time that the call was given."""

    code = "deadline_exceeded"

    def __init__(self, detail: str, *, outcome: Outcome = Outcome.NOT_APPLIED) -> None:
        super().__init__(detail, outcome=outcome, retryable=True)


class NotConnected(RitornelloError, ConnectionError):
    """No node could be reached, or the connection was lost before the answer came."""

    code = "not_connected"

    def __init__(self, detail: str, *, outcome: Outcome = Outcome.NOT_APPLIED) -> None:
        super().__init__(detail, outcome=outcome, retryable=True)


class ClientClosed(RitornelloError):
    """The client was closed, or never opened."""

    code = "client_closed"


class ProtocolError(RitornelloError):
    """What came is not what the protocol says: another version, or no Ritornello at all."""

    code = "protocol_error"


def doubted(error: E) -> E:
    """The same error, of what may have been done all the same. Not for users."""
    error.outcome = Outcome.UNKNOWN
    if isinstance(error, RequestError):
        error.fields["outcome"] = Outcome.UNKNOWN.value
    return error


def request_error(fields: Mapping[str, Any]) -> RequestError:
    """The error for what the cluster said; a `RequestError` itself if its code is not known.

    Not for users.
    """
    return _BY_CODE.get(str(fields.get("code")), RequestError)(fields)


def unsayable(error: Exception) -> RequestError:
    """The error for what no message can hold. Not for users."""
    detail = f"it cannot be said: {error}"
    return request_error(
        {"code": "bad_request", "outcome": "not_applied", "retryable": False, "detail": detail}
    )
