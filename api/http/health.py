"""Whether the node lives, and whether it had better be asked."""

from typing import Literal

from aiohttp import web
from msgspec import Struct

from api.http.calls import Call


class HealthAnswer(Struct, kw_only=True):
    """`checks` has a sentence for each check that fails."""

    status: Literal["ok", "failing"]
    checks: dict[str, str]


async def live(call: Call) -> web.Response:
    """Whether this process does its work; says nothing about the cluster."""
    return _answer(call, call.front.health.live())


async def ready(call: Call) -> web.Response:
    """Whether requests had better be sent here."""
    return _answer(call, call.front.health.ready())


def _answer(call: Call, failing: dict[str, str]) -> web.Response:
    answer = HealthAnswer(status="failing" if failing else "ok", checks=failing)
    return call.answer(answer, 503 if failing else 200, {"Cache-Control": "no-store"})
