"""The client of Ritornello: sessions of work that come back until they are done.

    async with ritornello.Client("http://127.0.0.1:7601") as client:
        await client.new(7, b"ship it", key="order-1", after=0)
        async with client.acquire(7, wait=20) as session:
            if session is not None:
                await session.append(b"; label printed")
                await session.remove()

`ritornello.sync` has the same for programs without an event loop.
"""

from ritornello.client import Client, Txn
from ritornello.core.core import Token
from ritornello.errors import Outcome, RitornelloError
from ritornello.fields import Data, OnConflict, Seconds, StoreCause, Target
from ritornello.handlers import Handled, Hook, TooManyFailures, WorkerOptions
from ritornello.held import NoVerdictWarning
from ritornello.limits import Options, Preference
from ritornello.models import (
    Cause,
    ClusterView,
    Created,
    Event,
    Member,
    Phase,
    Policy,
    PolicyChanges,
    SessionView,
    Stored,
    ThemeView,
    Trace,
    Transferred,
)
from ritornello.session import Opening, Session
from ritornello.verdicts import Park, Remove, Store, Verdict
from ritornello.worker import Handle, Handler, Middleware, Worker

__all__ = [
    "Cause",
    "Client",
    "ClusterView",
    "Created",
    "Data",
    "Event",
    "Handle",
    "Handled",
    "Handler",
    "Hook",
    "Member",
    "Middleware",
    "NoVerdictWarning",
    "OnConflict",
    "Opening",
    "Options",
    "Outcome",
    "Park",
    "Phase",
    "Policy",
    "PolicyChanges",
    "Preference",
    "Remove",
    "RitornelloError",
    "Seconds",
    "Session",
    "SessionView",
    "Store",
    "StoreCause",
    "Stored",
    "Target",
    "ThemeView",
    "Token",
    "TooManyFailures",
    "Trace",
    "Transferred",
    "Txn",
    "Verdict",
    "Worker",
    "WorkerOptions",
]
