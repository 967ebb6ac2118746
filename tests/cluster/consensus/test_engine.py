"""What is relied on inside PySyncObj, and that none of it unpickles."""

import hashlib
import inspect
import pickle
import re
from collections.abc import Callable

import pysyncobj.pickle
import pytest
from pysyncobj import syncobj

from cluster.consensus import engine
from cluster.consensus.engine import (
    LIBRARY_SHA256,
    LIBRARY_VERSION,
    WrongLibraryError,
    check_command,
    check_library,
)
from cluster.consensus.log import NO_OP
from state import encode, encode_batch
from state.operations import Barrier
from tests.simulation.cluster import simulate

# Overridden or used under the names that Python gives private ones.
PRIVATE_METHODS = (
    "_SyncObj__connectedToAnyone",
    "_SyncObj__generateRaftTimeout",
    "_SyncObj__applyLogEntries",
    "_SyncObj__tryLogCompaction",
    "_SyncObj__sendAppendEntries",
)


def test_the_library_is_the_one_that_is_known() -> None:
    check_library()
    source = inspect.getsource(syncobj)
    assert syncobj.VERSION == LIBRARY_VERSION
    assert hashlib.sha256(source.encode()).hexdigest() == LIBRARY_SHA256


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncobj, "VERSION", "0.3.18")
    with pytest.raises(WrongLibraryError, match=r"0\.3\.17 is needed, but this is 0\.3\.18"):
        check_library()


def test_another_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LIBRARY_SHA256", "0" * 64)
    with pytest.raises(WrongLibraryError, match="its source hashes to"):
        check_library()


@pytest.mark.parametrize("name", PRIVATE_METHODS)
def test_what_is_replaced_exists_and_is_called_by_the_library(name: str) -> None:
    assert callable(getattr(syncobj.SyncObj, name))
    assert name in vars(engine._Raft)  # noqa: SLF001
    called = "self." + name.removeprefix("_SyncObj")
    assert called in inspect.getsource(syncobj)


def test_a_leader_steps_down_as_the_library_does_it() -> None:
    assert callable(syncobj.SyncObj._SyncObj__setState)  # noqa: SLF001
    source = inspect.getsource(syncobj.SyncObj._onTick)  # noqa: SLF001
    assert re.search(r"__setState\(_RAFT_STATE.FOLLOWER\)\s+self.__raftLeader = None", source)


def test_batches_are_carried_unseen() -> None:
    assert check_command(encode_batch("a", 1, 0, 0, [encode(Barrier())]))
    assert check_command(NO_OP)
    for first in range(engine.FIRST_BYTE_MIN):
        assert not check_command(bytes((first, 1)))


def test_nothing_is_ever_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []  # the library hides some exceptions, so it is counted

    def refuse(name: str) -> Callable[..., None]:
        def refused(*_: object, **__: object) -> None:
            reached.append(name)
            raise AssertionError(name)

        return refused

    for module in (pickle, pysyncobj.pickle, pysyncobj.pickle.pickle):
        for name in ("loads", "load", "dumps", "dump"):
            monkeypatch.setattr(module, name, refuse(name))
    # Elections, batches, power cuts, checkpoints and snapshots: the first seed that has them all.
    outcomes = map(simulate, range(16, 40))
    assert any(
        one.acknowledged
        and one.checkpoints
        and one.installs
        and one.terms > 1
        and {"power", "power_all"} & one.faults.keys()
        for one in outcomes
    )
    assert not reached
