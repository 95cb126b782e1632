"""``raysim run``"""

from __future__ import annotations

import click

from raysim.cli.base import OVERRIDES, console, load, main
from raysim.cli.show_runs import show_runs


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@OVERRIDES
@click.option(
    "--dry-run", is_flag=True, help="Only show what would run: configuration, parameters, memory, bytes, time."
)
@click.option("--fresh", is_flag=True, help="Start the study over, even if an earlier start of it is unfinished.")
def run(file: str, overrides: tuple[str, ...], fresh: bool, dry_run: bool) -> None:
    """Run the YAML FILE, a single run or a study, and log it to MLflow.

    Any key can be changed by its dotted path: train.optimizer.lr=0.1 data.num_clients=100

    An interrupted study is continued: finished runs are skipped, the others continue from their checkpoints.
    """
    config = load(file, overrides)
    if dry_run:
        from raysim.experiments.dry_run import dry_run as show

        show(console, config)
        return
    from raysim.experiments.command import run as run_config

    show_runs(lambda watch: run_config(config, watch, fresh))
