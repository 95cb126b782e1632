"""``Batch``: the samples of one local step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Samples of one client: images (B, C, H, W) float, labels (B,) int64, mask (B,) float, 0 where padded."""

    images: Tensor
    labels: Tensor
    mask: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """The mean (...) of values (B, ...) over the samples that are not padded; 0 if all are."""
        own = self.mask.view(-1, *[1] * (values.dim() - 1)) > 0
        return torch.where(own, values, 0.0).sum(dim=0) / self.mask.sum().clamp(min=1)
