"""The replicated state machine of Ritornello.

Bytes in, results out: `StateMachine.apply` is a function of the state and a batch. No I/O, no
clock, no randomness, no threads, and no dependency but msgpack, so that it can be read, tested and
simulated by itself, and every node that applies the same log holds the same state.

    codec, operations, results, errors   what goes in and comes out
    limits, policy, transitions          the rules, as tables
    records, tables, ordered, roll       what is kept, and the indexes over it
    leases                               who must show signs of life, and until when
    execution, upkeep, machine           what operations do
    ledger, layout, loading, events      what changed, and how it is written and read back

Why not ...

* ... objects with behaviour (`session.append(data)`)? A change of a session moves it between
  indexes, counts against limits, may be undone, and must reach the checkpoint. With one place that
  does all that (`tables` and `ledger`), no operation can forget one of them.
* ... SQLite in memory? It would give transactions and indexes, and put several statements on the
  path of every operation.
* ... copy the state for a checkpoint, or fork? Either touches all sessions to write a few. The
  ledger copies only what changes while a checkpoint is being written.
* ... heaps of deadlines? See `ordered` and `leases`.
* ... exceptions as results? Results are kept and compared; exceptions drag frames along.

`docs/design.md` says more.
"""

from state.codec import BATCH_VERSION, encode, encode_batch, encode_fields
from state.errors import DamagedStateError, Failure, Outcome
from state.events import Event, EventKind
from state.layout import FIELDS, LAYOUT_VERSION, Item
from state.ledger import Capture
from state.limits import LIMITS, Limits, NodeLimits
from state.loading import Loader, load
from state.machine import Applied, StateMachine
from state.operations import Cause, OnConflict, Operation
from state.policy import Backoff, Policy
from state.records import HistoryEntry, Session, Theme
from state.results import Acquired, Created, Done, Result, Stored
from state.transitions import TRANSITIONS, Act, Actor, Phase, Transition

__all__ = [
    "BATCH_VERSION",
    "FIELDS",
    "LAYOUT_VERSION",
    "LIMITS",
    "TRANSITIONS",
    "Acquired",
    "Act",
    "Actor",
    "Applied",
    "Backoff",
    "Capture",
    "Cause",
    "Created",
    "DamagedStateError",
    "Done",
    "Event",
    "EventKind",
    "Failure",
    "HistoryEntry",
    "Item",
    "Limits",
    "Loader",
    "NodeLimits",
    "OnConflict",
    "Operation",
    "Outcome",
    "Phase",
    "Policy",
    "Result",
    "Session",
    "StateMachine",
    "Stored",
    "Theme",
    "Transition",
    "encode",
    "encode_batch",
    "encode_fields",
    "load",
]
