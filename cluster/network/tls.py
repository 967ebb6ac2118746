"""TLS between nodes: both sides show a certificate, and both look whose it is.

**Whose certificate it is.** It must be signed by the cluster's authority, and name the peer in its
subject alternative names: a DNS name that is the peer's node id or its configured host, or an IP
address that is that host. Names are compared whole, without regard to case; a wildcard names no
node. (The common name is not looked at. A host that several nodes share tells them apart no more;
give them certificates for their node ids.) A certificate serves for dialing and for accepting, so
if it limits its use, it must allow both server and client authentication.

Files are looked at whenever a connection is made, and now and then. When they have changed and make
sense the next connections use them; if they do not, the next use what was there before. Connections
that exist are left alone.
"""

import asyncio
import contextlib
import ipaddress
import logging
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cluster.network.errors import TlsFilesError
from cluster.network.settings import Counters, TlsFiles

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contexts:
    """What the loop needs to begin TLS, for either side."""

    client: ssl.SSLContext
    server: ssl.SSLContext


class _Stamp(NamedTuple):
    """What changes when a file does. A link is followed: secrets are swapped by changing it."""

    device: int
    inode: int
    modified_ns: int
    size_bytes: int


def _stamps(files: TlsFiles) -> tuple[_Stamp, ...]:
    def stamp(path: Path) -> _Stamp:
        found = path.stat()
        return _Stamp(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)

    try:
        return tuple(map(stamp, (files.certificate, files.key, files.authority)))
    except OSError as error:
        raise TlsFilesError(str(error.filename), error.strerror or str(error)) from error


def load_contexts(files: TlsFiles) -> Contexts:
    """Read the files. Raises `TlsFilesError`. Blocks."""
    return Contexts(
        _context(ssl.PROTOCOL_TLS_CLIENT, files), _context(ssl.PROTOCOL_TLS_SERVER, files)
    )


def _context(protocol: int, files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # 1.3 is taken if both sides have it
    context.check_hostname = False  # names are checked by `is_for`, on both sides alike
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would go by the certificates of an earlier one.
    context.options |= ssl.OP_NO_TICKET
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    try:
        context.load_verify_locations(cafile=files.authority)
    except (OSError, ValueError) as error:
        raise TlsFilesError(str(files.authority), str(error)) from error
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        paths = f"{files.certificate} with {files.key}"
        raise TlsFilesError(paths, str(error)) from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, which nobody is there to type")


class TlsSource:
    """The contexts of now."""

    def __init__(self, files: TlsFiles, counters: Counters) -> None:
        self._files = files
        self._counters = counters
        self._contexts: Contexts | None = None
        self._stamps: tuple[_Stamp, ...] = ()
        self._problem = ""
        self._one_at_a_time = asyncio.Lock()
        # Not the loop's: that one may be full of look-ups of names which wait for a dead resolver.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tls-files")

    def close(self) -> None:
        """Give the thread back."""
        self._thread.shutdown(wait=False)

    async def contexts(self) -> Contexts:
        """Look at the files, and say what to use. Raises `TlsFilesError` the first time only."""
        async with self._one_at_a_time:
            try:
                loop = asyncio.get_running_loop()
                loaded = await loop.run_in_executor(self._thread, self._load_if_changed)
            except TlsFilesError as error:
                if self._contexts is None:
                    raise
                self._counters.tls_reload_failures += 1
                if str(error) != self._problem:  # once for each problem, however often it is met
                    self._problem = str(error)
                    _log.error(
                        "TLS files have changed and cannot be used, the old ones stay: %s", error
                    )
                return self._contexts
            if loaded is not None:
                stamps, contexts = loaded
                if self._contexts is not None:
                    self._counters.tls_reloads += 1
                    _log.info("TLS files have changed and are in use: %s", self._files.certificate)
                self._stamps, self._contexts, self._problem = stamps, contexts, ""
            if self._contexts is None:
                raise TlsFilesError(str(self._files.certificate), "nothing was loaded")
            return self._contexts

    def _load_if_changed(self) -> tuple[tuple[_Stamp, ...], Contexts] | None:
        # The stamps are taken first: of files that change meanwhile the next look will tell.
        stamps = _stamps(self._files)
        return None if stamps == self._stamps else (stamps, load_contexts(self._files))


def is_for(certificate: Mapping[str, Any], node_id: str, host: str) -> bool:
    """Whether a verified certificate, as `getpeercert` tells it, is the node's."""
    wanted_names = {_plain(node_id), _plain(host)}
    wanted_address = _address(host)
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "DNS" and _plain(value) in wanted_names:
            return True
        if kind == "IP Address" and wanted_address and _address(value) == wanted_address:
            return True
    return False


def names_of(certificate: Mapping[str, Any]) -> str:
    """Whom a certificate is for, for a line in the log."""
    names = [str(value) for _, value in certificate.get("subjectAltName", ())]
    return ascii(", ".join(names)[:200])


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text)
    return None
