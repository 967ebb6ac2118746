"""One member of a stock PySyncObj cluster, in a process of its own. See `stock.py`.

It reads and answers the same commands as `cluster_node.py`.
"""

import json
import logging
import os
import resource
import sys
import threading
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

from benchmarks.latencies import counted

DATA = b"d" * 256
READY_S = 30.0
END_S = 5.0  # how long callers are waited for whom nobody may ever call back
AGAIN_S = 0.01  # after a failure

REASONS = {value: name.lower() for name, value in vars(FAIL_REASON).items() if name.isupper()}

Answer = dict[str, Any]


class Complaints(logging.Handler):
    """Counts what the library logs as an error: it has no other way to tell."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        is_truncation = "truncating already-applied" in str(record.msg)
        self.counts["it cut off what it had applied" if is_truncation else str(record.msg)] += 1


class Keeper(SyncObj):  # type: ignore[misc]  # it has no types
    """Keeps bytes under keys."""

    def __init__(self, address: str, others: list[str], conf: SyncObjConf) -> None:
        super().__init__(address, others, conf)
        self.values: dict[str, bytes] = {}

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value


class Caller:
    """Puts under its key, again and again: the next when it is called back for the last."""

    __slots__ = ("_key", "_load", "_since_s")

    def __init__(self, load: "Load", key: str) -> None:
        self._load = load
        self._key = key
        self._since_s = 0.0

    def go(self) -> None:
        self._since_s = time.perf_counter()
        self._load.keeper.put(self._key, DATA, callback=self._done)

    def _done(self, _result: object, reason: int) -> None:
        load = self._load
        if reason == FAIL_REASON.SUCCESS:
            if self._since_s <= load.until_s:
                load.latencies_s.append(time.perf_counter() - self._since_s)
        else:
            load.failures[REASONS.get(reason, str(reason))] += 1
        if load.is_halting:
            load.ended += 1
        elif reason == FAIL_REASON.SUCCESS:
            self.go()
        else:
            threading.Timer(AGAIN_S, self.go).start()


class Load:
    """Some callers, from `start` to `halt`. They run in the library's thread."""

    def __init__(self, keeper: Keeper, callers: int, complaints: Complaints) -> None:
        self.keeper = keeper
        self._complaints = complaints
        complaints.counts.clear()
        self.latencies_s = array("d")
        self.failures: Counter[str] = Counter()
        self.until_s = float("inf")
        self.is_halting = False
        self.ended = 0
        self._callers = [Caller(self, f"key-{number}") for number in range(callers)]
        self._cpu_s = cpu_s()
        self._term = term(keeper)
        self._begin_s = time.perf_counter()

    def start(self) -> None:
        for caller in self._callers:
            caller.go()

    def halt(self) -> Answer:
        self.until_s = time.perf_counter()
        done = len(self.latencies_s)
        spent_s = cpu_s() - self._cpu_s
        self.is_halting = True
        while self.ended < len(self._callers) and time.perf_counter() < self.until_s + END_S:
            time.sleep(0.01)
        missing = len(self._callers) - self.ended
        if missing:
            self.failures["never_called_back"] += missing
        return {
            "took_s": self.until_s - self._begin_s,
            "done": done,
            "latencies": counted(self.latencies_s),
            "longest_ms": max(self.latencies_s, default=0.0) * 1000,
            "failures": self.failures,
            "complaints": self._complaints.counts,
            "cpu_s": spent_s,
            "term": term(self.keeper) - self._term,
            # It has no such things, or does not count them.
            "batches": 0,
            "operations": 0,
            "fsyncs": 0,
            "resends": 0,
            "stalls": 0,
        }


def ready(keeper: Keeper) -> Answer:
    deadline_s = time.monotonic() + READY_S
    while not (keeper.isReady() and keeper.getStatus()["leader"] is not None):
        if time.monotonic() > deadline_s:
            raise TimeoutError("there is no leader")
        time.sleep(0.01)
    return {"is_leader": bool(keeper.getStatus()["leader"] == keeper.selfNode)}


def term(keeper: Keeper) -> int:
    return int(keeper.getStatus()["raft_term"])


def cpu_s() -> float:
    """Of this process and of those that wrote its dumps."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    dumps = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + dumps.ru_utime + dumps.ru_stime


def serve(arguments: dict[str, Any]) -> None:
    complaints = Complaints()
    logging.getLogger("pysyncobj").addHandler(complaints)
    logging.getLogger("pysyncobj").propagate = False
    directory = Path(arguments["directory"])
    addresses = {name: f"127.0.0.1:{port}" for name, port in arguments["peers"].items()}
    address = addresses.pop(arguments["name"])
    conf = SyncObjConf(
        journalFile=str(directory / "journal"),
        fullDumpFile=str(directory / "dump"),
        connectionRetryTime=0.2,  # 5 s otherwise, and the first attempt may come too early
        **arguments["settings"],
    )
    keeper = Keeper(address, list(addresses.values()), conf)
    load = Load(keeper, 0, complaints)
    for line in sys.stdin:
        command = json.loads(line)
        answer: Answer = {}
        match command["do"]:
            case "ready":
                answer = ready(keeper)
            case "begin":
                load = Load(keeper, command["operators"], complaints)
                load.start()
            case "halt":
                answer = load.halt()
            case _:
                pass
        print(json.dumps(answer), flush=True)
        if command["do"] == "stop":
            break
    os._exit(0)  # its threads would not end


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
