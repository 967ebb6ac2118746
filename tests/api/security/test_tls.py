"""The front end's certificate, in real handshakes over loopback."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import ClientSession, TCPConnector, web
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from api.security import CertificateError, FileError, FileWatch, ServerTls
from tests.api.security.files import swap, until, write_pair

BOTH_VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"]
)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def client_context(
    authority: trustme.CA, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.minimum_version = context.maximum_version = version
    return context


@asynccontextmanager
async def serving(tls: ServerTls) -> AsyncIterator[int]:
    """A server that sends back what it reads."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                writer.write(data)
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls.context)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Connected:
    """A client's connection, and which certificate it was shown."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        shown = connection.getpeercert(binary_form=True)
        assert shown is not None
        self.serial = x509.load_der_x509_certificate(shown).serial_number
        self.version = connection.version()
        self.protocol = connection.selected_alpn_protocol()

    async def echoes(self) -> bool:
        self._writer.write(b"hello")
        return await self._reader.readexactly(5) == b"hello"

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def connect(port: int, context: ssl.SSLContext, name: str = "localhost") -> Connected:
    connected = Connected(
        *await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    )
    assert await connected.echoes()
    return connected


async def shown(port: int, context: ssl.SSLContext, name: str = "localhost") -> int:
    connected = await connect(port, context, name)
    await connected.close()
    return connected.serial


def serial_of(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


@BOTH_VERSIONS
# A client that connects by address names no server in its handshake.
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
async def test_new_connections_get_the_new_certificate_and_old_ones_live_on(
    tmp_path: Path, authority: trustme.CA, version: ssl.TLSVersion, name: str
) -> None:
    certificate, key = write_pair(tmp_path, authority, "localhost", "127.0.0.1")
    tls = ServerTls(certificate, key)
    context = client_context(authority, version)
    async with serving(tls) as port:
        old = await connect(port, context, name)
        assert old.serial == serial_of(certificate)
        for _ in range(3):
            write_pair(tmp_path, authority, "localhost", "127.0.0.1")
            assert tls.files.look()
            assert await shown(port, context, name) == serial_of(certificate) != old.serial
        assert await old.echoes()
        await old.close()
    assert tls.files.reloads == 3


async def test_a_watch_takes_up_renewed_files(tmp_path: Path, authority: trustme.CA) -> None:
    certificate, key = write_pair(tmp_path, authority, "localhost")
    tls = ServerTls(certificate, key)
    context = client_context(authority)
    watch = FileWatch(tls.files, check_ms=10)
    await watch.start()
    async with serving(tls) as port:
        before = await shown(port, context)
        write_pair(tmp_path, authority, "localhost")
        await until(lambda: tls.files.problem == "" and tls.files.reloads > 0)
        assert await shown(port, context) == serial_of(certificate) != before
    await watch.stop()


@BOTH_VERSIONS
@pytest.mark.parametrize("which", ["certificate", "key"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "of another pair"])
async def test_half_of_a_pair_leaves_the_old_one_in_use(
    tmp_path: Path,
    authority: trustme.CA,
    version: ssl.TLSVersion,
    which: str,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    certificate, key = write_pair(tmp_path, authority, "localhost")
    tls = ServerTls(certificate, key)
    context = client_context(authority, version)
    (tmp_path / "other").mkdir()
    other = write_pair(tmp_path / "other", authority, "localhost")
    path, replacement = (certificate, other[0]) if which == "certificate" else (key, other[1])
    good = path.read_bytes()
    async with serving(tls) as port:
        before = await shown(port, context)
        match damage:
            case "missing":
                path.unlink()
            case "empty":
                swap(path, b"")
            case "cut":
                swap(path, good[: len(good) // 3])
            case _:
                swap(path, replacement.read_bytes())
        for _ in range(2):
            assert not tls.files.look()
            assert await shown(port, context) == before
        assert caplog.text.count("the old ones stay") == 1
        assert tls.files.reload_failures == 1
        # The other half arrives.
        swap(certificate, other[0].read_bytes())
        swap(key, other[1].read_bytes())
        assert tls.files.look()
        assert tls.files.problem == ""
        assert await shown(port, context) == serial_of(certificate) != before


async def test_old_versions_are_refused_and_the_newest_is_taken(
    tmp_path: Path, authority: trustme.CA
) -> None:
    tls = ServerTls(*write_pair(tmp_path, authority, "localhost"))
    async with serving(tls) as port:
        context = client_context(authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2", "http/1.1"])
        connected = await connect(port, context)
        assert (connected.version, connected.protocol) == ("TLSv1.3", "http/1.1")
        await connected.close()

        context = client_context(authority)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await connect(port, context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_not_resumed_with_a_ticket(
    tmp_path: Path, authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    tls = ServerTls(*write_pair(tmp_path, authority, "localhost"))
    context = client_context(authority, version)
    async with serving(tls) as port:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        writer.write(b"hello")
        await reader.readexactly(5)
        session = writer.get_extra_info("ssl_object").session
        assert session is None or not session.has_ticket
        writer.close()
        await writer.wait_closed()


async def test_the_front_end_serves_requests_with_it(tmp_path: Path, authority: trustme.CA) -> None:
    certificate, key = write_pair(tmp_path, authority, "localhost")
    tls = ServerTls(certificate, key)

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="yes")

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.context)
    await site.start()
    port = runner.addresses[0][1]

    async def get() -> str:
        connector = TCPConnector(ssl=client_context(authority))
        async with (
            ClientSession(connector=connector) as client,
            client.get(f"https://127.0.0.1:{port}/", server_hostname="localhost") as response,
        ):
            return await response.text()

    try:
        assert await get() == "yes"
        write_pair(tmp_path, authority, "localhost")
        assert tls.files.look()
        assert await get() == "yes"
    finally:
        await runner.cleanup()


def encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, password=None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (encrypted, "passphrase"),
        (lambda _: b"", "front.pem with .*front.key"),
        (lambda key: key[: len(key) // 2], "front.key"),
    ],
    ids=["passphrase", "empty", "cut"],
)
def test_a_key_that_is_no_good_is_refused_at_the_start(
    tmp_path: Path, authority: trustme.CA, damage: Callable[[bytes], bytes], says: str
) -> None:
    certificate, key = write_pair(tmp_path, authority, "localhost")
    swap(key, damage(key.read_bytes()))
    with pytest.raises(CertificateError, match=says):
        ServerTls(certificate, key)
    key.unlink()
    with pytest.raises(FileError, match=r"front\.key cannot be used: No such file"):
        ServerTls(certificate, key)


def test_a_key_that_others_can_read_is_warned_of(
    tmp_path: Path, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = write_pair(tmp_path, authority, "localhost")
    certificate.chmod(0o644)
    ServerTls(certificate, key)
    assert not caplog.records
    key.chmod(0o644)
    ServerTls(certificate, key)
    assert "front.key may be read" in caplog.text
