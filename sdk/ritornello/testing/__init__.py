"""Aids for tests of what uses Ritornello: a server in memory, a clock that can be moved, faults.

    def test_it_comes_back(ritornello_server):
        with ritornello_server.sync_client() as client:
            client.new(7, b"call again", after=3600)
            ritornello_server.clock.advance(3600)
            with client.acquire(7) as session:
                assert session.data == b"call again"
                session.remove()

The fixtures `ritornello_server`, `ritornello_sync_client` and `ritornello_cluster` are there where
this distribution is installed beside pytest. Without pytest the same is had from here. The server
itself comes from the distribution `ritornello-server`.
"""

from ritornello.testing.cluster import Cluster, NodeFailed
from ritornello.testing.faults import Fault, Faults
from ritornello.testing.found import ServerMissing
from ritornello.testing.local import Clock, LocalServer

__all__ = [
    "Clock",
    "Cluster",
    "Fault",
    "Faults",
    "LocalServer",
    "NodeFailed",
    "ServerMissing",
]
