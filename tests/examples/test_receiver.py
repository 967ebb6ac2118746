"""The receiver refuses older operators, and notes each delivery, taken or not."""

from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient as AnyClient

from examples.webhooks.events import Event
from examples.webhooks.journal import Attempt, Verdict, read
from examples.webhooks.receiver import Receiver, is_poisoned

Deliver = Callable[..., Awaitable[int]]
TestClient = AnyClient[Any, Any]
POISONED = next(key for key in map(str, count()) if is_poisoned(key))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
async def client(journal: Path, aiohttp_client: Callable[..., Awaitable[TestClient]]) -> TestClient:
    """Asks a receiver that has no trouble but poison."""
    return await aiohttp_client(Receiver(journal, seed=1, trouble=0.0).app())


@pytest.fixture
def deliver(client: TestClient) -> Deliver:
    async def found(key: str, number: int, session: str, epoch: int) -> int:
        headers = {
            "Webhook-Work": "worker.1",
            "Webhook-Session": session,
            "Webhook-Epoch": str(epoch),
        }
        data = Event("run", "c", key, number, "", "", "").line()
        async with client.post("/deliver", data=data, headers=headers) as answer:
            return answer.status

    return found


async def test_older_operators_are_refused_and_noted(deliver: Deliver, journal: Path) -> None:
    assert await deliver("k", 1, "a", 2) == 200
    assert await deliver("k", 1, "a", 1) == 409
    assert await deliver("k", 2, "b", 1) == 200
    assert await deliver("k", 2, "a", 9) == 409
    assert await deliver("m", 1, "a", 1) == 200
    taken, late = Verdict.TAKEN, Verdict.LATE
    assert list(read(journal)) == [
        Attempt("run", "k", 1, 0xA, 2, "worker.1", taken),
        Attempt("run", "k", 1, 0xA, 1, "worker.1", late),
        Attempt("run", "k", 2, 0xB, 1, "worker.1", taken),
        Attempt("run", "k", 2, 0xA, 9, "worker.1", late),
        Attempt("run", "m", 1, 0xA, 1, "worker.1", taken),
    ]


async def test_what_is_poisoned_is_noted_until_it_is_repaired(
    deliver: Deliver, client: TestClient, journal: Path
) -> None:
    assert await deliver(POISONED, 1, "a", 1) == 422
    async with client.post("/repair") as answer:
        assert answer.status == 200
    assert await deliver(POISONED, 1, "a", 2) == 200
    assert [one.verdict for one in read(journal)] == [Verdict.FAILED, Verdict.TAKEN]
