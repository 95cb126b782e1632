"""LoRA on the joint projection to queries, keys and values.

Source: Hu et al. 2022, https://arxiv.org/abs/2106.09685. For tokens x (B, N, D)::

    qkv(x) + scale * up(down(x))                   down: D -> rank, up: rank -> 3 D, no biases

``down`` starts random, ``up`` at zero, so that the model starts as it was. ``scale`` is the paper's alpha / rank.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from raysim.plugins.attach_points import attention_layers


class LoRA(nn.Module):
    """``scale * up(down(x))``: (B, N, D) to (B, N, 3 D)."""

    def __init__(self, dim: int, rank: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, 3 * dim, bias=False)
        self.scale = scale
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.down(x), self.scale * self.up.weight)


def add_lora(model: nn.Module, rank: int | None, scale: float | None, depth: int | None = None) -> None:
    """Give the last ``depth`` self-attention layers a low-rank update ``attn.qkv.lora.{down,up}``, in place.

    Raises:
        ConfigError: the model has no such layers.
    """
    assert rank is not None
    assert scale is not None
    for layer in attention_layers(model, depth):
        qkv: Any = layer.qkv
        qkv.lora = LoRA(qkv.in_features, rank, scale)
        qkv.register_forward_hook(add_low_rank)


def add_low_rank(qkv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + qkv.lora(inputs[0])
