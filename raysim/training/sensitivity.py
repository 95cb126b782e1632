"""A worker's part of the sensitivity metrics: the sum of its clients' updates as unit vectors, per type of layer.

``federation/metrics/sensitivity.py`` has the metrics, and why this sum is all that they need.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.functional.parameters import ParameterLayout
from raysim.training.aggregation import Weights, float64_sum

DIRECTIONS = "sensitivity.directions"  # beside the algorithm's own uploads
SCALE_BITS = 52  # entries of unit vectors

# A parameter's type is the first whose pattern matches its dotted name, enclosed in dots.
TYPES: dict[str, str] = {
    "plugin": r"\.(adapter|lora|prompt)\.",
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


def directions(
    updates: Tensor, weights: Weights, accepted: NDArray[np.bool_], layout: ParameterLayout
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum (S,) float64 of updates (K, S) as unit vectors per type, and each type's squared norms (K,)."""
    kinds = shared_types(layout)
    pieces = updates.split(layout.sizes[: layout.num_shared_tensors], dim=-1)
    squares: dict[str, Tensor] = {}
    for kind, piece in zip(kinds, pieces, strict=True):
        square = torch.linalg.vector_norm(piece, dim=-1).double().square()
        squares[kind] = squares[kind] + square if kind in squares else square
    shares = torch.from_numpy(weights.accepted(accepted).shares).to(updates.device)
    factors = {kind: torch.where(square > 0, shares * square.rsqrt(), 0.0) for kind, square in squares.items()}
    total = torch.cat([float64_sum(p, factors[kind], accepted) for kind, p in zip(kinds, pieces, strict=True)])
    squares.pop("", None)
    return total, squares
