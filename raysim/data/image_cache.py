"""Decoded images on disk, mapped into memory: a data set is decoded once, and may be larger than memory.

A folder for each set of sources, named by a digest of them, with ``images.npy`` (n, H, W, C) uint8 and ``about.json``. It is
written under another name and renamed when it is complete, so that none is ever half there; a lock lets one command decode
while others wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from raysim.config.locations import CACHE
from raysim.errors import ConfigError

log = logging.getLogger(__name__)

FOLDER = "images"  # in raysim's cache
FORMAT = 1  # of the pixels: another number when files are read or resized in another way


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
    sha = hashlib.sha256(f"{FORMAT} {root.resolve()} {size}".encode())
    for path in paths:
        status = path.stat()
        sha.update(f"{path} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
    return sha.hexdigest()[:16]


def find(key: str) -> CachedImages | None:
    """What is there for a key, if it is whole."""
    folder = cache_folder() / key
    about = _about(folder)
    if about is None:
        return None
    images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    with contextlib.suppress(OSError):  # of another user's cache
        os.utime(folder / "about.json")  # when it was last used
    return CachedImages(images, about)


def _about(folder: Path) -> About | None:
    """About a cache; None if it is not whole."""
    try:
        raw = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        about = About(**{**raw, "shape": tuple(raw["shape"])})
        whole = (folder / "images.npy").stat().st_size > int(np.prod(about.shape))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return about if whole else None


@contextlib.contextmanager
def _locked(key: str) -> Iterator[None]:
    """Nobody else writes or clears this key meanwhile."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=5)
    except Timeout:
        log.warning("another command decodes these images (%s); this one waits for it", folder / key)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def build(
    key: str, root: str, shape: tuple[int, ...], decoded: Callable[[], Iterator[NDArray[np.uint8]]]
) -> CachedImages:
    """Decode images, each of shape[1:], into a cache, unless another command does it meanwhile.

    Raises:
        ConfigError: there is no room for it.
    """
    folder = cache_folder()
    with _locked(key):
        if (found := find(key)) is not None:
            return found
        _remove(key)
        _check_room(folder, int(np.prod(shape)))
        part = folder / f"{key}.part-{os.getpid()}"
        part.mkdir()
        try:
            _write(part, root, shape, decoded())
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        os.replace(part, folder / key)
        complete = find(key)
        assert complete is not None
        return complete


def _write(part: Path, root: str, shape: tuple[int, ...], decoded: Iterator[NDArray[np.uint8]]) -> None:
    begin = time.monotonic()
    sha = hashlib.sha256(f"{np.dtype(np.uint8)}{shape}".encode())
    with (part / "images.npy").open("wb") as file:  # written, not mapped: mapped pages would count as this process's
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for image in decoded:
            assert image.shape == shape[1:]
            file.write(image.tobytes())
            sha.update(image.tobytes())
        file.flush()
        os.fsync(file.fileno())
    about = About(root, shape, sha.hexdigest()[:16], round(time.monotonic() - begin, 1))
    with (part / "about.json").open("w", encoding="utf-8") as text:
        text.write(json.dumps(asdict(about)) + "\n")
        text.flush()
        os.fsync(text.fileno())


def _remove(key: str) -> int:
    """Remove what there is of a key, whole or not; whoever wrote it is gone, for it held the lock. Returns its bytes."""
    size = 0
    for folder in (cache_folder() / key, *cache_folder().glob(f"{key}.part-*")):
        if folder.is_dir():
            size += _size(folder)
            hidden = folder.with_name(f"{key}.part-removed")
            if folder != hidden:
                os.replace(folder, hidden)  # at once, so that nobody finds half of it
            shutil.rmtree(hidden)
    return size


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > 0.95 * free:
        raise ConfigError(
            f"data.cache: the decoded images take {size / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB free; set "
            "RAYSIM_CACHE to a folder with more room, or clear it with `raysim cache --clear`"
        )


@dataclass(frozen=True)
class Entry:
    """What ``raysim cache`` lists.

    Attributes:
        about: None if it is not whole: being decoded, or left by a command that was killed.
        size: in bytes.
        used: when it was last used, in seconds since 1970.
    """

    key: str
    about: About | None
    size: int
    used: float


def entries() -> list[Entry]:
    """Whatever is in the cache, the last used first."""
    found = []
    for folder in cache_folder().glob("*"):
        if not folder.is_dir():
            continue  # a lock
        with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
            about = _about(folder)
            used = (folder / "about.json" if about is not None else folder).stat().st_mtime
            found.append(Entry(folder.name.split(".")[0], about, _size(folder), used))
    return sorted(found, key=lambda entry: -entry.used)


def clear(keys: Iterable[str] | None = None) -> int:
    """Remove caches, None: all, and what was left half written; returns how many bytes that frees.

    A process that has one mapped goes on with it; of one that is being decoded, it waits for the end.
    """
    freed = 0
    for key in {entry.key for entry in entries()} if keys is None else keys:
        with _locked(key):
            freed += _remove(key)
    return freed
