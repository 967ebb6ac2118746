"""Bodies: what was sent becomes a request, what is answered becomes bytes.

By content type a body is JSON or msgpack with the fields of the request, or anything else: then it
is data as it is, and the fields stand in the query. What is answered is JSON unless `Accept` asks
for msgpack, or, of sessions, for their bytes.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct, defstruct, structs

from api.problems import bad_request, refusal
from api.requests import Request, Targeted

JSON = "application/json"
MSGPACK = "application/msgpack"
BYTES = "application/octet-stream"

Format = Literal["json", "msgpack", "bytes"]

R = TypeVar("R", bound=Request)

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode


def read(
    kind: type[R],
    content_type: str,
    body: bytes,
    query: Mapping[str, str],
    given: dict[str, Any],
) -> R:
    """The request that a body and a query make, with what is `given` by path and headers.

    Raises `Refusal`.
    """
    fields = body_type(kind, tuple(sorted(given)))
    is_structured = content_type in _DECODERS
    try:
        if body and is_structured:
            if query:
                raise bad_request("give the fields in the body, or in the query, not in both")
            found = structs.asdict(_DECODERS[content_type](body, type=fields))
        else:
            texts = {name: _listed(name, text) for name, text in query.items()}
            found = structs.asdict(msgspec.convert(texts, fields, strict=False))
            if body:
                _add_data(found, body)
        return kind(**(found | given))
    except msgspec.DecodeError as error:
        raise bad_request(_readable(error)) from error
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is no UTF-8: {error.reason}") from error


_DECODERS: dict[str, Callable[..., Struct]] = {
    JSON: msgspec.json.decode,
    MSGPACK: msgspec.msgpack.decode,
}


def read_fields(content_type: str, body: bytes) -> dict[str, Any]:
    """Fields that are known at run time only. Raises `Refusal`."""
    try:
        if content_type == MSGPACK:
            found: dict[str, Any] = msgspec.msgpack.decode(body, type=dict[str, Any])
        elif content_type == JSON:
            found = msgspec.json.decode(body, type=dict[str, Any])
        else:
            raise bad_request(f"data has no place here: send the fields as {JSON} or {MSGPACK}")
    except msgspec.DecodeError as error:
        raise bad_request(_readable(error)) from error
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is no UTF-8: {error.reason}") from error
    return found


def _listed(name: str, text: str) -> str | list[str]:
    return text.split(",") if name == "themes" else text


def _add_data(found: dict[str, Any], body: bytes) -> None:
    if "data" not in found:
        raise bad_request(f"data has no place here: send the fields as {JSON} or {MSGPACK}")
    if found["data"] or found["text"] is not None:
        raise bad_request("give the data in the body, or in the query, not in both")
    found["data"] = body


@cache
def body_type(kind: type[Request], given: tuple[str, ...]) -> type[Struct]:
    """The fields of a request that a body may have: all but those that come otherwise."""
    without = {"seq", "idempotency_key", *given}
    if issubclass(kind, Targeted):
        without |= {"id", "theme", "key"}
    fields: list[Any] = [
        (one.name, one.type) if one.required else (one.name, one.type, one.default)
        for one in structs.fields(kind)
        if one.name not in without
    ]
    return defstruct(
        f"{kind.__name__}Body",
        fields,
        forbid_unknown_fields=True,
        kw_only=True,
        omit_defaults=True,
    )


@cache
def names_of(kind: type[Request]) -> frozenset[str]:
    """The fields of a request."""
    return frozenset(kind.__struct_fields__)


def _readable(error: Exception) -> str:
    return str(error).replace("Object", "the request").replace("`$`", "the request").rstrip(".")


def encode(answer: Any, form: Format) -> bytes:  # noqa: ANN401 - any of the answers
    """An answer as bytes."""
    return _encode_msgpack(answer) if form == "msgpack" else _encode_json(answer)


def wanted(accept: str, *, has_bytes: bool) -> Format:
    """What to answer with, of what `Accept` (RFC 9110, 12.5.1) allows; JSON if it allows it.

    Raises `Refusal` (406) if it allows nothing that there is.
    """
    if not accept or accept == "*/*" or JSON in accept:
        return "json"
    if MSGPACK in accept:
        return "msgpack"
    if has_bytes and (BYTES in accept or "text/plain" in accept):
        return "bytes"
    if "*/*" in accept or "application/*" in accept:
        return "json"
    offered = f"{JSON} and {MSGPACK}" + (f" and {BYTES}" if has_bytes else "")
    raise refusal(406, "not_acceptable", f"{offered} can be had, and not {accept[:100]!a}")
