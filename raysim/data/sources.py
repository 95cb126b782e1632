"""Data sets by name: each loader returns a ``Dataset`` of uint8 images as they are stored, never floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from raysim.config.sections.data import DataConfig
from raysim.data import downloads, hugging_face, own_files
from raysim.data.dataset import Dataset
from raysim.data.own_source import own_dataset
from raysim.errors import ConfigError
from raysim.own_code import is_own


def load_dataset(config: DataConfig, image_size: int, pixels: bool = True) -> Dataset:
    """The data set that ``config.name`` asks for, cut to ``config.subset``.

    Args:
        image_size: used only for image folders whose images differ in size: those are resized to it.
        pixels: False for all but the pixels, in seconds: images are (n, 0, 0, C), and are not decoded.

    Raises:
        ConfigError: no such data set, its files are missing or damaged, or all samples have the same class.
    """
    if is_own(config.name):
        dataset = own_dataset(config)
    else:
        check_name(config.name)
        dataset = _LOADERS.get(config.name, downloads.medmnist)(config, image_size, pixels)
    if not pixels:
        dataset = dataset.with_images(dataset.images[:, :0, :0])
    if dataset.num_classes < 2:
        where = config.root or config.name
        raise ConfigError(
            f"data: all {len(dataset.labels):,} samples of {where} have the same class ({dataset.class_names[0]}): any model "
            "would be right about all of them. Are its labels, or its folders, those that you mean?"
        )
    if config.rgb and dataset.images.shape[3] == 1:
        dataset = dataset.with_images(np.repeat(dataset.images, 3, axis=3))
    return _subset(dataset, config.subset) if config.subset is not None else dataset


def check_name(name: str) -> None:
    """Raises ConfigError if there is no data set of this name; suggests the nearest."""
    if name not in _LOADERS and name not in (medmnist := downloads.medmnist_names()):
        known = [*_LOADERS, *medmnist]
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"data.name: there is no data set {name!r}; {hint}Known: {', '.join(known)}, or module:function for your own"
        )


def _subset(dataset: Dataset, size: int) -> Dataset:
    """About ``size`` samples: the same share of every class and of its domains, evenly spaced; nothing is drawn."""
    n = len(dataset.labels)
    if size > n:
        raise ConfigError(f"data.subset: {size} samples asked, the data set has {n}")
    chosen = []
    for label in range(dataset.num_classes):
        of_class = np.flatnonzero(dataset.labels == label)
        if dataset.domains is not None:  # domain after domain, so that even spaces take the same share of each
            of_class = of_class[np.argsort(dataset.domains[of_class], kind="stable")]
        keep = max(1, round(size * len(of_class) / n)) if len(of_class) else 0
        chosen.append(of_class[np.linspace(0, len(of_class) - 1, keep).round().astype(int)])
    index = np.sort(np.concatenate(chosen))
    domains = dataset.domains[index] if dataset.domains is not None else None
    small = dataset.with_images(np.array(dataset.images[index]))
    return replace(small, labels=dataset.labels[index], domains=domains)


def _digits(config: DataConfig, image_size: int, pixels: bool) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels (UCI Optical Recognition of Handwritten Digits)."""
    rows = np.loadtxt(_digits_file(), delimiter=",")
    images = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1].astype(np.int64)
    names = tuple(str(d) for d in range(10))
    if not config.rotated_domains:
        return Dataset(images[..., None], labels, names)
    domains = np.empty_like(labels)
    for label in range(10):  # every domain gets a quarter of every class
        of_class = np.flatnonzero(labels == label)
        domains[of_class] = np.arange(len(of_class)) % 4
    rotated = np.stack([np.rot90(image, quarter) for image, quarter in zip(images, domains, strict=True)])
    return Dataset(rotated[..., None], labels, names, domains, ("0°", "90°", "180°", "270°"))


def _digits_file() -> Path:
    """What ``sklearn.datasets.load_digits`` reads, without importing scikit-learn, which takes a second in every process."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets/data/digits.csv.gz"


_LOADERS: dict[str, Callable[[DataConfig, int, bool], Dataset]] = {
    "digits": _digits,
    "npz": own_files.npz,
    "federated_npz": own_files.federated_npz,
    "image_folder": own_files.image_folder,
    "huggingface": hugging_face.hugging_face,
    "cifar10": downloads.cifar,
    "cifar100": downloads.cifar,
}
