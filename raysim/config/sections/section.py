"""What all blocks of a YAML file have in common."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """As a file would have them: numpy's numbers become Python's, tuples lists."""

    def number(value: Any) -> Any:
        if getattr(value, "shape", None) != ():
            raise ValueError(f"{type(value).__name__} is nothing that a file can have; give numbers, texts, lists")
        return value.item()

    plain: dict[str, Any] = json.loads(json.dumps(options, default=number))
    return plain


Options = Annotated[dict[str, Any], AfterValidator(_plain)]


class Section(BaseModel):
    """A block of the file: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def allow_only(section: Section, owner: str, allowed: set[str], conditional: set[str]) -> None:
    """Refuse keys that are set although this choice of ``name`` does not use them."""
    for key in sorted(conditional - allowed):
        if getattr(section, key) is not None:
            raise ValueError(f"{key!r} is not used by {owner}, which takes {', '.join(sorted(allowed)) or 'no keys'}")
