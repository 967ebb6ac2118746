import os
import signal

import pytest
from hypothesis import HealthCheck, settings

LONG_MAX_EXAMPLES = 1000
LONG_STATEFUL_STEPS = 200

# Each profile states every setting that Hypothesis would otherwise choose by its surroundings:
# on a build machine it would derandomize and keep no database.
settings.register_profile(
    "default",
    parent=settings.get_profile("default"),
    deadline=None,  # wall-clock limits on single examples make tests flaky
    derandomize=False,
    print_blob=True,  # a failure shows the @reproduce_failure line that replays it
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long",
    parent=settings.get_profile("default"),
    max_examples=LONG_MAX_EXAMPLES,
    stateful_step_count=LONG_STATEFUL_STEPS,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: most tests wait for disks, leases and processes more than they compute."""
    asked = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    if asked is not None:
        return int(asked)
    cores = len(os.sched_getaffinity(0))
    return cores + cores // 2


def pytest_configure() -> None:
    """Processes that tests begin heed signals, also where the tests run behind `nohup` or `&`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite",
        action="store_true",
        default=False,
        help="rewrite the expectations of scenario transcripts and golden files",
    )


@pytest.fixture(scope="session")
def rewrite(pytestconfig: pytest.Config) -> bool:
    """Whether to write the expectations anew instead of checking them."""
    return bool(pytestconfig.getoption("--rewrite"))
