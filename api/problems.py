"""Why a request was not done, as clients are told.

One tree of codes: those of the state machine (`state.errors`) and of the cluster
(`cluster.failures`), which are failures of an operation, and those of the front end below. Each has
an HTTP status; over a WebSocket the same fields travel without it.

    bad_request           400   not_applied   no          what was sent cannot be understood
    unauthenticated       401   not_applied   no
    forbidden             403   not_applied   no
    not_found             404   not_applied   no          no such route
    method_not_allowed    405   not_applied   no
    not_acceptable        406   not_applied   no
    request_timeout       408   not_applied   retryable   it did not arrive in time
    skipped               409   not_applied   retryable   an operation before it, of the same
                                                          session, had failed
    too_large             413   not_applied   no          a body or a frame beyond its bound
    unsupported_media     415   not_applied   no
    expectation_failed    417   not_applied   no
    upgrade_required      426   not_applied   no          a WebSocket was not asked for
    rate_limited          429   not_applied   retryable
    header_too_large      431   not_applied   no
    internal              500   unknown       no
    copy_failed           503   not_applied   retryable   the disk refuses a copy of the state
    draining              503   not_applied   retryable   at another node
    too_many_connections  503   not_applied   retryable
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from api.identifiers import session_text
from state import Failure
from state.errors import TxnAborted

PROBLEM_TYPE = "application/problem+json"

# The status of each code. Other failures of operations are the request's fault: 400.
STATUSES: Mapping[str, int] = {
    "bad_request": 400,
    "malformed": 400,
    "not_stale": 400,  # only the reaper hears of it
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "session_not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "request_timeout": 408,
    "key_conflict": 409,
    "lease_lost": 409,
    "skipped": 409,
    "txn_aborted": 409,  # or that of the operation that failed
    "wrong_phase": 409,
    "revision_mismatch": 412,
    "too_large": 413,
    "unsupported_media": 415,
    "expectation_failed": 417,
    "idempotency_mismatch": 422,
    "limit_exceeded": 422,  # 507 if it is the whole cluster's
    "out_of_range": 422,
    "upgrade_required": 426,
    "overloaded": 429,
    "rate_limited": 429,
    "header_too_large": 431,
    "internal": 500,
    "copy_failed": 503,  # or 507
    "draining": 503,
    "stale_term": 503,
    "stopping": 503,
    "too_many_connections": 503,
    "unknown_operation": 503,  # nodes of two versions
    "unsupported_version": 503,
    "incarnation_superseded": 504,
    "sequence_expired": 504,
    "timed_out": 504,
}
_FULL = frozenset({"receipts", "state_bytes", "consumers", "themes"})  # the whole cluster's

_TEXT_IDS = {"session_id": "id", "holder_id": "holder"}


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told: the members of RFC 9457, and ours."""

    status: int
    code: str
    outcome: str
    retryable: bool
    detail: str
    retry_after_ms: int | None = None
    # What belongs to the code: the current epoch, the bound that was passed, the key's holder.
    extra: dict[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """As it travels over a WebSocket, and inside of a problem document."""
        found: dict[str, Any] = {
            "code": self.code,
            "outcome": self.outcome,
            "retryable": self.retryable,
            "detail": self.detail,
        }
        if self.retry_after_ms is not None:
            found["retry_after_ms"] = self.retry_after_ms
        found.update(self.extra)
        return found

    def document(self, request_id: str) -> bytes:
        """The body of an HTTP answer: `application/problem+json`."""
        title = self.code.replace("_", " ")
        head = {"type": f"urn:ritornello:problem:{self.code}", "title": title}
        body = {**head, "status": self.status, **self.fields(), "request_id": request_id}
        return msgspec.json.encode(body)


class Refusal(Exception):
    """Carries a `Problem` from where it was found to where answers are made."""

    headers: Mapping[str, str] = {}  # of the HTTP answer, beside those of all problems

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.code}: {problem.detail}")
        self.problem = problem


def of_failure(failure: Failure) -> Problem:
    """What a client is told of an operation that was not done."""
    extra: dict[str, Any] = {}
    for one in fields(failure):
        value = getattr(failure, one.name)
        if isinstance(value, Failure):
            extra[one.name] = of_failure(value).fields()
        elif one.name in _TEXT_IDS:
            extra[_TEXT_IDS[one.name]] = session_text(value)
        elif one.name not in {"retry_after_ms", "problem"}:
            extra[one.name] = value
    return Problem(
        _status_of(failure),
        failure.code,
        str(failure.outcome),
        failure.retryable,
        str(failure),
        getattr(failure, "retry_after_ms", None),
        extra,
    )


def _status_of(failure: Failure) -> int:
    if isinstance(failure, TxnAborted):
        return _status_of(failure.cause)
    if failure.code == "limit_exceeded" and getattr(failure, "limit", "") in _FULL:
        return 507
    return STATUSES.get(failure.code, 400)


def bad_request(detail: str) -> Refusal:
    """What was sent cannot be understood; `detail` says what to send."""
    return Refusal(Problem(400, "bad_request", "not_applied", retryable=False, detail=detail))


def refusal(
    status: int,
    code: str,
    detail: str,
    *,
    retryable: bool = False,
    retry_after_ms: int | None = None,
    outcome: str = "not_applied",
) -> Refusal:
    """Any other of the front end's own."""
    return Refusal(Problem(status, code, outcome, retryable, detail, retry_after_ms))


INTERNAL = Problem(
    500,
    "internal",
    "unknown",
    retryable=False,
    detail="the server has made a mistake; its log says more",
)
