"""All routes, in one table. The router, the OpenAPI document and the tests are made of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from api.http import cluster, health, sessions, themes
from api.http.calls import Call
from api.security import Scope

Handler = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    scope: Scope | None  # that it takes; None: it is for everybody
    tag: str

    @property
    def name(self) -> str:
        """Its name in the OpenAPI document, and in metrics."""
        return f"{self.tag}_{self.handler.__name__}" + ("_by_key" if "{key}" in self.path else "")


_SESSION = "/v1/sessions/{id}"
_KEY = "/v1/themes/{theme}/keys/{key}"


def _of_a_session() -> list[Route]:
    found = []
    for path in (_SESSION, _KEY):
        found.append(Route("GET", path, sessions.show, Scope.READ, "sessions"))
        found.append(Route("DELETE", path, sessions.remove, Scope.OPERATE, "sessions"))
        found += [
            Route("POST", f"{path}/{verb}", handler, Scope.OPERATE, "sessions")
            for verb, handler in (
                ("acquire", sessions.take),
                ("append", sessions.append),
                ("replace", sessions.replace),
                ("store", sessions.store),
                ("touch", sessions.touch),
                ("park", sessions.park),
                ("unpark", sessions.unpark),
            )
        ]
    return found


ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/themes/{theme}/sessions", sessions.create, Scope.OPERATE, "sessions"),
    Route("POST", "/v1/acquire", sessions.acquire, Scope.OPERATE, "sessions"),
    *_of_a_session(),
    Route("POST", "/v1/txn", sessions.transact, Scope.OPERATE, "sessions"),
    Route("GET", "/v1/themes", themes.show_all, Scope.READ, "themes"),
    Route("GET", "/v1/themes/{theme}", themes.show, Scope.READ, "themes"),
    Route("PATCH", "/v1/themes/{theme}/policy", themes.set_policy, Scope.ADMIN, "themes"),
    Route("POST", "/v1/themes/{theme}/pause", themes.pause, Scope.ADMIN, "themes"),
    Route("POST", "/v1/themes/{theme}/resume", themes.resume, Scope.ADMIN, "themes"),
    Route("GET", "/v1/cluster", cluster.show, Scope.READ, "cluster"),
    Route("POST", "/v1/cluster/transfer", cluster.transfer, Scope.ADMIN, "cluster"),
    Route("GET", "/livez", health.live, None, "health"),
    Route("GET", "/readyz", health.ready, None, "health"),
)
