"""``raysim resume``"""

from __future__ import annotations

import os
import sys

import click

from raysim.cli.base import OVERRIDES, main
from raysim.cli.show_runs import show_runs


@main.command()
@click.argument("where", metavar="RUN_ID|DIR")
@OVERRIDES
@click.option("--round", "from_round", type=click.IntRange(0), help="Go back to the checkpoint after this many rounds.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def resume(where: str, overrides: tuple[str, ...], from_round: int | None, uri: str | None) -> None:
    """Continue a run or study that was interrupted, from its checkpoints, in the same MLflow run.

    RUN_ID is an MLflow run, DIR a folder of checkpoints. Keys that change no result may be changed: resources.num_actors=2.
    A run gets more rounds by rounds=40, finished or not, if its learning rate is constant.
    """
    sys.path.append(os.getcwd())
    from raysim.experiments.command import resume as resume_runs

    show_runs(lambda watch: resume_runs(where, overrides, uri, from_round, watch))
