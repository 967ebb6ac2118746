"""What tests of faults need and do not find makes them fail, never pass or skip."""

import os
import shutil
from pathlib import Path

import pytest

from tests.crash.disks import Disk, Faults


def test_without_root_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pytest.fail.Exception, match="NOT TESTED: this needs root"):
        Disk(tmp_path / "image", tmp_path / "mount", 1)


def test_without_a_compiler_it_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert shutil.which("cc") is None
    with pytest.raises(pytest.fail.Exception, match="NOT TESTED: this needs cc"):
        Faults(tmp_path)
