"""How much clients disagree about each type of layer: a direct measurement of where a model should be personal.

Client i has moved the shared parameters of a type by u_i (its upload minus what it was sent), with weight p_i by samples;
u is the mean of the u_i. Two numbers per type and round::

    sensitivity/<type>          1 - sum_i p_i cos(u_i, u)               0: all move the same way, 1: at right angles
    sensitivity/<type>_spread   sqrt(sum_i p_i |u_i - u|^2) / |u|       relative size of what differs

The cosines need the mean first, which no worker has. But ``sum_i p_i cos(u_i, u) = <sum_i p_i u_i / |u_i|, u> / |u|``: so
each worker sums up its clients' directions like an upload, exactly (``training/sensitivity.py``), and the rest is done here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysim.functional.parameters import ParameterLayout
from raysim.training.sensitivity import shared_types


def sensitivity_metrics(
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
