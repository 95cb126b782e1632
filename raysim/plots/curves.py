"""Accuracy over rounds, megabytes and time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raysim.plots.style import colour, line, new_figure, plain, verbatim

MOST_BANDS = 5  # with more groups, bands would hide the lines


@verbatim
def plot_comparison(history: pd.DataFrame, metric: str, title: str, by: str = "name") -> Figure:
    """A metric over rounds, over megabytes sent and over time, a line per group: means over its runs.

    The band over rounds is the range over runs (of a few groups). Where runs of a group have ended early, its line ends
    with the first of them. ``metric`` is an accuracy, such as ``personalized/accuracy_mean``; ``history`` has a row per run
    and round, as ``Result.history``. A group that sends nothing is a horizontal line over megabytes, at its last accuracy.
    """
    figure = new_figure(13, 4.2)
    panels = figure.subplots(1, 3, sharey=True)
    per_run = history.assign(
        megabytes=(history["communication/down_bytes"] + history["communication/up_bytes"]) / 1e6,
        seconds=history["system/round_seconds"],
    ).sort_values(["run_id", "round"])
    per_run[["megabytes", "seconds"]] = per_run.groupby("run_id")[["megabytes", "seconds"]].cumsum()
    table = per_run.dropna(subset=[metric])
    names = list(dict.fromkeys(history[by]))
    for i, group in enumerate(names):
        rows = table[table[by] == group]
        if rows.empty:
            continue
        ends = rows.groupby("run_id")["round"].max()
        rows = rows[rows["round"] <= ends.min()]
        runs, per_round = rows["run_id"].nunique(), rows.groupby("round")
        mean = per_round[metric].mean()
        until = f", to round {ends.min() + 1} of {ends.max() + 1}" if ends.nunique() > 1 else ""
        label = f"{group} ({runs} {'seeds' if by == 'name' else 'runs'}{until})" if runs > 1 else str(group)
        panels[0].plot(mean.index + 1, mean, linewidth=1.8, label=label, **line(i))
        if runs > 1 and len(names) <= MOST_BANDS:
            low, high = (getattr(per_round[metric], end)() for end in ("min", "max"))
            panels[0].fill_between(mean.index + 1, low, high, color=colour(i), alpha=0.15, linewidth=0)
        for panel, cost in zip(panels[1:], ("megabytes", "seconds"), strict=True):
            spent = per_round[cost].mean()
            if spent.max() > 0:
                panel.plot(spent, mean, linewidth=1.8, **line(i))
            else:
                panel.axhline(mean.iloc[-1], linewidth=1.2, **line(i))
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set(xlabel="round", ylabel="accuracy, mean over clients")
    panels[1].set(xlabel="megabytes sent, all clients, down and up")
    panels[2].set(xlabel="seconds of the run's rounds on this machine")
    figure.suptitle(title, fontsize=11)
    for panel in panels:
        plain(panel)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


@verbatim
def plot_accuracy(rounds: NDArray[np.int64], accuracy: NDArray[np.floating], title: str) -> Figure:
    """One run: accuracy (E, N) of its clients over the evaluated rounds (E,), NaN where one was not evaluated.

    Mean, median, the band from the 10th to the 90th percentile of clients, and the worst client.
    """
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    at = rounds + 1
    low, middle, high = np.nanpercentile(accuracy, [10, 50, 90], axis=1)
    axes.fill_between(
        at, low, high, color=colour(0), alpha=0.2, linewidth=0, label="10th to 90th percentile of clients"
    )
    axes.plot(at, np.nanmean(accuracy, axis=1), linewidth=2, label="mean over clients", **line(0))
    axes.plot(at, middle, linewidth=1.2, label="median", **line(1))
    axes.plot(at, np.nanmin(accuracy, axis=1), linewidth=1.2, label="worst client", **line(3))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel="accuracy", ylim=(0, min(1.0, 1.08 * float(np.nanmax(accuracy)) + 0.01)))
    figure.suptitle(title, fontsize=11)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    plain(axes)
    return figure
