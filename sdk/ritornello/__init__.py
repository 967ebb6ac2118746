"""The client of Ritornello: sessions of work that come back until they are done.

    async with ritornello.Client("http://127.0.0.1:7601") as client:
        await client.new(7, b"ship it", key="order-1", after=0)
        async with client.acquire(7, wait=20) as session:
            if session is not None:
                await session.append(b"; label printed")
                await session.remove()

`ritornello.sync` has the same for programs without an event loop.
"""

from ritornello.client import Client
from ritornello.session import Session
from ritornello.verdicts import Park, Remove, Store
from ritornello.worker import Worker

__all__ = ["Client", "Park", "Remove", "Session", "Store", "Worker"]
