"""The prefix plugin of FedPerfix: a parallel adapter on the keys and values of self-attention.

Source: FedPerfix, https://arxiv.org/abs/2308.09160; "prefix" in the sense of He et al. 2022,
https://arxiv.org/abs/2110.04366, where prefix tuning is shown to be a parallel adapter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysim.errors import ConfigError


class Prefix(nn.Module):
    """``up(tanh(down(x)))``: (B, N, D) to (B, N, 2 D), for N tokens of width D."""

    def __init__(self, dim: int, mid_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, mid_dim)
        self.up = nn.Linear(mid_dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.tanh(self.down(x)))


class PrefixedQKV(nn.Linear):
    """``attn.qkv`` with the prefix: ``W x + b + scale * (0, prefix(x))``, (B, N, D) to (B, N, 3 D).

    A subclass of ``nn.Linear`` that takes over the layer's own tensors, so that ``qkv.weight`` and ``qkv.bias`` keep
    timm's names (pretrained weights and exports fit) and the plugin is ``qkv.adapter``. Nothing is computed for the
    queries.
    """

    def __init__(self, qkv: nn.Linear, mid_dim: int, scale: float) -> None:
        super().__init__(qkv.in_features, qkv.out_features, bias=qkv.bias is not None, device="meta")
        self.weight, self.bias = qkv.weight, qkv.bias
        self.adapter = Prefix(qkv.in_features, mid_dim)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        queries, keys_values = super().forward(x).split([self.in_features, 2 * self.in_features], dim=-1)
        return torch.cat([queries, keys_values + self.scale * self.adapter(x)], dim=-1)


def add_prefix(model: nn.Module, mid_dim: int, scale: float) -> None:
    """Give every self-attention layer of a timm model a prefix, in place.

    Raises:
        ConfigError: no module of the model has a linear ``qkv`` of width 3 D.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(qkv := getattr(module, "qkv", None), nn.Linear) and qkv.out_features == 3 * qkv.in_features
    ]
    if not layers:
        raise ConfigError(
            f"model.name: {type(model).__name__} has no self-attention layer with a linear `qkv`, so the prefix plugin has "
            "nowhere to go. vit_*, deit_* and other timm models whose blocks have `attn.qkv` do"
        )
    for module in layers:
        assert isinstance(module.qkv, nn.Linear)
        module.qkv = PrefixedQKV(module.qkv, mid_dim, scale)
