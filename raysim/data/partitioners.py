"""How samples are divided among clients, and each client's train/test split; deterministic in the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.config.locations import local_path
from raysim.config.sections.data import DataConfig
from raysim.data.dataset import Dataset
from raysim.data.npz_files import read_npz
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
    if config.partition.name == "file":
        path = local_path(config.partition.path or "", "data.partition.path")
        return _from_file(path, config.num_clients, len(dataset.labels))
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


def _from_file(path: Path, num_clients: int, num_samples: int) -> Partition:
    """``train_<i>`` and ``test_<i>`` of every client i from an npz."""
    where = f"data.partition.path: {path}"
    if not path.is_file():
        raise ConfigError(
            f"{where}: there is no such file; it should be an npz with train_<i> and test_<i> of every client"
        )
    try:
        arrays = read_npz(path, lambda name: name.startswith(("train_", "test_")))
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise ConfigError(f"{where}: is damaged or not an npz of plain arrays: {error}") from error
    names = [f"{kind}_{i}" for i in range(num_clients) for kind in ("train", "test")]
    if missing := next((name for name in names if name not in arrays), None):
        raise ConfigError(f"{where}: has no {missing}, but data.num_clients is {num_clients}")
    if beyond := sorted(arrays.keys() - set(names)):
        raise ConfigError(
            f"{where}: has {len(beyond)} arrays of other clients than 0 to {num_clients - 1} ({', '.join(beyond[:4])}); "
            "set data.num_clients to the number of all, or leave them out of the file"
        )
    parts = [(arrays[f"train_{i}"], arrays[f"test_{i}"]) for i in range(num_clients)]
    for client, (train, test) in enumerate(parts):
        for kind, part in (("train", train), ("test", test)):
            if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer):
                raise ConfigError(f"{where}: {kind}_{client} is {part.dtype} {part.shape}, not integers (n,)")
            if len(part) == 0:
                raise ConfigError(f"{where}: client {client} is left without {kind} samples")
            if part.min() < 0 or part.max() >= num_samples:
                raise ConfigError(
                    f"{where}: {kind}_{client} has index {part.max() if part.min() >= 0 else part.min()}, but the data set "
                    f"has samples 0 to {num_samples - 1}"
                )
        if len(both := np.intersect1d(train, test)):
            raise ConfigError(f"{where}: client {client} has sample {both[0]} in both its train and its test split")
    counts = [len(train) + len(test) for train, test in parts]
    return Partition(
        np.concatenate([index for pair in parts for index in pair]).astype(np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.array([len(train) for train, _ in parts], np.int64),
    )
