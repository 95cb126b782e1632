"""The picture of ``raysim bench``: seconds per round."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raysim.plots.style import MARKERS, line, new_figure


def plot_bench(key: str, values: list[str], figures: list[dict[str, Any]]) -> Figure:
    """Seconds per round over the values of a varied key, medians with the range of all rounds: raysim and its yardstick."""
    figure = new_figure(6.0, 3.8)
    axes = figure.subplots()
    at = [float(value) for value in values]
    sides = [("raysim_seconds", "raysim")]
    sides += [("plain_seconds", "plain torch loop")] if "plain_seconds" in figures[0] else []
    for i, (name, label) in enumerate(sides):
        rounds = [np.array(f[name]) for f in figures]
        middle = np.array([np.median(r) for r in rounds])
        ends = np.abs(np.array([[r.min(), r.max()] for r in rounds]).T - middle)
        axes.errorbar(at, middle, yerr=ends, **line(i), marker=MARKERS[i], capsize=3, label=label)
    axes.set_xscale("log", base=2 if all(v == 2 ** int(np.log2(v)) for v in at) else 10)
    axes.set_yscale("log")
    axes.set_xticks(at, values)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel(key)
    axes.set_ylabel("seconds per round")
    first = figures[0]
    axes.set_title(
        f"{first['workload']}, {first['algorithm']['name']}: {first['machine']['cpu']}, {first['machine']['cores']} cores"
    )
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure
