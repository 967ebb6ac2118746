"""What a client may do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.security import ANYBODY, Forbidden, Principal, Scope, Themes
from state.limits import THEME_MAX

READ, OPERATE, ADMIN = Scope.READ, Scope.OPERATE, Scope.ADMIN

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted).map(tuple))


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [(READ, {READ}), (OPERATE, {READ, OPERATE}), (ADMIN, {READ, OPERATE, ADMIN})],
)
def test_each_scope_includes_those_below(scope: Scope, allowed: set[Scope]) -> None:
    principal = Principal("one", scope)
    assert {one for one in Scope if principal.may(one)} == allowed
    for one in Scope:
        if one in allowed:
            principal.require(one)
        else:
            with pytest.raises(Forbidden) as caught:
                principal.require(one)
            assert caught.value.problem.status == 403
            assert caught.value.problem.code == caught.value.code == "forbidden"
            assert repr(one.name.lower()) in caught.value.problem.detail


def test_anybody_may_do_everything() -> None:
    assert ANYBODY.may(ADMIN)
    assert ANYBODY.may_theme(0)
    assert ANYBODY.may_theme(THEME_MAX)
    assert ANYBODY.may_all_themes
    ANYBODY.require_all_themes()


def test_a_limited_client_gets_neither_other_themes_nor_what_concerns_all() -> None:
    principal = Principal("one", ADMIN, Themes.of([(1, 9), (20, 20)]))
    principal.require_theme(9)
    with pytest.raises(Forbidden, match="theme 10"):
        principal.require_theme(10)
    assert not principal.may_all_themes
    with pytest.raises(Forbidden, match="all themes"):
        principal.require_all_themes()


@given(RANGES)
def test_themes_are_the_union_of_their_ranges(ranges: list[tuple[int, int]]) -> None:
    themes = Themes.of(ranges)
    wanted = {theme for first, last in ranges for theme in range(first, last + 1)}
    assert {theme for theme in range(45) if theme in themes} == wanted
    assert THEME_MAX not in themes
    assert list(themes.edges) == sorted(set(themes.edges))


def test_themes_read_as_they_are_written() -> None:
    assert str(Themes.of([(200, 200), (5, 9), (1, 4)])) == "1-9, 200"
    assert THEME_MAX in Themes.of([(0, THEME_MAX)])
    for bad in [(-1, 1), (2, 1), (0, THEME_MAX + 1)]:
        with pytest.raises(ValueError, match="no range"):
            Themes.of([bad])


def test_a_principal_shows_no_digest() -> None:
    assert "digest" not in repr(Principal("one", READ, digest=b"digest"))
