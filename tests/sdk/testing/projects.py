"""Projects of users, in which the plug-in is found as it is installed."""

import pytest

# As narrow as a user may have it: whatever warns, fails.
SETTINGS = """
[pytest]
filterwarnings = error
asyncio_default_fixture_loop_scope = function
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the tests of a project, in a process of their own."""
    pytester.makeini(SETTINGS)
    # These have no part in it, and take a second to be imported.
    without = ("-pno:cacheprovider", "-pno:schemathesis", "-pno:hypothesispytest")
    return pytester.runpytest_subprocess(*without, *arguments, timeout=60)
