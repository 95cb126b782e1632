"""Pictures, made without a display. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raysim.errors import ConfigError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
STYLES = ("-", "--", "-.", ":")
MOST_BANDS = 5  # groups, beyond which bands hide the lines
HEAT_MAP_FROM = 200  # clients, beyond which bars are too thin to read


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")


def as_png(figure: Figure) -> bytes:
    """The picture; drawn here and now, since matplotlib must not be used by two threads at once."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def check_picture(path: Path | None) -> None:
    """Refuse a picture that can't be written, before the work is done.

    Raises:
        ConfigError: the suffix is of no picture, or there is no such folder.
    """
    if path is None:
        return
    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
        raise ConfigError(f"--plot: {path} should end in .png, .pdf, .svg or .jpg")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot: there is no folder {path.parent}")


def plot_partition(counts: NDArray[np.int64], class_names: tuple[str, ...], title: str) -> Figure:
    """Samples of each class per client, from counts (N, classes): stacked bars, or a heat map of many clients."""
    num_clients, num_classes = counts.shape
    if num_clients > HEAT_MAP_FROM:
        return _partition_heat_map(counts, title)
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    figure = _figure(min(16.0, max(6.0, 2 + 0.16 * num_clients)), 4.2)
    axes = figure.subplots()
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, num_classes))
    left, bottom = np.arange(num_clients) - 0.43, np.zeros(num_clients)
    edge = 0.4 if num_clients <= 64 else 0  # white lines between classes, which a greyscale print needs
    for label in range(num_classes):
        top = bottom + counts[:, label]
        corners = [(left, bottom), (left, top), (left + 0.86, top), (left + 0.86, bottom)]
        bars = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
        # One collection per class: a bar per client and class would take seconds to draw for hundreds of clients.
        axes.add_collection(
            PolyCollection(
                list(bars), facecolors=colours[label], edgecolors="white", linewidths=edge, label=class_names[label]
            )
        )
        bottom = top
    axes.set(xlabel="client", ylabel="samples", title=title)
    axes.set_xlim(-0.7, num_clients - 0.3)
    axes.set_ylim(0, 1.04 * bottom.max())
    if num_clients <= 32:
        axes.set_xticks(range(num_clients))
    if num_classes <= 20:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, title="class", title_fontsize=8)
    _plain(axes)
    return figure


def _partition_heat_map(counts: NDArray[np.int64], title: str) -> Figure:
    """Clients sorted by their most frequent class, as columns; colour is the share of a class in a client's samples."""
    order = np.lexsort((counts.sum(axis=1), counts.argmax(axis=1)))
    shares = (counts / counts.sum(axis=1, keepdims=True))[order]
    if len(shares) > 2000:  # more columns than pixels: means over neighbours
        shares = np.stack([block.mean(axis=0) for block in np.array_split(shares, 2000)])
    figure = _figure(10, 4.2)
    axes = figure.subplots()
    image = axes.imshow(
        shares.T,
        aspect="auto",
        cmap="viridis",
        vmin=0,
        interpolation="nearest",
        extent=(0, len(counts), len(counts.T), 0),
    )
    figure.colorbar(image, ax=axes, label="share of a client's samples")
    axes.set(xlabel="clients, sorted by their most frequent class", ylabel="class", title=title)
    return figure


def plot_comparison(history: pd.DataFrame, title: str, by: str = "name") -> Figure:
    """Mean client accuracy over rounds and over megabytes sent, a line per group; the band is the range over its runs
    (of a few groups).

    ``history`` has a row per run and round, as ``Result.history``. A group that sends nothing is a horizontal line over
    megabytes, at its last accuracy.
    """
    figure = _figure(11, 4.2)
    over_rounds, over_bytes = figure.subplots(1, 2, sharey=True)
    sent = history["communication/down_bytes"] + history["communication/up_bytes"]
    table = history.assign(megabytes=sent.groupby(history["run_id"]).cumsum() / 1e6)
    table = table.dropna(subset=["personalized/accuracy_mean"])
    for i, (group, rows) in enumerate(table.groupby(by, sort=False)):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[(i + i // len(COLOURS)) % len(STYLES)]}
        per_round = rows.groupby("round")
        mean, runs = per_round["personalized/accuracy_mean"].mean(), rows["run_id"].nunique()
        low, high = (getattr(per_round["personalized/accuracy_mean"], f)() for f in ("min", "max"))
        label = f"{group} ({runs} {'seeds' if by == 'name' else 'runs'})" if runs > 1 else str(group)
        megabytes = per_round["megabytes"].mean()
        over_rounds.plot(mean.index + 1, mean, linewidth=1.8, label=label, **style)
        if megabytes.max() > 0:
            over_bytes.plot(megabytes, mean, linewidth=1.8, **style)
        else:
            over_bytes.axhline(mean.iloc[-1], linewidth=1.2, **style)
        if runs > 1 and table[by].nunique() <= MOST_BANDS:
            over_rounds.fill_between(mean.index + 1, low, high, color=style["color"], alpha=0.12, linewidth=0)
    over_rounds.set(xlabel="round", ylabel="accuracy, mean over clients")
    over_bytes.set(xlabel="megabytes sent, all clients, down and up")
    figure.suptitle(title, fontsize=11)
    for axes in (over_rounds, over_bytes):
        _plain(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def plot_gains(table: pd.DataFrame, baseline: str, title: str, sensitivity: dict[str, float] | None = None) -> Figure:
    """Gain in accuracy over a baseline with its interval, and per kilobyte kept personal, from ``statistics.gains``.

    Sorted by gain per kilobyte, best on top. ``sensitivity``, per type of layer, is the mean over rounds of the measured
    disagreement between clients in the baseline's runs.
    """
    table = table.sort_values("per kB", na_position="first", ignore_index=True)
    figure = _figure(12 if sensitivity else 9, max(2.6, 1.2 + 0.36 * len(table)))
    axes = figure.subplots(1, 3 if sensitivity else 2)
    y = np.arange(len(table))
    error = np.stack([table["gain"] - table["low"], table["high"] - table["gain"]])
    axes[0].errorbar(table["gain"], y, xerr=error, fmt="o", color=COLOURS[0], capsize=3, markersize=5)
    axes[0].axvline(0, color="black", linewidth=0.8)
    axes[0].set(xlabel=f"points gained over {baseline}, 95 % interval")
    axes[0].set_yticks(y, [f"{n} ({kb:,.1f} kB)" for n, kb in zip(table["name"], table["kB"], strict=True)])
    axes[1].barh(y, table["per kB"].fillna(0), color=COLOURS[2], height=0.6)
    axes[1].set_xscale("symlog", linthresh=0.01)
    axes[1].set(xlabel="points per kilobyte kept personal")
    axes[1].set_yticks(y, [])
    for one in axes[:2]:
        one.set_ylim(-0.6, len(table) - 0.4)
    if sensitivity:
        kinds = sorted(sensitivity, key=lambda kind: sensitivity[kind])
        axes[2].barh(range(len(kinds)), [sensitivity[k] for k in kinds], color=COLOURS[1], height=0.6)
        axes[2].set_yticks(range(len(kinds)), [k.replace("_", " ") for k in kinds])
        axes[2].set(xlabel=f"disagreement between clients\n(1 - mean cosine, {baseline})")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="x", alpha=0.3, linewidth=0.6)
        one.set_axisbelow(True)
    figure.suptitle(title, fontsize=11)
    return figure


def _plain(axes: object) -> None:
    axes.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)  # type: ignore[attr-defined]
    axes.set_axisbelow(True)  # type: ignore[attr-defined]


def plot_bench(key: str, values: list[str], figures: list[dict[str, Any]]) -> Figure:
    """Seconds per round over the values of a varied key, medians with the range of all rounds: raysim and its yardstick."""
    figure = _figure(6.0, 3.8)
    axes = figure.subplots()
    at = [float(value) for value in values]
    sides = [("raysim_seconds", "raysim")]
    sides += [("plain_seconds", "plain torch loop")] if "plain_seconds" in figures[0] else []
    for i, (name, label) in enumerate(sides):
        rounds = [np.array(f[name]) for f in figures]
        middle = np.array([np.median(r) for r in rounds])
        ends = np.abs(np.array([[r.min(), r.max()] for r in rounds]).T - middle)
        axes.errorbar(
            at, middle, yerr=ends, color=COLOURS[i], linestyle=STYLES[i], marker="os"[i], capsize=3, label=label
        )
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
