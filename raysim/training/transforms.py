"""From stored uint8 images to what the model sees: gathered, augmented, resized and normalised on the device.

Shapes: ``..., H, W, C`` stored, ``..., C, S, S`` out, for a model image size of S pixels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


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


def to_model_input(images: Tensor, size: int) -> Tensor:
    """uint8 (..., H, W, C) to float32 (..., C, size, size) in [-1, 1]: ``(x / 255 - 0.5) / 0.5`` as in the paper's code."""
    *lead, height, width, channels = images.shape
    x = images.reshape(-1, height, width, channels).permute(0, 3, 1, 2).float()
    if (height, width) != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return x.mul_(2 / 255).sub_(1).reshape(*lead, channels, size, size)
