"""Who may do what, what is protected on its way, and how much one client may ask.

errors        what a client is told, and what is wrong with files
files         files that are read anew when they change, without a restart
principals    who a client is: its scope and its themes
tokens        making tokens; from a request's header to a principal
tokens_file   the file that says which tokens there are
tls           the front end's certificate
rates         how often one client may come
command       `new-token`: a token, and what goes into the file for it

Why bearer tokens and nothing more: any HTTP client can send one, they need no clock, no state and
no second server, and a node that starts without its network still knows its clients. Who has an
identity provider puts a proxy in front.
"""

from api.security.errors import CertificateError, FileError, Forbidden, TokensError, Unauthenticated
from api.security.files import FileWatch, Watched
from api.security.principals import ANYBODY, Principal, Scope, Themes
from api.security.rates import Rates, address_key
from api.security.tls import ServerTls
from api.security.tokens import Authenticator, NoTokens, Tokens, hash_token, new_token

__all__ = [
    "ANYBODY",
    "Authenticator",
    "CertificateError",
    "FileError",
    "FileWatch",
    "Forbidden",
    "NoTokens",
    "Principal",
    "Rates",
    "Scope",
    "ServerTls",
    "Themes",
    "Tokens",
    "TokensError",
    "Unauthenticated",
    "Watched",
    "address_key",
    "hash_token",
    "new_token",
]
