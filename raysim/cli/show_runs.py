"""Runs on the console: their progress, their result, what went wrong"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from raysim.cli.base import console, errors

if TYPE_CHECKING:
    from raysim.experiments.results import Result
    from raysim.experiments.status import Status
    from raysim.experiments.watch_driver import Watch


def show_runs(work: Callable[[Watch], Result]) -> None:
    """Call a command's ``work``, and show its progress, result and errors on the console."""
    from raysim.experiments.progress import ProgressView
    from raysim.experiments.watch_driver import RunFailed, RunKilled

    try:
        with ProgressView(console) as view:

            def watch(status: Status, names: list[str], rounds: list[int]) -> None:
                # SIGTERM ends a run as Ctrl-C does: closed as KILLED. Set here, since Ray installs its own handler.
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                view(status, names, rounds)

            result = work(watch)
    except RunFailed as error:
        errors.print("the run failed", style="bold red")
        errors.print(str(error), highlight=False, soft_wrap=True)
        sys.exit(1)
    except RunKilled as error:
        errors.print(str(error), highlight=False, soft_wrap=True)
        sys.exit(130)
    _print_result(result)


def _print_result(result: Result) -> None:
    from raysim.analysis.comparison import caption
    from raysim.analysis.divergence import rejections
    from raysim.analysis.table_formats import as_rich

    console.print(as_rich(result.table, caption(result.experiment, result.history, result.view)))
    for line in rejections(result.history):
        console.print(f"warning: {line}", style="yellow", highlight=False, soft_wrap=True)
    run_id = result.parent_run_id or result.runs[0].run_id
    pictures = "comparison.png" if result.parent_run_id else "partition.png"
    if any(r.new_clients is not None for r in result.runs):
        text = "new clients, adapted: clients that never took part, before and after they adapt"
        console.print(text, highlight=False)
    kind, experiment = "study" if result.parent_run_id else "run", result.experiment
    console.print(f"{kind} {run_id} in experiment {experiment!r}, with {pictures} among its artifacts", highlight=False)
    name, uri = shlex.quote(result.experiment), shlex.quote(result.tracking_uri)
    console.print("compare again: ", end="")
    console.print(f"raysim compare {name} --uri {uri}", style="bold", highlight=False, soft_wrap=True)
    if result.has_models:
        console.print("a client's model: ", end="")
        export = f"raysim export {result.runs[0].run_id} --client 0 --to client0.safetensors --uri {uri}"
        console.print(export, style="bold", highlight=False, soft_wrap=True)
    console.print("dashboard: ", end="")
    console.print(f"raysim dashboard --experiment {name} --uri {uri}", style="bold", highlight=False, soft_wrap=True)
