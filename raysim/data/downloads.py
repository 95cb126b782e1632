"""Public data sets that are downloaded once: CIFAR and MedMNIST.

torchvision and medmnist know each file's address and checksum. Archives are read in place, and pickles are never
unpickled. Both libraries are imported where they are used, since they take seconds.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from raysim.config.locations import CACHE, local_path
from raysim.config.sections.data import DataConfig
from raysim.data.dataset import Dataset, class_labels
from raysim.data.legacy_pickle import read_pickle
from raysim.data.npz_files import check_memory, read_npz
from raysim.errors import ConfigError


def _root(config: DataConfig) -> Path:
    """The folder of a data set that is downloaded once."""
    root = local_path(config.root if config.root is not None else CACHE, "data.root")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data.root: {root} must be a folder for {config.name}: {error}") from error
    return root


def cifar(config: DataConfig, image_size: int, pixels: bool) -> Dataset:
    """CIFAR-10 or CIFAR-100 (downloaded once), training and test images pooled."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    root = _root(config)
    try:
        files = _cifar_files(kind, root)
    except Exception as error:  # urllib, hashing and unpacking each have their own
        raise ConfigError(
            f"data.name: {config.name} is not in {root} and can't be downloaded ({error}). Get {kind.filename} from "
            f"https://www.cs.toronto.edu/~kriz/cifar.html and put it into {root}, or set data.root to the folder that has it"
        ) from error
    try:
        content = {name: read_pickle(data) for name, data in files.items()}
        names = tuple(str(name) for name in content.pop(kind.meta["filename"])[kind.meta["key"]])
        images = np.concatenate([part["data"] for part in content.values()])
        labels = np.concatenate([part["labels" if "labels" in part else "fine_labels"] for part in content.values()])
        if images.dtype != np.uint8 or images.shape[1:] != (3072,):
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (n, 3072)")
        if (
            labels.dtype.kind != "i"
            or labels.shape != (len(images),)
            or not set(labels.tolist()) <= set(range(len(names)))
        ):
            raise ValueError(f"labels are {labels.dtype} {labels.shape}, not one of {len(names)} classes of each image")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"data.root: {config.name} in {root} can't be read: {error}") from error
    return Dataset(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).copy(), labels.astype(np.int64), names)


def _cifar_files(kind: Any, root: Path) -> dict[str, bytes]:
    """The pickles of CIFAR by name, from torchvision's folder or out of the archive, each with the checksum it should have.

    torchvision would unpack the archive and unpickle the files. Here nothing is unpacked, so an archive can't decide
    where something is written.
    """
    from torchvision.datasets.utils import download_url

    sums = dict([*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])])
    paths = {name: root / kind.base_folder / name for name in sums}
    if all(path.is_file() for path in paths.values()):
        files = {name: path.read_bytes() for name, path in paths.items()}
        if _damaged(files, sums) is None:
            return files
    download_url(kind.url, str(root), kind.filename, kind.tgz_md5)
    files = {}
    with tarfile.open(root / kind.filename, "r:gz") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if folder == kind.base_folder and name in sums and member.isreg():
                check_memory(member.size)
                content = archive.extractfile(member)
                assert content is not None
                files[name] = content.read()
    if (bad := _damaged(files, sums)) is not None:
        raise ValueError(f"{bad} is missing in {root / kind.filename}, or damaged")
    return {name: files[name] for name in sums}


def _damaged(files: dict[str, bytes], sums: dict[str, str]) -> str | None:
    """The first file that is missing or has another MD5 than torchvision lists."""
    return next(
        (n for n in sums if n not in files or hashlib.md5(files[n], usedforsecurity=False).hexdigest() != sums[n]), None
    )


def medmnist_names() -> list[str]:
    """Every single-label 2-D set of MedMNIST."""
    from medmnist import INFO

    return [
        flag
        for flag, info in INFO.items()
        if not flag.endswith("3d") and info["task"] in ("multi-class", "binary-class", "ordinal-regression")
    ]


def medmnist(config: DataConfig, image_size: int, pixels: bool) -> Dataset:
    """A MedMNIST set at 28 pixels (downloaded once), all three splits pooled as in the paper."""
    from medmnist import INFO
    from torchvision.datasets.utils import download_url

    info = INFO[config.name]
    root = _root(config)
    path = root / f"{config.name}.npz"
    if not path.exists():
        try:
            download_url(info["url"], str(root), path.name, info["MD5"])
        except Exception as error:  # a download has many ways to fail
            path.unlink(missing_ok=True)  # a partial download
            raise ConfigError(
                f"data.name: {path.name} is not in {root} and can't be downloaded ({error}). Get it from {info['url']} and "
                f"put it there, or set data.root to the folder that has it"
            ) from error
    splits, names = ("train", "val", "test"), tuple(info["label"][str(i)] for i in range(len(info["label"])))
    try:
        zeros = () if pixels else tuple(f"{split}_images" for split in splits)
        arrays = read_npz(path, lambda name: name.endswith(("_images", "_labels")), zeros)
        images = np.concatenate([arrays[f"{split}_images"] for split in splits])
        labels = np.concatenate([arrays[f"{split}_labels"].reshape(-1) for split in splits])
    except Exception as error:  # a damaged file has many, too
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"data.root: {path} is damaged: {reason}. Delete it to download it again") from error
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise ConfigError(f"data.root: images of {path} are {images.dtype} {images.shape}, not uint8 (n, H, W[, C])")
    labels = class_labels(labels, len(images), "labels", path)
    if (last := int(labels.max())) >= len(names):
        raise ConfigError(f"data.root: labels of {path} go up to {last}, and {config.name} has {len(names)} classes")
    return Dataset(images, labels, names)
