import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where a test's nodes have their disks; left only where it failed."""
    directory = Path(tempfile.mkdtemp(prefix="crash-", dir=tmp_path))
    before = request.session.testsfailed
    yield directory
    if request.session.testsfailed == before:
        shutil.rmtree(directory)
