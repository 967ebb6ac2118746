"""What a theme decides for its sessions: when they come back, how long a lease is, how many.

Backoff is deterministic: its jitter comes from the session's id and its attempt, so that all
nodes agree, and a herd of sessions that failed together does not come back together.
"""

from dataclasses import dataclass
from enum import IntEnum

from state.limits import DAY_MS, HOUR_MS, LIMIT_RANGES, SECOND_MS, bounded, ranges

_MASK = 2**64 - 1
_REPEAT_MAX_MS = LIMIT_RANGES["repeat_after_ms"].default


class Backoff(IntEnum):
    """How the repeat grows with the attempts."""

    FIXED = 0
    EXPONENTIAL = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """A theme's settings; 0 in a bound means that there is none."""

    repeat_ms: int = bounded(
        10 * SECOND_MS, 0, _REPEAT_MAX_MS, "Repeat of a Store that names none."
    )
    backoff: int = bounded(
        int(Backoff.FIXED), 0, int(max(Backoff)), "0 is fixed, 1 doubles with each attempt."
    )
    repeat_cap_ms: int = bounded(HOUR_MS, 1, _REPEAT_MAX_MS, "Where doubling ends, before jitter.")
    jitter_permille: int = bounded(
        100, 0, 1000, "Spreads repeats by up to this share to either side, so that herds part."
    )
    lease_ms: int = bounded(
        30 * SECOND_MS, 100, DAY_MS, "How long an active session goes without a sign of life."
    )
    progress_ms: int = bounded(
        0, 0, 30 * DAY_MS, "How long it goes without Append, Replace or Touch; 0: for ever."
    )
    max_attempts: int = bounded(0, 0, 1000, "Attempts after which a Store parks; 0: never.")
    max_active: int = bounded(0, 0, 2**31 - 1, "Sessions active at a time; 0: any number.")
    max_sessions: int = bounded(0, 0, 2**31 - 1, "Sessions in the theme at a time; 0: any number.")

    def delay_ms(self, session_id: int, attempts: int) -> int:
        """The time until the repeat of a session that has been active `attempts` times."""
        delay_ms = self.repeat_ms
        if self.backoff == Backoff.EXPONENTIAL:
            # 2**42 ms is beyond every cap, so the shift needs no more.
            delay_ms = min(delay_ms << min(max(attempts - 1, 0), 42), self.repeat_cap_ms)
        if self.jitter_permille:
            spread_ms = delay_ms * self.jitter_permille // 1000
            delay_ms += _mix(session_id, attempts) % (2 * spread_ms + 1) - spread_ms
        return min(delay_ms, _REPEAT_MAX_MS)


POLICY_RANGES = ranges(Policy)
DEFAULT_POLICY = Policy()


def _mix(session_id: int, attempts: int) -> int:
    """64 well-mixed bits of two numbers (the finalizer of SplitMix64: Steele et al., 2014)."""
    mixed = (session_id + attempts * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
