"""A parallel adapter on the MLP of every block.

Source: He et al. 2022, "scaled parallel adapter", https://arxiv.org/abs/2110.04366; for ViTs AdaptFormer,
https://arxiv.org/abs/2205.13535. For tokens x (B, N, D) that come into the MLP::

    mlp(x) + scale * up(relu(down(x)))             down: D -> mid_dim, up: mid_dim -> D

``up`` starts at zero, so that the model starts as it was; ``down`` does not: with both at zero, as in the code of the
FedPerfix paper, neither weight ever gets a gradient and only one bias learns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysim.plugins.attach_points import blocks


class Adapter(nn.Module):
    """``scale * up(relu(down(x)))``: (B, N, D) to (B, N, D)."""

    def __init__(self, dim: int, mid_dim: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, mid_dim)
        self.up = nn.Linear(mid_dim, dim)
        self.scale = scale
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.down(x)), self.scale * self.up.weight, self.scale * self.up.bias)


def add_adapter(model: nn.Module, mid_dim: int | None, scale: float | None, depth: int | None = None) -> None:
    """Give the last ``depth`` blocks an adapter ``mlp.adapter.{down,up}``, in place.

    Raises:
        ConfigError: the model has no such blocks.
    """
    assert mid_dim is not None
    assert scale is not None
    for block in blocks(model, depth):
        attention: Any = block.attn
        mlp: Any = block.mlp
        mlp.adapter = Adapter(attention.qkv.in_features, mid_dim, scale)
        mlp.register_forward_hook(add_adapter_output)


def add_adapter_output(mlp: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + mlp.adapter(inputs[0])
