"""The plug-in in projects of users."""

import re
import subprocess
import sys

import pytest

from tests.sdk.testing.projects import run

pytest_plugins = ["pytester"]

ASYNCIO = """
import pytest

pytestmark = pytest.mark.asyncio

async def test_it(ritornello_server):
    async with ritornello_server.client() as client:
        created = await client.new(7, after=60)
        ritornello_server.clock.advance(60)
        async with client.acquire(7, wait=5) as session:
            assert session.id == created.id
            await session.remove()
"""

AIOHTTP = """
from aiohttp import web
import pytest

@pytest.mark.asyncio
async def test_it(aiohttp_client, ritornello_server):
    async with ritornello_server.client() as client:
        async def order(request):
            created = await client.new(7, await request.read(), after=0)
            return web.json_response({"id": created.id})

        app = web.Application()
        app.router.add_post("/orders", order)
        shop = await aiohttp_client(app)
        answer = await shop.post("/orders", data=b"ship it")
        id = (await answer.json())["id"]
        assert (await client.get(id)).data == b"ship it"
"""

SYNC = """
def test_one(ritornello_server, ritornello_sync_client):
    ritornello_sync_client.new(7, after=0)
    assert ritornello_sync_client.theme(7).ready == 1

def test_each_has_its_own(ritornello_server, ritornello_sync_client):
    assert ritornello_sync_client.theme(7).ready == 0
    ritornello_sync_client.new(7).append(b"held at the end of the test")
"""

CLUSTER = """
def test_it_fails(ritornello_cluster):
    cluster = ritornello_cluster(1)
    with cluster.sync_client() as client:
        client.new(7, after=0)
    assert False, "as it shall"
"""

# As if nothing had entry points of that group.
WITHOUT_SERVER = """
import importlib.metadata
import pytest

@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    found = importlib.metadata.entry_points
    monkeypatch.setattr(
        "ritornello.testing.found.entry_points",
        lambda **given: () if given["group"] == "ritornello.testing" else found(**given),
    )
"""


@pytest.mark.parametrize(("test", "passed"), [(ASYNCIO, 1), (AIOHTTP, 1), (SYNC, 2)])
def test_a_project_uses_the_server(pytester: pytest.Pytester, test: str, passed: int) -> None:
    pytester.makepyfile(test)
    run(pytester).assert_outcomes(passed=passed)


def test_the_logs_of_nodes_are_shown_when_a_test_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(CLUSTER)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*as it shall*", "*log of node-0 of cluster 0*", "*serves http:*"])


@pytest.mark.parametrize("fixture", ["ritornello_server", "ritornello_sync_client"])
def test_without_the_server_it_says_what_to_install(
    pytester: pytest.Pytester, fixture: str
) -> None:
    pytester.makeconftest(WITHOUT_SERVER)
    pytester.makepyfile(f"def test_it({fixture}): pass")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*pip install ritornello-server*"])
    assert "Traceback" not in result.stdout.str()


def test_without_the_server_there_is_no_cluster(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(WITHOUT_SERVER)
    pytester.makepyfile("def test_it(ritornello_cluster): ritornello_cluster(3)")
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*pip install ritornello-server*"])


def test_the_fixtures_are_listed_with_what_they_are(pytester: pytest.Pytester) -> None:
    listed = run(pytester, "--fixtures").stdout.str()
    for name in ("ritornello_server", "ritornello_sync_client", "ritornello_cluster"):
        assert re.search(rf"^{name} .*\n    \w", listed, re.MULTILINE), name


def test_who_does_not_use_it_does_not_pay_for_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_imported():
            found = {name.partition(".")[0] for name in sys.modules}
            assert "ritornello_pytest" in found
            assert not found & {"ritornello", "aiohttp", "msgspec", "api", "cluster", "state"}
        """
    )
    # Without a plug-in that imports aiohttp itself.
    run(pytester, "-pno:aiohttp").assert_outcomes(passed=1)


def test_the_client_alone_imports_nothing_of_the_server() -> None:
    says = (
        "import sys, ritornello.testing, ritornello_pytest\n"
        "print(sorted({'api', 'cluster', 'state'} & set(sys.modules)))"
    )
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", says], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"
