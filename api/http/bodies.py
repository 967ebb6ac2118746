"""Bodies: what was sent becomes a request, what is answered becomes bytes.

By content type a body is JSON or msgpack with the fields of the request, or anything else: then it
is data as it is, and the fields stand in the query. What is answered is JSON unless `Accept` asks
for msgpack, or, of sessions, for their bytes.
"""

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, defstruct, structs

from api.problems import Refusal, bad_request, refusal
from api.requests import Request, Targeted

JSON = "application/json"
MSGPACK = "application/msgpack"
BYTES = "application/octet-stream"

# What an answer can be had as, the first if it does not matter.
STRUCTURED = (JSON, MSGPACK)
SESSION = (JSON, MSGPACK, BYTES)

R = TypeVar("R", bound=Request)
S = TypeVar("S")

_encode_json = msgspec.json.Encoder().encode
_encode_msgpack = msgspec.msgpack.Encoder().encode

_DECODERS: dict[str, Callable[..., Any]] = {
    JSON: msgspec.json.decode,
    MSGPACK: msgspec.msgpack.decode,
}
_MSGPACK_NAMES = frozenset((MSGPACK, "application/x-msgpack", "application/vnd.msgpack"))

_THEMES_MAX = 4096
_NO_DATA = f"data has no place here: send the fields as {JSON} or {MSGPACK}"


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
    decode = _DECODERS.get(content_type) if body else None
    fields = body_type(kind, tuple(given))
    if body and decode is None and "data" not in fields.__struct_fields__:
        raise refusal(415, "unsupported_media", _NO_DATA)
    try:
        if decode is not None:
            if query:
                raise bad_request("give the fields in the body, or in the query, not in both")
            found = structs.asdict(decode(body, type=fields))
        else:
            texts = {name: _listed(name, text) for name, text in query.items()}
            found = structs.asdict(msgspec.convert(texts, fields, strict=False))
            if body:
                _add_data(found, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(error) from error
    found.update(given)
    return kind(**found)


def read_fields(kind: type[S], content_type: str, body: bytes) -> S:
    """Fields that come in a body only, all of which may be left out. Raises `Refusal`."""
    decode = _DECODERS.get(content_type)
    if decode is None:
        if not body:
            return kind()
        raise refusal(415, "unsupported_media", _NO_DATA)
    try:
        found: S = decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable(error) from error
    return found


def unreadable(error: Exception) -> Refusal:
    """What to say of a body that is not as it has to be."""
    if isinstance(error, UnicodeDecodeError):
        return bad_request(f"the body is no UTF-8: {error.reason}")
    text = str(error).replace("Object", "the request").replace("`$`", "the request")
    return bad_request(text.replace("`$.", "`").rstrip("."))


def _listed(name: str, text: str) -> str | list[str]:
    return text.split(",", _THEMES_MAX) if name == "themes" else text


def _add_data(found: dict[str, Any], body: bytes) -> None:
    if found["data"] or found["text"] is not None:
        raise bad_request("give the data in the body, or in the query, not in both")
    found["data"] = body


@cache
def body_type(kind: type[Request], given: tuple[str, ...] = ()) -> type[Struct]:
    """The fields of a request that a body may have: all but those that come otherwise."""
    without = {"seq", "idempotency_key", "remember_for", "until_used", *given}
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
        namespace={"__doc__": kind.__doc__},
        forbid_unknown_fields=True,
        kw_only=True,
        omit_defaults=True,
    )


@cache
def names_of(kind: type[Request]) -> frozenset[str]:
    """The fields of a request."""
    return frozenset(kind.__struct_fields__)


def encode(answer: Any, media: str) -> bytes:  # noqa: ANN401 - any of the answers
    """An answer as bytes."""
    return _encode_msgpack(answer) if media == MSGPACK else _encode_json(answer)


@lru_cache(maxsize=256)
def media_type(content_type: str) -> str:
    """The media type of a `Content-Type`, with one name for each that has several."""
    media = content_type.partition(";")[0].strip().lower()
    return MSGPACK if media in _MSGPACK_NAMES else media


@lru_cache(maxsize=256)
def wanted(accept: str, offered: tuple[str, ...]) -> str:
    """What to answer with, of what `Accept` (RFC 9110, 12.5.1) allows and what can be had.

    Raises `Refusal` (406) if it allows nothing that there is.
    """
    ranges = dict(filter(None, map(_range, accept.split(","))))
    if not ranges:
        return offered[0]
    best = max(offered, key=lambda media: _quality(media, ranges))  # the first of several
    if not _quality(best, ranges):
        raise refusal(
            406,
            "not_acceptable",
            f"{' or '.join(offered)} can be had here, and not {accept[:100]!a}",
        )
    return best


def _range(text: str) -> tuple[str, float] | None:
    media, *parameters = (part.strip().lower() for part in text.split(";"))
    quality = 1.0
    for one in parameters:
        name, _, value = one.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return (media, quality) if media else None


def _quality(media: str, ranges: Mapping[str, float]) -> float:
    kind = media.partition("/")[0]
    names = [media, f"{kind}/*", "*/*"]
    if media == MSGPACK:
        names[:0] = sorted(_MSGPACK_NAMES - {MSGPACK})
    if media == BYTES:
        names.insert(1, "text/plain")
    return next((ranges[name] for name in names if name in ranges), 0.0)
