"""The thread of a client, and how it ends."""

import asyncio
import threading
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

import ritornello.sync
from ritornello import Options
from ritornello.core.thread import CoreThread, Mailbox, aside
from ritornello.errors import ClientClosed, DeadlineExceeded, RitornelloError
from ritornello.testing import LocalServer


def _end_the_program() -> str:
    raise SystemExit("no credentials")


async def test_what_would_end_the_program_is_an_error_like_others() -> None:
    with pytest.raises(RuntimeError, match="SystemExit: no credentials"):
        await aside(_end_the_program)


def test_a_token_that_ends_the_program_does_not_end_the_client() -> None:
    options = Options(close_s=0.1)
    with ritornello.sync.Client(
        "http://127.0.0.1:9", token=_end_the_program, options=options
    ) as client:
        for _ in range(2):
            with pytest.raises(DeadlineExceeded, match="SystemExit: no credentials"):
                client.get((7, "x"), timeout=0.5)
            with pytest.raises(DeadlineExceeded, match="SystemExit: no credentials"):
                client.themes(timeout=0.5)


def test_whoever_waits_is_told_when_the_thread_ends_by_itself() -> None:
    with LocalServer() as local, local.sync_client(Options(close_s=0.1)) as client:
        found: Future[BaseException] = Future()

        def ask() -> None:
            try:
                client.acquire(7, wait=60)
            except RitornelloError as error:
                found.set_result(error)

        session = client.new(7)
        threading.Thread(target=ask, daemon=True).start()
        with local.faults.withhold(of="append"):
            thread = client.core._thread  # noqa: SLF001
            thread.loop.call_soon_threadsafe(_end_the_program)
            assert isinstance(found.result(20), ClientClosed)
        for call in (session.touch, client.themes, lambda: client.get("1")):
            with pytest.raises(RitornelloError):
                call()
        assert not client.core.is_open


@pytest.mark.parametrize("ends_by_itself", [False, True])
def test_nobody_waits_for_a_thread_that_is_over(
    ends_by_itself: bool,
) -> None:
    lasts: list[str] = []
    late: list[Future[None]] = []

    async def last() -> None:
        lasts.append("last")

    class Thread(CoreThread):
        def _end_tasks(self) -> None:
            super()._end_tasks()
            # As from another thread, when the loop runs no more.
            self.mailbox.post(lasts.append, "posted")
            if ends_by_itself:
                late.append(self.run(asyncio.sleep(0)))

    thread = Thread("test", last)
    thread.start()
    waiting = thread.run(asyncio.sleep(60))
    assert thread.run(asyncio.sleep(0, "answered")).result(20) == "answered"
    if ends_by_itself:
        thread.loop.call_soon_threadsafe(_end_the_program)
    else:
        thread.stop()
    with pytest.raises(CancelledError):
        waiting.result(20)
    thread._thread.join(20)  # noqa: SLF001
    assert lasts == ["last", "posted"]
    for one in late:
        with pytest.raises(ClientClosed):
            one.result(20)
    with pytest.raises(ClientClosed):
        thread.run(asyncio.sleep(0))
    with pytest.raises(RuntimeError, match="closed"):
        thread.mailbox.post(lasts.append, "too late")
    thread.stop()
    assert lasts == ["last", "posted"]


def test_what_is_posted_to_a_loop_that_is_closed_is_not_kept() -> None:
    loop = asyncio.new_event_loop()
    box, made = Mailbox(loop), list[int]()
    box.post(made.append, 1)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            box.post(made.append, 2)
    box.close()
    assert made == [1]


def test_a_signal_s_handler_may_ask_while_its_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers run between any two steps of the thread that they interrupt."""
    with LocalServer() as local, local.sync_client() as client:
        answers: list[object] = []
        run = asyncio.run_coroutine_threadsafe

        def interrupted(*given: Any) -> Any:
            monkeypatch.undo()
            answers.append(client.themes())
            return run(*given)

        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        thread = threading.Thread(target=lambda: answers.append(client.themes()), daemon=True)
        thread.start()
        thread.join(10)
        assert len(answers) == 2
