"""`apply` given anything at all. It never raises, and answers on every machine the same.

Each check runs on two machines that hold a state with everything in it. Whatever they are given,
they answer alike and hold the same; what they hold can be written and loaded; and they go on.
"""

from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, target
from hypothesis import strategies as st

from state import (
    LIMITS,
    Acquired,
    Applied,
    Created,
    Done,
    Failure,
    Operation,
    StateMachine,
    Stored,
    encode,
    encode_batch,
    load,
)
from state.codec import plain
from state.errors import LimitExceeded, Malformed, TxnAborted, UnknownOperation
from state.limits import LIMIT_RANGES
from state.operations import (
    OPERATIONS,
    Acquire,
    AcquireSession,
    Append,
    Barrier,
    Cause,
    ForgetProposer,
    Heartbeat,
    Idempotent,
    New,
    OnConflict,
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
)
from tests.state.driver import (
    ACTIVE_ID,
    CONSUMED_ID,
    PARKED_ID,
    PAUSED_THEME,
    READY_ID,
    REMOVED_ID,
    RICH_CONSUMER,
    RICH_KEYS,
    RICH_NOW_MS,
    RICH_THEME,
    STORED_ID,
    Driver,
    contents,
    everything,
    replay,
    rich_batches,
)

RICH = rich_batches()
RESCUER = "rescuer"  # a proposer that fuzzing does not know, so that it is always heard


def is_recorded(failure: Failure) -> bool:
    """Whether the refusal of a whole batch is kept: under other limits it would be applied."""
    return isinstance(failure, LimitExceeded) and failure.limit.startswith("batch_")


class Pair:
    """Two machines that are given the same, and checked after each batch."""

    def __init__(self) -> None:
        self.one = Driver(replay(RICH), proposer=RESCUER)
        self.other = Driver(replay(RICH), proposer=RESCUER)
        for driver in (self.one, self.other):
            driver.succeed(Barrier())

    def apply(self, data: bytes) -> Applied:
        """Apply any bytes to both. Checks what must hold for any."""
        before = self.one.machine.digest()
        applied, again = self.one.apply_bytes(data), self.other.apply_bytes(data)
        assert applied == again
        check_types(applied)
        digest = self.one.machine.digest()
        assert digest == self.other.machine.digest()
        if applied.failure is not None and not is_recorded(applied.failure):
            assert digest == before, "a refused batch has changed something"
        if applied.duplicate:
            assert digest == before, "a repeated batch has changed something"
        return applied

    def check(self) -> None:
        """The state holds nothing that cannot be written and loaded, and is still of use."""
        copy = load(everything(self.one.machine))
        digest = self.one.machine.digest()
        assert copy.digest() == digest
        assert derived(copy) == derived(self.one.machine)
        drivers = (self.one, self.other, Driver(copy, proposer=RESCUER))
        drivers[2].sequence = self.one.sequence
        defaults = tuple((name, one.default) for name, one in LIMIT_RANGES.items())
        for driver in drivers:
            assert driver.do(SetLimits(defaults)) is None
            created = driver.do(New(2**32 - 1, b"a key that nobody fuzzed", b"data"))
            assert isinstance(created, Created)
            assert created.created
            assert driver.do(Append(created.session_id, created.epoch, b"more")) == 2
            session = driver.machine.session(created.session_id)
            assert session is not None
            assert session.data == b"datamore"
        assert len({driver.machine.digest() for driver in drivers}) == 1


def derived(machine: StateMachine) -> tuple[object, ...]:
    """What follows from the records, and is kept beside them."""
    themes = {
        theme.theme_id: (list(theme.counts), theme.size_bytes, theme.keys, list(theme.ready))
        for theme in machine.themes()
    }
    sessions = {session.session_id: (session.phase, session.data) for session in machine.sessions()}
    return machine.size_bytes, machine.next_due_ms, themes, sessions


def check_types(applied: Applied) -> None:
    """All results are of a type that results have."""
    assert applied.failure is None or isinstance(applied.failure, Failure)
    if applied.failure is not None:
        assert applied.results == ()
        assert str(applied.failure)
    for result in applied.results:
        check_type(result)
    assert applied.awake == tuple(sorted(set(applied.awake)))
    for event in applied.events():
        assert type(event.session_id) is type(event.theme) is type(event.revision) is int


def check_type(result: object) -> None:
    match result:
        case None:
            pass
        case bool():
            pytest.fail("a bool is no result")
        case int():
            pass
        case Created() | Stored() | Acquired():
            assert all(type(field) in (int, bool) for field in result)
        case Done(results):
            for inner in results:
                check_type(inner)
        case tuple():
            assert all(isinstance(one, Acquired) for one in result)
        case TxnAborted():
            check_type(result.cause)
        case Failure():
            assert isinstance(result.retryable, bool)
            assert str(result)
        case _:
            pytest.fail(f"{result!r} is no result")


def packed(value: object) -> bytes:
    made: bytes = msgpack.packb(value)
    return made


def batch_of(*operations: bytes, proposer: str = "fuzz", sequence: int = 1, term: int = 9) -> bytes:
    return encode_batch(proposer, 1, sequence, term, operations)


# Values that no correct sender produces, and values at every edge

# What is in no operation of any kind: not even decoded, whatever stands beside it.
FOREIGN: tuple[Any, ...] = (
    {},
    {1: 2},
    msgpack.ExtType(0, b""),
    msgpack.ExtType(16, b""),
    msgpack.ExtType(127, b""),
)

JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    -(2**63),
    2**31,
    2**32,
    2**48,
    2**63 - 1,
    2**63,
    2**64 - 1,
    0.0,
    -0.5,
    1e308,
    float("nan"),
    float("inf"),
    b"",
    b"\x00",
    bytes(5000),
    "",
    "\x00",
    "proposer",
    "é" * 5000,
    "\U0010ffff",
    (),
    ((),),
    (None,),
    (0,),
    (7, b"active"),
    (7, "active"),
    (True, b"active"),
    (7, b""),
    (-1, b"key"),
    (2**64 - 1, b"key"),
    (7, b"active", 0),
    (("chunk_bytes", 1),),
    (("chunk_bytes", -1),),
    (("chunk_bytes", True),),
    (("chunk_bytes", 1.0),),
    (("no such setting", 1),),
    ((1, 2),),
    (b"xx",),
    ("ab",),
    (("repeat_ms", 2**64 - 1), ("repeat_ms", 0)),
    (16,),
    ((16,), (16,)),
    (15, 2**64 - 1),
    (1, 7, None, b"", 0, None, 0, None),
    tuple(range(300)),
    ((((((((((),),),),),),),),),),
    *FOREIGN,
)

# One of each that is well formed and meets something in the rich state.
SOUND: tuple[Operation, ...] = (
    New(RICH_THEME, b"new", b"data", 3, 1000, OnConflict.REJECT, None),
    New(RICH_THEME, b"stored", b"data", 3, None, OnConflict.BRING_FORWARD, b"consumer"),
    New(RICH_THEME, None, b"data", 3, None, OnConflict.REJECT, b"consumer"),
    Append(ACTIVE_ID, 1, b"data", 1),
    Append(STORED_ID, None, b"data"),
    Replace(ACTIVE_ID, 1, b"data"),
    Replace((RICH_THEME, b"ready"), None, b"data", 2),
    Remove(ACTIVE_ID, 1, 1),
    Remove(PARKED_ID, None),
    Store(ACTIVE_ID, 1, 1000, Cause.FAILED, "why", 1),
    Store(CONSUMED_ID, 1, None, Cause.SHUTDOWN),
    Store(READY_ID, None, 5000),
    Acquire((RICH_THEME, PAUSED_THEME, 9), 2, b"consumer"),
    AcquireSession(STORED_ID, b"consumer", 2),
    AcquireSession((RICH_THEME, b"ready")),
    Touch(ACTIVE_ID, 1, b"consumer"),
    Touch(CONSUMED_ID, 1),
    Park(ACTIVE_ID, 1, "why", 1),
    Unpark(PARKED_ID, 3),
    SetPolicy(RICH_THEME, (("repeat_ms", 1000), ("max_active", 3))),
    Pause(RICH_THEME),
    Resume(PAUSED_THEME),
    Txn((Append(ACTIVE_ID, 1, b"data"), Remove(CONSUMED_ID, 1), New(9, b"next"))),
    Tick(RICH_NOW_MS + 4_000_000),
    Barrier(),
    Heartbeat(RICH_CONSUMER),
    Idempotent(b"receipt 2", 1000, New(RICH_THEME, b"once")),
    Idempotent(b"receipt 3", 1000, Txn((New(9), Remove(ACTIVE_ID, 1)))),
    SetLimits((("chunk_bytes", 1000), ("themes", 4))),
    ForgetProposer("rich"),
    Release(RICH_CONSUMER, 1, Cause.DISCONNECTED, "gone"),
)


def test_the_sound_operations_are_of_every_kind_and_are_done() -> None:
    assert {type(one) for one in SOUND} == set(OPERATIONS)
    for operation in SOUND:
        driver = Driver(replay(RICH), term=9)
        result = driver.do(operation)
        assert not isinstance(result, Failure), (operation, result)


# All fields of all operations, each with each piece of junk


def _with_junk(operation: Operation) -> Iterator[bytes]:
    """The operation with each field, its code too, in turn replaced by each piece of junk."""
    sound = plain(operation)
    for position in range(len(sound)):
        for junk in JUNK:
            yield packed((*sound[:position], junk, *sound[position + 1 :]))


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_every_field_with_every_junk(number: int) -> None:
    operation = SOUND[number]
    pair = Pair()
    for sequence, data in enumerate(_with_junk(operation)):
        # Alone, in a transaction after one that is sound, and as the one to be remembered.
        first = encode(New(9, data=b"undone?"))
        txn = b"\x92" + bytes((Txn.code,)) + b"\x92" + first + data
        once = b"\x94" + bytes((Idempotent.code,)) + packed(b"%d" % sequence) + b"\x01" + data
        applied = pair.apply(batch_of(txn, once, data, sequence=sequence))
        if applied.failure is None:
            assert len(applied.results) == 3
        if sequence % len(JUNK) == 0:  # a field is through
            pair.check()
            pair = Pair()
    pair.check()


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_fields_missing_or_to_spare(number: int) -> None:
    sound = plain(SOUND[number])
    pair = Pair()
    for sequence, length in enumerate(range(len(sound))):
        (result,) = pair.apply(batch_of(packed(sound[:length]), sequence=sequence)).results
        assert isinstance(result, Malformed)
    for sequence, junk in enumerate(JUNK, start=len(sound)):
        applied = pair.apply(batch_of(packed((*sound, junk)), sequence=sequence))
        answers = applied.results or (applied.failure,)
        assert list(map(type, answers)) == [Malformed]
        assert (applied.failure is not None) == (junk in FOREIGN)
    pair.check()


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:40])
def test_junk_in_place_of_an_operation(junk: object) -> None:
    pair = Pair()
    data = packed(junk)
    nested = [
        data,
        b"\x92" + bytes((Txn.code,)) + b"\x91" + data,
        b"\x94" + bytes((Idempotent.code,)) + packed(b"key") + b"\x01" + data,
    ]
    applied = pair.apply(batch_of(*nested))
    if applied.failure is None:
        assert len(applied.results) == 3
    pair.check()


def test_every_unknown_code_says_so() -> None:
    known = {operation.code for operation in OPERATIONS}
    codes = [code for code in (*range(-130, 300), 2**64 - 1, -(2**63)) if code not in known]
    results = Pair().apply(batch_of(*(packed((code,)) for code in codes))).results
    assert results == tuple(map(UnknownOperation, codes))


def test_a_bad_operation_does_not_touch_its_neighbours() -> None:
    pair = Pair()
    bad = [packed(junk) for junk in JUNK if junk not in FOREIGN]
    good = encode(Append(ACTIVE_ID, 1, b"data"))
    operations = [one for junk in bad for one in (junk, good)]
    results = pair.apply(batch_of(*operations)).results
    done = [result for result in results[1::2] if isinstance(result, int)]
    assert done == list(range(2, 2 + len(bad)))


# Nasty bytes

_HEAD = b"\x96\x01\xa4fuzz\x01\x01\x09"

NASTY: dict[str, bytes] = {
    "nothing": b"",
    "zeros": bytes(1000),
    "only the prefix": b"\x96\x01",
    "no operations": _HEAD,
    "operations are a map": _HEAD + b"\x80",
    "operations are a full map": _HEAD + b"\x81\x01\x02",
    "operations are bytes": _HEAD + b"\xc4\x01\x10",
    "operations are a string": _HEAD + b"\xa1\x10",
    "operations are nothing": _HEAD + b"\xc0",
    "an operation is bytes": _HEAD + b"\x91\xc4\x01\x10",
    "an operation is a string": _HEAD + b"\x91\xa1\x10",
    "an operation is an int": _HEAD + b"\x91\x10",
    "an operation is an extension": _HEAD + b"\x91\xc7\x00\x10",
    "an operation is an empty array": _HEAD + b"\x91\x90",
    "an operation is a map": _HEAD + b"\x91\x80",
    "a code is true": _HEAD + b"\x91\x91\xc3",
    "a code is a float": _HEAD + b"\x91\x91\xcb\x40\x30\x00\x00\x00\x00\x00\x00",
    "a code is in nine bytes": _HEAD + b"\x91\x91\xcf\x00\x00\x00\x00\x00\x00\x00\x10",
    "an epoch is true": _HEAD + b"\x91\x95\x02\x04\xc3\xc4\x00\xc0",
    "an id is true": _HEAD + b"\x91\x95\x02\xc3\x01\xc4\x00\xc0",
    "deep nesting": b"\x91" * 100_000,
    "deep nesting in the prefix": b"\x96\x01" + b"\x91" * 100_000,
    "deep nesting as an operation": _HEAD + b"\x91" * 900 + b"\xc0",
    "deep nesting to remember": _HEAD + b"\x91\x94\x12\xc4\x01k\x01" + b"\x91" * 900 + b"\xc0",
    "deep nesting of transactions": _HEAD + b"\x91" + b"\x92\x0e\x91" * 300 + b"\x91\x10",
    "deep nesting of receipts": _HEAD + b"\x91" + b"\x94\x12\xc4\x01k\x01" * 300 + b"\x91\x10",
    "a transaction of bytes": _HEAD + b"\x91\x92\x0e\x91\xc4\x01\x10",
    "a receipt for bytes": _HEAD + b"\x91\x94\x12\xc4\x01k\x01\xc4\x01\x10",
    "array of 4 billion": b"\x96\x01\xdd\xff\xff\xff\xff",
    "operations of 4 billion": _HEAD + b"\xdd\xff\xff\xff\xff",
    "a string of 4 billion": b"\x96\x01\xdb\xff\xff\xff\xff",
    "bytes of 4 billion": b"\x96\x01\xc6\xff\xff\xff\xff",
    "a map of 4 billion": b"\x96\x01\xdf\xff\xff\xff\xff",
    "an extension of 4 billion": b"\x96\x01\xc9\xff\xff\xff\xff\x01",
    "invalid UTF-8 as proposer": b"\x96\x01\xa2\xff\xfe\x01\x01\x09\x90",
    "a surrogate as proposer": b"\x96\x01\xa3\xed\xa0\x80\x01\x01\x09\x90",
    "invalid UTF-8 as reason": _HEAD + b"\x91\x95\x09\x04\x01\xa1\xff\xc0",
    "no proposer": b"\x96\x01\xa0\x01\x01\x09\x90",
    "proposer is bytes": b"\x96\x01\xc4\x01n\x01\x01\x09\x90",
    "sequence is true": b"\x96\x01\xa1n\x01\xc3\x09\x90",
    "sequence of 64 bits": b"\x96\x01\xa1n\x01\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x09\x90",
    "seven fields": b"\x97\x01\xa1n\x01\x01\x09\x90\xc0",
    "a reserved byte": _HEAD + b"\x91\xc1",
    "trailing bytes": _HEAD + b"\x90\x90",
    "a timestamp": _HEAD + b"\x91\xd6\xff\x00\x00\x00\x00",
    "an empty timestamp": _HEAD + b"\x91\xc7\x00\xff",
    "a later version": b"\x96\x02\xa1n\x01\x01\x09\x90",
    "a later version, unfinished": b"\x96\x02",
    "the farthest version": b"\x91\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
}


@pytest.mark.parametrize("data", NASTY.values(), ids=NASTY)
def test_nasty_bytes(data: bytes) -> None:
    pair = Pair()
    pair.apply(data)
    pair.check()


def test_an_operation_of_bytes_is_no_barrier() -> None:
    for data in (b"\xc4\x01\x10", b"\xa1\x10", b"\x10"):
        assert Pair().apply(batch_of(data)).results == (Malformed("not an operation"),)
    # An extension, which msgpack makes a tuple of its code and its bytes.
    assert isinstance(Pair().apply(batch_of(b"\xc7\x00\x10")).failure, Malformed)


@pytest.mark.parametrize(
    "target",
    [(), (7,), (7.0, b"active"), (7, "active"), (b"active", 7), (7, b"active", 0), (None, None)],
    ids=repr,
)
def test_a_target_is_an_id_or_a_theme_and_a_key(target: object) -> None:
    pair = Pair()
    operation = packed((Append.code, target, 1, b"data", None))
    assert isinstance(pair.apply(batch_of(operation)).results[0], Malformed)


# Sound batches, damaged

WHOLE = batch_of(*map(encode, SOUND))


def test_a_batch_cut_anywhere_is_malformed() -> None:
    pair = Pair()
    digest = pair.one.machine.digest()
    for length in range(len(WHOLE)):
        applied = pair.one.apply_bytes(WHOLE[:length])
        assert isinstance(applied.failure, Malformed)
        assert pair.one.machine.digest() == digest
    pair.other.machine.apply(len(WHOLE) + 1000, WHOLE[:-1])
    assert pair.one.machine.digest() == pair.other.machine.digest()
    pair.check()


@pytest.mark.parametrize("number", range(len(SOUND)))
def test_every_single_bit_flipped(number: int) -> None:
    sound = batch_of(encode(SOUND[number]))
    pair = Pair()
    for position in range(len(sound)):
        for bit in range(8):
            flipped = bytearray(sound)
            flipped[position] ^= 1 << bit
            pair.apply(bytes(flipped))
        if position % 8 == 0:
            pair.check()
            pair = Pair()
    pair.check()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sound batch after some accidents."""
    chosen = draw(st.lists(st.sampled_from(SOUND), min_size=1, max_size=6))
    data = batch_of(*map(encode, chosen))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        match draw(st.integers(0, 5)):
            case 0:  # bits
                changed = bytearray(data)
                if start < len(data):
                    changed[start] ^= draw(st.integers(1, 255))
                data = bytes(changed)
            case 1:  # a piece missing
                data = data[:start] + data[end:]
            case 2:  # a piece twice
                data = data[:end] + data[start:end] + data[end:]
            case 3:  # a piece of another batch
                other = draw(st.sampled_from([*RICH, WHOLE]))
                place = draw(st.integers(0, len(other)))
                data = data[:start] + other[place : place + 40] + data[end:]
            case 4:  # some other bytes
                data = data[:start] + draw(st.binary(max_size=12)) + data[start:]
            case _:  # some other value
                data = data[:start] + packed(draw(st.sampled_from(JUNK))) + data[end:]
    return data


@given(st.lists(damaged(), min_size=1, max_size=4))
def test_damaged_batches(batches: list[bytes]) -> None:
    pair = Pair()
    for data in batches:
        pair.apply(data)
    pair.check()


@given(st.binary(max_size=400))
@example(b"\x96\x01")
def test_arbitrary_bytes(data: bytes) -> None:
    pair = Pair()
    pair.apply(data)
    pair.apply(b"\x96\x01" + data)
    pair.apply(_HEAD + data)
    pair.check()


# Sound envelopes of anything


def values() -> st.SearchStrategy[Any]:
    """Anything that msgpack can write."""
    leaves = st.one_of(
        st.sampled_from(JUNK),
        st.integers(-(2**63), 2**64 - 1),
        st.integers(0, 20),
        st.floats(),
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.binary(max_size=20),
    )
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=6).map(tuple), max_leaves=12)


def plausible() -> dict[str, st.SearchStrategy[Any]]:
    """For each name of a field, values of which some are right for the rich state."""
    ids = st.sampled_from([*RICH_KEYS, CONSUMED_ID, REMOVED_ID, 7, 8, 9, 10, 11, 12])
    keys = st.sampled_from([*RICH_KEYS.values(), b"once", b"new"])
    themes = st.sampled_from([RICH_THEME, PAUSED_THEME, 9, 10, 2**32 - 1])
    small = st.integers(0, 4)
    times = st.sampled_from([0, 1, 1000, 60_000, 10 * 365 * 86_400_000])
    consumers = st.none() | st.sampled_from([RICH_CONSUMER, b"consumer", b"c" * 64])
    limits = st.sampled_from(sorted(LIMIT_RANGES)).flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.sampled_from([LIMIT_RANGES[name].minimum, LIMIT_RANGES[name].maximum])
            | st.integers(LIMIT_RANGES[name].minimum, LIMIT_RANGES[name].maximum),
        )
    )
    policy = st.sampled_from(
        [
            ("max_active", 1),
            ("max_sessions", 3),
            ("max_attempts", 1),
            ("lease_ms", 100),
            ("progress_ms", 50),
            ("repeat_ms", 0),
            ("backoff", 1),
            ("jitter_permille", 1000),
        ]
    )
    return {
        "target": ids | st.tuples(themes, keys),
        "theme": themes,
        "themes": st.lists(themes, min_size=1, max_size=4).map(tuple),
        "key": st.none() | keys,
        "epoch": st.none() | small,
        "data": st.binary(max_size=30),
        "reason": st.text(max_size=5),
        "priority": st.integers(0, 2**16 - 1),
        "count": st.integers(1, 10),
        "cause": st.sampled_from(Cause).map(int),
        "on_conflict": st.sampled_from(OnConflict).map(int),
        "repeat_after_ms": st.none() | times,
        "expires_after_ms": st.sampled_from([1, 1000, 86_400_000]),
        "if_revision": st.none() | small,
        "now_ms": st.integers(RICH_NOW_MS, RICH_NOW_MS + 10**7) | st.just(2**48 - 1),
        "consumer": consumers,
        "trace": st.binary(max_size=5),
        "proposer": st.sampled_from(["fuzz", "rich", "nobody"]),
        "settings": st.lists(limits | policy, max_size=3).map(tuple),
    }


PLAUSIBLE = plausible()


@st.composite
def almost_sound(draw: st.DrawFn, depth: int = 0) -> tuple[Any, ...]:
    """An operation of which at most a field or two are wrong."""
    operation = draw(st.sampled_from(OPERATIONS))
    fields: list[Any] = [operation.code]
    wrong = draw(st.integers(-6, len(field_names(operation))))
    for position, name in enumerate(field_names(operation), start=1):
        if position == wrong or depth > 2:
            fields.append(draw(values()))
        elif name == "operations":
            fields.append(tuple(draw(st.lists(almost_sound(depth + 1), max_size=5))))
        elif name == "operation":
            fields.append(draw(almost_sound(depth + 1)))
        elif operation is Idempotent:
            times = PLAUSIBLE["expires_after_ms"]
            fields.append(draw(st.sampled_from([b"receipt", b"other"]) if name == "key" else times))
        elif operation in (Heartbeat, Release) and name == "consumer":
            fields.append(draw(st.sampled_from([RICH_CONSUMER, b"consumer", b""])))
        else:
            fields.append(draw(PLAUSIBLE[name]))
    return tuple(fields)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fuzz", "rich"]),
            st.integers(0, 3),
            st.integers(0, 40),
            st.integers(0, 3),
            st.lists(almost_sound() | values(), max_size=8),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_anything_in_a_sound_envelope(
    batches: list[tuple[str, int, int, int, list[Any]]],
) -> None:
    pair = Pair()
    done = 0
    for proposer, incarnation, sequence, term, operations in batches:
        encoded = list(map(packed, operations))
        applied = pair.apply(encode_batch(proposer, incarnation, sequence, term, encoded))
        if applied.failure is None and not applied.duplicate:
            assert len(applied.results) == len(operations)
        done += sum(not isinstance(result, Failure) for result in applied.results)
    target(done)
    pair.check()


@given(st.lists(almost_sound(), max_size=4), st.lists(almost_sound(), max_size=8))
def test_a_transaction_that_fails_leaves_no_trace(before: list[Any], inside: list[Any]) -> None:
    pair = Pair()
    pair.apply(batch_of(*map(packed, before), sequence=1))
    held = contents(pair.one.machine)
    # The last is never possible inside a transaction.
    txn = (Txn.code, (*inside, (Barrier.code,)))
    applied = pair.apply(batch_of(packed(txn), sequence=2))
    assert applied.failure is not None or isinstance(applied.results[0], Failure)
    assert applied.raw_events == ()
    assert contents(pair.one.machine) == held
    pair.check()


@given(st.lists(almost_sound(), min_size=1, max_size=8))
def test_what_is_refused_leaves_no_trace(operations: list[Any]) -> None:
    pair = Pair()
    for sequence, operation in enumerate(operations):
        held = contents(pair.one.machine)
        applied = pair.apply(batch_of(packed(operation), sequence=sequence))
        if applied.failure is None and isinstance(applied.results[0], Failure):
            assert contents(pair.one.machine) == held, applied.results[0]
            assert applied.raw_events == ()


def test_the_same_batch_twice_answers_the_same_and_changes_nothing() -> None:
    pair = Pair()
    first = pair.apply(WHOLE)
    again = pair.apply(WHOLE)
    assert again.duplicate
    assert again.results == first.results
    assert again.raw_events == ()
    pair.check()


def test_the_largest_batch_of_the_smallest_operations() -> None:
    pair = Pair()
    applied = pair.apply(batch_of(*[encode(Barrier())] * LIMITS.batch_operations))
    assert len(applied.results) == LIMITS.batch_operations
    pair.check()
