"""What the tests here have in common."""

THEME = 7
TOO_LARGE = bytes(1_100_000)  # more than a chunk may have
