"""Image files as arrays, and resizing: the same pixels in training, in ``raysim predict`` and from an export's README."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations by which width and height change places."""
ORIENTATION = 0x0112


def image_size(path: Path | BinaryIO) -> tuple[int, int]:
    """Width and height in pixels, turned as EXIF says; of most formats it reads the header only.

    Raises:
        OSError, ValueError, DecompressionBombError, ...: as Pillow's decoders do.
    """
    from PIL import Image, ImageOps  # not at the top: only image files need it

    with Image.open(path) as image:
        if image.format == "TIFF":  # whether Pillow has turned it already depends on its version
            return ImageOps.exif_transpose(image).size
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION) in SIDEWAYS else (width, height)


def read_image(path: Path | BinaryIO, channels: int) -> NDArray[np.uint8]:
    """An image (H, W, C) of 1 channel (grey) or 3 (RGB), turned as EXIF says, what is transparent on white.

    Of colours with 16 bits per channel Pillow reads the upper 8.

    Raises:
        TooDeep: it is grey with more than 8 bits.
        OSError, ValueError, DecompressionBombError, ...: as Pillow's decoders do.
    """
    from PIL import Image, ImageOps  # not at the top: only image files need it

    with Image.open(path) as file:
        if file.mode.startswith("I") or file.mode == "F":
            raise TooDeep(f"has more than 8 bits per channel ({file.mode}); convert it first")
        image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
            image = white
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


class TooDeep(ValueError):
    """An image of more than 8 bits per channel."""


def resize(images: Tensor, size: int) -> Tensor:
    """Images (n, C, H, W) float, from 0 to 255, to (n, C, size, size): bilinear with antialiasing, to whole grey levels.

    Whole, so that it makes no difference whether an image was resized when it was stored or is on its way to the model.
    """
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True).round_()


def resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """``resize`` of a stored image (H, W, C)."""
    x = resize(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float(), size)[0]
    array: NDArray[np.uint8] = x.permute(1, 2, 0).to(torch.uint8).numpy()
    return array
