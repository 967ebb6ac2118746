"""Settings read as a user gives them, without this machine's environment."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from api.settings import Reading, ServerSettings, SettingsProblems, build, read_sources


def read(
    flags: Mapping[str, str | bool] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Reading:
    return read_sources(flags or {}, environment or {}, file)


def built(**flags: str | bool) -> ServerSettings:
    return build(read(flags))


def problems(reading: Reading) -> list[str]:
    """All that is wrong, as a user reads it; of a file its name alone."""
    with pytest.raises(SettingsProblems) as refused:
        build(reading)
    assert str(refused.value) == "\n".join(map(str, refused.value.problems))
    return [re.sub(r"/\S*/(?=[\w.-]+)", "", str(one)) for one in refused.value.problems]


def problem(reading: Reading) -> str:
    (only,) = problems(reading)
    return only
