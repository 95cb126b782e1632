"""The timeline of a round: which actor ran which client batch when."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from raysim.plots.style import colour, ink, new_figure, plain, verbatim

KINDS = {"train": "train and evaluate", "evaluate": "evaluate", "global": "evaluate the shared model"}


@verbatim
def plot_timeline(table: pd.DataFrame, title: str) -> Figure:
    """The actors in one round: a bar per client batch, gaps where an actor had nothing to do.

    ``table``: ``actor``, ``kind``, ``start`` and ``seconds`` of each batch, seconds from the start of the first.
    """
    actors = sorted(table["actor"].unique())
    figure = new_figure(10, min(12.0, 1.6 + 0.4 * len(actors)))
    axes = figure.subplots()
    hatches = ("", "///", "...")
    for i, (kind, label) in enumerate(KINDS.items()):
        for rows in (table[(table["actor"] == actor) & (table["kind"] == kind)] for actor in actors):
            if not len(rows):
                continue
            spans = list(zip(rows["start"], rows["seconds"], strict=True))
            y = actors.index(rows["actor"].iloc[0]) - 0.4
            style: dict[str, Any] = {
                "facecolor": colour(i),
                "edgecolor": axes.get_facecolor(),
                "linewidth": 0.6,
                "hatch": hatches[i],
            }
            axes.broken_barh(spans, (y, 0.8), **style)
        if (table["kind"] == kind).any():
            axes.plot([], [], color=colour(i), linewidth=6, label=label)
    end = (table["start"] + table["seconds"]).max()
    busy = table["seconds"].sum() / (len(actors) * end)
    axes.axvline(end, color=ink(), linewidth=0.8)
    axes.set_yticks(range(len(actors)), [f"actor {actor}" for actor in actors], fontsize=8)
    axes.set(xlabel="seconds since the first client batch began", xlim=(0, 1.02 * end))
    axes.set_title(f"{title}: {100 * busy:.0f} % busy", fontsize=11)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    plain(axes, grid="x")
    return figure
