"""Pictures, one function each, made without a display. Their titles say what they show; ``style`` has how they look."""

from raysim.plots.bench import plot_bench
from raysim.plots.clients import plot_client_accuracy, plot_heat_map, plot_who_gains
from raysim.plots.curves import plot_accuracy, plot_comparison
from raysim.plots.layers import plot_gains
from raysim.plots.partition import plot_partition
from raysim.plots.style import Theme, as_png, check_picture, theme
from raysim.plots.timeline import plot_timeline

__all__ = [
    "Theme",
    "as_png",
    "check_picture",
    "plot_accuracy",
    "plot_bench",
    "plot_client_accuracy",
    "plot_comparison",
    "plot_gains",
    "plot_heat_map",
    "plot_partition",
    "plot_timeline",
    "plot_who_gains",
    "theme",
]
