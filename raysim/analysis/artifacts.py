"""The pictures and tables of a finished run or study as files, made from its results or from what MLflow has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysim.analysis.comparison import Last, compare
from raysim.analysis.fairness import fairness
from raysim.analysis.paired_tests import gains
from raysim.config.schema import Config
from raysim.plots.clients import plot_client_accuracy, plot_heat_map, plot_who_gains
from raysim.plots.curves import plot_accuracy, plot_comparison
from raysim.plots.gains import plot_gains
from raysim.plots.style import as_png
from raysim.plots.timeline import plot_timeline
from raysim.tracking.run_description import clients_of, headline_of
from raysim.views import MODELS, View

BASELINES = ("local", "fedavg")
"""Algorithms that gains are reported over: no federation at all, and one model for all clients."""
Clients = Mapping[tuple[str, int], pd.DataFrame]
"""The table of clients by study entry and seed, with the ``accuracy`` of each that a view is about."""


MOST_ROUNDS = 240
"""Of a run's pictures: with more evaluated rounds, as many are drawn, evenly spaced up to the last."""


def drawn_rounds(rounds: list[int]) -> list[int]:
    """At most ``MOST_ROUNDS`` of these, the last one among them."""
    at = np.linspace(0, len(rounds) - 1, min(len(rounds), MOST_ROUNDS)).round().astype(int)
    return [rounds[i] for i in at]


def run_files(
    config: Config, rounds: list[int], of: int, accuracy: NDArray[np.float32], timeline: pd.DataFrame | None
) -> dict[str, bytes]:
    """Pictures of a run: the headline's accuracy (E, N) in E rounds ``of`` so many, and ``FederatedRun.timeline``."""
    drawn = "every evaluated round" if len(rounds) == of else f"{len(rounds)} of {of} evaluated rounds"
    view = View(headline_of([config]), clients_of([config]), drawn)
    title = f"{config.name}: {view}"
    at = np.array(rounds, np.int64)
    files = {
        "accuracy.png": as_png(plot_accuracy(at, accuracy, title)),
        "heat_map.png": as_png(plot_heat_map(at, accuracy, title)),
    }
    if timeline is not None:
        files["timeline.png"] = as_png(plot_timeline(timeline, f"{config.name}, round {max(1, rounds[-1])}"))
    return files


def study_files(
    history: pd.DataFrame,
    clients: Clients,
    algorithms: Mapping[str, str],
    data: Mapping[str, str],
    title: str,
    view: View,
    of_clients: View,
    last: Last = 1,
    chosen: Sequence[str] = (),
) -> dict[str, bytes]:
    """Pictures and tables of a study, by file name.

    Args:
        history: as ``Result.history``.
        algorithms: by entry.
        data: by entry, equal where data and evaluated clients are the same, so that clients can be paired.
        title: what was run.
        view: what the comparison is about.
        of_clients: what the accuracies in ``clients``, and all that is made of them, are about.
        last: which rounds the comparison is taken from.
        chosen: baselines in place of the usual ones.
    """
    accuracy, about = by_method(clients), f"{title}\n{of_clients}"

    def csv(table: pd.DataFrame, of: View) -> bytes:
        data: bytes = table.assign(about=str(of)).to_csv(index=False).encode()
        return data

    pooled = {name: np.concatenate(list(of_seed.values())) for name, of_seed in accuracy.items()}
    files = {
        "comparison.png": as_png(
            plot_comparison(history, view.metric("accuracy_mean"), f"{title}\n{MODELS[view.model]}, {view.clients}")
        ),
        "clients.png": as_png(plot_client_accuracy(pooled, about)),
        "comparison.csv": csv(compare(history, view.model, last=last), view),
        "fairness.csv": csv(fairness(accuracy), of_clients),
    }
    known = {entry: name for entry, name in algorithms.items() if entry in accuracy}
    for baseline in chosen or baselines(known, data):
        same = {entry: of_seed for entry, of_seed in accuracy.items() if data[entry] == data[baseline]}
        table = gains(same, baseline)
        if len(table):
            name = re.sub(r"[^\w.-]", "_", baseline)
            files[f"gains_over_{name}.csv"] = csv(table, of_clients)
            files[f"gains_over_{name}.png"] = as_png(plot_gains(table, baseline, about))
            rows = gain_rows({key: table for key, table in clients.items() if key[0] in same}, baseline)
            files[f"who_gains_over_{name}.png"] = as_png(plot_who_gains(rows, baseline, about))
    return files


def by_method(clients: Clients) -> dict[str, dict[int, NDArray[np.float64]]]:
    """Accuracy of every client, by entry and seed; NaN where it has none."""
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
