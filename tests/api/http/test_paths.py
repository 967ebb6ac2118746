"""Which route a path leads to."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.http.paths import Paths, UnreadablePathError
from api.http.routes import ROUTES


def routes() -> Paths[str]:
    paths: Paths[str] = Paths()
    for route in ROUTES:
        paths.add(route.path, route.path)
    return paths


PATHS = routes()
SEGMENT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.sampled_from([route.path for route in ROUTES]), st.data())
def test_a_path_with_any_parameters_is_found(template: str, data: st.DataObject) -> None:
    parts, given_ = [], {}
    for part in template.split("/"):
        if part.startswith("{"):
            value = data.draw(SEGMENT)
            given_[part.strip("{}")] = value
            parts.append(quote(value, safe=""))
        else:
            parts.append(part)
    assert PATHS.find("/".join(parts)) == (template, given_)


@given(st.text(st.characters(codec="ascii")))
def test_any_path_leads_somewhere_or_nowhere(path: str) -> None:
    try:
        found = PATHS.find(f"/{path}")
    except UnreadablePathError:
        return
    assert found is None or found[0].count("/") == path.count("/") + 1


def test_words_may_be_encoded_too() -> None:
    assert PATHS.find("/v1/th%65mes/7") == ("/v1/themes/{theme}", {"theme": "7"})
    assert PATHS.find("/v1%2Fthemes/7") is None


def test_each_template_is_there_once() -> None:
    assert sorted(PATHS) == sorted({route.path for route in ROUTES})
    assert PATHS.add("/livez", "another") == "/livez"


@pytest.mark.parametrize("template", ["/v1/themes/all", "/v1/themes/{id}/x", "/v1/{any}"])
def test_a_template_that_could_mean_two_things_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        routes().add(template, template)


def test_what_is_no_utf_8_is_refused() -> None:
    with pytest.raises(UnreadablePathError):
        PATHS.find("/v1/themes/7/keys/%ff")
