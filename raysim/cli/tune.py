"""``raysim tune``"""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from raysim.cli.base import OVERRIDES, console, errors, load, main

if TYPE_CHECKING:
    from raysim.experiments.status import Status


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@OVERRIDES
@click.option(
    "--output", default="tuned.yaml", type=click.Path(dir_okay=False, writable=True), help="Default: tuned.yaml."
)
@click.option("--no-final", is_flag=True, help="Write the file, and do not run its study.")
def tune(file: str, overrides: tuple[str, ...], output: str, no_final: bool) -> None:
    """Tune every entry of FILE's study with equal budgets, as its block `tune:` says, on validation samples.

    Writes the best values as a study, runs it on the study's own seeds, and reports on test samples. The same command goes on
    with a tuning that was interrupted.
    """
    config = load(file, overrides)
    from raysim.analysis.table_formats import as_rich
    from raysim.experiments.progress import ProgressView
    from raysim.experiments.tuning.tune import tune as tune_config
    from raysim.experiments.watch_driver import RunFailed, RunKilled

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    views = ExitStack()
    shown: list[tuple[str, ProgressView]] = []

    def watch(status: Status, names: list[str], rounds: list[int]) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if not console.is_terminal:  # a line of each trial has to do
            for event in (event for event in status.events if isinstance(event, str)):
                console.print(event, style="yellow", highlight=False, soft_wrap=True)
            return
        if not shown or shown[0][0] != status.life:  # another trial, with a live view of its own
            views.close()
            shown[:] = [(status.life, views.enter_context(ProgressView(console)))]
        shown[0][1](status, names, rounds)

    try:
        with views:
            result = tune_config(config, output, not no_final, watch, say)
    except RunFailed as error:
        errors.print("the tuning failed; the same command goes on with it", style="bold red")
        errors.print(str(error), highlight=False, soft_wrap=True)
        sys.exit(1)
    except RunKilled as error:
        errors.print(f"{error}\nThe same command goes on with the tuning.", highlight=False, soft_wrap=True)
        sys.exit(130)
    used = result.budgets
    console.print(as_rich(used.drop(columns="best values"), f"every entry got {result.budget}"))
    for entry, values in used[["entry", "best values"]].itertuples(index=False):
        console.print(f"{entry}: {values}", highlight=False, soft_wrap=True)
    if result.ranking is not None:
        table, caption = result.ranking
        console.print(as_rich(table, caption))
    console.print(f"trials: experiment {result.experiment!r}; the best values: {result.path}", highlight=False)
