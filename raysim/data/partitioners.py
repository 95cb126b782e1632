"""How samples are divided among clients, and each client's train/validation/test split; deterministic in the seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.config.locations import local_path
from raysim.config.sections.data import DataConfig
from raysim.data.dataset import Dataset
from raysim.data.own_source import own_partition
from raysim.data.partition import Partition
from raysim.data.partition_draws import (
    Skew,
    dirichlet,
    dirichlet_per_client,
    natural,
    pathological,
    quantity,
    shards,
)
from raysim.data.partition_file import partition_from_file
from raysim.errors import ConfigError
from raysim.own_code import is_own

Ints = NDArray[np.int64]


def make_partition(config: DataConfig, dataset: Dataset, seed: int, new_clients: int = 0) -> Partition:
    """Divide a data set as the configuration says, with ``new_clients`` more clients at the end, which never take part.

    Which clients these are is drawn at random, except that in a given split they are its last ones.

    Raises:
        ConfigError: the data set can't be divided that way; the message says what would work.
    """
    config = config.model_copy(update={"num_clients": config.num_clients + new_clients})
    partition = _train_and_test(config, dataset, seed, new_clients)
    if not config.validation_fraction:
        return partition
    if partition.num_validation is not None:
        raise ConfigError(
            f"data.validation_fraction: {config.partition.path} has a validation split of its own; set it to 0, or leave "
            "validation_<i> out of the file"
        )
    return with_validation(partition, config.validation_fraction, seeds.stream(seed, "validation"))


def _train_and_test(config: DataConfig, dataset: Dataset, seed: int, new_clients: int) -> Partition:
    if config.partition.name == "file":
        path = local_path(config.partition.path or "", "data.partition.path")
        return partition_from_file(path, config.num_clients, len(dataset.labels))
    if config.partition.name == "own":
        assert dataset.split is not None
        return dataset.split
    n, num_clients = len(dataset.labels), config.num_clients
    if 2 * num_clients > n:
        raise ConfigError(
            f"data.num_clients: {num_clients} clients need at least {2 * num_clients} samples (one to train and one to test "
            f"each), the data set has {n}; at most {n // 2} clients are possible"
        )
    rng = seeds.stream(seed, "partition")
    owner = _owner(config, dataset, rng)
    partition = _split(owner, num_clients, config.test_fraction, seeds.stream(seed, "split"))
    if not new_clients:
        return partition
    new = seeds.stream(seed, "new_clients").choice(num_clients, new_clients, replace=False)
    others = np.setdiff1d(np.arange(num_clients), new)
    return partition.reordered(np.concatenate([others, np.sort(new)]))


def _owner(config: DataConfig, dataset: Dataset, rng: np.random.Generator) -> Ints:
    """(n,): the client that each sample belongs to; -1 if it belongs to none."""
    keys, labels, num_clients = config.partition, dataset.labels, config.num_clients
    if keys.name == "iid":
        return rng.permutation(np.arange(len(labels)) % num_clients)
    if is_own(keys.name):
        return own_partition(config, dataset, rng)
    if keys.name == "pathological":
        assert keys.classes_per_client is not None
        return pathological(labels, dataset.num_classes, num_clients, keys.classes_per_client, rng)
    if keys.name == "shards":
        assert keys.shards_per_client is not None
        return shards(labels, num_clients, keys.shards_per_client, rng)
    if keys.name == "natural":
        assert keys.min_samples is not None
        if dataset.domains is None:
            raise ConfigError(f"data.partition: 'natural' needs a data set with domains, {config.name!r} has none")
        return natural(dataset.domains, num_clients, keys.min_samples, rng)
    assert keys.alpha is not None
    if keys.name == "dirichlet_per_client":
        return dirichlet_per_client(labels, dataset.num_classes, num_clients, keys.alpha, rng)
    assert keys.min_samples is not None
    if keys.name == "quantity":
        return quantity(len(labels), num_clients, keys.alpha, keys.min_samples, rng)
    assert keys.cap is not None
    skew = Skew(keys.alpha, keys.min_samples, keys.cap)
    if keys.name == "dirichlet":
        return dirichlet(labels, num_clients, skew, rng, "")
    if dataset.domains is None:
        raise ConfigError(f"data.partition: 'by_domain' needs a data set with domains, {config.name!r} has none")
    num_domains = len(dataset.domain_names)
    if num_clients < num_domains:
        raise ConfigError(f"data.num_clients: {num_clients} clients can't be divided over {num_domains} domains")
    owner = np.empty(len(labels), np.int64)
    for domain, clients in enumerate(np.array_split(np.arange(num_clients), num_domains)):
        members = np.flatnonzero(dataset.domains == domain)
        where = f" inside the domain {dataset.domain_names[domain]}"
        owner[members] = clients[dirichlet(labels[members], len(clients), skew, rng, where)]
    return owner


def _split(owner: Ints, num_clients: int, test_fraction: float, rng: np.random.Generator) -> Partition:
    """A random train/test split of every client, the test part rounded up as in scikit-learn."""
    order = np.lexsort((rng.random(len(owner)), owner)).astype(np.int64)
    indices = order[np.count_nonzero(owner < 0) :]
    counts = np.bincount(owner[indices], minlength=num_clients)
    num_train = counts - np.maximum(1, np.ceil(test_fraction * counts - 1e-9)).astype(np.int64)
    if len(bad := np.flatnonzero(num_train < 1)):
        raise ConfigError(
            f"data.test_fraction: client {bad[0]} has {counts[bad[0]]} samples and keeps none to train at a test_fraction of "
            f"{test_fraction:g} ({len(bad)} such clients). Raise data.partition.min_samples or take fewer clients"
        )
    return Partition(indices, np.concatenate([[0], np.cumsum(counts)]), num_train)


def with_validation(partition: Partition, fraction: float, rng: np.random.Generator) -> Partition:
    """Take ``fraction`` of every client's training samples, rounded up, as its validation split; the rest stays in order.

    Raises:
        ConfigError: a client would keep no training sample.
    """
    sizes, num_train = np.diff(partition.offsets), partition.num_train
    num_validation = np.ceil(fraction * num_train - 1e-9).astype(np.int64)
    if len(bad := np.flatnonzero(num_validation >= num_train)):
        raise ConfigError(
            f"data.validation_fraction: client {bad[0]} has {num_train[bad[0]]} training samples and keeps none of them at a "
            f"validation_fraction of {fraction:g} ({len(bad)} such clients). Lower it, raise data.partition.min_samples, or "
            "take fewer clients"
        )
    owner = np.repeat(np.arange(len(sizes)), sizes)
    position = np.arange(len(owner)) - partition.offsets[owner]
    drawn = rng.random(len(owner))
    drawn[position >= num_train[owner]] = np.inf  # test samples stay where they are, behind all others
    rank = np.empty(len(owner), np.int64)
    rank[np.lexsort((drawn, owner))] = position
    split = np.select([position >= num_train[owner], rank < num_validation[owner]], [2, 1], 0)
    order = np.lexsort((position, split, owner))
    return Partition(partition.indices[order], partition.offsets, num_train - num_validation, num_validation)
