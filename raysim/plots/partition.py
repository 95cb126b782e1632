"""The picture of a partition: which client has which classes."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raysim.plots.style import SEQUENTIAL, new_figure, plain, verbatim

HEAT_MAP_FROM = 200  # clients, beyond which bars are too thin to read


@verbatim
def plot_partition(counts: NDArray[np.int64], class_names: tuple[str, ...], title: str) -> Figure:
    """Samples of each class per client, from counts (N, classes): stacked bars, or a heat map of many clients."""
    num_clients, num_classes = counts.shape
    if num_clients > HEAT_MAP_FROM:
        return _partition_heat_map(counts, title)
    figure = new_figure(min(16.0, max(6.0, 2 + 0.16 * num_clients)), 4.2)
    axes = figure.subplots()
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, num_classes))
    left, bottom = np.arange(num_clients) - 0.43, np.zeros(num_clients)
    edge = 0.4 if num_clients <= 64 else 0  # thin lines between classes, which a greyscale print needs
    for label in range(num_classes):
        top = bottom + counts[:, label]
        corners = [(left, bottom), (left, top), (left + 0.86, top), (left + 0.86, bottom)]
        bars = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
        # One collection per class: a bar per client and class would take seconds to draw for hundreds of clients.
        axes.add_collection(
            PolyCollection(
                list(bars),
                facecolors=colours[label],
                edgecolors=axes.get_facecolor(),
                linewidths=edge,
                label=class_names[label],
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
    plain(axes)
    return figure


def _partition_heat_map(counts: NDArray[np.int64], title: str) -> Figure:
    """Clients sorted by their most frequent class, as columns; colour is the share of a class in a client's samples."""
    order = np.lexsort((counts.sum(axis=1), counts.argmax(axis=1)))
    shares = (counts / counts.sum(axis=1, keepdims=True))[order]
    if len(shares) > 2000:  # more columns than pixels: means over neighbours
        shares = np.stack([block.mean(axis=0) for block in np.array_split(shares, 2000)])
    figure = new_figure(10, 4.2)
    axes = figure.subplots()
    image = axes.imshow(
        shares.T,
        aspect="auto",
        cmap=SEQUENTIAL,
        vmin=0,
        interpolation="nearest",
        extent=(0, len(counts), len(counts.T), 0),
    )
    figure.colorbar(image, ax=axes, label="share of a client's samples")
    axes.set(xlabel="clients, sorted by their most frequent class", ylabel="class", title=title)
    return figure
