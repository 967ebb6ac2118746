"""How often one client may come: a token bucket for each, in bounded memory.

A bucket holds `burst` requests and is filled with `per_second`. Kept as one number a client (the
"virtual scheduling" form of the generic cell rate algorithm, ITU-T I.371): the time at which its
bucket would be full again. No timers, and nothing to do for who does not come.

At most `keys_max` clients are known at a time. One more makes the one forgotten who has not come,
in vain or not, for longest: it starts anew with a full bucket. With so many others that is no gain
worth the trouble.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Hashable

KEYS_MAX = 10_000

# Sums of times are inexact; who waited as long as it was told is not told to wait once more.
_ROUNDING_S = 1e-6
_IPV6_HOST_BITS = 64


class Rates:
    """Pure: time is told, by a clock that does not go back."""

    def __init__(
        self, per_second: float, burst: float | None = None, keys_max: int = KEYS_MAX
    ) -> None:
        """Without `burst`, a second's worth, and no less than one request."""
        burst = max(per_second, 1.0) if burst is None else burst
        if not (per_second > 0 and burst >= 1 and keys_max >= 1):
            raise ValueError(
                f"a rate of {per_second} with bursts of {burst} for {keys_max} clients makes no "
                "sense; give a rate above 0, and 1 or more of the others"
            )
        self._burst = burst
        self._interval_s = 1 / per_second
        self._keys_max = keys_max
        self._full_at_s: OrderedDict[Hashable, float] = OrderedDict()

    def take(self, key: Hashable, now_s: float, count: int = 1) -> float:
        """Take `count` out of the bucket, and answer 0; or nothing, and how long to wait.

        More than a full bucket is taken out of a full one, and leaves a debt: a large frame goes
        through, and what follows it waits.
        """
        full_at_s = max(self._full_at_s.get(key, now_s), now_s)
        wait_s = full_at_s - now_s - (self._burst - min(count, self._burst)) * self._interval_s
        if wait_s > _ROUNDING_S:
            self._full_at_s.move_to_end(key)
            return wait_s
        self._full_at_s[key] = full_at_s + count * self._interval_s
        self._full_at_s.move_to_end(key)
        if len(self._full_at_s) > self._keys_max:
            self._full_at_s.popitem(last=False)
        return 0.0

    def __len__(self) -> int:
        """How many clients are known."""
        return len(self._full_at_s)


def address_key(host: str) -> str:
    """Whom an address belongs to, as far as one can tell.

    Of IPv6 a whole /64: that is what a single machine is given, to take addresses from as it likes.
    An IPv4 address in IPv6's clothes is that address.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host  # a Unix socket's, or none
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    network = int(address) >> _IPV6_HOST_BITS << _IPV6_HOST_BITS
    return f"{ipaddress.IPv6Address(network)}/{_IPV6_HOST_BITS}"
