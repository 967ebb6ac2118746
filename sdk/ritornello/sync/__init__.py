"""The client for programs without an event loop, on the same core.

    with ritornello.sync.Client("http://127.0.0.1:7601") as client:
        client.new(7, b"ship it", key="order-1", after=0)
        session = client.acquire(7, wait=20)
        if session is not None:
            with session:
                session.append(b"; label printed")
                session.remove()

Clients and sessions may be used by many threads at once.
"""

from ritornello.sync.client import Client, Txn
from ritornello.sync.session import Session
from ritornello.sync.worker import Handle, Handler, Middleware, Worker

__all__ = ["Client", "Handle", "Handler", "Middleware", "Session", "Txn", "Worker"]
