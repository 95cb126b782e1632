"""Sub-models of a ViT's width: which entries of its parameters a client of a smaller width has.

Of width r a client has the first ceil(r n) of the n dimensions of each axis: of the residual stream (embeddings, norms,
inputs of layers), of every attention head (queries, keys, values; all heads stay), and of the hidden layer of an MLP. The
axes begin at an offset and wrap around. An entry that is not its own is 0 in its parameters, which is what the smaller model
computes, but for the norms (``SubLayerNorm``) and for the scale of attention (``head_factor``).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raysim.errors import ConfigError
from raysim.functional.parameters import ParameterLayout

RESIDUAL, HEADS, HIDDEN, ALL = "residual", "heads", "hidden", ""
# The axes of a parameter by the end of its name: first that of its outputs, then that of its inputs.
AXES = {
    "patch_embed.proj.weight": (RESIDUAL, ALL),
    "patch_embed.proj.bias": (RESIDUAL, ALL),
    "cls_token": (RESIDUAL, ALL),
    "reg_token": (RESIDUAL, ALL),
    "pos_embed": (RESIDUAL, ALL),
    "norm_pre": (RESIDUAL, ALL),
    "norm1": (RESIDUAL, ALL),
    "norm2": (RESIDUAL, ALL),
    "norm": (RESIDUAL, ALL),
    "fc_norm": (RESIDUAL, ALL),
    "ls1": (RESIDUAL, ALL),
    "ls2": (RESIDUAL, ALL),
    "attn.qkv.weight": (HEADS, RESIDUAL),
    "attn.qkv.bias": (HEADS, ALL),
    "attn.proj.weight": (RESIDUAL, HEADS),
    "attn.proj.bias": (RESIDUAL, ALL),
    "mlp.fc1.weight": (HIDDEN, RESIDUAL),
    "mlp.fc1.bias": (HIDDEN, ALL),
    "mlp.fc2.weight": (RESIDUAL, HIDDEN),
    "mlp.fc2.bias": (RESIDUAL, ALL),
    "head.weight": (ALL, RESIDUAL),
    "head.bias": (ALL, ALL),
}
SCALED = ("patch_embed.proj", "cls_token", "reg_token", "pos_embed", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class Places(NamedTuple):
    """Of every shared parameter (S,): where it is on the axis of its outputs and of its inputs, and how long these are."""

    outputs: Tensor
    num_outputs: Tensor
    inputs: Tensor
    num_inputs: Tensor


def check(layout: ParameterLayout) -> None:
    """Raises a ConfigError if the shared parameters are not those of a whole plain ViT."""
    for name, _ in _shared(layout):
        _axes_of(name)
    if not any(name.endswith("pos_embed") for name, _ in _shared(layout)):
        raise ConfigError("algorithm.freeze_backbone: sub-models of a width train the whole model")


def mask(layout: ParameterLayout, heads: int, width: Tensor, offset: int, device: torch.device) -> Tensor:
    """A boolean vector (S,), true where a client of this width (1,) has a parameter, in axes that begin at an offset."""
    places = _places(layout, heads, device)
    own = [
        torch.remainder(position - offset, size) < torch.ceil(size * width - 1e-4)
        for position, size in ((places.outputs, places.num_outputs), (places.inputs, places.num_inputs))
    ]
    return own[0] & own[1]


def head_factor(layout: ParameterLayout, heads: int, width: Tensor, device: torch.device) -> Tensor:
    """(S,): by what queries are multiplied, so that attention divides by the root of the width of the client's heads."""
    is_query, size = _queries(layout, heads, device)
    return torch.where(is_query, (size / torch.ceil(size * width - 1e-4)).sqrt(), 1.0)


def of_classes(layout: ParameterLayout, classes: Tensor) -> Tensor:
    """A boolean vector (S,), false for the head's rows of classes (C,) that are not chosen."""
    parts = [
        classes.repeat_interleave(torch.Size(shape).numel() // len(classes))
        if name in ("head.weight", "head.bias")
        else classes.new_ones(torch.Size(shape).numel())
        for name, shape in _shared(layout)
    ]
    return torch.cat(parts)


@lru_cache(maxsize=16)
def is_scaled(layout: ParameterLayout, device: torch.device) -> Tensor:
    """A boolean vector (S,), true for parameters of the layers whose outputs HeteroFL divides by the width in training."""
    return layout.split(layout.mask(SCALED))[0].to(device)


@lru_cache(maxsize=16)
def _places(layout: ParameterLayout, heads: int, device: torch.device) -> Places:
    columns: list[list[Tensor]] = [[], [], [], []]
    dim = next(shape[-1] for name, shape in zip(layout.names, layout.shapes, strict=True) if name.endswith("pos_embed"))
    for name, shape in _shared(layout):
        outputs, inputs = _axes_of(name)
        rows = shape[-1] if name.endswith(("_token", "pos_embed")) else shape[0]
        size = torch.Size(shape).numel()
        if name.endswith(("_token", "pos_embed")):
            first, second = torch.arange(size) % rows, torch.zeros(size, dtype=torch.int64)
        else:
            first, second = torch.arange(size) // (size // rows), torch.arange(size) % (size // rows)
        for at, (axis, position) in enumerate(((outputs, first), (inputs, second))):
            length = {RESIDUAL: dim, HEADS: dim // heads, HIDDEN: max(shape), ALL: 1}[axis]
            columns[2 * at].append(position % length)
            columns[2 * at + 1].append(torch.full((size,), length))
    outputs_, num_outputs, inputs_, num_inputs = (torch.cat(column).to(device) for column in columns)
    return Places(outputs_, num_outputs, inputs_, num_inputs)


@lru_cache(maxsize=16)
def _queries(layout: ParameterLayout, heads: int, device: torch.device) -> tuple[Tensor, int]:
    parts, size = [], 1
    for name, shape in _shared(layout):
        part = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
        if name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
            part[: len(part) // 3] = True
            size = shape[0] // 3 // heads
        parts.append(part)
    return torch.cat(parts).to(device), size


def _shared(layout: ParameterLayout) -> list[tuple[str, tuple[int, ...]]]:
    return list(zip(layout.names, layout.shapes, strict=True))[: layout.num_shared_tensors]


def _axes_of(name: str) -> tuple[str, str]:
    for end, axes in AXES.items():
        if f".{name}".endswith(f".{end}") or f".{name}".endswith((f".{end}.weight", f".{end}.bias", f".{end}.gamma")):
            return axes
    raise ConfigError(f"algorithm.name: sub-models of a width need a plain ViT of timm, not one with {name}")


class SubLayerNorm(nn.Module):
    """A layer norm over those dimensions whose weight is not 0; over all of them, it is ``nn.LayerNorm``."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        own = (self.weight != 0).to(x.dtype)
        count = own.sum().clamp(min=1)
        centred = (x - (x * own).sum(dim=-1, keepdim=True) / count) * own
        variance = centred.square().sum(dim=-1, keepdim=True) / count
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias


def replace_norms(model: nn.Module) -> None:
    """Put ``SubLayerNorm`` in the place of all layer norms of a model; parameters keep their names and values."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, SubLayerNorm(child))


def num_heads(model: Any) -> int:
    """How many heads the attention of a plain ViT of timm has.

    Raises:
        ConfigError: the model is none.
    """
    heads = {int(block.attn.num_heads) for block in getattr(model, "blocks", []) if hasattr(block, "attn")}
    if len(heads) != 1 or not hasattr(model, "pos_embed"):
        raise ConfigError("algorithm.name: sub-models of a width need a plain ViT of timm")
    return heads.pop()
