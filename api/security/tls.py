"""TLS of the front end: its certificate, from files that may change while it serves.

The server's context is made once, because a listening socket keeps the one that it was given. It
asks at each handshake, through the hook for server names (which OpenSSL calls whether the client
has named one or not), which certificate to show: that of the newest files that made sense. So a
pair is tried as a whole before it is shown to anybody. Loading new files into the context in use
would be simpler, and would leave it with a new certificate and an old key when they do not belong
together. Connections that exist are left alone.

Clients show no certificates; they have tokens.
"""

import ssl
from pathlib import Path

from api.security.errors import CertificateError
from api.security.files import Watched


class ServerTls:
    """A context to listen with. Raises `FileError` if the files cannot be used. Blocks."""

    def __init__(self, certificate: Path, key: Path) -> None:
        def load(_contents: tuple[bytes, ...]) -> ssl.SSLContext:
            return load_context(certificate, key)  # OpenSSL reads files by itself

        self.files = Watched("TLS files", (certificate, key), load, private=key)
        self.context = self.files.value
        self.context.sni_callback = self._choose

    def _choose(
        self,
        connection: ssl.SSLObject | ssl.SSLSocket,
        _name: str | None,
        _context: ssl.SSLContext,
    ) -> None:
        newest = self.files.value
        if newest is not self.context:
            connection.context = newest


def load_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Make a server's context of PEM files. Raises `CertificateError`. Blocks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # 1.3 is taken if the client has it
    context.options |= ssl.OP_NO_RENEGOTIATION  # it costs the server more than the client
    # A resumed session goes by the certificate of an earlier one, and its ticket's key is as old as
    # the process. Connections live long here: nothing is lost.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:
        raise CertificateError(f"{certificate} with {key}", str(error)) from error
    return context


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase, which nobody is there to type")
