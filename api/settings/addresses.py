"""Addresses as people write them: `host:port`, with brackets around a host that has colons."""

import ipaddress
import re

from cluster import Address

PORT_MAX = 65_535
HOST_CHARS_MAX = 253  # of a name in the DNS

_ADDRESS = re.compile(r"(?:\[(?P<inner>[^\[\]]+)\]|(?P<host>[^:\[\]/]+)):(?P<port>[0-9]{1,5})")
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*\.?")
_NUMERIC = re.compile(r"[0-9.]+")


def parse_address(text: str) -> Address | None:
    """The address that was written; None if it is none."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > PORT_MAX:
        return None
    host, is_bracketed = found["inner"] or found["host"], found["inner"] is not None
    if is_bracketed != (":" in host) or not _is_host(host):
        return None
    return Address(host, int(found["port"]))


def is_loopback(address: Address) -> bool:
    """Whether only this machine can reach it. Of names, `localhost` alone is known to be so."""
    if address.host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # 10.0.0.256 is no name, whatever a resolver makes of it.
        is_name = _NAME.fullmatch(text) is not None and _NUMERIC.fullmatch(text) is None
        return is_name and len(text) <= HOST_CHARS_MAX
    return True
