"""``raysim compare``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from raysim.cli.base import console, main


@main.command()
@click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--group-by", "by", default="name", help="name (entries of the study), algorithm, or any dotted key.")
@click.option(
    "--last", default=1, type=click.IntRange(1), help="Average over this many last evaluated rounds; default 1."
)
@click.option(
    "--protocol",
    type=click.Choice(["paper", "aggregated"]),
    help="Clients as trained (paper) or after aggregation; default: what the runs' evaluate.protocol asks for.",
)
@click.option(
    "--best",
    is_flag=True,
    help="Best round of each run, by its validation samples; optimistic without them: by its test samples.",
)
@click.option(
    "--format",
    "form",
    default="table",
    type=click.Choice(["table", "markdown", "latex", "csv"]),
    help="Default: table.",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    help="Gain over this group, paired by seed and client. Default in a table: local and fedavg, if present.",
)
@click.option("--fairness", is_flag=True, help="Print fairness also in formats other than table.")
@click.option("--target", type=click.FloatRange(0, 1), help="Rounds and megabytes to this mean accuracy, such as 0.6.")
@click.option("--run", "runs", multiple=True, help="This run or study, by its MLflow id, in place of the latest study.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Accuracy over rounds, megabytes, time.")
@click.option(
    "--plot-gains", type=click.Path(dir_okay=False, path_type=Path), help="Gain over the baseline per kilobyte."
)
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="All pictures, into this folder.")
@click.option("--dark", is_flag=True, help="Pictures for a dark background.")
def compare(experiments: tuple[str, ...], uri: str | None, best: bool, last: int, dark: bool, **options: Any) -> None:
    """Show the tables and pictures of the latest study of each EXPERIMENT, from MLflow.

    Methods are paired by seed and client. In markdown, latex and csv several experiments (one per data set) stand side by
    side; in the first two the best and the second best are marked.
    """
    from raysim.analysis.compare_report import report
    from raysim.analysis.compared_runs import Options

    if best and last != 1:
        raise click.UsageError("--best and --last exclude each other")
    if options["plot_gains"] and len(options["baselines"]) != 1:
        raise click.UsageError("--plot-gains needs one --baseline NAME")
    chosen = Options(last="best" if best else last, background="dark" if dark else "light", **options)
    report(console, experiments, uri, chosen)
