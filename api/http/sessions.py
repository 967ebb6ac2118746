"""Sessions over HTTP: their whole life, by id or by theme and key."""

import asyncio
from functools import partial

from aiohttp import web

from api import requests as ask
from api.answers import SessionsAnswer, SessionView
from api.http import bodies
from api.http.calls import EPOCH, NOT_FOUND, Call, is_known
from api.identifiers import session_number
from api.problems import Refusal, bad_request, of_failure, refusal
from api.security import Scope
from state import Acquired, Created, Done, Failure, Result, Stored


async def create(call: Call) -> web.Response:
    """Begin a session: active, or stored if `repeat_after` is given.

    The body is its first chunk, or the fields; then the query has none.
    """
    theme = call.theme
    call.front.check(call.principal, Scope.OPERATE, theme)
    asked = await call.body(ask.New, theme=theme)
    call.trace((asked,))
    encoded = asked.encoded(call.consumer)
    # With an idempotency key whoever asked may come again, and get the same answer.
    abandoned = partial(_give_back, call) if asked.idempotency_key is None else None
    result: Created = await call.submit(encoded, abandoned=abandoned)
    if result.epoch:
        call.front.operators.operate(result.session_id, result.epoch)
    return call.result(result, 201 if result.created else 200)


def _give_back(call: Call, result: Result) -> None:
    """Store what was handed out when nobody was there to be told, or in the belief of that."""
    match result:
        case Created() | Acquired() if result.epoch:
            call.give_back(result.session_id, result.epoch)
        case Done():
            for one in result.results:
                _give_back(call, one)
        case Created() | Acquired() | Stored():
            pass
        case tuple():
            for one in result:
                _give_back(call, one)
        case _:
            pass


async def acquire(call: Call) -> web.Response:
    """Operate sessions that are due, waiting for the first; 204 if there is none in time."""
    asked = await call.body(ask.Acquire)
    call.front.check(call.principal, Scope.OPERATE, *asked.themes)
    if asked.idempotency_key is not None:
        raise bad_request("acquiring takes no Idempotency-Key: resume what you hold instead")
    if call.media == bodies.BYTES and asked.count != 1:
        raise refusal(406, "not_acceptable", f"only one session can be had as {bodies.BYTES}")
    _refuse_if_draining(call)
    consumer = call.consumer
    wait_ms = min(ask.seconds_to_ms(asked.wait), call.front.settings.long_poll_max_ms)
    if wait_ms:
        views = await _wait(call, asked, wait_ms, consumer)
    else:
        views = await _acquire(call, asked.encoded(consumer))
    if not views:
        return web.Response(status=204)
    for view in views:
        _operate(call, view)
    if call.media == bodies.BYTES:
        return call.session(views[0])
    return call.answer(SessionsAnswer(sessions=views))


async def take(call: Call) -> web.Response:
    """Operate one session, due or not, unless it is active."""
    target = call.target
    asked = await call.body(ask.Take)
    await call.authorize(Scope.OPERATE, (target,))
    if asked.idempotency_key is not None:
        raise bad_request("acquiring takes no Idempotency-Key: resume what you hold instead")
    _refuse_if_draining(call)
    views = await _acquire(call, asked.encoded_on(target, call.consumer))
    if not views:
        raise Refusal(NOT_FOUND)
    _operate(call, views[0])
    return call.session(views[0])


def _refuse_if_draining(call: Call) -> None:
    """Begin nothing that would have to end at once."""
    if call.front.health.is_draining:
        raise refusal(503, "draining", "the node is about to stop", retryable=True)


async def _acquire(call: Call, encoded: bytes) -> list[SessionView]:
    late = partial(_give_back, call)
    acquire = partial(call.front.gateway.acquire, encoded, timeout_ms=call.timeout_ms, late=late)
    return _found(await call.wait_for(acquire, partial(_give_back_views, call)))


async def _wait(
    call: Call, asked: ask.Acquire, wait_ms: int, consumer: bytes | None
) -> list[SessionView]:
    """Wait for sessions; whatever is handed out after that has nobody to work on it."""
    waiters = call.front.waiters
    future: asyncio.Future[list[SessionView] | Failure] = asyncio.Future()

    def found(result: list[SessionView] | Failure) -> None:
        if not future.done():
            future.set_result(result)
        else:
            _give_back_views(call, result)

    waiter = waiters.ask(asked.themes, asked.count, consumer, found)
    try:
        await asyncio.wait((future,), timeout=wait_ms / 1000)
        if not future.done() and waiters.leave(waiter):
            return []
        # Its answer is on its way.
        async with asyncio.timeout(call.timeout_ms / 1000):
            result = await future
    except TimeoutError:
        if not future.done() or future.cancelled():
            return []  # what is handed out yet is given back: see `found`
        result = future.result()  # it came in the same moment
    except BaseException:
        waiters.leave(waiter)
        if not future.cancel() and not future.cancelled():
            _give_back_views(call, future.result())
        raise
    return _found(result)


def _found(result: list[SessionView] | Failure) -> list[SessionView]:
    if isinstance(result, Failure):
        raise Refusal(of_failure(result))
    return result


def _give_back_views(call: Call, result: list[SessionView] | Failure) -> None:
    for view in [] if isinstance(result, Failure) else result:
        session_id = session_number(view.id)
        if session_id is not None:
            call.give_back(session_id, view.epoch)


def _operate(call: Call, view: SessionView) -> None:
    session_id = session_number(view.id)
    if session_id is not None:
        call.front.operators.operate(session_id, view.epoch)


async def show(call: Call) -> web.Response:
    """Read a session."""
    target = call.target
    call.options("consistency")
    await call.authorize(Scope.READ, (target,))
    is_stale = call.is_stale_enough
    read = partial(
        call.front.gateway.session, target, is_stale=is_stale, timeout_ms=call.timeout_ms
    )
    view: SessionView | Failure | None = await call.wait_for(read)
    if view is None:
        raise Refusal(NOT_FOUND)
    if isinstance(view, Failure):
        raise Refusal(of_failure(view))
    if is_known(call.request.headers.get("If-None-Match"), view.revision):
        return web.Response(
            status=304,
            headers={"ETag": f'"{view.revision}"', "Vary": "Accept", EPOCH: str(view.epoch)},
        )
    return call.session(view)


async def _change(call: Call, kind: type[ask.Targeted]) -> web.Response:
    target = call.target
    asked = await call.body(kind)
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
    """Let a session come back after a while, or at another time."""
    return await _change(call, ask.Store)


async def touch(call: Call) -> web.Response:
    """Give a sign of life, and of progress; with a consumer's name, make it that one's."""
    return await _change(call, ask.Touch)


async def park(call: Call) -> web.Response:
    """Set an active session aside, until somebody unparks or removes it."""
    return await _change(call, ask.Park)


async def unpark(call: Call) -> web.Response:
    """Make a parked session due now."""
    return await _change(call, ask.Unpark)


async def transact(call: Call) -> web.Response:
    """Do several operations, all or none."""
    call.options()
    asked = await call.body(ask.Txn)
    begun = [one for one in asked.operations if isinstance(one, ask.New)]
    call.trace(begun)
    call.front.check(call.principal, Scope.OPERATE, *(one.theme for one in begun))
    await call.authorize(Scope.OPERATE, [target for target, _, _ in asked.shown])
    abandoned = partial(_give_back, call) if asked.idempotency_key is None else None
    encoded = asked.encoded(call.consumer)
    result: Done = await call.transact(asked.shown, encoded, len(asked.operations), abandoned)
    for one in result.results:
        if isinstance(one, Created | Acquired) and one.epoch:
            call.front.operators.operate(one.session_id, one.epoch)
    return call.answer(call.front.gateway.answer(result, call.consumer))
