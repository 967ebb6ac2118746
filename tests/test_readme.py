"""The commands of the README's first page, executed as they are written."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

from tests.api.servers import server

README = Path(__file__).parent.parent / "README.md"

_ANYTHING = "…"


def transcripts() -> list[tuple[str, str]]:
    """The commands of all transcripts, each with the output that is shown."""
    text = README.read_text(encoding="utf-8")
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def pattern(output: str) -> str:
    return ".*?".join(map(re.escape, output.rstrip("\n").split(_ANYTHING)))


async def test_a_sessions_life_in_curl(tmp_path: Path) -> None:
    curl, bash = shutil.which("curl"), shutil.which("bash")
    assert curl is not None, "this test needs curl: install it with your system's packages"
    assert bash is not None, "this test needs bash"
    steps = transcripts()
    assert len(steps) > 5
    mark = "--- next ---"
    script = "\n".join(f"{command}\necho; echo '{mark}'" for command, _ in steps)
    async with server(tmp_path) as running:
        environment = {"URL": running.url, "PATH": str(Path(curl).parent)}
        done = await asyncio.to_thread(
            subprocess.run,
            [bash, "-eu", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    outputs = done.stdout.split(mark)
    for (command, wanted), output in zip(steps, outputs, strict=False):
        assert re.fullmatch(pattern(wanted), output.strip("\n"), re.DOTALL), (command, output)
