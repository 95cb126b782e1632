"""Image files to pixels: in memory, or once into the image cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from raysim.config.sections.data import DataConfig
from raysim.data import image_cache
from raysim.data.images import TooDeep, image_size, read_image, resized
from raysim.data.npz_files import check_memory
from raysim.errors import ConfigError

SMALL_BYTES = 2 * 2**30  # of decoded images that are kept in memory with `data.cache: auto`
CHUNK = 512  # images that are decoded at a time


@dataclass(frozen=True)
class ImageFile:
    """
    Attributes:
        name: for messages.
        open: what Pillow opens.
    """

    name: str
    open: Callable[[], Path | BinaryIO]


@dataclass(frozen=True)
class LoadedImages:
    """
    Attributes:
        pixels: (n, H, W, C) uint8: in their own size if all have the same, else each resized to the model's side.
        cache: the key in the image cache, if they are mapped from there.
        digest: of the pixels, if it is known.
    """

    pixels: NDArray[np.uint8]
    cache: str = ""
    digest: str = ""


def load_images(
    config: DataConfig, files: Sequence[ImageFile], key_of: Callable[[int | None], str], channels: int, side: int
) -> LoadedImages:
    """Images of 1 channel or 3, where ``data.cache`` says.

    Args:
        key_of: the key of the sources in the cache, for the size to which they are resized, None: not at all.

    Raises:
        ConfigError: one can't be read, or there is no room for all.
    """
    reader = _Reader(files, channels, side)
    if config.cache == "memory":
        return LoadedImages(reader.in_memory())
    try:
        cached, key = _cached(config, reader, key_of)
    except OSError as error:
        raise ConfigError(f"data.cache: decoded images can't be kept: {error}; set data.cache to memory") from error
    if config.cache == "auto" and cached.images.nbytes <= SMALL_BYTES:
        return LoadedImages(np.array(cached.images), digest=cached.about.digest)
    return LoadedImages(cached.images, key, cached.about.digest)


def _cached(
    config: DataConfig, reader: _Reader, key_of: Callable[[int | None], str]
) -> tuple[image_cache.CachedImages, str]:
    """The decoded images, mapped, and their key: those of an earlier command, or decoded now."""
    keys = key_of(None), key_of(reader.side)
    for key in keys:
        if (found := image_cache.find(key)) is not None:
            return found, key
    shape = reader.shape()
    key = keys[1] if reader.resizes else keys[0]
    return image_cache.build(key, str(config.root), shape, reader.decoded), key


class _Reader:
    """Reads images one after another, several at a time."""

    def __init__(self, files: Sequence[ImageFile], channels: int, side: int) -> None:
        self._files, self._channels, self.side = files, channels, side
        self.resizes = False

    def shape(self) -> tuple[int, ...]:
        """(n, H, W, C), from the headers of all."""
        with ThreadPoolExecutor() as threads:
            sizes = set(threads.map(self._size, self._files))
        self.resizes = len(sizes) > 1
        width, height = (self.side, self.side) if self.resizes else next(iter(sizes))
        return (len(self._files), height, width, self._channels)

    def in_memory(self) -> NDArray[np.uint8]:
        shape = self.shape()
        try:
            check_memory(int(np.prod(shape)))
        except ValueError as error:
            raise ConfigError(f"data.root: the {shape[0]} images of {shape[2]} x {shape[1]} pixels: {error}") from error
        images = np.empty(shape, np.uint8)
        for i, image in enumerate(self.decoded()):
            images[i] = image
        return images

    def decoded(self) -> Iterator[NDArray[np.uint8]]:
        """Each image (H, W, C), after ``shape``."""
        with ThreadPoolExecutor() as threads:
            for start in range(0, len(self._files), CHUNK):  # no more than these are in memory at a time
                yield from threads.map(self._read, self._files[start : start + CHUNK])

    def _size(self, file: ImageFile) -> tuple[int, int]:
        try:
            return image_size(file.open())
        except Exception as error:  # Pillow's decoders raise many kinds, and an error of its own for bombs
            raise ConfigError(f"data.root: {file.name} is not a readable image: {error}") from error

    def _read(self, file: ImageFile) -> NDArray[np.uint8]:
        try:
            image = read_image(file.open(), self._channels)
            return resized(image, self.side) if self.resizes else image
        except TooDeep as error:
            raise ConfigError(f"data.root: {file.name} {error}") from error
        except Exception as error:
            raise ConfigError(f"data.root: {file.name} is not a readable image: {error}") from error
