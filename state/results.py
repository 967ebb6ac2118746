"""What operations answer when they were done.

An operation on one session answers its revision, a plain int; those that have more to say answer
one of these. Results hold no data of sessions: the caller's own node has applied the same batch
and can read it there. They are kept in windows and receipts, so each has a code for storage.
"""

from typing import Any, NamedTuple

from state.errors import FAILURE_BY_CODE, FAILURE_FIELDS, Failure


class Created(NamedTuple):
    """Answer of New. `epoch` is 0 if the caller does not operate the session."""

    session_id: int
    epoch: int
    revision: int
    created: bool  # False: the key's holder was returned or brought forward


class Stored(NamedTuple):
    """Answer of Store and Unpark: stored until `due_ms`, or parked."""

    session_id: int
    revision: int
    due_ms: int
    parked: bool


class Acquired(NamedTuple):
    """A session handed out."""

    session_id: int
    epoch: int
    revision: int


class Done(NamedTuple):
    """Answer of Txn: the results of its operations, in order."""

    results: tuple[Any, ...]


Result = int | Created | Stored | Acquired | Done | tuple[Acquired, ...] | Failure | None


def weight(results: tuple[Result, ...]) -> int:
    """How many results there are, what was handed out and what is in a Done counted singly."""
    count = len(results)
    for result in [one for one in results if type(one) in _COMPOUND]:
        if isinstance(result, Done):
            count += weight(result.results)
        elif isinstance(result, tuple):
            count += len(result)
    return count


_COMPOUND = frozenset((tuple, Done))


_NAMED: dict[int, type[Created | Stored | Acquired]] = {1: Created, 2: Stored, 3: Acquired}
_TAG: dict[type, int] = {named: tag for tag, named in _NAMED.items()}
_DONE, _SEVERAL, _FAILURE = 4, 5, 6


def pack_result(result: Result) -> Any:  # noqa: ANN401 - whatever msgpack can write
    """A result as plain values: an int or None as it is, the others with their tag in front."""
    if result is None or isinstance(result, int):
        return result
    if isinstance(result, Failure):
        values = (getattr(result, name) for name in FAILURE_FIELDS[type(result)])
        packed = (pack_result(value) if isinstance(value, Failure) else value for value in values)
        return (_FAILURE, result.code, *packed)
    if isinstance(result, Done):
        return (_DONE, *map(pack_result, result.results))
    tag = _TAG.get(type(result))
    if tag is None:
        return (_SEVERAL, *map(pack_result, result))
    return (tag, *result)


def unpack_result(packed: Any) -> Result:  # noqa: ANN401
    """The reverse of `pack_result`. Raises ValueError, TypeError or KeyError on anything else."""
    if packed is None or type(packed) is int:
        return packed
    tag, *values = packed
    if tag == _FAILURE:
        failure, *details = values
        unpacked = (unpack_result(one) if isinstance(one, tuple) else one for one in details)
        return FAILURE_BY_CODE[failure](*unpacked)
    if tag == _DONE:
        return Done(tuple(map(unpack_result, values)))
    if tag == _SEVERAL:
        several = tuple(map(unpack_result, values))
        if not all(isinstance(one, Acquired) for one in several):
            raise ValueError("a list of results holds something that was not acquired")
        return several  # type: ignore[return-value]
    return _NAMED[tag](*values)
