"""What clients ask, as the operations that it becomes."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import requests as ask
from api.identifiers import key_bytes, key_text, session_number, session_text
from api.problems import Refusal
from state import Cause, OnConflict, Operation, encode
from state import operations as op
from state.limits import DAY_MS, PRIORITY_DEFAULT

CONSUMER = b"~/worker"


def operation(kind: type[ask.Request], **fields: Any) -> Operation:
    """By way of JSON, as it comes."""
    return msgspec.json.decode(msgspec.json.encode(fields), type=kind).operation(CONSUMER)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (
            {"op": "new", "theme": 7},
            op.New(7, None, b"", PRIORITY_DEFAULT, None, OnConflict.REJECT, CONSUMER),
        ),
        (
            {
                "op": "new",
                "theme": 7,
                "key": "é",
                "text": "é",
                "priority": 1,
                "repeat_after": 0.0015,
                "on_conflict": "bring_forward",
            },
            op.New(7, "é".encode(), "é".encode(), 1, 2, OnConflict.BRING_FORWARD, CONSUMER),
        ),
        (
            {"op": "append", "id": "1a", "epoch": 2, "data": "YQ==", "if_revision": 3},
            op.Append(26, 2, b"a", 3),
        ),
        ({"op": "append", "theme": 7, "key": "k"}, op.Append((7, b"k"), None, b"")),
        ({"op": "replace", "id": "1", "text": "x"}, op.Replace(1, None, b"x")),
        ({"op": "remove", "id": "1", "epoch": 2}, op.Remove(1, 2)),
        (
            {"op": "store", "id": "1", "epoch": 2, "cause": "failed", "reason": "so"},
            op.Store(1, 2, None, Cause.FAILED, "so"),
        ),
        ({"op": "store", "id": "1", "repeat_after": 60}, op.Store(1, None, 60_000)),
        ({"op": "touch", "id": "1", "epoch": 2}, op.Touch(1, 2, CONSUMER)),
        ({"op": "park", "id": "1", "epoch": 2, "reason": "so"}, op.Park(1, 2, "so")),
        ({"op": "unpark", "id": "1"}, op.Unpark(1)),
        ({"op": "take", "id": "1", "if_revision": 5}, op.AcquireSession(1, CONSUMER, 5)),
        ({"op": "acquire", "themes": [7, 8], "count": 3}, op.Acquire((7, 8), 3, CONSUMER)),
        (
            {
                "op": "txn",
                "operations": [{"op": "remove", "id": "1"}, {"op": "unpark", "id": "2"}],
            },
            op.Txn((op.Remove(1, None), op.Unpark(2))),
        ),
    ],
)
def test_a_request_becomes_an_operation(request_: dict[str, Any], expected: Operation) -> None:
    kinds = {one.__struct_config__.tag: one for one in ask.WebSocketRequest.__args__}
    kind: type[ask.Request] = kinds[request_["op"]]
    assert operation(kind, **request_) == expected
    packed = dict(request_)
    if "data" in packed:
        packed["data"] = b"a"
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(packed), type=kind)
    assert found.operation(CONSUMER) == expected


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"id": "1", "theme": 7, "key": "k"},
        {"id": "1", "key": "k"},
        {"theme": 7},
        {"key": "k"},
    ],
)
def test_a_session_has_one_name(request_: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="name the session"):
        operation(ask.Remove, op="remove", **request_)


def test_data_comes_once() -> None:
    with pytest.raises(Refusal, match="as `data` or as `text`"):
        operation(ask.New, op="new", theme=7, data="YQ==", text="a")


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("key", ask.New(theme=7, key="\ud800")),
        ("text", ask.New(theme=7, text="\ud800")),
        ("key", ask.Remove(theme=7, key="\ud800")),
    ],
)
def test_what_no_utf_8_can_say_is_refused(field: str, request_: ask.Request) -> None:
    with pytest.raises(Refusal, match=f"{field}.*surrogate"):
        request_.operation(None)


def test_no_key_stands_for_another() -> None:
    """What cannot be written must not become what can."""
    with pytest.raises(ValueError, match="surrogate"):
        key_bytes("\ud800")
    with pytest.raises(Refusal, match="at least one character"):
        ask.key_of("")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_key_comes_back_as_it_was(key: str) -> None:
    assert key_text(ask.key_of(key)) == key


@given(st.integers(1, 2**64 - 1))
def test_an_id_has_one_form(number: int) -> None:
    text = session_text(number)
    assert session_number(text) == number
    for other in (f"0{text}", text + " ", f"0x{text}", f"+{text}"):
        assert session_number(other) is None
    if text.upper() != text:
        assert session_number(text.upper()) is None


@given(st.text())
def test_what_is_no_id_is_none(text: str) -> None:
    number = session_number(text)
    assert number is None or session_text(number) == text


def test_an_idempotency_key_wraps_the_operation() -> None:
    asked = ask.Remove(id="1", idempotency_key="k")
    assert asked.encoded_on(1, None) == encode(op.Idempotent(b"k", DAY_MS, op.Remove(1, None)))
    brief = ask.Remove(id="1", idempotency_key="k", remember_for=0.5)
    assert brief.encoded(None) == encode(op.Idempotent(b"k", 500, op.Remove(1, None)))
    assert ask.Remove(id="1").encoded_on(1, None) == ask.Remove(id="1").encoded(None)
    assert asked.encoded_on(1, None) == asked.encoded(None)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_a_time_is_a_number(seconds: float) -> None:
    with pytest.raises(Refusal):
        ask.seconds_to_ms(seconds)
