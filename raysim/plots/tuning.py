"""Pictures of a tuning: who needs more of it, which keys matter, and how the metric depends on each."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from raysim.plots.style import MARKERS, colour, ink, line, new_figure, plain, verbatim


@verbatim
def plot_best_so_far(trials: pd.DataFrame, metric: str) -> Figure:
    """The best value so far over the trials of each search: tables with ``entry``, ``setting``, ``trial`` and ``best``."""
    settings = list(dict.fromkeys(trials["setting"]))
    entries = list(dict.fromkeys(trials["entry"]))
    figure = new_figure(1.5 + 4.5 * len(settings), 3.6)
    panels = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    for axes, setting in zip(panels, settings, strict=True):
        for entry, of in trials[trials["setting"] == setting].groupby("entry", sort=False):
            i = entries.index(str(entry))
            axes.step(of["trial"], of["best"], where="post", label=entry, **line(i))
        axes.set(xlabel="trial", title="all keys" if setting == "tuned" else "learning rate alone")
        plain(axes)
    handles = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=7)
    panels[0].set_ylabel(f"best {metric} so far")
    return figure


@verbatim
def plot_importances(importances: Mapping[str, Mapping[str, float]], metric: str) -> Figure:
    """How much each key of each entry has to do with the metric (fANOVA); entries of which nothing is known are left out."""
    known = {entry: of for entry, of in importances.items() if of}
    rows = [(entry, key, value) for entry, of in known.items() for key, value in sorted(of.items(), key=lambda k: k[1])]
    figure = new_figure(7.5, 1.2 + 0.32 * len(rows))
    axes = figure.subplots()
    entries = list(known)
    y = np.arange(len(rows))
    axes.barh(y, [value for *_, value in rows], color=[colour(entries.index(entry)) for entry, *_ in rows], height=0.6)
    axes.set_yticks(y, [f"{entry}: {key}" for entry, key, _ in rows], fontsize=8)
    axes.set(xlabel=f"share of the variance of {metric}", xlim=(0, 1))
    plain(axes, grid="x")
    return figure


@verbatim
def plot_slices(trials: pd.DataFrame, entry: str, metric: str, direction: str = "maximize") -> Figure:
    """The metric of every completed trial of an entry over the value of each key; failed and pruned ones as ticks below."""
    values = [json.loads(text) for text in trials["values"]]
    keys = list(dict.fromkeys(key for of in values for key in of))
    figure = new_figure(1 + 3.2 * len(keys), 3.2)
    panels = figure.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    best = trials["value"].max() if direction == "maximize" else trials["value"].min()
    for axes, key in zip(panels, keys, strict=True):
        x = [of.get(key) for of in values]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in x):
            positive = min(x) > 0 and max(x) > 20 * min(x)
            axes.set_xscale("log" if positive else "linear")
            if positive:
                axes.xaxis.set_minor_formatter(NullFormatter())  # of less than a decade they would overlap
        else:
            names = sorted({str(value) for value in x})
            x = [names.index(str(value)) for value in x]
            axes.set_xticks(range(len(names)), names)
        order = trials["trial"].to_numpy()
        points = axes.scatter(x, trials["value"], c=order, cmap="viridis", s=22, marker=MARKERS[0])
        without = trials["value"].isna().to_numpy()
        if without.any():
            below = np.full(int(without.sum()), 0.02)
            axes.scatter(np.array(x)[without], below, transform=axes.get_xaxis_transform(), marker="|", color=ink())
        axes.axhline(best, color=ink(), linewidth=0.6, linestyle=":")
        axes.set_xlabel(key, fontsize=8)
        plain(axes)
    panels[0].set_ylabel(metric)
    figure.suptitle(f"{entry}: ticks at the bottom are trials without a value (pruned, failed)", fontsize=9)
    figure.colorbar(points, ax=panels[-1], label="trial")
    return figure
