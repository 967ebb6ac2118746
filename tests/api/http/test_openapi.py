"""The document says what there is, all of it and nothing else."""

import re
from typing import Any

import jsonschema_rs
import msgspec
import openapi_spec_validator
import pytest
from aiohttp import hdrs

from api.http.route import Route
from api.http.routes import ROUTES
from api.problems import STATUSES
from cluster import failures
from state.errors import FAILURES
from tests.api.http.client import Client
from tests.api.http.contract import resolve, the_document

DOCUMENT = the_document()
OPERATIONS = [
    (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
IDS = [f"{method} {path}" for method, path, _ in OPERATIONS]


async def test_a_server_shows_it_to_everybody(caller: Client) -> None:
    answer = await caller.get("/openapi.json")
    assert answer.json == DOCUMENT


def test_it_is_openapi() -> None:
    openapi_spec_validator.validate(DOCUMENT)


def test_every_route_is_in_it_and_nothing_else() -> None:
    assert {(method.upper(), path) for method, path, _ in OPERATIONS} == {
        (route.method, route.path) for route in ROUTES
    }
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", DOCUMENT["paths"])
async def test_a_server_has_what_it_says(caller: Client, path: str) -> None:
    """It answers every method of the document, and those alone."""
    concrete = re.sub(r"\{theme\}", "7", re.sub(r"\{(id|key|name)\}", "1", path))
    allowed = (await caller.ask("OPTIONS", concrete)).headers["Allow"].split(", ")
    listed = {one.upper() for one in DOCUMENT["paths"][path]}
    assert set(allowed) - {"OPTIONS", "HEAD"} == listed
    assert ("HEAD" in allowed) == ("GET" in listed)
    for other in hdrs.METH_ALL - set(allowed) - {"CONNECT"}:
        assert (await caller.ask(other, concrete)).status == 405


@pytest.mark.parametrize(("path", "operation"), [one[1:] for one in OPERATIONS], ids=IDS)
def test_every_parameter_of_a_path_is_told(path: str, operation: dict[str, Any]) -> None:
    parameters = [resolve(one) for one in operation["parameters"]]
    named = [one["name"] for one in parameters if one["in"] == "path"]
    assert named == re.findall(r"\{(\w+)\}", path)
    keys = [(one["in"], one["name"]) for one in parameters]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("route", ROUTES, ids=[f"{one.method} {one.path}" for one in ROUTES])
def test_a_scope_is_told(route: Route) -> None:
    operation = DOCUMENT["paths"][route.path][route.method.lower()]
    if route.scope is None:
        assert "security" not in operation
        assert ("401" in operation["responses"]) == (401 in route.problems)
    else:
        assert f"scope `{route.scope.name.lower()}`" in operation["description"]
        assert "401" in operation["responses"]


def test_every_example_is_valid() -> None:
    count = 0
    for content in _contents():
        schema = {**content.get("schema", {}), "components": DOCUMENT["components"]}
        for example in content.get("examples", {}).values():
            jsonschema_rs.Draft202012Validator(schema).validate(example["value"])
            count += 1
    assert count > 20


def _contents() -> list[dict[str, Any]]:
    found = []
    for _, _, operation in OPERATIONS:
        holders = [operation.get("requestBody", {}), *map(resolve, operation["responses"].values())]
        for holder in holders:
            found += holder.get("content", {}).values()
    return found


async def test_the_examples_of_bodies_are_understood(caller: Client) -> None:
    for method, path, operation in OPERATIONS:
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for example in content.get("examples", {}).values():
            concrete = path.replace("{theme}", "7").replace("{id}", "1a").replace("{key}", "k")
            body = example["value"] | ({"wait": 0} if "wait" in example["value"] else {})
            answer = await caller.ask(method.upper(), concrete, json=body)
            assert answer.status != 400, (path, answer.body)


def test_every_code_is_told() -> None:
    ours = {one.code for one in FAILURES}
    ours |= {
        one.code
        for one in (failures.Overloaded, failures.TimedOut, failures.Stopping, failures.TooLarge)
    }
    assert ours <= STATUSES.keys()
    text = msgspec.json.encode(DOCUMENT["components"]["responses"]).decode()
    elsewhere = {"method_not_allowed"}  # of a path that has no such method
    assert {code for code in STATUSES if f"`{code}`" not in text} == elsewhere


def test_the_components_are_all_used() -> None:
    text = msgspec.json.encode(DOCUMENT).decode()
    for group in ("schemas", "responses", "headers", "parameters"):
        for name in DOCUMENT["components"][group]:
            assert f'"#/components/{group}/{name}"' in text, (group, name)
