"""The prefix plugin of FedPerfix: a parallel adapter on the keys and values of self-attention.

Source: FedPerfix, https://arxiv.org/abs/2308.09160; "prefix" in the sense of He et al. 2022,
https://arxiv.org/abs/2110.04366, where prefix tuning is shown to be a parallel adapter. For tokens x (B, N, D)::

    qkv(x) + scale * (0, up(tanh(down(x))))        down: D -> mid_dim, up: mid_dim -> 2 D

The plain variants of the paper have one ``Linear(D, 2 D)`` in place of the adapter, zero or random at the start. Nothing is
computed for the queries.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysim.plugins.attach_points import attention_layers


class Prefix(nn.Module):
    """``scale * up(tanh(down(x)))``: (B, N, D) to (B, N, 2 D)."""

    def __init__(self, dim: int, mid_dim: int, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, mid_dim)
        self.up = nn.Linear(mid_dim, 2 * dim)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        # The scale is applied to the weights, which are smaller than their output.
        return F.linear(torch.tanh(self.down(x)), self.scale * self.up.weight, self.scale * self.up.bias)


class PlainPrefix(nn.Module):
    """``scale * kv(x)``: (B, N, D) to (B, N, 2 D)."""

    def __init__(self, dim: int, scale: float, zero: bool) -> None:
        super().__init__()
        self.kv = nn.Linear(dim, 2 * dim)
        self.scale = scale
        if zero:
            nn.init.zeros_(self.kv.weight)
            nn.init.zeros_(self.kv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scale * self.kv.weight, self.scale * self.kv.bias)


def add_prefix(model: nn.Module, mid_dim: int | None, scale: float | None, depth: int | None = None) -> None:
    """Give the last ``depth`` self-attention layers a prefix ``attn.qkv.adapter.{down,up}``, in place.

    Raises:
        ConfigError: the model has no such layers.
    """
    assert mid_dim is not None
    assert scale is not None
    for layer in attention_layers(model, depth):
        _attach(layer, Prefix(_qkv(layer).in_features, mid_dim, scale))


def add_plain_prefix(model: nn.Module, scale: float | None, depth: int | None, zero: bool) -> None:
    """Give the last ``depth`` self-attention layers a plain prefix ``attn.qkv.adapter.kv``, in place.

    Raises:
        ConfigError: the model has no such layers.
    """
    assert scale is not None
    for layer in attention_layers(model, depth):
        _attach(layer, PlainPrefix(_qkv(layer).in_features, scale, zero))


def _qkv(layer: nn.Module) -> nn.Linear:
    assert isinstance(layer.qkv, nn.Linear)
    return layer.qkv


def _attach(layer: nn.Module, prefix: nn.Module) -> None:
    _qkv(layer).adapter = prefix
    _qkv(layer).register_forward_hook(add_to_keys_and_values)


def add_to_keys_and_values(qkv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    extra = qkv.adapter(inputs[0])
    if (
        torch.compiler.is_compiling()
    ):  # its own kernels copy nothing either, and it can't look into an autograd function
        return output + F.pad(extra, (output.shape[-1] - extra.shape[-1], 0))
    result: Tensor = _AddToTail.apply(output, extra)
    return result


class _AddToTail(torch.autograd.Function):
    """``output + concat(0, extra)`` along the last axis, without the zeros.

    Autograd's own ``split``, ``add`` and ``cat`` would copy the gradient of all of queries, keys and values once more on the
    way back; here the gradient is passed on without a copy, and a view of it goes to the prefix.
    """

    @staticmethod
    def forward(output: Tensor, extra: Tensor) -> Tensor:
        head = output.shape[-1] - extra.shape[-1]
        result = torch.empty_like(output)
        result[..., :head] = output[..., :head]
        torch.add(output[..., head:], extra, out=result[..., head:])
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.width = inputs[1].shape[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient[..., gradient.shape[-1] - ctx.width :]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], output: Tensor, extra: Tensor) -> tuple[Tensor, int]:
        first, second = (
            t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape)
            for t, d in zip((output, extra), in_dims, strict=True)
        )
        result: Tensor = _AddToTail.apply(first, second)
        return result, 0
