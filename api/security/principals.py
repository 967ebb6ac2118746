"""Who a client is, and what it may do."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from api.security.errors import Forbidden
from state.limits import THEME_MAX


class Scope(IntEnum):
    """What a client may do. Each includes those before it, so one is enough to say all."""

    READ = 1  # look: sessions, themes, events, the cluster
    OPERATE = 2  # begin, acquire, change and end sessions
    ADMIN = 3  # policies, pause; of the cluster: transfer, snapshot


@dataclass(frozen=True, slots=True)
class Themes:
    """A set of themes, as ranges.

    `edges` rise strictly: a theme is in the set if an odd number of them is not above it.
    """

    edges: tuple[int, ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> "Themes":
        """Of ranges, first and last theme of each, in any order."""
        edges: list[int] = []
        for first, last in sorted(ranges):
            if not 0 <= first <= last <= THEME_MAX:
                raise ValueError(f"{first}-{last} is no range of themes within 0 to {THEME_MAX}")
            if edges and first <= edges[-1]:  # it overlaps with the one before, or follows at once
                edges[-1] = max(edges[-1], last + 1)
            else:
                edges += (first, last + 1)
        return cls(tuple(edges))

    def __contains__(self, theme: int) -> bool:
        return bisect_right(self.edges, theme) % 2 == 1

    def __str__(self) -> str:
        pairs = zip(self.edges[::2], self.edges[1::2], strict=True)
        return ", ".join(
            str(first) if first == end - 1 else f"{first}-{end - 1}" for first, end in pairs
        )


@dataclass(frozen=True, slots=True)
class Principal:
    """A client, as its token tells it. `name` is for logs and rates; it is unique."""

    name: str
    scope: Scope
    themes: Themes | None = None  # None: all of them
    expires_s: float = float("inf")  # seconds since 1970
    # Which token it was, so that `Tokens.renew` finds it again. Of no use to who has no token, and
    # of no use to who reads a log.
    digest: bytes = field(default=b"", repr=False)

    def may(self, scope: Scope) -> bool:
        return scope <= self.scope

    def may_theme(self, theme: int) -> bool:
        return self.themes is None or theme in self.themes

    @property
    def may_all_themes(self) -> bool:
        """What concerns the whole cluster concerns themes that a limited client may not see."""
        return self.themes is None

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` unless it may."""
        if scope > self.scope:
            raise Forbidden(
                f"this takes a token with the scope {scope.name.lower()!r}, "
                f"this one has {self.scope.name.lower()!r}"
            )

    def require_theme(self, theme: int) -> None:
        """Raise `Forbidden` unless the theme is one of its own."""
        if self.themes is not None and theme not in self.themes:
            raise Forbidden(f"this token is not for theme {theme}")

    def require_all_themes(self) -> None:
        """Raise `Forbidden` if it is limited to some themes."""
        if self.themes is not None:
            raise Forbidden("this concerns all themes, and this token is for some of them")


ANYBODY = Principal("anybody", Scope.ADMIN)  # where there are no tokens
