"""Which node to speak with: the addresses that were given, and which one next."""

import random
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


def node_urls(given: str | Iterable[str]) -> tuple[str, ...]:
    """The addresses of nodes, as HTTP has them. Raises ValueError.

    `given` is one or several, or several in one text with commas between them. A scheme may be
    left out: it is `http` then.
    """
    parts = given.split(",") if isinstance(given, str) else list(given)
    found: dict[str, None] = {}
    for part in parts:
        text = part.strip().rstrip("/")
        if not text:
            continue
        url = urlsplit(text if "://" in text else f"http://{text}")
        scheme = _SCHEMES.get(url.scheme)
        is_plain = scheme is not None and url.hostname and not url.query and not url.fragment
        if not is_plain or url.netloc.endswith(":") or not _is_sound(url):
            raise ValueError(f"{part!r} is no address of a node, such as http://127.0.0.1:7601")
        if url.username is not None:
            raise ValueError("an address holds no user and no password; give the token apart")
        found[f"{scheme}://{url.netloc}{url.path}"] = None
    if not found:
        raise ValueError("name at least one node, such as http://127.0.0.1:7601")
    return tuple(found)


def _is_sound(url: SplitResult) -> bool:
    """Whether its port is one, and its name can be looked up."""
    try:
        (url.hostname or "").encode("idna")
        port = url.port
    except ValueError:  # UnicodeError is one
        return False
    return port != 0


class Nodes:
    """The nodes in the order in which they are to be tried."""

    def __init__(self, urls: tuple[str, ...], chance: random.Random) -> None:
        self.urls = urls
        self._order = list(urls)
        chance.shuffle(self._order)

    @property
    def first(self) -> str:
        return self._order[0]

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(self._order)

    def avoid(self, url: str) -> None:
        """Try all others before this one."""
        if url in self._order:
            self._order.remove(url)
            self._order.append(url)

    def favour(self, url: str) -> None:
        """Try this one before all others."""
        if url in self._order:
            self._order.remove(url)
            self._order.insert(0, url)
