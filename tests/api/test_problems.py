"""What clients are told of what was not done."""

from dataclasses import fields
from typing import Any, get_type_hints

import msgspec
import pytest

from api.problems import INTERNAL, STATUSES, Problem, bad_request, of_failure, refusal
from api.security import Forbidden, Unauthenticated
from api.steps import SKIPPED
from cluster.failures import Overloaded, Stopping, TimedOut, TooLarge
from state import Failure
from state.errors import (
    FAILURES,
    KeyConflict,
    LeaseLost,
    LimitExceeded,
    RevisionMismatch,
    SessionNotFound,
    TxnAborted,
)

ALL: tuple[type[Failure], ...] = (*FAILURES, Overloaded, TimedOut, Stopping, TooLarge)


def example(kind: type[Failure]) -> Failure:
    """A failure with some value in each of its fields."""
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(kind, vars()).items():
        if name not in {one.name for one in fields(kind)}:
            continue
        values[name] = {int: 26, str: "text", bool: True}.get(hint, SessionNotFound())
    return kind(**values)


@pytest.mark.parametrize("kind", ALL, ids=[one.code for one in ALL])
def test_every_failure_becomes_a_problem(kind: type[Failure]) -> None:
    failure = example(kind)
    problem = of_failure(failure)
    assert problem.code == failure.code
    assert problem.outcome == failure.outcome
    assert problem.retryable == failure.retryable
    assert problem.detail == str(failure)
    document = msgspec.json.decode(problem.document("id-1"))
    assert document["status"] == problem.status
    assert document["request_id"] == "id-1"
    assert document["type"] == f"urn:ritornello:problem:{failure.code}"
    assert 400 <= problem.status < 600


@pytest.mark.parametrize(
    ("failure", "status", "extra"),
    [
        (SessionNotFound(), 404, {}),
        (LeaseLost(26, 1, 2), 409, {"id": "1a", "epoch": 1, "current_epoch": 2}),
        (RevisionMismatch(26, 1, 2), 412, {"id": "1a", "revision": 1, "current": 2}),
        (KeyConflict(26, "stored"), 409, {"holder": "1a", "phase": "stored"}),
        (LimitExceeded("key_bytes", 3, 2), 422, {"limit": "key_bytes", "value": 3, "bound": 2}),
        (LimitExceeded("state_bytes", 3, 2), 507, {"limit": "state_bytes"}),
        (LimitExceeded("max_active", 3, 2), 422, {"limit": "max_active"}),
        (Overloaded(250), 429, {"retry_after_ms": 250}),
        (TimedOut(was_sent=True, waited_ms=9), 504, {"outcome": "unknown"}),
        (TimedOut(was_sent=False, waited_ms=9), 504, {"outcome": "not_applied"}),
        (Stopping(was_sent=False, reason="so"), 503, {"retryable": True}),
        (TooLarge(9, 8), 413, {"size_bytes": 9, "bound": 8}),
        (SKIPPED, 409, {"retryable": True}),
    ],
)
def test_a_problem_has_what_belongs_to_it(
    failure: Failure, status: int, extra: dict[str, Any]
) -> None:
    problem = of_failure(failure)
    assert problem.status == status
    assert extra.items() <= problem.fields().items()


def test_a_transaction_has_the_status_of_what_failed_in_it() -> None:
    problem = of_failure(TxnAborted(2, RevisionMismatch(26, 1, 2)))
    assert (problem.status, problem.code) == (412, "txn_aborted")
    assert problem.extra["position"] == 2
    assert problem.extra["cause"]["code"] == "revision_mismatch"
    assert problem.extra["cause"]["id"] == "1a"
    full = TxnAborted(0, LimitExceeded("state_bytes", 3, 2))
    assert of_failure(full).status == 507


@pytest.mark.parametrize(
    "problem",
    [
        bad_request("x").problem,
        refusal(409, "skipped", "x").problem,
        Unauthenticated("x").problem,
        Forbidden("x").problem,
        INTERNAL,
    ],
)
def test_the_front_ends_own_are_in_the_table(problem: Problem) -> None:
    assert STATUSES[problem.code] == problem.status
