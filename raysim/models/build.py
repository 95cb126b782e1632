"""Models for the simulation: timm's by name, at any image size, or a user's own, with an algorithm's plugin."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from raysim import seeds
from raysim.algorithms.base import FederatedAlgorithm
from raysim.config.locations import local_path
from raysim.config.sections.training import ModelConfig
from raysim.errors import ConfigError
from raysim.models.trial import try_out
from raysim.models.weights import load_weights
from raysim.own_code import checked_options, is_own_model, own_function


def build_model(
    config: ModelConfig, algorithm: FederatedAlgorithm, num_classes: int, in_channels: int, seed: int, new: bool = True
) -> nn.Module:
    """The model with the algorithm's plugin, initialised from the seed (or from pretrained weights).

    ``new``: for a run to come, which must see every pixel; others were accepted before.

    Raises:
        ConfigError: timm does not know the name or its arguments, the weights can't be had or don't fit, or the model
            has no place for the plugin.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.torch_seed(seed, "model"))
        model = _new_model(config, num_classes, in_channels)
        before = {name for name, _ in model.named_parameters()}
        algorithm.add_plugin(model)
        if algorithm.plugin is not None and len([*model.parameters()]) == len(before):
            raise ConfigError(f"algorithm.plugin: {algorithm.plugin} adds no parameters to {config.name}")
        plugin = {name: p for name, p in model.named_parameters() if name not in before}
        if config.weights is not None:
            load_weights(model, local_path(config.weights, "model.weights"), optional=set(plugin))

        def rebuilt(side: int) -> nn.Module:
            return plain_model(config.model_copy(update={"image_size": side}), num_classes, in_channels)[0]

        try_out(model, config, in_channels, num_classes, plugin, algorithm.uses_features, rebuilt if new else None)
        algorithm.add_modules(model)
    return model


def has_batch_norm(model: nn.Module) -> bool:
    """Whether samples of a batch depend on each other in training, so that clients can't be padded or vectorised."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _new_model(config: ModelConfig, num_classes: int, in_channels: int) -> nn.Module:
    if is_own_model(config.name):
        return _own_model(config, num_classes, in_channels)[0]
    if ":" not in config.name and not timm.is_model(config.name):
        close = get_close_matches(config.name, timm.list_models(), n=3)
        raise ConfigError(
            f"model.name: timm has no model {config.name!r}; the nearest are {', '.join(close) or 'none'}; your own is "
            "module:function"
        )
    try:
        return _create(config, num_classes, in_channels)[0]
    except Exception as error:  # timm passes on whatever a wrong argument leads to, even ZeroDivisionError
        if config.pretrained and isinstance(error, (RuntimeError, OSError)):
            raise _no_weights(config.name, error) from error
        raise ConfigError(
            f"model: timm can't build {config.name} at image_size {config.image_size} with kwargs {config.kwargs}: "
            f"{error or type(error).__name__}"
        ) from error


def plain_model(config: ModelConfig, num_classes: int, in_channels: int) -> tuple[nn.Module, dict[str, Any]]:
    """The model without a plugin or trained values, and the arguments of ``timm.create_model``, or of a user's own function,
    that make it."""
    if is_own_model(config.name):
        return _own_model(config, num_classes, in_channels)
    return _create(config.model_copy(update={"pretrained": False}), num_classes, in_channels)


def _own_model(config: ModelConfig, num_classes: int, in_channels: int) -> tuple[nn.Module, dict[str, Any]]:
    """What a user's function makes, and its arguments.

    Raises:
        ConfigError: there is no such function, ``kwargs`` are not its, or it returns no module.
    """
    function = own_function(config.name, "model.name")
    arguments = {"num_classes": num_classes, "in_chans": in_channels, "img_size": config.image_size, **config.kwargs}
    checked_options(function, config.kwargs, config.name, "model.kwargs", [*arguments][:3], by_name=True)
    model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.name: {config.name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model, arguments


def _create(config: ModelConfig, num_classes: int, in_channels: int) -> tuple[nn.Module, dict[str, Any]]:
    arguments = {"num_classes": num_classes, "in_chans": in_channels, **config.kwargs}
    sized = {"img_size": config.image_size, **arguments}
    try:
        return timm.create_model(config.name, pretrained=config.pretrained, **sized), sized
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    # A convolutional model takes images of any size.
    return timm.create_model(config.name, pretrained=config.pretrained, **arguments), arguments


def _no_weights(name: str, error: Exception) -> ConfigError:
    hub = name.partition(":")[2] or getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None) or f"timm/{name}"
    return ConfigError(
        f"model.pretrained: the weights of {name} can't be fetched or don't fit: {error}\nIf this machine has no internet, "
        f"download model.safetensors from https://huggingface.co/{hub} elsewhere, copy it here, and set "
        "model.pretrained=false model.weights=<path of the file>"
    )


def tokens_per_image(model: nn.Module, image_size: int) -> int:
    """How many tokens a ViT makes of an image; 16-pixel patches are assumed where the model does not say."""
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return 1 + int(patches if patches is not None else (image_size // 16) ** 2)
