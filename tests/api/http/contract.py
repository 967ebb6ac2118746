"""Holds what a server answers against what its OpenAPI document says of it."""

import base64
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import jsonschema_rs
import msgspec

from api.http.routes import ROUTES
from api.openapi import document


class ContractBrokenError(AssertionError):
    """A server answers what its document does not say."""


@cache
def the_document() -> dict[str, Any]:
    """As a server would send it."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document(ROUTES)))
    return found


def resolve(one: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    while "$ref" in one:
        found: Any = the_document()
        for part in one["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        one = found
    return one


@cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.sub(r"\{\w+\}", "[^/]*", path)), path) for path in the_document()["paths"]
    ]


def template_of(path: str) -> str | None:
    """The path in the document that a request's path is an instance of."""
    return next((name for form, name in _templates() if form.fullmatch(path)), None)


def check(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Raise `ContractBrokenError` unless the document allows this answer."""
    where = f"{method} {path} answered {status}"
    template = template_of(path.partition("?")[0])
    if template is None:
        if status not in {400, 403, 404, 431}:
            raise ContractBrokenError(f"{where}, but there is no such path")
        check_problem(where, status, headers, body)
        return
    operations = the_document()["paths"][template]
    operation = operations.get("get" if method == "HEAD" else method.lower())
    if operation is None:
        _check_other(where, method, status, headers, body)
        return
    responses = operation["responses"]
    if str(status) not in responses:
        raise ContractBrokenError(f"{where}, which it says nothing of: {sorted(responses)}")
    response = resolve(responses[str(status)])
    _check_headers(where, response, headers)
    _check_content(where, response, headers, b"" if method == "HEAD" else body, method == "HEAD")
    if status >= 400 and headers.get("Content-Type") == "application/problem+json" and body:
        check_problem(where, status, headers, body)


def _check_other(
    where: str, method: str, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    if method == "OPTIONS" and status == 204:
        if body or "Allow" not in headers:
            raise ContractBrokenError(f"{where} with a body, or without Allow")
    elif status in {400, 403, 405}:
        if method != "HEAD":
            check_problem(where, status, headers, body)
    else:
        raise ContractBrokenError(f"{where}, but there is no such method")


def _check_headers(where: str, response: dict[str, Any], headers: Mapping[str, str]) -> None:
    for name, reference in response.get("headers", {}).items():
        header = resolve(reference)
        if name in headers:
            value: Any = headers[name]
            if header["schema"].get("type") == "integer":
                value = int(value)
            _validate(f"{where} with {name}", header["schema"], value)
        elif header["required"]:
            raise ContractBrokenError(f"{where} without {name}")


def _check_content(
    where: str, response: dict[str, Any], headers: Mapping[str, str], body: bytes, is_head: bool
) -> None:
    content = response.get("content")
    if content is None:
        if body:
            raise ContractBrokenError(f"{where} with a body")
        return
    media = headers.get("Content-Type", "").partition(";")[0]
    if media not in content:
        raise ContractBrokenError(f"{where} as {media!r}: {sorted(content)}")
    schema = content[media].get("schema")
    if is_head or schema is None:
        return
    if media == "application/msgpack":
        _validate(where, schema, _plain(msgspec.msgpack.decode(body)))
    elif media.endswith("json"):
        _validate(where, schema, msgspec.json.decode(body))


def check_problem(where: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Whether it is a problem document, and one with its request's id."""
    if headers.get("Content-Type") != "application/problem+json":
        raise ContractBrokenError(f"{where} without a problem document: {body[:200]!r}")
    problem = msgspec.json.decode(body)
    _validate(where, {"$ref": "#/components/schemas/Problem"}, problem)
    if problem["status"] != status:
        raise ContractBrokenError(f"{where}, but its body says {problem['status']}")
    if headers.get("Ritornello-Request-Id") != problem["request_id"]:
        raise ContractBrokenError(f"{where} with two request ids")
    if "retry_after_ms" in problem and "Retry-After" not in headers:
        raise ContractBrokenError(f"{where} without Retry-After")


def _validate(where: str, schema: dict[str, Any], value: Any) -> None:
    try:
        _validator(msgspec.json.encode(schema)).validate(value)
    except jsonschema_rs.ValidationError as error:
        raise ContractBrokenError(f"{where}: {error}") from error


@cache
def _validator(schema: bytes) -> jsonschema_rs.Draft202012Validator:
    whole = {**msgspec.json.decode(schema), "components": the_document()["components"]}
    return jsonschema_rs.Draft202012Validator(whole)


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value
