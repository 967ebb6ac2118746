"""Records survive their bytes, and no bytes do harm."""

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from cluster.storage.records import (
    INTEGER_MAX,
    Base,
    Commit,
    Encoder,
    Entry,
    Identity,
    Incarnation,
    MalformedError,
    Record,
    State,
    Truncate,
    Vote,
    decode,
)

numbers = st.integers(0, INTEGER_MAX)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
commands = st.one_of(st.binary(max_size=50), st.binary(min_size=4090, max_size=4105))
records: st.SearchStrategy[Record | State] = st.one_of(
    st.builds(Entry, numbers, numbers, commands),
    st.builds(Truncate, numbers),
    st.builds(Vote, numbers, st.none() | texts),
    st.builds(Commit, numbers),
    st.builds(Base, numbers, numbers, st.booleans()),
    st.builds(Incarnation, numbers),
    st.builds(
        State,
        st.builds(Identity, texts, texts),
        numbers,
        numbers,
        st.none() | texts,
        numbers,
        numbers,
        numbers,
        numbers,
        numbers,
    ),
)


def encoded(given_records: list[Record | State]) -> bytes:
    encoder = Encoder()
    for record in given_records:
        encoder.add(record)
    data = b"".join(encoder.buffers)
    assert encoder.size_bytes == len(data)
    return data


def understood(data: bytes) -> None:
    """Decode, and see that what came of it is records as any others."""
    found = decode(memoryview(data))
    assert decode(memoryview(encoded(found))) == found


@given(st.lists(records))
def test_records_survive_their_bytes(some: list[Record | State]) -> None:
    back = decode(memoryview(encoded(some)))
    assert back == some
    assert [type(record) for record in back] == [type(record) for record in some]


@given(st.lists(records, min_size=1, max_size=3), st.data())
def test_damaged_bytes_are_records_or_malformed(
    some: list[Record | State], data: st.DataObject
) -> None:
    changed = bytearray(encoded(some))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(0, len(changed))) :]
    with contextlib.suppress(MalformedError):
        understood(bytes(changed))


@given(st.binary(max_size=300))
def test_any_bytes_are_records_or_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedError):
        understood(data)
