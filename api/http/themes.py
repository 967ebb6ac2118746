"""Themes over HTTP: their policies, how many sessions are where, pause and resume."""

import asyncio
from typing import Any, Literal

from aiohttp import web
from msgspec import Struct

from api.gateway import ThemeView
from api.http.calls import Call, number_in
from api.http.settings import changes_in, settings_type
from api.security import Scope
from state import Backoff, encode
from state.limits import THEME_MAX
from state.operations import Operation, Pause, Resume, SetPolicy
from state.policy import POLICY_RANGES

_PAGE, _PAGE_MAX = 100, 1000
_AT_ONCE = 20  # themes, before others have their turn


class PolicyView(Struct, kw_only=True):
    """What a theme decides for its sessions; 0 in a bound means that there is none."""

    repeat_ms: int
    backoff: Literal["fixed", "exponential"]
    repeat_cap_ms: int
    jitter_permille: int
    lease_ms: int
    progress_ms: int
    max_attempts: int
    max_active: int
    max_sessions: int


# What a change may name; numbers are bounded by the cluster, which says by what.
PolicyFields: Any = settings_type(
    "PolicyFields",
    POLICY_RANGES,
    "The settings of a policy that are to change.",
    backoff=Literal["fixed", "exponential"],
)


class ThemeAnswer(Struct, kw_only=True):
    """A theme. Counts are of sessions; `oldest_due_ms` is of the one that is ready longest."""

    theme: int
    paused: bool
    stored: int
    ready: int
    active: int
    parked: int
    size_bytes: int
    oldest_due_ms: int | None
    policy: PolicyView


class ThemesAnswer(Struct, kw_only=True):
    """A page of themes; `cursor` is null on the last one."""

    themes: list[ThemeAnswer]
    cursor: str | None = None


def _answer(view: ThemeView) -> ThemeAnswer:
    policy: dict[str, Any] = {name: getattr(view.policy, name) for name in POLICY_RANGES}
    policy["backoff"] = Backoff(view.policy.backoff).name.lower()
    return ThemeAnswer(
        theme=view.theme,
        paused=view.paused,
        stored=view.stored,
        ready=view.ready,
        active=view.active,
        parked=view.parked,
        size_bytes=view.size_bytes,
        oldest_due_ms=view.oldest_due_ms,
        policy=PolicyView(**policy),
    )


async def show_all(call: Call) -> web.Response:
    """List the themes that have sessions, or a policy of their own."""
    query = call.options("limit", "cursor", "consistency")
    limit = number_in(query, "limit", _PAGE, 1, _PAGE_MAX)
    after = number_in(query, "cursor", -1, 0, THEME_MAX)
    call.front.check(call.principal, Scope.READ)
    if not call.is_stale_enough:
        await call.read()
    gateway = call.front.gateway
    found = gateway.theme_ids(after, limit + 1, call.principal.may_theme)
    cursor = str(found[limit - 1]) if len(found) > limit else None
    seen: list[ThemeAnswer] = []
    for start in range(0, min(limit, len(found)), _AT_ONCE):
        page = found[start : min(start + _AT_ONCE, limit)]
        seen.extend(map(_answer, gateway.themes(page)))
        await asyncio.sleep(0)  # one with sessions of many priorities takes its time
    return call.answer(ThemesAnswer(themes=seen, cursor=cursor))


async def show(call: Call) -> web.Response:
    """Read a theme: its policy, and how many sessions are where."""
    theme = call.theme
    call.options("consistency")
    call.front.check(call.principal, Scope.READ, theme)
    if not call.is_stale_enough:
        await call.read()
    return call.answer(_answer(call.front.gateway.theme(theme)))


async def set_policy(call: Call) -> web.Response:
    """Change some settings of a theme's policy."""
    theme = call.theme
    call.front.check(call.principal, Scope.ADMIN, theme)
    changes = changes_in(await call.fields(PolicyFields))
    if "backoff" in changes:
        changes["backoff"] = int(Backoff[changes["backoff"].upper()])
    return await _change(call, theme, SetPolicy(theme, tuple(changes.items())))


async def pause(call: Call) -> web.Response:
    """Hand out no session of the theme, until it is resumed."""
    theme = call.theme
    call.front.check(call.principal, Scope.ADMIN, theme)
    await call.nothing()
    return await _change(call, theme, Pause(theme))


async def resume(call: Call) -> web.Response:
    """Hand out sessions of the theme again."""
    theme = call.theme
    call.front.check(call.principal, Scope.ADMIN, theme)
    await call.nothing()
    return await _change(call, theme, Resume(theme))


async def _change(call: Call, theme: int, operation: Operation) -> web.Response:
    await call.submit(encode(operation))
    return call.answer(_answer(call.front.gateway.theme(theme)))
