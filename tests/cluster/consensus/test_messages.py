from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.consensus import messages
from cluster.consensus.messages import (
    MESSAGE_NUMBER_MAX,
    TERM_MAX,
    Append,
    Appended,
    MalformedMessageError,
    Message,
    decode,
    encode,
)

NUMBERS = st.integers(0, MESSAGE_NUMBER_MAX)
KINDS = list(messages._BY_CODE.values())  # noqa: SLF001


@st.composite
def any_message(draw: st.DrawFn) -> Message:
    kind: Any = draw(st.sampled_from(KINDS))
    fields: dict[str, object] = {}
    for name in kind._fields:
        values: st.SearchStrategy[object] = NUMBERS
        if name == "term":
            values = st.integers(0, TERM_MAX)
        elif name in {"batch", "data", "digest"}:
            values = st.binary(max_size=40)
        elif name == "to":
            values = st.text(max_size=20)
        fields[name] = draw(values)
    if kind is Append:
        terms = sorted(draw(st.lists(st.integers(0, TERM_MAX), min_size=2, max_size=6)))
        fields["previous_term"], fields["term"] = terms[0], terms[-1]
        commands = st.binary(max_size=20)
        fields["entries"] = tuple((term, draw(commands)) for term in terms[1:-1])
    message: Message = kind(**fields)
    return message


@given(any_message())
def test_what_is_written_is_read(message: Message) -> None:
    assert decode(encode(message)) == message
    assert decode(memoryview(encode(message))) == message


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        message = decode(data)
    except MalformedMessageError:
        return
    assert type(message) in KINDS


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary(max_size=9)
    | st.text(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.integers(0, 9), inner),
    max_leaves=20,
)


@given(st.lists(PLAIN, max_size=8))
def test_any_values_are_a_message_or_malformed(values: list[object]) -> None:
    try:
        message = decode(msgpack.packb(values))
    except MalformedMessageError:
        return
    assert type(message) in KINDS


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([], "not a message"),
        ([99, 1], "code 99"),
        ([2, 1], "wrong type"),
        ([2, 1, True], "wrong type"),
        ([2, -1, 1], "out of range"),
        ([2, 1, 2**63], "out of range"),
        ([9, 2**48 + 1], "beyond what elections can count to"),
        ([1, 3, 1, 1, 1, [[2, b"a"], [1, b"b"]]], "go back"),
        ([1, 3, 1, 1, 1, [[4, b"a"]]], "beyond their leader's"),
        ([1, 3, 1, 2, 1, [[1, b"a"]]], "go back"),
        ([1, 3, 1, 1, 1, [[2, "a"]]], "not a term and a command"),
    ],
)
def test_nonsense_is_named(values: list[object], problem: str) -> None:
    with pytest.raises(MalformedMessageError, match=problem):
        decode(msgpack.packb(values))


def test_the_bytes_of_a_message() -> None:
    assert encode(Appended(3, 300)).hex() == "930203cd012c"
    assert encode(Append(1, 2, 1, 2, ((1, b"x"),))).hex() == "96010102010291" + "9201c40178"
