"""Where a tuning looks for the value of a key, as methods declare it beside the key and as a YAML file has it."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Range:
    """All numbers from ``low`` to ``high``, both of them included; on a logarithmic scale with ``log``."""

    low: float | int
    high: float | int
    log: bool = False

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, and low is {self.low:g}")
        return self


class Tuned(NamedTuple):
    """Beside a method's key, in ``Annotated``: where ``space: auto`` looks for its value.

    Attributes:
        space: a range, or the values to choose from; None if ``auto`` leaves the key as it is.
        source: whose range it is, or why there is none.
    """

    space: Range | list[Any] | None
    source: str
