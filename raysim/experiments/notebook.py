"""What a notebook shows while runs are under way: the view of the terminal, as an output that changes in its place.

It is HTML that IPython updates, and needs no widgets, so that it works wherever notebooks do.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType

from raysim.experiments.progress import ProgressView
from raysim.experiments.watch_driver import Watch

WIDTH = 110  # letters
PAUSE_SECONDS = 0.5  # between updates
FORMAT = '<pre style="font-family: monospace; line-height: 1.2; white-space: pre">{code}</pre>'


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


@contextmanager
def shown(watch: Watch | None) -> Iterator[Watch | None]:
    """``watch``; in a notebook without one, a view of the progress."""
    if watch is not None or not in_notebook():
        yield watch
        return
    draw, clear = _output()
    try:
        with ProgressView(Console(file=sys.stderr, width=WIDTH, force_jupyter=False), draw) as view:
            yield view
    finally:
        clear()


def _output() -> tuple[Callable[[RenderableType], None], Callable[[], None]]:
    """Two functions: show something in the place of what was shown before, and show nothing any more."""
    from IPython.display import HTML, display  # a notebook has it

    handle = display(HTML(""), display_id=True)
    last = -PAUSE_SECONDS

    def draw(what: RenderableType) -> None:
        nonlocal last
        if time.monotonic() - last < PAUSE_SECONDS:
            return
        last = time.monotonic()
        handle.update(HTML(as_html(what)))

    return draw, lambda: handle.update(HTML(""))


def as_html(what: RenderableType) -> str:
    """Something of rich's as HTML, in the colours of a light or a dark page."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False, force_terminal=True)
    console.print(what)
    return console.export_html(inline_styles=True, code_format=FORMAT)
