"""What pytest finds: fixtures that are there for whoever asks for them, and cost nothing else.

pytest loads this in every project of an environment. So it stands beside `ritornello`, which it
does not import before a fixture is used, and changes nothing: no option, no marker, no setting.
"""

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import ritornello.sync
    from ritornello.testing import Cluster, LocalServer

_CLUSTERS: "pytest.StashKey[list[Cluster]]" = pytest.StashKey()


@pytest.fixture
def ritornello_server() -> "Iterator[LocalServer]":
    """A server in memory, new for each test, with a clock that can be moved, and faults."""
    from ritornello.testing.found import ServerMissing  # noqa: PLC0415 - for who needs it
    from ritornello.testing.local import LocalServer  # noqa: PLC0415

    try:
        made = LocalServer()
    except ServerMissing as error:
        pytest.fail(str(error), pytrace=False)
    with made as server:
        yield server


@pytest.fixture
def ritornello_sync_client(
    ritornello_server: "LocalServer",
) -> "Iterator[ritornello.sync.Client]":
    """A client of `ritornello_server`, for tests without an event loop."""
    with ritornello_server.sync_client() as client:
        yield client


@pytest.fixture
def ritornello_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Callable[..., Cluster]]":
    """What starts clusters of real processes: so many nodes. They are ended after the test."""
    from ritornello.testing.cluster import Cluster  # noqa: PLC0415 - for who needs it
    from ritornello.testing.found import ServerMissing  # noqa: PLC0415

    # Shown if the test fails, which is known before they are ended.
    started = request.node.stash.setdefault(_CLUSTERS, [])

    def start(nodes: int = 3, *, flags: tuple[str, ...] = ()) -> Cluster:
        directory = tmp_path_factory.mktemp("cluster")
        try:
            cluster = Cluster(nodes, directory=directory, flags=flags)
        except ServerMissing as error:
            pytest.fail(str(error), pytrace=False)
        started.append(cluster)
        cluster.start()
        return cluster

    try:
        yield start
    finally:
        for cluster in started:
            cluster.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the nodes' logs below a test that has failed."""
    report = yield
    if report.failed:
        started: list[Cluster] = item.stash.get(_CLUSTERS, [])
        for number, cluster in enumerate(started):
            for name, log in cluster.logs.items():
                if log:
                    report.sections.append((f"log of {name} of cluster {number}", log))
    return report
