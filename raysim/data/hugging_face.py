"""Data sets of Hugging Face: from the hub, or a folder of parquet, arrow or image files, or one made by ``save_to_disk``."""

from __future__ import annotations

import hashlib
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from raysim.config.sections.data import DataConfig
from raysim.data.dataset import Dataset, class_labels, numbers_as_names
from raysim.data.decoding import ImageFile, LoadedImages, load_images
from raysim.data.image_cache import FORMAT
from raysim.errors import ConfigError

LABELS = ("label", "labels", "fine_label", "target", "class")  # what label columns are called that say no more


def hugging_face(config: DataConfig, side: int, pixels: bool) -> Dataset:
    """``data.root`` with its ``splits`` joined, its images, labels and, if ``domain_column`` says so, domains.

    Raises:
        ConfigError: ``datasets`` is not installed, the data are not there, or columns can't be told.
    """
    if config.root is None:
        raise ConfigError("data.root: the data set 'huggingface' needs a name on the hub, or a folder")
    table = _table(config)
    image_column, label_column = _image_column(table, config), _label_column(table, config)
    labels, names = _labels(table, label_column, config)
    grey = _is_grey(table, image_column)
    raw = table.cast_column(image_column, _datasets().Image(decode=False))
    files = [ImageFile(f"row {i} of {config.root}", partial(_opened, raw, image_column, i)) for i in range(len(raw))]
    if not files:
        raise ConfigError(f"data.root: {config.root} has no rows")

    def key_of(size: int | None) -> str:
        text = f"{FORMAT} {raw._fingerprint} {image_column} {size} {grey}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    channels = 1 if grey else 3
    images = LoadedImages(np.empty((len(files), 0, 0, channels), np.uint8))
    if pixels:
        images = load_images(config, files, key_of, channels, side)
    domains, domain_names = _domains(table, config)
    return Dataset(images.pixels, labels, names, domains, domain_names, cache=images.cache, known_digest=images.digest)


def _datasets() -> Any:
    try:
        import datasets  # not at the top: an extra, and it takes a second
    except ImportError as error:
        raise ConfigError("data.name: 'huggingface' needs the package datasets: pip install 'raysim[hf]'") from error
    return datasets


def _table(config: DataConfig) -> Any:
    """All rows of the splits that are asked for."""
    datasets, root = _datasets(), str(config.root)
    here = Path(root).expanduser()
    try:
        if (here / "dataset_dict.json").is_file() or (here / "state.json").is_file():
            found = datasets.load_from_disk(str(here))
        else:
            found = datasets.load_dataset(str(here) if here.exists() else root)
    except Exception as error:  # of pyarrow, requests, huggingface_hub and datasets itself
        if here.exists():
            raise ConfigError(
                f"data.root: {root} is no folder of parquet, arrow or image files, nor one made by save_to_disk: "
                f"{error!s:.300}"
            ) from error
        raise ConfigError(
            f"data.root: there is no folder {root} here, and the hub does not give it: {error!s:.300}\nIf this machine has "
            f"no internet, run `hf download {root} --repo-type dataset --local-dir FOLDER` elsewhere, copy the folder here "
            "and set data.root to it"
        ) from error
    splits = found if isinstance(found, dict) else {"train": found}
    chosen = config.splits or list(splits)
    if missing := [name for name in chosen if name not in splits]:
        raise ConfigError(f"data.splits: {root} has no split {missing[0]!r}; it has {', '.join(splits)}")
    return datasets.concatenate_datasets([splits[name] for name in chosen])


def _image_column(table: Any, config: DataConfig) -> str:
    datasets = _datasets()
    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
    return _one_of(table, found, config.image_column, "image_column", "images")


def _label_column(table: Any, config: DataConfig) -> str:
    datasets = _datasets()
    classes = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    named = [name for name in LABELS if name in table.features]
    return _one_of(table, classes or named[:1], config.label_column, "label_column", "class labels")


def _one_of(table: Any, found: list[str], asked: str | None, key: str, what: str) -> str:
    columns = ", ".join(f"{name} ({feature})" for name, feature in table.features.items())
    if asked is not None:
        if asked not in table.features:
            raise ConfigError(f"data.{key}: there is no column {asked!r}; there are {columns:.500}")
        return asked
    if len(found) != 1:
        problem = "no column" if not found else f"{len(found)} columns ({', '.join(found)})"
        raise ConfigError(f"data.{key}: {problem} with {what}; name one of {columns:.500}")
    return found[0]


def _labels(table: Any, column: str, config: DataConfig) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    datasets, values = _datasets(), np.array(table[column])
    feature = table.features[column]
    root = Path(str(config.root))
    if isinstance(feature, datasets.ClassLabel):
        if (values < 0).any():
            raise ConfigError(f"data.splits: {int((values < 0).sum())} rows have no label; leave their split out")
        present = np.unique(values)  # a part of a data set may lack classes
        names = tuple(feature.names[i] for i in present)
        return np.searchsorted(present, values).astype(np.int64), names
    if values.dtype.kind in "US":
        texts, numbers = np.unique(values, return_inverse=True)
        return numbers.astype(np.int64), tuple(map(str, texts))
    labels = class_labels(values, len(table), f"column {column}", root)
    return labels, numbers_as_names(labels, root)


def _domains(table: Any, config: DataConfig) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    if config.domain_column is None:
        return None, ()
    column = _one_of(table, [], config.domain_column, "domain_column", "domains")
    feature, values = table.features[column], np.array([str(value) for value in table[column]])
    texts, numbers = np.unique(values, return_inverse=True)
    names = getattr(feature, "names", None)
    return numbers.astype(np.int64), tuple(names[int(text)] if names else str(text) for text in texts)


def _is_grey(table: Any, column: str) -> bool:
    """Whether the first image is grey; all are then read so."""
    return len(table) > 0 and table[0][column].mode in ("1", "L")


def _opened(table: Any, column: str, row: int) -> Path | BinaryIO:
    file = table[row][column]
    return BytesIO(file["bytes"]) if file["bytes"] is not None else Path(file["path"])
