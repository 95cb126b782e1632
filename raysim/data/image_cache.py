"""Decoded images on disk, mapped into memory: a data set is decoded once, and may be larger than memory.

A folder for each set of sources, named by a digest of them, with ``images.npy`` (n, H, W, C) uint8 and ``about.json``. It is
written under another name and renamed when it is complete, so that none is ever half there; a lock lets one command decode
while others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from raysim.config.locations import CACHE
from raysim.errors import ConfigError

FOLDER = "images"  # in raysim's cache


@dataclass(frozen=True)
class About:
    """
    Attributes:
        root: where the sources are.
        digest: of the pixels, as ``dataset.images_digest`` has it.
    """

    root: str
    shape: tuple[int, ...]
    digest: str
    seconds: float


@dataclass(frozen=True)
class CachedImages:
    """Images of a cache, and how to find them again in another process.

    Attributes:
        images: (n, H, W, C) uint8, mapped, read only.
    """

    images: NDArray[np.uint8]
    about: About


def cache_folder() -> Path:
    return Path(os.environ.get("RAYSIM_CACHE", CACHE)).expanduser() / FOLDER


def key_of(root: Path, paths: list[Path], size: int | None) -> str:
    """A digest of the sources, by names, sizes and times of change of the files, and of what they are resized to."""
    sha = hashlib.sha256(f"{root.resolve()} {size}".encode())
    for path in paths:
        status = path.stat()
        sha.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return sha.hexdigest()[:16]


def find(key: str) -> CachedImages | None:
    """What is there for a key, if it is complete."""
    folder = cache_folder() / key
    about = folder / "about.json"
    if not about.is_file():
        return None
    raw = json.loads(about.read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy", mmap_mode="r")
    os.utime(about)  # when it was last used
    return CachedImages(images, About(**{**raw, "shape": tuple(raw["shape"])}))


def build(
    key: str, root: str, shape: tuple[int, ...], decoded: Callable[[], Iterator[NDArray[np.uint8]]]
) -> CachedImages:
    """Decode images, each of shape[1:], into a cache, unless another command does it meanwhile.

    Raises:
        ConfigError: there is no room for it.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if (found := find(key)) is not None:
            return found
        _check_room(folder, int(np.prod(shape)))
        for old in folder.glob(f"{key}.part-*"):  # whoever wrote it is gone, for it held the lock
            shutil.rmtree(old)
        part = Path(mkdtemp(prefix=f"{key}.part-", dir=folder))
        begin = time.monotonic()
        sha = hashlib.sha256(f"{np.dtype(np.uint8)}{shape}".encode())
        with (part / "images.npy").open(
            "wb"
        ) as file:  # written, not mapped: mapped pages would count as this process's
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in decoded():
                assert image.shape == shape[1:]
                file.write(image.tobytes())
                sha.update(image.tobytes())
        about = About(root, shape, sha.hexdigest()[:16], round(time.monotonic() - begin, 1))
        (part / "about.json").write_text(json.dumps(asdict(about)) + "\n", encoding="utf-8")
        if (folder / key).exists():  # what is left of one that was being cleared
            shutil.rmtree(folder / key)
        os.replace(part, folder / key)
    complete = find(key)
    assert complete is not None
    return complete


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > 0.95 * free:
        raise ConfigError(
            f"data.cache: the decoded images take {size / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB free; set "
            "RAYSIM_CACHE to a folder with more room, or clear it with `raysim cache --clear`"
        )


@dataclass(frozen=True)
class Entry:
    """What ``raysim cache`` lists: a cache's key, about what it is, its bytes, and when it was last used (seconds)."""

    key: str
    about: About
    size: int
    used: float


def entries() -> list[Entry]:
    """All caches that are complete, the last used first."""
    found = []
    for file in cache_folder().glob("*/about.json"):
        raw = json.loads(file.read_text(encoding="utf-8"))
        about = About(**{**raw, "shape": tuple(raw["shape"])})
        size = sum(part.stat().st_size for part in file.parent.iterdir())
        found.append(Entry(file.parent.name, about, size, file.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def clear(keys: list[str] | None = None) -> int:
    """Remove caches, None: all, and what was left half written; returns how many bytes that frees.

    A process that has one mapped goes on with it.
    """
    folder, freed = cache_folder(), 0
    for entry in entries():
        if keys is None or entry.key in keys:
            shutil.rmtree(folder / entry.key)
            freed += entry.size
    for lock in folder.glob("*.lock") if keys is None else ():
        with FileLock(lock):  # no one is writing
            for part in folder.glob(f"{lock.stem}.part-*"):
                freed += sum(file.stat().st_size for file in part.iterdir())
                shutil.rmtree(part)
    return freed
