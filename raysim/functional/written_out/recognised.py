"""Which module of timm becomes which layer; a module that is not known goes through autograd, on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm import layers as timm_layers
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn

from raysim.functional.parameters import ParameterLayout
from raysim.functional.written_out.attention import Attention, Block, FirstTokens
from raysim.functional.written_out.embedding import Embedding, Pool
from raysim.functional.written_out.layers import (
    Chain,
    Gelu,
    Layer,
    LayerNorm,
    LayerScale,
    Linear,
    Plus,
    identity,
    relu,
    tanh,
)
from raysim.functional.written_out.through_autograd import ThroughAutograd
from raysim.functional.written_out.transformer import Stage, WrittenOut
from raysim.plugins.adapter import Adapter, add_adapter_output
from raysim.plugins.lora import LoRA, add_low_rank
from raysim.plugins.prefix import PlainPrefix, Prefix, add_to_keys_and_values

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def written_out(model: Any, layout: ParameterLayout) -> WrittenOut | None:
    """The model, written out; None if it is not a plain ``VisionTransformer`` of timm."""
    if type(model) is not timm_vit.VisionTransformer or not (_is_plain(model) and _is_plain(model.blocks)):
        return None
    if layout.statistics or model.grad_checkpointing or _shares_parameters(model):
        return None
    frozen = {n: p.detach() for n, p in model.named_parameters() if n in set(layout.frozen)}
    stages = [_embedding(model), *_blocks(model), *_pooled(model)]
    return WrittenOut(stages, _stage(model.head, "head"), layout, frozen)


def _shares_parameters(model: nn.Module) -> bool:
    """Whether a parameter has two places in the model: its gradient would be a sum."""
    named = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    return len(set(named)) < len(named)


def _hooks(module: nn.Module) -> list[Any]:
    return [hook for kind in HOOKS for hook in getattr(module, kind).values()]


def _is_plain(module: nn.Module) -> bool:
    """Whether calling the module is calling its class's ``forward``."""
    return not _hooks(module) and "forward" not in vars(module)


# The parts of a ViT.


def _stage(module: nn.Module, name: str) -> Stage:
    return Stage(layer_of(module, name), tuple(f"{name}.{own}" for own, _ in module.named_parameters()))


def _embedding(model: Any) -> Stage:
    """From images to the first block's input."""
    wrapped = _EmbeddingModule(model)
    names = _names_in(wrapped, "patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre")
    patches = model.patch_embed
    known = (
        type(patches) is timm_layers.PatchEmbed
        and all(map(_is_plain, (patches, patches.proj)))
        and patches.flatten
        and patches.strict_img_size
        and all(_does_nothing(m) for m in (patches.norm, model.pos_drop, model.patch_drop, model.norm_pre))
        and model.reg_token is None
        and not (model.no_embed_class or model.dynamic_img_size)
    )
    if not known:
        return Stage(ThroughAutograd(wrapped, names), tuple(names.values()))
    has = patches.proj.bias is not None, model.cls_token is not None, model.pos_embed is not None
    return Stage(Embedding(patches.patch_size, tuple(patches.img_size), *has), tuple(names.values()))


def _names_in(wrapped: nn.Module, *parts: str) -> dict[str, str]:
    """The parameters of these parts of the module ``model`` that ``wrapped`` has, and what the model calls them."""
    names = {own: own.removeprefix("model.") for own, _ in wrapped.named_parameters()}
    return {own: name for own, name in names.items() if name.split(".")[0] in parts}


class _EmbeddingModule(nn.Module):
    """What a ``VisionTransformer`` does before its blocks."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model: Any = self.model
        tokens: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return tokens


def _blocks(model: Any) -> list[Stage]:
    """All blocks; the last returns the class token only, if no other reaches the representation."""
    stages = [_stage(block, f"blocks.{i}") for i, block in enumerate(model.blocks)]
    last = stages[-1].layer
    if isinstance(last, Block) and _pools_simply(model) == "token":
        stages[-1] = replace(stages[-1], layer=FirstTokens(last, 1))
    return stages


def _pooled(model: Any) -> list[Stage]:
    """From the last block's output to the representation."""
    norm = _stage(model.norm, "norm")
    if kind := _pools_simply(model):
        pool = Stage(Pool(kind, 0 if model.pool_include_prefix else model.num_prefix_tokens), ())
        return [norm, pool, _stage(model.fc_norm, "fc_norm"), _stage(model.head_drop, "head_drop")]
    wrapped = _PoolingModule(model)
    names = _names_in(wrapped, "attn_pool", "fc_norm")
    return [norm, Stage(ThroughAutograd(wrapped, names), tuple(names.values()))]


def _pools_simply(model: Any) -> str | None:
    return model.global_pool if model.attn_pool is None and model.global_pool in ("token", "avg") else None


class _PoolingModule(nn.Module):
    """What a ``VisionTransformer`` does between its last norm and its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        model: Any = self.model
        representation: Tensor = model.forward_head(tokens, pre_logits=True)
        return representation


# Modules, by their class. A function returns None where a setting makes the module another than what is written out.


def layer_of(module: nn.Module, name: str) -> Layer:
    """The layer for a module of that name in the model."""
    hooks, any_module = _hooks(module), module
    known = KNOWN.get((type(module), *hooks)) if "forward" not in vars(module) else None
    layer = known(any_module, name) if known else None
    return layer or ThroughAutograd(module, {own: f"{name}.{own}" for own, _ in module.named_parameters()})


def _does_nothing(module: nn.Module) -> bool:
    return layer_of(module, "") is identity


def _linear(module: Any, name: str) -> Linear:
    return Linear(name, module.bias is not None)


def _linear_plus(plugin: str) -> Callable[[Any, str], Layer]:
    return lambda module, name: Plus(_linear(module, name), layer_of(getattr(module, plugin), f"{name}.{plugin}"))


def _layer_norm(module: Any, name: str) -> Layer | None:
    if len(module.normalized_shape) != 1 or getattr(module, "_fast_norm", False):
        return None
    return LayerNorm(name, module.eps, module.weight is not None, module.bias is not None)


def _mlp(module: Any, name: str) -> Layer:
    parts = ("fc1", "act", "drop1", "norm", "fc2", "drop2")
    layers = [layer_of(getattr(module, part), f"{name}.{part}") for part in parts]
    return Chain(tuple(layer for layer in layers if layer is not identity))


def _bottleneck(activation: Layer) -> Callable[[Any, str], Layer]:
    """``scale * up(activation(down(x)))``."""

    def layer(module: Any, name: str) -> Layer:
        has_bias = module.up.bias is not None
        ends = Linear(f"{name}.down", has_bias), Linear(f"{name}.up", has_bias, module.scale)
        return Chain((ends[0], activation, ends[1]))

    return layer


def _attention(module: Any, name: str) -> Layer | None:
    extras = (module.q_norm, module.k_norm, getattr(module, "norm", nn.Identity()), module.attn_drop, module.proj_drop)
    qkv = layer_of(module.qkv, f"{name}.qkv")
    if not all(map(_does_nothing, extras)) or getattr(module, "gate", None) is not None:
        return None
    projection = layer_of(module.proj, f"{name}.proj")
    return Attention(qkv, *_cut(module.qkv, qkv), projection, module.num_heads, module.scale)


def _cut(module: Any, qkv: Layer) -> tuple[Layer | None, Layer | None]:
    """Queries alone, and keys and values alone, of a layer that gives all three and of its module."""
    linear = qkv.layer if isinstance(qkv, Plus) and _hooks(module) == [add_to_keys_and_values] else qkv
    if not isinstance(linear, Linear):
        return None, None
    width = module.out_features // 3
    queries, rest = replace(linear, stop=width), replace(linear, start=width)
    return queries, Plus(rest, qkv.extra) if isinstance(qkv, Plus) else rest


def _block(module: Any, name: str) -> Layer:
    parts = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
    norm1, attention, *after1, norm2, mlp, scale2, path2 = (layer_of(getattr(module, p), f"{name}.{p}") for p in parts)
    return Block(norm1, attention, Chain(tuple(after1)), norm2, mlp, Chain((scale2, path2)))


KNOWN: dict[tuple[Any, ...], Callable[[Any, str], Layer | None]] = {
    (nn.Identity,): lambda module, name: identity,
    (nn.Dropout,): lambda module, name: None if module.p else identity,
    (nn.Linear,): _linear,
    (nn.Linear, add_to_keys_and_values): _linear_plus("adapter"),
    (nn.Linear, add_low_rank): _linear_plus("lora"),
    (nn.GELU,): lambda module, name: Gelu(module.approximate),
    (nn.LayerNorm,): _layer_norm,
    (timm_layers.LayerNorm,): _layer_norm,
    (timm_layers.LayerScale,): lambda module, name: LayerScale(name),
    (timm_layers.Mlp,): _mlp,
    (timm_layers.Mlp, add_adapter_output): lambda module, name: Plus(
        _mlp(module, name), layer_of(module.adapter, f"{name}.adapter")
    ),
    (timm_vit.Attention,): _attention,
    (timm_vit.LayerScale,): lambda module, name: LayerScale(name),
    (timm_vit.Block,): _block,
    (Prefix,): _bottleneck(tanh),
    (Adapter,): _bottleneck(relu),
    (LoRA,): _bottleneck(identity),
    (PlainPrefix,): lambda module, name: Linear(f"{name}.kv", True, module.scale),
}
