"""What tests of the commands share."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """That of most machines: what is made is for everybody to read, unless it is made otherwise."""
    before = os.umask(0o022)
    yield
    os.umask(before)
