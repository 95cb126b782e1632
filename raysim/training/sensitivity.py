"""A worker's part of the sensitivity metrics: the sum of its clients' updates as unit vectors, per type of layer.

``federation/metrics/sensitivity.py`` has the metrics, and why this sum is all that they need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.algorithms import Upload
from raysim.functional.parameters import ParameterLayout
from raysim.training.aggregation import Weights, float64_sum

DIRECTIONS = "sensitivity.directions"  # beside the algorithm's own uploads
SCALE_BITS = 52  # entries of unit vectors
TINY = 1e-6  # of the largest parameter; float64 then has 1e-10 of a unit vector

# A parameter's type is the first whose pattern matches its dotted name, enclosed in dots.
TYPES: dict[str, str] = {
    "plugin": r"\.(adapter|lora|local|prompt|frame)\.",
    "patch_embedding": r"\.patch_embed\.",
    "position_and_class": r"\.(pos_embed|cls_token|reg_token|dist_token|relative_position_bias_table)\.",
    "head": r"\.head(_dist)?\.",
    "qkv": r"\.qkv\.",
    "attention_projection": r"\.attn\.proj\.",
    "mlp": r"\.mlp\.",
    "norm": r"\.(\w*norm\d*|bn\d+|downsample\.1)\.",
    "convolution": r"\.(conv\d+|downsample\.0)\.",
}


def layer_type(name: str, heads: tuple[str, ...] = ("head",)) -> str:
    """The type of layer that a parameter belongs to, by its name in timm; ``other`` if none is known.

    >>> layer_type("blocks.3.attn.qkv.weight"), layer_type("blocks.3.norm1.bias"), layer_type("fc.weight", heads=("fc",))
    ('qkv', 'norm', 'head')
    """
    if name.startswith(tuple(f"{head}." for head in heads)):
        return "head"
    return next((kind for kind, pattern in TYPES.items() if re.search(pattern, f".{name}.")), "other")


@lru_cache(maxsize=16)
def shared_types(layout: ParameterLayout) -> list[str]:
    """The type of each shared tensor, in the layout's order; "" for BatchNorm statistics, which are not updates."""
    return [
        "" if name in layout.statistics else layer_type(name, layout.heads)
        for name in layout.names[: layout.num_shared_tensors]
    ]


def measurable(shared: Upload) -> bool:
    """Whether there is one vector that all clients' shared parameters, uploaded like this, are averaged to."""
    return shared.weighting != "each" and shared.mask is None and shared.groups is None


def squared_updates(trained: Tensor, shared: Tensor, layout: ParameterLayout) -> dict[str, Tensor]:
    """Each type's squared norms (K,) float64 of the updates from shared parameters (S,) to those that trained (K, S)."""
    squares: dict[str, Tensor] = {}
    for kind, after, before in _pieces(trained, shared, layout):
        square = torch.linalg.vector_norm(after - before, dim=-1).double().square()
        squares[kind] = squares[kind] + square if kind in squares else square
    return squares


def largest_entries(squares: dict[str, Tensor], shared: Tensor) -> Tensor:
    """(K,): what no entry of trained parameters exceeds, by the norms of the updates; NaN or inf where one is not finite."""
    norm = torch.stack(list(squares.values())).sum(dim=0).sqrt()
    return (shared.abs().max() + norm) * 1.001  # the norms are rounded


def sum_and_directions(
    trained: Tensor,
    shared: Tensor,
    squares: dict[str, Tensor],
    weights: Weights,
    accepted: NDArray[np.bool_],
    layout: ParameterLayout,
) -> tuple[Tensor, Tensor]:
    """The weighted sums (S,) float64 of trained parameters (K, S), and of the updates as unit vectors per type.

    ``sum f (x - s)`` is ``sum f x - s sum f``, so both are sums of the parameters, which are converted once.
    """
    shares = torch.from_numpy(weights.accepted(accepted).shares).to(trained.device)
    kept = torch.from_numpy(accepted).to(trained.device)
    scaled = {kind: torch.where(kept & (square > 0), shares * square.rsqrt(), 0.0) for kind, square in squares.items()}
    factors = {kind: torch.stack([shares, factor]) for kind, factor in scaled.items()}
    of_all = {kind: factor.sum() for kind, factor in scaled.items()}
    # Where an update is tiny beside the parameters, their difference must come first: nothing would be left of it.
    least = (TINY * shared.abs().max()).double().square()
    are_tiny = torch.stack([(kept & (square > 0) & (square < least)).any() for square in squares.values()])
    tiny = {kind for kind, is_tiny in zip(squares, are_tiny.tolist(), strict=True) if is_tiny}  # asked for at once
    total = trained.new_empty((2, trained.shape[1]), dtype=torch.float64)
    for (kind, after, before), out in zip(
        _pieces(trained, shared, layout), total.split(_sizes(layout), dim=-1), strict=True
    ):
        if kind in tiny:
            out[0] = float64_sum(after, shares, accepted)
            out[1] = float64_sum(after - before, scaled[kind], accepted)
        else:
            out.copy_(float64_sum(after, factors[kind], accepted))
            out[1] -= before.double() * of_all[kind]
    return total[0], total[1]


def _sizes(layout: ParameterLayout) -> tuple[int, ...]:
    return layout.sizes[: layout.num_shared_tensors]


def _pieces(trained: Tensor, shared: Tensor, layout: ParameterLayout) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each shared tensor's type, its entries (K, n) in trained parameters, and (n,) in those that training began with."""
    sizes = _sizes(layout)
    return zip(shared_types(layout), trained.split(sizes, dim=-1), shared.split(sizes), strict=True)
