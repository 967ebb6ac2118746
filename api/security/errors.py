"""What a client is told, and what is wrong with files.

Refusal (of api.problems)
├── Unauthenticated     unauthenticated   401   no token, or none that is known here
└── Forbidden           forbidden         403   a known token, for something else

FileError               a file cannot be used; at the start this ends the server, later the old
├── TokensError         content stays in use
└── CertificateError

No message has a token in it, nor a part of one.
"""

from typing import ClassVar

from api.problems import Problem, Refusal


class Unauthenticated(Refusal):
    """Nobody knows who asks."""

    code: ClassVar[str] = "unauthenticated"

    def __init__(self, detail: str, *, has_token: bool = True) -> None:
        super().__init__(Problem(401, self.code, "not_applied", retryable=False, detail=detail))
        # What goes into `WWW-Authenticate` (RFC 6750, 3): without an error if there was no token.
        challenge = 'Bearer realm="ritornello"'
        self.challenge = challenge + ', error="invalid_token"' if has_token else challenge
        self.headers = {"WWW-Authenticate": self.challenge}


class Forbidden(Refusal):
    """Who asks is known, and may not."""

    code: ClassVar[str] = "forbidden"

    def __init__(self, detail: str) -> None:
        super().__init__(Problem(403, self.code, "not_applied", retryable=False, detail=detail))


class FileError(Exception):
    """A file cannot be used; `problems` has one sentence for each thing that is wrong."""

    def __init__(self, path: str, *problems: str) -> None:
        super().__init__(f"{path} cannot be used: {'; '.join(problems)}")
        self.path = path
        self.problems = problems


class TokensError(FileError):
    pass


class CertificateError(FileError):
    pass
