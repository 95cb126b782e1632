"""Data sets and partitions that a user's own functions make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.config.sections.data import DataConfig
from raysim.data.dataset import Dataset
from raysim.errors import ConfigError
from raysim.own_code import checked_options, own_function

Ints = NDArray[np.int64]
GIVEN = ("labels", "domains", "num_clients", "rng")


def own_loader(config: DataConfig) -> Callable[..., Any]:
    """The function that ``data.name`` names, its options checked.

    Raises:
        ConfigError: there is no such function, or it has no such options.
    """
    function = own_function(config.name, "data.name")
    checked_options(function, config.options or {}, config.name, "data.options", ["config"])
    return function


def own_dataset(config: DataConfig) -> Dataset:
    """What the function that ``data.name`` names makes of the configuration.

    Raises:
        ConfigError: as ``own_loader``, or what it returns is no data set.
    """
    made = own_loader(config)(config, **(config.options or {}))
    if not isinstance(made, Dataset):
        raise ConfigError(f"data.name: {config.name} returned {type(made).__name__}, not a raysim.Dataset")
    made = replace(made, class_names=_as_tuple(made.class_names), domain_names=_as_tuple(made.domain_names))
    for problem in _problems(made):
        raise ConfigError(f"data.name: {config.name} returned {problem}")
    return made


def _as_tuple(names: Any) -> Any:
    return tuple(names) if isinstance(names, list) else names


def _problems(made: Dataset) -> list[str]:
    images, found = made.images, []
    if not isinstance(images, np.ndarray):
        return [f"images that are {_kind(images)}, not uint8 (n, H, W, C)"]
    n = len(images)
    for what, names in (("class_names", made.class_names), ("domain_names", made.domain_names)):
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            return [f"{what} that are no tuple of texts: {names!r:.100}"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        found.append(f"images that are {_kind(images)}, not uint8 (n, H, W, C) with 1 or 3 channels")
    elif 0 in images.shape:
        found.append(f"images that are empty: {images.shape}")
    groups = [("labels", made.labels, made.class_names)]
    if made.domains is not None:
        groups.append(("domains", made.domains, made.domain_names))
    for what, values, names in groups:
        if not isinstance(values, np.ndarray) or values.dtype != np.int64 or values.shape != (n,):
            found.append(f"{what} that are {_kind(values)}, not int64 ({n},)")
        elif n and not 0 <= int(values.min()) <= int(values.max()) < len(names):
            found.append(f"{what} from {values.min()} to {values.max()}, and {len(names)} names for them")
    return found


def own_partition(config: DataConfig, dataset: Dataset, rng: np.random.Generator) -> Ints:
    """(n,): the client that each sample belongs to, by the function that ``data.partition.name`` names; -1 for none.

    Raises:
        ConfigError: there is no such function, or it does not return disjoint samples for every client.
    """
    name, options, num_clients = config.partition.name, config.partition.options or {}, config.num_clients
    function = own_function(name, "data.partition.name")
    checked_options(function, options, name, "data.partition.options", GIVEN)
    made = function(dataset.labels, dataset.domains, num_clients, rng, **options)
    where, n = f"data.partition.name: {name} returned", len(dataset.labels)
    if not isinstance(made, (list, tuple)) or len(made) != num_clients:
        size = f" of {len(made)}" if isinstance(made, (list, tuple)) else ""
        raise ConfigError(
            f"{where} a {type(made).__name__}{size}, not a list of indices for each of {num_clients} clients"
        )
    owner = np.full(n, -1, np.int64)
    for client, given in enumerate(made):
        index = np.asarray(given)
        if not index.size:
            raise ConfigError(f"{where} no samples for client {client}")
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise ConfigError(f"{where} {_kind(index)} for client {client}, not integers (n,)")
        if index.min() < 0 or index.max() >= n:
            wrong = index.min() if index.min() < 0 else index.max()
            raise ConfigError(f"{where} sample {wrong} for client {client}; there are 0 to {n - 1}")
        if len(np.unique(index)) < len(index) or (owner[index] >= 0).any():
            raise ConfigError(f"{where} a sample again for client {client}; only the partition 'file' allows that")
        owner[index] = client
    return owner


def _kind(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
