from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the file that `--config` names."""

    def write(text: str) -> Path:
        path = tmp_path / "ritornello.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
