"""Whose certificate it is, and files that change."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from cluster.network.errors import TlsFilesError
from cluster.network.settings import Counters, TlsFiles
from cluster.network.tls import TlsSource, is_for, load_contexts, names_of


def certificate(*names: tuple[str, str]) -> dict[str, Any]:
    return {"subject": ((("commonName", "node-1"),),), "subjectAltName": names}


@pytest.mark.parametrize(
    ("name", "host", "is_good"),
    [
        (("DNS", "node-1"), "10.0.0.1", True),
        (("DNS", "NODE-1."), "10.0.0.1", True),
        (("DNS", "one.example.org"), "one.example.org", True),
        (("IP Address", "10.0.0.1"), "10.0.0.1", True),
        (("IP Address", "FD00:0:0:0:0:0:0:1"), "fd00::1", True),
        (("DNS", "node-2"), "10.0.0.1", False),
        (("DNS", "*.example.org"), "one.example.org", False),
        (("DNS", "*"), "one", False),
        (("IP Address", "10.0.0.2"), "10.0.0.1", False),
        (("DNS", "10.0.0.1"), "10.0.0.2", False),
        (("IP Address", "10.0.0.1"), "one.example.org", False),
        (("email", "node-1"), "node-1", False),
    ],
    ids=str,
)
def test_a_certificate_is_for_a_node_or_its_host(
    name: tuple[str, str], host: str, is_good: bool
) -> None:
    assert is_for(certificate(("DNS", "other"), name), "node-1", host) is is_good


def test_a_common_name_is_no_name() -> None:
    assert not is_for({"subject": ((("commonName", "node-1"),),)}, "node-1", "node-1")
    assert not is_for({}, "node-1", "node-1")


def test_names_are_told_in_one_short_line() -> None:
    assert names_of(certificate(("DNS", "x\n" * 500))) == ascii(("x\n" * 500)[:200])


def write(directory: Path, *names: str, authority: trustme.CA | None = None) -> TlsFiles:
    authority = authority or trustme.CA()
    files = TlsFiles(directory / "node.pem", directory / "node.key", directory / "ca.pem")
    issued = authority.issue_cert(*names)
    # A new file in place of the old one, as who swaps secrets does it.
    for path, data in [
        (files.certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems)),
        (files.key, issued.private_key_pem.bytes()),
        (files.authority, authority.cert_pem.bytes()),
    ]:
        new = path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(path)
    return files


def test_both_sides_ask_for_a_certificate_and_for_a_recent_version(tmp_path: Path) -> None:
    contexts = load_contexts(write(tmp_path, "node-1"))
    for context in (contexts.client, contexts.server):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.maximum_version is ssl.TLSVersion.MAXIMUM_SUPPORTED
        assert len(context.get_ca_certs()) == 1  # none of the system's


@pytest.mark.parametrize("which", ["certificate", "key", "authority"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
def test_a_file_that_is_no_good_is_named(tmp_path: Path, which: str, damage: str) -> None:
    files = write(tmp_path, "node-1")
    path: Path = getattr(files, which)
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"" if damage == "empty" else b"-----BEGIN CERTIFICATE-----\n?")
    with pytest.raises(TlsFilesError) as caught:
        asyncio.run(TlsSource(files, Counters()).contexts())
    assert path.name in str(caught.value)


def test_a_key_with_a_passphrase_is_refused_and_nobody_asked(tmp_path: Path) -> None:
    files = write(tmp_path, "node-1")
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(TlsFilesError, match="passphrase"):
        load_contexts(files)


async def test_files_are_read_again_when_they_change_and_only_then(tmp_path: Path) -> None:
    files = write(tmp_path, "node-1")
    counters = Counters()
    source = TlsSource(files, counters)
    first = await source.contexts()
    assert await source.contexts() is first
    write(tmp_path, "node-1")
    second = await source.contexts()
    assert second is not first
    assert await source.contexts() is second
    assert (counters.tls_reloads, counters.tls_reload_failures) == (1, 0)


async def test_broken_new_files_leave_the_old_ones_in_use_until_they_are_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write(tmp_path, "node-1")
    counters = Counters()
    source = TlsSource(files, counters)
    first = await source.contexts()
    good = files.key.read_bytes()
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", "node-1")
    files.key.write_bytes(other.key.read_bytes())  # half of a swap: another key
    assert await source.contexts() is first
    assert await source.contexts() is first
    assert counters.tls_reload_failures == 2
    assert caplog.text.count("the old ones stay") == 1
    files.key.unlink()
    assert await source.contexts() is first
    assert caplog.text.count("the old ones stay") == 2
    files.key.write_bytes(good)
    assert await source.contexts() is not first
    assert counters.tls_reloads == 1


async def test_many_connections_at_once_read_changed_files_once(tmp_path: Path) -> None:
    files = write(tmp_path, "node-1")
    counters = Counters()
    source = TlsSource(files, counters)
    first = await source.contexts()
    write(tmp_path, "node-1")
    found = await asyncio.gather(*(source.contexts() for _ in range(10)))
    assert len({id(one) for one in found}) == 1
    assert found[0] is not first
    assert counters.tls_reloads == 1
