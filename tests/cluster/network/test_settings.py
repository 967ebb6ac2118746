"""What a transport is told: refused early, with the value and the bound."""

from dataclasses import fields, replace

import pytest

from cluster.network.connection import Ending
from cluster.network.errors import Reason, SecurityError, TransportSettingsError
from cluster.network.settings import (
    TRANSPORT_RANGES,
    Address,
    Counters,
    Identity,
    Security,
    TransportSettings,
)
from cluster.network.transport import Transport
from tests.cluster.network.nodes import LOOPBACK, SECRET, Recorder


def test_every_bound_has_a_range_and_a_reason() -> None:
    assert set(TRANSPORT_RANGES) == {one.name for one in fields(TransportSettings)}
    for one in TRANSPORT_RANGES.values():
        assert one.minimum <= one.default <= one.maximum
        assert one.reason


@pytest.mark.parametrize("name", TRANSPORT_RANGES)
@pytest.mark.parametrize("side", ["below", "above"])
def test_a_setting_out_of_its_range_is_refused(name: str, side: str) -> None:
    allowed = TRANSPORT_RANGES[name]
    value = allowed.minimum - 1 if side == "below" else allowed.maximum + 1
    with pytest.raises(TransportSettingsError, match=f"{name} = {value} is not within"):
        replace(TransportSettings(), **{name: value})


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(TransportSettingsError, match="backoff_min_ms"):
        TransportSettings(backoff_min_ms=100, backoff_max_ms=99)
    with pytest.raises(TransportSettingsError, match="three times"):
        TransportSettings(keepalive_ms=1000, silence_timeout_ms=2999)


@pytest.mark.parametrize(
    ("cluster_id", "node_id", "incarnation"),
    [("", "a", 0), ("c" * 129, "a", 0), ("c", "", 0), ("c", "n" * 65, 0), ("c", "a", -1)],
    ids=["no cluster", "long cluster", "no node", "long node", "incarnation"],
)
def test_an_identity_has_bounds(cluster_id: str, node_id: str, incarnation: int) -> None:
    with pytest.raises(TransportSettingsError):
        Identity(cluster_id, node_id, incarnation)


def test_a_secret_is_long_and_never_shown() -> None:
    with pytest.raises(SecurityError, match="15 bytes, it takes 16"):
        Security(secret=b"x" * 15)
    assert "sixteen" not in repr(Security(secret=SECRET))


def test_a_node_is_no_peer_of_itself() -> None:
    with pytest.raises(TransportSettingsError, match="'a' is no peer of itself"):
        transport(Address(LOOPBACK, 0), Address(LOOPBACK, 1), Security(), peer="a")


def transport(bind: Address, peer_at: Address, security: Security, peer: str = "b") -> Transport:
    return Transport(Identity("c", "a", 1), bind, {peer: peer_at}, security, Recorder())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_protection(host: str) -> None:
    transport(Address(host, 1), Address(host, 2), Security())


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "node-1", "localhost.evil"])  # noqa: S104
def test_anything_else_does_unless_that_is_waived(host: str) -> None:
    here, there = Address(LOOPBACK, 1), Address(host, 2)
    for bind, peer_at in [(here, there), (there, here)]:
        with pytest.raises(SecurityError, match="neither TLS nor a secret"):
            transport(bind, peer_at, Security())
        transport(bind, peer_at, Security(insecure=True))
        transport(bind, peer_at, Security(secret=SECRET))


def test_every_ending_and_every_reason_has_its_counter() -> None:
    counted = set(Counters().values())
    uncounted = {Ending.REFUSED, Ending.LISTENER, Ending.STOPPED}
    assert {one.value for one in Ending if one not in uncounted} <= counted
    assert {f"refused_{reason}" for reason in Reason} <= counted


def test_an_address_reads_as_usual() -> None:
    assert [str(Address("node-1", 7)), str(Address("::1", 7))] == ["node-1:7", "[::1]:7"]
