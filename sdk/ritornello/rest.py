"""Calls over HTTP, as what is asked."""

from collections.abc import Iterable, Mapping
from typing import Any

from ritornello import fields as say
from ritornello.core.rest import Ask

_PAGE = "500"

CLUSTER = Ask("GET", "/v1/cluster")


def sessions(
    theme: int, phase: str | None, key_prefix: str, cursor: str | None, *, stale: bool
) -> Ask:
    """One page of the sessions of a theme."""
    query = {"limit": _PAGE}
    if phase is not None:
        query["phase"] = phase
    if key_prefix:
        query["key_prefix"] = key_prefix
    if cursor is not None:
        query["cursor"] = cursor
    if stale:
        query["consistency"] = "stale"
    return Ask("GET", f"/v1/themes/{say.theme_of(theme)}/sessions", query)


def themes(cursor: str | None) -> Ask:
    """One page of the themes."""
    query = {"limit": _PAGE}
    if cursor is not None:
        query["cursor"] = cursor
    return Ask("GET", "/v1/themes", query)


def theme(theme: int) -> Ask:
    """One theme."""
    return Ask("GET", f"/v1/themes/{say.theme_of(theme)}")


def policy(theme: int, settings: Mapping[str, Any]) -> Ask:
    """Change some settings of a policy."""
    fields = {name: value for name, value in settings.items() if value is not None}
    if not fields:
        raise ValueError("name what is to change, such as max_attempts=5")
    return Ask("PATCH", f"/v1/themes/{say.theme_of(theme)}/policy", fields=fields)


def pause(theme: int) -> Ask:
    """Hand out nothing."""
    return Ask("POST", f"/v1/themes/{say.theme_of(theme)}/pause")


def go_on(theme: int) -> Ask:
    """Hand out again."""
    return Ask("POST", f"/v1/themes/{say.theme_of(theme)}/resume")


def transfer(to: str) -> Ask:
    """Hand leadership over. It is not sent again: it would move on."""
    return Ask("POST", "/v1/cluster/transfer", fields={"to": to}, is_once=True)


def events_query(themes: int | Iterable[int] | None, kinds: Iterable[str]) -> dict[str, str]:
    """Which events."""
    query: dict[str, str] = {}
    if themes is not None:
        query["theme"] = ",".join(map(str, say.themes_of(themes)))
    found = ",".join(kinds)
    if found:
        query["kind"] = found
    return query
