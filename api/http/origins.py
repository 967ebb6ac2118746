"""Which web sites may use the interface, and by which names it may be called.

A browser sends requests for any web site that its user looks at, also to servers that only this
user's machine can reach. Where tokens are wanted that does no harm: the site has none. Where
everybody may do everything, two checks keep them out; who is no browser sends nothing that they
look at.

* `Origin` (RFC 6454) names the site. It has to be the one that the request itself goes to, or one
  of `http.cors_origins`; those may also read the answers (CORS, Fetch 3.2).
* `Host` has to be a name of this machine, where the server listens on loopback only: a site may
  let its own name lead to 127.0.0.1 ("DNS rebinding"), and would be its own origin then. A tunnel
  to another port is fine. A proxy on the same machine has to send such a name on, or the server
  needs tokens.
"""

import ipaddress
from collections.abc import Mapping
from functools import lru_cache

from api.problems import refusal
from api.settings.addresses import is_loopback
from api.settings.build import HttpSettings

_ALL = "*"
_PREFLIGHT_S = 600
# What a script may read of an answer, and send with a request, beside what it always may.
_EXPOSED = (
    "ETag, Location, Retry-After, WWW-Authenticate, Ritornello-Applied-Index, Ritornello-Epoch, "
    "Ritornello-Request-Id, Ritornello-Session"
)
_ALLOWED = (
    "Accept, Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, "
    "Ritornello-Consumer, Ritornello-Epoch, Ritornello-Timeout, X-Request-Id, traceparent, "
    "tracestate"
)


class Origins:
    """The checks of one server."""

    def __init__(self, settings: HttpSettings) -> None:
        self._allowed = frozenset(one.lower() for one in settings.cors_origins)
        self._is_open = settings.tokens_file is None
        self._checks_host = self._is_open and is_loopback(settings.bind)
        self.has_cors = bool(self._allowed)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises `Refusal` (403) for what a web site makes a browser send."""
        if not self._is_open:
            return
        host = headers.get("Host")
        if self._checks_host and host and not is_own_name(host):
            raise refusal(
                403,
                "forbidden",
                f"this server has no tokens, so it answers to names of this machine only, such as "
                f"localhost, and not to {host[:100]!a}: send such a Host, or set http.tokens_file",
            )
        origin = headers.get("Origin")
        if origin is not None and not self._may_use(origin, host):
            raise refusal(
                403,
                "forbidden",
                f"this server has no tokens, so the web site {origin[:100]!a} may not use it: set "
                "http.tokens_file, or name the site in http.cors_origins",
            )

    def _may_use(self, origin: str, host: str | None) -> bool:
        scheme, _, authority = origin.partition("://")
        is_same = scheme in {"http", "https"} and host is not None and authority == host.lower()
        return is_same or self._may_read(origin)

    def _may_read(self, origin: str) -> bool:
        return origin.lower() in self._allowed or _ALL in self._allowed

    def cors(self, headers: Mapping[str, str]) -> dict[str, str]:
        """What an answer has to have for a script to read it; nothing for those that may not."""
        origin = headers.get("Origin")
        if origin is None or not self._may_read(origin):
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": _ALL if _ALL in self._allowed else origin,
            "Access-Control-Expose-Headers": _EXPOSED,
        }

    def preflight(self, headers: Mapping[str, str], methods: str) -> dict[str, str]:
        """What a browser is told that asks whether a script may send something."""
        if "Access-Control-Request-Method" not in headers:
            return {}
        origin = headers.get("Origin")
        if origin is None or not self._may_read(origin):
            return {}
        return {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": _ALLOWED,
            "Access-Control-Max-Age": str(_PREFLIGHT_S),
        }


@lru_cache(maxsize=256)
def is_own_name(host: str) -> bool:
    """Whether a `Host` names the machine that it is sent on: a loopback address or `localhost`."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    name = name.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
