"""The whole state as a file over HTTP: for backups, and for a look inside with `sqlite3`."""

import asyncio
import logging

from aiohttp import web

from api.gateway import Gateway
from api.http.calls import APPLIED_INDEX, Call
from api.problems import Refusal, of_failure, refusal
from api.security import Scope
from cluster import ClusterError, Node, OperationError
from cluster.copies import CopyInUseError, CopyLateError, StateCopy
from cluster.storage.errors import ClosedError, DiskFullError, StorageError
from state.limits import HOUR_MS, MINUTE_MS

_log = logging.getLogger(__name__)

TYPE = "application/vnd.sqlite3"

# Until the checkpoint is written that the copy is made of: that of a large state takes its time.
CHECKPOINT_TIMEOUT_MS = MINUTE_MS
DOWNLOAD_MAX_S = 6 * HOUR_MS / 1000  # the copy takes room on the disk for as long as it is read
_RETRY_AFTER_MS = 10_000


async def download(call: Call) -> web.StreamResponse:
    """Download a consistent copy of the whole state, an SQLite file; one at a time."""
    call.options()
    call.front.check(call.principal, Scope.ADMIN)
    call.principal.require_all_themes()
    try:
        async with _node_of(call.front.gateway).copy_state(
            timeout_ms=CHECKPOINT_TIMEOUT_MS
        ) as copy:
            return await _send(call, copy)
    except OperationError as error:
        raise Refusal(of_failure(error.failure)) from error
    except CopyInUseError as error:
        raise _later(
            429, "overloaded", "another copy of the state is being made or read"
        ) from error
    except CopyLateError as error:
        raise _later(503, "overloaded", f"no copy could be made in time: {error}") from error
    except (ClosedError, ClusterError) as error:
        raise refusal(503, "stopping", "the node is about to stop", retryable=True) from error
    except StorageError as error:
        _log.error("no copy of the state could be made: %s", error)
        status = 507 if isinstance(error, DiskFullError) else 503
        raise _later(status, "copy_failed", "the disk refuses; the node's log says more") from error


async def _send(call: Call, copy: StateCopy) -> web.StreamResponse:
    """Send a copy, as fast as it is read."""
    response = web.StreamResponse(
        headers={
            "Content-Type": TYPE,
            "Content-Disposition": f'attachment; filename="state-{copy.applied_index}.db"',
            "Cache-Control": "no-store",
            APPLIED_INDEX: str(copy.applied_index),
        }
    )
    response.content_length = copy.size_bytes
    if call.request.method == "HEAD":
        return response
    await response.prepare(call.request)
    offset, patience_s = 0, call.front.settings.request_timeout_ms / 1000
    try:
        async with asyncio.timeout(DOWNLOAD_MAX_S):
            while piece := await copy.read(offset):
                offset += len(piece)
                async with asyncio.timeout(patience_s):
                    await response.write(piece)
    except (TimeoutError, ConnectionError, StorageError) as error:
        # Its beginning is sent: that it is not whole is told by cutting the connection.
        _log.warning("a download of the state has ended early: %r", error)
        if call.request.transport is not None:
            call.request.transport.abort()
    return response


def _later(status: int, code: str, detail: str) -> Refusal:
    return refusal(status, code, detail, retryable=True, retry_after_ms=_RETRY_AFTER_MS)


def _node_of(gateway: Gateway) -> Node:
    return gateway._node  # noqa: SLF001 - what the gateway itself would do
