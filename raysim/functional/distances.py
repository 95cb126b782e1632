"""Distances between representations of one batch, for losses of methods."""

from __future__ import annotations

import torch
from torch import Tensor

from raysim.functional.batch import Batch

BANDWIDTHS = (10.0, 15.0, 20.0, 50.0)


def mmd(first: Tensor, second: Tensor, batch: Batch) -> Tensor:
    """The squared maximum mean discrepancy of two sets of representations (B, D) of a batch's samples, a scalar.

    The mean of ``k(a, a') + k(b, b') - 2 k(a, b')`` over all pairs of samples that are not padded, of a sample with itself
    too; ``k(a, b) = sum over w in BANDWIDTHS of exp(-|a - b|^2 / (2 w))``, as in PFLlib.
    Source: Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html
    """
    kernels = _kernel(first, first) + _kernel(second, second) - 2 * _kernel(first, second)
    return batch.mean(batch.mean(kernels))


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """(B, B)"""
    squares = (first**2).sum(dim=1)[:, None] + (second**2).sum(dim=1)[None, :] - 2 * first @ second.T
    return sum((torch.exp(-squares / (2 * width)) for width in BANDWIDTHS), torch.zeros_like(squares))
