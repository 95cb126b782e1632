"""How pictures look: on a light or a dark background, in Okabe and Ito's colours, which colour-blind readers can tell apart.

Each colour has a line style and a marker of its own, which a greyscale print needs.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure

from raysim.errors import ConfigError
from raysim.plots.palette import COLOURS

STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SEQUENTIAL = "viridis"
Theme = Literal["light", "dark"]
P = ParamSpec("P")


def _theme(paper: str, ink: str) -> dict[Any, Any]:
    edges = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    return {"figure.facecolor": paper, "axes.facecolor": paper, "savefig.facecolor": paper} | dict.fromkeys(edges, ink)


THEMES: dict[str, dict[Any, Any]] = {"light": _theme("white", "black"), "dark": _theme("#0d1117", "#e6edf3")}


@contextmanager
def theme(name: Theme) -> Iterator[None]:
    """Draw everything inside the ``with`` block on this background."""
    with rc_context(THEMES[name]):
        yield


def verbatim(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """For functions that draw names of a user's: a ``$`` in them is a dollar, and begins no formula."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context({"text.parse_math": False}):
            return draw(*args, **kwargs)

    return drawn


class _Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return as_png(self)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return _Picture(figsize=(width, height), dpi=130, layout="constrained")


def ink() -> str:
    """The colour of lines and text."""
    return str(rcParams["text.color"])


def colour(i: int) -> str:
    """The colour of the i-th group: seven colours, then that of the ink, then from the start again."""
    palette = (*COLOURS, ink())
    return palette[i % len(palette)]


def line(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th group; when colours repeat, the styles differ."""
    return {"color": colour(i), "linestyle": STYLES[(i + i // (len(COLOURS) + 1)) % len(STYLES)]}


def plain(axes: Any, grid: Literal["x", "y", "both"] = "y") -> None:
    """A light grid behind the data, no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)


def as_png(figure: Figure) -> bytes:
    """The figure as PNG, drawn at once in this thread, since matplotlib is not thread-safe."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def check_picture(path: Path | None) -> None:
    """Refuse a picture that can't be written, before the work is done.

    Raises:
        ConfigError: the suffix is not a picture format, or there is no such folder.
    """
    if path is None:
        return
    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
        raise ConfigError(f"--plot: {path} should end in .png, .pdf, .svg or .jpg")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot: there is no folder {path.parent}")
