"""Verdicts as values: what a handler answers of its session."""

from dataclasses import dataclass

from ritornello.fields import Seconds, StoreCause


@dataclass(frozen=True, slots=True)
class Remove:
    """The work is done, and the session gone."""


@dataclass(frozen=True, slots=True)
class Store:
    """It comes back `after` so many seconds; without that as its theme's policy says."""

    after: Seconds | None = None
    reason: str = ""
    cause: StoreCause = "requested"


@dataclass(frozen=True, slots=True)
class Park:
    """Set aside, with its data, until somebody unparks or removes it."""

    reason: str = ""


Verdict = Remove | Store | Park
