"""A split that was made elsewhere: an npz with index arrays of every client."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.data.npz_files import read_npz
from raysim.data.partition import Partition
from raysim.errors import ConfigError

Ints = NDArray[np.int64]


def partition_from_file(path: Path, num_clients: int, num_samples: int) -> Partition:
    """``train_<i>`` and ``test_<i>`` of every client i, and ``validation_<i>`` of all or of none.

    Raises:
        ConfigError: the file is not such a one; the message says why.
    """
    where = f"data.partition.path: {path}"
    if not path.is_file():
        raise ConfigError(
            f"{where}: there is no such file; it should be an npz with train_<i> and test_<i> of every client"
        )
    try:
        arrays = read_npz(path, lambda name: name.startswith(("train_", "validation_", "test_")))
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise ConfigError(f"{where}: is damaged or not an npz of plain arrays: {error}") from error
    validates = any(name.startswith("validation_") for name in arrays)
    kinds = ("train", "validation", "test") if validates else ("train", "test")
    names = [f"{kind}_{i}" for i in range(num_clients) for kind in kinds]
    if missing := next((name for name in names if name not in arrays), None):
        raise ConfigError(f"{where}: has no {missing}, but data.num_clients is {num_clients}")
    if beyond := sorted(arrays.keys() - set(names)):
        raise ConfigError(
            f"{where}: has {len(beyond)} arrays of other clients than 0 to {num_clients - 1} ({', '.join(beyond[:4])}); "
            "set data.num_clients to the number of all, or leave them out of the file"
        )
    for client in range(num_clients):
        _check({kind: arrays[f"{kind}_{client}"] for kind in kinds}, client, num_samples, where)
    counts = {kind: np.array([len(arrays[f"{kind}_{i}"]) for i in range(num_clients)], np.int64) for kind in kinds}
    return Partition(
        np.concatenate([arrays[name] for name in names]).astype(np.int64),
        np.concatenate([[0], np.cumsum(sum(counts.values()))]).astype(np.int64),
        counts["train"],
        counts.get("validation"),
    )


def save_partition(partition: Partition, path: Path) -> None:
    """Write what ``partition_from_file`` reads."""
    arrays: dict[str, Any] = {}
    for i in range(partition.num_clients):
        arrays |= {f"train_{i}": partition.train(i), f"test_{i}": partition.test(i)}
        if partition.num_validation is not None:
            arrays[f"validation_{i}"] = partition.validations(np.array([i]))
    with path.open("wb") as file:  # numpy would append .npz to another name
        np.savez_compressed(file, **arrays)


def _check(parts: dict[str, Ints], client: int, num_samples: int, where: str) -> None:
    """Refuse what is no split of one client's samples."""
    for kind, part in parts.items():
        if part.ndim != 1 or not np.issubdtype(part.dtype, np.integer):
            raise ConfigError(f"{where}: {kind}_{client} is {part.dtype} {part.shape}, not integers (n,)")
        if len(part) == 0:
            raise ConfigError(f"{where}: client {client} is left without {kind} samples")
        if part.min() < 0 or part.max() >= num_samples:
            raise ConfigError(
                f"{where}: {kind}_{client} has index {part.max() if part.min() >= 0 else part.min()}, but the data set "
                f"has samples 0 to {num_samples - 1}"
            )
    for one, other in combinations(parts, 2):
        if len(both := np.intersect1d(parts[one], parts[other])):
            raise ConfigError(f"{where}: client {client} has sample {both[0]} in both its {one} and its {other} split")
