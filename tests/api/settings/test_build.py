"""Whether settings fit together, and what becomes of them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from api.security import hash_token, new_token
from api.settings import Reading, ServerSettings
from cluster import Address, Security, TlsFiles
from tests.api.settings.reading import built, problem, problems, read

Write = Callable[[str], Path]

LOCAL = "a=127.0.0.1:1,b=127.0.0.1:2,c=127.0.0.1:3"
DISTANT = "a=10.0.0.1:1,b=10.0.0.2:1,c=10.0.0.3:1"
SECRET = b"0123456789abcdef"


def reading(**flags: str | bool) -> Reading:
    return read(flags)


def refused(**flags: str | bool) -> str:
    return problem(reading(**flags))


@pytest.fixture
def secret(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    files = TlsFiles(directory / "certificate.pem", directory / "key.pem", directory / "ca.pem")
    issued = authority.issue_cert("a", "localhost")
    authority.cert_pem.write_to_path(files.authority)
    issued.private_key_pem.write_to_path(files.key)
    files.key.chmod(0o640)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(files.certificate, append=True)
    return files


# Peers


def test_a_node_finds_its_address_among_its_peers() -> None:
    node = built(node_id="b", node_peers=LOCAL).node
    assert node.bind == Address("127.0.0.1", 2)
    assert list(node.others) == ["a", "c"]


def test_a_node_may_listen_elsewhere() -> None:
    node = built(node_id="b", node_peers=LOCAL, node_bind="127.0.0.9:9").node
    assert node.bind == Address("127.0.0.9", 9)


def test_peers_need_a_port() -> None:
    assert refused(node_id="b", node_peers=LOCAL, node_bind="127.0.0.1:0") == (
        "flag --node-bind: node.bind is 127.0.0.1:0, but its peers need a port to find it at; "
        "write the one in node.peers"
    )
    assert built(node_bind="127.0.0.1:0").node.bind == Address("127.0.0.1", 0)


def test_a_node_is_one_of_the_members() -> None:
    assert refused(node_peers=LOCAL) == (
        "flag --node-peers: node.peers has a, b, c, but not this node, whose node.id is node-1; "
        "list all members, the same on all nodes"
    )


def test_two_members_are_no_safer_than_one() -> None:
    said = refused(node_id="a", node_peers="a=127.0.0.1:1,b=127.0.0.1:2")
    assert said.endswith("losing either stops both; list three, or none")


def test_ids_of_peers_are_ids() -> None:
    said = refused(node_id="a", node_peers="a=127.0.0.1:1,b/c=127.0.0.1:2,d=127.0.0.1:3")
    assert "node.peers has 'b/c'; an id has 1 to 64 ASCII letters" in said


def test_one_member_is_a_whole_cluster() -> None:
    assert built(node_id="a", node_peers="a=127.0.0.1:1").node.others == {}


# How peers trust each other


def test_peers_beyond_loopback_need_tls_or_a_secret_or_a_word(secret: str) -> None:
    said = refused(node_id="a", node_peers=DISTANT)
    assert said.startswith("flag --node-peers: node.insecure is false, but 10.0.0.1:1 is not a ")
    assert "give node.cluster_secret_file or the three node.tls_... files" in said
    assert refused(node_id="a", node_peers=LOCAL, node_bind="0.0.0.0:1").startswith("flag --node-")

    settings = built(node_id="a", node_peers=DISTANT, node_cluster_secret_file=secret)
    assert settings.node.security == Security(secret=SECRET)
    assert settings.warnings == ()

    settings = built(node_id="a", node_peers=DISTANT, node_insecure=True)
    assert settings.node.security == Security(insecure=True)
    (warning,) = settings.warnings
    assert "ANYBODY who reaches this node can change its data" in warning


def test_tls_of_peers_takes_three_files(certificate: TlsFiles) -> None:
    files = {
        "node_tls_certificate_file": str(certificate.certificate),
        "node_tls_key_file": str(certificate.key),
        "node_tls_authority_file": str(certificate.authority),
    }
    settings = built(node_id="a", node_peers=DISTANT, **files)
    assert settings.node.security == Security(tls=certificate)
    assert settings.warnings == ()

    assert refused(node_tls_key_file=str(certificate.key)) == (
        "flag --node-tls-key-file: node.tls_key_file is given without node.tls_certificate_file "
        "and node.tls_authority_file; TLS takes all"
    )
    swapped = files | {"node_tls_key_file": str(certificate.authority)}
    said = refused(node_id="a", node_peers=DISTANT, **swapped)
    assert "node.tls_certificate_file and its companions do not work: cannot use" in said


def test_a_secret_that_will_not_do_is_refused_and_not_shown(tmp_path: Path) -> None:
    short, huge = tmp_path / "short", tmp_path / "huge"
    short.write_bytes(b"hush\r\n")
    huge.write_bytes(bytes(1 << 20))
    said = refused(node_cluster_secret_file=str(short))
    assert "which cannot be used: the cluster's secret has 4 bytes, it takes 16" in said
    assert "hush" not in said
    assert "has more than 65536 bytes" in refused(node_cluster_secret_file=str(huge))
    shown = repr(built(node_cluster_secret_file=_secret_in(tmp_path)))
    assert SECRET.decode() not in shown


def _secret_in(directory: Path) -> str:
    path = directory / "fine"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return str(path)


def test_a_secret_that_everybody_can_read_is_warned_of(secret: str) -> None:
    Path(secret).chmod(0o644)
    (warning,) = built(node_cluster_secret_file=secret).warnings
    assert warning.startswith("node.cluster_secret_file is /")
    assert "everybody on this machine" in warning


# Files


def test_files_have_to_be_there_and_readable(tmp_path: Path) -> None:
    missing = refused(http_tokens_file=str(tmp_path / "no"))
    assert missing == (
        "flag --http-tokens-file: http.tokens_file is no, which cannot be read: "
        "No such file or directory"
    )
    assert refused(http_tokens_file=str(tmp_path)).endswith("which is no regular file")
    os.mkfifo(tmp_path / "pipe")
    assert refused(http_tokens_file=str(tmp_path / "pipe")).endswith("which is no regular file")


def test_data_go_into_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    said = refused(node_data_directory=str(file))
    assert said.endswith("is file, which is a file; write the path of a directory")
    assert refused(node_data_directory=str(file / "data")).endswith("Not a directory")
    fresh = tmp_path / "a" / "b"
    assert built(node_data_directory=str(fresh)).node.data_directory == fresh
    assert not fresh.exists()


# Times and sizes


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            {"consensus_election_timeout_min_ms": "2000"},
            (
                "flag --consensus-election-timeout-min-ms: consensus.election_timeout_max_ms is "
                "1000, below consensus.election_timeout_min_ms; write 2000 or more"
            ),
        ),
        (
            {"queue_resend_after_ms": "999"},
            (
                "flag --queue-resend-after-ms: queue.resend_after_ms is 999, below "
                "consensus.election_timeout_max_ms; write 1000 or more"
            ),
        ),
        (
            {"checkpoint_log_bytes": str(1 << 30)},
            (
                "flag --checkpoint-log-bytes: checkpoint.log_bytes_max is 536870912, below "
                "checkpoint.log_bytes; write 1073741824 or more"
            ),
        ),
        (
            {"reaper_lease_grace_max_ms": "1"},
            (
                "flag --reaper-lease-grace-max-ms: reaper.lease_grace_max_ms is 1, below "
                "reaper.lease_grace_ms; write 10000 or more"
            ),
        ),
        (
            {"http_websocket_frame_bytes": str(16 << 20)},
            (
                "flag --http-websocket-frame-bytes: http.websocket_send_buffer_bytes is 8388608, "
                "below http.websocket_frame_bytes; write 16777216 or more"
            ),
        ),
    ],
)
def test_one_bound_is_above_another(flags: dict[str, str], says: str) -> None:
    assert refused(**flags) == says


def test_the_node_gets_its_times_and_sizes() -> None:
    node = built(
        node_timeout_ms="5000",
        journal_segment_bytes="1048576",
        checkpoint_interval_ms="1000",
        consensus_heartbeat_ms="50",
        queue_intake_operations="7",
        reaper_pulse_ms="20",
    ).node
    assert node.timeout_ms == 5000
    assert node.journal.segment_bytes == 1 << 20
    replica = node.replica
    assert replica.checkpoint.interval_ms == 1000
    assert replica.consensus.heartbeat_ms == 50
    assert replica.queue.intake_operations == 7
    assert replica.pulse_ms == 20


# The front end


def write_tokens(directory: Path) -> Path:
    path = directory / "tokens.toml"
    entry = f'[[tokens]]\nname = "all"\nhash = "{hash_token(new_token())}"\nscopes = ["admin"]\n'
    path.write_text(entry, encoding="utf-8")
    return path


def open_front_end(**more: str | bool) -> ServerSettings:
    return built(http_bind="0.0.0.0:80", **more)


def test_beyond_loopback_the_front_end_needs_tokens_and_tls(
    tmp_path: Path, certificate: TlsFiles
) -> None:
    tokens = write_tokens(tmp_path)
    tls = {
        "http_tls_certificate_file": str(certificate.certificate),
        "http_tls_key_file": str(certificate.key),
    }
    bind = {"http_bind": "0.0.0.0:80"}
    assert refused(**bind).endswith(
        "without tokens (http.tokens_file) and TLS (http.tls_certificate_file, "
        "http.tls_key_file); give what is missing, or http.insecure = true if this is meant"
    )
    assert "without tokens (http.tokens_file); give" in refused(**bind, **tls)
    assert "without TLS (http.tls_c" in refused(**bind, http_tokens_file=str(tokens))

    settings = open_front_end(**tls, http_tokens_file=str(tokens))
    assert settings.warnings == ()
    assert settings.http.tls_key_file == certificate.key


def test_an_insecure_front_end_is_allowed_loudly(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path)
    without_tokens, without_tls = open_front_end(http_insecure=True).warnings
    assert "ANYBODY who reaches it can read and change everything" in without_tokens
    assert "there is no TLS" in without_tls
    assert open_front_end(http_insecure=True, http_tokens_file=str(tokens)).warnings == (
        without_tls,
    )


def test_on_loopback_nothing_is_needed() -> None:
    assert built(http_bind="[::1]:0", http_insecure=True).warnings == ()


def test_tls_of_the_front_end_takes_two_files_that_fit(certificate: TlsFiles) -> None:
    path = str(certificate.certificate)
    assert refused(http_tls_certificate_file=path).endswith("http.tls_key_file; TLS takes all")
    said = refused(http_tls_certificate_file=path, http_tls_key_file=path)
    assert "http.tls_certificate_file and http.tls_key_file do not work: " in said


def test_tokens_that_make_no_sense_are_told_before_the_start(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[[tokens]]\nname = "a"\ntoken = "hush"\n', encoding="utf-8")
    said = problems(reading(http_tokens_file=str(tokens)))
    start = "flag --http-tokens-file: http.tokens_file is tokens.toml, which cannot be used: token "
    assert said
    assert all(one.startswith(start) for one in said)
    assert "hush" not in "".join(said)


def test_two_listeners_need_two_ports() -> None:
    said = refused(node_id="a", node_peers=LOCAL, http_bind="127.0.0.1:1")
    assert said == (
        "flag --http-bind: http.bind is 127.0.0.1:1, where this node listens for its peers; "
        "write another port"
    )


def test_nothing_is_concluded_from_what_is_wrong() -> None:
    """A misspelled address does not lead to a complaint about missing tokens as well."""
    assert problems(reading(http_bind="10.0.0.1", node_peers="a", node_id="a/b")) == [
        (
            "flag --http-bind: http.bind is '10.0.0.1'; write host:port, such as 127.0.0.1:7601 or "
            "[::1]:7601"
        ),
        (
            "flag --node-peers: node.peers has 'a'; write id=host:port for each member, with "
            "commas between them"
        ),
        "flag --node-id: node.id is 'a/b'; write 1 to 64 ASCII letters, digits, '.', '-' and '_'",
    ]
