"""Where a plugin can go: the self-attention layers and the blocks of a timm ViT."""

from __future__ import annotations

from torch import nn

from raysim.errors import ConfigError


def attention_layers(model: nn.Module, depth: int | None) -> list[nn.Module]:
    """The last ``depth`` (None: all) modules with a linear ``qkv`` of width 3 D, from input to output.

    Raises:
        ConfigError: there are none, or fewer than ``depth``.
    """
    return _last([module for module in model.modules() if _has_qkv(module)], depth, model, "self-attention layer")


def blocks(model: nn.Module, depth: int | None) -> list[nn.Module]:
    """The last ``depth`` (None: all) blocks, modules with ``attn.qkv`` as above and ``mlp``, from input to output.

    Raises:
        ConfigError: there are none, or fewer than ``depth``.
    """
    found = [
        m
        for m in model.modules()
        if _has_qkv(getattr(m, "attn", None)) and isinstance(getattr(m, "mlp", None), nn.Module)
    ]
    return _last(found, depth, model, "block")


def _has_qkv(module: object) -> bool:
    qkv = getattr(module, "qkv", None)
    return isinstance(qkv, nn.Linear) and qkv.out_features == 3 * qkv.in_features


def _last(found: list[nn.Module], depth: int | None, model: nn.Module, what: str) -> list[nn.Module]:
    if not found:
        raise ConfigError(
            f"model.name: {type(model).__name__} has no {what} with a linear `qkv`, so the plugin has nowhere to go. "
            "vit_*, deit_* and other timm models whose blocks have `attn.qkv` do"
        )
    if depth is not None and depth > len(found):
        raise ConfigError(
            f"algorithm.plugin_depth: the last {depth} {what}s are asked for, {type(model).__name__} has {len(found)}"
        )
    return found[len(found) - (depth or len(found)) :]
