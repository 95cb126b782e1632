"""From stored uint8 images to what the model sees: gathered, augmented, resized and normalised on the device.

Shapes: ``..., H, W, C`` stored, ``..., C, S, S`` out, for a model image size of S pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.config.schema import Config
from raysim.data.images import resize


def draw_augmentation(
    name: str, n: int, side: int, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Flips (n,) and shifts (n, 2), pixels down and right: ``flip`` mirrors half, ``crop_flip`` also shifts by side / 8."""
    flips = rng.random(n) < 0.5
    reach = max(1, side // 8) if name == "crop_flip" else 0
    return flips, rng.integers(-reach, reach + 1, (n, 2))


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
