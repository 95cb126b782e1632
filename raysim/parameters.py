"""``ParameterLayout``: where each tensor of a model lies in the flat vector of its parameters.

All of a client's parameters are one float32 vector ``theta`` of length P. The shared tensors come first, the personal
ones last, each group in the model's own order, so that ``theta = join(shared, personal)``. Algorithms, aggregation and
storage work on these vectors; only this module knows how to cut them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn

from raysim.errors import ConfigError


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a parameter, compared by whole dotted components with ``*`` and ``?`` as wildcards.

    >>> matches("blocks.11.norm1.weight", "blocks.1"), matches("blocks.1.norm1.weight", "blocks.1.norm*")
    (False, True)
    """
    have, want = name.split("."), pattern.split(".")
    return any(
        all(fnmatchcase(h, w) for h, w in zip(have[i:], want, strict=False)) for i in range(len(have) - len(want) + 1)
    )


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and order of a model's parameters in its flat vector; the first ``num_shared_tensors`` are shared."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_shared_tensors: int

    @classmethod
    def of(cls, model: nn.Module, personal: Sequence[str] = ()) -> ParameterLayout:
        """The layout of a model in which the parameters that match one of the patterns ``personal`` are personal.

        Raises:
            ConfigError: a pattern matches no parameter.
        """
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for pattern in personal:
            if not any(matches(name, pattern) for name in shapes):
                raise ConfigError(
                    f"algorithm.personal: the pattern {pattern!r} matches no parameter of the model. Its components are: "
                    + ", ".join(_components(shapes))
                )
        is_personal = {name: any(matches(name, p) for p in personal) for name in shapes}
        names = sorted(shapes, key=lambda name: is_personal[name])  # a stable sort keeps the model's order
        return cls(tuple(names), tuple(shapes[n] for n in names), len(names) - sum(is_personal.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def num_parameters(self) -> int:
        """P, the length of ``theta``."""
        return sum(self.sizes)

    @cached_property
    def num_shared(self) -> int:
        return sum(self.sizes[: self.num_shared_tensors])

    @property
    def num_personal(self) -> int:
        return self.num_parameters - self.num_shared

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors to one vector (P,), float32, a copy."""
        return torch.cat([tensors[name].detach().reshape(-1).float() for name in self.names])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """A vector (P,) to named tensors, as views. One ``split``, whose gradient is one ``cat``."""
        pieces = theta.split(self.sizes)
        return {name: p.view(shape) for name, p, shape in zip(self.names, pieces, self.shapes, strict=True)}

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``theta`` (..., P) to its shared and its personal part, as views."""
        return theta[..., : self.num_shared], theta[..., self.num_shared :]

    def join(self, shared: Tensor, personal: Tensor) -> Tensor:
        """The inverse of ``split``, a copy."""
        return torch.cat([shared, personal], dim=-1)

    def mask(self, patterns: Sequence[str]) -> Tensor:
        """A boolean vector (P,) that is true where a parameter matches one of the patterns."""
        chosen = [any(matches(name, p) for p in patterns) for name in self.names]
        return torch.repeat_interleave(torch.tensor(chosen), torch.tensor(self.sizes))

    def rows(self) -> list[tuple[str, str, int, int]]:
        """What ``table`` shows: (group, shared or personal, tensors, parameters) per part."""
        totals: dict[tuple[str, str], list[int]] = {}
        for i, (name, size) in enumerate(zip(self.names, self.sizes, strict=True)):
            part = ".".join(c for c in name.split(".")[:-1] if not c.isdigit()) or name
            entry = totals.setdefault((part, "shared" if i < self.num_shared_tensors else "personal"), [0, 0])
            entry[0] += 1
            entry[1] += size
        return [(part, kind, tensors, size) for (part, kind), (tensors, size) in totals.items()]

    def table(self) -> str:
        """A printed table of the parts of the model: what is shared, what is personal, and bytes sent per round."""
        rows = [("part", "", "tensors", "parameters"), *((p, k, str(t), f"{s:,}") for p, k, t, s in self.rows())]
        width = max(len(row[0]) for row in rows)
        lines = [f"{p:<{width}}  {kind:<8}  {tensors:>7}  {size:>12}" for p, kind, tensors, size in rows]
        lines.append(
            f"shared {self.num_shared:,} · personal {self.num_personal:,} · "
            f"{4 * self.num_shared:,} bytes down and as many up per client and round"
        )
        return "\n".join(lines)


def _components(names: Mapping[str, object]) -> list[str]:
    """The distinct dotted components, in order of appearance, numbers as one range."""
    seen = dict.fromkeys(c for name in names for c in name.split(".") if not c.isdigit())
    numbers = [int(c) for name in names for c in name.split(".") if c.isdigit()]
    return list(seen) + ([f"blocks.0 to blocks.{max(numbers)}"] if numbers else [])
