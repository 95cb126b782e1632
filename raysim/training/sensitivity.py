"""How much clients disagree about each type of layer: a direct measurement of where a model should be personal.

Client i has moved the shared parameters of a type by u_i (its upload minus what it was sent), with weight p_i by samples;
u is the mean of the u_i. Two numbers per type and round::

    sensitivity/<type>          1 - sum_i p_i cos(u_i, u)               0: all move the same way, 1: at right angles
    sensitivity/<type>_spread   sqrt(sum_i p_i |u_i - u|^2) / |u|       relative size of what differs

The cosines need the mean first, which no worker has. But ``sum_i p_i cos(u_i, u) = <sum_i p_i u_i / |u_i|, u> / |u|``: so
each worker sums up its clients' directions like an upload, exactly, and the driver does the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.training.aggregation import float64_sum
from raysim.functional.parameters import ParameterLayout

DIRECTIONS = "sensitivity.directions"  # beside the algorithm's own uploads
SCALE_BITS = 52  # entries of unit vectors

# The first that matches a parameter's dotted name, enclosed in dots, is its type.
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
    """The type of each shared tensor, in the layout's order; statistics of BatchNorm are no update of a client."""
    return [
        "" if name in layout.statistics else layer_type(name, layout.heads)
        for name in layout.names[: layout.num_shared_tensors]
    ]


def directions(
    updates: Tensor, weights: NDArray[np.float64], accepted: NDArray[np.bool_], layout: ParameterLayout
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum (S,) float64 of updates (K, S) as unit vectors per type, and each type's squared norms (K,)."""
    kinds = shared_types(layout)
    pieces = updates.split(layout.sizes[: layout.num_shared_tensors], dim=-1)
    squares: dict[str, Tensor] = {}
    for kind, piece in zip(kinds, pieces, strict=True):
        square = torch.linalg.vector_norm(piece, dim=-1).double().square()
        squares[kind] = squares[kind] + square if kind in squares else square
    shares = torch.from_numpy(np.where(accepted, weights, 0.0)).to(updates.device)
    factors = {kind: torch.where(square > 0, shares * square.rsqrt(), 0.0) for kind, square in squares.items()}
    total = torch.cat([float64_sum(p, factors[kind], accepted) for kind, p in zip(kinds, pieces, strict=True)])
    squares.pop("", None)
    return total, squares


def metrics(
    mean_update: Tensor, mean_direction: Tensor, mean_squares: dict[str, float], layout: ParameterLayout
) -> dict[str, float]:
    """The round's ``sensitivity/...``: from means over the cohort of updates (S,), directions (S,) and squared norms.

    A type that did not move is left out: its directions are not defined.
    """
    kinds = shared_types(layout)
    sizes = layout.sizes[: layout.num_shared_tensors]
    u = _by_type(mean_update.split(sizes), kinds)
    d = _by_type(mean_direction.split(sizes), kinds)
    result = {}
    for kind, mean_square in mean_squares.items():
        norm = float(np.sqrt(u[kind] @ u[kind]))
        if norm > 0:
            result[f"sensitivity/{kind}"] = 1 - float(d[kind] @ u[kind]) / norm
            result[f"sensitivity/{kind}_spread"] = float(np.sqrt(max(0.0, mean_square - norm**2))) / norm
    return result


def _by_type(pieces: Sequence[Tensor], kinds: list[str]) -> dict[str, NDArray[np.float64]]:
    return {
        kind: np.concatenate([p.double().numpy() for p, k in zip(pieces, kinds, strict=True) if k == kind])
        for kind in dict.fromkeys(kinds)
    }
