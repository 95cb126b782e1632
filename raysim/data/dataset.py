"""A pooled data set in memory, and the checks that every source of one makes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.data.partition import Partition
from raysim.errors import ConfigError


@dataclass(frozen=True)
class Dataset:
    """A pooled data set of n samples.

    Attributes:
        images: (n, H, W, C) uint8, C is 1 or 3.
        labels: (n,) int64, from 0.
        class_names: one for each class.
        domains: (n,) int64 into ``domain_names``, or None.
        split: the clients' samples, where the data set comes divided.
        cache: the key of the images in the image cache, if they are mapped from there.
        known_digest: of the images, if it was computed before.
        notes: what a user should know of how they were read, a line each.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    domains: NDArray[np.int64] | None = None
    domain_names: tuple[str, ...] = ()
    split: Partition | None = None
    cache: str = ""
    known_digest: str = ""
    notes: tuple[str, ...] = ()

    def with_images(self, images: NDArray[np.uint8]) -> Dataset:
        """The same with other images, in memory."""
        return replace(self, images=images, cache="", known_digest="")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of images, labels and domains."""
        sha = hashlib.sha256((self.known_digest or _digest(self.images)).encode())
        for array in (self.labels, self.domains):
            if array is not None:
                sha.update(_digest(array).encode())
        return sha.hexdigest()[:16]


def _digest(array: NDArray[Any]) -> str:
    sha = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


def class_labels(values: NDArray[Any], n: int, what: str, path: Path) -> NDArray[np.int64]:
    """Check class labels and return them as integers (n,) from 0; the error says what they are instead."""
    if values.shape != (n,) or not np.issubdtype(values.dtype, np.integer):
        raise ConfigError(f"data.root: {what} of {path} are {values.dtype} {values.shape}, not integers ({n},)")
    if n == 0 or int(values.min()) < 0 or int(values.max()) >= 2**31:
        problem = "there are none" if n == 0 else f"they go from {values.min()} to {values.max()}, classes count from 0"
        raise ConfigError(f"data.root: {what} of {path} are out of range: {problem}")
    return values.astype(np.int64)


def numbers_as_names(labels: NDArray[np.int64], path: Path) -> tuple[str, ...]:
    """Class names for labels that have none: their numbers. Every class must have a sample."""
    present = np.unique(labels)
    if (last := int(present[-1])) >= len(present):
        gaps = ", ".join(map(str, np.setdiff1d(np.arange(min(last, 10 * len(present))), present)[:5]))
        raise ConfigError(
            f"data.root: labels of {path} go up to {last}, but no sample has {gaps}: out of range, or not numbered "
            "from 0 without gaps"
        )
    return tuple(str(i) for i in range(last + 1))
