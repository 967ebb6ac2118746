"""The state machine reads no clock, no randomness, no file and no socket while it works.

`make lint` shows that no module of the kind is imported; this shows that none is used, not even by
what is imported.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What `state` may import; all of it is pure at run time.
ALLOWED = {
    *("__future__", "bisect", "collections", "dataclasses", "enum", "functools", "hashlib"),
    *("heapq", "itertools", "msgpack", "operator", "sys", "types", "typing"),
}

FORBIDDEN = textwrap.dedent("""
    import builtins, io, os, random, socket, sys, threading, time, _thread
    from tests.state import workload

    def forbid(owner, name):
        def refuse(*_args, **_kwargs):
            raise AssertionError(f"{owner.__name__}.{name} was used")
        setattr(owner, name, refuse)

    seeded = random.Random  # the workload's own, made of a seed
    for owner, names in {
        builtins: ("open", "input", "print", "__import__", "eval", "exec", "compile"),
        io: ("open", "FileIO"),
        os: (
            "urandom", "open", "read", "write", "getpid", "getenv", "listdir", "stat", "times",
            "fork", "system", "getrandom", "putenv", "scandir",
        ),
        random: ("random", "randrange", "randint", "getrandbits", "choice", "seed", "SystemRandom"),
        socket: ("socket", "create_connection", "getaddrinfo", "gethostname"),
        time: (
            "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns",
            "process_time", "sleep", "localtime", "gmtime", "clock_gettime", "strftime",
        ),
        _thread: ("start_new_thread",),
        threading: ("Thread", "Lock", "RLock", "local"),
    }.items():
        for name in names:
            forbid(owner, name)

    # What C code does is not caught by patches: audit hooks see it.
    def audit(event, arguments):
        if event.split(".")[0] in {"open", "os", "socket", "subprocess", "time", "import"}:
            raise AssertionError(f"{event} {arguments}")

    sys.addaudithook(audit)
    lines = list(workload.lines(1, 300, watch=1, reload_every=50))
    sys.stdout.writelines(line + chr(10) for line in lines)
""")

IMPORTED = textwrap.dedent("""
    import sys
    import state
    used = set()
    for name, module in list(sys.modules.items()):
        if name == "state" or name.startswith("state."):
            for name, value in vars(module).items():
                is_module = isinstance(value, type(sys))
                owner = value.__name__ if is_module else getattr(value, "__module__", None)
                if isinstance(owner, str) and not name.startswith("__"):
                    used.add(owner.split(".")[0].lstrip("_"))
    assert "asyncio" not in sys.modules and "socket" not in sys.modules
    assert "random" not in sys.modules and "threading" not in sys.modules
    print(*sorted(used))
""")


def run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def without_awake(printed: str) -> list[list[str]]:
    """Lines without the one word that may differ after a reload."""
    return [line.split()[:-1] for line in printed.splitlines()]


def test_applying_uses_no_clock_no_randomness_and_no_files() -> None:
    expected = run("-m", "tests.state.workload", "--seed", "1", "--batches", "300")
    printed = run("-c", FORBIDDEN)
    assert without_awake(printed) == without_awake(expected)


def test_only_pure_modules_are_imported() -> None:
    used = set(run("-c", IMPORTED).split())
    assert {"msgpack", "state"} <= used
    assert used <= {*ALLOWED, "state", "builtins", "abc", "blake2"}


def test_no_module_state_is_kept_between_machines() -> None:
    # Two machines in one process, one after the other and turn by turn, agree with one alone.
    together = textwrap.dedent("""
        from tests.state.workload import lines
        alone = list(lines(1, 150))
        other = list(lines(2, 150))
        for one, two, expected, also in zip(lines(1, 150), lines(2, 150), alone, other):
            assert (one, two) == (expected, also)
        print("same")
    """)
    assert run("-c", together) == "same\n"


def test_no_warnings_in_development_mode() -> None:
    # -X dev turns on all warnings and checks of the allocators, -bb refuses to mix bytes and str.
    strict = run("-W", "error", "-X", "dev", "-bb", "-m", "tests.state.workload", "--batches=150")
    plain = run("-m", "tests.state.workload", "--batches=150")
    assert strict == plain


def test_asserts_do_no_work() -> None:
    # Checks that guard data are real raises: without assert statements nothing changes.
    optimized = run("-OO", "-m", "tests.state.workload", "--batches=150")
    assert optimized == run("-m", "tests.state.workload", "--batches=150")


def test_it_leaves_nothing_for_the_garbage_collector() -> None:
    """Its records form no cycles: a node may keep the collector away from a million of them."""
    script = """
    import gc
    from tests.state.workload import Workload

    workload = Workload(3)
    workload.take(20)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    workload.take(300)
    gc.collect()
    left = [one for one in gc.garbage if type(one).__module__.startswith("state.")]
    assert not left, left[:5]
    """
    done = subprocess.run(  # noqa: S603 - our own text
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
