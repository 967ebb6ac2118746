"""Bearer tokens: how they are made, kept and recognized.

**Making.** A token is `rit_` and 32 random bytes. Nobody guesses 256 bits, not even with the hash
at hand and all the time there is. So a plain SHA-256 is the right hash: slow ones (scrypt, Argon2)
make guessing passwords dear, and would make each request dear here. For the same reason what does
not look like a token of ours is refused before it is hashed: a password is no token.

**Recognizing.** What a client sends is hashed, and looked up by its digest in a dict. How long that
takes depends on the digest, which says nothing about the token: who tries another one gets a digest
that has nothing to do with the last, so there is no way to come nearer bit by bit. The digests are
then compared in constant time, unknown tokens with one that nothing hashes to, so that known and
unknown take the same way up to the answer. Nothing is kept of a request: no cache, whose keys would
be tokens in plain text. It takes about a microsecond as it is.

Tokens are 401 when they are unknown and when they have expired; the message tells the two apart,
because who holds the token knows it anyway.
"""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from api.security.errors import Unauthenticated
from api.security.files import Watched
from api.security.principals import ANYBODY, Principal, Scope
from api.security.tokens_file import TOKEN_PREFIX, parse_tokens

_RANDOM_BYTES = 32
_TOKEN = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}")  # Base64 for URLs, without its padding

# What unknown tokens are compared with: as likely as any token to be guessed, and of no use then.
_NOBODY = Principal("nobody", Scope.READ, expires_s=0, digest=secrets.token_bytes(32))

_WANTED = f"this server wants a token: send 'Authorization: Bearer {TOKEN_PREFIX}...'"
_UNKNOWN = "the token is not known here"
_EXPIRED = "the token has expired"


def new_token() -> str:
    """Make a token: 256 bits from the system's source of randomness, so that SHA-256 suits it."""
    random = base64.urlsafe_b64encode(secrets.token_bytes(_RANDOM_BYTES))
    return TOKEN_PREFIX + random.rstrip(b"=").decode()


def hash_token(token: str) -> str:
    """What goes into the file. What `new_token` cannot have made is refused, and not shown."""
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            f"this is no token: one is {TOKEN_PREFIX!r} and 43 letters, digits, '-' or '_'; a "
            "password would be guessed from its hash"
        )
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


class Authenticator(Protocol):
    """Says who a client is."""

    def authenticate(self, header: str | None) -> Principal:
        """Of a request's `Authorization`. Raises `Unauthenticated`."""

    def identify(self, token: str) -> Principal:
        """Of a token that came in another way. Raises `Unauthenticated`."""

    def renew(self, principal: Principal) -> Principal:
        """Of a client that was known earlier, as the file says now. Raises `Unauthenticated`.

        For what outlives its request: connections are to ask again now and then.
        """


class Tokens:
    """The tokens of a file. Raises `FileError` if that cannot be used. Blocks."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        def load(contents: tuple[bytes, ...]) -> dict[bytes, Principal]:
            return parse_tokens(str(path), contents[0])

        self.files = Watched("tokens", (path,), load, private=path)
        self._clock = clock

    def authenticate(self, header: str | None) -> Principal:
        if header is None:
            raise Unauthenticated(_WANTED, has_token=False)
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated(_WANTED, has_token=False)
        return self.identify(token.strip(" "))

    def identify(self, token: str) -> Principal:
        if not _TOKEN.fullmatch(token):
            raise Unauthenticated(_UNKNOWN)
        return self._current(hashlib.sha256(token.encode()).digest())

    def renew(self, principal: Principal) -> Principal:
        return self._current(principal.digest)

    def _current(self, digest: bytes) -> Principal:
        found = self.files.value.get(digest, _NOBODY)
        is_known = hmac.compare_digest(found.digest, digest)
        is_current = self._clock() < found.expires_s
        if is_known and is_current:
            return found
        raise Unauthenticated(_EXPIRED if is_known else _UNKNOWN)


class NoTokens:
    """Where everybody may do everything."""

    def authenticate(self, _header: str | None) -> Principal:
        return ANYBODY

    def identify(self, _token: str) -> Principal:
        return ANYBODY

    def renew(self, _principal: Principal) -> Principal:
        return ANYBODY
