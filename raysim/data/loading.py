"""The data of a run: its data set, and what part of that each client has."""

from __future__ import annotations

from typing import Any

from raysim.config.schema import Config, DataConfig
from raysim.data.dataset import Dataset
from raysim.data.partition import Partition
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset


def load_data(config: Config, cache: dict[str, Any] | None = None) -> tuple[Dataset, Partition]:
    """The data set of a run and its partition; ``cache`` holds those of earlier runs.

    Raises:
        ConfigError: see its message.
    """
    cache = {} if cache is None else cache
    new = config.evaluate.new_clients
    everyone = config.data.model_copy(update={"num_clients": config.data.num_clients + new})
    source = _source_key(everyone, config.model.image_size)
    if source not in cache:
        cache[source] = load_dataset(everyone, config.model.image_size)
    dataset: Dataset = cache[source]
    split = f"{source} {config.data.model_dump_json()} {new} {config.seed}"
    if split not in cache:
        cache[split] = make_partition(config.data, dataset, config.seed, new)
    return dataset, cache[split]


def _source_key(data: DataConfig, image_size: int) -> str:
    """Equal for two runs that use the same samples."""
    size = image_size if data.name == "image_folder" else None  # only there may it change what is stored
    clients = data.num_clients if data.name == "federated_npz" else None
    division = {"num_clients", "test_fraction", "partition"}
    later = {"augment", "normalize"}  # on the way to the model
    return f"{data.model_dump_json(exclude=division | later)} {size} {clients}"
