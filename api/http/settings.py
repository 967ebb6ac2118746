"""Bodies that name settings of the cluster to be changed, made of the table of their ranges."""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct, structs

from api.problems import bad_request
from state.limits import Range

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1  # as the wire has them


def settings_type(name: str, ranges: Mapping[str, Range], text: str, **others: Any) -> type[Struct]:  # noqa: ANN401 - types
    """A body with these settings, any of which may be left out; `others` have types of their own.

    A number that is out of its range is refused by the cluster, which says what it may be.
    """
    fields: list[Any] = [
        (one, others.get(one, _number(found)) | UnsetType, UNSET) for one, found in ranges.items()
    ]
    return defstruct(
        name,
        fields,
        namespace={"__doc__": text},
        forbid_unknown_fields=True,
        kw_only=True,
        omit_defaults=True,
    )


def changes_in(found: Struct) -> dict[str, Any]:
    """What a body names. Raises `Refusal`."""
    changes = {name: value for name, value in structs.asdict(found).items() if value is not UNSET}
    if not changes:
        raise bad_request(f"name what is to change: {', '.join(found.__struct_fields__)}")
    for name, value in changes.items():
        if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
            raise bad_request(f"{name} has more than 64 bits")
    return changes


def _number(found: Range) -> Any:  # noqa: ANN401 - a type
    schema = {"minimum": found.minimum, "maximum": found.maximum, "default": found.default}
    return Annotated[int, Meta(description=found.reason, extra_json_schema=schema)]
