"""How a test starts servers as processes of their own, which end with it however it ends."""

import os
import sys


def command() -> list[str]:
    """What runs `ritornello-server`, up to its arguments; for the thread that calls it."""
    return [sys.executable, "-m", "api.commands.child", str(os.getpid())]
