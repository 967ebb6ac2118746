"""One HTTP request on its way through: who asks, what, and how it is answered."""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from api import tracecontext
from api.answers import (
    CreatedAnswer,
    RevisionAnswer,
    SessionView,
    StoredAnswer,
    answer_of,
)
from api.frontend import FrontEnd
from api.gateway import NAMED
from api.http import bodies
from api.http.answering import Answer, HttpRequest
from api.identifiers import session_number
from api.operators import Operator, Shown
from api.problems import Refusal, bad_request, of_failure, refusal
from api.requests import Append, New, Replace, Request, Targeted, key_of
from api.security import Principal, Scope
from api.steps import Caller, Step
from cluster.queues import Callback
from state import Cause, Created, Failure, Result
from state.errors import SessionNotFound
from state.limits import THEME_MAX
from state.operations import Target

EPOCH = "Ritornello-Epoch"
SESSION = "Ritornello-Session"
CONSUMER = "Ritornello-Consumer"
TIMEOUT = "Ritornello-Timeout"
APPLIED_INDEX = "Ritornello-Applied-Index"
REQUEST_ID = "Ritornello-Request-Id"

_INT_MAX = 2**63 - 1
_OPTIONS_MAX = 64
_IDEMPOTENCY_CHARS = 256  # as the default of the limits

_CONSUMER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

R = TypeVar("R", bound=Request)
S = TypeVar("S")
T = TypeVar("T")


class Call:
    """A request, and the answer to it."""

    __slots__ = (
        "_loop",
        "_query",
        "front",
        "media",
        "parameters",
        "principal",
        "request",
        "timeout_ms",
    )

    def __init__(
        self,
        front: FrontEnd,
        request: HttpRequest,
        principal: Principal,
        parameters: Mapping[str, str],
        query: str,
        media: str,
        timeout_ms: int,
    ) -> None:
        """`parameters` are those of the path; `media` is what to answer with.

        `timeout_ms` is how long an operation may take.
        """
        self.front = front
        self.request = request
        self.principal = principal
        self.parameters = parameters
        self.media = media
        self.timeout_ms = timeout_ms
        self._query = query
        self._loop = asyncio.get_running_loop()

    # What was sent

    @property
    def theme(self) -> int:
        """The theme in the path. Raises `Refusal`."""
        text = self.parameters["theme"]
        theme = whole_number(text, THEME_MAX)
        if theme is None:
            raise refusal(404, "not_found", f"{text[:80]!a} is no theme: a theme is a uint32")
        return theme

    @property
    def target(self) -> Target:
        """The session in the path, by id or by theme and key. Raises `Refusal`."""
        key = self.parameters.get("key")
        if key is not None:
            return self.theme, key_of(key)
        number = session_number(self.parameters["id"])
        if number is None:
            raise Refusal(NOT_FOUND)
        return number

    @property
    def query(self) -> dict[str, str]:
        """The options after the path. Raises `Refusal`."""
        if not self._query:
            return {}
        try:
            pairs = parse_qsl(
                self._query, keep_blank_values=True, errors="strict", max_num_fields=_OPTIONS_MAX
            )
        except UnicodeError as error:
            raise bad_request("the query is no UTF-8") from error
        except ValueError as error:
            raise bad_request(f"the query has more than {_OPTIONS_MAX} fields") from error
        found: dict[str, str] = {}
        for name, value in pairs:
            if name not in found:
                found[name] = value
            elif name == "themes":
                found[name] += f",{value}"
            else:
                raise bad_request(f"the query has {name[:40]!a} twice")
        return found

    def options(self, *names: str) -> dict[str, str]:
        """The query, which may have these fields. Raises `Refusal`."""
        found = self.query
        for name in found:
            if name not in names:
                known = ", ".join(names) or "none"
                raise bad_request(f"there is no option {name[:40]!a}; there are: {known}")
        return found

    async def body(self, kind: type[R], **given: Any) -> R:  # noqa: ANN401 - fields of any type
        """The request that was sent, with what is given by path and headers. Raises `Refusal`."""
        headers = self.request.headers
        names = bodies.names_of(kind)
        if "epoch" in names:
            text = headers.get(EPOCH)
            if text is not None:
                given["epoch"] = _number(EPOCH, text)
        text = headers.get("If-Match")
        if text is not None:
            if "if_revision" not in names:
                raise bad_request("this takes no If-Match")
            revision = _revision(text)
            if revision is not None:
                given["if_revision"] = revision
        data = await self._read()
        content_type = headers.get("Content-Type")
        media = "" if content_type is None else bodies.media_type(content_type)
        if kind in _PLAIN and not self._query and media not in bodies.STRUCTURED:
            given["data"] = data
            found = kind(**given)  # nearly all are so, and this is quicker
        else:
            found = bodies.read(kind, media, data, self.query, given)
        key = headers.get("Idempotency-Key")
        if key is not None:
            if not 0 < len(key) <= _IDEMPOTENCY_CHARS:
                raise bad_request(f"an Idempotency-Key has 1 to {_IDEMPOTENCY_CHARS} characters")
            found.idempotency_key = key
        return found

    def trace(self, begun: Iterable[New]) -> None:
        """Let sessions that are begun have the request's trace context, if they have none."""
        found = tracecontext.of_headers(self.request.headers)
        if found is not None:
            for one in begun:
                if one.traceparent is None:
                    one.traceparent, one.tracestate = found

    async def fields(self, kind: type[S]) -> S:
        """A body of fields that may all be left out. Raises `Refusal`."""
        self.options()
        data = await self._read()
        media = bodies.media_type(self.request.headers.get("Content-Type", ""))
        return bodies.read_fields(kind, media, data)

    async def nothing(self, *options: str) -> dict[str, str]:
        """No body, and these options at most. Raises `Refusal`."""
        found = self.options(*options)
        if await self._read():
            raise bad_request("this takes no body")
        return found

    async def _read(self) -> bytes:
        """The bytes of the body, as they were before they were compressed. Raises `Refusal`."""
        request = self.request
        payload = request.content
        if not request.body_exists:
            return b""
        coding = request.headers.get("Content-Encoding")
        if coding is None and payload.is_eof() and payload.exception() is None:
            data = payload.read_nowait()
            if len(data) > request.client_max_size:
                raise _too_large(request)
            return data
        if coding is not None and coding.strip().lower() not in _CODINGS:
            raise refusal(
                415,
                "unsupported_media",
                f"a body comes as it is, or as {', '.join(_CODINGS)}, and not {coding[:40]!a}",
            )
        # A number, or it would not have come so far; but with any number of zeros in front.
        length = request.headers.get("Content-Length", "").lstrip("0") or "0"
        if whole_number(length, request.client_max_size) is None:
            raise _too_large(request)
        await self._expected()
        timeout_ms = self.front.settings.request_timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await request.read()
        except TimeoutError as error:
            detail = f"the body did not arrive within {timeout_ms} ms"
            raise refusal(408, "request_timeout", detail, retryable=True) from error
        except web.HTTPRequestEntityTooLarge as error:
            raise _too_large(request) from error
        except (web.RequestPayloadError, HttpProcessingError) as error:
            raise bad_request("the body is broken, or not compressed as it says") from error

    async def _expected(self) -> None:
        """Let a client send its body that has asked whether it may (RFC 9110, 10.1.1)."""
        request = self.request
        expected = request.headers.get("Expect")
        if expected is None or request.version < (1, 1):
            return
        if expected.lower() != "100-continue":
            raise refusal(417, "expectation_failed", f"{expected[:40]!a} is nothing to expect here")
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun

    @property
    def is_stale_enough(self) -> bool:
        """Whether this node's own copy is good enough, however old. Raises `Refusal`."""
        match self.query.get("consistency", "linearizable"):
            case "linearizable":
                return False
            case "stale":
                return True
            case other:
                raise bad_request(f"consistency is `linearizable` or `stale`, not {other[:40]!a}")

    @property
    def consumer(self) -> bytes | None:
        """The name under which one heartbeat renews all of a caller's sessions, at any node.

        Raises `Refusal`.
        """
        name = self.request.headers.get(CONSUMER)
        return None if name is None else consumer_name(name)

    # What is done

    async def wait_for(
        self,
        begin: Callable[[Callable[[T], None]], object],
        abandoned: Callable[[T], object] | None = None,
    ) -> T:
        """Begin something that calls back once, and wait for that.

        If whoever asked has left by then, `abandoned` is told instead.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        begin(partial(_settle, future, abandoned))
        try:
            return await future
        except asyncio.CancelledError:
            if abandoned is not None and not future.cancelled() and future.done():
                abandoned(future.result())  # it came in the same moment
            raise

    async def authorize(self, scope: Scope, targets: Sequence[Target]) -> None:
        """Whether whoever asks may do this with these sessions. Raises `Refusal`."""
        if self.principal.may_all_themes:
            self.front.check(self.principal, scope)
            return
        refused: Refusal | None = await self.wait_for(
            partial(
                self.front.check_targets,
                self.principal,
                scope,
                targets,
                timeout_ms=self.timeout_ms,
            )
        )
        if refused is not None:
            raise refused

    async def operate(self, target: Target, asked: Targeted) -> Any:  # noqa: ANN401 - a result
        """Have an operation on one session done. Raises `Refusal`."""
        if not self.principal.may_all_themes:
            await self.authorize(Scope.OPERATE, (target,))
        epoch: int | None = getattr(asked, "epoch", None)
        operator = self.front.operators.operate(target, epoch) if epoch else None
        encoded = asked.encoded_on(target, self.consumer)
        if operator is None:
            return await self.submit(encoded, is_ending=asked.is_ending)
        caller = Caller()
        begin = partial(_ask, operator, encoded, asked, caller)
        is_bounded = not operator.depth and self.timeout_ms >= self.front.gateway.timeout_ms
        try:
            if is_bounded:
                return _checked(await self.wait_for(begin))
            return await self._in_time(begin)
        finally:
            caller.is_gone = True
            self.front.operators.see_holder(operator)  # a touch has made it the caller's

    async def transact(
        self,
        shown: Iterable[Shown],
        encoded: bytes,
        weight: int,
        abandoned: Callable[[Result], object] | None,
    ) -> Any:  # noqa: ANN401 - a result
        """Have a transaction done, when its turn comes at each of its sessions. Raises `Refusal`.

        See `Operators.transact`.
        """
        caller = Caller()
        transact = partial(
            self.front.operators.transact,
            shown,
            encoded,
            weight=weight,
            timeout_ms=self.timeout_ms,
            caller=caller,
            late=abandoned,
        )
        try:
            return _checked(await self.wait_for(transact, abandoned))
        finally:
            caller.is_gone = True

    async def _in_time(self, begin: Callable[[Callable[[Result], None]], object]) -> Any:  # noqa: ANN401 - a result
        """Wait for the result of what may have to wait for its turn. Raises `Refusal`."""
        timeout_ms = self.timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return _checked(await self.wait_for(begin))
        except TimeoutError as error:
            detail = f"no answer within {timeout_ms} ms; it may still be done"
            raise refusal(504, "timed_out", detail, retryable=True, outcome="unknown") from error

    async def submit(
        self,
        encoded: bytes,
        *,
        weight: int = 1,
        is_ending: bool = False,
        abandoned: Callable[[Result], object] | None = None,
    ) -> Any:  # noqa: ANN401 - a result
        """Have an encoded operation done. Raises `Refusal`."""
        submit = partial(
            self.front.gateway.submit,
            encoded,
            timeout_ms=self.timeout_ms,
            weight=weight,
            is_ending=is_ending,
            late=abandoned,
        )
        result = await self.wait_for(submit, abandoned)
        self.front.operators.budget.note(result)
        return _checked(result)

    async def read(self) -> None:
        """Wait until this node has all that was acknowledged. Raises `Refusal`."""
        read = partial(self.front.gateway.read, timeout_ms=self.timeout_ms)
        _checked(await self.wait_for(read))

    def give_back(self, session_id: int, epoch: int) -> None:
        """Store a session that was handed out to somebody who had left.

        Unless somebody has taken it over since: the epoch stays then.
        """
        if self.front.gateway.holder(session_id, epoch) != self.consumer:
            return
        operator = self.front.operators.operate(session_id, epoch)
        if operator is not None and operator.consumer is None:
            operator.store(Cause.SHUTDOWN, "whoever asked for it had left")

    # What is answered

    def answer(
        self,
        answer: Any,  # noqa: ANN401 - any of the answers
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """An answer, in the format that was asked for."""
        media = bodies.JSON if self.media == bodies.BYTES else self.media
        headers = {} if headers is None else headers
        headers["Content-Type"] = media
        return Answer(body=bodies.encode(answer, media), status=status, headers=headers)

    def result(self, result: Result, status: int = 200) -> Answer:
        """The answer of an operation on one session."""
        found = answer_of(result)
        headers = {}
        kind = type(found)
        if kind in _REVISED:
            headers["ETag"] = f'"{found.revision}"'
        if kind is CreatedAnswer:
            headers["Location"] = f"/v1/sessions/{found.id}"
            if isinstance(result, Created) and found.epoch:
                headers[EPOCH] = str(found.epoch)
                given = result.session_id, found.epoch
                found.lease_ms = self.front.gateway.held_ms(*given, self.consumer)
        return self.answer(found, status, headers)

    def session(self, view: SessionView) -> Answer:
        """One session: its fields, or its bytes if those were asked for."""
        headers = {
            "ETag": f'"{view.revision}"',
            "Vary": "Accept",
            "Cache-Control": "no-cache",
            EPOCH: str(view.epoch),
            SESSION: view.id,
            APPLIED_INDEX: str(self.front.gateway.applied_index),
        }
        if self.media != bodies.BYTES:
            return self.answer(view, headers=headers)
        chunks: list[bytes] = view.chunks or []
        headers["Content-Type"] = bodies.BYTES
        headers["X-Content-Type-Options"] = "nosniff"  # nobody knows what it is
        return Answer(body=b"".join(chunks), headers=headers)


def _ask(
    operator: Operator, encoded: bytes, asked: Targeted, caller: Caller, callback: Callback
) -> None:
    operator.ask(Step(encoded, callback, asked.is_verdict, asked.is_ending, caller=caller))


def _settle(
    future: "asyncio.Future[T]", abandoned: Callable[[T], object] | None, result: T
) -> None:
    if not future.done():
        future.set_result(result)
    elif abandoned is not None:
        abandoned(result)


def timeout_of(text: str) -> int:
    """Milliseconds of a `Ritornello-Timeout`. Raises `Refusal`."""
    timeout_ms = round(float(text) * 1000) if _SECONDS.fullmatch(text) else 0
    if not timeout_ms:
        raise bad_request(f"{TIMEOUT} is {text[:40]!a}; write seconds above 0, such as 2.5")
    return timeout_ms


def consumer_name(name: str) -> bytes:
    """The name by which the cluster knows a caller of this name. Raises `Refusal`."""
    if not _CONSUMER.fullmatch(name):
        raise bad_request(
            f"{name[:80]!a} is no consumer's name: write 1 to 64 ASCII letters, digits, '.', '-' "
            "and '_'"
        )
    return NAMED + name.encode()


def whole_number(text: str, most: int) -> int | None:
    """The number that a client wrote in decimal; None if it is none, or above `most`.

    More digits than `most` has are not read: `int` takes long for many, and raises beyond 4300.
    """
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None


def number_in(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """A number out of a query. Raises `Refusal`."""
    text = query.get(name)
    if text is None:
        return default
    number = whole_number(text, _INT_MAX)
    if number is None or not least <= number <= most:
        raise bad_request(f"{name} is {text[:40]!a}; it has to be a number from {least} to {most}")
    return number


def is_known(if_none_match: str | None, revision: int) -> bool:
    """Whether whoever asks has this revision already (RFC 9110, 13.1.2)."""
    if if_none_match is None:
        return False
    tags = (one.strip(" \t") for one in if_none_match.split(","))  # ours have no commas
    return not {"*", f'"{revision}"', f'W/"{revision}"'}.isdisjoint(tags)


def _checked(result: Result) -> Result:
    if isinstance(result, Failure):
        raise Refusal(of_failure(result))
    return result


def _number(name: str, text: str) -> int:
    number = whole_number(text, _INT_MAX)
    if not number:
        raise bad_request(f"{name} is {text[:40]!a}; it has to be a number above 0")
    return number


def _revision(text: str) -> int | None:
    text = text.strip()
    if text == "*":
        return None
    tag = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    number = whole_number(tag, _INT_MAX)
    if not number:
        raise bad_request(f'If-Match is {text[:40]!a}; send one ETag that you were given, as "3"')
    return number


def _too_large(request: web.BaseRequest) -> Refusal:
    detail = f"a body has {request.client_max_size} bytes at most (http.request_bytes)"
    return refusal(413, "too_large", detail)


NOT_FOUND = of_failure(SessionNotFound())
_CODINGS = ("identity", "gzip", "deflate")
_PLAIN = frozenset((New, Append, Replace))  # whose data is all that they have to be given
_REVISED = frozenset((CreatedAnswer, RevisionAnswer, StoredAnswer))
