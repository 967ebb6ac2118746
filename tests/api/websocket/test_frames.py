"""The two subprotocols: what is read of any bytes, and how answers are cut into frames."""

import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import requests as ask
from api.websocket.frames import (
    CODECS,
    FRAME_REQUESTS_MAX,
    JSON,
    MSGPACK,
    CrowdedError,
    ErrorAnswer,
    Hello,
    Unfit,
    UnreadableError,
    frame_head,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
fields = st.dictionaries(
    st.sampled_from(["op", "seq", "id", "theme", "key", "data", "text", "epoch", "operations"]),
    st.sampled_from(["new", "append", "remove", "txn", "get", "credit", "7"])
    | st.integers(0, 9)
    | values,
)


def encode(protocol: str, value: Any) -> Any:
    if protocol == MSGPACK:
        return msgspec.msgpack.encode(value)
    return msgspec.json.encode(value).decode()


@pytest.mark.parametrize("protocol", [JSON, MSGPACK])
def test_a_frame_is_one_request_or_a_list(protocol: str) -> None:
    one = {"op": "get", "seq": 1, "id": "7"}
    found = CODECS[protocol].decode(encode(protocol, one))
    assert list(found) == [ask.Get(seq=1, id="7")]
    found = CODECS[protocol].decode(encode(protocol, [one, {"op": "heartbeat", "seq": 2}]))
    assert list(found) == [ask.Get(seq=1, id="7"), ask.Heartbeat(seq=2)]
    assert list(CODECS[protocol].decode(encode(protocol, []))) == []


@pytest.mark.parametrize("protocol", [JSON, MSGPACK])
@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"op": "fly", "seq": 3}, "fly"),
        ({"seq": 3}, "op"),
        ({"op": "get", "seq": 3, "colour": 1}, "colour"),
        ({"op": "new", "seq": 3}, "theme"),
        ({"op": "new", "seq": 3, "theme": -1}, ">= 0"),
        ({"op": "new", "seq": 3, "theme": "7"}, "int"),
        ({"op": "resume", "seq": 3, "sessions": []}, "length"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_seq(
    protocol: str, request_: dict[str, Any], says: str
) -> None:
    (alone,) = CODECS[protocol].decode(encode(protocol, request_))
    assert isinstance(alone, Unfit)
    assert alone.seq == 3
    assert says in alone.problem
    fit, unfit = CODECS[protocol].decode(encode(protocol, [{"op": "heartbeat"}, request_]))
    assert fit == ask.Heartbeat()
    assert isinstance(unfit, Unfit)
    assert unfit.seq == 3


@pytest.mark.parametrize("protocol", [JSON, MSGPACK])
@pytest.mark.parametrize("seq", [-1, 2**53 + 1, "1", None, 1.5])
def test_a_seq_that_is_none_is_answered_as_zero(protocol: str, seq: object) -> None:
    (found,) = CODECS[protocol].decode(encode(protocol, {"op": "heartbeat", "seq": seq}))
    assert isinstance(found, Unfit)
    assert found.seq == 0


@pytest.mark.parametrize(
    ("protocol", "frame"),
    [
        (JSON, ""),
        (JSON, "{"),
        (JSON, '[{"op":"fly"},'),
        (JSON, "[" * 100_000),
        (JSON, '{"op":"fly","a":' * 5_000 + "1" + "}" * 5_000),
        (JSON, '{"op":"new","theme":1,"text":"\\ud800"}'),
        (MSGPACK, b""),
        (MSGPACK, b"\xc1"),
        (MSGPACK, b"\x92\x81\xa2op\xa3fly"),
        (MSGPACK, b"\x91" * 100_000),
        (MSGPACK, b"\x81\xa2op" * 100_000),
        (MSGPACK, b"\x81\xa2op\xa1\xff"),
        (MSGPACK, b"\x92\x00\x81\xa2op\xa1\xff"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_its_own(protocol: str, frame: Any) -> None:
    with pytest.raises(UnreadableError):
        list(CODECS[protocol].decode(frame))


HEARTBEAT = {"op": "heartbeat"}


@pytest.mark.parametrize("protocol", [JSON, MSGPACK])
@pytest.mark.parametrize("last", [HEARTBEAT, {"op": "fly"}, 0, [], None])
def test_a_frame_has_a_bound_of_requests_sense_or_nonsense(protocol: str, last: object) -> None:
    bound = FRAME_REQUESTS_MAX
    whole = encode(protocol, [HEARTBEAT] * (bound - 1) + [last])
    found = list(CODECS[protocol].decode(whole))
    assert len(found) == bound
    assert isinstance(found[-1], ask.Heartbeat if last == HEARTBEAT else Unfit)
    for head in ([], [last]):
        crowded = encode(protocol, [*head, *([HEARTBEAT] * bound), last])
        with pytest.raises(CrowdedError):
            CODECS[protocol].decode(crowded)


@pytest.mark.parametrize(
    ("protocol", "frame"),
    [
        (MSGPACK, b"\xdd\x00\x10\x00\x00" + bytes(1 << 20)),
        (MSGPACK, b"\x81\xa1a\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20)),
        (MSGPACK, b"\x91\x81\xa3seq\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20)),
        (JSON, "[" + "0," * (1 << 20) + "0]"),
        (JSON, '{"a":[' + "[]," * (1 << 20) + "[]]}"),
        (JSON, '[{"seq":[' + "[]," * (1 << 20) + "[]]}]"),
    ],
)
def test_of_nonsense_next_to_nothing_is_made(protocol: str, frame: Any) -> None:
    tracemalloc.start()
    try:
        found = list(CODECS[protocol].decode(frame))
    except CrowdedError:
        found = []
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(found) <= 1
    assert peak_bytes < 2 * len(frame)


@pytest.mark.parametrize("protocol", [JSON, MSGPACK])
def test_a_frame_with_nonsense_is_decoded_as_it_is_taken(protocol: str) -> None:
    requests = iter(
        CODECS[protocol].decode(encode(protocol, [HEARTBEAT, {"op": "fly"}, HEARTBEAT]))
    )
    assert next(requests) == ask.Heartbeat()
    assert isinstance(next(requests), Unfit)
    assert next(requests) == ask.Heartbeat()


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(frame: bytes) -> None:
    for protocol in (JSON, MSGPACK):
        try:
            found = list(CODECS[protocol].decode(frame))
        except UnreadableError:
            continue
        assert all(isinstance(one, Unfit | ask.Request) for one in found)


@given(st.sampled_from([JSON, MSGPACK]), values | fields | st.lists(fields | values))
def test_any_value_is_read_request_by_request(protocol: str, value: Any) -> None:
    try:
        found = list(CODECS[protocol].decode(encode(protocol, value)))
    except UnreadableError:
        return
    assert len(found) == (len(value) if isinstance(value, list) else 1)
    assert all(isinstance(one, Unfit | ask.Request) for one in found)


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=20), st.sampled_from([JSON, MSGPACK]))
def test_answers_leave_in_order_in_frames_within_the_bound(sizes: list[int], name: str) -> None:
    answers = [ErrorAnswer(seq=seq, error={"x": "y" * size}) for seq, size in enumerate(sizes)]
    bound = 2500
    frames = CODECS[name].encode(answers, bound)
    decode = msgspec.json.decode if name == JSON else msgspec.msgpack.decode
    found = []
    for frame in frames:
        several = decode(frame)
        several = several if isinstance(several, list) else [several]
        assert len(frame) <= bound or len(several) == 1
        found += several
    assert [one["seq"] for one in found] == list(range(len(sizes)))


def test_one_answer_is_a_frame_by_itself_and_not_a_list() -> None:
    hello = Hello(
        node="n",
        consumer="c",
        frame_bytes=1,
        frame_requests=2,
        requests_in_flight=3,
        unread_bytes=4,
    )
    (frame,) = CODECS[JSON].encode([hello], 1000)
    assert frame.startswith(b'{"push":"hello","node":"n"')


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 2**32])
def test_the_head_of_a_frame_tells_its_length(size: int) -> None:
    head = frame_head(2, size)
    assert head[0] == 0x82
    assert head[1] < 128  # what a server sends is not masked
    match len(head):
        case 2:
            assert head[1] == size
        case 4:
            assert (head[1], int.from_bytes(head[2:])) == (126, size)
        case _:
            assert (head[1], int.from_bytes(head[2:]), len(head)) == (127, size, 10)
