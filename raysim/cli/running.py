"""``raysim run``, ``resume`` and ``attach``."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from raysim.cli.base import OVERRIDES, console, errors, load, main

if TYPE_CHECKING:
    from raysim.experiments.driver import Status
    from raysim.experiments.command import Result, Watch


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@OVERRIDES
@click.option(
    "--dry-run", is_flag=True, help="Only show what would run: configuration, parameters, memory, bytes, time."
)
@click.option("--fresh", is_flag=True, help="Start a study anew, whatever of it was left unfinished.")
def run(file: str, overrides: tuple[str, ...], fresh: bool, dry_run: bool) -> None:
    """Run the YAML FILE, a single run or a study, and log it to MLflow.

    Any key can be changed by its dotted path: train.optimizer.lr=0.1 data.num_clients=100

    A study that was interrupted goes on: finished runs are skipped, the others continue from their checkpoints.
    """
    config = load(file, overrides)
    if dry_run:
        from raysim.experiments.dry_run import dry_run as show

        show(console, config)
        return
    from raysim.experiments.command import run as run_config

    _shown(lambda watch: run_config(config, watch, fresh))


@main.command()
@click.argument("where", metavar="RUN_ID|DIR")
@OVERRIDES
@click.option("--round", "from_round", type=click.IntRange(0), help="Go back to the checkpoint of so many rounds.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def resume(where: str, overrides: tuple[str, ...], from_round: int | None, uri: str | None) -> None:
    """Go on with a run or study that was interrupted, from its checkpoints, in the same MLflow run.

    RUN_ID is an MLflow run, DIR a folder of checkpoints. Keys that change no result may be changed: resources.num_actors=2
    """
    sys.path.append(os.getcwd())
    from raysim.experiments.command import resume as resume_runs

    _shown(lambda watch: resume_runs(where, overrides, uri, from_round, watch))


@main.command()
@click.argument("where", metavar="RUN_ID|DIR")
@click.option("--stop", is_flag=True, help="End it; it is closed as KILLED in MLflow.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def attach(where: str, stop: bool, uri: str | None) -> None:
    """Show a run again that goes on in a cluster although its command is gone; Ctrl-C leaves it running."""
    sys.path.append(os.getcwd())
    from raysim.experiments.command import attach as attach_to

    _shown(lambda watch: attach_to(where, uri, stop, watch))


def _shown(work: Callable[[Watch], Result]) -> None:
    """Do what a command is for, with progress, result and errors on the console."""
    from raysim.experiments.command import RunFailed, RunKilled
    from raysim.cli.progress import ProgressView

    try:
        with ProgressView(console) as view:

            def watch(status: Status, names: list[str], rounds: list[int]) -> None:
                # Ends as Ctrl-C does, the run closed as KILLED. Here, since Ray puts a handler of its own in place.
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
    from raysim.cli.progress import as_rich

    console.print(as_rich(result.table, caption(result.experiment, result.history)))
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
