"""From the table's values to what the server is started with, and whether they fit together.

The classes have the fields of their groups; their defaults come from the table, so that they can be
made in a program too: `HttpSettings(bind=Address("127.0.0.1", 0))`.
"""

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.security.errors import FileError
from api.security.files import read_file
from api.security.tls import load_context
from api.security.tokens_file import parse_tokens
from api.settings.addresses import is_loopback
from api.settings.errors import SettingsProblem, SettingsProblems
from api.settings.sources import DEFAULT, Reading
from api.settings.table import SETTINGS, TABLE
from api.tracing import says_of_tracing
from cluster import Address, ClusterError, NodeSettings, Security, TlsFiles
from cluster.checkpoints import CheckpointSettings
from cluster.consensus.member import ConsensusSettings
from cluster.network.errors import NetworkError, SecurityError
from cluster.network.tls import load_contexts
from cluster.queues import QueueSettings
from cluster.replica import ReplicaSettings
from cluster.settings import LOOPBACK
from cluster.storage.journal_files import JournalSettings

_SECRET_FILE_BYTES_MAX = 64 * 1024
_HEARTBEATS_MIN = 3  # in the shortest wait for one: a lost one alone changes nothing


def _defaults(group: str) -> dict[str, Any]:
    return {one.name: one.default for one in TABLE if one.group == group}


_HTTP, _OPERATION = _defaults("http"), _defaults("operation")


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The group `http`."""

    bind: Address = _HTTP["bind"]
    tls_certificate_file: Path | None = _HTTP["tls_certificate_file"]
    tls_key_file: Path | None = _HTTP["tls_key_file"]
    tokens_file: Path | None = _HTTP["tokens_file"]
    insecure: bool = _HTTP["insecure"]
    metrics_open: bool = _HTTP["metrics_open"]
    cors_origins: tuple[str, ...] = _HTTP["cors_origins"]
    connections: int = _HTTP["connections"]
    connections_per_host: int = _HTTP["connections_per_host"]
    request_bytes: int = _HTTP["request_bytes"]
    header_bytes: int = _HTTP["header_bytes"]
    request_timeout_ms: int = _HTTP["request_timeout_ms"]
    idle_timeout_ms: int = _HTTP["idle_timeout_ms"]
    requests_per_second: int = _HTTP["requests_per_second"]
    websocket_frame_bytes: int = _HTTP["websocket_frame_bytes"]
    websocket_requests_in_flight: int = _HTTP["websocket_requests_in_flight"]
    websocket_send_buffer_bytes: int = _HTTP["websocket_send_buffer_bytes"]
    ping_ms: int = _HTTP["ping_ms"]
    drain_ms: int = _HTTP["drain_ms"]
    long_poll_max_ms: int = _HTTP["long_poll_max_ms"]


@dataclass(frozen=True, slots=True)
class OperationSettings:
    """The group `operation`."""

    log_level: str = _OPERATION["log_level"]
    log_format: str = _OPERATION["log_format"]
    ready_lag_entries: int = _OPERATION["ready_lag_entries"]
    error_budget_ms: int = _OPERATION["error_budget_ms"]
    error_budget_failures: int = _OPERATION["error_budget_failures"]
    events_history: int = _OPERATION["events_history"]
    tracing: str = _OPERATION["tracing"]
    tracing_endpoint: str = _OPERATION["tracing_endpoint"]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """All that a server is started with. `warnings` are allowed, and to be logged loudly."""

    node: NodeSettings
    http: HttpSettings = HttpSettings()
    operation: OperationSettings = OperationSettings()
    warnings: tuple[str, ...] = ()


def build(reading: Reading) -> ServerSettings:
    """Make the settings, or raise `SettingsProblems` with all that is wrong.

    The files that settings name are looked at, so that nothing of them is a surprise later.
    """
    return _Builder(reading).build()


class _Builder:
    def __init__(self, reading: Reading) -> None:
        self._found = reading.values
        self._faulty = set(reading.faulty)
        self._problems = list(reading.problems)
        self._warnings: list[str] = []

    def build(self) -> ServerSettings:
        self._check_files()
        self._check_consensus()
        self._check_sizes()
        self._check_peers()
        self._check_http()
        self._need(("operation.tracing",), says_of_tracing)
        node = self._node()
        if node is None or self._problems:
            raise SettingsProblems(tuple(self._problems))
        return ServerSettings(
            node,
            HttpSettings(**self._group("http")),
            OperationSettings(**self._group("operation")),
            tuple(self._warnings),
        )

    # Values

    def _value(self, name: str) -> Any:  # noqa: ANN401 - each setting has its own type
        return self._found[name].value

    def _group(self, group: str) -> dict[str, Any]:
        return {one.name: self._value(one.full_name) for one in TABLE if one.group == group}

    def _need(self, names: tuple[str, ...], says: Callable[..., str | None]) -> None:
        """Ask `says` about the values of these settings, unless one of them is wrong by itself.

        It answers what is wrong with the first of them. But a default is not to blame for what
        somebody has said: so the place is that of the first one that was said.
        """
        if not self._faulty.intersection(names):
            message = says(*map(self._value, names))
            if message is not None:
                origins = [self._found[name].origin for name in names]
                said = [origin for origin in origins if origin != DEFAULT]
                self._refuse(names[0], message, said[0] if said else "")

    def _refuse(self, name: str, message: str, origin: str | None = None) -> None:
        origin = self._found[name].origin if origin is None else origin
        self._problems.append(SettingsProblem(origin, f"{name} {message}"))
        self._faulty.add(name)

    # Files

    def _check_files(self) -> None:
        for setting in TABLE:
            name, path = setting.full_name, self._value(setting.full_name)
            if name in self._faulty or path is None or not setting.is_file:
                continue
            try:
                mode = path.stat().st_mode
                if not stat.S_ISREG(mode):  # a pipe would be empty for who reads it next
                    self._refuse(name, f"is {path}, which is no regular file")
                    continue
                path.open("rb").close()
            except OSError as error:
                self._refuse(name, f"is {path}, which cannot be read: {error.strerror or error}")
            else:
                # The front end warns of its files by itself, whenever they change.
                is_ours = setting.holds_secret and setting.group == "node"
                if is_ours and mode & (stat.S_IROTH | stat.S_IWOTH):
                    self._warnings.append(
                        f"{name} is {path}, which everybody on this machine may read or write; "
                        "take that right away with chmod o="
                    )
        self._need(("node.data_directory",), _says_of_directory)

    def _secret(self) -> bytes | None:
        name = "node.cluster_secret_file"
        path: Path | None = self._value(name)
        if path is None or name in self._faulty:
            return None
        try:
            secret = _read_secret(path)
        except (OSError, SecurityError) as error:
            self._refuse(name, f"is {path}, which cannot be used: {error}")
            return None
        return secret

    # The node

    def _check_consensus(self) -> None:
        group = "consensus."
        self._need(
            (group + "election_timeout_max_ms", group + "election_timeout_min_ms"),
            lambda most, least: _says_at_least(most, least, "consensus.election_timeout_min_ms"),
        )
        for name in ("election_timeout_min_ms", "quorum_timeout_ms"):
            self._need(
                (group + name, group + "heartbeat_ms"),
                lambda timeout, heartbeat: _says_at_least(
                    timeout,
                    _HEARTBEATS_MIN * heartbeat,
                    f"{_HEARTBEATS_MIN} times consensus.heartbeat_ms",
                ),
            )
        self._need(
            ("queue.resend_after_ms", group + "election_timeout_max_ms"),
            lambda after, most: _says_at_least(after, most, "consensus.election_timeout_max_ms"),
        )

    def _check_sizes(self) -> None:
        for greater, smaller in (
            ("checkpoint.log_bytes_max", "checkpoint.log_bytes"),
            ("reaper.lease_grace_max_ms", "reaper.lease_grace_ms"),
            ("http.websocket_send_buffer_bytes", "http.websocket_frame_bytes"),
        ):
            self._need(
                (greater, smaller),
                lambda most, least, smaller=smaller: _says_at_least(most, least, smaller),
            )

    def _check_peers(self) -> None:
        self._need(("node.peers", "node.id"), _says_of_membership)
        self._need(("node.bind", "node.peers"), _says_of_bind)
        group = ("node.tls_certificate_file", "node.tls_key_file", "node.tls_authority_file")
        self._need_all_or_none(group)
        if not self._faulty.intersection(group) and self._value(group[0]) is not None:
            try:
                load_contexts(TlsFiles(*map(self._value, group)))
            except NetworkError as error:
                self._refuse(group[0], f"and its companions do not work: {error}")
        names = ("node.insecure", "node.peers", "node.bind", "node.cluster_secret_file", *group)
        self._need(names, self._says_of_peers_security)

    def _need_all_or_none(self, names: tuple[str, ...]) -> None:
        given = [name for name in names if self._value(name) is not None]
        missing = [name for name in names if self._value(name) is None]
        if given and missing and not self._faulty.intersection(names):
            self._refuse(given[0], f"is given without {' and '.join(missing)}; TLS takes all")

    def _says_of_peers_security(
        self,
        insecure: bool,  # noqa: FBT001 - a setting's value
        peers: Mapping[str, Address],
        bind: Address | None,
        secret: Path | None,
        certificate: Path | None,
        *_: object,
    ) -> str | None:
        if not peers or secret is not None or certificate is not None:
            return None
        addresses = [*peers.values(), *([bind] if bind is not None else [])]
        distant = [address for address in addresses if not is_loopback(address)]
        if not distant:
            return None
        if insecure:
            self._warnings.append(
                f"node.insecure: peers talk without TLS and without a secret, and {distant[0]} is "
                "not a loopback address: ANYBODY who reaches this node can change its data"
            )
            return None
        return (
            f"is false, but {distant[0]} is not a loopback address, and peers talk without TLS and "
            "without a secret; give node.cluster_secret_file or the three node.tls_... files, or "
            "node.insecure = true if anybody may join the cluster and change its data"
        )

    def _node(self) -> NodeSettings | None:
        secret = self._secret()
        if any(not name.startswith(("http.", "operation.")) for name in self._faulty):
            return None  # it would be refused for what was reported already
        peers: Mapping[str, Address] = self._value("node.peers")
        node_id: str = self._value("node.id")
        tls = None
        if (certificate := self._value("node.tls_certificate_file")) is not None:
            key, authority = (
                self._value("node.tls_key_file"),
                self._value("node.tls_authority_file"),
            )
            tls = TlsFiles(certificate, key, authority)
        try:
            return NodeSettings(
                data_directory=self._value("node.data_directory"),
                node_id=node_id,
                cluster_id=self._value("node.cluster_id"),
                bind=self._value("node.bind") or peers.get(node_id, LOOPBACK),
                peers=peers,
                security=Security(tls, secret, self._value("node.insecure")),
                journal=JournalSettings(**self._group("journal")),
                replica=ReplicaSettings(
                    ConsensusSettings(**self._group("consensus")),
                    QueueSettings(**self._group("queue")),
                    CheckpointSettings(**self._group("checkpoint")),
                    **self._group("reaper"),
                ),
                timeout_ms=self._value("node.timeout_ms"),
                stop_timeout_ms=self._value("node.stop_timeout_ms"),
            )
        except (ClusterError, NetworkError, ValueError) as error:
            # The table and the checks above are meant to leave little for this.
            self._problems.append(SettingsProblem("", f"the node's settings do not fit: {error}"))
            return None

    # The front end

    def _check_http(self) -> None:
        group = ("http.tls_certificate_file", "http.tls_key_file")
        self._need_all_or_none(group)
        if not self._faulty.intersection(group) and self._value(group[0]) is not None:
            try:
                load_context(*map(self._value, group))
            except FileError as error:
                self._refuse(group[0], f"and http.tls_key_file do not work: {error}")
        self._check_tokens()
        names = ("http.bind", "http.insecure", "http.tokens_file", *group)
        self._need(names, self._says_of_http_security)
        self._need(("http.bind", "node.bind", "node.peers", "node.id"), _says_of_two_listeners)

    def _check_tokens(self) -> None:
        name = "http.tokens_file"
        path: Path | None = self._value(name)
        if path is None or name in self._faulty:
            return
        try:
            parse_tokens(str(path), read_file(path))
        except FileError as error:
            for problem in error.problems:
                self._refuse(name, f"is {path}, which cannot be used: {problem}")

    def _says_of_http_security(
        self,
        bind: Address,
        insecure: bool,  # noqa: FBT001 - a setting's value
        tokens: Path | None,
        certificate: Path | None,
        _key: Path | None,
    ) -> str | None:
        missing = {
            "tokens (http.tokens_file)": tokens,
            "TLS (http.tls_certificate_file, http.tls_key_file)": certificate,
        }
        names = [name for name, path in missing.items() if path is None]
        if is_loopback(bind) or not names:
            return None
        if not insecure:
            return (
                f"is {bind}, which is not a loopback address, and not safe without "
                f"{' and '.join(names)}; give what is missing, or http.insecure = true if this is "
                "meant"
            )
        if tokens is None:
            self._warnings.append(
                f"http.insecure: {bind} is not a loopback address, and there are no tokens: "
                "ANYBODY who reaches it can read and change everything"
            )
        if certificate is None:
            self._warnings.append(
                f"http.insecure: {bind} is not a loopback address, and there is no TLS: tokens and "
                "data can be read and changed on their way, unless a proxy in front prevents it"
            )
        return None


def _says_at_least(value: int, least: int, what: str) -> str | None:
    return None if value >= least else f"is {value}, below {what}; write {least} or more"


def _says_of_directory(path: Path) -> str | None:
    try:
        is_directory = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return None  # it will be made
    except OSError as error:
        return f"is {path}, which cannot be looked at: {error.strerror or error}"
    return None if is_directory else f"is {path}, which is a file; write the path of a directory"


def _says_of_membership(peers: Mapping[str, Address], node_id: str) -> str | None:
    form = SETTINGS["node.id"].form
    for name in peers:
        if form is not None and not form.fits(name):
            return f"has {name!a}; an id has {form.says}"
    if peers and node_id not in peers:
        # As another member it would join a cluster of one node more than was meant.
        return (
            f"has {', '.join(peers)}, but not this node, whose node.id is {node_id}; "
            "list all members, the same on all nodes"
        )
    if len(peers) == 2:  # noqa: PLR2004 - what two are is the point
        return (
            "has two members, and they are no safer than one: losing either stops both; "
            "list three, or none"
        )
    return None


def _says_of_bind(bind: Address | None, peers: Mapping[str, Address]) -> str | None:
    if bind is not None and peers and not bind.port:
        return f"is {bind}, but its peers need a port to find it at; write the one in node.peers"
    return None


def _says_of_two_listeners(
    http: Address, node: Address | None, peers: Mapping[str, Address], node_id: str
) -> str | None:
    if peers and http.port and http == (node or peers.get(node_id)):
        return f"is {http}, where this node listens for its peers; write another port"
    return None


def _read_secret(path: Path) -> bytes:
    if path.stat().st_size > _SECRET_FILE_BYTES_MAX:
        raise SecurityError(f"it has more than {_SECRET_FILE_BYTES_MAX} bytes")
    secret = path.read_bytes().rstrip(b"\r\n")  # editors end it with a line's end
    Security(secret=secret)  # refuses what is too short
    return secret
