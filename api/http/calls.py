"""One HTTP request on its way through: who asks, what, and how it is answered."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiohttp import web

from api.answers import (
    CreatedAnswer,
    RevisionAnswer,
    SessionView,
    StoredAnswer,
    answer_of,
)
from api.frontend import FrontEnd
from api.http import bodies
from api.identifiers import key_bytes, session_number
from api.operators import Step
from api.problems import Refusal, bad_request, of_failure, refusal
from api.requests import Park, Remove, Request, Store
from api.security import Principal, Scope
from state import Failure, Result
from state.errors import SessionNotFound
from state.operations import Target

EPOCH = "Ritornello-Epoch"
SESSION = "Ritornello-Session"
APPLIED_INDEX = "Ritornello-Applied-Index"
REQUEST_ID = "Ritornello-Request-Id"

_VERDICTS = (Remove, Store, Park)
_INT_MAX = 2**63 - 1

R = TypeVar("R", bound=Request)
T = TypeVar("T")


class Call:
    """A request, and the answer to it."""

    __slots__ = ("_loop", "front", "principal", "request")

    def __init__(self, front: FrontEnd, request: web.Request, principal: Principal) -> None:
        self.front = front
        self.request = request
        self.principal = principal
        self._loop = asyncio.get_running_loop()

    # What was sent

    @property
    def theme(self) -> int:
        """The theme in the path. Raises `Refusal`."""
        text = self.request.match_info["theme"]
        if not text.isascii() or not text.isdigit() or int(text[:12]) > 2**32 - 1:
            raise refusal(404, "not_found", f"{text[:80]!a} is no theme: a theme is a uint32")
        return int(text)

    @property
    def target(self) -> Target:
        """The session in the path, by id or by theme and key. Raises `Refusal`."""
        found = self.request.match_info
        if "key" in found:
            return self.theme, key_bytes(found["key"])
        number = session_number(found["id"])
        if number is None:
            raise Refusal(NOT_FOUND)
        return number

    async def body(self, kind: type[R], **given: Any) -> R:  # noqa: ANN401 - fields of any type
        """The request that was sent, with what is given by path and headers. Raises `Refusal`."""
        request = self.request
        headers = request.headers
        names = bodies.names_of(kind)
        if "epoch" in names:
            epoch = _number(headers, EPOCH)
            if epoch is not None:
                given["epoch"] = epoch
        if "if_revision" in names:
            revision = _revision(headers)
            if revision is not None:
                given["if_revision"] = revision
        found = bodies.read(
            kind,
            request.content_type if request.body_exists else "",
            await request.read() if request.body_exists else b"",
            request.query,
            given,
        )
        key = headers.get("Idempotency-Key")
        if key is not None:
            if not 0 < len(key) <= 256:  # noqa: PLR2004 - as the default of the limits
                raise bad_request("an Idempotency-Key has 1 to 256 characters")
            found.idempotency_key = key
        return found

    async def fields(self) -> dict[str, Any]:
        """A body of fields that are known at run time only. Raises `Refusal`."""
        request = self.request
        if not request.body_exists:
            return {}
        return bodies.read_fields(request.content_type, await request.read())

    @property
    def is_stale_enough(self) -> bool:
        """Whether this node's own copy is good enough, however old. Raises `Refusal`."""
        match self.request.query.get("consistency", "linearizable"):
            case "linearizable":
                return False
            case "stale":
                return True
            case other:
                raise bad_request(f"consistency is `linearizable` or `stale`, not {other[:40]!a}")

    # What is done

    async def wait_for(self, begin: Callable[[Callable[[T], object]], object]) -> T:
        """Begin something that calls back once, and wait for that."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T) -> None:
            if not future.done():
                future.set_result(result)

        begin(done)
        return await future

    async def authorize(self, scope: Scope, targets: Sequence[Target]) -> None:
        """Whether whoever asks may do this with these sessions. Raises `Refusal`."""
        if self.principal.may_all_themes:
            self.front.check(self.principal, scope)
            return
        refused: Refusal | None = await self.wait_for(
            lambda then: self.front.check_targets(self.principal, scope, targets, then)
        )
        if refused is not None:
            raise refused

    async def operate(self, target: Target, asked: Request) -> Any:  # noqa: ANN401 - a result
        """Have an operation on one session done. Raises `Refusal`."""
        await self.authorize(Scope.OPERATE, (target,))
        encoded = asked.encoded(None)
        epoch = getattr(asked, "epoch", None)
        operators = self.front.operators
        operator = None
        if epoch and isinstance(target, int):
            operator = operators.operate(target, epoch)
        if operator is None:
            return await self.submit(encoded, is_ending=asked.is_ending)
        is_verdict = isinstance(asked, _VERDICTS)
        result: Result = await self.wait_for(
            lambda then: operator.ask(Step(encoded, then, is_verdict, asked.is_ending))
        )
        return _checked(result)

    async def submit(self, encoded: bytes, *, weight: int = 1, is_ending: bool = False) -> Any:  # noqa: ANN401 - a result
        """Have an encoded operation done. Raises `Refusal`."""
        submit = self.front.gateway.submit
        result: Result = await self.wait_for(
            lambda then: submit(encoded, then, weight=weight, is_ending=is_ending)
        )
        return _checked(result)

    async def read(self) -> None:
        """Wait until this node has all that was acknowledged. Raises `Refusal`."""
        _checked(await self.wait_for(self.front.gateway.read))

    # What is answered

    def answer(
        self,
        answer: Any,  # noqa: ANN401 - any of the answers
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> web.Response:
        """An answer, in the format that was asked for."""
        form = bodies.wanted(self.request.headers.get("Accept", ""), has_bytes=False)
        return web.Response(
            body=bodies.encode(answer, form),
            status=status,
            headers=headers,
            content_type=bodies.MSGPACK if form == "msgpack" else bodies.JSON,
        )

    def result(self, result: Result, status: int = 200) -> web.Response:
        """The answer of an operation on one session."""
        found = answer_of(result)
        headers = {}
        if isinstance(found, CreatedAnswer | RevisionAnswer | StoredAnswer):
            headers["ETag"] = f'"{found.revision}"'
        if isinstance(found, CreatedAnswer):
            headers["Location"] = f"/v1/sessions/{found.id}"
            if found.epoch:
                headers[EPOCH] = str(found.epoch)
        return self.answer(found, status, headers)

    def session(self, view: SessionView) -> web.Response:
        """One session: its fields, or its bytes if those were asked for."""
        form = bodies.wanted(self.request.headers.get("Accept", ""), has_bytes=True)
        headers = {
            "ETag": f'"{view.revision}"',
            EPOCH: str(view.epoch),
            SESSION: view.id,
            APPLIED_INDEX: str(self.front.gateway.applied_index),
        }
        if form == "bytes":
            chunks: list[bytes] = view.chunks or []
            return web.Response(body=b"".join(chunks), headers=headers, content_type=bodies.BYTES)
        return self.answer(view, headers=headers)


def number_in(query: Any, name: str, default: int, least: int, most: int) -> int:  # noqa: ANN401 - a multidict
    """A number out of a query. Raises `Refusal`."""
    text: str | None = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text[:20]) <= most):
        raise bad_request(f"{name} is {text[:40]!a}; it has to be a number from {least} to {most}")
    return int(text)


def _checked(result: Result) -> Result:
    if isinstance(result, Failure):
        raise Refusal(of_failure(result))
    return result


def _number(headers: Any, name: str) -> int | None:  # noqa: ANN401 - a multidict
    text: str | None = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) <= _INT_MAX):
        raise bad_request(f"{name} is {text[:40]!a}; it has to be a number above 0")
    return int(text)


def _revision(headers: Any) -> int | None:  # noqa: ANN401 - a multidict
    text: str | None = headers.get("If-Match")
    if text is None or text.strip() == "*":
        return None
    number = text.strip().removeprefix('"').removesuffix('"')
    if not (number.isascii() and number.isdigit() and 0 < int(number[:20]) <= _INT_MAX):
        raise bad_request(f'If-Match is {text[:40]!a}; send one ETag that you were given, as "3"')
    return int(number)


NOT_FOUND = of_failure(SessionNotFound())
