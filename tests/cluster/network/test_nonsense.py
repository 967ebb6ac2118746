"""A peer that has proved who it is, and then sends a whole node what makes no sense."""

import logging
from pathlib import Path

import pytest

from cluster import Address, Node, NodeSettings
from cluster.consensus.messages import Forward, encode
from cluster.network.handshake import Role
from tests.cluster.network.nodes import (
    CLUSTER,
    LOOPBACK,
    NOWHERE,
    SECURITY,
    Stranger,
    handshake,
    until,
)


@pytest.mark.parametrize(
    "payload",
    [b"\xc1", encode(Forward(1, 1, 0, b"no batch"))],
    ids=["no message", "no batch"],
)
async def test_nonsense_of_a_peer_is_no_failure_of_the_node(
    payload: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = NodeSettings(
        tmp_path,
        node_id="c",
        cluster_id=CLUSTER,
        bind=Address(LOOPBACK, 0),
        peers={"a": NOWHERE, "b": NOWHERE},
        security=SECURITY,
        tunes_collector=False,
    )
    async with Node(settings) as node:
        transport = node._transport  # noqa: SLF001 - what it has counted
        assert transport is not None
        async with Stranger.dial(transport.addresses[0]) as stranger:
            await stranger.shake(handshake(Role.DIALER, "a"))
            await until(lambda: transport.is_connected("a"))
            stranger.say(payload)
            assert await stranger.is_hung_up()
        assert transport.counters.malformed == 1
        assert transport.counters.listener_errors == 0
    (line,) = [one for one in caplog.records if "malformed" in one.getMessage()]
    assert line.levelno == logging.WARNING
    assert line.exc_info is None
