"""All that one consumer asks and holds, over one connection at a time.

Moved by calls: `ask`, `cancel`, `connected`, `received`, `disconnected`, `tick`; `take` answers
what is to be sent next. When a connection is lost everything stays here, is resumed over the next
one, and goes on.

Nothing is done twice. For sessions that are held, `turns` sees to it. What hands out a session is
sent again, because what nobody was told of is stored by the cluster. Whatever else would be done
twice has an idempotency key, or is not sent again.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from ritornello import limits
from ritornello.core import frames
from ritornello.core.credit import Credit
from ritornello.core.frames import Message, Result
from ritornello.core.leases import Leases
from ritornello.core.requests import Bounds, Held, Request, Way, nobody
from ritornello.core.turns import Turns, count_failure, is_asked_again
from ritornello.errors import (
    ClientClosed,
    DeadlineExceeded,
    NotConnected,
    Outcome,
    ProtocolError,
    RequestError,
    RitornelloError,
    request_error,
    unsayable,
)
from ritornello.limits import Options
from ritornello.models import SessionView

FOREVER = float("inf")

_HEAD_BYTES = 5  # of a list of requests, at most
_LEASE_S = 30.0  # of a session whose lease an older server has not told
_CLAIMING = frozenset({"touch", "txn"})  # of what is asked of sessions that are held
_RESUMED = "resumed"  # why a session is lost: somebody has resumed it elsewhere
_LOOK_AGAIN_S = 0.5  # at a session whose time is over, while a verdict is on its way
_WAIT_END_S = 0.2  # an acquire whose wait ends so soon is not asked again

OnSession = Callable[[Held, SessionView], None]


class Conversation:
    """What is asked, and what is held, by one consumer."""

    def __init__(
        self,
        options: Options,
        *,
        now: Callable[[], float],
        chance: random.Random,
        wake: Callable[[], None],
    ) -> None:
        """`now` is a monotonic clock, in seconds; `wake` is called when there may be more to do."""
        self._options = options
        self._now = now
        self._chance = chance
        self._wake = wake
        self.held: dict[str, Held] = {}
        self.on_session: OnSession | None = None
        self.is_connected = False
        self.is_draining = False  # the node is about to stop; it serves what is held until then
        self._has_forsaken = False  # a session was given up that signs of life would keep
        self._begun_s = 0.0  # when this connection began
        self.node = ""  # as it calls itself
        self.trouble = ""  # why there is no connection
        self._connections = 0  # that there were
        self._turns = Turns(self)
        self._leases = Leases(self.held, self._urge, now)
        self._credit = Credit(self._urge, self.try_later)
        self._seqs = itertools.count(1)
        self._window = limits.IN_FLIGHT
        self._frame_bytes = limits.FRAME_BYTES
        self._frame_requests = limits.FRAME_REQUESTS
        self._in_flight = 0
        self._open: set[Request] = set()  # whose callers wait
        self._urgent: deque[Request] = deque()
        self._ready: deque[Request] = deque()
        self._sent: dict[int, Request] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._laters = itertools.count()
        self._soonest_s = FOREVER  # not after the first deadline
        self._expiring_s = FOREVER  # not after the first lease's end
        self._bounding_s = FOREVER  # not after the first session is overdue
        self._is_closed = False

    # For callers

    def ask(self, request: Request) -> None:
        """Have a request done; its `done` is called when that is known, or its time is over."""
        request.is_asked = True
        error = self._refusal(request)
        if error is not None:
            count_failure(request)
            self.tell(request, error)
            return
        self._open.add(request)
        self._soonest_s = min(self._soonest_s, request.deadline_s)
        if not request.held:
            self.queue(request)
            return
        for held in request.held:
            held.moved_s = self._now()
        error = self._turns.ask(request)
        if error is not None:
            count_failure(request)
            self.tell(request, error)

    def _refusal(self, request: Request) -> RitornelloError | None:
        if self._is_closed:
            return ClientClosed("the client is closed")
        if request.is_unconditional:
            return None
        if len(self._open) >= limits.REQUESTS_MAX:
            detail = f"{limits.REQUESTS_MAX} requests have no answer yet, and no more may wait"
            return _refused("overloaded", detail, retryable=True)
        if self._now() >= request.deadline_s:
            return DeadlineExceeded("there was no time for it")
        return None

    def cancel(self, request: Request) -> None:
        """Forget who waits for it. What was sent may be done; what was not never will be.

        But what ends a session is done, whoever waits for it, or the session comes back otherwise.
        """
        if request.is_verdict and not request.is_asked:
            self.ask(request)  # whoever gave it was interrupted as he did
        if request.is_verdict:
            request.deadline_s = FOREVER
            for held in request.held:
                self.leave(held)
            return
        if request.is_over:
            return
        was_asked = request in self._open
        self._open.discard(request)
        request.is_over = True
        if was_asked and request.held and not request.may_be_done:
            self._turns.withdraw(request)
        self._look_at_spared(request)

    def leave(self, held: Held) -> None:
        """Take note that nobody works on a session any more: it ends as it was told, or so."""
        held.is_left = True
        self._turns.look_after(held)

    def want(self, themes: Iterable[int], hands: int) -> None:
        """Have sessions of these themes pushed, as long as some of so many hands are free."""
        self._credit.want(themes, hands)

    def free(self) -> None:
        """Take note that whoever had a session that was pushed is done with it."""
        self._credit.free()

    def take_no_more(self) -> None:
        """Have nothing pushed any more. What comes all the same is given back."""
        self.on_session = None
        self.want((), 0)

    def give_back_idle(self) -> None:
        """Store what is held and of which nothing is asked."""
        for held in list(self.held.values()):
            if held.current is None and not held.waiting:
                self.give_back(held)

    def pause_credit(self) -> None:
        """Have nothing pushed until another connection begins."""
        self._credit.pause()

    def hurry(self) -> None:
        """Send the endings of sessions that are left, before what they wait behind is answered.

        The server keeps the order; and it does what was sent before a farewell.
        """
        for held in list(self.held.values()):
            if held.current is None or not held.current.is_sent:
                continue
            if held.waiting and held.waiting[0].is_unconditional:
                self.queue(held.waiting[0])

    def on_credit_refused(self, call: Callable[[RitornelloError], None]) -> None:
        """Have somebody told when the server pushes nothing, for good."""
        self._credit.on_refused = call

    def close(self) -> None:
        """Tell everybody that it is over."""
        self._is_closed = True
        if self._credit.on_refused is not None:
            self._credit.on_refused(ClientClosed("the client is closed"))
        for request in list(self._open):
            self.tell(request, ClientClosed("the client was closed", outcome=request.outcome))
        for held in list(self.held.values()):
            self._turns.lose(held, held.lost("closed", "the client was closed"))
        self._later.clear()
        self.disconnected("the client was closed")

    def give_back(self, held: Held, reason: str = "") -> None:
        """Store a session that nobody wants, as if it had not been handed out."""
        held.is_left = True
        if held.is_over or held.has_verdict or held.was_given_back:
            return
        held.was_given_back = True
        fields = {"op": "store", "id": held.id, "epoch": held.epoch, "cause": "shutdown"}
        if reason:
            fields["reason"] = reason
        self._end_it(held, fields)

    def give_back_unowned(self, held: Held, reason: str = "") -> None:
        """Store a session that came to nobody, unless somebody works on it, or is about to."""
        held.is_spared = any(_resumes(one, held) for one in self._open)
        if not (held.owners or held.takers or held.is_spared):
            self.give_back(held, reason)

    def _look_at_spared(self, request: Request) -> None:
        """It has ended: give back what was spared for its sake, unless it brought that."""
        if request.op != "resume" or request.is_own:
            return
        for held in list(self.held.values()):
            if held.is_spared and _resumes(request, held):
                self.give_back_unowned(held)

    def _end_it(self, held: Held, fields: dict[str, Any]) -> None:
        """Give a verdict that nobody waits for, of a session that nobody works on."""
        self.ask(
            Request(
                fields,
                FOREVER,
                nobody,
                held=(held,),
                is_verdict=True,
                is_unconditional=True,
            )
        )

    def bound(self, held: Held, bounds: Bounds) -> None:
        """Take a session from whoever works on it when that takes too long.

        Here and not where it is worked on, so that it holds even if that is stuck.
        """
        held.bounds = bounds
        held.begun_s = held.moved_s = self._now()
        self._bounding_s = min(self._bounding_s, held.bound_s)
        self._wake()

    def _see_bounds(self, now_s: float) -> None:
        """Take sessions from those who work on them for too long."""
        next_s = FOREVER
        for held in list(self.held.values()):
            if held.is_gone:
                continue
            end_s = held.bound_s
            if now_s < end_s:
                next_s = min(next_s, end_s)
            elif held.has_verdict:
                next_s = min(next_s, now_s + _LOOK_AGAIN_S)
            else:
                self._overdue(held)
        self._bounding_s = next_s

    def _overdue(self, held: Held) -> None:
        bounds = held.bounds
        if bounds.total_s is not None and held.begun_s + bounds.total_s <= self._now():
            reason = f"it was not done within {bounds.total_s:g} s"
        else:
            reason = f"nothing was done with it for {bounds.progress_s:g} s"
        fields = {"op": "store", "id": held.id, "epoch": held.epoch, "cause": "failed"}
        fields["reason"] = reason
        self._end_it(held, fields)
        held.loss = held.lost("overdue", reason)  # what is asked from here on is told so
        held.tell_loss(held.loss)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be done that was asked, but for sessions to come."""
        if any(one.current is not None or one.waiting for one in self.held.values()):
            return False
        if not self._credit.is_settled:
            return False
        return all(one.until_s > 0 for one in self._open)

    @property
    def is_resumed(self) -> bool:
        """Whether all that is held is held over the connection that there is."""
        return self.is_connected and all(one.is_resumed for one in self.held.values())

    @property
    def has_to_end(self) -> bool:
        """Whether the connection has to end, as it would keep what was given up.

        Not before all else is held over it, or has had time for that: it would begin anew over the
        next one, and what is given up one after the other would end one after the other.
        """
        if not self._has_forsaken:
            return False
        return self.is_resumed or self._now() >= self._begun_s + limits.FORSAKEN_S

    @property
    def is_quiet(self) -> bool:
        """Whether no answer is on its way, but of what waits for sessions."""
        sent = self._sent.values()
        return self._credit.is_settled and all(one.until_s > 0 or one.is_own for one in sent)

    # For the connection

    def connected(self) -> None:
        """Begin with a connection; what it says first, `hello`, need not have come."""
        self.is_connected = True
        self.is_draining = False
        self._connections += 1
        self.trouble = ""
        self._has_forsaken = False
        self._begun_s = self._now()
        self._resume(list(self.held.values()))
        self._leases.begin()
        self._credit.begin()
        self._wake()

    def disconnected(self, why: str) -> None:
        """Take note that the connection is gone: what was sent may have been done."""
        self.is_connected = False
        for held in self.held.values():
            held.is_resumed = False
        sent = list(self._sent.values())
        self._sent.clear()
        self._urgent.clear()
        self._in_flight = 0
        self._leases.end()
        self._credit.end()
        again: list[Request] = []
        for request in sent:
            request.is_sent = False
            request.doubts += 1
            self._note_claims(request)
            if request.held and request.way is Way.ONCE:
                self._turns.doubt(request, _not_answered(why))
            if request.held or request.is_over or request.is_own:
                continue
            if request.way is Way.AGAIN and self._options.retries:
                request.is_queued = True
                again.append(request)
            else:
                self.tell(request, _not_answered(why))
        waiting = [one for one in self._ready if not one.held]
        for request in self._ready:
            request.is_queued = not request.held  # those are queued when they are resumed
        self._ready = deque((*again, *waiting))

    def _note_claims(self, request: Request) -> None:
        """Take note that a request to make sessions ours may yet be done, over no connection."""
        until_s = self._now() + limits.CLAIM_S
        for one in _claimed_by(request):
            held = self.held.get(one["id"])
            if held is not None and held.epoch == one["epoch"]:
                held.claimed(1, until_s)

    def unreachable(self, error: RitornelloError) -> None:
        """Take note that a node cannot be reached. What is refused for good is told at once."""
        self.trouble = error.detail
        if not self._options.retries or not error.retryable:
            for request in list(self._open):
                if request.may_be_done:
                    continue
                if request.held and not request.is_unconditional:
                    self._turns.refuse(request, error)
                else:
                    self.tell(request, error)

    def received(self, messages: Sequence[Message]) -> None:
        """Take in what the server says. Raises `ProtocolError`."""
        sent = self._sent
        for message in messages:
            if message.push:
                self._pushed(message)
                continue
            request = sent.pop(message.seq, None)
            if request is None:
                continue  # an answer that came twice
            self._in_flight -= request.weight
            request.is_sent = False
            if message.error is not None:
                self._failed(request, request_error(message.error))
            else:
                self._succeeded(request, message)
        self._wake()  # there may be more to send, and other times to wake at

    def take(self, *, is_own: bool = False) -> bytes | None:
        """The next frame to be sent, if there is anything; only what is of the client itself."""
        if not self.is_connected:
            return None
        now_s = self._now()
        parts: list[bytes] = []
        size_bytes = _HEAD_BYTES
        while len(parts) < self._frame_requests:
            request = self._next(is_own=is_own)
            if request is None:
                break
            if request.doubts and now_s >= request.known_until_s:
                self._give_up(request, _not_answered("for too long"))
                continue
            try:
                part = self._encoded(request, now_s)
            except (UnicodeEncodeError, TypeError, OverflowError) as error:
                self._failed(request, unsayable(error))
                continue
            size_bytes += len(part)
            if size_bytes > self._frame_bytes:
                if parts:
                    self._put_back(request)
                    break
                self._failed(request, _too_large(len(part), self._frame_bytes))
                size_bytes = _HEAD_BYTES
                continue
            request.sent_s = now_s
            request.is_sent = True
            self._sent[request.seq] = request
            self._in_flight += request.weight
            parts.append(part)
        return frames.together(parts) if parts else None

    def tick(self) -> float:
        """See what time has brought. Answers when to be called again, at the latest."""
        now_s = self._now()
        while self._later and self._later[0][0] <= now_s:
            heapq.heappop(self._later)[2]()
        if now_s >= self._soonest_s:
            self._pass_deadlines(now_s)
        if now_s >= self._expiring_s:
            self._end_leases(now_s)
        if now_s >= self._bounding_s:
            self._see_bounds(now_s)
        beat_s = self._leases.beat()
        later_s = self._later[0][0] if self._later else FOREVER
        return min(later_s, self._soonest_s, self._expiring_s, self._bounding_s, beat_s)

    @property
    def is_unheard(self) -> bool:
        """Whether the node has renewed no lease for so long that another one should be asked."""
        return self._leases.is_unheard()

    # Sending

    def _give_up(self, request: Request, error: RitornelloError) -> None:
        """Send it no more: nobody will ever know whether it was done."""
        if request.held:
            self._turns.doubt(request, error)
        else:
            self.tell(request, error)

    def queue(self, request: Request) -> None:
        """Have a request sent, after those that are queued."""
        if not request.is_queued and not request.is_sent:
            request.is_queued = True
            self._ready.append(request)
            self._wake()

    def _urge(self, request: Request) -> None:
        """Have a request of the client's own sent, before all others."""
        self._urgent.append(request)
        self._wake()

    def _next(self, *, is_own: bool) -> Request | None:
        if self._urgent and self._in_flight < self._window + limits.IN_FLIGHT_SPARE:
            return self._urgent.popleft()
        if is_own or self._in_flight >= self._window:
            return None
        while self._ready:
            request = self._ready.popleft()
            request.is_queued = False
            if not request.is_over:
                return request
            if request.is_unconditional or any(one.current is request for one in request.held):
                return request  # nobody waits for it any more, but what waits behind it does
        return None

    def _put_back(self, request: Request) -> None:
        if request.is_own:
            self._urgent.appendleft(request)
        else:
            request.is_queued = True
            self._ready.appendleft(request)

    def _encoded(self, request: Request, now_s: float) -> bytes:
        """A request as it is sent now."""
        fields = request.fields
        if request.until_s:
            fields["wait"] = max(min(request.until_s - now_s, limits.WAIT_MAX_S), 0.0)
        elif request.changes:
            if not request.doubts:
                request.expected = request.held[0].revision
            fields["if_revision"] = request.expected
        elif request.held and not request.doubts and request.op == "txn":
            _show_revisions(request)
        if request.doubts:
            fields.pop("until_used", None)  # the first time may yet come
        fields["seq"] = request.seq = next(self._seqs)
        return frames.encode(fields)

    # Answers

    def tell(self, request: Request, result: Message | RitornelloError) -> None:
        """Tell whoever waits for a request, once."""
        self._open.discard(request)
        if not request.is_over:
            request.is_over = True
            done, request.done = request.done, nobody  # whoever waited is let go
            done(result)
            if request.gives or not isinstance(result, Message):
                self._look_at_spared(request)

    def _succeeded(self, request: Request, message: Message) -> None:
        if request.gives:
            self._given(request, message)
            if self._is_resumed_later(request):
                return
        elif request.op == "txn":
            request.results = frames.results_of(message.results)
        if request.held:
            self._turns.succeeded(request, message)
            if request.op in _CLAIMING:
                self._see_claims(request)
        elif request.is_own:
            request.done(message)
        elif self._waits_on(request):
            self.queue(request)
        else:
            self.tell(request, message)

    def _is_resumed_later(self, request: Request) -> bool:
        """Whether its session could not be resumed just now, and is asked for once more."""
        if request.op != "resume" or len(request.results) != 1 or request.results[0].error is None:
            return False
        error = request_error(request.results[0].error)
        if error.outcome is Outcome.UNKNOWN:
            request.doubts += 1
            self._note_claims(request)
        if request.is_over or not self.may_try_again(request, error):
            return False
        self.try_later(request, error)
        return True

    def _see_claims(self, request: Request) -> None:
        """It has made a session ours that was given up meanwhile."""
        lost = {one.id for one in request.held if one.loss is not None}
        if any(one["id"] in lost and one["id"] not in self.held for one in _claimed_by(request)):
            self._forsake()

    def _waits_on(self, request: Request) -> bool:
        """Whether it is an acquire that brought nothing, and has time left."""
        if not request.until_s or request.given or request.is_over:
            return False
        return request.until_s - self._now() > _WAIT_END_S

    def _failed(self, request: Request, error: RequestError) -> None:
        if error.outcome is Outcome.UNKNOWN:
            request.doubts += 1
            self._note_claims(request)
        if request.is_own:
            request.done(error)
        elif request.held:
            self._turns.failed(request, error)
        elif self.may_try_again(request, error):
            self.try_later(request, error)
        else:
            self.tell(request, request.refused(error))

    def may_try_again(self, request: Request, error: RequestError) -> bool:
        """Whether a request is to be sent once more."""
        if request.is_over and not request.may_be_done and not request.is_verdict:
            return False  # it was not done, and nobody waits for it
        if not self._options.retries and not request.is_unconditional:
            return False
        if request.is_verdict:
            return error.retryable or error.outcome is Outcome.UNKNOWN
        if not error.retryable:
            return False
        return error.outcome is Outcome.NOT_APPLIED or request.way is Way.AGAIN

    def try_later(self, request: Request, error: RequestError | None = None) -> None:
        """Send it once more: after a time that grows, with full jitter."""
        options = self._options
        bound_s = options.backoff_min_s * 2 ** min(request.failures, 32)
        request.failures += 1
        pause_s = self._chance.uniform(0, min(bound_s, options.backoff_max_s))
        after_s = error.retry_after_s if error is not None else None
        if request.is_own:
            again = partial(self._urge_again, request, self._connections)
        else:
            again = partial(self._again, request)
        self.at(self._now() + pause_s + (after_s or 0), again)

    def _again(self, request: Request) -> None:
        if request.held:
            if not all(one.current is request and one.is_resumed for one in request.held):
                return
        elif request.is_over:
            return
        self.queue(request)

    def _urge_again(self, request: Request, connection: int) -> None:
        if self.is_connected and self._connections == connection:
            self._urge(request)

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Call something later."""
        heapq.heappush(self._later, (time_s, next(self._laters), call))
        self._wake()

    def look(self, request: Request) -> None:
        """Read the session of a verdict."""
        fields = {"op": "get", "id": request.held[0].id}
        self.ask(Request(fields, FOREVER, partial(self._turns.looked, request)))

    def _pass_deadlines(self, now_s: float) -> None:
        for request in [one for one in self._open if one.deadline_s <= now_s]:
            if request.is_over:
                continue
            if request.held:
                self._turns.late(request)
            else:
                self.tell(request, self.too_late(request))
        self._soonest_s = min((one.deadline_s for one in self._open), default=FOREVER)

    def too_late(self, request: Request) -> DeadlineExceeded:
        """The error of a request that has no time left."""
        detail = "no answer in time"
        if self.trouble:
            detail += f"; there is no connection: {self.trouble}"
        return DeadlineExceeded(detail, outcome=request.outcome)

    # Sessions

    def _given(self, request: Request, message: Message) -> None:
        """Hold the sessions that came with an answer, or give them back."""
        since_s = request.sent_s
        match request.op:
            case "acquire":
                for view in frames.sessions_of(message):
                    request.given.append((self._hold_view(view), view))
            case "take" if message.session is not None:
                request.given.append((self._hold_view(message.session), message.session))
            case "new" if message.epoch:
                held = self._hold(message, since_s)
                if request.doubts:
                    held.claimed(request.doubts, self._now() + limits.CLAIM_S)
                request.given.append((held, None))
            case "resume":
                request.results = frames.results_of(message.sessions)
                for one in request.results:
                    if one.error is None:
                        held = self._hold(one, since_s)
                        held.takers += 1
                        request.given.append((held, None))
            case _:
                pass
        if request.is_over:
            for held in request.let_go():
                self.give_back_unowned(held)

    def _hold(self, found: Message | Result, since_s: float) -> Held:
        """Hold a session that is ours since a request was sent, or later."""
        lease_ms = found.lease_ms
        lease_s = _LEASE_S if lease_ms is None else lease_ms / 1000
        held = Held(self, found.id, found.epoch, found.revision, lease_s=lease_s, since_s=since_s)
        held.lasts_until(since_s + lease_s)
        if not lease_s:
            detail = "it was begun before, under this idempotency key, and is not yours any more"
            self._turns.lose(held, held.lost("unknown", detail))
            return held
        return self._held(held)

    def _hold_view(self, view: SessionView) -> Held:
        """Hold a session that was handed out, at some time since this connection began."""
        lease_s = _LEASE_S if view.lease_ms is None else view.lease_ms / 1000
        held = Held(self, view.id, view.epoch, view.revision, lease_s=lease_s, since_s=self._now())
        held.lasts_until(self._leases.ends_s(lease_s, view.deadline_ms))
        return self._held(held)

    def _held(self, held: Held) -> Held:
        old = self.held.get(held.id)
        if old is not None:
            if old.epoch == held.epoch:
                return old
            if old.epoch > held.epoch:  # answers may overtake each other
                self._turns.lose(held, held.lost("stale", "it was taken away before this was told"))
                return held
            self._turns.lose(old, old.lost("stale", "it was taken away, and handed out again"))
        self.held[held.id] = held
        self._leases.holds(held)
        self._expiring_s = min(self._expiring_s, held.expires_s)
        return held

    def ended(self, held: Held) -> None:
        """A session is held no more."""
        if self.held.get(held.id) is held:
            del self.held[held.id]

    def _end_leases(self, now_s: float) -> None:
        """Give up what the cluster may have given to another."""
        next_s = FOREVER
        for held in list(self.held.values()):
            verdict = held.current
            if held.expires_s > now_s:
                next_s = min(next_s, held.expires_s)
            elif verdict is not None and verdict.is_verdict:
                next_s = min(next_s, now_s + _LOOK_AGAIN_S)
            else:
                detail = "no sign of life was answered for as long as its lease"
                presumed = held.presumed_loss
                self._turns.lose(held, presumed or held.lost("stale", detail))
                if presumed is None:
                    self._forsake()
        self._expiring_s = next_s

    def _forsake(self) -> None:
        """Take note that the cluster may keep a session for us that we have given up."""
        self._has_forsaken = self.is_connected
        self._wake()

    def _resume(self, sessions: Sequence[Held]) -> None:
        """Ask for sessions to be ours over this connection, as they were over the last one."""
        for start in range(0, len(sessions), limits.RESUME_MAX):
            part = [one for one in sessions[start : start + limits.RESUME_MAX] if not one.is_over]
            shown = [{"id": one.id, "epoch": one.epoch} for one in part]
            fields: dict[str, Any] = {"op": "resume", "sessions": shown}
            request = Request(fields, FOREVER, nobody, weight=len(part), is_own=True)
            request.done = partial(self._resumed, part, request)
            if part:
                self._urge(request)

    def _resumed(
        self, asked: Sequence[Held], request: Request, found: Message | RitornelloError
    ) -> None:
        if not isinstance(found, Message):
            if isinstance(found, RequestError) and not found.retryable:
                for held in asked:
                    self._turns.over(held, found)
            else:
                self.try_later(request)
            return
        results = frames.results_of(found.sessions)
        if len(results) != len(asked):
            raise ProtocolError("a resume is answered for each of its sessions")
        again: list[Held] = []
        for held, result in zip(asked, results, strict=True):
            if held.is_over:
                if result.error is None and held.id not in self.held:
                    self._forsake()
                continue
            if result.error is None:
                held.lasts_until(request.sent_s + held.lease_s)
                self._turns.resumed(held, result.revision)
                continue
            error = request_error(result.error)
            if error.outcome is Outcome.UNKNOWN:
                held.claimed(1, self._now() + limits.CLAIM_S)
            if error.retryable or error.outcome is Outcome.UNKNOWN:
                again.append(held)
            else:
                self._turns.over(held, error)
        if again:
            later = Request({**request.fields, "sessions": []}, FOREVER, nobody, is_own=True)
            later.failures, later.weight = request.failures, len(again)
            later.fields["sessions"] = [{"id": one.id, "epoch": one.epoch} for one in again]
            later.done = partial(self._resumed, again, later)
            self.try_later(later)

    # Pushes

    def _pushed(self, message: Message) -> None:
        match message.push:
            case "hello":
                self.node = message.node
                spare = limits.IN_FLIGHT_SPARE
                self._window = max(message.requests_in_flight - spare, 1)
                self._frame_bytes = message.frame_bytes or limits.FRAME_BYTES
                if message.frame_requests:
                    self._frame_requests = min(message.frame_requests, limits.FRAME_REQUESTS)
            case "session" if message.session is not None:
                self._credit.used()
                held = self._hold_view(message.session)
                if self.on_session is None:
                    self.give_back(held)
                    self.free()
                else:
                    self.on_session(held, message.session)
            case "lease_lost":
                self._was_lost(message)
            case "draining":
                self.is_draining = True
                self._wake()
            case _:
                pass

    def _was_lost(self, message: Message) -> None:
        held = self.held.get(message.id)
        if held is None or held.epoch != message.epoch:
            return
        if message.cause == _RESUMED and held.claims and self._now() < held.claims_until_s:
            held.claims -= 1
            held.is_resumed = False
            self._resume([held])
            return
        verdict = held.current
        if verdict is not None and is_asked_again(verdict):
            self._turns.lose_later(held, held.lost(message.cause, "the session was taken away"))
            return
        if verdict is None or not verdict.is_verdict or not verdict.doubts:
            detail = f"the session was taken away ({message.cause})"
            self._turns.lose(held, held.lost(message.cause, detail))


def _show_revisions(request: Request) -> None:
    """Have a transaction be done to its sessions as they are now, and not as they are later.

    What its own operations change is not counted, so the first one on each session shows it.
    """
    revisions = {one.id: one.revision for one in request.held}
    for operation in request.fields["operations"]:
        if operation["op"] != "touch":
            revision = revisions.pop(operation.get("id"), None)
            if revision is not None:
                operation["if_revision"] = revision


def _claimed_by(request: Request) -> Iterable[dict[str, Any]]:
    """What a request makes ours, or keeps so: with ids and epochs."""
    match request.op:
        case "resume":
            found: Iterable[dict[str, Any]] = request.fields["sessions"]
        case "txn":
            found = [one for one in request.fields["operations"] if one["op"] == "touch"]
        case "touch":
            found = (request.fields,)
        case _:
            found = ()
    return found


def _not_answered(why: str) -> NotConnected:
    detail = f"the connection was lost before the answer came: {why}"
    return NotConnected(detail, outcome=Outcome.UNKNOWN)


def _resumes(request: Request, held: Held) -> bool:
    """Whether a request asks for a session, in the epoch in which that is held already."""
    if request.op != "resume":
        return False
    shown = {"id": held.id, "epoch": held.epoch}
    return any(one == shown for one in request.fields["sessions"])


def _refused(code: str, detail: str, *, retryable: bool = False) -> RequestError:
    """An error as the cluster would give it, of what it was not asked."""
    outcome = Outcome.NOT_APPLIED.value
    return request_error(
        {"code": code, "outcome": outcome, "retryable": retryable, "detail": detail}
    )


def _too_large(size_bytes: int, bound_bytes: int) -> RequestError:
    detail = f"the request has {size_bytes} bytes, and a frame may have {bound_bytes}"
    return _refused("too_large", detail)
