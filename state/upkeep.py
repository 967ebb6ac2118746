"""Does the operations that are not about one session: the clock, consumers, policies, limits.

The same rules as in `execution`: first all checks, then the changes.
"""

from dataclasses import replace
from typing import Any

from state.errors import Malformed, OutOfRange, Refused, StaleTerm
from state.events import EventKind, RawEvent
from state.limits import LIMIT_RANGES, SEQUENCE_MAX, TIME_MAX_MS, Range
from state.policy import POLICY_RANGES
from state.records import Theme
from state.tables import Tables

_POLICY_CHANGED, _READY = EventKind.POLICY_CHANGED, EventKind.READY


class Upkeep:
    """Keeps time, leases, policies and limits of `tables`, and notes the events."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._ledger = tables.ledger
        # Of the batch at hand:
        self.events: list[RawEvent] = []
        self.term = 0
        self.index = 0
        self.proposer = ""

    def tick(self, operation: tuple[Any, ...]) -> int:
        _, now_ms = operation
        tables = self._tables
        if not 0 <= now_ms <= TIME_MAX_MS:
            raise Refused(Malformed("time is out of range"))
        if self.term < tables.term:
            raise Refused(StaleTerm(self.term, tables.term))
        tables.term = self.term
        tables.now_ms = max(tables.now_ms, now_ms)
        page = tables.limits.tick_page
        for session in tables.wake(page):
            self.events.append(
                (_READY, session.session_id, session.theme.theme_id, session.key, session.revision)
            )
        tables.expire_receipts(page)
        tables.leases.sweep(tables.now_ms, page)
        return tables.now_ms

    def heartbeat(self, operation: tuple[Any, ...]) -> int:
        _, consumer_id = operation
        consumer = self._tables.consumers.get(consumer_id)
        if consumer is None:
            return 0
        if consumer.seen_ms != self._tables.now_ms:
            self._tables.see(consumer)
        return consumer.population

    def barrier(self, _operation: tuple[Any, ...]) -> int:
        return self.index

    def set_policy(self, operation: tuple[Any, ...]) -> None:
        _, theme_id, settings = operation
        changes = _checked(settings, POLICY_RANGES)
        theme = self._change(theme_id)
        theme.policy = replace(theme.policy, **changes)

    def pause(self, operation: tuple[Any, ...]) -> None:
        theme = self._change(operation[1])
        theme.paused = True

    def resume(self, operation: tuple[Any, ...]) -> None:
        theme = self._change(operation[1])
        theme.paused = False

    def set_limits(self, operation: tuple[Any, ...]) -> None:
        _, settings = operation
        self._tables.limits = replace(self._tables.limits, **_checked(settings, LIMIT_RANGES))

    def forget_proposer(self, operation: tuple[Any, ...]) -> None:
        _, proposer = operation
        if proposer == self.proposer:
            raise Refused(Malformed("a proposer cannot forget itself"))
        window = self._tables.windows.get(proposer)
        if window is not None:
            # What it sent may still be on its way, and must not be applied again.
            self._tables.clear(window, window.incarnation, SEQUENCE_MAX)

    def _change(self, theme_id: int) -> Theme:
        """Begin a change of a theme, the last check of which this is. Raises `Refused`."""
        self._tables.check_theme(theme_id)
        theme = self._tables.open_theme(theme_id)
        if theme.mark != self._ledger.mark:
            self._ledger.note(theme)
        self._tables.idle[theme] = None
        self._tables.awake.add(theme)
        self.events.append((_POLICY_CHANGED, 0, theme.theme_id, None, 0))
        return theme


def _checked(settings: tuple[Any, ...], ranges: dict[str, Range]) -> dict[str, int]:
    """Settings as a dict, all within their ranges. Raises `Refused`."""
    changes: dict[str, int] = {}
    for setting in settings:
        if not isinstance(setting, tuple) or tuple(map(type, setting)) != (str, int):
            raise Refused(Malformed("a setting is a name and an int"))
        name, value = setting
        if name not in ranges:
            raise Refused(Malformed(f"there is no setting {name[:64]!a}"))
        one = ranges[name]
        if not one.minimum <= value <= one.maximum:
            raise Refused(OutOfRange(name, value, one.minimum, one.maximum))
        changes[name] = value
    return changes
