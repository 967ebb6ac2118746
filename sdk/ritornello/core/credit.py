"""Credit: how many sessions the server may push, and of which themes."""

from collections.abc import Callable, Iterable
from functools import partial

from ritornello import limits
from ritornello.core.frames import Message
from ritornello.core.requests import Request, nobody
from ritornello.errors import RequestError, RitornelloError

FOREVER = float("inf")


class Credit:
    """The credit of one connection."""

    def __init__(
        self, urge: Callable[[Request], None], try_later: Callable[[Request], None]
    ) -> None:
        self._urge = urge
        self._try_later = try_later
        self.on_refused: Callable[[RitornelloError], None] | None = None  # for good
        self._is_on = False
        self._themes: tuple[int, ...] = ()
        self._hands = 0  # that there are
        self._busy = 0  # of them
        self._told: tuple[int, ...] = ()  # the themes that the server knows of
        self._given = 0  # what it has
        self.is_settled = True  # whether no answer is on its way
        self._beginnings = 0  # that it has not answered: what is pushed until then is older

    def want(self, themes: Iterable[int], hands: int) -> None:
        """Have sessions of these themes pushed, as long as some of so many hands are free."""
        self._themes = tuple(sorted(themes))
        self._hands = hands
        self._give()

    def free(self) -> None:
        """Take note that a hand is free again."""
        self._busy -= 1
        self._give()

    def begin(self) -> None:
        """Begin with a connection."""
        self._is_on = True
        self._give()

    def pause(self) -> None:
        """Have nothing more pushed over this connection, as another one will follow."""
        if not (self._is_on and self._told):
            return
        self._is_on, self.is_settled = False, False
        request = Request({"op": "credit", "themes": (), "count": 0}, FOREVER, nobody, is_own=True)
        request.done = self._paused
        self._urge(request)

    def _paused(self, found: Message | RitornelloError) -> None:
        if isinstance(found, Message):
            self._settle()
        else:
            self.is_settled = True  # as far as that goes

    def _settle(self) -> None:
        """Wait for what was on its way when the credit ended: it comes before this is answered."""
        beat = Request({"op": "heartbeat"}, FOREVER, nobody, is_own=True)
        beat.done = self._settled
        self._urge(beat)

    def end(self) -> None:
        """It is gone, and the credit with it."""
        self._is_on = False
        self._told = ()
        self._given = self._beginnings = 0
        self.is_settled = True

    def used(self) -> None:
        """Take note of a session that was pushed, and is in somebody's hand until `free`."""
        self._busy += 1
        if not self._beginnings:
            self._given -= 1

    def _settled(self, _: Message | RitornelloError) -> None:
        self.is_settled = True

    def _give(self) -> None:
        if not self._is_on:
            return
        hands = min(max(self._hands - self._busy, 0), limits.COUNT_MAX)
        is_new = self._themes != self._told
        count = hands if is_new else hands - self._given
        if not is_new and count <= 0:
            return
        self.is_settled = False
        self._told = self._themes
        self._given = hands
        self._beginnings += is_new
        fields = {"op": "credit", "themes": self._themes, "count": count}
        request = Request(fields, FOREVER, nobody, is_own=True)
        request.done = partial(self._answered, request, is_new=is_new)
        self._urge(request)

    def _answered(
        self, request: Request, found: Message | RitornelloError, *, is_new: bool
    ) -> None:
        if not self._is_on:
            return  # it is being withdrawn
        if isinstance(found, Message):
            self._beginnings -= is_new
            if not self._themes:
                self._settle()
            else:
                self.is_settled = True
        elif isinstance(found, RequestError) and not found.retryable:
            self._beginnings -= is_new
            self.is_settled = True
            if self.on_refused is not None:
                self.on_refused(found)
        else:
            self._try_later(request)
