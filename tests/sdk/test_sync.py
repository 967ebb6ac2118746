"""The front without an event loop, against a real server."""

import inspect
import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

import ritornello
from ritornello import Handled, NoVerdictWarning, Remove, Verdict, WorkerOptions
from ritornello.errors import LeaseLost, SessionNotFound
from ritornello.sync import Client, Session, Worker
from tests.api.servers import Running

THEME, OTHER = 7, 8


@pytest.fixture
def client(still_client: Client) -> Client:
    return still_client


def test_a_life(client: Client) -> None:
    created = client.new(THEME, "ship it", key="order-1", after=0)
    session = client.acquire(THEME, wait=5)
    assert session is not None
    with session:
        assert (session.id, session.data) == (created.id, b"ship it")
        session.append(b"; packed")
        session.replace("shipped")
        session.touch()
        session.remove()
    with pytest.raises(SessionNotFound):
        client.get(created.id)
    assert client.acquire(THEME, wait=0.1) is None


def test_how_a_context_ends(client: Client) -> None:
    with pytest.warns(NoVerdictWarning), client.new(THEME) as session:
        pass
    assert client.get(session.id).history[-1].cause == "failed"
    with pytest.raises(KeyError), client.new(THEME) as session:
        raise KeyError("secret")
    assert client.get(session.id).history[-1].reason == "KeyError"
    with pytest.raises(KeyboardInterrupt), client.new(THEME) as session:
        raise KeyboardInterrupt
    view = client.get(session.id)
    assert (view.attempts, view.history[-1].cause) == (0, "shutdown")


def test_a_lost_lease_is_told_by_the_next_operation(client: Client, still_node: Running) -> None:
    with pytest.raises(LeaseLost), client.new(THEME) as session:
        with Client(still_node.url) as other:
            other.resume(session.id, session.epoch).store(60)
        deadline_s = time.monotonic() + 10
        while not session.is_lost and time.monotonic() < deadline_s:
            time.sleep(0.01)
        with pytest.raises(LeaseLost):
            session.append(b"x")


def test_many_threads_share_a_client(client: Client) -> None:
    def live(number: int) -> bytes:
        with client.new(THEME, b"%d" % number) as session:
            session.append(b"x")
            data = client.get(session.id).data
            session.remove()
        return data

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(live, range(200)))
    assert found == [b"%dx" % number for number in range(200)]


def test_the_rest(client: Client) -> None:
    client.new(THEME, b"a", key="k", after=60)
    assert client.append((THEME, "k"), b"b") == 2
    assert client.replace((THEME, "k"), b"c", if_revision=2) == 3
    client.store((THEME, "k"), after=0)
    with client.take((THEME, "k")) as session:
        with client.txn() as txn:
            txn.append(session, b"d")
            txn.new(OTHER, after=60)
        session.park("no such street")
    client.unpark((THEME, "k"))
    assert [one.key for one in client.list(THEME)] == ["k"]
    client.remove((THEME, "k"))
    assert client.set_policy(THEME, max_attempts=3).policy.max_attempts == 3
    assert client.pause_theme(THEME).paused
    assert not client.resume_theme(THEME).paused
    assert {one.theme for one in client.themes()} == {THEME, OTHER}
    assert client.theme(OTHER).stored == 1
    kinds = []
    for event in client.events(THEME, after="0"):
        kinds.append(event.kind)
        if event.kind == "removed":
            break
    assert kinds[0] == "created"
    assert client.cluster().leader == client.node
    assert client.transfer().leader == client.node


def test_who_is_interrupted_follows_no_events_any_more(client: Client, still_node: Running) -> None:
    history = still_node.front.history

    def interrupt() -> None:
        while not history.followers:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        list(client.events(THEME))
    interrupting.join()
    deadline_s = time.monotonic() + 20
    while history.followers and time.monotonic() < deadline_s:
        time.sleep(0.01)
    for _ in range(50):  # nor is another stream opened
        assert not history.followers
        time.sleep(0.01)


def test_a_worker_in_threads(client: Client) -> None:
    worker = Worker(client, options=WorkerOptions(concurrency=4, failures_max=None))
    lock = threading.Lock()
    active = most = 0
    done: set[str] = set()

    @worker.handler(THEME)
    def work(session: Session) -> Verdict:
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        session.append(b"x")
        time.sleep(0.02)
        with lock:
            active -= 1
            done.add(session.id)
            if len(done) == 20:
                worker.stop()
        return Remove()

    created = {client.new(THEME, after=0).id for _ in range(20)}
    worker.run()
    assert done == created
    assert most == 4
    assert list(client.list(THEME)) == []


def test_a_signal_stops_it(client: Client) -> None:
    worker = Worker(client)

    @worker.handler(THEME)
    def work(_: Session) -> Verdict:
        return Remove()

    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    worker.run(handle_signals=True)


def test_what_is_not_done_in_time_is_given_back(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    created = client.new(THEME, b"x", after=0)
    worker = Worker(client, options=WorkerOptions(concurrency=1, grace_s=0.1))
    handled: list[Handled] = []
    worker.on_handled(handled.append)
    go_on, ended = threading.Event(), threading.Event()

    @worker.handler(THEME)
    def handle(session: Session) -> Verdict:
        try:
            session.append(b"y")
            worker.stop()
            go_on.wait(20)
            with pytest.raises(LeaseLost):
                session.append(b"z")
            return Remove()
        finally:
            ended.set()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        worker.run()
        view = client.get(created.id)
        assert (view.phase, view.attempts, view.data) == ("ready", 0, b"xy")
        assert view.history[0].cause == "shutdown"
        assert view.history[0].reason == "whoever worked on it was told to stop"
        go_on.set()
        assert ended.wait(20)
    assert not handled
    assert "given back" in caplog.text


def test_what_is_interrupted_twice_is_given_back(
    client: Client, still_node: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = client.new(THEME, b"x", after=0)
    begun, finishing, go_on = threading.Event(), threading.Event(), threading.Event()
    finish = Worker._finish  # noqa: SLF001

    def told_finish(worker: Worker, threads: list[threading.Thread]) -> None:
        finishing.set()
        finish(worker, threads)

    monkeypatch.setattr(Worker, "_finish", told_finish)

    def interrupt() -> None:
        for event in (begun, finishing):
            assert event.wait(20)
            time.sleep(0.2)  # for what comes after it to wait
            os.kill(os.getpid(), signal.SIGINT)

    with Client(still_node.url) as own:
        worker = Worker(own, options=WorkerOptions(concurrency=1, grace_s=20))

        @worker.handler(THEME)
        def handle(_: Session) -> Verdict:
            begun.set()
            go_on.wait(20)
            return Remove()

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            worker.run()
        interrupting.join()
    go_on.set()
    view = client.get(created.id)
    assert (view.phase, view.attempts, view.history[-1].cause) == ("ready", 0, "shutdown")


def test_both_fronts_have_the_same_methods() -> None:
    pairs = (
        (ritornello.Client, Client),
        (ritornello.Session, Session),
        (ritornello.Worker, Worker),
        (ritornello.Txn, ritornello.sync.Txn),
    )
    for one, other in pairs:
        assert _public(one) - {"front"} == _public(other), one
        for name in _public(other):
            mine, theirs = getattr(one, name), getattr(other, name)
            if callable(mine):
                assert _parameters(mine) == _parameters(theirs), name


def _public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def _parameters(call: object) -> list[tuple[str, object, object]]:
    found = inspect.signature(call).parameters.values()  # type: ignore[arg-type]
    return [(one.name, one.kind, one.default) for one in found]
