"""Client by client: how well each does, who gains, and when."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from raysim.plots.style import MARKERS, SEQUENTIAL, colour, ink, new_figure, plain, verbatim

MOST_ROWS = 400  # rows of a heat map; with more clients, neighbours are drawn as their mean


@verbatim
def plot_client_accuracy(accuracy: Mapping[str, NDArray[np.float64]], title: str) -> Figure:
    """Methods side by side: a dot per client (and seed), sorted by accuracy inside each; a bar at the mean.

    ``accuracy`` (n,) by method, fractions, NaN where a client was not evaluated.
    """
    figure = new_figure(max(6.0, 1.6 + 1.1 * len(accuracy)), 4.4)
    axes = figure.subplots()
    for i, values in enumerate(accuracy.values()):
        ordered = np.sort(values[np.isfinite(values)])
        at = i + np.linspace(-0.36, 0.36, len(ordered)) if len(ordered) > 1 else np.array([float(i)])
        size = float(np.clip(900 / max(1, len(ordered)), 3, 22))
        axes.scatter(at, ordered, s=size, color=colour(i), marker=MARKERS[i % len(MARKERS)], alpha=0.85, linewidths=0)
        axes.hlines(ordered.mean(), i - 0.4, i + 0.4, color=ink(), linewidth=1.4)
        axes.annotate(f"{100 * ordered.mean():.1f}", (i + 0.4, ordered.mean()), fontsize=8, va="bottom", ha="right")
    axes.set_xticks(range(len(accuracy)), list(accuracy), rotation=30 if len(accuracy) > 6 else 0)
    axes.set(ylabel="accuracy of a client, worst to best", title=title)
    axes.set_ylim(bottom=0)
    plain(axes)
    return figure


@verbatim
def plot_who_gains(gains: Mapping[str, pd.DataFrame], baseline: str, title: str) -> Figure:
    """Who profits from a method, who loses: gain over a baseline against a client's samples and its label entropy.

    ``gains``: by method, a row per client (and seed): ``gain`` in points, ``train_samples``, ``label_entropy`` in bits.
    Above each panel Spearman's rank correlation with its p-value.
    """
    figure = new_figure(9.5, 0.9 + 2.7 * len(gains))
    panels = figure.subplots(len(gains), 2, sharey="row", squeeze=False)
    for i, (method, table) in enumerate(gains.items()):
        table = table.dropna(subset=["gain"])
        for panel, column, label in zip(
            panels[i], ("train_samples", "label_entropy"), ("training samples", "label entropy, bits"), strict=True
        ):
            panel.scatter(
                table[column], table["gain"], s=16, color=colour(i), marker=MARKERS[i % len(MARKERS)], alpha=0.7
            )
            panel.axhline(0, color=ink(), linewidth=0.8)
            panel.set(xlabel=f"{label} of a client")
            if table[column].nunique() > 1 and table["gain"].nunique() > 1:
                found = stats.spearmanr(table[column], table["gain"])
                panel.set_title(f"rank correlation {found.statistic:+.2f} (p {found.pvalue:.2g})", fontsize=9)
            plain(panel)
        share = 100 * (table["gain"] > 0).mean()
        panels[i, 0].set_ylabel(f"{method}: points over {baseline}\n{share:.0f} % of {len(table)} gain", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


@verbatim
def plot_heat_map(rounds: NDArray[np.int64], accuracy: NDArray[np.floating], title: str) -> Figure:
    """Accuracy (E, N) of each client (rows, best at the end on top) in each evaluated round (E,)."""
    order = np.argsort(-np.nan_to_num(accuracy[-1], nan=-1.0), kind="stable")
    rows = accuracy.T[order]
    if len(rows) > MOST_ROWS:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Mean of empty slice"
            )  # none of these clients was evaluated in that round
            rows = np.stack([np.nanmean(block, axis=0) for block in np.array_split(rows, MOST_ROWS)])
    figure = new_figure(8, min(9.0, max(3.2, 1.4 + 0.16 * len(rows))))
    axes = figure.subplots()
    image = axes.imshow(rows, aspect="auto", cmap=SEQUENTIAL, vmin=0, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="accuracy")
    ticks = np.unique(np.linspace(0, len(rounds) - 1, min(len(rounds), 12)).astype(int))
    axes.set_xticks(ticks, rounds[ticks] + 1)
    if len(rows) == accuracy.shape[1] <= 40:
        axes.set_yticks(range(len(rows)), order, fontsize=7)
    else:
        axes.set_yticks([])
    axes.set(xlabel="round", ylabel="client, best in the last round on top", title=title)
    return figure
