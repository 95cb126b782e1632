"""A user's own files: one npz, a npz per client, a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim.config.locations import local_path
from raysim.config.schema import DataConfig
from raysim.data import image_cache
from raysim.data.dataset import Dataset, class_labels, numbers_as_names
from raysim.data.federated_npz import as_uint8, read_clients
from raysim.data.images import TooDeep, image_size, read_image, resized
from raysim.data.npz_files import check_memory, read_npz
from raysim.data.partition import Partition
from raysim.errors import ConfigError

SMALL_BYTES = 2 * 2**30  # of decoded images that are kept in memory with `data.cache: auto`
CHUNK = 512  # images that are decoded at a time


def npz(config: DataConfig, side: int) -> Dataset:
    """A user's own file: ``images`` uint8 (n, H, W) or (n, H, W, C), ``labels`` (n,), optional ``domains`` (n,)."""
    form = "an npz with images (n, H, W[, C]) uint8, labels (n,) and optionally domains (n,)"
    if config.root is None:
        raise ConfigError(f"data.root: the data set 'npz' needs the path of {form}")
    path = local_path(config.root, "data.root")
    if not path.is_file():
        raise ConfigError(f"data.root: there is no file {path}; it should be {form}")
    try:
        arrays = read_npz(path, lambda name: name in ("images", "labels", "domains"))
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files (zlib.error, BadZipFile, ...)
        raise ConfigError(f"data.root: {path} is damaged or not an npz of plain arrays: {error}") from error
    if missing := {"images", "labels"} - arrays.keys():
        raise ConfigError(f"data.root: {path} has no array {', '.join(sorted(missing))}; it should be {form}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ConfigError(f"data.root: images of {path} are {images.dtype} {images.shape}, not uint8 (n, H, W[, C])")
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[3] not in (1, 3):
        raise ConfigError(f"data.root: images of {path} have {images.shape[3]} channels, not 1 or 3: {images.shape}")
    if 0 in images.shape:
        raise ConfigError(f"data.root: images of {path} are empty: {images.shape}")
    labels = class_labels(labels, len(images), "labels", path)
    names = numbers_as_names(labels, path)
    if "domains" not in arrays:
        return Dataset(images, labels, names)
    raw_domains = arrays["domains"]
    if raw_domains.shape != (len(images),):
        raise ConfigError(f"data.root: domains of {path} have shape {raw_domains.shape}, not ({len(images)},)")
    try:
        domain_names, domains = np.unique(raw_domains, return_inverse=True)
        texts = tuple(str(d) for d in domain_names)
        "".join(texts).encode()
    except Exception as error:  # kinds that have no order; code points that no character has are even a SystemError
        raise ConfigError(f"data.root: domains of {path} are no names or numbers: {error}") from error
    return Dataset(images, labels, names, domains.astype(np.int64), texts)


def federated_npz(config: DataConfig, side: int) -> Dataset:
    """The clients' files of PFLlib and of the FedPerfix authors' code, with their own split."""
    if config.root is None:
        raise ConfigError(
            "data.root: the data set 'federated_npz' needs the folder with train/<i>.npz and test/<i>.npz"
        )
    root = local_path(config.root, "data.root")
    train, test = read_clients(root, config.num_clients, config.allow_legacy_pickle)
    files = [part for pair in zip(train, test, strict=True) for part in pair]
    for i, (x, y) in enumerate(files):
        if y.ndim != 1 or x.ndim not in (3, 4) or len(x) != len(y) or len(y) == 0:
            where = f"{root / ('test' if i % 2 else 'train') / str(i // 2)}.npz"
            raise ConfigError(f"data.root: {where}: images {x.shape} and labels {y.shape} are no samples of one client")
    labels = np.concatenate([y for _, y in files])
    if not np.array_equal(labels, labels.astype(np.int64)):
        raise ConfigError(f"data.root: labels in {root} are no integers")
    labels = class_labels(labels.astype(np.int64), len(labels), "labels", root)
    num_train = np.array([len(y) for _, y in train], np.int64)
    sizes = num_train + np.array([len(y) for _, y in test], np.int64)
    split = Partition(np.arange(len(labels)), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), num_train)
    names = numbers_as_names(labels, root)
    return Dataset(as_uint8([x for x, _ in files], root), labels, names, split=split)


def image_folder(config: DataConfig, side: int) -> Dataset:
    """``root/<domain>/<class>/*.jpg|png``, the Office-Home layout; every domain must have the same classes."""
    from torchvision.datasets import ImageFolder  # not at the top: it takes seconds

    form = "a folder with <domain>/<class>/*.jpg or *.png"
    if config.root is None:
        raise ConfigError(f"data.root: the data set 'image_folder' needs {form}")
    root = local_path(config.root, "data.root")
    if not root.is_dir():
        hint = "; unpack the archive first" if root.is_file() else ""
        raise ConfigError(f"data.root: {root} is not {form}{hint}")
    try:
        domain_names = sorted(
            entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        folders = [ImageFolder(str(root / domain)) for domain in domain_names]
    except OSError as error:
        raise ConfigError(f"data.root: {root} is not {form}: {error}") from error
    if not folders:
        raise ConfigError(f"data.root: {root} has no folders; it should be {form}")
    for domain, folder in zip(domain_names, folders, strict=True):
        if folder.classes != folders[0].classes:
            odd = sorted(set(folder.classes) ^ set(folders[0].classes))
            raise ConfigError(
                f"data.root: {root}: domains {domain_names[0]} and {domain} differ in classes: {', '.join(odd)}"
            )
    paths = [Path(path) for folder in folders for path, _ in folder.samples]
    labels = np.array([label for folder in folders for _, label in folder.samples], np.int64)
    domains = np.repeat(np.arange(len(folders)), [len(folder.samples) for folder in folders])
    names = tuple(folders[0].classes), domains, tuple(domain_names)
    if config.cache == "memory":
        return Dataset(_in_memory(paths, side), labels, *names)
    try:
        cached, key = _cached(root, paths, side)
    except OSError as error:
        raise ConfigError(f"data.cache: decoded images can't be kept: {error}; set data.cache to memory") from error
    known = cached.about.digest
    if config.cache == "auto" and cached.images.nbytes <= SMALL_BYTES:
        return Dataset(np.array(cached.images), labels, *names, known_digest=known)
    return Dataset(cached.images, labels, *names, cache=key, known_digest=known)


def _cached(root: Path, paths: list[Path], side: int) -> tuple[image_cache.CachedImages, str]:
    """The decoded images, mapped, and their key: those of an earlier command, or decoded now."""
    keys = [image_cache.key_of(root, paths, size) for size in (None, side)]  # in their own size, or resized
    for key in keys:
        if (found := image_cache.find(key)) is not None:
            return found, key
    shape, decoded = _decoded(paths, side)
    key = keys[0] if shape[1:] != (side, side, 3) else keys[1]
    return image_cache.build(key, root, shape, decoded), key


def _in_memory(paths: list[Path], side: int) -> NDArray[np.uint8]:
    shape, decoded = _decoded(paths, side)
    try:
        check_memory(int(np.prod(shape)))
    except ValueError as error:
        raise ConfigError(f"data.root: the {shape[0]} images of {shape[2]} x {shape[1]} pixels: {error}") from error
    images = np.empty(shape, np.uint8)
    for i, image in enumerate(decoded()):
        images[i] = image
    return images


Images = Callable[[], Iterator[NDArray[np.uint8]]]


def _decoded(paths: list[Path], side: int) -> tuple[tuple[int, ...], Images]:
    """RGB images, decoded one after another, and their shape (n, H, W, 3): their own size if all have the same, else the
    model's side, to which each is resized."""

    def size(path: Path) -> tuple[int, int]:
        try:
            return image_size(path)
        except Exception as error:  # Pillow's decoders raise many kinds, and an error of its own for bombs
            raise ConfigError(f"data.root: {path} is not a readable image: {error}") from error

    def read(path: Path) -> NDArray[np.uint8]:
        try:
            image = read_image(path, 3)
            return image if len(sizes) == 1 else resized(image, side)
        except TooDeep as error:
            raise ConfigError(f"data.root: {path} {error}") from error
        except Exception as error:
            raise ConfigError(f"data.root: {path} is not a readable image: {error}") from error

    def decoded() -> Iterator[NDArray[np.uint8]]:
        with ThreadPoolExecutor() as threads:
            for start in range(0, len(paths), CHUNK):  # no more than these are in memory at a time
                yield from threads.map(read, paths[start : start + CHUNK])

    with ThreadPoolExecutor() as threads:
        sizes = set(threads.map(size, paths))
    width, height = next(iter(sizes)) if len(sizes) == 1 else (side, side)
    return (len(paths), height, width, 3), decoded
