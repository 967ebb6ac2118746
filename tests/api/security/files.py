"""Files of tokens and certificates, as those who swap secrets write them."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import trustme

from api.security import hash_token

LONG_S = 20.0  # for what happens at once, on a machine that is busy


def swap(path: Path, content: str | bytes) -> None:
    """Put a new file in place of the old one, readable by its owner alone."""
    new = path.with_suffix(".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.chmod(0o600)
    new.replace(path)


def entry(token: str, name: str = "worker", scopes: str = '["operate"]', *more: str) -> str:
    lines = [
        "[[tokens]]",
        f'name = "{name}"',
        f'hash = "{hash_token(token)}"',
        f"scopes = {scopes}",
    ]
    return "\n".join([*lines, *more]) + "\n"


def write_pair(directory: Path, authority: trustme.CA, *names: str) -> tuple[Path, Path]:
    """A certificate with its chain, and its key."""
    issued = authority.issue_cert(*names)
    certificate, key = directory / "front.pem", directory / "front.key"
    swap(certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    swap(key, issued.private_key_pem.bytes())
    return certificate, key


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not is_so():  # noqa: ASYNC110 - what it waits for happens in a thread
            await asyncio.sleep(0.005)
