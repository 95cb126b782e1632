"""How samples are divided among clients, and each client's train/test split; deterministic in the seed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.config.locations import local_path
from raysim.config.schema import DataConfig
from raysim.data.dataset import Dataset
from raysim.data.npz_files import read_npz
from raysim.data.partition import Partition
from raysim.errors import ConfigError

Ints = NDArray[np.int64]
MAX_ATTEMPTS = 200


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
    """(n,): the client that each sample belongs to."""
    partition, labels = config.partition, dataset.labels
    if partition.name == "iid":
        return rng.permutation(np.arange(len(labels)) % config.num_clients)
    if partition.name == "pathological":
        assert partition.classes_per_client is not None
        return _pathological(labels, dataset.num_classes, config.num_clients, partition.classes_per_client, rng)
    assert partition.alpha is not None
    assert partition.min_samples is not None
    assert partition.cap is not None
    skew = _Skew(partition.alpha, partition.min_samples, partition.cap)
    if partition.name == "dirichlet":
        return _dirichlet(labels, config.num_clients, skew, rng, "")
    if dataset.domains is None:
        raise ConfigError(f"data.partition: 'by_domain' needs a data set with domains, {config.name!r} has none")
    num_domains = len(dataset.domain_names)
    if config.num_clients < num_domains:
        raise ConfigError(f"data.num_clients: {config.num_clients} clients can't be divided over {num_domains} domains")
    owner = np.empty(len(labels), np.int64)
    for domain, clients in enumerate(np.array_split(np.arange(config.num_clients), num_domains)):
        members = np.flatnonzero(dataset.domains == domain)
        where = f" inside the domain {dataset.domain_names[domain]}"
        owner[members] = clients[_dirichlet(labels[members], len(clients), skew, rng, where)]
    return owner


class _Skew(NamedTuple):
    """The keys of the same names in ``data.partition``."""

    alpha: float
    min_samples: int
    cap: bool


def _dirichlet(labels: Ints, num_clients: int, skew: _Skew, rng: np.random.Generator, where: str) -> Ints:
    """The FedPerfix paper's label skew (first in Hsu et al. 2019, https://arxiv.org/abs/1909.06335).

    Per class, shares from Dirichlet(alpha) over the clients; with ``cap`` a client that already holds n / num_clients samples
    gets no more; all drawn again until every client has ``min_samples``.
    """
    min_samples = skew.min_samples
    if num_clients * min_samples > len(labels):
        raise ConfigError(
            f"data.partition.min_samples: {num_clients} clients with at least {min_samples} samples each need "
            f"{num_clients * min_samples}, there are {len(labels)}{where}; at most {len(labels) // num_clients} is possible"
        )
    best = 0
    for _ in range(MAX_ATTEMPTS):
        owner = _draw_dirichlet(labels, num_clients, skew, rng)
        least = int(np.bincount(owner, minlength=num_clients).min())
        if least >= min_samples:
            return owner
        best = max(best, least)
    raise ConfigError(
        f"data.partition: Dirichlet(alpha={skew.alpha:g}) gave no split of {len(labels)} samples{where} in which each of "
        f"{num_clients} clients has {min_samples} samples, in {MAX_ATTEMPTS} draws. "
        + _what_would_work(labels, num_clients, skew, best, rng)
    )


def _what_would_work(labels: Ints, num_clients: int, skew: _Skew, best: int, rng: np.random.Generator) -> str:
    advice = [f"data.partition.min_samples={best} works at this alpha"] if best >= 2 else []
    for larger in (skew.alpha * 2**k for k in range(1, 12)):
        draws = (_draw_dirichlet(labels, num_clients, skew._replace(alpha=larger), rng) for _ in range(20))
        if any(np.bincount(owner, minlength=num_clients).min() >= skew.min_samples for owner in draws):
            advice.append(f"data.partition.alpha={larger:g} works with this min_samples")
            break
    return "; ".join(advice or ["Take fewer clients, a larger alpha or a smaller min_samples"])


def _draw_dirichlet(labels: Ints, num_clients: int, skew: _Skew, rng: np.random.Generator) -> Ints:
    owner = np.empty(len(labels), np.int64)
    held = np.zeros(num_clients, np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        open_ = held < (len(labels) / num_clients if skew.cap else np.inf)
        shares = rng.dirichlet(np.full(num_clients, skew.alpha)) * open_
        # With a tiny alpha the whole draw can fall on clients that are already full.
        shares = shares / shares.sum() if shares.sum() > 0 else open_ / open_.sum()
        cuts = (np.cumsum(shares) * len(members)).astype(np.int64)
        cuts[-1] = len(members)
        counts = np.diff(cuts, prepend=0)
        owner[members] = np.repeat(np.arange(num_clients), counts)
        held += counts
    return owner


def _pathological(labels: Ints, num_classes: int, num_clients: int, k: int, rng: np.random.Generator) -> Ints:
    """k classes per client, each class held by about the same number of clients and divided evenly among them.

    After McMahan et al. 2017, https://arxiv.org/abs/1602.05629, whose shards of sorted data give a client two classes.
    """
    if k > num_classes:
        raise ConfigError(f"data.partition.classes_per_client: {k} asked, the data set has {num_classes} classes")
    if num_clients * k < num_classes:
        raise ConfigError(
            f"data.partition.classes_per_client: {num_clients} clients with {k} classes each can't hold all "
            f"{num_classes} classes; at least {-(-num_classes // num_clients)} is needed"
        )
    holders: list[list[int]] = [[] for _ in range(num_classes)]
    used = np.zeros(num_classes, np.int64)
    for client in range(num_clients):
        for label in np.lexsort((rng.random(num_classes), used))[:k]:  # the least used, ties at random
            holders[label].append(client)
            used[label] += 1
    owner = np.empty(len(labels), np.int64)
    for label, clients in enumerate(holders):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2 * len(clients):
            raise ConfigError(
                f"data.num_clients: class {label} has {len(members)} samples for {len(clients)} clients; each needs two. "
                "Take fewer clients or fewer classes_per_client"
            )
        for client, part in zip(clients, np.array_split(members, len(clients)), strict=True):
            owner[part] = client
    return owner


def _split(owner: Ints, num_clients: int, test_fraction: float, rng: np.random.Generator) -> Partition:
    """A random train/test split of every client, the test part rounded up as in scikit-learn."""
    indices = np.lexsort((rng.random(len(owner)), owner)).astype(np.int64)
    counts = np.bincount(owner, minlength=num_clients)
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
    names = (f"{kind}_{i}" for i in range(num_clients) for kind in ("train", "test"))
    if missing := next((name for name in names if name not in arrays), None):
        raise ConfigError(f"{where}: has no {missing}, but data.num_clients is {num_clients}")
    if f"train_{num_clients}" in arrays:
        raise ConfigError(f"{where}: has more than {num_clients} clients; set data.num_clients to its number")
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
