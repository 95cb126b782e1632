"""Images that come as numbers: what their range says they are, and how they become 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.errors import ConfigError

# Mean and standard deviation of images between 0 and 1, by which torchvision, timm and many tutorials normalise.
KNOWN = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 (other std)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
}
UNIT, SYMMETRIC, BYTES = "[0, 1]", "[-1, 1]", "0 to 255"


def range_of(images: NDArray[Any], where: str) -> str:
    """Which of the ranges that raysim knows a client's images have.

    Raises:
        ConfigError: none of them; says what they look like.
    """
    if images.dtype == np.uint8:
        return BYTES
    low, high = float(images.min()), float(images.max())
    if np.isfinite([low, high]).all():
        if -1.001 <= low < 0 and high <= 1.001:
            return SYMMETRIC
        if low >= 0 and high <= 1.001:
            return UNIT
        if low >= 0 and high <= 255:
            return BYTES
    hint = looks_like(low, high)
    raise ConfigError(
        f"data.root: images of {where} go from {low:g} to {high:g}; raysim knows [-1, 1], [0, 1] and 0 to 255"
        f"{f'. {hint}' if hint else ''}"
    )


def looks_like(low: float, high: float) -> str:
    """What images in this range are, if a usual normalisation gives it, and what to do about it; else nothing."""
    for name, (mean, std) in KNOWN.items():
        least, most = ([(end - m) / s for m, s in zip(mean, std, strict=True)] for end in (0.0, 1.0))
        if abs(low - min(least)) < 0.02 and max(most) / 2 < high <= max(most) + 0.02:
            return (
                f"They look normalised by the mean {mean} and standard deviation {std} of {name}: save them as they were "
                "before (x * std + mean); raysim normalises by itself (data.normalize)"
            )
    return ""


def as_8_bits(images: NDArray[Any], of: str) -> NDArray[np.uint8]:
    """Images in a range of ``range_of`` as bytes, rounded to the nearest level: exact for what was 8 bits before."""
    if images.dtype == np.uint8:
        return images
    scale, offset = {SYMMETRIC: (127.5, 127.5), UNIT: (255.0, 0.0), BYTES: (1.0, 0.0)}[of]
    return np.clip(np.rint(images * scale + offset), 0, 255).astype(np.uint8)


def doubts(ranges: Sequence[tuple[int, str]], highest: float) -> list[str]:
    """What a user should know of clients' files in these ranges; ``highest`` is that of all pixels, as 8 bits."""
    found = {kind: sorted({client for client, of in ranges if of == kind}) for _, kind in ranges}
    lines = []
    if len(found) > 1:
        counts = ", ".join(f"{len(ids):,} clients {kind} (client {ids[0]}, …)" for kind, ids in found.items())
        lines.append(f"images of clients differ in range, and are read each by their own: {counts}")
    if BYTES in found and highest < 64:
        lines.append(
            f"no pixel is above {highest:g} of 255, so images are nearly black: multiply them by {255 / max(highest, 1):.3g}?"
        )
    return lines
