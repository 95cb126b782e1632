"""A user's own files: one npz, a npz per client, a folder of images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from raysim.config.locations import local_path
from raysim.config.sections.data import DataConfig
from raysim.data import image_cache
from raysim.data.dataset import Dataset, class_labels, numbers_as_names
from raysim.data.decoding import ImageFile, LoadedImages, load_images
from raysim.data.federated_npz import as_uint8, read_clients
from raysim.data.image_tree import described, read_tree
from raysim.data.npz_files import read_npz
from raysim.data.partition import Partition
from raysim.data.pixel_range import looks_like
from raysim.errors import ConfigError


def npz(config: DataConfig, side: int, pixels: bool) -> Dataset:
    """A user's own file: ``images`` uint8 (n, H, W) or (n, H, W, C), ``labels`` (n,), optional ``domains`` (n,)."""
    form = "an npz with images (n, H, W[, C]) uint8, labels (n,) and optionally domains (n,)"
    if config.root is None:
        raise ConfigError(f"data.root: the data set 'npz' needs the path of {form}")
    path = local_path(config.root, "data.root")
    if not path.is_file():
        raise ConfigError(f"data.root: there is no file {path}; it should be {form}")
    try:
        arrays = read_npz(path, lambda name: name in ("images", "labels", "domains"), () if pixels else ("images",))
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files (zlib.error, BadZipFile, ...)
        raise ConfigError(f"data.root: {path} is damaged or not an npz of plain arrays: {error}") from error
    if missing := {"images", "labels"} - arrays.keys():
        raise ConfigError(f"data.root: {path} has no array {', '.join(sorted(missing))}; it should be {form}")
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        if not pixels:
            return npz(config, side, pixels=True)  # the message is about values
        hint = ""
        if images.dtype.kind == "f" and images.size:
            hint = looks_like(float(images.min()), float(images.max()))
        raise ConfigError(
            f"data.root: images of {path} are {images.dtype} {images.shape}, not uint8 (n, H, W[, C]). {hint}".rstrip(
                ". "
            )
        )
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


def federated_npz(config: DataConfig, side: int, pixels: bool) -> Dataset:
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
    images, doubtful = as_uint8([x for x, _ in files], root)
    return Dataset(images, labels, names, split=split, notes=tuple(doubtful))


def image_folder(config: DataConfig, side: int, pixels: bool) -> Dataset:
    """Images in folders by domain and class, as in Office-Home and PACS, or by class alone (``data.layout``)."""
    form = "a folder with <domain>/<class>/<image>, or <class>/<image> for data.layout: class"
    if config.root is None:
        raise ConfigError(f"data.root: the data set 'image_folder' needs {form}")
    root = local_path(config.root, "data.root")
    if not root.is_dir():
        hint = "; unpack the archive first" if root.is_file() else ""
        raise ConfigError(f"data.root: {root} is not {form}{hint}")
    tree = read_tree(root, config.layout)
    files = [ImageFile(str(path), partial(_itself, path)) for path in tree.paths]
    images = LoadedImages(np.empty((len(files), 0, 0, 3), np.uint8))
    if pixels:
        images = load_images(config, files, partial(image_cache.key_of, root, tree.paths), 3, side)
    notes = (f"data.root: {root}: not read: {described(tree.left_out)}",) if tree.left_out else ()
    return Dataset(
        images.pixels,
        tree.labels,
        tree.class_names,
        tree.domains,
        tree.domain_names,
        cache=images.cache,
        known_digest=images.digest,
        notes=notes,
    )


def _itself(path: Path) -> Path:
    return path
