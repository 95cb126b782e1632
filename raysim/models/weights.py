"""Initial weights from a safetensors file with timm's names, adapted to the model where that is unambiguous."""

from __future__ import annotations

import math
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed
from timm.models._manipulate import adapt_input_conv
from torch import Tensor, nn

from raysim.errors import ConfigError
from raysim.functional.parameters import classifier_names


def load_weights(model: nn.Module, path: Path, optional: set[str]) -> None:
    """Load a file into a model, in place.

    Position embeddings of another image size are resampled, the first layer is adapted to another number of channels
    (both by timm); without a head for these classes in the file, the model keeps its own. Parameters in ``optional``
    (a plugin's) may be missing in the file.

    Raises:
        ConfigError: there is no such file, or it does not fit.
    """
    try:
        if not path.is_file():
            raise ConfigError(f"model.weights: there is no file {path}")
        weights = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        raise ConfigError(f"model.weights: {path} is not a safetensors file ({error})") from error
    own, heads = model.state_dict(), classifier_names(model)
    unknown = sorted(weights.keys() - own.keys())
    missing = sorted(n for n in own.keys() - weights.keys() - optional if not _is_head(n, heads))
    if unknown or missing:
        raise ConfigError(
            f"model.weights: {path} does not fit the model. Only in the file: {_some(unknown)}. "
            f"Only in the model: {_some(missing)}"
        )
    for name, tensor in weights.items():
        if tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex():
            raise ConfigError(f"model.weights: {name} is {tensor.dtype} in {path} and {own[name].dtype} in the model")
    fitted = {name: tensor for name, tensor in weights.items() if tensor.shape == own[name].shape}
    for name in weights.keys() - fitted.keys():
        if not _is_head(name, heads):
            fitted[name] = _fitted(name, weights[name], own[name], model)
    model.load_state_dict(fitted, strict=False)


def _is_head(name: str, heads: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{head}." for head in heads))


def _fitted(name: str, tensor: Tensor, own: Tensor, model: nn.Module) -> Tensor:
    """A tensor of another shape, made to fit by what timm does for its own weights."""
    result: Tensor | None = None
    try:
        if name == "pos_embed" and tensor.dim() == 3 and tensor.shape[2] == own.shape[2]:
            grid = list(model.patch_embed.grid_size)  # type: ignore[union-attr, arg-type]
            in_front = own.shape[1] - grid[0] * grid[1]  # embeddings of the class token and its like
            stored = tensor.shape[1] - in_front
            if in_front >= 0 and stored > 0 and math.isqrt(stored) ** 2 == stored:
                result = resample_abs_pos_embed(tensor, grid, num_prefix_tokens=in_front)
        elif tensor.dim() == 4 and tensor.shape[2:] == own.shape[2:] and tensor.shape[0] == own.shape[0]:
            result = adapt_input_conv(own.shape[1], tensor.float()).to(torch.float32)
    except (NotImplementedError, RuntimeError, AssertionError):  # timm's ways to say that it can't
        result = None
    if result is None or result.shape != own.shape:
        raise ConfigError(
            f"model.weights: {name} is {tuple(tensor.shape)} in the file and {tuple(own.shape)} in the model"
        )
    return result


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more
