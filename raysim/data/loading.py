"""The data of a run: its data set, and what part of that each client has."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.config.schema import Config
from raysim.config.sections.data import DataConfig
from raysim.data import image_cache
from raysim.data.dataset import Dataset
from raysim.data.partition import Partition
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError
from raysim.own_code import is_own


def load_data(config: Config, cache: dict[str, Any] | None = None, pixels: bool = True) -> tuple[Dataset, Partition]:
    """The data set of a run and its partition; ``cache`` holds those of earlier runs. For ``pixels`` see ``load_dataset``.

    Raises:
        ConfigError: see its message.
    """
    cache = {} if cache is None else cache
    new = config.evaluate.new_clients
    everyone = config.data.model_copy(update={"num_clients": config.data.num_clients + new})
    if is_own(config.data.name):
        everyone = config.data  # what a user's function is called with is what the user wrote
    source = _source_key(everyone, config.model.image_size)
    if source not in cache:
        cache[source] = load_dataset(everyone, config.model.image_size, pixels)
    dataset: Dataset = cache[source]
    split = f"{source} {config.data.model_dump_json()} {new} {config.seed}"
    if split not in cache:
        cache[split] = make_partition(config.data, dataset, config.seed, new)
    return dataset, cache[split]


def mapped_images(config: Config, key: str, digest: str) -> NDArray[np.uint8]:
    """The images of a run's cache on this node's disk; where it is not, the node decodes its own files.

    Raises:
        ConfigError: the files are not here, or others than on the driver's node.
    """
    cached = image_cache.find(key)
    if cached is None or cached.about.digest != digest:
        key = load_dataset(config.data, config.model.image_size).cache
        cached = image_cache.find(key)
    if cached is None or cached.about.digest != digest:
        raise ConfigError(
            f"data.root: {config.data.root} on this node ({socket.gethostname()}) has other images than where the run was "
            "started; copy the same files to every node, or let RAYSIM_CACHE name a folder that all nodes share"
        )
    return cached.images


def _source_key(data: DataConfig, image_size: int) -> str:
    """Equal for two runs that use the same samples."""
    if is_own(data.name):  # its function may look at any key
        return data.model_dump_json()
    size = (
        image_size if data.name in ("image_folder", "huggingface") else None
    )  # only there may it change what is stored
    clients = data.num_clients if data.name == "federated_npz" else None
    division = {"num_clients", "test_fraction", "validation_fraction", "partition"}
    later = {"augment", "normalize"}  # on the way to the model
    return f"{data.model_dump_json(exclude=division | later)} {size} {clients}"
