"""Themes over HTTP: their policies, how many sessions are where, pause and resume."""

from typing import Any

from aiohttp import web
from msgspec import Struct

from api.gateway import ThemeView
from api.http.calls import Call, number_in
from api.problems import bad_request
from api.security import Scope
from state import Backoff, encode
from state.operations import Operation, Pause, Resume, SetPolicy
from state.policy import POLICY_RANGES

_PAGE, _PAGE_MAX = 100, 1000


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
    policy: dict[str, int | str]


class ThemesAnswer(Struct, kw_only=True):
    """A page of themes; `cursor` is absent on the last one."""

    themes: list[ThemeAnswer]
    cursor: str | None = None


def _answer(view: ThemeView) -> ThemeAnswer:
    policy: dict[str, int | str] = {name: getattr(view.policy, name) for name in POLICY_RANGES}
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
        policy=policy,
    )


async def show_all(call: Call) -> web.Response:
    """List the themes that have sessions, or a policy of their own."""
    limit = number_in(call.request.query, "limit", _PAGE, 1, _PAGE_MAX)
    after = number_in(call.request.query, "cursor", -1, 0, 2**32 - 1)
    call.front.check(call.principal, Scope.READ)
    if not call.is_stale_enough:
        await call.read()
    found = call.front.gateway.themes(after, limit + 1)
    cursor = str(found[limit - 1].theme) if len(found) > limit else None
    seen = [_answer(one) for one in found[:limit] if call.principal.may_theme(one.theme)]
    return call.answer(ThemesAnswer(themes=seen, cursor=cursor))


async def show(call: Call) -> web.Response:
    """Read a theme: its policy, and how many sessions are where."""
    theme = call.theme
    call.front.check(call.principal, Scope.READ, theme)
    if not call.is_stale_enough:
        await call.read()
    return call.answer(_answer(call.front.gateway.theme(theme)))


async def set_policy(call: Call) -> web.Response:
    """Change some settings of a theme's policy."""
    theme = call.theme
    call.front.check(call.principal, Scope.ADMIN, theme)
    settings = await call.fields()
    changes: list[tuple[str, int]] = []
    for name, value in settings.items():
        if name not in POLICY_RANGES:
            raise bad_request(f"a policy has no setting {name[:64]!a}: {', '.join(POLICY_RANGES)}")
        changes.append((name, _policy_value(name, value)))
    if not changes:
        raise bad_request(f"name the settings to change: {', '.join(POLICY_RANGES)}")
    return await _change(call, theme, SetPolicy(theme, tuple(changes)))


def _policy_value(name: str, value: Any) -> int:  # noqa: ANN401 - whatever was sent
    if name == "backoff":
        names = [one.name.lower() for one in Backoff]
        if value not in names:
            raise bad_request(f"backoff is one of {', '.join(names)}")
        return int(Backoff[value.upper()])
    if type(value) is not int:
        raise bad_request(f"{name} is a whole number")
    return value


async def pause(call: Call) -> web.Response:
    """Hand out no session of the theme, until it is resumed."""
    theme = call.theme
    call.front.check(call.principal, Scope.ADMIN, theme)
    return await _change(call, theme, Pause(theme))


async def resume(call: Call) -> web.Response:
    """Hand out sessions of the theme again."""
    theme = call.theme
    call.front.check(call.principal, Scope.ADMIN, theme)
    return await _change(call, theme, Resume(theme))


async def _change(call: Call, theme: int, operation: Operation) -> web.Response:
    await call.submit(encode(operation))
    return call.answer(_answer(call.front.gateway.theme(theme)))
