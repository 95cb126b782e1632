"""``raysim attach``"""

from __future__ import annotations

import os
import sys

import click

from raysim.cli.base import main
from raysim.cli.show_runs import show_runs


@main.command()
@click.argument("where", metavar="RUN_ID|DIR")
@click.option("--stop", is_flag=True, help="End the run; it is closed as KILLED in MLflow.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def attach(where: str, stop: bool, uri: str | None) -> None:
    """Show a run that continues in a cluster after its command is gone; Ctrl-C leaves it running."""
    sys.path.append(os.getcwd())
    from raysim.experiments.command import attach as attach_to

    show_runs(lambda watch: attach_to(where, uri, stop, watch))
