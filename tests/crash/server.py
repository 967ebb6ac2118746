"""One node in a process of its own, moved by JSON lines: what crash tests start and kill.

python -m tests.crash.server '{"name": "node-1", "directory": "...", ...}'

Each line of standard input is a request and is answered by a line of standard output with its
`id`; lines without an `id` tell what happened by itself. At the end of the input, or at SIGTERM,
the node is stopped in good order. The last line of standard error says why a process ended.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import logging
import signal
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any

import uvloop

from cluster import Address, Node, NodeSettings, Security
from cluster.checkpoints import CheckpointSettings
from cluster.failures import ClusterError, OperationError
from cluster.network.errors import NetworkError
from cluster.network.settings import TransportSettings
from cluster.queues import QueueSettings
from cluster.replica import ReplicaSettings
from cluster.storage.errors import StorageError
from cluster.storage.journal_files import JournalSettings
from state import Applied, Failure, Result
from state.results import pack_result
from tests.crash.history import LEDGERS, WORK

CLUSTER = "crash"
DIGEST_EVERY = 16  # entries: digests at all indexes would be most of the work
CLOSE_TIMEOUT_S = 15.0  # for a node that has failed to give its files back
PIPE_BYTES = 1 << 20


class Status(IntEnum):
    """How a process ended, if it was not killed."""

    STOPPED = 0
    REFUSED = 65  # to start: the disk, the settings or the network is not right
    FAILED = 74  # the node could not go on
    HUNG = 75  # ... nor give its files back


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """What a process is started with. The sizes are small, so that what is rare happens often."""

    name: str
    directory: str
    peers: dict[str, tuple[str, int]]
    loop: str = "uvloop"
    segment_bytes: int = 64 << 10
    checkpoint_ms: int = 250
    log_bytes: int = 60_000
    log_bytes_max: int = 250_000
    piece_bytes: int = 4_000
    chunk_bytes: int = 64_000

    def settings(self) -> NodeSettings:
        peers = {name: Address(*address) for name, address in self.peers.items()}
        return NodeSettings(
            Path(self.directory),
            node_id=self.name,
            cluster_id=CLUSTER,
            bind=peers.get(self.name, Address("127.0.0.1", 0)),
            peers=peers,
            security=Security(secret=b"of the crash tests"),
            transport=TransportSettings(backoff_max_ms=300),
            journal=JournalSettings(segment_bytes=self.segment_bytes),
            replica=ReplicaSettings(
                queue=QueueSettings(
                    pipeline_from_operations=8, batch_operations=20, resend_after_ms=1_500
                ),
                checkpoint=CheckpointSettings(
                    interval_ms=self.checkpoint_ms,
                    log_bytes=self.log_bytes,
                    log_bytes_max=self.log_bytes_max,
                    piece_bytes=self.piece_bytes,
                    chunk_bytes=self.chunk_bytes,
                    chunks_in_flight=2,
                ),
                lease_grace_ms=1_000,
                lease_grace_max_ms=4_000,
            ),
        )


class Output:
    """Lines for standard output; those of one turn of the loop leave together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: list[str] = []
        with contextlib.suppress(OSError):  # a smaller pipe does, too
            fcntl.fcntl(sys.stdout.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def say(self, fields: dict[str, Any]) -> None:
        if not self._lines:
            self._loop.call_soon(self.flush)
        self._lines.append(json.dumps(fields))

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            # Blocking: who started this process reads all the time.
            sys.stdout.write("\n".join(lines) + "\n")
            sys.stdout.flush()


class Server:
    """The node, and who listens to it."""

    def __init__(self, arguments: Arguments) -> None:
        self._loop = asyncio.get_running_loop()
        self._output = Output(self._loop)
        self._node = Node(arguments.settings(), self)
        self._tasks: set[asyncio.Task[None]] = set()

    # What the node tells

    def on_applied(self, applied: Applied) -> None:
        if applied.index % DIGEST_EVERY == 0:
            self._tell_digest()

    def on_leader(self, leader: str | None) -> None:
        self._output.say({"event": "leader", "leader": leader})

    def on_installed(self) -> None:
        self._tell_digest()

    def _tell_digest(self) -> None:
        replica = self._node.replica
        digest = replica.machine.digest()
        self._output.say({"event": "digest", "index": replica.applied_index, "digest": digest})

    # Life

    async def run(self) -> Status:
        node = self._node
        try:
            await node.start()
        except (StorageError, ClusterError, NetworkError) as error:
            _explain(f"refused to start: {error}")
            return Status.REFUSED
        self._output.say(
            {
                "event": "started",
                "incarnation": node.status().incarnation,
                "consumer": node.consumer(b"").hex(),
            }
        )
        stopping = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGTERM, stopping.set)
        reader = asyncio.StreamReader(limit=1 << 24)
        await self._loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        reading = asyncio.create_task(self._read(reader))
        failing = asyncio.create_task(node.failure())
        signalled = asyncio.create_task(stopping.wait())
        await asyncio.wait({reading, failing, signalled}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            status = await self._fail(failing.result())
        else:
            await node.stop()
            status = Status.STOPPED
            if failing.done():
                _explain(f"failed while it stopped: {failing.result()}")
                status = Status.FAILED
            # What comes now is answered, too, until nobody asks any more.
            self._output.say({"event": "stopped"})
            await reading
        for task in {reading, failing, signalled, *self._tasks}:
            task.cancel()
        self._output.flush()
        return status

    async def _fail(self, error: Exception) -> Status:
        self._output.flush()
        _explain(f"failed: {error}")
        try:
            await asyncio.wait_for(self._node.stop(), CLOSE_TIMEOUT_S)
        except TimeoutError:
            _explain(f"failed, and did not close: {error}")
            return Status.HUNG
        _explain(f"failed: {error}")  # again: closing may have logged something
        return Status.FAILED

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            request = json.loads(line)
            if request["do"] == "submit":
                self._submit(request)
            else:
                task = asyncio.create_task(self._answer(request))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    # Requests

    def _submit(self, request: dict[str, Any]) -> None:
        def done(result: Result) -> None:
            self._output.say({"id": request["id"], **_told(result)})

        self._node.submit_encoded(
            bytes.fromhex(request["operation"]),
            done,
            timeout_ms=request["timeout_ms"],
            is_ending=request["is_ending"],
        )

    async def _answer(self, request: dict[str, Any]) -> None:
        try:
            answer = await self._do(request)
        except OperationError as error:
            answer = _told(error.failure)
        except Exception as error:  # noqa: BLE001 - who asked says what it makes of it
            answer = {"error": repr(error)}
        self._output.say({"id": request["id"], **answer})

    async def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        node = self._node
        match request["do"]:
            case "status":
                return self._status()
            case "barrier":
                await node.read(timeout_ms=request["timeout_ms"])
                return {"applied_index": node.replica.applied_index}
            case "holds":
                await node.read(timeout_ms=request["timeout_ms"])
                session = node.machine.session((LEDGERS, request["key"].encode()))
                chunks = [] if session is None else session.chunks
                number = bytes.fromhex(request["number"])
                return {"holds": any(chunk.startswith(number) for chunk in reversed(chunks))}
            case "dump":
                await node.read(timeout_ms=request["timeout_ms"])
                return self._dump()
            case "transfer":
                return {"went": await node.transfer(request["to"])}
            case unknown:
                raise ValueError(f"nothing is known of {unknown!r}")

    def _status(self) -> dict[str, Any]:
        replica = self._node.replica
        return {
            **dataclasses.asdict(self._node.status()),
            "checkpoints": replica.checkpoints.written,
            "snapshots_sent": replica.snapshots.sent,
            "installs": replica.snapshots.installs,
            "digest": replica.machine.digest(),
        }

    def _dump(self) -> dict[str, Any]:
        """All that clients may have written, as this node has it."""
        replica = self._node.replica
        ledgers: dict[str, list[str]] = {}
        work: list[list[Any]] = []
        for session in replica.machine.sessions():
            chunks = [chunk[:8].hex() for chunk in session.chunks]
            if session.theme.theme_id == LEDGERS:
                ledgers[(session.key or b"").decode()] = chunks
            elif session.theme.theme_id == WORK:
                work.append([session.session_id, session.epoch, chunks])
        return {
            "applied_index": replica.applied_index,
            "digest": replica.machine.digest(),
            "ledgers": ledgers,
            "work": sorted(work),
        }


def _told(result: Result) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"code": result.code, "outcome": result.outcome, "text": str(result)}
    return {"result": pack_result(result)}


def _explain(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


async def serve(arguments: Arguments) -> Status:
    return await Server(arguments).run()


def main() -> Status:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    arguments = Arguments(**json.loads(sys.argv[1]))
    factory = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(serve(arguments))


if __name__ == "__main__":
    sys.exit(main())
