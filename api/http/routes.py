"""All routes, in one table. The router, the OpenAPI document and the tests are made of it.

To add one: write a handler, whose docstring's first line becomes the summary, and a row. What a row
says beside method, path, handler, scope and tag is for the document, and for `Accept`.
"""

from typing import Any

from api import requests as ask
from api.answers import (
    CreatedAnswer,
    HeldAnswer,
    RevisionAnswer,
    SessionsAnswer,
    SessionView,
    StoredAnswer,
    TxnAnswer,
)
from api.http import (
    cluster,
    consumers,
    document,
    events,
    health,
    listing,
    metrics,
    operate,
    sessions,
    snapshots,
    themes,
)
from api.http.bodies import JSON, SESSION
from api.http.calls import APPLIED_INDEX, EPOCH
from api.http.calls import SESSION as SESSION_HEADER
from api.http.route import Handler, Option, Reply, Route
from api.security import Scope

# What a route may be refused with that asks the cluster; and one that is about a session.
_CLUSTER = (422, 429, 503, 504)
_SESSION = (404, 409, 412, *_CLUSTER)
_STORING = (*_SESSION, 507)

_CONSISTENCY = Option(
    "consistency",
    ask.Consistency,
    "`stale` answers from the node's own copy, however old.",
)
_PAGING = (
    Option("limit", ask.PageSize, "How many at most."),
    Option("cursor", str, "Where the page before has ended."),
)

_REVISED = ("ETag",)
_SHOWN = ("ETag", EPOCH, SESSION_HEADER, APPLIED_INDEX)

_VERBS: tuple[tuple[str, Handler, type[ask.Request], Any, tuple[int, ...]], ...] = (
    ("append", sessions.append, ask.Append, RevisionAnswer, _STORING),
    ("replace", sessions.replace, ask.Replace, RevisionAnswer, _STORING),
    ("store", sessions.store, ask.Store, StoredAnswer, _SESSION),
    ("touch", sessions.touch, ask.Touch, RevisionAnswer, _STORING),
    ("park", sessions.park, ask.Park, RevisionAnswer, _SESSION),
    ("unpark", sessions.unpark, ask.Unpark, StoredAnswer, _SESSION),
)


def _of_a_session(path: str) -> list[Route]:
    """The routes of one session, which a path names."""
    return [
        Route(
            "GET",
            path,
            sessions.show,
            Scope.READ,
            "sessions",
            options=(_CONSISTENCY,),
            headers=("If-None-Match",),
            replies=(
                Reply(200, SessionView, "The session.", _SHOWN),
                Reply(304, text="It has the revision that was named.", headers=("ETag", EPOCH)),
            ),
            problems=(404, 429, 503, 504),
            gives=SESSION,
        ),
        Route(
            "DELETE",
            path,
            sessions.remove,
            Scope.OPERATE,
            "sessions",
            asks=ask.Remove,
            replies=(Reply(200, RevisionAnswer, "It is gone.", _REVISED),),
            problems=_SESSION,
        ),
        Route(
            "POST",
            f"{path}/acquire",
            sessions.take,
            Scope.OPERATE,
            "sessions",
            asks=ask.Take,
            headers=("Ritornello-Consumer",),
            replies=(Reply(200, SessionView, "The session, which is the caller's now.", _SHOWN),),
            problems=_STORING,
            gives=SESSION,
        ),
        *(
            Route(
                "POST",
                f"{path}/{verb}",
                handler,
                Scope.OPERATE,
                "sessions",
                asks=asks,
                headers=("Ritornello-Consumer",) if asks is ask.Touch else (),
                replies=(Reply(200, answer, headers=_REVISED),),
                problems=problems,
            )
            for verb, handler, asks, answer, problems in _VERBS
        ),
    ]


def _health(path: str, handler: Handler) -> Route:
    return Route(
        "GET",
        path,
        handler,
        None,
        "health",
        replies=(
            Reply(200, health.HealthAnswer, "It is."),
            Reply(503, health.HealthAnswer, "It is not; `checks` says why."),
        ),
    )


ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/themes/{theme}/sessions",
        sessions.create,
        Scope.OPERATE,
        "sessions",
        asks=ask.New,
        headers=("Ritornello-Consumer",),
        replies=(
            Reply(201, CreatedAnswer, "It has begun.", ("ETag", "Location", EPOCH)),
            Reply(200, CreatedAnswer, "The key's holder.", ("ETag", "Location", EPOCH)),
        ),
        problems=(404, 409, *_CLUSTER, 507),
    ),
    Route(
        "GET",
        "/v1/themes/{theme}/sessions",
        listing.show_all,
        Scope.READ,
        "sessions",
        options=(
            Option("phase", ask.PhaseName, "Only those in this phase."),
            Option("key_prefix", str, "Only those whose key begins so."),
            *_PAGING,
            _CONSISTENCY,
        ),
        replies=(Reply(200, listing.SessionListAnswer, "A page.", (APPLIED_INDEX,)),),
        problems=(404, 429, 503, 504),
    ),
    Route(
        "POST",
        "/v1/acquire",
        sessions.acquire,
        Scope.OPERATE,
        "sessions",
        asks=ask.Acquire,
        headers=("Ritornello-Consumer",),
        replies=(
            Reply(200, SessionsAnswer, "Sessions, which are the caller's now."),
            Reply(204, text="There was none in time."),
        ),
        problems=(*_CLUSTER, 507),
        gives=SESSION,
    ),
    *_of_a_session("/v1/sessions/{id}"),
    *_of_a_session("/v1/themes/{theme}/keys/{key}"),
    Route(
        "POST",
        "/v1/txn",
        sessions.transact,
        Scope.OPERATE,
        "sessions",
        asks=ask.Txn,
        headers=("Ritornello-Consumer",),
        replies=(Reply(200, TxnAnswer, "All of them were done."),),
        problems=_STORING,
    ),
    Route(
        "POST",
        "/v1/consumers/{name}/heartbeat",
        consumers.heartbeat,
        Scope.OPERATE,
        "consumers",
        replies=(Reply(200, HeldAnswer),),
        problems=_CLUSTER,
    ),
    Route(
        "GET",
        "/v1/operate",
        operate.operate,
        Scope.READ,
        "sessions",
        gives=(JSON,),
        replies=(Reply(101, text="The WebSocket."),),
        problems=(426, 503),
    ),
    Route(
        "GET",
        "/v1/themes",
        themes.show_all,
        Scope.READ,
        "themes",
        options=(*_PAGING, _CONSISTENCY),
        replies=(Reply(200, themes.ThemesAnswer, "A page."),),
        problems=(429, 503, 504),
    ),
    Route(
        "GET",
        "/v1/themes/{theme}",
        themes.show,
        Scope.READ,
        "themes",
        options=(_CONSISTENCY,),
        replies=(Reply(200, themes.ThemeAnswer, "The theme."),),
        problems=(404, 429, 503, 504),
    ),
    Route(
        "PATCH",
        "/v1/themes/{theme}/policy",
        themes.set_policy,
        Scope.ADMIN,
        "themes",
        fields=themes.PolicyFields,
        replies=(Reply(200, themes.ThemeAnswer, "The theme as it is now."),),
        problems=(404, *_CLUSTER, 507),
    ),
    *(
        Route(
            "POST",
            f"/v1/themes/{{theme}}/{handler.__name__}",
            handler,
            Scope.ADMIN,
            "themes",
            replies=(Reply(200, themes.ThemeAnswer, "The theme as it is now."),),
            problems=(404, *_CLUSTER, 507),
        )
        for handler in (themes.pause, themes.resume)
    ),
    Route(
        "GET",
        "/v1/cluster",
        cluster.show,
        Scope.READ,
        "cluster",
        replies=(Reply(200, cluster.ClusterAnswer, "As this node sees it."),),
    ),
    Route(
        "POST",
        "/v1/cluster/transfer",
        cluster.transfer,
        Scope.ADMIN,
        "cluster",
        fields=cluster.TransferFields,
        replies=(Reply(200, cluster.TransferAnswer),),
    ),
    Route(
        "GET",
        "/v1/cluster/limits",
        cluster.show_limits,
        Scope.READ,
        "cluster",
        options=(_CONSISTENCY,),
        replies=(Reply(200, cluster.LimitsAnswer),),
        problems=(429, 503, 504),
    ),
    Route(
        "PATCH",
        "/v1/cluster/limits",
        cluster.set_limits,
        Scope.ADMIN,
        "cluster",
        fields=cluster.LimitsFields,
        replies=(Reply(200, cluster.LimitsAnswer, "The limits as they are now."),),
        problems=_CLUSTER,
    ),
    Route(
        "GET",
        "/v1/cluster/snapshot",
        snapshots.download,
        Scope.ADMIN,
        "cluster",
        replies=(Reply(200, bytes, "The file.", (APPLIED_INDEX,)),),
        problems=(429, 503, 504, 507),
        gives=(snapshots.TYPE,),
    ),
    Route(
        "GET",
        "/v1/events",
        events.follow,
        Scope.READ,
        "events",
        options=(
            Option("from", str, "After which event, or index of the log; without it: from now on."),
            Option("theme", str, "Only of these themes: `7,8`."),
            Option("kind", str, "Only events of these kinds: `created,removed`."),
        ),
        headers=("Last-Event-ID",),
        replies=(Reply(200, str, "Events, for as long as they are read.", (APPLIED_INDEX,)),),
        problems=(429, 503, 504),
        gives=(events.TYPE,),
    ),
    _health("/livez", health.live),
    _health("/readyz", health.ready),
    Route(
        "GET",
        "/metrics",
        metrics.show,
        None,  # on loopback, else the scope read: it depends on where the server listens
        "health",
        replies=(Reply(200, str, "For Prometheus."),),
        problems=(401,),
        gives=("text/plain",),
    ),
    Route(
        "GET",
        "/openapi.json",
        document.shown_of(lambda: ROUTES),
        None,
        "about",
        replies=(Reply(200, dict[str, Any], "This document."),),
        gives=(JSON,),
    ),
)
