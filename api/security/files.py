"""Files that are read anew when they change, without a restart.

`Watched` holds what some files say together. `FileWatch` has them looked at now and then, and at
once when it is told to.

They are compared by content, and not by time and size: the times of two changes can be the same,
and the files are small. Files that are half written, gone or wrong leave in use what was there
before; that is logged once for each problem, and counted. Of files that change while they are read
the next look will tell.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

from api.security.errors import FileError
from state.limits import MIB, SECOND_MS

# Both for the file of tokens, which is the largest: 10,000 tokens take about half of it.
FILE_BYTES_MAX = 4 * MIB
CHECK_MS = SECOND_MS

_log = logging.getLogger(__name__)

Value = TypeVar("Value")


class Watched(Generic[Value]):
    """What files say, in the version that was last whole.

    `load` makes a value of the files' contents, or raises `FileError`. It runs in a thread, but for
    the first time: that is in the constructor, which raises what it raises.
    """

    def __init__(
        self,
        what: str,  # for the log: "tokens"
        paths: Sequence[Path],
        load: Callable[[tuple[bytes, ...]], Value],
        *,
        private: Path,  # the one that nobody else on the machine should read or write
    ) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._private = private
        self._load = load
        self._one_at_a_time = threading.Lock()
        self._refused_digest = b""  # of what was tried in vain, so that it is not tried again
        self.reloads = 0
        self.reload_failures = 0
        self.problem = ""  # why the files as they are now are not in use; empty: they are
        contents, self._digest = self._read()
        self.value = load(contents)
        self._is_exposed = False
        self._warn_if_exposed()

    def look(self) -> bool:
        """Look whether the files have changed, and use them; answers whether. Blocks."""
        with self._one_at_a_time:
            digest = b""
            try:
                contents, digest = self._read()
                if digest == self._digest:
                    self._refused_digest, self.problem = b"", ""  # a bad change was taken back
                    return False
                if digest == self._refused_digest:
                    return False
                value = self._load(contents)
            except FileError as error:
                self._refused_digest = digest
                if str(error) != self.problem:
                    self.problem = str(error)
                    self.reload_failures += 1
                    _log.error(
                        "the %s have changed and the new ones cannot be used, the old ones stay: "
                        "%s",
                        self._what,
                        error,
                    )
                return False
            self.value, self._digest = value, digest
            self._refused_digest, self.problem = b"", ""
            self.reloads += 1
            _log.info("the %s have changed, and the new ones are in use", self._what)
            self._warn_if_exposed()
            return True

    def _read(self) -> tuple[tuple[bytes, ...], bytes]:
        contents = tuple(map(read_file, self._paths))
        digest = hashlib.sha256()
        for content in contents:
            digest.update(hashlib.sha256(content).digest())
        return contents, digest.digest()

    def _warn_if_exposed(self) -> None:
        """Others may not read it, and still less write it: who can write it lets anybody in."""
        try:
            mode = self._private.stat().st_mode
        except OSError:
            return  # it was there a moment ago: the next look says what is wrong
        was_exposed, self._is_exposed = self._is_exposed, bool(mode & (stat.S_IROTH | stat.S_IWOTH))
        if self._is_exposed and not was_exposed:
            _log.warning(
                "%s may be read or written by everybody on this machine; take that right away "
                "with chmod o=",
                self._private,
            )


def read_file(path: Path) -> bytes:
    """Read a whole file of reasonable size. Raises `FileError`, and never waits for a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileError(str(path), "it is no regular file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(FILE_BYTES_MAX + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileError(str(path), error.strerror or str(error)) from error
    if len(content) > FILE_BYTES_MAX:
        raise FileError(str(path), f"it has more than {FILE_BYTES_MAX} bytes")
    return content


class FileWatch:
    """Has files looked at every `check_ms`, in a thread of its own.

    The loop's own threads may all wait for names that no resolver answers.
    """

    def __init__(self, *watched: Watched[Any], check_ms: int = CHECK_MS) -> None:
        self._watched = watched
        self._check_s = check_ms / SECOND_MS
        self._wake = asyncio.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._task = asyncio.create_task(self._run())

    def reload(self) -> None:
        """Look at once: for SIGHUP. To be called in the loop's thread."""
        self._wake.set()

    async def look(self) -> None:
        """Look now, and return when what was found is in use, or was refused."""
        loop = asyncio.get_running_loop()
        for one in self._watched:
            try:
                await loop.run_in_executor(self._thread, one.look)
            except Exception:  # noqa: BLE001 - a defect here is no reason to stop looking
                _log.exception("looking at files has failed")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._check_s):
                    await self._wake.wait()
            self._wake.clear()
            await self.look()
