"""A new model is tried on one image: does it fit, and does everything take part that should?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raysim.config.sections.training import ModelConfig
from raysim.errors import ConfigError
from raysim.functional.model_parts import Representation, classifier_of
from raysim.functional.parameters import classifier_names, pretrained_cfg


def try_out(
    model: nn.Module,
    config: ModelConfig,
    in_channels: int,
    num_classes: int,
    plugin: dict[str, nn.Parameter],
    uses_features: bool,
    rebuilt: Callable[[int], nn.Module] | None,
) -> None:
    """One image of noise through the model and back.

    Its logits must be one number per class; with ``uses_features`` they must be those of its classifier on its
    representation. Every pixel must reach them if images are cut into patches, and they must depend on every parameter that
    the plugin added: some timm models (BEiT, EVA) read ``qkv.weight`` and never call ``qkv``, so that a plugin there would
    silently do nothing.

    Args:
        plugin: the parameters that the plugin added, by name.
        rebuilt: the model for another size of image, without weights; None: whatever it sees of an image is fine.

    Raises:
        ConfigError: one of these does not hold.
    """
    with _without_zeros(model):
        image = _noise(in_channels, config.image_size).requires_grad_()
        try:
            logits = model(image)
        except Exception as error:  # whatever a model of timm raises for a size that it can't take
            raise ConfigError(
                f"model: {config.name} can't take images of {config.image_size} pixels with kwargs {config.kwargs}"
                f"{' and this plugin' if plugin else ''}: {error}"
            ) from error
        _check_logits(model, config, image, logits, num_classes, uses_features)
        reached = torch.autograd.grad(_one_number(logits), [image, *plugin.values()], allow_unused=True)
    if unused := [name for name, gradient in zip(plugin, reached[1:], strict=True) if gradient is None]:
        raise ConfigError(
            f"model.name: {config.name} never uses the plugin's {unused[0]}: its attention reads the weights of `qkv` "
            "directly. vit_*, deit_*, cait_* and swin_* models call it"
        )
    # Convolutions may well leave out a border, and some models do at the size that their weights are for.
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) else patch
    is_native = pretrained_cfg(model).get("input_size", (0,))[-1] == config.image_size
    if rebuilt is not None and isinstance(patch, int) and not is_native and (seen := _seen(reached[0])) < 1:
        _refuse_size(config, in_channels, seen, patch, rebuilt)


@contextmanager
def _without_zeros(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and noise in parameters that begin as zeros (heads, the ends of residual branches), for a while.

    Behind zeros, the logits would depend on less than they do after a step.
    """
    generator = torch.Generator().manual_seed(2)
    zeros = [parameter for parameter in model.parameters() if not parameter.any()]
    with torch.no_grad():
        for parameter in zeros:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.eval()
    try:
        yield
    finally:
        model.train()
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()


def _check_logits(
    model: nn.Module, config: ModelConfig, image: Tensor, logits: Tensor, num_classes: int, uses_features: bool
) -> None:
    if logits.shape != (1, num_classes):
        raise ConfigError(
            f"model.kwargs: {config.name} with kwargs {config.kwargs} gives {tuple(logits.shape)} numbers for an image, not "
            f"one for each of {num_classes} classes; leave global_pool as it is"
        )
    if uses_features:
        head = model.get_submodule(classifier_of(model, classifier_names(model)))
        if not torch.allclose(head(Representation(model)(image)), logits, atol=1e-4):
            raise ConfigError(f"model.name: the logits of {config.name} are not its classifier's on its representation")


def _noise(channels: int, side: int) -> Tensor:
    return torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))


def _one_number(logits: Tensor) -> Tensor:
    """A sum with weights: a plain one of logits that are normalised would depend on nothing."""
    return (logits * torch.rand(logits.shape, generator=torch.Generator().manual_seed(1))).sum()


def _seen(gradient: Tensor | None) -> float:
    """The share of an image that the logits depend on, by whole rows and columns: a maximum of pixels ignores single ones."""
    if gradient is None:
        return 0.0
    used = gradient[0].abs().amax(0) > 0
    return float(used.any(1).float().mean() * used.any(0).float().mean())


def _refuse_size(
    config: ModelConfig, in_channels: int, seen: float, patch: int, rebuilt: Callable[[int], nn.Module]
) -> None:
    side = config.image_size
    below, above = range(side - side % patch or patch, 0, -patch), range(side - side % patch + patch, side + 129, patch)
    fits = [
        next((s for s in sizes[:40] if s != side and _takes_all(s, in_channels, rebuilt)), None)
        for sizes in (below, above)
    ]
    known = " or ".join(str(size) for size in fits if size is not None)
    raise ConfigError(
        f"model.image_size: {100 * (1 - seen):.0f} % of images of {side} pixels never reach the logits of {config.name} with "
        f"kwargs {config.kwargs}: its patches do not divide {side}{f'; take {known}' if known else ''}"
    )


def _takes_all(side: int, in_channels: int, rebuilt: Callable[[int], nn.Module]) -> bool:
    try:
        model, image = rebuilt(side), _noise(in_channels, side).requires_grad_()
        with _without_zeros(model):
            (gradient,) = torch.autograd.grad(_one_number(model(image)), [image], allow_unused=True)
    except Exception:  # not a size for this model, for whatever reason
        return False
    return _seen(gradient) == 1
