"""The pictures and tables of a finished run or study as files, made from its results or from what MLflow has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysim.analysis.comparison import Last, compare, rounds_shown
from raysim.analysis.fairness import fairness
from raysim.analysis.paired_tests import gains
from raysim.config.schema import Config
from raysim.plots.clients import plot_client_accuracy, plot_heat_map, plot_who_gains
from raysim.plots.curves import plot_accuracy, plot_comparison
from raysim.plots.gains import plot_gains
from raysim.plots.style import as_png
from raysim.plots.timeline import plot_timeline
from raysim.tracking.run_description import what_is_evaluated

BASELINES = ("local", "fedavg")
"""Algorithms that gains are reported over: no federation at all, and one model for all clients."""
Clients = Mapping[tuple[str, int], pd.DataFrame]
"""The table of clients after the last round, by study entry and seed."""


def run_files(config: Config, table: Mapping[str, NDArray[Any]], timeline: pd.DataFrame | None) -> dict[str, bytes]:
    """Pictures of a run, from ``Records.accuracy_table`` and ``FederatedRun.timeline``."""
    rounds, accuracy = table["rounds"], table["accuracy"]
    title = f"{config.name}: {config.data.num_clients} clients, {what_is_evaluated(config)}"
    files = {
        "accuracy.png": as_png(plot_accuracy(rounds, accuracy, title)),
        "heat_map.png": as_png(plot_heat_map(rounds, accuracy, title)),
    }
    if timeline is not None:
        files["timeline.png"] = as_png(plot_timeline(timeline, f"{config.name}, round {max(1, config.rounds - 1)}"))
    return files


def study_files(
    history: pd.DataFrame,
    clients: Clients,
    algorithms: Mapping[str, str],
    data: Mapping[str, str],
    title: str,
    last: Last = 1,
    chosen: Sequence[str] = (),
) -> dict[str, bytes]:
    """Pictures and tables of a study, by file name.

    Args:
        history: as ``Result.history``.
        algorithms: by entry.
        data: by entry, equal where clients and protocol are the same, so that clients can be paired.
        title: what was run and what is evaluated.
        last: which rounds the tables and the accuracies in ``clients`` are taken from.
        chosen: baselines in place of the usual ones.
    """
    accuracy, when = by_method(clients), rounds_shown(last, history)
    pooled = {name: np.concatenate(list(of_seed.values())) for name, of_seed in accuracy.items()}
    files = {
        "comparison.png": as_png(plot_comparison(history, title)),
        "clients.png": as_png(plot_client_accuracy(pooled, f"{title}, {when}")),
        "comparison.csv": compare(history, last=last).to_csv(index=False).encode(),
        "fairness.csv": fairness(accuracy).to_csv(index=False).encode(),
    }
    known = {entry: name for entry, name in algorithms.items() if entry in accuracy}
    for baseline in chosen or baselines(known, data):
        same = {entry: of_seed for entry, of_seed in accuracy.items() if data[entry] == data[baseline]}
        table = gains(same, baseline)
        if len(table):
            name = re.sub(r"[^\w.-]", "_", baseline)
            files[f"gains_over_{name}.csv"] = table.to_csv(index=False).encode()
            files[f"gains_over_{name}.png"] = as_png(plot_gains(table, baseline, f"{title}, {when}"))
            rows = gain_rows({key: table for key, table in clients.items() if key[0] in same}, baseline)
            files[f"who_gains_over_{name}.png"] = as_png(plot_who_gains(rows, baseline, f"{title}, {when}"))
    return files


def by_method(clients: Clients) -> dict[str, dict[int, NDArray[np.float64]]]:
    """Accuracy of every client after the last round, by entry and seed; NaN where a client was dropped."""
    num_clients = 1 + max(int(table["client"].max()) for table in clients.values())
    accuracy: dict[str, dict[int, NDArray[np.float64]]] = {}
    for (entry, seed), table in clients.items():
        row = np.full(num_clients, np.nan)
        row[table["client"]] = table["accuracy"]
        accuracy.setdefault(entry, {})[seed] = row
    return accuracy


def baselines(algorithms: Mapping[str, str], data: Mapping[str, str]) -> list[str]:
    """The entries that others are compared with: for each data set, the first of each algorithm in ``BASELINES``."""
    found = []
    for algorithm in BASELINES:
        of_data = {data[entry]: entry for entry, name in reversed(list(algorithms.items())) if name == algorithm}
        found += [entry for entry in algorithms if entry in of_data.values()]
    return found


def gain_rows(clients: Clients, baseline: str) -> dict[str, pd.DataFrame]:
    """The table of clients per method, with ``gain`` in points, for the seeds that the baseline has, too."""
    rows: dict[str, list[pd.DataFrame]] = {}
    for (entry, seed), table in clients.items():
        if entry != baseline and (other := clients.get((baseline, seed))) is not None:
            both = table.merge(other[["client", "accuracy"]], on="client", suffixes=("", "_baseline"))
            gain = 100 * (both["accuracy"] - both["accuracy_baseline"])
            rows.setdefault(entry, []).append(both.assign(gain=gain, seed=seed))
    return {entry: pd.concat(tables, ignore_index=True) for entry, tables in rows.items()}
