"""Bytes in, values out, and back. The files in `golden/` pin the bytes for all versions to come.

A golden file has, for each entry, the value as Python writes it behind a `#`, and a line with the
name and the bytes. `--rewrite` writes them anew; a line that changes then is a break of the format,
unless no released version has ever written it.
"""

import contextlib
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import (
    BATCH_VERSION,
    LIMITS,
    Acquired,
    Cause,
    Created,
    Done,
    Failure,
    OnConflict,
    Operation,
    Result,
    Stored,
    encode,
    encode_batch,
    operations,
)
from state.codec import (
    Header,
    check_size,
    decode,
    decode_header,
    decode_operations,
    encode_values,
    fingerprint,
    plain,
)
from state.errors import (
    FAILURES,
    IdempotencyMismatch,
    IncarnationSuperseded,
    KeyConflict,
    LeaseLost,
    LimitExceeded,
    Malformed,
    NotStale,
    OutOfRange,
    Refused,
    RevisionMismatch,
    SequenceExpired,
    SessionNotFound,
    StaleTerm,
    TxnAborted,
    UnknownOperation,
    UnsupportedVersion,
    WrongPhase,
)
from state.limits import SEQUENCE_MAX
from state.operations import (
    OPERATION_BY_CODE,
    OPERATIONS,
    Acquire,
    AcquireSession,
    Append,
    Barrier,
    ForgetProposer,
    Heartbeat,
    Idempotent,
    New,
    Park,
    Pause,
    Release,
    Remove,
    Replace,
    Resume,
    SetLimits,
    SetPolicy,
    Store,
    Tick,
    Touch,
    Txn,
    Unpark,
    field_names,
    shapes,
)
from state.results import pack_result, unpack_result, weight
from tests.state.driver import Driver, replay, rich_batches

GOLDEN = Path(__file__).parent / "golden"
KEY = (7, b"key")

OPERATION_SAMPLES: dict[str, Operation] = {
    "New-absent": New(7),
    "New-present": New(7, b"key", b"data", 5, 60_000, OnConflict.BRING_FORWARD, b"by", b"trace"),
    "New-return-existing": New(2**32 - 1, b"key", on_conflict=OnConflict.RETURN_EXISTING),
    "New-due-at-once": New(0, b"\x00\xff", b"\x80", 2**16 - 1, 0),
    "Append-absent": Append(1, None, b""),
    "Append-present": Append(1, 2, b"data", 3),
    "Append-by-key": Append(KEY, 2, b"data"),
    "Append-large-id": Append(2**48 - 1, 2**40, b"data", 2**33),
    "Replace-absent": Replace(1, None, b""),
    "Replace-present": Replace(1, 2, b"data", 3),
    "Replace-by-key": Replace(KEY, 2, b"data"),
    "Remove-absent": Remove(1, None),
    "Remove-present": Remove(1, 2, 3),
    "Remove-by-key": Remove(KEY, None),
    "Store-absent": Store(1, None),
    "Store-present": Store(1, 2, 60_000, Cause.FAILED, "no answer", 3),
    "Store-by-key": Store(KEY, 2, 0),
    **{f"Store-cause-{cause.name.lower()}": Store(1, 2, cause=cause) for cause in Cause},
    "Store-long-repeat": Store(1, 2, 10 * 365 * 86_400_000),
    "Store-reason-of-many-tongues": Store(1, 2, None, Cause.FAILED, "zu spät ritornéllo 音楽"),
    "Acquire-absent": Acquire((7,)),
    "Acquire-present": Acquire((7, 300, 2**32 - 1), 1000, b"consumer"),
    "AcquireSession-absent": AcquireSession(1),
    "AcquireSession-present": AcquireSession(1, b"consumer", 3),
    "AcquireSession-by-key": AcquireSession(KEY),
    "Touch-absent": Touch(1, None),
    "Touch-present": Touch(1, 2, b"consumer"),
    "Touch-by-key": Touch(KEY, 2),
    "Park-absent": Park(1, None),
    "Park-present": Park(1, 2, "poison", 3),
    "Park-by-key": Park(KEY, 2),
    "Unpark-absent": Unpark(1),
    "Unpark-present": Unpark(1, 3),
    "Unpark-by-key": Unpark(KEY),
    "SetPolicy-absent": SetPolicy(7, ()),
    "SetPolicy-present": SetPolicy(7, (("repeat_ms", 10_000), ("backoff", 1), ("max_active", 9))),
    "Pause": Pause(7),
    "Resume": Resume(7),
    "Txn-absent": Txn(()),
    "Txn-present": Txn((Remove(1, 2), New(8, b"key", b"data"), Append(KEY, None, b"data"))),
    "Tick": Tick(1_700_000_000_000),
    "Tick-zero": Tick(0),
    "Barrier": Barrier(),
    "Heartbeat": Heartbeat(b"consumer"),
    "Idempotent-New": Idempotent(b"once", 86_400_000, New(7)),
    "Idempotent-Txn": Idempotent(b"once", 1, Txn((Remove(1, 2), Store(KEY, None)))),
    "SetLimits-absent": SetLimits(()),
    "SetLimits-present": SetLimits((("chunk_bytes", 1024), ("state_bytes", 2**40))),
    "ForgetProposer": ForgetProposer("node-1"),
    "Release-absent": Release(b"consumer", 1),
    "Release-present": Release(b"consumer", 1024, Cause.SHUTDOWN, "its node leaves"),
    "Release-cause-failed": Release(b"node-1/1700000000000/web", 500, Cause.FAILED),
}

BATCH_SAMPLES: dict[str, tuple[str, int, int, int, tuple[Operation, ...]]] = {
    "empty": ("n", 0, 0, 0, ()),
    "one": ("node-1", 1, 2, 3, (Barrier(),)),
    "fifteen": ("node-1", 1, 200, 3, (Barrier(),) * 15),
    "sixteen": ("node-1", 1, 2**16, 3, (Barrier(),) * 16),
    "largest-numbers": ("node-1", SEQUENCE_MAX, SEQUENCE_MAX, SEQUENCE_MAX, (Barrier(),)),
    "longest-proposer": ("p" * 64, 1, 2**32, 3, (Barrier(),)),
    "proposer-of-another-tongue": ("ノード", 1, 2, 3, (Barrier(),)),
    "several": ("node-1", 1, 2, 3, (Tick(1000), New(7, b"key"), Append(KEY, 1, b"data"))),
}

RESULT_SAMPLES: dict[str, Result] = {
    "None": None,
    "int": 3,
    "int-large": 2**48,
    "Created": Created(1, 1, 1, created=True),
    "Created-existing": Created(2**48 - 1, 0, 12, created=False),
    "Stored": Stored(1, 2, 1_700_000_000_000, parked=False),
    "Stored-parked": Stored(1, 2, 3, parked=True),
    "Acquired": Acquired(1, 2, 3),
    "several-none": (),
    "several-two": (Acquired(1, 2, 3), Acquired(4, 5, 6)),
    "Done-none": Done(()),
    "Done": Done((1, Created(1, 1, 1, created=True), (Acquired(1, 2, 3),), Stored(1, 2, 3, False))),  # noqa: FBT003
}

FAILURE_SAMPLES: dict[str, Failure] = {
    "UnsupportedVersion": UnsupportedVersion(2, 1),
    "Malformed": Malformed("not an operation"),
    "SequenceExpired": SequenceExpired(3, 30),
    "IncarnationSuperseded": IncarnationSuperseded(1, 2),
    "UnknownOperation": UnknownOperation(99),
    "UnknownOperation-negative": UnknownOperation(-1),
    "LimitExceeded": LimitExceeded("chunk_bytes", 2**20 + 1, 2**20),
    "OutOfRange": OutOfRange("lease_ms", 1, 100, 86_400_000),
    "StaleTerm": StaleTerm(3, 4),
    "SessionNotFound": SessionNotFound(),
    "LeaseLost": LeaseLost(1, 2, 3),
    "WrongPhase": WrongPhase(1, "parked", "Append"),
    "RevisionMismatch": RevisionMismatch(1, 2, 3),
    "NotStale": NotStale(1, 1_700_000_000_000),
    "KeyConflict": KeyConflict(1, "active"),
    "IdempotencyMismatch": IdempotencyMismatch(),
    "TxnAborted": TxnAborted(2, LeaseLost(1, 2, 3)),
    "TxnAborted-without-details": TxnAborted(0, SessionNotFound()),
}


# The golden files


def _operation_bytes() -> dict[str, tuple[object, bytes]]:
    return {name: (one, encode(one)) for name, one in OPERATION_SAMPLES.items()}


def _batch_bytes() -> dict[str, tuple[object, bytes]]:
    return {
        name: (one, encode_batch(*one[:4], [encode(operation) for operation in one[4]]))
        for name, one in BATCH_SAMPLES.items()
    }


def _packed(samples: Iterable[tuple[str, Result]]) -> dict[str, tuple[object, bytes]]:
    """Each as a window keeps it: packed, in the array of a batch's results."""
    return {name: (one, encode_values((pack_result(one),))) for name, one in samples}


GOLDEN_FILES: dict[str, Callable[[], dict[str, tuple[object, bytes]]]] = {
    "operations.txt": _operation_bytes,
    "batches.txt": _batch_bytes,
    "results.txt": lambda: _packed(RESULT_SAMPLES.items()),
    "failures.txt": lambda: _packed(FAILURE_SAMPLES.items()),
}


def written(entries: dict[str, tuple[object, bytes]]) -> str:
    """The text of a golden file."""
    return "\n".join(
        f"# {value!r}\n{name}: {data.hex()}\n" for name, (value, data) in entries.items()
    )


def golden(file: str) -> dict[str, bytes]:
    """What a golden file pins."""
    lines = (GOLDEN / file).read_text(encoding="utf-8").splitlines()
    entries = (line.partition(": ") for line in lines if line and not line.startswith("#"))
    return {name: bytes.fromhex(data) for name, _, data in entries}


@pytest.mark.parametrize("file", GOLDEN_FILES)
def test_bytes_are_what_they_always_were(file: str, rewrite: bool) -> None:
    text = written(GOLDEN_FILES[file]())
    if rewrite:
        (GOLDEN / file).write_text(text, encoding="utf-8")
    assert (GOLDEN / file).read_text(encoding="utf-8") == text, "see the docstring on --rewrite"


def test_every_operation_has_golden_bytes_in_all_its_forms() -> None:
    for operation in OPERATIONS:
        samples = [one for one in OPERATION_SAMPLES.values() if type(one) is operation]
        assert samples, f"{operation.__name__} has no golden entry"
        seen = {tuple(map(type, decode(encode(one)))) for one in samples}
        for position in range(len(field_names(operation)) + 1):
            forms = {shape[position] for shape in shapes(operation)}
            assert {shape[position] for shape in seen} == forms, (operation, position)


def test_every_failure_has_golden_bytes() -> None:
    assert {type(one) for one in FAILURE_SAMPLES.values()} == set(FAILURES)


def test_every_type_of_result_has_golden_bytes() -> None:
    samples: list[object] = [*RESULT_SAMPLES.values(), *FAILURE_SAMPLES.values()]
    for one in get_args(Result):
        kind = getattr(one, "__origin__", one)
        assert any(isinstance(sample, kind) for sample in samples), one


@pytest.mark.parametrize("name", OPERATION_SAMPLES)
def test_golden_operations_are_still_understood(name: str) -> None:
    data = golden("operations.txt")[name]
    assert decode(data) == plain(OPERATION_SAMPLES[name])
    driver = Driver(replay(rich_batches()), proposer="old", term=9)
    result = driver.do(data)
    if name == "Store-cause-parked":  # a cause that is the machine's own
        assert isinstance(result, Malformed)
    else:
        cause = result.cause if isinstance(result, TxnAborted) else result
        assert not isinstance(cause, Malformed | UnknownOperation), result


@pytest.mark.parametrize("name", BATCH_SAMPLES)
def test_golden_batches_are_still_understood(name: str) -> None:
    data = golden("batches.txt")[name]
    proposer, incarnation, sequence, term, asked = BATCH_SAMPLES[name]
    header = decode_header(data)
    assert header == Header(proposer, incarnation, sequence, term, len(asked))
    assert decode_whole(data) == tuple(map(plain, asked))
    applied = replay([]).apply(1, data)
    assert applied.failure is None
    assert len(applied.results) == len(asked)
    assert not any(isinstance(one, Failure) for one in applied.results)


@pytest.mark.parametrize("name", [*RESULT_SAMPLES, *FAILURE_SAMPLES])
def test_golden_results_are_still_understood(name: str) -> None:
    data = {**golden("results.txt"), **golden("failures.txt")}[name]
    (packed,) = decode(data)
    unpacked = unpack_result(packed)
    sample: Result = {**RESULT_SAMPLES, **FAILURE_SAMPLES}[name]
    assert unpacked == sample
    assert type(unpacked) is type(sample)


# The registry


def test_codes_are_never_used_twice() -> None:
    assert len(OPERATION_BY_CODE) == len(OPERATIONS)
    assert all(OPERATION_BY_CODE[one.code] is one for one in OPERATIONS)
    assert all(0 < one.code < 128 for one in OPERATIONS), "one byte each"


def test_every_operation_of_the_module_is_registered() -> None:
    found = {
        one
        for one in vars(operations).values()
        if isinstance(one, type) and issubclass(one, Operation) and one is not Operation
    }
    assert found == set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_shapes_start_with_the_code_and_name_each_field(operation: type[Operation]) -> None:
    for shape in shapes(operation):
        assert shape[0] is int
        assert len(shape) == 1 + len(field_names(operation))
        assert set(shape) <= {int, str, bytes, tuple, type(None)}


# Round trips


def _targets() -> st.SearchStrategy[int | tuple[int, bytes]]:
    keys = st.tuples(st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=300))
    return st.integers(0, 2**64 - 1) | keys


def _operations() -> st.SearchStrategy[Operation]:
    number = st.integers(0, 2**63 - 1)
    maybe = st.none() | number
    data, text = st.binary(max_size=400), st.text(max_size=300)
    maybe_data = st.none() | data
    target = _targets()
    settings = st.lists(st.tuples(text, number), max_size=3).map(tuple)
    themes = st.lists(number, max_size=20).map(tuple)
    single = st.one_of(
        st.builds(New, number, maybe_data, data, number, maybe, st.sampled_from(OnConflict)),
        st.builds(Append, target, maybe, data, maybe),
        st.builds(Replace, target, maybe, data, maybe),
        st.builds(Remove, target, maybe, maybe),
        st.builds(Store, target, maybe, maybe, st.sampled_from(Cause), text, maybe),
        st.builds(Acquire, themes, number, maybe_data),
        st.builds(AcquireSession, target, maybe_data, maybe),
        st.builds(Touch, target, maybe, maybe_data),
        st.builds(Park, target, maybe, text, maybe),
        st.builds(Unpark, target, maybe),
        st.builds(SetPolicy, number, settings),
        st.builds(Pause, number),
        st.builds(Resume, number),
        st.builds(Tick, number),
        st.builds(Barrier),
        st.builds(Heartbeat, data),
        st.builds(SetLimits, settings),
        st.builds(ForgetProposer, text),
        st.builds(Release, data, number, st.sampled_from(Cause), text),
    )
    several = single | st.builds(Txn, st.lists(single, max_size=20).map(tuple))
    return several | st.builds(Idempotent, data, number, several)


@given(_operations())
def test_an_operation_decodes_to_its_plain_form(operation: Operation) -> None:
    decoded = decode(encode(operation))
    assert decoded == plain(operation)
    assert tuple(map(type, decoded)) in shapes(type(operation))
    assert decoded[0] == operation.code


@given(
    st.text(min_size=1, max_size=64),
    *[st.integers(0, SEQUENCE_MAX)] * 3,
    st.lists(_operations(), max_size=40),
)
def test_a_batch_decodes_to_what_it_was_made_of(
    proposer: str, incarnation: int, sequence: int, term: int, asked: list[Operation]
) -> None:
    data = encode_batch(proposer, incarnation, sequence, term, list(map(encode, asked)))
    header = decode_header(data)
    assert header == Header(proposer, incarnation, sequence, term, len(asked))
    operations = decode_whole(data)
    assert operations == tuple(map(plain, asked))
    # Putting a batch together from parts gives what msgpack writes in one go.
    assert data == msgpack.packb((BATCH_VERSION, *header[:4], operations))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 4096])
def test_the_header_of_operations_has_every_length(count: int) -> None:
    data = encode_batch("n", 0, 0, 0, [encode(Barrier())] * count)
    assert data == msgpack.packb((BATCH_VERSION, "n", 0, 0, 0, ((Barrier.code,),) * count))


def test_a_header_of_more_operations_than_16_bits_count() -> None:
    data = encode_batch("n", 0, 0, 0, [encode(Barrier())] * 0x10000)
    assert data == msgpack.packb((BATCH_VERSION, "n", 0, 0, 0, ((Barrier.code,),) * 0x10000))


def _failures() -> st.SearchStrategy[Failure]:
    number, text = st.integers(-(2**63), 2**64 - 1), st.text(max_size=40)
    by_type = {"int": number, "str": text}
    simple = [
        st.builds(
            failure,
            **{
                name: by_type[hint.__name__]
                for name, hint in failure.__annotations__.items()
                if isinstance(hint, type)
            },
        )
        for failure in FAILURES
        if failure is not TxnAborted
    ]
    one: st.SearchStrategy[Failure] = st.one_of(simple)
    return one | st.builds(TxnAborted, st.integers(0, 4096), one)


def _results() -> st.SearchStrategy[Result]:
    number = st.integers(0, 2**64 - 1)
    acquired = st.builds(Acquired, number, number, number)
    single: st.SearchStrategy[Any] = st.one_of(
        st.none(),
        number,
        st.builds(Created, number, number, number, st.booleans()),
        st.builds(Stored, number, number, number, st.booleans()),
        acquired,
        st.lists(acquired, max_size=5).map(tuple),
    )
    done = st.builds(Done, st.lists(single, max_size=5).map(tuple))
    return st.one_of(single, done, _failures())


@given(_results())
def test_a_result_is_the_same_after_storage(result: Result) -> None:
    (packed,) = decode(encode_values((pack_result(result),)))
    unpacked = unpack_result(packed)
    assert unpacked == result
    assert type(unpacked) is type(result)
    assert repr(unpacked) == repr(result)  # the types inside, too


@given(st.lists(_results(), max_size=5).map(tuple))
def test_a_batch_of_results_weighs_what_was_handed_out_singly(results: tuple[Result, ...]) -> None:
    def count(result: Result) -> int:
        match result:
            case Done(inner):
                return 1 + sum(map(count, inner))
            case tuple() if type(result) is tuple:
                return 1 + len(result)
            case _:
                return 1

    assert weight(results) == sum(map(count, results))


NO_RESULTS = [
    True,
    1.5,
    "text",
    b"bytes",
    (),
    (99,),
    (None,),
    (1, 2),
    (1, 2, 3, 4, 5, 6),
    (5, 3),
    (5, (1, 1, 1, 1, True)),
    (6,),
    (6, "no_such_failure"),
    (6, "lease_lost", 1),
    (6, "lease_lost", 1, 2, 3, 4),
    (6, None),
    (4, "text"),
]


@pytest.mark.parametrize("packed", NO_RESULTS, ids=repr)
def test_what_is_no_result_is_refused(packed: object) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        unpack_result(packed)


# Decoding trusts nobody


NOT_MSGPACK = {
    "nothing": b"",
    "a reserved byte": b"\xc1",
    "too short": b"\x92\x01",
    "too long": b"\x01\x01",
    "invalid UTF-8": b"\xa2\xff\xfe",
    "a lone surrogate": b"\xa3\xed\xa0\x80",
    "a map": b"\x81\x01\x02",
    "an extension": b"\xd4\x05\x00",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "an empty timestamp": b"\xc7\x00\xff",
    "an array longer than the data": b"\xdd\xff\xff\xff\xff",
    "a string longer than the data": b"\xdb\xff\xff\xff\xff",
    "bytes longer than the data": b"\xc6\xff\xff\xff\xff",
    "a map longer than the data": b"\xdf\xff\xff\xff\xff",
    "deep nesting": b"\x91" * 100_000 + b"\xc0",
}


@pytest.mark.parametrize("data", NOT_MSGPACK.values(), ids=NOT_MSGPACK)
def test_what_does_not_decode_is_malformed(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        decode(data)
    assert caught.value.failure == Malformed("not msgpack")


def test_decoding_costs_no_more_memory_than_the_data_can_hold() -> None:
    """Each array announces as many elements as there may be, and holds but the next one."""
    length, depth, size_bytes = 0xFFFF, 1000, 1024 * 1024
    data = (b"\xdc" + length.to_bytes(2, "big")) * depth
    data += b"\xc0" * (size_bytes - len(data))
    tracemalloc.start()
    try:
        with pytest.raises(Refused):
            decode(data)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 128 * size_bytes


def test_running_out_of_memory_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that answered `malformed` to what the others could read would differ from them."""

    def unpackb(*_: object, **__: object) -> object:
        raise MemoryError

    monkeypatch.setattr(msgpack, "unpackb", unpackb)
    with pytest.raises(MemoryError):
        decode(encode(Barrier()))


def test_only_the_compiled_msgpack_is_used() -> None:
    """The other refuses other depths of nesting, so nodes with and without would differ."""
    done = subprocess.run(
        [sys.executable, "-c", "import state"],
        env={**os.environ, "MSGPACK_PUREPYTHON": "1"},
        cwd=GOLDEN.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "compiled" in done.stderr


@given(st.binary(max_size=64))
def test_decoding_raises_nothing_but_refused(data: bytes) -> None:
    with contextlib.suppress(Refused):
        decode(data)
    with contextlib.suppress(Refused):
        decode_whole(data)


def decode_whole(data: bytes) -> tuple[Any, ...]:
    failure = check_size(data, decode_header(data), LIMITS)
    if failure is not None:
        raise Refused(failure)
    return decode_operations(data)


def envelope(*values: object) -> bytes:
    packed: bytes = msgpack.packb(values)
    return packed


MALFORMED = Malformed("in whatever words")

ENVELOPES: dict[str, tuple[bytes, Failure]] = {
    "a later version": (envelope(2, "n", 0, 0, 0, []), UnsupportedVersion(2, 1)),
    "a later version of other form": (envelope(7, {"a": 1}), UnsupportedVersion(7, 1)),
    "a later version with bytes to come": (b"\x93\x02\xc1\xff", UnsupportedVersion(2, 1)),
    "a far version": (envelope(2**64 - 1), UnsupportedVersion(2**64 - 1, 1)),
    "version 0": (envelope(0, "n", 0, 0, 0, []), MALFORMED),
    "a negative version": (envelope(-1, "n", 0, 0, 0, []), MALFORMED),
    "version true": (envelope(True, "n", 0, 0, 0, []), MALFORMED),  # noqa: FBT003
    "version 1.0": (envelope(1.0, "n", 0, 0, 0, []), MALFORMED),
    "five fields": (envelope(1, "n", 0, 0, []), MALFORMED),
    "seven fields": (envelope(1, "n", 0, 0, 0, [], 0), MALFORMED),
    "no array": (b"\x01", MALFORMED),
    "nothing": (b"", MALFORMED),
    "version 1 in two bytes": (
        b"\x96\xcc\x01" + envelope("n", 0, 0, 0, [])[1:],
        MALFORMED,
    ),
    "trailing bytes": (envelope(1, "n", 0, 0, 0, []) + b"\xc0", MALFORMED),
    "a negative sequence": (envelope(1, "n", 0, -1, 0, []), MALFORMED),
    "a negative incarnation": (envelope(1, "n", -1, 0, 0, []), MALFORMED),
    "a negative term": (envelope(1, "n", 0, 0, -1, []), MALFORMED),
    "a term of 64 bits": (envelope(1, "n", 0, 0, 2**63, []), MALFORMED),
    "a sequence of 64 bits": (envelope(1, "n", 0, 2**64 - 1, 0, []), MALFORMED),
    "no proposer": (envelope(1, "", 0, 0, 0, []), MALFORMED),
    "a long proposer": (
        envelope(1, "n" * 65, 0, 0, 0, []),
        LimitExceeded("proposer_chars", 65, 64),
    ),
    "a proposer longer than any header": (envelope(1, "n" * 5000, 0, 0, 0, []), MALFORMED),
    "too many operations": (
        envelope(1, "n", 0, 0, 0, [0] * 4097),
        LimitExceeded("batch_operations", 4097, 4096),
    ),
    "too many bytes": (
        envelope(1, "n", 0, 0, 0, [bytes(4 * 2**20)]),
        LimitExceeded("batch_bytes", 4 * 2**20 + 13, 4 * 2**20),
    ),
    "proposer of another type": (envelope(1, b"n", 0, 0, 0, []), MALFORMED),
    "incarnation of another type": (envelope(1, "n", True, 0, 0, []), MALFORMED),  # noqa: FBT003
    "sequence of another type": (envelope(1, "n", 0, 0.0, 0, []), MALFORMED),
    "term of another type": (envelope(1, "n", 0, 0, None, []), MALFORMED),
    "operations are bytes": (envelope(1, "n", 0, 0, 0, b"\x10"), MALFORMED),
    "operations are a map": (envelope(1, "n", 0, 0, 0, {}), MALFORMED),
}


@pytest.mark.parametrize("name", ENVELOPES)
def test_what_is_no_batch_says_why(name: str) -> None:
    data, failure = ENVELOPES[name]
    with pytest.raises(Refused) as caught:
        decode_whole(data)
    if failure is MALFORMED:
        assert isinstance(caught.value.failure, Malformed)
    else:
        assert caught.value.failure == failure


@given(_operations(), _operations())
def test_fingerprints_tell_operations_apart(one: Operation, other: Operation) -> None:
    prints = [fingerprint(plain(operation)) for operation in (one, other)]
    assert (prints[0] == prints[1]) == (plain(one) == plain(other))
    assert all(len(made) == 16 for made in prints)


def nested(depth: int) -> object:
    value: object = None
    for _ in range(depth):
        value = (value,)
    return value


def test_every_operation_is_flat_enough_for_a_fingerprint() -> None:
    for operation in OPERATION_SAMPLES.values():
        fingerprint(plain(Idempotent(b"key", 1, operation)))


@pytest.mark.parametrize("depth", [9, 50, 500, 600, 900])
def test_a_fingerprint_of_deep_nesting_is_refused_whatever_msgpack_can_write(depth: int) -> None:
    fingerprint(nested(8))
    with pytest.raises(Refused) as caught:
        fingerprint(nested(depth))
    assert caught.value.failure == Malformed("nested too deeply")
