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

Ids = Mapping[Target, int]  # of sessions that are shown by their keys
Held = tuple[int, int]  # a session's id, and the epoch in which it is held


@dataclass(slots=True)
class Effects:
    """What operations that were done have made of sessions."""

    given: dict[int, int] = field(default_factory=dict)  # to an epoch, and not ended after that
    touched: list[Held] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)


def ids_of(
    gateway: Gateway, operations: Iterable[ask.Request], before: Ids | None = None
) -> dict[Target, int]:
    """Whose keys are shown, as this node knows it now, which may be a little late.

    `before` is what it knew earlier: that stays, unless a key's session has the epoch now that is
    shown, as only one session of a key ever has.
    """
    found = {} if before is None else dict(before)
    for one in operations:
        if isinstance(one, ask.Targeted) and not isinstance(target := one.target, int):
            session_id = gateway.session_id(target)
            is_meant = gateway.epoch(session_id) == getattr(one, "epoch", None)
            if session_id and (is_meant or target not in found):
                found[target] = session_id
    return found


def touched_by(operations: Iterable[ask.Request], ids: Ids) -> Iterator[Held]:
    """The sessions that would be touched, as far as their ids are known."""
    for one in operations:
        if isinstance(one, ask.Touch):
            target = one.target
            session_id = target if isinstance(target, int) else ids.get(target, 0)
            if session_id:
                yield session_id, one.epoch


def effects_of(operations: Iterable[ask.Request], results: Iterable[Any], ids: Ids) -> Effects:
    """What they have made of sessions, one after the other; `ids` are those before."""
    effects, now = Effects(), dict(ids)
    for one, result in zip(operations, results, strict=True):
        session_id = _session_id(one, result, now)
        if isinstance(result, Created | Acquired) and result.epoch:
            effects.given[session_id] = result.epoch
        elif isinstance(one, ask.Touch):
            effects.touched += touched_by((one,), now)
        elif one.is_verdict:
            effects.ended.add(session_id)
            effects.given.pop(session_id, None)
    return effects


def _session_id(one: ask.Request, result: Any, ids: dict[Target, int]) -> int:  # noqa: ANN401 - of any kind
    """The session that an operation is about; 0 if that is not known. Notes whose its key is."""
    target: Target = 0
    if isinstance(one, ask.Targeted):
        target = one.target
    elif isinstance(one, ask.New) and one.key is not None:
        target = (one.theme, ask.key_of(one.key))
    if isinstance(result, Created | Acquired):
        if not isinstance(target, int):
            ids[target] = result.session_id
        return result.session_id
    return target if isinstance(target, int) else ids.get(target, 0)
