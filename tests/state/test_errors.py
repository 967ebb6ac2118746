"""The tree of failures is the one at the top of its module."""

import re
from dataclasses import FrozenInstanceError, fields

import pytest

from state import Failure, Outcome, errors
from state.errors import (
    FAILURE_BY_CODE,
    FAILURE_FIELDS,
    FAILURES,
    RECEDING_LIMITS,
    LeaseLost,
    LimitExceeded,
    Malformed,
    Refused,
    SessionNotFound,
    TxnAborted,
)
from state.limits import LIMIT_RANGES
from state.operations import SetLimits, SetPolicy
from state.policy import POLICY_RANGES
from tests.state.driver import Driver

_ROW = re.compile(r"[├└]── (\w+) +(\w+) +(\w+) +(no|yes|by limit|as its cause)$")


def printed() -> list[tuple[str, str, str, str]]:
    """The rows of the tree in the module's docstring: class, code, outcome, retryable."""
    lines = (errors.__doc__ or "").splitlines()
    found = (_ROW.search(line.strip()) for line in lines)
    return [(row[1], row[2], row[3], row[4]) for row in found if row]


def made(failure: type[Failure]) -> Failure:
    """One with something in every field."""
    values: dict[str, object] = {"int": 41, "str": "word", "Failure": SessionNotFound()}
    return failure(
        *(values[getattr(one.type, "__name__", str(one.type))] for one in fields(failure))
    )


def test_the_tree_lists_all_failures_in_order() -> None:
    assert [row[0] for row in printed()] == [failure.__name__ for failure in FAILURES]


def test_all_failures_of_the_module_are_registered() -> None:
    found = {
        one
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, Failure) and one is not Failure
    }
    assert found == set(FAILURES)
    assert {failure.code: failure for failure in FAILURES} == FAILURE_BY_CODE
    assert len(FAILURE_BY_CODE) == len(FAILURES)


@pytest.mark.parametrize("row", printed(), ids=lambda row: row[0])
def test_each_is_as_the_tree_says(row: tuple[str, str, str, str]) -> None:
    name, code, outcome, retryable = row
    failure = FAILURE_BY_CODE[code]
    assert failure.__name__ == name
    assert failure.outcome == outcome
    one = made(failure)
    if retryable == "by limit":
        assert {LimitExceeded(limit, 2, 1).retryable for limit in ("themes", "chunk_bytes")} == {
            True,
            False,
        }
    elif retryable == "as its cause":
        for cause in (SessionNotFound(), LimitExceeded("themes", 2, 1)):
            assert TxnAborted(0, cause).retryable == cause.retryable
    else:
        assert one.retryable == (retryable == "yes")


@pytest.mark.parametrize("failure", FAILURES)
def test_the_code_is_the_name_in_lower_case(failure: type[Failure]) -> None:
    assert re.sub(r"(?<!^)([A-Z])", r"_\1", failure.__name__).lower() == failure.code


@pytest.mark.parametrize("failure", FAILURES)
def test_its_text_is_a_readable_sentence_with_its_values(failure: type[Failure]) -> None:
    text = str(made(failure))
    assert failure.__name__ not in text
    assert not re.search(r"[<>{}=]|None|\(\)", text)
    assert text == text.strip()
    assert not text[0].isupper()
    assert not text.endswith(".")
    if failure is not Malformed:
        assert " " in text
        said = [one for one in FAILURE_FIELDS[failure] if one not in ("session_id", "holder_id")]
        for name in said:
            value = getattr(made(failure), name)
            assert str(value) in text, f"{name} is not in the text"


@pytest.mark.parametrize("failure", FAILURES)
def test_failures_are_values(failure: type[Failure]) -> None:
    one = made(failure)
    assert one == made(failure)
    assert hash(one) == hash(made(failure))
    assert failure.__doc__
    assert FAILURE_FIELDS[failure] == tuple(field.name for field in fields(failure))
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        one.code = "other"  # type: ignore[misc]


def test_unknown_outcomes_are_those_of_what_may_have_been_applied_before() -> None:
    unknown = {failure.code for failure in FAILURES if failure.outcome is Outcome.UNKNOWN}
    assert unknown == {"sequence_expired", "incarnation_superseded"}


def test_a_refusal_carries_its_failure() -> None:
    failure = LeaseLost(1, 2, 3)
    assert Refused(failure).failure is failure
    assert str(failure) in str(Refused(failure))


def test_receding_limits_exist() -> None:
    assert {*LIMIT_RANGES, *POLICY_RANGES} >= RECEDING_LIMITS


@pytest.mark.parametrize("name", sorted(RECEDING_LIMITS))
def test_a_setting_out_of_its_range_is_never_retryable(name: str) -> None:
    """The same setting will be out of range for ever, whatever fills up and empties."""
    ranges = LIMIT_RANGES if name in LIMIT_RANGES else POLICY_RANGES
    for value in (ranges[name].minimum - 1, ranges[name].maximum + 1):
        settings = ((name, value),)
        operation = SetLimits(settings) if name in LIMIT_RANGES else SetPolicy(7, settings)
        failure = Driver().do(operation)
        assert isinstance(failure, Failure)
        assert not failure.retryable, failure


def test_texts_are_the_same_on_every_python() -> None:
    """Results are compared between nodes, and what is printable differs between versions."""
    assigned, unassigned = "\u00e9", "\U000323b0"
    failure = Driver().do(SetLimits(((assigned + unassigned, 1),)))
    assert isinstance(failure, Malformed)
    assert (assigned in failure.problem) == (unassigned in failure.problem)
