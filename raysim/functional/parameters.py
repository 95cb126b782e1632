"""``ParameterLayout``: where each tensor of a model lies in the flat vector of its parameters.

All of a client's parameters are one float32 vector ``theta`` of length P. The shared tensors come first, the personal
ones last, each group in the model's own order, so that ``theta = join(shared, personal)``. Algorithms, aggregation and
storage work on these vectors; only this module knows how to cut them.

The running statistics of BatchNorm layers are entries of ``theta`` like any parameter (``bn1.running_mean``), so they are
shared or personal by pattern and never leak between clients. Frozen parameters are not in ``theta`` at all: they are
neither trained nor sent nor kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

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
    """Names, shapes and order of a model's parameters in its flat vector.

    Attributes:
        names, shapes: names and shapes of the tensors in ``theta``; the first ``num_shared_tensors`` are shared.
        statistics: those of ``names`` that are running statistics of BatchNorm, which get no gradient.
        frozen: parameters that keep their initial values and are not in ``theta``.
        heads: what a pattern ``head`` stands for: timm's classifiers (``fc`` in a ResNet, two in a distilled DeiT).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_shared_tensors: int
    statistics: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("head",)

    @classmethod
    def of(cls, model: nn.Module, personal: Sequence[str] = (), trainable: Sequence[str] = ("*",)) -> ParameterLayout:
        """The layout of a model in which parameters that match one of the patterns ``personal`` are personal.

        Those that match a pattern with a ``!`` in front are not: ``["*", "!head"]`` is everything but the head. Parameters
        that match none of the patterns ``trainable`` are frozen.

        Raises:
            ConfigError: a pattern matches no parameter.
        """
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        statistics, heads = _running_statistics(model), classifier_names(model)
        frozen = tuple(n for n in shapes if not any(_named(n, p, heads) for p in trainable))
        trained = {n: shape for n, shape in shapes.items() if n not in set(frozen)} | statistics
        for key, patterns, among in (("trainable", trainable, shapes | statistics), ("personal", personal, trained)):
            for pattern in patterns:
                if any(_named(name, pattern.removeprefix("!"), heads) for name in among):
                    continue
                is_frozen = any(_named(name, pattern.removeprefix("!"), heads) for name in frozen)
                raise ConfigError(
                    f"algorithm.{key}: the pattern {pattern!r} matches "
                    + ("only frozen parameters" if is_frozen else "no parameter")
                    + f" of the model. {'Trained are' if is_frozen else 'Its components are'}: "
                    + ", ".join(_components(tuple(among)))
                )
        kept, not_kept = ([p for p in personal if p.startswith("!") == out] for out in (False, True))
        is_personal = {
            name: any(_named(name, p, heads) for p in kept) and not any(_named(name, p[1:], heads) for p in not_kept)
            for name in trained
        }
        names = sorted(trained, key=lambda name: is_personal[name])  # a stable sort keeps the model's order
        num_shared = len(names) - sum(is_personal.values())
        return cls(tuple(names), tuple(trained[n] for n in names), num_shared, tuple(statistics), frozen, heads)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def places(self) -> dict[str, tuple[int, int, tuple[int, ...]]]:
        """Where each tensor begins in ``theta``, how many entries it has, and its shape."""
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        return dict(zip(self.names, zip(starts, self.sizes, self.shapes, strict=True), strict=True))

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

    @property
    def head_shape(self) -> tuple[int, int]:
        """Classes and size D of the representation, of a model with one linear classifier that trains.

        Raises:
            ConfigError: it has none.
        """
        shapes = dict(zip(self.names, self.shapes, strict=True))
        shape = shapes.get(f"{self.heads[0]}.weight", ())
        if len(self.heads) != 1 or len(shape) != 2:
            raise ConfigError(
                f"model: this method needs one linear classifier that trains, not {', '.join(self.heads)}"
            )
        classes, dim = shape
        return classes, dim

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors (a ``state_dict``) to one vector (P,), float32, a copy."""
        return torch.cat([tensors[name].detach().reshape(-1).float() for name in self.names])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """A vector (P,) to named tensors, as views. One ``split``, whose gradient is one ``cat``."""
        pieces = theta.split(self.sizes)
        return {name: p.view(shape) for name, p, shape in zip(self.names, pieces, self.shapes, strict=True)}

    def piece(self, vector: Tensor, name: str) -> Tensor:
        """The tensor of that name in parameters (..., P), or in shared ones (..., S), as a view.

        Raises:
            ConfigError: the vector has not got it: it is personal or frozen.
        """
        at = self.names.index(name) if name in self.names else len(self.names)
        start = sum(self.sizes[:at])
        if at == len(self.names) or start + self.sizes[at] > vector.shape[-1]:
            kind = "frozen" if at == len(self.names) else "personal"
            raise ConfigError(f"algorithm.personal: {name} is {kind}, and this method needs it shared and trained")
        return vector[..., start : start + self.sizes[at]].unflatten(-1, self.shapes[at])

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """``theta`` (..., P) to its shared and its personal part, as views."""
        return theta[..., : self.num_shared], theta[..., self.num_shared :]

    def join(self, shared: Tensor, personal: Tensor) -> Tensor:
        """The inverse of ``split``; a copy, unless one of the two is empty."""
        if not personal.shape[-1]:
            return shared
        return torch.cat([shared, personal], dim=-1) if shared.shape[-1] else personal

    def mask(self, patterns: Sequence[str]) -> Tensor:
        """A boolean vector (P,) that is true where a parameter matches one of the patterns."""
        chosen = [any(_named(name, p, self.heads) for p in patterns) for name in self.names]
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
        frozen = f"frozen tensors {len(self.frozen)} · " if self.frozen else ""
        lines.append(
            f"{frozen}shared {self.num_shared:,} · personal {self.num_personal:,} · "
            f"{4 * self.num_shared:,} bytes of parameters down and as many up per client and round"
        )
        return "\n".join(lines)


def _running_statistics(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the running means and variances of all BatchNorm layers."""
    return {
        f"{path}.{name}": tuple(buffer.shape)
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """What timm knows of a model's pretrained weights, whether it has them or not; of a model that is not timm's, nothing."""
    return dict(getattr(model, "pretrained_cfg", None) or {})


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the classification heads according to timm; ``head`` for a model that is not timm's."""
    names = pretrained_cfg(model).get("classifier") or "head"
    return tuple(names) if isinstance(names, (tuple, list)) else (names,)


def _named(name: str, pattern: str, heads: tuple[str, ...]) -> bool:
    """``matches``, with a component ``head`` of the pattern standing for each of the model's heads."""
    if matches(name, pattern):
        return True
    components = pattern.split(".")
    return "head" in components and any(
        matches(name, ".".join(head if c == "head" else c for c in components)) for head in heads
    )


def _components(names: Iterable[str]) -> list[str]:
    """The distinct dotted components, in order of appearance, numbers as one range."""
    seen = dict.fromkeys(c for name in names for c in name.split(".") if not c.isdigit())
    numbers = [int(c) for name in names for c in name.split(".") if c.isdigit()]
    return list(seen) + ([f"blocks.0 to blocks.{max(numbers)}"] if "blocks" in seen else [])
