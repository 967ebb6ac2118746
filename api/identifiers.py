"""How sessions and keys are written for clients.

A session's id is opaque to them: a short string that is safe in an URL. It is the number in
lower-case hexadecimal, without zeros in front, so that each session has exactly one name. A key is
text; the cluster keeps its UTF-8.
"""

SESSION_TEXT_MAX = 16  # characters
SESSION_TEXT_PATTERN = "^[1-9a-f][0-9a-f]{0,15}$"


def session_text(session_id: int) -> str:
    """A session's id as clients see it."""
    return f"{session_id:x}"


def session_number(text: str) -> int | None:
    """The id that a client wrote; None if no session can have it."""
    if len(text) > SESSION_TEXT_MAX:
        return None
    try:
        number = int(text, 16)
    except ValueError:
        return None
    # Quicker than a regular expression: whatever else is read as a number is written differently.
    return number if number > 0 and f"{number:x}" == text else None


def key_bytes(text: str) -> bytes:
    """A key as the cluster keeps it. Raises ValueError for what no UTF-8 can say."""
    return text.encode()


def key_text(key: bytes) -> str:
    """A key as clients see it; bytes that are no UTF-8, of an embedded user, are escaped."""
    return key.decode("utf-8", "backslashreplace")
