"""What a file of tokens may say, and how it is told what is wrong."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.security import TokensError, hash_token, new_token
from api.security.principals import Principal
from api.security.tokens_file import TOKENS_MAX, parse_tokens
from tests.api.security.files import entry

TOKEN = "rit_" + "x" * 43  # the same each time: it is in names of tests
GOOD = entry(TOKEN, "good")


def parse(content: str | bytes) -> list[Principal]:
    raw = content.encode() if isinstance(content, str) else content
    return list(parse_tokens("tokens.toml", raw).values())


def problems(content: str | bytes) -> tuple[str, ...]:
    with pytest.raises(TokensError) as caught:
        parse(content)
    assert str(caught.value).startswith("tokens.toml cannot be used: ")
    assert TOKEN not in str(caught.value)
    return caught.value.problems


def with_line(line: str) -> str:
    """A good entry in which a line stands in place of the one of the same name."""
    name = line.partition(" ")[0]
    return (
        "".join(f"{one}\n" for one in GOOD.splitlines() if one.partition(" ")[0] != name)
        + f"{line}\n"
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("name = 7", "takes a name of 1 to 128"),
        ('name = ""', "takes a name of 1 to 128"),
        (f'name = "{"x" * 129}"', "takes a name of 1 to 128"),
        ('name = "a\\nb"', "takes a name of 1 to 128"),
        (f'name = "{TOKEN}"', "has a token in its name"),
        (f'hash = "{TOKEN}"', "has a token where its hash belongs; write hash = "),
        ('hash = "sha256:abc"', "takes a hash; write hash = "),
        ('hash = "md5:d41d8cd98f00b204e9800998ecf8427e"', "takes a hash; write hash = "),
        (f'token = "{TOKEN}"', "is written out; give its hash alone"),
        ("scopes = []", 'takes scopes, such as ["operate"]: of read, operate, admin, not []'),
        ('scopes = "read"', "takes scopes"),
        ('scopes = ["read", "root"]', "not ['read', 'root']"),
        ("scopes = [1]", "takes scopes"),
        (f'scopes = ["{TOKEN}"]', "not (not shown)"),
        ("themes = []", "leave it out for all"),
        ("themes = 7", "leave it out for all"),
        ('themes = ["9-1"]', "has a theme '9-1'; write such as 200"),
        ("themes = [4294967296]", "within 0 to 4294967295"),
        ("themes = [-1]", "has a theme -1"),
        ("themes = [true]", "has a theme True"),
        ("themes = [1.5]", "has a theme 1.5"),
        ('themes = ["*"]', "has a theme '*'"),
        ("expires = 2027-01-01", "expires at"),
        ("expires = 2027-01-01T00:00:00", "expires at 2027-01-01 00:00:00; write such as"),
        ('expires = "2027-01-01T00:00:00Z"', "without quotes"),
        ("expire = 2027-01-01T00:00:00Z", "did you mean 'expires'?"),
        ("owner = 1", "has a field 'owner'; there are name, hash"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_sentence(line: str, says: str) -> None:
    (problem,) = problems(with_line(line))
    assert problem.startswith("token 1 ")
    assert says in problem


def test_what_is_missing_is_told_too() -> None:
    (first, second, third) = problems("[[tokens]]\n")
    assert ("name" in first, "hash" in second, "scopes" in third) == (True, True, True)


def test_all_that_is_wrong_is_told_at_once_up_to_a_bound() -> None:
    bad = with_line("scopes = []")
    assert [problem[:8] for problem in problems(GOOD + bad + bad)] == ["token 2 ", "token 3 "]
    several = problems(bad * 25)
    assert len(several) == 11
    assert several[-1] == "and 15 more problems"


def test_names_and_tokens_are_there_once() -> None:
    (problem,) = problems(GOOD + entry(new_token(), "good"))
    assert "'good', as another has" in problem
    (problem,) = problems(GOOD + entry(TOKEN, "other"))
    assert "has the hash of the token 'good'" in problem


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# nothing",
        "tokens = 7",
        "tokens = []",
        "tokens = [7]",
        "[tokens]",
        "other = 1\n" + GOOD,
        GOOD + "[more]",
        "[[tokens]",
        b"\xff\xfe",
        "a = " + "[" * 5000,
        "a = " + "9" * 5000,
        "\x00",
    ],
)
def test_what_is_no_list_of_tokens_is_refused(content: str | bytes) -> None:
    assert problems(content)


def test_an_upper_case_hash_is_a_hash() -> None:
    digits = hash_token(TOKEN).removeprefix("sha256:")
    assert parse(GOOD) == parse(GOOD.replace(digits, digits.upper()))


def test_there_are_so_many_tokens_and_no_more() -> None:
    line = '{{name = "{0}", hash = "sha256:{0:064x}", scopes = ["read"]}},'
    most = "tokens = [" + "".join(line.format(number) for number in range(TOKENS_MAX)) + "]"
    assert len(parse(most)) == TOKENS_MAX
    (problem,) = problems(most[:-1] + line.format(TOKENS_MAX) + "]")
    assert problem == "it has 10001 tokens; give 1 to 10000"


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_tokens_or_refused(content: bytes) -> None:
    with contextlib.suppress(TokensError):
        parse(content)


SCALARS = st.sampled_from(
    ["1", "-1", "true", '""', '"read"', "[]", "[[]]", "{}", "1.5", "nan", "07:32:00", '["1-2"]']
)


@given(st.dictionaries(st.sampled_from(["name", "hash", "scopes", "themes", "expires"]), SCALARS))
def test_any_values_are_refused_without_a_crash(fields: dict[str, str]) -> None:
    lines = "".join(f"{name} = {value}\n" for name, value in fields.items())
    assert problems(f"[[tokens]]\n{lines}")
