"""The interface over HTTP as an OpenAPI 3.1 document, made of what the server itself uses.

Paths, scopes and answers are those of the table of routes; schemas are those of the structures that
read bodies and write answers; problems are the table of codes. So there is nothing here to keep in
step by hand, but words and examples. HEAD is there wherever GET is, and OPTIONS everywhere, as HTTP
has it; the document does not say so of each path.
"""

from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

import msgspec
from msgspec import structs

from api import requests as ask
from api.answers import (
    AcquiredAnswer,
    CauseView,
    CreatedAnswer,
    HeldAnswer,
    RevisionAnswer,
    SessionsAnswer,
    SessionView,
    StoredAnswer,
    TxnAnswer,
)
from api.http import bodies
from api.http.route import NO_BODY, Option, Reply, Route
from api.problems import PROBLEM_TYPE, STATUSES

_DISTRIBUTION = "ritornello-server"
_REFERENCE = "#/components/schemas/{name}"

_ALWAYS = (400, 403, 406, 431, 500, 503)
_WITH_BODY = (408, 413, 415, 417)
_FULL_STATUS = 507

_TAGS = {
    "sessions": "Pieces of work: beginning, acquiring, changing and ending them.",
    "themes": "Kinds of work, and their policies.",
    "consumers": "Those who direct operators, and their signs of life.",
    "events": "What happens, as it happens.",
    "cluster": "The nodes, and what they share.",
    "health": "For supervisors and load balancers.",
    "about": "This document.",
}

_ABOUT = """\
A replicated store of sessions: work that is done by one operator at a time, comes back when it is \
due, and is never forgotten. Any node serves any request.

**Bodies.** JSON or msgpack with the fields of the request; any other content type is data as it \
is, and then the fields stand in the query. Data is Base64 in JSON (`data`), or plain text \
(`text`). Answers are JSON, or msgpack if `Accept` asks for it; a session can be had as its bytes, \
too (`application/octet-stream`).

**Epochs and revisions.** Whoever operates a session shows its epoch in `Ritornello-Epoch`; who \
shows an older one is refused (`lease_lost`). The revision is the `ETag`; with `If-Match` a change \
is made only if nobody else made one.

**Errors** are problem documents (RFC 9457). `code` says what it was, `outcome` whether something \
was done all the same, `retryable` whether the same request may succeed later.

**Keys** in a path are percent-encoded: `a/b` is `a%2Fb`. A key that is `.` or `..` has to stand \
in a body, since clients take it for a part of the path itself.
"""

_MEANING = {
    400: "What was sent cannot be understood.",
    401: "There is no token, or none that is known.",
    403: "Whoever asks may not do this.",
    404: "There is no such session, or nothing at this path.",
    406: "It cannot be had in any format that `Accept` allows.",
    408: "The body did not arrive in time.",
    409: "It is not possible as things are.",
    412: "The session has another revision.",
    413: "The body, or the operation, is too large.",
    415: "The body's type or coding is not understood.",
    417: "`Expect` asks for something unknown.",
    422: "It goes beyond a limit.",
    426: "This takes a WebSocket.",
    429: "Too much at once; `Retry-After` says when to come back.",
    431: "The header is too large.",
    500: "A mistake of the server.",
    503: "Not at this node, or not now.",
    504: "No answer in time; it may still be done.",
    507: "The whole cluster has no room.",
}

_INTEGER = {"type": "integer"}
_PATH: dict[str, tuple[str, Any]] = {
    "theme": ("The theme.", ask.Theme),
    "id": ("The session's id, as it was answered.", ask.SessionId),
    "key": ("The session's key in its theme, percent-encoded.", ask.Key),
    "name": ("The consumer's name.", ask.ConsumerName),
}
_HEADERS: dict[str, tuple[str, Any]] = {
    "Ritornello-Epoch": ("The epoch by which the caller operates the session.", ask.Epoch),
    "If-Match": ("The `ETag` that the session still has to have, or `*`.", str),
    "If-None-Match": ("`ETag`s of revisions that the caller knows.", str),
    "Idempotency-Key": (
        "Asked again with the same key, it is not done again and answers as before, for a day.",
        ask.IdempotencyHeader,
    ),
    "Ritornello-Consumer": (
        "The caller's name, which nobody else can guess: one heartbeat renews all that it holds.",
        ask.ConsumerName,
    ),
    "Ritornello-Timeout": (
        "How long the operation may take, in seconds; the server has a bound of its own.",
        ask.TimeoutSeconds,
    ),
    "traceparent": (
        "The trace of whoever asks (W3C Trace Context). A session that is begun keeps it.",
        str,
    ),
    "tracestate": ("What belongs to the trace.", str),
    "Last-Event-ID": ("The last event that was seen.", str),
    "X-Request-Id": ("An id for this request, for logs; without it the server makes one.", str),
}
_ANSWERED: dict[str, tuple[str, Any]] = {
    "ETag": ("The session's revision.", {"type": "string", "pattern": '^"[0-9]+"$'}),
    "Location": ("Where the session is.", {"type": "string", "format": "uri-reference"}),
    "Ritornello-Epoch": ("The session's epoch; on an active one, the caller's.", _INTEGER),
    "Ritornello-Session": ("The session's id.", {"type": "string"}),
    "Ritornello-Applied-Index": ("Where in the log the answer stands.", _INTEGER),
    "Ritornello-Request-Id": ("The id of this request, in the logs too.", {"type": "string"}),
    "Retry-After": ("When to come back, in seconds.", _INTEGER),
    "WWW-Authenticate": ("What token is wanted (RFC 6750).", {"type": "string"}),
}
# Headers that an answer may go without.
_SOMETIMES = frozenset({"Ritornello-Epoch", "Retry-After"})

_VIEW = SessionView(
    id="1a",
    theme=7,
    key="order-1",
    phase="active",
    epoch=2,
    revision=5,
    attempts=2,
    priority=128,
    created_ms=1_767_225_600_000,
    updated_ms=1_767_225_661_000,
    due_ms=None,
    lease_ms=30_000,
    deadline_ms=1_767_225_691_000,
    size_bytes=7,
    history=[
        CauseView(
            cause="failed",
            reason="the carrier does not answer",
            times=1,
            first_ms=1_767_225_601_000,
            last_ms=1_767_225_601_000,
        )
    ],
    chunks=[b"ship it"],
)
_CREATED = CreatedAnswer(id="1a", epoch=0, revision=1, created=True)
_STORED = StoredAnswer(id="1a", revision=3, due_ms=1_767_225_660_000, parked=False)
_EXAMPLES: dict[Any, Any] = {
    SessionView: _VIEW,
    SessionsAnswer: SessionsAnswer(sessions=[_VIEW]),
    CreatedAnswer: _CREATED,
    RevisionAnswer: RevisionAnswer(revision=6),
    StoredAnswer: _STORED,
    HeldAnswer: HeldAnswer(held=12, now_ms=1_767_225_600_000),
    TxnAnswer: TxnAnswer(
        results=[RevisionAnswer(revision=6), AcquiredAnswer(id="2f", epoch=1, revision=2)]
    ),
    ask.New: {"key": "order-1", "text": "ship it", "repeat_after": 0.5},
    ask.Acquire: {"themes": [7, 8], "count": 2, "wait": 20},
    ask.Append: {"text": "; label printed"},
    ask.Replace: {"data": "c2hpcCBpdA=="},
    ask.Remove: {"epoch": 2},
    ask.Store: {"repeat_after": 60, "cause": "failed", "reason": "the carrier does not answer"},
    ask.Touch: {"epoch": 2},
    ask.Park: {"epoch": 2, "reason": "the address does not exist"},
    ask.Txn: {
        "operations": [
            {"op": "remove", "id": "1a", "epoch": 2},
            {"op": "new", "theme": 8, "key": "order-1", "text": "shipped", "repeat_after": 0},
        ]
    },
}
_PROBLEM_EXAMPLE = {
    "type": "urn:ritornello:problem:lease_lost",
    "title": "lease lost",
    "status": 409,
    "code": "lease_lost",
    "outcome": "not_applied",
    "retryable": False,
    "detail": "epoch 1 does not hold the session; its newest is 2",
    "id": "1a",
    "epoch": 1,
    "current_epoch": 2,
    "request_id": "64f1b0a2c3d4e",
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document."""
    schemas = _Schemas(routes)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    tags = dict.fromkeys(route.tag for route in routes)
    statuses = sorted({status for route in routes for status in _problem_statuses(route)})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Ritornello",
            "version": _version(),
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": _TAGS.get(name, "")} for name in tags],
        "paths": paths,
        "components": {
            "schemas": {**schemas.components, "Problem": _problem_schema()},
            "responses": {f"Problem{status}": _problem(status) for status in statuses},
            "parameters": _shared_parameters(schemas),
            "headers": {name: _header(name) for name in _ANSWERED},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Wanted where the server has a file of tokens. Each has one of "
                    "the scopes read, operate and admin, of which each includes those before it, "
                    "and perhaps some themes only.",
                }
            },
        },
    }


def _version() -> str:
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0"  # run from its source


class _Schemas:
    """The schemas of all that routes read and write; those that have names, by reference."""

    def __init__(self, routes: Sequence[Route]) -> None:
        types: dict[Any, None] = {AcquiredAnswer: None}  # of a transaction, without a name there
        for route in routes:
            for one in (body_of(route), *(reply.body for reply in route.replies)):
                if one is not None and one is not NO_BODY:
                    types[one] = None
            types.update((type_, None) for _, type_ in _query(route))
        for _, one in (*_PATH.values(), *_HEADERS.values()):
            types[one] = None
        schemas, self.components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
        self._schemas = dict(zip(types, schemas, strict=True))

    def of(self, type_: Any) -> dict[str, Any]:  # noqa: ANN401 - any type that msgspec knows
        schema: dict[str, Any] = self._schemas[type_]
        return schema


def body_of(route: Route) -> Any:  # noqa: ANN401 - a type
    """The structure of a body; None if the route takes none."""
    if route.asks is not None:
        given = ("theme",) if route.asks is ask.New else ()
        return bodies.body_type(route.asks, given)
    return route.fields


def _query(route: Route) -> list[tuple[Option, Any]]:
    """What may stand in the query, with its type."""
    found = [(one, one.type) for one in route.options]
    if route.asks is not None and route.asks is not ask.Txn:
        found += [
            (Option(one.name, one.type, _OF_QUERY), one.type)
            for one in structs.fields(body_of(route))
            if one.name != "data"
        ]
    return found


_OF_QUERY = "As in the body, which then is data or empty."


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    summary, _, more = (route.handler.__doc__ or route.name).partition("\n")
    text = " ".join(more.split())
    found: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.tag],
        "summary": summary.rstrip("."),
    }
    if route.scope is not None:
        text += f"\n\nTakes the scope `{route.scope.name.lower()}`."
        found["security"] = [{"token": []}, {}]
    if text.strip():
        found["description"] = text.strip()
    found["parameters"] = _parameters(route, schemas)
    body = _body(route, schemas)
    if body is not None:
        found["requestBody"] = body
    responses = {str(reply.status): _reply(route, reply, schemas) for reply in route.replies}
    for status in _problem_statuses(route):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/Problem{status}"})
    found["responses"] = dict(sorted(responses.items()))
    return found


def _parameters(route: Route, schemas: _Schemas) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"$ref": f"#/components/parameters/{name}"} for name in _names_in(route.path)
    ]
    for option, type_ in _query(route):
        one: dict[str, Any] = {
            "name": option.name,
            "in": "query",
            "description": option.text,
            "schema": _without_null(schemas.of(type_)),
        }
        if option.name == "themes":
            one |= {"style": "form", "explode": False}
        found.append(one)
    found += [{"$ref": f"#/components/parameters/{name}"} for name in _header_names(route)]
    return found


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema for texts: what is not given is left out."""
    if "anyOf" not in schema:
        return schema
    rest = [one for one in schema["anyOf"] if one != {"type": "null"}]
    return rest[0] if len(rest) == 1 else {**schema, "anyOf": rest}


def _shared_parameters(schemas: "_Schemas") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for place, those in (("path", _PATH), ("header", _HEADERS)):
        for name, (text, type_) in those.items():
            found[name] = {
                "name": name,
                "in": place,
                "required": place == "path",
                "description": text,
                "schema": schemas.of(type_),
            }
    return found


def _names_in(path: str) -> Iterable[str]:
    return (part.strip("{}") for part in path.split("/") if part.startswith("{"))


def _header_names(route: Route) -> Iterable[str]:
    asks = route.asks
    if asks is not None:
        names = bodies.names_of(asks)
        if "epoch" in names:
            yield "Ritornello-Epoch"
        if "if_revision" in names:
            yield "If-Match"
        if asks not in (ask.Acquire, ask.Take):
            yield "Idempotency-Key"
        if asks in (ask.New, ask.Txn):
            yield from ("traceparent", "tracestate")
    yield from route.headers
    if 504 in route.problems:  # noqa: PLR2004 - what waits for the cluster
        yield "Ritornello-Timeout"
    yield "X-Request-Id"


def _body(route: Route, schemas: _Schemas) -> dict[str, Any] | None:
    kind = body_of(route)
    if kind is None:
        return None
    one: dict[str, Any] = {"schema": schemas.of(kind)}
    example = _EXAMPLES.get(route.asks)
    if example is not None:
        one["examples"] = {"usual": {"value": example}}
    content = dict.fromkeys(bodies.STRUCTURED, one)
    if "data" in kind.__struct_fields__:
        content[bodies.BYTES] = {}
        content["text/plain"] = {"schema": {"type": "string"}}
    return {"required": False, "content": content}


def _reply(route: Route, reply: Reply, schemas: _Schemas) -> dict[str, Any]:
    names = ("Ritornello-Request-Id", *reply.headers)
    found: dict[str, Any] = {
        "description": reply.text,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }
    if reply.body is not NO_BODY:
        found["content"] = {media: _content(media, reply, schemas) for media in route.gives}
    return found


def _content(media: str, reply: Reply, schemas: _Schemas) -> dict[str, Any]:
    if media not in bodies.STRUCTURED:
        return {} if reply.body is not str else {"schema": {"type": "string"}}
    content: dict[str, Any] = {"schema": schemas.of(reply.body)}
    example = _EXAMPLES.get(reply.body)
    if example is not None:
        content["examples"] = {"usual": {"value": _json(example)}}
    return content


def _json(value: Any) -> Any:  # noqa: ANN401 - any answer
    return msgspec.json.decode(msgspec.json.encode(value))


def _header(name: str) -> dict[str, Any]:
    text, schema = _ANSWERED[name]
    return {"description": text, "required": name not in _SOMETIMES, "schema": schema}


def _problem_statuses(route: Route) -> list[int]:
    found = {*_ALWAYS, *route.problems}
    if route.scope is not None:
        found |= {401, 429}
    if body_of(route) is not None:
        found.update(_WITH_BODY)
    return sorted(found)


def _problem(status: int) -> dict[str, Any]:
    codes = [code for code, one in STATUSES.items() if one == status]
    if status == _FULL_STATUS:
        codes = ["copy_failed", "limit_exceeded"]
    headers = ["Ritornello-Request-Id"]
    if status == 401:  # noqa: PLR2004 - as RFC 9110 has it
        headers.append("WWW-Authenticate")
    if status in {429, 503}:
        headers.append("Retry-After")
    listed = ", ".join(f"`{code}`" for code in codes)
    content: dict[str, Any] = {"schema": {"$ref": _REFERENCE.format(name="Problem")}}
    if status == _PROBLEM_EXAMPLE["status"]:
        content["examples"] = {"usual": {"value": _PROBLEM_EXAMPLE}}
    return {
        "description": f"{_MEANING[status]} Codes: {listed}.",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {PROBLEM_TYPE: content},
    }


def _problem_schema() -> dict[str, Any]:
    return {
        "title": "Problem",
        "description": "Why a request was not done (RFC 9457). There may be more members, which "
        "belong to the code: the current epoch, the bound that was passed, the key's holder.",
        "type": "object",
        "properties": {
            "type": {"type": "string", "format": "uri", "description": "Made of the code."},
            "title": {"type": "string"},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "code": {"type": "string", "enum": sorted(STATUSES)},
            "outcome": {
                "type": "string",
                "enum": ["not_applied", "unknown"],
                "description": "Whether it was done: surely not, or nobody knows.",
            },
            "retryable": {
                "type": "boolean",
                "description": "Whether the same request may succeed later.",
            },
            "detail": {"type": "string", "description": "A sentence for people."},
            "retry_after_ms": {"type": "integer", "minimum": 0},
            "request_id": {"type": "string"},
        },
        "required": [
            "type",
            "title",
            "status",
            "code",
            "outcome",
            "retryable",
            "detail",
            "request_id",
        ],
    }
