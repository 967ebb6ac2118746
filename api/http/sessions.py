"""Sessions over HTTP: their whole life, by id or by theme and key."""

import asyncio
from typing import Any

from aiohttp import web

from api import requests as ask
from api.answers import SessionsAnswer, SessionView, answer_of
from api.http import bodies
from api.http.calls import NOT_FOUND, Call
from api.identifiers import session_number
from api.problems import Refusal, bad_request, of_failure
from api.security import Scope
from state import Acquired, Cause, Created, Done, Failure, encode


async def create(call: Call) -> web.Response:
    """Begin a session. The body is its first chunk."""
    asked = await call.body(ask.New, theme=call.theme)
    call.front.check(call.principal, Scope.OPERATE, asked.theme)
    result = await call.submit(asked.encoded(None))
    if result.epoch:
        call.front.operators.operate(result.session_id, result.epoch)
    return call.result(result, 201 if result.created else 200)


async def acquire(call: Call) -> web.Response:
    """Operate sessions that are due, waiting for the first; 204 if there is none in time."""
    asked = await call.body(ask.Acquire)
    call.front.check(call.principal, Scope.OPERATE, *asked.themes)
    if asked.idempotency_key is not None:
        raise bad_request("acquiring takes no Idempotency-Key: resume what you hold instead")
    has_bytes = asked.count == 1
    form = bodies.wanted(call.request.headers.get("Accept", ""), has_bytes=has_bytes)
    wait_ms = min(ask.seconds_to_ms(asked.wait), call.front.settings.long_poll_max_ms)
    views = await (_wait(call, asked, wait_ms) if wait_ms else _acquire(call, asked.encoded(None)))
    if not views:
        return web.Response(status=204)
    for view in views:
        _operate(call, view)
    if form == "bytes":
        return call.session(views[0])
    return call.answer(SessionsAnswer(sessions=views))


async def take(call: Call) -> web.Response:
    """Operate one session, due or not, unless it is active."""
    target = call.target
    asked = await call.body(ask.Take, **_named(call))
    await call.authorize(Scope.OPERATE, (target,))
    views = await _acquire(call, asked.encoded(None))
    if not views:
        raise Refusal(NOT_FOUND)
    _operate(call, views[0])
    return call.session(views[0])


async def _acquire(call: Call, encoded: bytes) -> list[SessionView]:
    found: list[SessionView] | Failure = await call.wait_for(
        lambda then: call.front.gateway.acquire(encoded, then)
    )
    if isinstance(found, Failure):
        raise Refusal(of_failure(found))
    return found


async def _wait(call: Call, asked: ask.Acquire, wait_ms: int) -> list[SessionView]:
    """Wait for sessions; whatever is handed out after that has nobody to work on it."""
    waiters = call.front.waiters
    future: asyncio.Future[list[SessionView] | Failure] = asyncio.Future()

    def found(result: list[SessionView] | Failure) -> None:
        if not future.done():
            future.set_result(result)
        elif not isinstance(result, Failure):
            _give_back(call, result)

    waiter = waiters.ask(asked.themes, asked.count, None, found)
    try:
        await asyncio.wait([future], timeout=wait_ms / 1000)
        if not future.done() and waiters.leave(waiter):
            return []
        # Its answer is on its way.
        async with asyncio.timeout(call.front.settings.request_timeout_ms / 1000):
            result = await asyncio.shield(future)
    except BaseException:
        waiters.leave(waiter)
        if not future.cancel() and not isinstance(result := future.result(), Failure):
            _give_back(call, result)
        raise
    if isinstance(result, Failure):
        raise Refusal(of_failure(result))
    return result


def _give_back(call: Call, views: list[SessionView]) -> None:
    for view in views:
        session_id = session_number(view.id)
        operator = session_id and call.front.operators.operate(session_id, view.epoch)
        if operator:
            operator.store(Cause.SHUTDOWN, "whoever asked for it had left")


def _operate(call: Call, view: SessionView) -> None:
    session_id = session_number(view.id)
    if session_id is not None:
        call.front.operators.operate(session_id, view.epoch)


async def show(call: Call) -> web.Response:
    """Read a session."""
    target = call.target
    await call.authorize(Scope.READ, (target,))
    is_stale = call.is_stale_enough
    view: SessionView | Failure | None = await call.wait_for(
        lambda then: call.front.gateway.session(target, then, is_stale=is_stale)
    )
    if view is None:
        raise Refusal(NOT_FOUND)
    if isinstance(view, Failure):
        raise Refusal(of_failure(view))
    etag = f'"{view.revision}"'
    if call.request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers={"ETag": etag})
    return call.session(view)


def _named(call: Call) -> dict[str, Any]:
    """The session's name in the path, as the fields of a request."""
    found = call.request.match_info
    if "key" in found:
        return {"theme": call.theme, "key": found["key"]}
    return {"id": found["id"]}


async def _change(call: Call, kind: type[ask.Targeted]) -> web.Response:
    target = call.target
    asked = await call.body(kind, **_named(call))
    return call.result(await call.operate(target, asked))


async def remove(call: Call) -> web.Response:
    """End a session; its key is free."""
    return await _change(call, ask.Remove)


async def append(call: Call) -> web.Response:
    """Add a chunk."""
    return await _change(call, ask.Append)


async def replace(call: Call) -> web.Response:
    """Put one chunk in place of all."""
    return await _change(call, ask.Replace)


async def store(call: Call) -> web.Response:
    """Let a session come back after a while."""
    return await _change(call, ask.Store)


async def touch(call: Call) -> web.Response:
    """Give a sign of life, and of progress."""
    return await _change(call, ask.Touch)


async def park(call: Call) -> web.Response:
    """Set an active session aside, until somebody unparks or removes it."""
    return await _change(call, ask.Park)


async def unpark(call: Call) -> web.Response:
    """Make a parked session due now."""
    return await _change(call, ask.Unpark)


async def transact(call: Call) -> web.Response:
    """Do several operations, all or none."""
    asked = await call.body(ask.Txn)
    themes = [one.theme for one in asked.operations if isinstance(one, ask.New)]
    call.front.check(call.principal, Scope.OPERATE, *themes)
    targets = [one.target for one in asked.operations if isinstance(one, ask.Targeted)]
    await call.authorize(Scope.OPERATE, targets)
    encoded = encode(ask.once(asked.operation(None), asked.idempotency_key))
    result = await call.submit(encoded, weight=len(asked.operations))
    if isinstance(result, Done):
        for one in result.results:
            if isinstance(one, Created | Acquired) and one.epoch:
                call.front.operators.operate(one.session_id, one.epoch)
    return call.answer(answer_of(result))
