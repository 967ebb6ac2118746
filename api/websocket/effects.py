"""What operations have made of sessions: given, touched and ended, for whoever has asked for them.

A session may be shown by its id here and by its key there, and in one transaction a key may be that
of one session after the other.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from api import requests as ask
from api.gateway import Gateway
from state import Acquired, Created
from state.operations import Target

# Of sessions that are shown by their keys, with the epoch that is shown: only one session of a key
# ever has it. With None: whoever has the key, which may be another session by now.
Ids = Mapping[tuple[Target, int | None], int]
Held = tuple[int, int]  # a session's id, and the epoch in which it is held


@dataclass(slots=True)
class Effects:
    """What operations that were done have made of sessions."""

    given: dict[int, int] = field(default_factory=dict)  # to an epoch, and not ended after that
    touched: list[Held] = field(default_factory=list)  # that were held before
    ended: set[int] = field(default_factory=set)


def ids_of(
    gateway: Gateway, operations: Iterable[ask.Request], before: Ids | None = None
) -> dict[tuple[Target, int | None], int]:
    """The ids of what is shown by keys, as this node knows it now, which may be a little late.

    `before` is what it knew earlier.
    """
    found = {} if before is None else dict(before)
    for one in operations:
        target, epoch = _target(one), _epoch(one)
        if target is None or isinstance(target, int):
            continue
        session_id = gateway.session_id(target)
        if session_id:
            found.setdefault((target, None), session_id)
        if epoch is not None and gateway.epoch(session_id) == epoch:
            found[target, epoch] = session_id
    return found


def touched_by(operations: Iterable[ask.Request], ids: Ids) -> Iterator[Held]:
    """The sessions that would be touched, as far as their ids are known."""
    for one in operations:
        if isinstance(one, ask.Touch):
            target = one.target
            session_id = target if isinstance(target, int) else ids.get((target, one.epoch), 0)
            if session_id:
                yield session_id, one.epoch


def effects_of(operations: Iterable[ask.Request], results: Iterable[Any], ids: Ids) -> Effects:
    """What they have made of sessions, one after the other; `ids` are those before."""
    effects, now = Effects(), dict(ids)
    for one, result in zip(operations, results, strict=True):
        if isinstance(result, Created | Acquired):
            session_id = result.session_id
            if (target := _target(one)) is not None:
                now[target, None] = session_id
            if result.epoch:
                effects.given[session_id] = result.epoch
        elif isinstance(one, ask.Touch):
            touched = touched_by((one,), now)
            effects.touched += (held for held in touched if held not in effects.given.items())
        elif one.is_verdict:
            session_id = _ended(one, now)
            effects.ended.add(session_id)
            effects.given.pop(session_id, None)
    return effects


def _ended(verdict: ask.Request, ids: Ids) -> int:
    """The id of what a verdict has ended; 0 if that is not known."""
    target = _target(verdict)
    if target is None or isinstance(target, int):
        return target or 0
    return ids.get((target, _epoch(verdict)), 0) or ids.get((target, None), 0)


def _epoch(one: ask.Request) -> int | None:
    epoch: int | None = getattr(one, "epoch", None)
    return epoch


def _target(one: ask.Request) -> Target | None:
    """By what an operation shows its session; None if it does not, and begins one without a key."""
    if isinstance(one, ask.Targeted):
        return one.target
    if isinstance(one, ask.New) and one.key is not None:
        return one.theme, ask.key_of(one.key)
    return None
