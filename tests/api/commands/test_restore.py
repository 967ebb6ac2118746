"""A new cluster out of a backup has all that was in it, and nothing in it is taken for the old."""

import re
import shutil
import time
from pathlib import Path

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from api.commands.disk import read_checkpoint
from api.commands.rebirth import (
    EPOCH_STEP,
    INDEX_STEP,
    REASON,
    REVISION_STEP,
    SESSION_STEP,
    RestoreError,
    make_member,
    release_all,
)
from api.commands.restore import new_cluster_id
from api.statuses import ExitStatus
from cluster import MisalignedError, Node, OperationError
from cluster.network.settings import CLUSTER_CHARS_MAX
from cluster.storage.errors import DiskFullError, WrongIdentityError
from cluster.storage.records import Identity
from cluster.storage.state_file import StateFile
from state import Acquired, Cause, Created, Phase, StateMachine, encode, encode_batch
from state.errors import LeaseLost, RevisionMismatch
from state.limits import SEQUENCE_MAX
from state.operations import (
    Acquire,
    AcquireSession,
    Append,
    Idempotent,
    New,
    Remove,
    Store,
    Tick,
    Touch,
    Unpark,
)
from tests.api.commands.disks import (
    HOUR_MS,
    OLD,
    alone,
    grow,
    open_to_others,
    run,
    running,
    trio,
)
from tests.state.workload import Workload

NEW_CLUSTER = re.compile(r"new cluster (\S+)")


@pytest.fixture
async def backup(tmp_path: Path) -> Path:
    """A backup of a cluster of one that was stopped in order: its checkpoint."""
    await grow(tmp_path / "old")
    return (tmp_path / "old" / "state.db").rename(tmp_path / "backup.db")


def restored(result: Result) -> str:
    """The name of the new cluster."""
    assert result.exit_code == ExitStatus.STOPPED, result.output
    found = NEW_CLUSTER.search(result.stdout)
    assert found is not None
    return found[1]


async def failure_of(node: Node, operation: object) -> object:
    with pytest.raises(OperationError) as caught:
        await node.submit(operation)  # type: ignore[arg-type]
    return caught.value.failure


# All is there


async def test_three_restored_members_go_on_with_the_work(tmp_path: Path, backup: Path) -> None:
    directories = [tmp_path / f"member-{number}" for number in (1, 2, 3)]
    words = ("restore", "--from", backup, "--data-directory")
    cluster_id = restored(run(*words, directories[0]))
    for number in (2, 3):
        names = ("--node-id", f"node-{number}", "--cluster-id", cluster_id)
        assert restored(run(*words, directories[number - 1], *names)) == cluster_id
    old = read_checkpoint(backup).machine
    states = [read_checkpoint(one / "state.db").machine for one in directories]
    assert len({one.digest() for one in states}) == 1
    async with running(trio(directories, cluster_id)) as nodes:
        for node in nodes:
            machine = node.machine
            assert machine.session_count == 12
            for session in old.sessions():
                again = machine.session(session.session_id)
                assert again is not None
                assert (again.key, again.data, again.theme.theme_id, again.priority) == (
                    session.key,
                    session.data,
                    session.theme.theme_id,
                    session.priority,
                )
            theme = machine.theme(7)
            assert theme is not None
            assert theme.policy.max_attempts == 5
        first, second, _ = nodes
        acquired = await first.submit(Acquire((7,), 20, consumer=first.consumer(b"w")))
        assert isinstance(acquired, tuple)
        # Eight were due, of which one was parked; the two that were active are among them.
        assert len(acquired) == 7
        for one in acquired:
            await second.submit(Append(one.session_id, one.epoch, b"; again"))
            await first.submit(Remove(one.session_id, one.epoch))
        await nodes[2].read()
        assert nodes[2].machine.session_count == 5


async def test_members_with_empty_disks_join_one_at_a_time(tmp_path: Path, backup: Path) -> None:
    directories = [tmp_path / f"member-{number}" for number in (1, 2, 3)]
    cluster_id = restored(run("restore", "--from", backup, "--data-directory", directories[0]))
    members = trio(directories, cluster_id)
    async with running(members[:2]) as nodes:
        assert [node.machine.session_count for node in nodes] == [12, 12]
        async with running(members[2:]) as (third,):
            assert third.machine.session_count == 12
            await third.submit(New(7, b"more"))
            assert third.machine.session_count == 13


async def test_what_was_active_is_due_and_has_its_attempt_back(
    tmp_path: Path, backup: Path
) -> None:
    old = read_checkpoint(backup).machine
    active = {one.session_id: one for one in old.sessions() if one.phase is Phase.ACTIVE}
    assert len(active) == 3
    cluster_id = restored(run("restore", "--from", backup, "--data-directory", tmp_path / "new"))
    async with running([alone(tmp_path / "new", cluster_id)]) as (node,):
        assert not list(node.machine.consumers())
        for session_id, before in active.items():
            session = node.machine.session(session_id)
            assert session is not None
            assert session.phase in {Phase.READY, Phase.STORED}
            assert session.due_ms <= node.machine.now_ms
            assert session.attempts == before.attempts - 1
            assert (session.history[-1].cause, session.last_reason) == (Cause.SHUTDOWN, REASON)
        parked = node.machine.session((7, b"key-2"))
        assert parked is not None
        assert (parked.phase, parked.last_reason) == (Phase.PARKED, "broken")
        await node.submit(Unpark(parked.session_id))


@pytest.mark.usefixtures("usual_umask")
async def test_all_of_it_is_for_its_owner_alone(tmp_path: Path, backup: Path) -> None:
    cluster_id = restored(run("restore", "--from", backup, "--data-directory", tmp_path / "new"))
    assert open_to_others(tmp_path / "new") == []
    async with running([alone(tmp_path / "new", cluster_id)]) as (node,):
        await node.submit(New(7, b"more"))
        assert open_to_others(tmp_path / "new") == []


# Nothing is taken for what it is not


async def test_nobody_of_the_old_cluster_is_heard(tmp_path: Path, backup: Path) -> None:
    """The old cluster went on after the backup: its clients have numbers that the backup has not.

    In the new one they must not mean something else.
    """
    old = tmp_path / "old"
    shutil.copy(backup, old / "state.db")  # the disk as it was
    async with running([alone(old)]) as (node,):
        acquired = await node.submit(AcquireSession((7, b"key-5")))
        assert isinstance(acquired, Acquired)
        revision = acquired.revision
        created = await node.submit(New(8, None, b"after the backup"))
        assert isinstance(created, Created)
        for _ in range(20):
            await node.submit(Touch(created.session_id, created.epoch))
        keyed = await node.submit(New(8, b"after", b"of the old cluster"))
        assert isinstance(keyed, Created)
        old_index = node.machine.applied_index
    cluster_id = restored(run("restore", "--from", backup, "--data-directory", tmp_path / "new"))
    async with running([alone(tmp_path / "new", cluster_id)]) as (node,):
        machine = node.machine
        # The same session, activated again as in the old cluster: another epoch and revision.
        again = await node.submit(AcquireSession((7, b"key-5")))
        assert isinstance(again, Acquired)
        assert again.session_id == acquired.session_id
        assert again.epoch >= acquired.epoch + EPOCH_STEP - 1
        assert again.revision >= revision + REVISION_STEP - 1
        lost = await failure_of(node, Append(acquired.session_id, acquired.epoch, b"late"))
        assert isinstance(lost, LeaseLost)
        await node.submit(Store(again.session_id, again.epoch))
        target = acquired.session_id
        mismatch = await failure_of(node, Append(target, None, b"late", if_revision=revision))
        assert isinstance(mismatch, RevisionMismatch)
        # A new session has no id that the old cluster may have given to another.
        assert machine.session(created.session_id) is None
        fresh = await node.submit(New(8, None, b"fresh"))
        assert isinstance(fresh, Created)
        assert fresh.session_id > created.session_id + SESSION_STEP // 2
        # Nor, if it has a key, an epoch that the old cluster may have given to another.
        await node.submit(New(8, b"after", b"of the new cluster"))
        lost = await failure_of(node, Remove((8, b"after"), keyed.epoch))
        assert isinstance(lost, LeaseLost)
        assert machine.applied_index > old_index + INDEX_STEP // 2


async def test_idempotency_keys_are_remembered(tmp_path: Path, backup: Path) -> None:
    cluster_id = restored(run("restore", "--from", backup, "--data-directory", tmp_path / "new"))
    async with running([alone(tmp_path / "new", cluster_id)]) as (node,):
        before = node.machine.session_count
        again = await node.submit(Idempotent(b"idem", HOUR_MS, New(8, None, b"once")))
        assert isinstance(again, Created)
        assert node.machine.session_count == before


async def test_a_member_whose_clock_is_behind_may_propose(tmp_path: Path) -> None:
    """The old cluster knew its name with a higher incarnation than it will have."""
    machine = StateMachine()
    far = time.time_ns() // 1_000_000 + 1000 * HOUR_MS
    for index, name in enumerate(("node-1", "node-2"), 1):
        batch = encode_batch(name, far, 0, 1, [encode(Tick(5)), encode(New(7, name.encode()))])
        assert machine.apply(index, batch).failure is None
    release_all(machine)
    make_member(tmp_path / "new", Identity("new", "node-1"), machine, 1, 2)
    async with running([alone(tmp_path / "new", "new")]) as (node,):
        assert isinstance(await node.submit(New(7, b"own")), Created)
        assert node.machine.session_count == 3


async def test_a_restored_disk_is_no_member_of_the_old_cluster(
    tmp_path: Path, backup: Path
) -> None:
    result = run("restore", "--from", backup, "--data-directory", tmp_path / "new")
    assert restored(result) != OLD
    with pytest.raises(WrongIdentityError):
        await Node(alone(tmp_path / "new", OLD)).start()


async def test_it_and_an_old_member_do_not_talk(tmp_path: Path, backup: Path) -> None:
    directories = [tmp_path / name for name in ("a", "b", "c")]
    restored(run("restore", "--from", backup, "--data-directory", directories[0]))
    members = trio(directories, OLD)
    cluster_id = read_checkpoint(directories[0] / "state.db").cluster_id
    stranger = alone(directories[0], cluster_id)
    stranger = type(stranger)(
        directories[0],
        cluster_id=cluster_id,
        bind=members[0].bind,
        peers=members[0].peers,
        journal=stranger.journal,
        replica=stranger.replica,
        tunes_collector=False,
    )
    node = Node(stranger)
    await node.start()
    try:
        async with running(members[1:]) as old:
            await old[0].submit(New(7, b"x"))
            await old[1].read()
            assert not any(node.status().peers.values())
            assert [one.status().peers["node-1"] for one in old] == [False, False]
            assert [one.machine.session_count for one in old] == [1, 1]
    finally:
        await node.stop()


def test_a_new_name_is_new_and_does_not_grow() -> None:
    once = new_cluster_id("payments")
    assert re.fullmatch(r"payments-r[0-9a-f]{8}", once)
    assert new_cluster_id("payments") != once
    assert re.fullmatch(r"payments-r[0-9a-f]{8}", new_cluster_id(once))
    assert len(new_cluster_id("x" * CLUSTER_CHARS_MAX)) <= CLUSTER_CHARS_MAX


@given(st.integers(0, 10_000), st.integers(0, 400))
@settings(max_examples=25)
def test_any_state_is_kept(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    machine = StateMachine()
    for index, step in enumerate(Workload(seed).take(count), 1):
        machine.apply(index, step.batch)
    before = {
        one.session_id: (one.key, tuple(one.chunks), one.created_ms, one.epoch, one.priority)
        for one in machine.sessions()
    }
    themes = {one.theme_id: (one.policy, one.paused) for one in machine.themes()}
    index = machine.applied_index
    released = release_all(machine)
    assert all(one.phase is not Phase.ACTIVE for one in machine.sessions())
    directory = tmp_path_factory.mktemp("member") / "data"
    made = make_member(directory, Identity("new", "node-1"), machine, machine.term, index)
    assert {
        one.session_id: (one.key, tuple(one.chunks), one.created_ms, one.epoch, one.priority)
        for one in made.sessions()
    } == {
        session_id: (key, chunks, created, epoch + EPOCH_STEP, priority)
        for session_id, (key, chunks, created, epoch, priority) in before.items()
    }
    assert {one.theme_id: (one.policy, one.paused) for one in made.themes()} == themes
    assert (made.now_ms, made.limits) == (machine.now_ms, machine.limits)
    assert not list(made.consumers())
    assert released <= len(before)
    shutil.rmtree(directory)


# Refused


async def test_a_fresh_volume_is_empty(tmp_path: Path, backup: Path) -> None:
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    restored(run("restore", "--from", backup, "--data-directory", tmp_path / "volume"))


async def test_the_old_name_is_refused(tmp_path: Path, backup: Path) -> None:
    words = ("restore", "--from", backup, "--data-directory", tmp_path / "new", "--cluster-id", OLD)
    result = run(*words)
    assert result.exit_code == ExitStatus.SETTINGS
    assert "leave --cluster-id out" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["--cluster-id", "--node-id"])
async def test_names_that_are_none_are_refused(tmp_path: Path, backup: Path, name: str) -> None:
    words = ("restore", "--from", backup, "--data-directory", tmp_path / "new", name, "a/b")
    result = run(*words)
    assert result.exit_code == ExitStatus.SETTINGS
    assert "ASCII letters" in result.stderr


def test_a_backup_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = run("restore", "--from", "gone", "--data-directory", tmp_path / "new")
    assert result.exit_code == ExitStatus.SETTINGS
    assert "'gone' does not exist" in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"", b"no database " * 1000])
def test_what_is_no_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "backup.db"
    file.write_bytes(content)
    result = run("restore", "--from", file, "--data-directory", tmp_path / "new")
    assert result.exit_code == ExitStatus.DISK
    assert str(file) in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_damaged_backup_is_refused(tmp_path: Path, backup: Path) -> None:
    content = bytearray(backup.read_bytes())
    place = content.find(b"data-3")
    content[place] ^= 1
    backup.write_bytes(content)
    result = run("restore", "--from", backup, "--data-directory", tmp_path / "new")
    assert result.exit_code == ExitStatus.DISK
    assert "digest" in result.stderr
    assert not (tmp_path / "new").exists()


# Cut short


async def test_nothing_stays_of_what_failed(
    tmp_path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskFullError("state.db", "write", OSError(28, "No space left on device"))

    monkeypatch.setattr(StateFile, "commit", full)
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        result = run("restore", "--from", backup, "--data-directory", tmp_path / name)
        assert result.exit_code == ExitStatus.DISK
        assert "No space left" in result.stderr
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "there").iterdir()) == []


async def test_half_of_it_does_not_start(tmp_path: Path, backup: Path) -> None:
    """The journal comes first: without its checkpoint it is no node, and no new one either."""
    cluster_id = restored(run("restore", "--from", backup, "--data-directory", tmp_path / "new"))
    (tmp_path / "new" / "state.db").unlink()
    with pytest.raises(MisalignedError, match="missing"):
        await Node(alone(tmp_path / "new", cluster_id)).start()


def test_ids_that_ran_out_are_told(tmp_path: Path) -> None:
    machine = StateMachine()
    machine.apply(1, encode_batch("n", 1, 1, 1, [encode(New(7, b"a", repeat_after_ms=0))]))
    machine._tables.last_session_id = 2**48 - 5  # noqa: SLF001 - it would take too long
    with pytest.raises(RestoreError, match="not enough session ids"):
        make_member(tmp_path / "new", Identity("new", "node-1"), machine, 1, 1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("counter", ["key_epoch", "epoch", "revision"])
def test_counters_that_ran_out_are_told(tmp_path: Path, counter: str) -> None:
    machine = StateMachine()
    machine.apply(1, encode_batch("n", 1, 1, 1, [encode(New(7, b"a", repeat_after_ms=0))]))
    (session,) = machine.sessions()
    owner = machine._tables if counter == "key_epoch" else session  # noqa: SLF001 - as above
    setattr(owner, counter, SEQUENCE_MAX - EPOCH_STEP + 1)
    with pytest.raises(RestoreError, match=f"{counter} is too high"):
        make_member(tmp_path / "new", Identity("new", "node-1"), machine, 1, 1)
    assert not (tmp_path / "new").exists()


async def test_it_can_be_restored_again_and_again(tmp_path: Path, backup: Path) -> None:
    file, names = backup, set()
    for number in range(4):
        directory = tmp_path / f"life-{number}"
        names.add(restored(run("restore", "--from", file, "--data-directory", directory)))
        file = directory / "state.db"
    assert len(names) == 4
    (name,) = {read_checkpoint(file).cluster_id}
    async with running([alone(file.parent, name)]) as (node,):
        assert node.machine.session_count == 12
        await fill_more(node)


async def fill_more(node: Node) -> None:
    created = await node.submit(New(7, b"another", b"x"))
    assert isinstance(created, Created)
    await node.submit(Remove(created.session_id, created.epoch))
