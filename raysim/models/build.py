"""timm models for the simulation: any ViT by name, at any image size, with an algorithm's plugin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from raysim import seeds
from raysim.errors import ConfigError

if TYPE_CHECKING:
    from algorithms.base import FederatedAlgorithm
    from raysim.config import ModelConfig


def build_model(
    config: ModelConfig, algorithm: FederatedAlgorithm, num_classes: int, in_channels: int, seed: int
) -> nn.Module:
    """The model with the algorithm's plugin, initialised from the seed (or from pretrained weights).

    Raises:
        ConfigError: timm does not know the name or its arguments, the weights can't be had or don't fit, or the model
            has no place for the plugin.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.torch_seed(seed, "model"))
        model = _timm_model(config, num_classes, in_channels)
        before = set(model.modules())
        algorithm.add_plugin(model)
    if config.weights is not None:
        _load_weights(model, Path(config.weights))
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise ConfigError(
            f"model.name: {config.name} has BatchNorm layers, which raysim does not train yet; take a ViT"
        )
    _try_forward(model, config, in_channels, [module for module in model.modules() if module not in before])
    return model


def _try_forward(model: nn.Module, config: ModelConfig, in_channels: int, added: list[nn.Module]) -> None:
    """One blank image through the model: it must fit, and must pass through every module that the plugin added.

    Some timm models (BEiT, EVA) read ``qkv.weight`` and never call ``qkv``: a plugin inside it would do nothing, unsaid.
    """
    called: set[nn.Module] = set()
    hooks = [module.register_forward_hook(lambda m, *_: called.add(m)) for module in added]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_channels, config.image_size, config.image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"model: {config.name} can't take images of {config.image_size} pixels with kwargs {config.kwargs}: {error}"
        ) from error
    finally:
        model.train()
        for hook in hooks:
            hook.remove()
    if unused := [type(module).__name__ for module in added if module not in called]:
        raise ConfigError(
            f"model.name: {config.name} never calls the plugin's {unused[0]}: its attention reads the weights of `qkv` "
            "directly. vit_*, deit_* and swin_* models call it"
        )


def _timm_model(config: ModelConfig, num_classes: int, in_channels: int) -> nn.Module:
    if not timm.is_model(config.name):
        from difflib import get_close_matches

        close = get_close_matches(config.name, timm.list_models(), n=3)
        raise ConfigError(
            f"model.name: timm has no model {config.name!r}; the nearest are {', '.join(close) or 'none'}"
        )
    arguments = {"num_classes": num_classes, "in_chans": in_channels, "img_size": config.image_size, **config.kwargs}
    try:
        return timm.create_model(config.name, pretrained=config.pretrained, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, OSError) as error:
        if config.pretrained and isinstance(error, (RuntimeError, OSError)):
            raise _no_weights(config.name, error) from error
        raise ConfigError(
            f"model: timm can't build {config.name} at image_size {config.image_size} with kwargs {config.kwargs}: {error}"
        ) from error


def _no_weights(name: str, error: Exception) -> ConfigError:
    hub = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None) or f"timm/{name}"
    return ConfigError(
        f"model.pretrained: the weights of {name} can't be fetched or don't fit: {error}\nIf this machine has no internet, "
        f"download model.safetensors from https://huggingface.co/{hub} elsewhere, copy it here, and set "
        "model.pretrained=false model.weights=<path of the file>"
    )


def _load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file in timm's names; a head of other size and a missing plugin keep their initial values."""
    try:
        weights = safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise ConfigError(f"model.weights: there is no file {path}") from error
    except SafetensorError as error:
        raise ConfigError(f"model.weights: {path} is not a safetensors file ({error})") from error
    own = model.state_dict()
    unknown = sorted(weights.keys() - own.keys())
    missing = sorted(name for name in own.keys() - weights.keys() if "adapter" not in name.split("."))
    kept = {}
    for name, tensor in weights.items():
        if name in own and tensor.shape != own[name].shape:
            fitted = _fitted(name, tensor, own[name], model)
            if fitted is None:
                continue
            tensor = fitted
        kept[name] = tensor
    if unknown or missing:
        raise ConfigError(
            f"model.weights: {path} does not fit the model. Only in the file: {', '.join(unknown) or 'nothing'}. "
            f"Only in the model: {', '.join(missing) or 'nothing'}"
        )
    model.load_state_dict(kept, strict=False)


def _fitted(name: str, tensor: Tensor, own: Tensor, model: nn.Module) -> Tensor | None:
    """A tensor of other shape, made to fit: position embeddings resampled, a head for other classes left out."""
    if name.split(".")[0] == "head":
        return None
    if name == "pos_embed":
        grid = model.patch_embed.grid_size  # type: ignore[union-attr]
        prefix_tokens = int(getattr(model, "num_prefix_tokens", 1))
        return resample_abs_pos_embed(tensor, list(grid), num_prefix_tokens=prefix_tokens)  # type: ignore[arg-type]
    raise ConfigError(f"model.weights: {name} is {tuple(tensor.shape)} in the file and {tuple(own.shape)} in the model")


def tokens_per_image(model: nn.Module, image_size: int) -> int:
    """How many tokens a ViT makes of an image; 16-pixel patches are assumed where the model does not say."""
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return 1 + int(patches if patches is not None else (image_size // 16) ** 2)


def set_fused_attention(model: nn.Module, fused: bool) -> None:
    """Switch timm's fused attention kernels; they have no batching rule under ``vmap`` on a CPU."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", fused)  # noqa: B010 - a plain attribute, which torch's types do not know
