"""A real server against thousands of requests that are made of its own document."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.config import SchemathesisConfig

from tests.api.http.contract import the_document
from tests.api.servers import HTTP, Running, in_a_thread, server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
EXAMPLES = 12

CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            # A short Ritornello-Timeout, and limits that are reached.
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 504, 507]},
            "negative_data_rejection": {"expected-statuses": ["4xx"]},
        },
    }
)
SCHEMA = schemathesis.openapi.from_dict(the_document(), config=CONFIG)


@schemathesis.serializer("application/msgpack")
def pack(_ctx: schemathesis.SerializationContext, value: object) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return b"\xc1"  # nothing that there is: to be refused as such a number would be


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    http = replace(HTTP, long_poll_max_ms=20)
    with in_a_thread(server(tmp_path_factory.mktemp("server"), http=http)) as found:
        yield found


@pytest.fixture(scope="module")
def connections() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@SCHEMA.exclude(path=["/v1/operate", "/v1/events"]).parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_document_says(
    case: schemathesis.Case[Any], running: Running, connections: requests.Session
) -> None:
    response = case.call(base_url=running.url, session=connections, timeout=20)
    case.validate_response(response, checks=CHECKS)
