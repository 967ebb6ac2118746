"""What the server's distribution has for tests. It is found by name, and imported by nobody."""

from importlib.metadata import entry_points
from typing import Any

GROUP = "ritornello.testing"


class ServerMissing(Exception):
    """The server's distribution is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "the distribution `ritornello-server` is not installed here, and a test's server comes "
            "from it: run `pip install ritornello-server`, with the Python that runs the tests"
        )


def load(name: str) -> Any:  # noqa: ANN401 - it is known by its name alone
    """What the server offers under a name. Raises `ServerMissing`."""
    for one in entry_points(group=GROUP, name=name):
        return one.load()
    raise ServerMissing
