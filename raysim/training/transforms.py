"""From stored uint8 images to what the model sees: gathered, augmented, resized and normalised on the device.

Shapes: ``..., H, W, C`` stored, ``..., C, S, S`` out, for a model image size of S pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.config.schema import Config
from raysim.data.images import resize
from raysim.errors import ConfigError
from raysim.own_code import is_own, own_function

NUMBERS = 8  # uniform ones that a user's own augmentation gets for a sample


@dataclass(frozen=True)
class Augmentation:
    """
    Attributes:
        draw: for n samples with images of so many pixels, from a client's generator: arrays (n, ...), of fixed types.
        apply: images (n, H, W, C) uint8 and what was drawn, on the device, to images of the same shape.
    """

    draw: Callable[[int, int, np.random.Generator], tuple[NDArray[Any], ...]]
    apply: Callable[..., Tensor]


def augmentation(name: str) -> Augmentation | None:
    """What ``data.augment`` names; None for ``none``.

    Raises:
        ConfigError: there is no such function of the user's.
    """
    if name == "none":
        return None
    if is_own(name):
        return Augmentation(_draw_numbers, own_function(name, "data.augment"))
    return Augmentation(partial(_draw_moves, name == "crop_flip"), augment)


def _draw_moves(shifted: bool, n: int, side: int, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """Flips (n,) of half of the images, and shifts (n, 2), pixels down and right, by up to side / 8 if asked for."""
    flips = rng.random(n) < 0.5
    reach = max(1, side // 8) if shifted else 0
    return flips, rng.integers(-reach, reach + 1, (n, 2))


def _draw_numbers(n: int, side: int, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """(n, NUMBERS) uniform in [0, 1)."""
    return (rng.random((n, NUMBERS), np.float32),)


def check_augmentation(name: str, stored: NDArray[np.uint8]) -> None:
    """Try a user's own augmentation on two of the images, if they have been read.

    Raises:
        ConfigError: it raises, or does not return images of the same shape and type.
    """
    found = augmentation(name)
    if found is None or not is_own(name) or 0 in stored.shape:
        return
    images = torch.from_numpy(np.array(stored[:2]))
    try:
        made = found.apply(images.clone(), torch.full((len(images), NUMBERS), 0.5))
    except Exception as error:  # a user's code raises what it likes
        raise ConfigError(f"data.augment: {name} failed on images {tuple(images.shape)}: {error!r}") from error
    if not isinstance(made, Tensor) or made.dtype != torch.uint8 or made.shape != images.shape:
        returned = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise ConfigError(
            f"data.augment: {name} made {returned} of torch.uint8 {tuple(images.shape)}; both must be the same"
        )


def augment(images: Tensor, flips: Tensor, shifts: Tensor) -> Tensor:
    """Mirror and shift images (n, H, W, C) uint8, zeros where nothing is left; flips (n,) bool, shifts (n, 2) int64.

    A shifted image is what a random crop of the zero-padded image gives.
    """
    n, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device) - shifts[:, :1]
    cols = torch.arange(width, device=images.device) - shifts[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None, :]
    cols = torch.where(flips[:, None], width - 1 - cols, cols)
    sample = torch.arange(n, device=images.device)[:, None, None]
    moved = images[sample, rows.clamp(0, height - 1)[:, :, None], cols.clamp(0, width - 1)[:, None, :]]
    return moved * inside[..., None]


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1), copied to the device once."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


@dataclass(frozen=True)
class ModelInput:
    """From stored images to what the model sees, the same in training, evaluation and prediction.

    Attributes:
        size: side in pixels.
        mean, std: of ``(x / 255 - mean) / std``, one for all channels or one for each.
    """

    size: int
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @classmethod
    def of(cls, config: Config) -> ModelInput:
        normalize = config.data.normalize
        if normalize == "auto":
            assert not config.model.pretrained, "prepare_run resolves it"
            return cls(config.model.image_size)
        return cls(config.model.image_size, tuple(normalize.mean), tuple(normalize.std))

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (..., H, W, C) to float32 (..., C, size, size)."""
        *lead, height, width, channels = images.shape
        x = images.reshape(-1, height, width, channels).permute(0, 3, 1, 2).float()
        x = resize(x, self.size)
        scale = tuple(1 / (255 * std) for std in self.std)
        shift = tuple(mean / std for mean, std in zip(self.mean, self.std, strict=True))
        if len(scale) == 1:
            x = x.mul_(scale[0]).sub_(shift[0])
        else:
            x = x.mul_(_per_channel(scale, x.device)).sub_(_per_channel(shift, x.device))
        return x.reshape(*lead, channels, self.size, self.size)

    def __str__(self) -> str:
        mean, std = (values[0] if len(values) == 1 else list(values) for values in (self.mean, self.std))
        return f"`(x / 255 - {mean}) / {std}`"
