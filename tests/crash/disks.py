"""File systems of their own that can lose power or run full, and disk calls that fail.

All of it needs root and Linux's tools. Where they are missing the tests fail and say so: a test of
durability that was skipped would look like one that has passed.
"""

import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from shutil import which

import pytest

from tests.crash.processes import Server

# linux/ext4.h: the file system fails all that comes from now on; what it has not flushed is gone.
_EXT4_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_LOG_FLUSH = 2

_SOURCE = Path(__file__).with_name("disk_faults.c")
_BLOCK = bytes(1 << 16)


def require(*tools: str) -> None:
    """Fail, and say what is missing, where there is no such tool; `root` is one, too."""
    missing = [tool for tool in tools if not (_is_root() if tool == "root" else which(tool))]
    if missing:
        pytest.fail(f"NOT TESTED: this needs {', '.join(missing)} (make test-faults)")


def _is_root() -> bool:
    return os.geteuid() == 0


def run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        pytest.fail(f"NOT TESTED: {' '.join(map(str, command))}: {done.stderr.strip()}")


class Disk:
    """An ext4 in a file, mounted."""

    def __init__(self, image: Path, mount: Path, size_mib: int) -> None:
        require("root", "mkfs.ext4", "mount", "umount")
        self.image = image
        self.mount = mount
        self._is_mounted = False
        image.parent.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(size_mib << 20)
        run(["mkfs.ext4", "-q", "-m0", image])
        self.attach()

    def attach(self) -> None:
        self.mount.mkdir(parents=True, exist_ok=True)
        run(["mount", "-o", "loop", self.image, self.mount])
        self._is_mounted = True

    def detach(self) -> None:
        if self._is_mounted:
            run(["umount", self.mount])
            self._is_mounted = False

    def remove(self) -> None:
        """Let nothing of it stay, whoever may still have it open."""
        if self._is_mounted:
            run(["umount", "-l", self.mount])
            self._is_mounted = False
        self.image.unlink()

    def cut_power(self) -> None:
        """Lose what was not synced, and let everything fail until it is attached again."""
        descriptor = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def fill(self) -> Path:
        """Take all the room there is with a ballast file; removed, it gives it back."""
        ballast = self.mount / "ballast"
        with ballast.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(_BLOCK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        return ballast


class Faults:
    """A preloaded library between processes and their disks, and what it is told to do."""

    def __init__(self, directory: Path) -> None:
        require("cc")
        directory.mkdir(parents=True, exist_ok=True)
        self._library = directory / "disk_faults.so"
        self._directory = directory
        run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", self._library, _SOURCE, "-ldl"])

    def meet(self, server: Server) -> None:
        """Let the next lives of a node have the library."""
        server.environment = {
            "LD_PRELOAD": os.fspath(self._library),
            "RITORNELLO_DISK_FAULTS": os.fspath(self._control(server)),
        }

    def tell(self, server: Server, what: str, part: str, first: int = 1) -> None:
        """From the `first` sync on of a path with this part in it: `fail`, `lie` or `kill`."""
        control = self._control(server)
        fresh = control.with_suffix(".new")
        fresh.write_text(f"{what} {first} {part}")
        fresh.replace(control)

    def end(self, server: Server) -> None:
        self._control(server).unlink(missing_ok=True)

    def _control(self, server: Server) -> Path:
        return self._directory / f"{server.name}.faults"
