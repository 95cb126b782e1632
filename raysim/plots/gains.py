"""What each part of a model gains by being personal, and what that costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raysim.plots.style import colour, ink, new_figure, plain


def plot_gains(table: pd.DataFrame, baseline: str, title: str, sensitivity: dict[str, float] | None = None) -> Figure:
    """Gain in accuracy over a baseline with its interval, from ``paired_tests.gains``; and, if it has ``per kB``, per
    kilobyte kept personal.

    Sorted by gain, or by gain per kilobyte, best on top. ``sensitivity``, per type of layer, is the mean over rounds of
    the measured disagreement between clients in the baseline's runs.
    """
    costs = "per kB" in table
    table = table.sort_values("per kB" if costs else "gain", na_position="first", ignore_index=True)
    panels = 1 + costs + bool(sensitivity)
    figure = new_figure(3 + 3 * panels, max(2.6, 1.2 + 0.36 * len(table)))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    y = np.arange(len(table))
    error = np.stack([table["gain"] - table["low"], table["high"] - table["gain"]])
    axes[0].errorbar(table["gain"], y, xerr=error, fmt="o", color=colour(0), capsize=3, markersize=5)
    axes[0].axvline(0, color=ink(), linewidth=0.8)
    axes[0].set(xlabel=f"points gained over {baseline}, 95 % interval")
    axes[0].set_yticks(y, table["name"])
    axes[0].set_ylim(-0.6, len(table) - 0.4)
    if costs:
        axes[0].set_yticks(y, [f"{n} ({kb:,.1f} kB)" for n, kb in zip(table["name"], table["kB"], strict=True)])
        axes[1].barh(y, table["per kB"].fillna(0), color=colour(2), height=0.6)
        axes[1].set_xscale("symlog", linthresh=0.01)
        axes[1].set(xlabel="points per kilobyte kept personal")
        axes[1].set_yticks(y, [])
        axes[1].set_ylim(-0.6, len(table) - 0.4)
    if sensitivity:
        kinds = sorted(sensitivity, key=lambda kind: sensitivity[kind])
        axes[-1].barh(range(len(kinds)), [sensitivity[k] for k in kinds], color=colour(1), height=0.6)
        axes[-1].set_yticks(range(len(kinds)), [k.replace("_", " ") for k in kinds])
        axes[-1].set(xlabel=f"disagreement between clients\n(1 - mean cosine, {baseline})")
    for one in axes:
        plain(one, grid="x")
    names = [*axes[0].get_yticklabels(), axes[0].xaxis.label, axes[-1].xaxis.label, figure.suptitle(title, fontsize=11)]
    for text in names:  # not the ticks of a logarithmic axis, which are formulas
        text.set_parse_math(False)
    return figure
