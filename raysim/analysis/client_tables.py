"""Tables with a row per client: who has which samples, and how well each does after the last round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysim.data.dataset import Dataset
from raysim.data.partition import Partition
from raysim.views import FAMILIES

Ints = NDArray[np.int64]


def partition_table(partition: Partition, dataset: Dataset, most: int = 40) -> pd.DataFrame:
    """A row per client (of the first ``most``, and a row for the rest): samples, classes, domain."""
    counts = partition.class_counts(dataset.labels, dataset.num_classes)
    domains = partition.client_domains(dataset.domains, dataset.domain_names)
    splits = split_sizes(partition)
    rows = []
    for client in range(min(most, partition.num_clients)):
        present = np.argsort(-counts[client], kind="stable")[: (counts[client] > 0).sum()]
        top = ", ".join(f"{dataset.class_names[label]} {counts[client, label]}" for label in present[:4])
        rows.append(
            {
                "client": str(client),
                **{split: str(sizes[client]) for split, sizes in splits.items()},
                "classes": str(len(present)),
                "most frequent": top,
                "domain": domains[client],
            }
        )
    if (more := partition.num_clients - most) > 0:
        classes = f"{(counts[most:] > 0).sum(axis=1).mean():.1f}"
        rows.append(
            {
                "client": f"{more} more, mean",
                **{split: f"{sizes[most:].mean():.1f}" for split, sizes in splits.items()},
                "classes": classes,
                "most frequent": "",
                "domain": "",
            }
        )
    table = pd.DataFrame(rows)
    return table if dataset.domains is not None else table.drop(columns="domain")


def split_sizes(partition: Partition) -> dict[str, Ints]:
    """How many samples (N,) clients have in each split: ``train``, ``validation`` if there is one, ``test``."""
    validation = {} if partition.num_validation is None else {"validation": partition.num_validation}
    return {"train": partition.num_train, **validation, "test": partition.num_test}


def client_table(
    results: dict[str, NDArray[Any]],
    rounds: int,
    partition: Partition,
    class_counts: Ints,
    domains: NDArray[np.str_],
) -> pd.DataFrame:
    """A row per client after the last of so many ``rounds``, from ``Records.final`` or ``Records.new``.

    Columns of a family of metrics are named after it, ``personalized_accuracy``, ``aggregated_auc``, and NaN for a client
    that could not be evaluated there. ``label_entropy``, in bits, is that of the classes of a client's samples: 0 with one
    class only, log2 of their number if all are equally frequent. ``class_counts`` (N, classes) and ``domains`` (N,) are of
    all clients.
    """
    measured = _measured(results)
    ids = measured["client"].to_numpy()
    shares = class_counts[ids] / class_counts[ids].sum(axis=1, keepdims=True)
    return measured.assign(
        rounds=rounds,
        **{f"{split}_samples": sizes[ids] for split, sizes in split_sizes(partition).items()},
        label_entropy=-(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=1),
        domain=domains[ids],
    )


def _measured(results: dict[str, NDArray[Any]]) -> pd.DataFrame:
    """``client``, ascending, and what was measured of each."""
    if "before" in results:
        return pd.DataFrame({"client": results["clients"], "before": results["before"], "after": results["after"]})
    table = pd.DataFrame({"client": np.empty(0, np.int64)})
    for family in FAMILIES:
        columns = {f"{family}_{name}": results[f"{family}.{name}"] for name in ("accuracy", "auc")}
        of_family = pd.DataFrame({"client": results[f"{family}.clients"], **columns})
        table = table.merge(of_family, on="client", how="outer", sort=True)
    return table
